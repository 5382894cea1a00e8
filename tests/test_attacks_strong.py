"""CW, DDN, FAB, APGD, Square, the ensemble and the scans: known distances, failures, one sample alone or in a batch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks, evaluation, reporting_sections
from jacreg_jax.attacks import losses
from jacreg_jax.attacks.apgd_search import _checkpoints
from jacreg_jax.attacks.fab import project_to_plane
from jacreg_jax.attacks.square_canvas import sizes_of
from tests.conftest import mlp, mlp_params

DISTANCES = {
    "carlini_wagner": partial(attacks.carlini_wagner, num_steps=300, binary_search_steps=6, initial_const=1.0),
    "ddn": partial(attacks.ddn, num_steps=200),
    "fab_l2": partial(attacks.fab, num_steps=40),
    "fab_linf": partial(attacks.fab, num_steps=40, norm="linf"),
    "fgsm_distance": attacks.fgsm_distance,
    "pgd_distance": partial(attacks.pgd_distance, epsilon=0.5, num_steps=200),
    "white_noise_distance": partial(attacks.white_noise_distance, step_size=0.05, num_steps=100),
}
FIXED = {
    f"{name}_{norm}": partial(attack, norm=norm, **options)
    for norm in ("linf", "l2")
    for name, attack, options in (
        ("apgd_ce", attacks.apgd, {"num_steps": 20}),
        ("apgd_dlr", attacks.apgd, {"num_steps": 20, "loss": "dlr"}),
        ("apgd_t", attacks.apgd, {"num_steps": 20, "loss": "targeted"}),
        ("square", attacks.square, {"num_queries": 100}),
        ("auto_attack", attacks.auto_attack, {"num_queries": 50}),
    )
}
ALL = DISTANCES | {name: partial(attack, epsilon=0.4) for name, attack in FIXED.items()}
CHEAP = {name: a for name, a in ALL.items() if not name.startswith("auto_attack")}


def slow_ensembles(names, *more):
    """The names, those of the ensembles and of `more` marked slow: they compile four attacks, or one for long."""
    is_slow = lambda name: name in ("auto_attack_l2", *more)
    return [pytest.param(name, marks=pytest.mark.slow) if is_slow(name) else name for name in names]


@pytest.fixture
def problem(key):
    """(f, x, y): 12 images 6x6, some pixels at 0 and 1; a perceptron of 5 classes, y the labels it gives."""
    params = mlp_params(key, (36, 20, 5))
    f = lambda x: 4 * mlp(params, x.reshape(len(x), -1))
    x = jnp.clip(jax.random.uniform(key, (12, 6, 6, 1), minval=-0.2, maxval=1.2), 0, 1)
    return f, x, jnp.argmax(f(x), 1)


# analytic linear models


def linear_model(key, classes=3, pixels=(2, 3)):
    w = 30 * jax.random.normal(key, (classes, int(np.prod(pixels))))  # sharp: DDN's loss sees the nearest class alone
    return (lambda x: x.reshape(len(x), -1) @ w.T), np.asarray(w)


def exact_distances(w, f, x, y, order):
    z = np.asarray(f(x))
    gaps = [
        [(z[a, k] - z[a, c]) / np.linalg.norm(w[k] - w[c], order) if c != k else np.inf for c in range(len(w))]
        for a, k in enumerate(np.asarray(y))
    ]
    return np.min(gaps, axis=1)


LINEAR = {
    "carlini_wagner": (attacks.carlini_wagner, 2, 1.01),
    "ddn": (partial(attacks.ddn, num_steps=1000), 2, 1.01),
    "fab": (attacks.fab, 2, 1.06),
    "fab_linf": (partial(attacks.fab, norm="linf"), 1, 1.06),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("pixels", [(6,), (2, 3, 2)])
def test_linear_model_with_room(name, pixels, key):
    """Distance between 1 and 1.01 times margin / ||w_y - w_c||; CW is the paper's 10 x 1000."""
    attack, order, worst = LINEAR[name]
    f, w = linear_model(key, pixels=pixels)
    x = 0.5 + 0.05 * jax.random.normal(key, (8, *pixels))
    y = jnp.argmax(f(x), 1)
    result = jax.jit(lambda x: attack(f, x, y, key))(x)
    ratio = np.asarray(result.distance) / exact_distances(w, f, x, y, order)
    assert result.success.all()
    assert ratio.min() > 1 - 1e-4
    assert ratio.max() <= worst, ratio


