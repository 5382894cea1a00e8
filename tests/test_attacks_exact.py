"""Models whose nearest fooling point is known: no minimum-norm attack finds less, and where it is meant to it finds it.

Linear, quadratic and piecewise linear models and nearest prototypes, in L-infinity, L2 and L1. The truth is computed in
float64 by other means: a formula, a one-dimensional search, or a linear program over each cell.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jacreg_jax import attacks
from jacreg_jax.attacks.ball import project, random_in_ball
from jacreg_jax.attacks.fab import project_to_plane
from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.losses import margin

KEY = jax.random.key(0)
ATTACKS = {
    ("carlini_wagner", "l2"): partial(
        attacks.carlini_wagner, num_steps=500, binary_search_steps=9, learning_rate=0.003, initial_const=0.01
    ),
    ("ddn", "l2"): partial(attacks.ddn, key=KEY, num_steps=1000, loss=margin),  # the log odds mix the classes
} | {("fab", norm): partial(attacks.fab, num_steps=60, overshoot=1.005, norm=norm) for norm in ("linf", "l2", "l1")}
ORDER = {"linf": 1, "l2": 2, "l1": np.inf}  # of the dual norm
N, D = 6, 8  # samples, features; no bound is met on the way


def linear(rng):
    """Two of three classes, the third far away: margin / ||w_0 - w_1||_dual."""
    w = 5 * rng.normal(size=(2, D))
    x = 0.5 + 0.03 * rng.normal(size=(N, D))
    f = lambda x: jnp.concatenate([(x - 0.5) @ jnp.asarray(w.T, jnp.float32), jnp.full((len(x), 1), -9.0)], 1)
    lead = np.abs((x - 0.5) @ (w[0] - w[1]))
    return f, x, {norm: lead / np.linalg.norm(w[0] - w[1], order) for norm, order in ORDER.items()}


def quadratic(rng):
    """Class 0 within a ball of radius 0.3 around 0.5; x lies off its centre, every entry above.

    In L2 the way out is radius - distance; in L1 it is along one axis and in L-infinity along the diagonal, each the
    root of a quadratic.
    """
    offset = 0.02 * np.abs(rng.normal(size=(N, D)))
    radius, size = 0.3, np.sum(offset**2, axis=1)
    f = lambda x: 30 * jnp.stack([0.09 - jnp.sum((x - 0.5) ** 2, 1), 0 * x[:, 0]], 1)
    truth = {
        "l2": radius - np.sqrt(size),
        "l1": (-offset + np.sqrt(offset**2 + (radius**2 - size)[:, None])).min(1),
        "linf": (-offset.sum(1) + np.sqrt(offset.sum(1) ** 2 + D * (radius**2 - size))) / D,
    }
    return f, 0.5 + offset, truth


def prototypes(rng):
    """Logits -||x - p_c||^2, the p_c equally far from each other: planes halfway between the label's and others."""
    p = 0.5 + 0.3 * np.linalg.qr(rng.normal(size=(D, D)))[0][:4]
    x = p[np.arange(N) % 4] + 0.02 * rng.normal(size=(N, D))
    f = lambda x: -20 * jnp.sum((x[:, None] - jnp.asarray(p, jnp.float32)[None]) ** 2, -1)
    away = np.sum((x[:, None] - p[None]) ** 2, -1)
    label = away.argmin(1)
    return f, x, {
        norm: np.min(
            [
                [
                    (away[a, c] - away[a, k]) / (2 * np.linalg.norm(p[c] - p[k], order)) if c != k else np.inf
                    for c in range(4)
                ]
                for a, k in enumerate(label)
            ],
            axis=1,
        )
        for norm, order in ORDER.items()
    }  # fmt: skip


def piecewise_linear(rng):
    """Class 0 while the largest of three linear functions is below 0: the nearest of three planes of equal norms."""
    v = rng.normal(size=D)
    w, b = np.stack([rng.permutation(v) * rng.choice([-1, 1], D) for _ in range(3)]), np.array([0.5, 0.6, 0.7])
    x = 0.5 + 0.02 * rng.normal(size=(N, D))
    rises = lambda x: (x - 0.5) @ jnp.asarray(w.T, jnp.float32) - jnp.asarray(b, jnp.float32)[None]
    f = lambda x: 10 * jnp.stack([0 * x[:, 0], jnp.max(rises(x), 1)], 1)
    lacking = b - (x - 0.5) @ w.T
    return f, x, {norm: (lacking / np.linalg.norm(v, order)).min(1) for norm, order in ORDER.items()}


MODELS = {"linear": linear, "quadratic": quadratic, "prototypes": prototypes, "piecewise linear": piecewise_linear}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """(name, f, x, y, truth by norm); jax arrays in the precision that attacks work in."""
    f, x, truth = MODELS[request.param](np.random.default_rng(0))
    x = jnp.asarray(x, jnp.float32)
    return request.param, f, x, jnp.argmax(f(x), 1).astype(jnp.int32), truth


@pytest.mark.parametrize(("name", "norm"), ATTACKS)
def test_distances_are_the_true_ones(name, norm, model):
    """Within 1 % above, never below."""
    which, f, x, y, truth = model
    result = ATTACKS[name, norm](f, x, y, bounds=(-1.0, 2.0))
    ratio = np.asarray(result.distance) / truth[norm]
    print(f"{which:>17} {name:>15} {norm:>5}  {ratio.min():.5f} to {ratio.max():.5f}")
    assert ratio.min() > 1 - 1e-4, ratio
    assert ratio.max() < 1.01, ratio


# L1


