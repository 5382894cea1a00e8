"""Parts of the attacks against their formulas by hand: what would look right if it were only half done."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jacreg_jax import adversarial_training, attacks
from jacreg_jax.adversarial_training import random_fgsm
from jacreg_jax.attacks import losses, start
from jacreg_jax.attacks.ball import project
from tests.conftest import mlp, mlp_params
from tests.test_attacks_strong import box_active_distance

apgd, auto_attack, carlini_wagner, canvases, bumps = (
    importlib.import_module(f"jacreg_jax.attacks.{n}")
    for n in ("apgd_search", "auto_attack", "carlini_wagner", "square_canvas", "square_bumps")
)


def threshold(at, sharpness=1.0):
    """One pixel: class 0 above `at`, class 1 below."""
    return lambda x: sharpness * jnp.concatenate([x - at, at - x], axis=1)


def test_difference_of_logits_ratio_by_hand():
    z = jnp.array([[5.0, 3.0, 1.0, -2.0], [1.0, 4.0, 2.5, 0.0]])
    y = jnp.array([0, 2])
    np.testing.assert_allclose(losses.dlr(z, y), [(3 - 5) / (5 - 1), (4 - 2.5) / (4 - 1)], rtol=1e-6)
    target = jnp.array([3, 0])
    expected = [(-2 - 5) / (5 - (1 - 2) / 2), (1 - 2.5) / (4 - (1 + 0) / 2)]
    np.testing.assert_allclose(losses.dlr_targeted(z, y, target), expected, rtol=1e-6)


def test_white_noise_distance_is_along_its_direction(key):
    """The image is clip(x + k step n), n drawn from the sample's own key, k the first that fools."""
    params = mlp_params(key, (6, 12, 4))
    f = lambda x: 4 * mlp(params, x)
    x = jax.random.uniform(key, (20, 6))
    y = jnp.argmax(f(x), 1)
    result = attacks.white_noise_distance(f, x, y, key, step_size=0.05, num_steps=60)
    assert result.success.sum() > 5
    for i in np.flatnonzero(result.success):
        noise = jax.random.normal(jax.random.fold_in(key, int(i)), (6,))
        images = jnp.clip(x[i][None] + 0.05 * jnp.arange(1, 61)[:, None] * noise[None], 0, 1)
        first = int(jnp.argmax(jnp.argmax(f(images), 1) != y[i]))
        assert result.steps[i] == first + 1
        np.testing.assert_allclose(result.x_adv[i], images[first], atol=1e-6)


@pytest.mark.parametrize(("pixel", "steps"), [(0.61, 4), (0.51, 1), (0.78, 10), (0.81, None)])
def test_pgd_distance_counts_its_steps(pixel, steps):
    """Steps of 0.03 from the pixel to below 0.5, at most ten."""
    found = attacks.pgd_distance(
        threshold(0.5), jnp.array([[pixel]]), jnp.array([0]), step_size=0.03, num_steps=10, epsilon=0.5
    )
    assert bool(found.success[0]) == (steps is not None)
    if steps is not None:
        assert found.steps[0] == steps
        assert found.distance[0] == pytest.approx(0.03 * steps, abs=1e-5)


def test_pgd_distance_stays_in_its_ball():
    found = attacks.pgd_distance(threshold(0.5), jnp.array([[0.7]]), jnp.array([0]), step_size=0.03, epsilon=0.15)
    assert not found.success[0]


def ddn_by_hand(f, x, y, *, num_steps, epsilon, gamma):
    """Rony et al. (2019), one sample, step by step; the shortest fooling distance."""
    loss = lambda d: (jax.nn.logsumexp(losses.others(f(x + d), y), axis=-1) - losses.true_logit(f(x + d), y)).sum()
    delta, best = jnp.zeros_like(x), np.inf
    for t in range(num_steps):
        fooled = int(jnp.argmax(f(x + delta), 1)[0]) != int(y[0])
        length = float(jnp.linalg.norm(delta))
        best = min(best, length) if fooled else best
        gradient = jax.grad(loss)(delta)
        rate = 0.01 + (1 - 0.01) / 2 * (1 + np.cos(np.pi * t / num_steps))
        delta = delta + rate * gradient / jnp.linalg.norm(gradient)
        epsilon *= (1 - gamma) if fooled else (1 + gamma)
        delta = epsilon * delta / jnp.linalg.norm(delta)
        delta = jnp.clip(x + delta, 0, 1) - x
    return best