def box_active_distance(w, offset, x):
    """min ||d||_2 with w . (x + d) = offset and 0 <= x + d <= 1, by bisection on the dual in float64."""
    w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
    sign = np.sign(offset - w @ x)
    move = lambda s: np.clip(sign * s * w, -x, 1 - x)
    low, high = 0.0, 1.0
    while sign * (w @ (x + move(high)) - offset) < 0:
        high *= 2
        if high > 1e9:
            return np.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * (w @ (x + move(middle)) - offset) < 0 else (low, middle)
    return np.linalg.norm(move(high))


@pytest.mark.parametrize(("name", "worst"), [("carlini_wagner", 1.02), ("ddn", 1.02), ("fab", 1.02)])
def test_linear_model_with_active_box(name, worst, key):
    """Half of the pixels at or near 0 and 1, two classes, so that the exact answer is a one-dimensional search."""
    attack = LINEAR[name][0]
    f, w = linear_model(key, classes=2, pixels=(12,))
    x = jnp.clip(jax.random.uniform(key, (8, 12), minval=-0.5, maxval=1.5), 0, 1)
    y = jnp.argmax(f(x), 1)
    result = jax.jit(lambda x: attack(f, x, y, key))(x)
    exact = np.asarray([box_active_distance(w[0] - w[1], 0.0, image) for image in x])
    assert np.isfinite(exact).sum() >= 6
    np.testing.assert_array_equal(np.isfinite(exact), result.success)
    ratio = np.asarray(result.distance)[np.isfinite(exact)] / exact[np.isfinite(exact)]
    assert ratio.min() > 1 - 1e-3
    assert ratio.max() <= worst, ratio


def test_fgsm_distance_is_within_one_grid_step(key):
    f, w = linear_model(key, classes=2)
    x = 0.5 + 0.05 * jax.random.normal(key, (8, 2, 3))
    y = jnp.argmax(f(x), 1)
    result = attacks.fgsm_distance(f, x, y)
    exact = exact_distances(w, f, x, y, 1)
    assert result.success.all()
    assert (result.steps / 255 >= exact - 1e-6).all()
    assert (result.steps / 255 <= exact + 1 / 255 + 1e-6).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_onto_a_plane_in_the_box(norm, key):
    """Feasible to rounding and no longer than the answer of bisection; tiny normals are as good as large ones."""
    u = jnp.clip(jax.random.uniform(key, (30, 10), minval=-0.3, maxval=1.3), 0, 1)
    w = jax.random.normal(jax.random.fold_in(key, 1), (30, 10)).at[:, 3].set(0) * 1e-12
    target = jax.random.uniform(jax.random.fold_in(key, 2), (30, 10))
    offset = jnp.sum(w * target, axis=1)  # met within the box, by the target
    d = project_to_plane(u, w, offset, norm)
    assert ((u + d >= -1e-6) & (u + d <= 1 + 1e-6)).all()
    np.testing.assert_allclose(1e12 * jnp.sum(w * (u + d), axis=1), 1e12 * offset, atol=1e-5)
    if norm == "l2":
        exact = [box_active_distance(1e12 * w[i], float(1e12 * offset[i]), u[i]) for i in range(30)]
        np.testing.assert_allclose(jnp.linalg.norm(d, axis=1), exact, rtol=1e-4, atol=1e-5)
    else:
        assert (jnp.abs(d).max(1) <= jnp.abs(target - u).max(1) + 1e-6).all()
    beyond = project_to_plane(u, w, offset + 1, norm)  # no such point: as far as the box goes
    assert np.isfinite(beyond).all()


# what every attack promises


@pytest.mark.parametrize("name", slow_ensembles(ALL, "auto_attack_linf"))
def test_results_are_what_they_say(name, problem, key):
    f, x, y = problem
    result = ALL[name](f, x, y, key)
    assert result.clean_correct.all()
    assert result.success.mean() > (0.05 if "noise" in name or "square" in name else 0.3)
    assert (result.x_adv >= 0).all()
    assert (result.x_adv <= 1).all()
    fooled = jnp.argmax(f(result.x_adv), 1) != y
    np.testing.assert_array_equal(fooled, result.success)
    delta = np.asarray(result.x_adv - x).reshape(12, -1)
    size = np.abs(delta).max(1) if "linf" in name else np.linalg.norm(delta, axis=1)
    np.testing.assert_allclose(result.distance[fooled], size[fooled], rtol=1e-5)
    assert np.isinf(result.distance[~fooled]).all()
    if name in CHEAP and name not in DISTANCES:
        assert (size <= 0.4 + 1e-5).all()
    assert (result.steps[fooled] >= 0).all()


