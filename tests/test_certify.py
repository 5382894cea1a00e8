"""certify.py: known radii, coverage, sound boxes, and the sandwich with attacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jacreg_jax import attacks, certify
from jacreg_jax.models import MLP, LeNet, initialize, predictor
from jacreg_jax.pooled_convolution import lax_conv_max_pool


def test_smoothing_of_a_half_space(key):
    """f(x) = sign(w . x + b): the exact radius is the distance to the plane, and no certified one is larger."""
    w = jax.random.normal(key, (6,))
    w = w / jnp.linalg.norm(w)
    x = jax.random.uniform(jax.random.fold_in(key, 1), (40, 6))
    f = lambda x: jnp.stack([x @ w - 0.3, -(x @ w - 0.3)], axis=1)
    exact = np.abs(np.asarray(x @ w - 0.3))
    result = certify.certify_smoothed(f, x, key, sigma=0.5, num_samples=2000, alpha=0.001, batch_size=16)
    sure = result.prediction >= 0
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(result.prediction[sure], np.asarray(jnp.argmax(f(x), 1))[sure])
    assert (result.radius <= exact + 1e-6).all()
    assert (result.radius[~sure] == 0).all()
    near = sure & (exact < 0.5)
    assert np.median(result.radius[near] / exact[near]) > 0.5  # and they are not vacuous
    np.testing.assert_allclose(result.radius[sure], 0.5 * norm.ppf(result.probability[sure]), rtol=1e-6)


def test_counts_do_not_depend_on_the_batch(key):
    x = jax.random.normal(key, (6, 4))
    f = lambda x: x @ jnp.eye(4)
    keys = jax.random.split(key, 6)
    run = lambda x, k: certify.noisy_counts(f, x, k, sigma=1.0, num_samples=250, chunk_size=50)
    whole = run(x, keys)
    np.testing.assert_array_equal(whole, jnp.concatenate([run(x[i : i + 1], keys[i : i + 1]) for i in range(6)]))
    np.testing.assert_array_equal(whole.sum(1), 250)


def network(x):
    """Every kind of operation that has a rule."""
    w = jnp.sin(jnp.arange(30.0)).reshape(5, 6)
    h = jnp.tanh(x @ w) - 0.3
    h = jnp.concatenate([jax.nn.relu(h), jax.nn.sigmoid(-h)], axis=1) * 2 / 3
    h = jax.nn.softplus(h) + jnp.square(h) + jnp.max(h, axis=1, keepdims=True) - jnp.mean(h, axis=1, keepdims=True)
    return jnp.pad(h, ((0, 0), (1, 0)))[:, ::-1].T


@pytest.mark.parametrize("radius", [0.0, 0.01, 0.3])
def test_interval_bounds_hold(radius, key):
    x = jax.random.normal(key, (7, 5))
    box = certify.interval_bounds(network, x - radius, x + radius)
    inside = x[None] + radius * jax.random.uniform(jax.random.fold_in(key, 1), (200, 7, 5), minval=-1, maxval=1)
    corners = x[None] + radius * jnp.sign(inside - x[None])
    for points in (inside, corners):
        z = jax.vmap(network)(points)
        assert (z >= box.low[None] - 1e-5).all()
        assert (z <= box.high[None] + 1e-5).all()
    if radius == 0:
        np.testing.assert_allclose(box.low, network(x), atol=1e-5)


def test_interval_bounds_of_an_affine_function_are_exact(key):
    """z = x A + b: centre +- radius |A|."""
    a = jax.random.normal(key, (5, 3))
    x = jax.random.normal(key, (4, 5))
    box = certify.interval_bounds(lambda x: x @ a + 1, x - 0.2, x + 0.2)
    np.testing.assert_allclose(box.high, x @ a + 1 + 0.2 * jnp.abs(a).sum(0)[None], rtol=1e-5)
    np.testing.assert_allclose(box.low, x @ a + 1 - 0.2 * jnp.abs(a).sum(0)[None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plain", [False, True])
def test_interval_bounds_of_lenet(plain, key):
    """Through both convolutions and both max poolings, ours and XLA's."""
    module = LeNet(conv_max_pool=lax_conv_max_pool) if plain else LeNet()
    x = jax.random.uniform(key, (3, 28, 28, 1))
    params, _ = initialize(module, key, x)
    f = lambda x: module.apply({"params": params}, x)
    box = certify.interval_bounds(f, x - 0.01, x + 0.01)
    noise = 0.01 * jax.random.rademacher(key, (20, *x.shape), jnp.float32)
    z = jax.vmap(f)(x[None] + noise)
    assert (z >= box.low[None] - 1e-5).all()
    assert (z <= box.high[None] + 1e-5).all()


def test_the_sandwich(key):
    """Certified radius <= the distance every attack finds, for every sample."""
    x = jax.random.uniform(key, (16, 6, 6, 1))
    module = MLP((12, 4))
    params, state = initialize(module, key, x)
    f = predictor(module, params, state)
    y = jnp.argmax(f(x), 1)
    certified = certify.interval_radius(f, x, y)
    assert (certified > 0).all()
    for result in (
        attacks.ddn(f, x, y, key),
        attacks.carlini_wagner(f, x, y, num_steps=200),
        attacks.fab(f, x, y, num_steps=30),
        attacks.fgsm_distance(f, x, y),
        attacks.white_noise_distance(f, x, y, key),
    ):
        assert (certified <= result.distance).all()
    assert (certified <= attacks.fab(f, x, y, norm="linf", num_steps=30).distance).all()
    wrong = certify.interval_radius(f, x, (y + 1) % 4)
    np.testing.assert_array_equal(wrong, 0)


def test_errors(key):
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="no rule for 'sin'"):
        certify.interval_bounds(jnp.sin, x, x)
    with pytest.raises(ValueError, match="low must not lie above high"):
        certify.interval_bounds(jnp.tanh, x, x - 1)
    with pytest.raises(ValueError, match="sigma must be above 0"):
        certify.certify_smoothed(lambda x: x, x, key, sigma=0.0)
    with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
        certify.certify_smoothed(lambda x: x, x, key, sigma=1.0, num_samples=0)