def nearest_by_search(delta, low, high, epsilon):
    """Projection onto ball and box in float64, by bisection on the threshold."""
    room = np.where(delta < 0, -low, high)
    at = lambda s: np.minimum(np.maximum(np.abs(delta) - s, 0), room)
    left, right = 0.0, np.abs(delta).max()
    if at(0.0).sum() <= epsilon:
        return np.sign(delta) * at(0.0)
    for _ in range(200):
        middle = (left + right) / 2
        left, right = (middle, right) if at(middle).sum() > epsilon else (left, middle)
    return np.sign(delta) * at(right)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (None, None)], ids=str)
def test_projection_onto_ball_and_box(bounds):
    """Against bisection: ties, entries at the bounds, balls of size 0 and such as hold everything."""
    rng = np.random.default_rng(0)
    x = np.clip(rng.uniform(-0.3, 1.3, size=(40, 12)), 0, 1).astype(np.float32)
    delta = rng.normal(size=(40, 12)).astype(np.float32)
    delta[5], delta[6, :6] = 0.7, 0
    epsilon = np.array([0.0, 100.0, 1e-4, *rng.uniform(0.1, 6, size=37)], np.float32)
    low, high = (np.inf * s if b is None else b for b, s in zip(bounds, (-1, 1), strict=True))
    found = project(jnp.asarray(x + delta), jnp.asarray(x), epsilon, "l1", (float(low), float(high))) - x
    moved = (x + delta).astype(np.float64) - x
    rows = zip(moved, x.astype(np.float64), epsilon, strict=True)
    expected = [nearest_by_search(d, low - a, high - a, e) for d, a, e in rows]
    np.testing.assert_allclose(found, expected, atol=5e-6)
    assert (np.abs(found).sum(1) <= epsilon + 1e-5).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-np.inf, np.inf)], ids=str)
def test_projection_onto_a_plane_in_l1(bounds):
    """Against a linear program: min ||d||_1 with w . (u + d) = b within the box."""
    rng = np.random.default_rng(0)
    u, w = rng.uniform(0, 1, size=(10, 6)), rng.normal(size=(10, 6))
    w[:, 2] = 0
    offset = np.einsum("bi,bi->b", w, rng.uniform(0, 1, size=(10, 6)))
    arrays = [jnp.asarray(a, jnp.float32) for a in (u, w, offset)]
    found = np.asarray(project_to_plane(*arrays, "l1", bounds))
    for i in range(10):
        up, down = bounds[1] - u[i], u[i] - bounds[0]  # d = p - n, both positive
        limits = [(0, None if np.isinf(v) else v) for v in (*up, *down)]
        equal = np.concatenate([w[i], -w[i]])[None]
        best = linprog(np.ones(12), A_eq=equal, b_eq=[offset[i] - w[i] @ u[i]], bounds=limits)
        assert np.abs(found[i]).sum() == pytest.approx(best.fun, rel=1e-4)
        assert w[i] @ (u[i] + found[i]) == pytest.approx(offset[i], abs=1e-5)


def test_random_points_of_the_l1_ball():
    """Uniform: the mean of the norm is n / (n + 1), entries are symmetric and alike."""
    x = jnp.zeros((4000, 3))
    points = np.asarray(random_in_ball(KEY, x, 2.0, "l1"))
    length = np.abs(points).sum(1) / 2
    assert length.max() <= 1
    assert length.mean() == pytest.approx(3 / 4, abs=0.02)
    np.testing.assert_allclose(points.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(np.abs(points).mean(0), 0.5, atol=0.03)


def test_sparse_steps_by_hand():
    """A twentieth of forty entries: the signs of the two largest, each half of the step."""
    rng = np.random.default_rng(0)
    gradient = jnp.asarray(rng.permutation(np.arange(1.0, 41))[None] * np.where(np.arange(40) % 2, 1, -1), jnp.float32)
    step = np.asarray(ascent_direction(gradient, "l1"))[0]
    largest = np.argsort(-np.abs(np.asarray(gradient[0])))[:2]
    expected = np.zeros(40)
    expected[largest] = np.sign(np.asarray(gradient)[0, largest]) / 2
    np.testing.assert_allclose(step, expected)
    np.testing.assert_array_equal(ascent_direction(jnp.zeros((1, 40)), "l1"), 0)


@pytest.mark.parametrize("name", ["pgd", "apgd", "square"])
def test_balls_in_l1_on_a_linear_model(name):
    """A little above the exact distance all are fooled (Square, a random search: some far above), below it none."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64,)).astype(np.float32)
    f = lambda x: jnp.stack([0 * x[:, 0, 0, 0], (x - 0.5).reshape(len(x), -1) @ jnp.asarray(w)], 1)
    x = jnp.asarray(0.5 + 0.02 * rng.normal(size=(6, 8, 8, 1)), jnp.float32)
    y = jnp.argmax(f(x), 1)
    exact = np.abs(np.asarray(f(x))[:, 1]) / np.abs(w).max()
    attack = {
        "pgd": lambda *a, epsilon: attacks.pgd(*a, epsilon=epsilon, step_size=epsilon / 5, num_steps=60, norm="l1"),
        "apgd": partial(attacks.apgd, norm="l1", num_steps=100),
        "square": partial(attacks.square, norm="l1", num_queries=300),
    }[name]
    far = {"pgd": 1.5, "apgd": 1.1, "square": 12}[name]
    found = attack(f, x, y, KEY, epsilon=far * exact)
    assert (found.success.sum() >= 3) if name == "square" else found.success.all()
    assert (found.distance[found.success] <= (far * exact)[found.success] * (1 + 1e-4)).all()
    assert not attack(f, x, y, KEY, epsilon=0.98 * exact).success.any()