@pytest.mark.parametrize(
    "name", slow_ensembles(ALL, "auto_attack_linf", "square_l2", "apgd_t_l2", "apgd_dlr_l2", "apgd_ce_l2", "fab_l2")
)
def test_degenerate_models(name, problem, key):
    """Three rows each of constant, black-image, all wrong and NaN: no NaN in a result and no false success."""
    f, x, y = problem
    scale = jnp.repeat(jnp.array([0.0, 0.0, 1.0, jnp.nan]), 3)[:, None]
    first, second = jnp.repeat(jnp.array([[1.0, 1, 0, 0], [0, 1, 0, 0]]), 3, axis=1)[:, :, None]
    is_black = lambda x: (x.sum((1, 2, 3)) == 0)[:, None]
    held = lambda x: jnp.where(is_black(x), second, 0.0) * jnp.arange(5.0)[None] + first * jnp.eye(5)[:1]
    label = y.at[:6].set(0).at[6:9].set((y[6:9] + 1) % 5)
    result = ALL[name](lambda x: f(x) * scale + held(x), x, label, key)
    np.testing.assert_array_equal(result.clean_correct, np.arange(12) < 6)
    np.testing.assert_array_equal(result.success, np.arange(12) >= 6)
    assert np.isinf(result.distance[:6]).all()
    assert name == "white_noise_distance" or "square" in name or result.grad_zero[:6].all()
    np.testing.assert_array_equal(result.distance[6:], 0)
    np.testing.assert_array_equal(result.x_adv[6:], x[6:])
    for leaf in jax.tree.leaves(result):
        assert not np.isnan(np.asarray(leaf, np.float32)).any()


@pytest.mark.parametrize("name", slow_ensembles(FIXED, "auto_attack_linf"))
def test_size_of_the_ball(name, problem, key):
    """Radius 0 changes nothing; a huge one fools everybody, by gradient."""
    f, x, y = problem
    still = FIXED[name](f, x, y, key, epsilon=0.0)
    assert not still.success.any()
    np.testing.assert_array_equal(still.x_adv, x)
    if "square" not in name:
        assert FIXED[name](f, x, y, key, epsilon=10.0).success.all()


@pytest.mark.parametrize("name", ["carlini_wagner", "ddn", "fab_l2", "pgd_distance", "fgsm_distance", "apgd_ce_linf"])
def test_two_classes(name, key):
    f, _ = linear_model(key, classes=2)
    x = jax.random.uniform(key, (6, 2, 3))
    y = jnp.argmax(f(x), 1)
    assert ALL[name](f, x, y, key).success.sum() >= 3


def test_the_ratio_needs_its_classes(key):
    f, _ = linear_model(key, classes=2)
    x = jax.random.uniform(key, (6, 2, 3))
    y = jnp.argmax(f(x), 1)
    with pytest.raises(ValueError, match="loss 'dlr' needs at least 3 classes, f gives 2"):
        attacks.apgd(f, x, y, key, epsilon=0.1, loss="dlr")
    with pytest.raises(ValueError, match="needs at least 4 classes, f gives 2"):
        attacks.apgd(f, x, y, key, epsilon=0.1, loss="targeted")