def test_ddn_step_by_step(key):
    params = mlp_params(key, (5, 16, 3))
    f = lambda x: 6 * mlp(params, x)
    x = jax.random.uniform(key, (6, 5), minval=0.3, maxval=0.7)
    y = jnp.argmax(f(x), 1)
    result = attacks.ddn(f, x, y, key, num_steps=25, init_epsilon=0.3, gamma=0.1)
    expected = [ddn_by_hand(f, x[i : i + 1], y[i : i + 1], num_steps=25, epsilon=0.3, gamma=0.1) for i in range(6)]
    assert np.isfinite(expected).sum() >= 3
    np.testing.assert_allclose(result.distance, expected, rtol=2e-3)


@pytest.mark.parametrize("is_flat", [True, False])
def test_ddn_says_whether_the_first_gradient_was_zero(is_flat, key):
    """A model that is flat at the image alone, and one that is flat everywhere else."""
    at = 0.5 if is_flat else 0.55
    away = lambda u: jnp.abs(u[:, 0] - 0.5)
    lead = lambda u: jax.nn.relu(away(u) - 0.1) if is_flat else jnp.minimum(away(u) - 0.1, 0)
    f = lambda u: jnp.stack([1 + 0 * u[:, 0], lead(u)], axis=1)
    result = attacks.ddn(f, jnp.array([[at]]), jnp.array([0]), key, num_steps=4, init_epsilon=0.3)
    assert bool(result.grad_zero[0]) is is_flat


def test_ddn_reaches_the_far_corner():
    """The only fooling pixels lie further than the near side of the box."""
    result = attacks.ddn(threshold(0.95, -20.0), jnp.array([[0.1]]), jnp.array([0]), jax.random.key(0), num_steps=200)
    assert result.success[0]
    assert result.distance[0] == pytest.approx(0.85, abs=0.01)


def test_carlini_wagner_counts_its_steps():
    """The first constant is too small to move w across the boundary in one Adam step, the tenfold one is not."""
    attack = partial(
        attacks.carlini_wagner,
        threshold(0.5),
        jnp.array([[0.6]]),
        jnp.array([0]),
        num_steps=2,
        learning_rate=1.0,
        adam_eps=1e-3,
    )
    assert attack(binary_search_steps=1, initial_const=1.0).steps[0] == 2  # seen at the second evaluation
    assert not attack(binary_search_steps=1, initial_const=1e-4).success[0]
    assert attack(binary_search_steps=2, initial_const=1e-4).steps[0] == 4


