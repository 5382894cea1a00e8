"""Noise, FGSM and PGD on models whose answer is known, on degenerate models, and sample by sample."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks
from jacreg_jax.attacks import losses
from tests.conftest import mlp, mlp_params

ATTACKS = {
    "white_noise": lambda f, x, y, key, size: attacks.white_noise(f, x, y, key, sigma=size),
    "fgsm": lambda f, x, y, key, size: attacks.fgsm(f, x, y, key, epsilon=size),
    "pgd_linf": lambda f, x, y, key, size: attacks.pgd(f, x, y, key, epsilon=size, step_size=size / 4, num_steps=10),
    "pgd_l2": lambda f, x, y, key, size: attacks.pgd(
        f, x, y, key, epsilon=size, step_size=size / 4, num_steps=10, norm="l2"
    ),
    "pgd_random": lambda f, x, y, key, size: attacks.pgd(
        f, x, y, key, epsilon=size, step_size=size / 4, num_steps=10, random_start=True
    ),
}


@pytest.fixture
def problem(key):
    """(f, x, y): 16 images 4x4 in [0, 1] with some pixels at the edges, a perceptron, y the labels it gives."""
    params = mlp_params(key, (16, 20, 4))
    f = lambda x: 5 * mlp(params, x.reshape(len(x), -1))
    x = jnp.clip(jax.random.uniform(key, (16, 4, 4, 1), minval=-0.2, maxval=1.2), 0, 1)
    return f, x, jnp.argmax(f(x), 1)


@pytest.fixture
def linear(key):
    """(f, w, x, y): logits W x with pixels far from the edges, y the label given."""
    w = jax.random.normal(key, (3, 6)) / 10
    f = lambda x: x.reshape(len(x), -1) @ w.T
    x = 0.5 + 0.05 * jax.random.normal(key, (8, 2, 3))
    return f, w, x, jnp.argmax(f(x), 1)


def exact_distances(w, f, x, y, order):
    """min_c margin_c / ||w_y - w_c||_dual; order 1 for L-infinity, 2 for L2."""
    z = np.asarray(f(x))
    per_class = [
        [(z[a, k] - z[a, c]) / np.linalg.norm(w[k] - w[c], order) if c != k else np.inf for c in range(3)]
        for a, k in enumerate(np.asarray(y))
    ]
    return np.min(per_class, axis=1)


@pytest.mark.parametrize(("name", "order"), [("fgsm", 1), ("pgd_linf", 1), ("pgd_l2", 2)])
def test_linear_model_is_fooled_just_above_its_exact_distance(linear, key, name, order):
    """Where one class is nearest by far: at 1.02 times the distance fooled, at 0.98 times not."""
    _, w, x, y = linear
    two = lambda x: (x.reshape(len(x), -1) @ w.T)[:, :2]
    y = jnp.argmax(two(x), 1)
    gap = jnp.abs(two(x)[:, 0] - two(x)[:, 1])
    exact = gap / np.linalg.norm(w[0] - w[1], order)
    assert jnp.all(ATTACKS[name](two, x, y, key, 1.02 * exact).success)
    assert not jnp.any(ATTACKS[name](two, x, y, key, 0.98 * exact).success)


def test_three_classes_are_never_fooled_below_the_exact_distance(linear, key):
    f, w, x, y = linear
    for name, order in (("fgsm", 1), ("pgd_linf", 1), ("pgd_l2", 2)):
        assert not jnp.any(ATTACKS[name](f, x, y, key, 0.98 * exact_distances(w, f, x, y, order)).success)


@pytest.mark.parametrize("name", ATTACKS)
def test_ball_and_bounds(problem, key, name):
    f, x, y = problem
    result = jax.jit(lambda x: ATTACKS[name](f, x, y, key, 0.3))(x)
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    delta = np.asarray(result.x_adv - x).reshape(16, -1)
    size = np.linalg.norm(delta, axis=1) if name in ("pgd_l2", "white_noise") else np.abs(delta).max(1)
    assert name == "white_noise" or np.all(size <= 0.3 + 1e-6)
    np.testing.assert_allclose(result.distance, np.where(result.success, size, np.inf), rtol=1e-5)
    np.testing.assert_array_equal(result.success, np.argmax(f(result.x_adv), 1) != np.asarray(y))


@pytest.mark.parametrize("name", ATTACKS)
def test_epsilon_zero_is_the_clean_image(problem, key, name):
    f, x, y = problem
    wrong = y.at[3].set((y[3] + 1) % 4)
    result = ATTACKS[name](f, x, wrong, key, 0.0)
    np.testing.assert_array_equal(result.x_adv, x)
    np.testing.assert_array_equal(result.success, np.arange(16) == 3)
    np.testing.assert_array_equal(result.distance, np.where(np.arange(16) == 3, 0, np.inf))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_sample_does_not_depend_on_its_batch(problem, key, name):
    f, x, y = problem
    whole = ATTACKS[name](f, x, y, key, 0.2)
    padded = ATTACKS[name](f, jnp.concatenate([x[:5], x[:1], x[:1]]), jnp.concatenate([y[:5], y[:1], y[:1]]), key, 0.2)
    np.testing.assert_allclose(padded.x_adv[:5], whole.x_adv[:5], atol=1e-5)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(16))
    alone = ATTACKS[name](f, x[7:8], y[7:8], keys[7:8], 0.2)
    np.testing.assert_allclose(alone.x_adv[0], whole.x_adv[7], atol=1e-5)


@pytest.mark.parametrize("name", ["pgd_linf", "pgd_l2"])
def test_more_room_and_steps_fool_more(problem, key, name):
    f, x, y = problem
    shares = [ATTACKS[name](f, x, y, key, size).success.mean() for size in (0.02, 0.1, 0.3, 3.0)]
    assert all(np.diff(shares) >= 0)
    assert shares[-1] > 0.9
    assert shares[0] < shares[-1]


@pytest.mark.parametrize("name", ATTACKS)
def test_degenerate_models(key, name):
    """Constant logits, NaN logits, a model that calls black another class, an all-wrong batch, two classes."""
    x = jax.random.uniform(key, (4, 2, 2, 1))
    zeros = jnp.zeros(4, int)
    models = {
        "constant": (lambda x: jnp.broadcast_to(jnp.array([[1.0, 0, 0]]), (len(x), 3)), zeros),
        "nan": (lambda x: jnp.full((len(x), 3), jnp.nan) * x.sum((1, 2, 3))[:, None], zeros),
        "nan elsewhere": (lambda x: jnp.stack([jnp.sqrt(x.mean((1, 2, 3)) - 0.01), jnp.zeros(len(x))], 1), zeros),
        "black": (lambda x: jnp.stack([jnp.where((x == 0).all((1, 2, 3)), -1.0, 1.0), jnp.zeros(len(x))], 1), zeros),
        "all wrong": (lambda x: jnp.stack([x.sum((1, 2, 3)), 9 + x.sum((1, 2, 3))], 1), zeros),
    }
    for model, (f, y) in models.items():
        result = ATTACKS[name](f, x, y, key, 0.2)
        for leaf in jax.tree.leaves(result):
            assert not np.isnan(np.asarray(leaf, float)).any(), model
        if model in ("constant", "black", "nan elsewhere"):
            assert not result.success.any(), model
            assert np.isinf(result.distance).all(), model
        else:
            assert result.success.all(), model
            np.testing.assert_array_equal(result.distance, 0)
            assert not result.clean_correct.any()


def test_zero_gradient_is_reported(key):
    x = jax.random.uniform(key, (4, 2, 2, 1))
    constant = lambda x: jnp.broadcast_to(jnp.array([[1.0, 0, 0]]), (len(x), 3))
    for name in ("fgsm", "pgd_linf"):
        assert ATTACKS[name](constant, x, jnp.zeros(4, int), key, 0.1).grad_zero.all()


def test_a_confident_model_does_not_look_robust(problem):
    """Logits times 1000: both cross-entropies lose their gradient, the log odds and the margin agree."""
    f, x, y = problem
    confident = lambda x: 1000 * f(x)
    naive = lambda z, y: -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)[:, 0]
    shares = {
        name: attacks.fgsm(confident, x, y, epsilon=0.15, loss=loss).success.mean()
        for name, loss in {"log odds": losses.log_odds, "margin": losses.margin, "naive": naive}.items()
    }
    assert attacks.fgsm(confident, x, y, epsilon=0.15, loss=naive).grad_zero.mean() > 0.5
    assert abs(shares["log odds"] - shares["margin"]) <= 1 / 16
    assert shares["log odds"] > shares["naive"] + 0.2


def test_log_odds_have_the_direction_of_the_cross_entropy(problem):
    f, x, y = problem
    steps = [attacks.fgsm(f, x, y, epsilon=0.1, loss=loss).x_adv for loss in (losses.log_odds, losses.cross_entropy)]
    assert (steps[0] == steps[1]).mean() > 0.99


def test_losses(key):
    z = 3 * jax.random.normal(key, (50, 4))
    y = jnp.arange(50) % 4
    expected = -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1)[:, 0]
    np.testing.assert_allclose(losses.cross_entropy(z, y), expected, rtol=1e-4, atol=1e-6)
    expected = [
        max(row[c] for c in range(4) if c != k) - row[k] for row, k in zip(np.asarray(z), np.asarray(y), strict=True)
    ]
    np.testing.assert_allclose(losses.margin(z, y), expected, rtol=1e-6)
    gradient = jax.grad(lambda z: losses.cross_entropy(z, jnp.array([0])).sum())(jnp.array([[40.0, 0.0, -1e6]]))
    np.testing.assert_allclose(gradient[0, :2], [-np.exp(-40.0), np.exp(-40.0)], rtol=1e-5)


def test_sweeping_epsilon_does_not_retrace(problem):
    f, x, y = problem
    attack = jax.jit(chex.assert_max_traces(lambda e: attacks.fgsm(f, x, y, epsilon=e).success, n=1))
    for epsilon in (0.0, 0.1, 0.2):
        attack(epsilon)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.ones((16, 4, 4, 1), int)}, TypeError, "x must be floating point raw pixels, got int32"),
        ({"x": 2 * jnp.ones((16, 4, 4, 1))}, ValueError, r"x must lie in bounds \(0.0, 1.0\), got values from 2"),
        ({"y": jnp.zeros(16)}, TypeError, "y must be integer labels, got float32"),
        ({"y": jnp.zeros(3, int)}, ValueError, r"y must have shape \(16,\)"),
        ({"epsilon": -0.1}, ValueError, "epsilon must be at least 0, got -0.1"),
        ({"norm": "l7"}, ValueError, "norm must be 'linf', 'l2' or 'l1', got 'l7'"),
        ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1, got 0"),
        ({"random_start": True}, TypeError, "key must be a typed key.*NoneType"),
        ({"random_start": True, "key": jnp.zeros(2, jnp.uint32)}, TypeError, r"got uint32\[2\]"),
    ],
)
def test_bad_input(problem, change, error, message):
    f, x, y = problem
    options = {"x": x, "y": y, "key": None, "epsilon": 0.1, "step_size": 0.1, "num_steps": 2, **change}
    with pytest.raises(error, match=message):
        attacks.pgd(f, **options)