def test_bad_arguments(problem, key):
    f, x, y = problem
    for call, message in (
        (lambda: attacks.carlini_wagner(f, x, y, num_steps=0), "num_steps must be an integer of at least 1, got 0"),
        (lambda: attacks.carlini_wagner(f, x, y, smoother=1.0), "smoother must lie between 0 and 1"),
        (
            lambda: attacks.apgd(f, x, y, key, epsilon=0.1, loss="hinge"),
            "loss must be 'ce', 'dlr' or 'targeted', got 'hinge'",
        ),
        (lambda: attacks.apgd(f, x, y, key, epsilon=-0.1), "epsilon must be at least 0, got -0.1"),
        (lambda: attacks.square(f, x, y, key, epsilon=0.1, initial_share=0), r"initial_share must lie in \(0, 1\]"),
        (lambda: attacks.fab(f, x, y, norm="l3"), "norm must be 'linf', 'l2' or 'l1', got 'l3'"),
        (lambda: attacks.ddn(f, x + 2, y, key), "x must lie in bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="key must be a typed key"):
        attacks.ddn(f, x, y, jnp.zeros(2, jnp.uint32))


def test_other_bounds(problem, key):
    """The same problem in pixels 0 ... 255: distances 255 times as large."""
    f, x, y = problem
    wide = lambda x: f(x / 255)
    for name in ("ddn", "fab_l2", "carlini_wagner"):
        options = {"init_epsilon": 255.0} if name == "ddn" else {}
        options |= {"initial_const": 255.0**2} if name == "carlini_wagner" else {}
        near = ALL[name](f, x, y, key)
        far = ALL[name](wide, 255 * x, y, key, bounds=(0.0, 255.0), **options)
        tolerance = 0.1 if name == "ddn" else 0.02  # DDN's first steps are not scale free
        np.testing.assert_allclose(far.distance / 255, near.distance, rtol=tolerance)


# single properties


def test_compiles_once_for_any_epsilon(problem, key):
    f, x, y = problem
    attack = jax.jit(chex.assert_max_traces(lambda e: attacks.apgd(f, x, y, key, epsilon=e, num_steps=5).success, n=1))
    assert attack(1.0).sum() > attack(0.01).sum()


def test_apgd_checkpoints():
    """22 steps, then 3 fewer at a time down to 6; each end is marked."""
    ends, lengths = _checkpoints(100)
    np.testing.assert_array_equal(np.flatnonzero(ends), np.cumsum([22, 19, 16, 13, 10, 7, 6, 6]) - 1)
    assert list(lengths[ends]) == [22, 19, 16, 13, 10, 7, 6, 6]


def test_square_sizes():
    sides = sizes_of(5000, 0.8, (28, 28), "linf")
    assert sides[0] == 25
    assert sides[-1] == 2
    assert (np.diff(sides) <= 0).all()
    assert (sizes_of(5000, 0.8, (28, 28), "l2") % 2 == 1).all()


def test_ratio_losses_do_not_see_a_rescaling(problem):
    f, x, y = problem
    z = f(x)
    same = partial(np.testing.assert_allclose, rtol=1e-5)
    same(losses.dlr(8 * z, y), losses.dlr(z, y))  # a power of two, which rounds nothing
    target = jnp.argsort(z, 1)[:, -2]
    same(losses.dlr_targeted(8 * z, y, target), losses.dlr_targeted(z, y, target))
    assert (losses.dlr(z, y) < 0).all()


@pytest.mark.parametrize("distance", [0.001, 0.01, 0.2])
def test_the_quick_report_reaches_near_samples(distance):
    """Fifty steps of DDN end 0.09 away, wherever the boundary is."""
    f = lambda x: jnp.concatenate([x[:, :1] - 0.5, 0.5 - x[:, :1]], axis=1)
    x = jnp.full((2, 3), 0.5).at[:, 0].add(distance)
    for name, attack in reporting_sections.nearest("l2", 50, 3, 1.0, attacks.criteria.misclassified, (0, 1)).items():
        if name != "CW":  # as near as its search of the constant gets in so few steps
            found = attack(f, x, jnp.zeros(2, int), jax.random.key(0)).distance
            np.testing.assert_allclose(found, distance, rtol=0.06, err_msg=name)


def test_best_of_is_the_nearest(problem, key):
    f, x, y = problem
    results = [attacks.fgsm_distance(f, x, y), attacks.ddn(f, x, y, key), attacks.white_noise_distance(f, x, y, key)]
    best = attacks.best_of(*results)
    np.testing.assert_array_equal(best.distance, np.min([r.distance for r in results], axis=0))
    reached = jnp.linalg.norm((best.x_adv - x).reshape(12, -1), axis=1)
    np.testing.assert_allclose(best.distance[best.success], reached[best.success], rtol=1e-5)


def test_worst_case_hands_on_what_is_left(problem, key):
    f, x, y = problem
    seen = []

    def never(f, x, y, key, e):
        seen.append(x.shape)
        return attacks.fgsm(f, x, y, epsilon=0 * e)

    ensemble = {
        "pgd": lambda f, x, y, key, e: attacks.pgd(f, x, y, epsilon=e, step_size=e / 4, num_steps=10),
        "never": never,
        "apgd": lambda f, x, y, key, e: attacks.apgd(f, x, y, key, epsilon=e),
    }
    result, robust = evaluation.worst_case(ensemble, f, x, y, key, e=0.1)
    left = round(robust["pgd"] * 12)
    assert set(seen) == {(1 << (left - 1).bit_length(), 6, 6, 1)}  # padded to a power of two
    assert robust["pgd"] == robust["never"] >= robust["apgd"] == 1 - result.success.mean()
    assert 0 < left < 12


def test_a_distance_and_a_ball_agree(problem, key):
    """Robust accuracy at epsilon is the share of smallest distances above it, within two samples of 12 here."""
    f, x, y = problem
    distances = attacks.best_of(attacks.fab(f, x, y), attacks.ddn(f, x, y, key, num_steps=500)).distance
    for epsilon in (0.2, 0.5, 1.0):
        ball = attacks.apgd(f, x, y, key, epsilon=epsilon, norm="l2")
        targeted = attacks.apgd(f, x, y, key, epsilon=epsilon, loss="targeted", norm="l2")
        survivors = ~(ball.success | targeted.success)
        assert abs(float(survivors.mean()) - evaluation.robust_accuracy(distances, epsilon)) <= 2 / 12
