"""relatives.py: each against the whole Jacobian or a formula by hand, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jacreg_jax as jr
from jacreg_jax import penalties, relatives, sharding, training
from tests.conftest import mlp, mlp_params
from tests.reference import jacobian_matrix


def test_input_gradient_penalty(small_mlp):
    f, x = small_mlp
    y = jnp.arange(6) % 5
    loss = lambda x: optax.softmax_cross_entropy_with_integer_labels(f(x), y).sum()
    gradient = jax.grad(loss)(x)
    np.testing.assert_allclose(relatives.input_gradient_penalty(f, x, y), (gradient**2).sum(1), rtol=1e-5)
    l1 = relatives.input_gradient_penalty(f, x, y, norm="l1")
    np.testing.assert_allclose(l1, jnp.abs(gradient).sum(1), rtol=1e-5)


def test_noise_consistency_sees_the_kink(key):
    """f = relu(x + b), x ~ N(0, 1): the derivative of E ||J||^2 in b is phi(b); automatic differentiation gives 0."""
    x = jax.random.normal(key, (200_000, 1))
    exact = lambda b: jr.value_and_exact_penalty(lambda x: jax.nn.relu(x + b), x)[1]
    noisy = lambda b: relatives.noise_consistency(lambda x: jax.nn.relu(x + b), x, key, sigma=0.3).mean()
    assert jax.grad(exact)(0.3) == 0
    np.testing.assert_allclose(jax.grad(noisy)(0.3), jax.scipy.stats.norm.pdf(0.3), atol=0.02)


def test_noise_consistency_of_a_smooth_function(small_mlp, key):
    f, x = small_mlp
    keys = jax.random.split(key, 4000)
    mean = jax.vmap(lambda k: relatives.noise_consistency(f, x, k, sigma=0.01))(keys).mean(0)
    np.testing.assert_allclose(mean, jr.exact_frobenius_sq(f, x), rtol=0.1)


def test_first_order_value_and_gradient(x64, key):
    """Those of the projected penalty with the same probe, up to O(step^2)."""
    params = mlp_params(key, (6, 8, 4), jnp.float64)
    x = jax.random.normal(key, (5, 6), jnp.float64)
    cheap = lambda p: relatives.first_order_frobenius_sq(lambda x: mlp(p, x), x, key, step=1e-3).mean()
    full = lambda p: jr.projected_frobenius_sq(lambda x: mlp(p, x), x, key).mean()
    (value, gradient), (expected, expected_gradient) = (jax.value_and_grad(f)(params) for f in (cheap, full))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, expected_gradient)


def refuse(primals, tangents):
    raise NotImplementedError("no second derivative")


def test_kernels_without_a_second_derivative(key):
    """A backward pass that cannot be differentiated, behind a parameter that is trained."""
    backward = jax.custom_jvp(lambda x, g: g * (1 - jnp.tanh(x) ** 2))
    backward.defjvp(refuse)
    fused = jax.custom_vjp(jnp.tanh)
    fused.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (backward(x, g),))
    w, x = jax.random.normal(key, (6, 4)) / 3, jax.random.normal(jax.random.fold_in(key, 1), (3, 6))
    with pytest.raises(NotImplementedError, match="no second derivative"):
        jax.grad(lambda w: jr.value_and_penalty(lambda x: fused(x @ w), x, key)[1])(w)
    first = lambda w: relatives.first_order_frobenius_sq(lambda x: fused(x @ w), x, key, step=0.01).mean()
    second = lambda w: jr.projected_frobenius_sq(lambda x: jnp.tanh(x @ w), x, key, num_projections=1).mean()
    np.testing.assert_allclose(jax.jit(jax.grad(first))(w), jax.grad(second)(w), rtol=0.01, atol=0.01)
    noise = lambda w: relatives.noise_consistency(lambda x: fused(x @ w), x, key, sigma=0.1).mean()
    assert jnp.isfinite(jax.grad(noise)(w)).all()


def test_spectral_norm_is_the_largest_singular_value(small_mlp, key):
    f, x = small_mlp
    largest = jnp.linalg.svd(jacobian_matrix(f, x), compute_uv=False)[:, 0] ** 2
    np.testing.assert_allclose(relatives.spectral_norm_sq(f, x, key, num_iterations=200), largest, rtol=1e-4)
    assert (relatives.spectral_norm_sq(f, x, key, num_iterations=1) <= largest * 1.0001).all()


def test_spectral_norm_gradient(x64, key):
    """That of the singular value itself, the vector held fixed."""
    params = mlp_params(key, (6, 8, 4), jnp.float64)
    x = jax.random.normal(key, (3, 6), jnp.float64)
    ours = lambda p: relatives.spectral_norm_sq(lambda x: mlp(p, x), x, key, num_iterations=300).sum()
    whole = lambda p: jnp.sum(jnp.linalg.svd(jacobian_matrix(lambda x: mlp(p, x), x), compute_uv=False)[:, 0] ** 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        jax.grad(ours)(params),
        jax.grad(whole)(params),
    )


def test_target_jacobian(small_mlp, key):
    f, x = small_mlp
    target = jax.random.normal(key, (5, 12))
    expected = ((jacobian_matrix(f, x) - target[None]) ** 2).sum((1, 2))
    np.testing.assert_allclose(relatives.target_jacobian_sq(f, x, target), expected, rtol=1e-4)
    own = jnp.broadcast_to(target, (6, 5, 12))
    np.testing.assert_allclose(relatives.target_jacobian_sq(f, x, own), expected, rtol=1e-4)
    keys = jax.random.split(key, 2000)
    mean = jax.vmap(lambda k: relatives.target_jacobian_sq(f, x, target, k, num_projections=1))(keys).mean(0)
    np.testing.assert_allclose(mean, expected, rtol=0.1)


def test_centred_logits(small_mlp):
    f, x = small_mlp
    j = jacobian_matrix(f, x)
    pairs = sum(((j[:, a] - j[:, b]) ** 2).sum(1) for a in range(5) for b in range(a))
    np.testing.assert_allclose(jr.exact_frobenius_sq(relatives.centred(f), x), pairs / 5, rtol=1e-4)


def test_layerwise(key):
    params = mlp_params(key, (6, 8, 4))
    layers = [lambda x, w=w, b=b: jnp.tanh(x @ w.T + b[None]) for w, b in params]
    x = jax.random.normal(key, (5, 6))
    hidden = layers[0](x)
    expected = jr.exact_frobenius_sq(layers[0], x) + jr.exact_frobenius_sq(layers[1], hidden)
    keys = jax.random.split(key, 3000)
    mean = jax.vmap(lambda k: relatives.layerwise_frobenius_sq(layers, x, k))(keys).mean(0)
    np.testing.assert_allclose(mean, expected, rtol=0.1)


def test_errors(small_mlp, key):
    f, x = small_mlp
    y = jnp.zeros(6, int)
    for call, message in (
        (lambda: relatives.input_gradient_penalty(f, x, y, norm="linf"), "norm must be 'l2' or 'l1', got 'linf'"),
        (lambda: relatives.input_gradient_penalty(f, x, y[:2]), r"y must have shape \(6,\)"),
        (lambda: relatives.noise_consistency(f, x, key, sigma=0.0), "sigma must be above 0"),
        (lambda: relatives.first_order_frobenius_sq(f, x, key, step=0.0), "step must be above 0"),
        (
            lambda: relatives.spectral_norm_sq(f, x, key, num_iterations=0),
            "num_iterations must be an integer of at least 1",
        ),
        (lambda: relatives.target_jacobian_sq(f, x, x), r"target must have shape \(6, 5, 12\) or \(5, 12\)"),
        (lambda: relatives.layerwise_frobenius_sq([], x, key), "at least one function"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    "relative",
    [
        lambda f, x, y, key: relatives.input_gradient_penalty(f, x, y),
        lambda f, x, y, key: relatives.noise_consistency(f, x, key, sigma=0.1),
        lambda f, x, y, key: relatives.first_order_frobenius_sq(f, x, key),
        lambda f, x, y, key: relatives.spectral_norm_sq(f, x, key),
        lambda f, x, y, key: relatives.target_jacobian_sq(f, x, jnp.ones((3, 8))),
        lambda f, x, y, key: jr.projected_frobenius_sq(relatives.centred(f), x, key),
    ],
    ids=["input gradient", "noise", "first order", "spectral", "target", "centred"],
)
def test_relatives_in_the_train_step(relative, key):
    """The step moves along the gradient of the joint loss with the relative in place of ||J||_F^2, as by hand."""
    params, x = mlp_params(key, (8, 6, 3)), jax.random.normal(key, (10, 8))
    batch = {"image": x, "label": jnp.arange(10) % 3}
    apply = lambda params, state, x, key: (mlp(params, x), state)
    optimizer = training.sgd(0.1, momentum=0.0)
    loss = training.classification_loss(apply, lambda_jr=0.3, penalty=penalties.of(relative))
    state = training.init_state(params, optimizer, key)
    new, metrics = training.make_train_step(loss, optimizer, donate=False)(state, batch)
    keys = sharding.row_keys(jax.random.fold_in(key, 0), 10, None)

    def joint(params):
        f = lambda x: mlp(params, x)
        penalty = relative(f, x, batch["label"], keys).mean()
        loss = optax.softmax_cross_entropy_with_integer_labels(f(x), batch["label"]).mean()
        return loss + 0.15 * penalty, penalty

    gradient, penalty = jax.grad(joint, has_aux=True)(params)
    np.testing.assert_allclose(metrics["penalty"], penalty, rtol=1e-4)
    assert metrics["penalty_error"] >= 0
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), new.params, expected)


def test_noise_in_half_precision_wants_to_be_large():
    """What the docstring says: too small where x is rounded, too large where products are, right with a large sigma."""
    key, weight = jax.random.key(1), jax.random.normal(jax.random.key(0), (64, 10)) / 8
    x = 3 * jax.random.normal(key, (1000, 64))
    truth = float(jnp.sum(weight**2))
    of_rounded = lambda sigma: relatives.noise_consistency(
        lambda x: x.astype(jnp.float32) @ weight, x.astype(jnp.bfloat16), key, sigma=sigma
    )
    of_products = lambda sigma: relatives.noise_consistency(
        lambda x: (x.astype(jnp.bfloat16) @ weight.astype(jnp.bfloat16)).astype(jnp.float32), x, key, sigma=sigma
    )
    assert of_rounded(1e-3).mean() < 0.5 * truth
    assert of_products(1e-2).mean() > 1.2 * truth
    np.testing.assert_allclose(of_products(0.3).mean(), truth, rtol=0.05)


@pytest.mark.parametrize("size", [3e-4, 1.0, 300.0, 3000.0])
def test_spectral_norm_in_half_precision(key, size):
    """J^T u is brought to unit length: J J^T u, of the size of sigma^2, leaves float16 where J does not."""
    matrix = np.asarray(jax.random.normal(key, (6, 4)))
    matrix = (size * matrix / np.linalg.norm(matrix, 2)).astype(np.float16)
    f, x = lambda x: x @ jnp.asarray(matrix), jnp.zeros((2, 6), jnp.float16)
    found = relatives.spectral_norm_sq(f, x, key, num_iterations=30)
    np.testing.assert_allclose(np.sqrt(found), np.linalg.norm(matrix.astype(float), 2), rtol=0.01)