def test_apgd_halves_its_step_and_goes_back(key):
    """Croce, Hein (2020), conditions 1 and 2: too few rises, or nothing gained since the last checkpoint."""
    f = lambda x: x @ jnp.eye(2)
    begun = start.begin(f, jnp.full((4, 2), 0.5), jnp.zeros(4, int), (0.0, 1.0), key=key)
    search = apgd.Search(begun, None, True, 0.1, "linf", 10, 0.75)
    rows = lambda *values: jnp.array(values, jnp.float32)
    state = apgd._State(
        x_adv=jnp.ones((4, 2)),
        x_old=jnp.ones((4, 2)),
        gradient=jnp.ones((4, 2)),
        x_best=jnp.zeros((4, 2)),
        gradient_best=jnp.zeros((4, 2)),
        loss_best=rows(1, 1, 1, 1),
        loss_last=rows(0, 0, 0, 0),
        rises=jnp.array([3, 4, 4, 4]),  # of 5 steps: 3 are at most 0.75 * 5
        loss_checked=rows(0, 0, 1, 1),
        was_reduced=jnp.array([True, True, True, False]),
        step_size=rows(2, 2, 2, 2),
        found=None,
    )
    after = apgd._checkpoint(search, jnp.asarray(5), state)
    np.testing.assert_array_equal(after.step_size, [1, 2, 2, 1])
    np.testing.assert_array_equal(after.x_adv[:, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(after.gradient[:, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(after.was_reduced, [True, False, False, True])
    np.testing.assert_array_equal(after.rises, 0)
    np.testing.assert_array_equal(after.loss_checked, state.loss_best)


def test_adam_is_that_of_optax(key):
    """Three updates of the attack's own Adam."""
    ours, theirs = carlini_wagner._Adam(0.1, 1e-6), optax.adam(0.1, eps=1e-6)
    zero = jnp.zeros((2, 3))
    moments, state = carlini_wagner._Moments(zero, zero, jnp.zeros((), jnp.int32)), theirs.init(zero)
    for gradient in jax.random.normal(key, (3, 2, 3)):
        update, moments = ours.update(gradient, moments)
        expected, state = theirs.update(gradient, state)
        np.testing.assert_allclose(update, expected, rtol=1e-5)


def test_carlini_wagner_searches_its_constant(monkeypatch, key):
    """Ten times as much until one fools, then bisection; the last of ten is the smallest that fooled."""
    limits, seen = np.array([0.005, 0.3, 7.0, np.inf]), []

    def descend(problem, adam, const, num_steps, first, best):
        jax.debug.callback(lambda c: seen.append(np.array(c)), const, ordered=True)
        return best, const >= jnp.asarray(limits, const.dtype)

    monkeypatch.setattr(carlini_wagner, "_descend", descend)
    f = threshold(0.5, 1.37)  # not yet compiled by another test
    attacks.carlini_wagner(f, jnp.full((4, 1), 0.6), jnp.zeros(4, int), num_steps=1, initial_const=0.01)
    jax.effects_barrier()
    for i, limit in enumerate(limits):
        const, lower, upper, expected = 0.01, 0.0, 1e10, []
        for k in range(10):
            expected.append(upper if k == 9 else const)
            upper = min(upper, expected[-1]) if expected[-1] >= limit else upper
            lower = lower if expected[-1] >= limit else max(lower, expected[-1])
            const = (lower + upper) / 2 if upper < 1e9 else 10 * const
        np.testing.assert_allclose(np.array(seen)[:, i], expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_fab_step_by_hand(norm, key):
    """Croce, Hein (2019), in a box that is far away: projections onto planes in closed form, three steps a target."""
    params = mlp_params(key, (4, 8, 3))
    f = lambda x: 3 * mlp(params, x)
    x = jax.random.normal(jax.random.fold_in(key, 1), (5, 4))
    y = jnp.argmax(f(x), 1)
    found = attacks.fab(f, x, y, norm=norm, num_steps=3, alpha_max=0.3, beta=0.8, bounds=(-50.0, 50.0))
    length = lambda d: float(jnp.linalg.norm(d) if norm == "l2" else jnp.abs(d).max())

    def onto(u, w, offset):
        v = w if norm == "l2" else jnp.sign(w)
        return -(w @ u - offset) / (w @ v) * v

    for image, label, distance in zip(x, y, found.distance, strict=True):
        best = np.inf
        for target in jnp.argsort(f(image[None])[0])[::-1][1:]:
            lead = lambda u, t=target, c=label: f(u[None])[0, t] - f(u[None])[0, c]
            u = image
            for _ in range(3):
                w = jax.grad(lead)(u)
                offset = w @ u - lead(u)
                here, there = onto(u, w, offset), onto(image, w, offset)
                alpha = min(max(length(here), 1e-8) / (max(length(here), 1e-8) + max(length(there), 1e-8)), 0.3)
                u = (1 - alpha) * (u + 1.05 * here) + alpha * (image + 1.05 * there)
                if int(jnp.argmax(f(u[None])[0])) != int(label):
                    best = min(best, length(u - image))
                    u = image + 0.8 * (u - image)
        assert distance == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(("loss_last", "rises"), [(-0.1, 4), (0.0, 3), (0.1, 3)])
def test_an_equal_loss_is_no_rise(loss_last, rises, key):
    """Croce, Hein (2020), condition 1 counts f(x_(i+1)) > f(x_i); the model gives 0 everywhere."""
    x = jnp.full((1, 2), 0.5)
    begun = start.begin(lambda x: 0 * x, x, jnp.zeros(1, int), (0.0, 1.0), key=key)
    search = apgd.Search(begun, lambda logits: losses.margin(logits, begun.y), True, 0.3, "linf", 10, 0.75)
    state = apgd._first(search, jax.random.split(key, 1), apgd.Found(x, begun.none(), begun.zeros(), begun.zeros()))
    state = state._replace(loss_last=jnp.array([loss_last]), rises=jnp.array([3]))
    assert apgd._step(search, jnp.asarray(2), state).rises[0] == rises


def test_projection_by_hand():
    """Onto the ball where a point lies outside, then into the box; a point inside stays."""
    x = jnp.full((3, 2), 0.5)
    at = x + jnp.array([[0.03, 0.04], [0.3, 0.4], [-0.6, 0.8]])
    near = project(at, x, 0.1, "l2", (0.0, 1.0)) - 0.5
    np.testing.assert_allclose(near, [[0.03, 0.04], [0.06, 0.08], [-0.06, 0.08]], rtol=1e-5)
    far = project(at, x, 5.0, "l2", (0.0, 1.0)) - 0.5
    np.testing.assert_allclose(far, [[0.03, 0.04], [0.3, 0.4], [-0.5, 0.5]], rtol=1e-5)
    wide = project(at, x, jnp.array([0.035, 0.1, 0.7]), "linf", (0.0, 1.0)) - 0.5
    np.testing.assert_allclose(wide, [[0.03, 0.035], [0.1, 0.1], [-0.5, 0.5]], rtol=1e-5)


def test_apgd_counts_its_steps(key):
    """From the end of the ball that fools none step is needed, from the other end one."""
    x = jnp.full((16, 1), 0.7)
    found = attacks.apgd(threshold(0.5), x, jnp.zeros(16, int), key, epsilon=0.3, num_steps=3)
    assert found.success.all()
    assert set(found.steps.tolist()) == {0, 1}


def test_apgd_moves_with_momentum(key):
    """Croce, Hein (2020), equation 3, alpha 0.75: the first step is a plain one; the ball and the box have the end."""
    begun = start.begin(lambda x: x, jnp.full((1, 3), 0.5), jnp.zeros(1, int), (0.0, 1.0), key=key)
    search = apgd.Search(begun, None, True, 0.3, "linf", 10, 0.75)
    at, before = jnp.array([[0.5, 0.6, 0.7]]), jnp.array([[0.4, 0.6, 0.78]])
    state = apgd._State(*[None] * 11, found=None)._replace(
        x_adv=at, x_old=before, gradient=jnp.array([[2.0, -3.0, 0.1]]), step_size=jnp.array([0.08 / 0.3])
    )
    np.testing.assert_allclose(apgd._move(search, jnp.asarray(0), state), [[0.58, 0.52, 0.78]], rtol=1e-6)
    round_ball = search._replace(norm="l2")
    expected = at + 0.08 * state.gradient / np.sqrt(4 + 9 + 0.01)
    np.testing.assert_allclose(apgd._move(round_ball, jnp.asarray(0), state), expected, rtol=1e-6)
    expected = [[0.5 + 0.06 + 0.025, 0.6 - 0.06, 0.7 + 0.06 - 0.02]]
    np.testing.assert_allclose(apgd._move(search, jnp.asarray(1), state), expected, rtol=1e-6)
    far = state._replace(step_size=jnp.array([30.0]))  # both projected: 0.5 +- 0.3, with a quarter of the last step
    expected = [[0.5 + 0.225 + 0.025, 0.6 - 0.3, 0.7 + 0.075 - 0.02]]
    np.testing.assert_allclose(apgd._move(search, jnp.asarray(1), far), expected, rtol=1e-6)


def test_the_ensemble_keeps_the_first_success(monkeypatch, key):
    """A sample that one attack fools keeps that image whatever the later ones find."""
    x, y = jnp.full((3, 2), 0.5), jnp.zeros(3, int)

    def fake(pixel, success):
        success = jnp.array(success)
        return lambda f, x, y, key, epsilon: attacks.AttackResult(
            jnp.full_like(x, pixel), success, jnp.where(success, pixel, jnp.inf), ~y.astype(bool), y, ~success
        )

    ensemble = {"a": fake(0.1, [True, False, False]), "b": fake(0.2, [True, True, False])}
    monkeypatch.setattr(auto_attack, "standard_ensemble", lambda **options: ensemble)
    result = attacks.auto_attack(lambda x: x, x, y, key, epsilon=0.1)
    np.testing.assert_allclose(result.x_adv[:2, 0], [0.1, 0.2])
    np.testing.assert_array_equal(result.success, [True, True, False])
    np.testing.assert_allclose(result.distance, [0.1, 0.2, np.inf])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_training_draws_a_radius_for_each_sample(norm, key):
    """A linear f is climbed to the end of the ball: what is moved is the radius, uniform up to epsilon."""
    x, keys = jnp.full((2000, 3), 0.5), jax.random.split(key, 2000)
    f = lambda x: jnp.stack([x @ jnp.ones(3), -x @ jnp.ones(3)], 1)
    order = {"linf": np.inf, "l2": 2}[norm]
    perturb = adversarial_training.pgd(0.2, num_steps=5, norm=norm, random_epsilon=True)
    moved = np.linalg.norm(perturb(f, x, jnp.zeros(2000, int), keys) - x, ord=order, axis=1)
    assert stats.kstest(moved / 0.2, "uniform").pvalue > 1e-3
    whole = adversarial_training.pgd(0.2, num_steps=5, norm=norm)(f, x, jnp.zeros(2000, int), keys) - x
    np.testing.assert_allclose(np.linalg.norm(whole, ord=order, axis=1), 0.2, rtol=1e-5)


def test_adversarial_training_steps_by_the_sign(key):
    """Every pixel of an image moves by the same size."""
    params = mlp_params(key, (6, 8, 3))
    x = jax.random.uniform(key, (9, 6), minval=0.3, maxval=0.7)
    moved = random_fgsm(0.1)(lambda x: mlp(params, x), x, jnp.arange(9) % 3, jax.random.split(key, 9))
    sizes = np.abs(moved - x)
    np.testing.assert_allclose(sizes.max(1), sizes.min(1), atol=1e-6)
    drawn = [float(jax.random.uniform(jax.random.fold_in(k, 1), maxval=0.1)) for k in jax.random.split(key, 9)]
    np.testing.assert_allclose(sizes.max(1), drawn, atol=1e-6)


# Square


def test_square_sides_by_hand():
    """sqrt(share H W), share halved after 10, 50, 200, ... queries, never above the shorter side."""
    sides = canvases.sizes_of(60, 0.8, (20, 5), "linf")
    np.testing.assert_array_equal(sides[[0, 10]], 5)  # 9 and 9
    np.testing.assert_array_equal(
        canvases.sizes_of(60, 0.8, (20, 30), "linf")[[0, 10, 11, 50, 51]], [20, 20, 15, 15, 11]
    )
    np.testing.assert_array_equal(canvases.sizes_of(60, 0.8, (20, 30), "l2")[[0, 11, 51]], [20, 15, 11])
    np.testing.assert_array_equal(canvases.sizes_of(60, 0.8, (1, 30), "linf")[[0, 11, 51]], [24, 12, 6])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(9, 13, 2), (4, 4, 3), (4, 3), (6, 7), (7,), (26,), (2, 1, 3, 2)])
def test_a_canvas_reads_what_it_paints(shape, norm, key):
    """Rows and columns stay what they are in an image; the rest of the canvas is empty."""
    x = 1 + jax.random.uniform(key, (2, *shape))
    canvas = canvases.Canvas.of(x, norm)
    painted = canvas.paint(x)
    np.testing.assert_array_equal(canvas.read(painted), x)
    np.testing.assert_array_equal((painted > 0).sum((1, 2, 3)), np.prod(shape))
    assert painted.shape[:1] + painted.shape[3:] == (2, shape[2] if len(shape) == 3 else 1)
    assert norm == "linf" or min(painted.shape[1:3]) >= 5
    if len(shape) in (2, 3):
        np.testing.assert_array_equal(painted[:, : shape[0], : shape[1]].reshape(x.shape), x)


def test_square_windows_are_squares_everywhere(key):
    image = jnp.zeros((1, 7, 11, 1))
    canvas = canvases.Canvas.of(image, "linf")
    windows, corners = jax.vmap(lambda k: canvases.window_at(k, jnp.asarray(3), canvas))(jax.random.split(key, 600))
    np.testing.assert_array_equal(windows.sum((1, 2)), 9)
    assert {tuple(c) for c in np.asarray(corners)} == {(i, j) for i in range(4) for j in range(8)}
    for window, (row, column) in zip(np.asarray(windows)[:20], np.asarray(corners)[:20], strict=True):
        assert window[row : row + 3, column : column + 3].all()


def test_a_row_of_features_is_covered_to_its_end(key):
    canvas = canvases.Canvas.of(jnp.zeros((1, 6)), "linf")
    windows, _ = jax.vmap(lambda k: canvases.window_at(k, jnp.asarray(2), canvas))(jax.random.split(key, 200))
    assert windows.any(0).all()


@pytest.mark.parametrize("side", [3, 5, 8])
def test_bumps(side):
    """Unit norm; two halves of opposite sign; the second lies where the first stands."""
    upright, lying = bumps._bump(side)
    assert np.sum(upright**2) == pytest.approx(1)
    assert (upright[: side // 2] >= 0).all()
    assert (upright[side // 2 :] <= 0).all()
    np.testing.assert_allclose(lying, upright.T)


def test_pyramids_by_hand():
    """Rectangles one row and column wider each, of weight 1, 1/4, 1/9, ... around the middle, cut off at the sides."""
    expected = np.array([[1 / 9, 13 / 36, 49 / 36, 13 / 36, 1 / 9]])
    np.testing.assert_allclose(bumps._pyramid(1, 5), expected / np.linalg.norm(expected), rtol=1e-12)
    expected = np.array([[1 / 4, 1 / 4, 1 / 4], [1 / 4, 5 / 4, 1 / 4]])
    np.testing.assert_allclose(bumps._pyramid(2, 3), expected / np.linalg.norm(expected), rtol=1e-12)
    upper = np.array([[1.0, 5.0, 1.0]]) / np.sqrt(27)
    lower = np.array([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0]]) / np.sqrt(30)
    np.testing.assert_allclose(bumps._bump(3)[0], np.concatenate([upper, -lower]) / np.sqrt(2), rtol=1e-12)


SHAPES = [(9, 13, 2), (28, 28, 1), (4, 4, 1), (7,)]
SHAPES += [pytest.param(shape, marks=pytest.mark.slow) for shape in ((6, 6, 1), (21, 10, 3), (3, 2))]


@pytest.mark.parametrize("shape", SHAPES)
def test_square_starts_everywhere_on_the_sphere_in_l2(shape, key):
    """A model that any change fools: the first image lies at epsilon, with a bump on every part of the image."""
    x = jnp.full((5, *shape), 0.5)
    f = lambda u: jnp.stack([jnp.zeros(len(u)), jnp.abs(u - 0.5).reshape(len(u), -1).sum(1) - 1e-6], 1)
    result = attacks.square(f, x, jnp.zeros(5, int), key, epsilon=0.3, norm="l2", num_queries=1)
    assert result.success.all()
    np.testing.assert_array_equal(result.steps, 0)  # no query was needed
    np.testing.assert_allclose(result.distance, 0.3, rtol=1e-4)
    if len(shape) == 3 and min(shape[:2]) >= 6:
        side = min(shape[:2]) // 5
        delta = np.abs(result.x_adv - x).sum((0, 3))
        rows, columns = (n // side for n in shape[:2])
        assert (delta > 0).sum() > 0.8 * rows * columns * side * side


def test_half_of_the_bumps_lie(key):
    """500 bumps of 5 x 5 at the start in L2: upright or lying, and positive or negative above, by fair coins."""
    x = jnp.full((20, 25, 25, 1), 0.5)
    begun = start.begin(lambda x: x.reshape(20, -1)[:, :2], x, jnp.zeros(20, int), (0.0, 1.0), key=key)
    first, _ = bumps.bumps(begun, jnp.full((20, 1, 1, 1), 0.1), 1, 0.8, "l2")
    blocks = (np.asarray(first(begun.keys)) - 0.5).reshape(20, 5, 5, 5, 5).swapaxes(2, 3).reshape(-1, 25)
    tiles = bumps._bump(5).reshape(2, 25) * np.linalg.norm(blocks[0])
    found = [[(np.abs(blocks - sign * bump[None]).max(1) < 1e-5).sum() for sign in (1, -1)] for bump in tiles]
    assert np.sum(found) == 500
    np.testing.assert_allclose(np.array(found) / 500, 0.25, atol=0.06)  # three standard errors


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", [(9, 13, 2), (12,), (5, 4)])
def test_square_keeps_to_its_ball_and_climbs(shape, norm, key):
    """A linear model with room: no step leaves the ball, and a few hundred queries find it."""
    w = jax.random.normal(key, (int(np.prod(shape)),))
    order = 2 if norm == "l2" else 1
    share = 0.1 if norm == "l2" and len(shape) == 3 else 0.4
    margin = share * 0.2 * jnp.linalg.norm(w, order)  # a share of what the best step in the ball does
    f = lambda u: jnp.stack([margin + (u - 0.5).reshape(len(u), -1) @ w, jnp.zeros(len(u))], 1)
    x = jnp.full((6, *shape), 0.5)
    attack = partial(attacks.square, f, x, jnp.zeros(6, int), key, norm=norm, num_queries=600)
    result = attack(epsilon=0.2)
    assert result.success.mean() > 0.6
    assert (result.distance[result.success] <= 0.2 + 1e-5).all()
    assert not attack(epsilon=0.98 * share * 0.2).success.any()


# boxes


@pytest.mark.parametrize("name", ["carlini_wagner", "ddn", "fab"])
def test_bounds_of_every_feature(name, key):
    """A box of another size for every feature, in part active: the exact distance by bisection on the dual."""
    w = 30 * np.asarray(jax.random.normal(key, (2, 8)))
    f = lambda x: x @ jnp.asarray(w, jnp.float32).T
    low, high = jnp.linspace(-2.0, 0.0, 8), jnp.linspace(0.5, 4.0, 8)
    x = low[None] + (high - low)[None] * jnp.clip(jax.random.uniform(key, (8, 8), minval=-0.3, maxval=1.3), 0, 1)
    y = jnp.argmax(f(x), 1)
    attack = {
        "carlini_wagner": partial(attacks.carlini_wagner, initial_const=1.0, num_steps=1500, learning_rate=0.01),
        "ddn": partial(attacks.ddn, key=key, num_steps=1000),
        "fab": attacks.fab,
    }[name]
    result = jax.jit(lambda x: attack(f, x, y, bounds=(low, high)))(x)
    span = np.asarray(high - low)
    # in units of the box: min ||span d'|| becomes min ||e|| with e = span d' and its own limits
    exact = np.array([boxed_distance(w[0] - w[1], image, np.asarray(low), span) for image in np.asarray(x)])
    np.testing.assert_array_equal(np.isfinite(exact), result.success)
    ratio = np.asarray(result.distance)[np.isfinite(exact)] / exact[np.isfinite(exact)]
    assert ratio.min() > 1 - 1e-3
    assert ratio.max() < 1.02, ratio
    assert (result.x_adv >= low[None] - 1e-5).all()
    assert (result.x_adv <= high[None] + 1e-5).all()


def boxed_distance(w, x, low, span):
    """min ||d||_2 with w . (x + d) = 0 and low <= x + d <= low + span, by bisection on the dual in float64."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    sign = np.sign(-w @ x)
    move = lambda s: np.clip(sign * s * w, low - x, low + span - x)
    left, right = 0.0, 1.0
    while sign * (w @ (x + move(right))) < 0:
        right *= 2
        if right > 1e9:
            return np.inf
    for _ in range(200):
        middle = (left + right) / 2
        left, right = (middle, right) if sign * (w @ (x + move(middle))) < 0 else (left, middle)
    return np.linalg.norm(move(right))


def test_scalar_bounds_are_the_same_box():
    w, x = np.array([1.0, 2.0]), np.array([0.9, 0.8])
    assert boxed_distance(w, x - 0.5, np.full(2, -0.5), np.ones(2)) == pytest.approx(box_active_distance(w, 1.5, x))


@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
def test_bounds_of_every_channel_are_those_of_the_pixels(name, key):
    """Images normalised channel by channel, attacked in their own bounds; a ball in units of one channel's scale."""
    mean, std = jnp.array([[[[0.485, 0.456, 0.406]]]]), 0.25
    raw = jnp.clip(jax.random.uniform(key, (6, 6, 6, 3), minval=-0.2, maxval=1.2), 0, 1)
    w = jax.random.normal(jax.random.fold_in(key, 1), (108, 5))
    f = lambda x: x.reshape(len(x), -1) @ w
    from_raw = lambda u: f((u - mean) / std)
    y = jnp.argmax(from_raw(raw), 1)
    attack = {
        "pgd": partial(attacks.pgd, num_steps=5),
        "apgd": partial(attacks.apgd, key=key, num_steps=10),
        "square": partial(attacks.square, key=key, num_queries=30),
    }[name]
    sizes = lambda e: {"epsilon": e} | ({"step_size": e / 4} if name == "pgd" else {})
    expected = attack(from_raw, raw, y, **sizes(0.05))
    x, bounds = (raw - mean) / std, (-mean[0, 0, 0] / std, (1 - mean[0, 0, 0]) / std)
    result = attack(f, x, y, bounds=bounds, **sizes(0.2))
    np.testing.assert_allclose(result.x_adv * std + mean, expected.x_adv, atol=2e-4)
    np.testing.assert_array_equal(result.success, expected.success)
