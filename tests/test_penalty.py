"""penalty.py: one forward pass, the right gradient, the sub-batch, the joint loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr
from jacreg_jax.penalties import exact, on_part, projected
from tests.conftest import mlp, mlp_params
from tests.reference import frobenius_sq


def test_a_profile_tells_the_penalty_from_the_rest():
    """The products of the estimate are named, the forward pass is not."""
    f, x = lambda x: jnp.tanh(x) @ jnp.eye(3), jnp.ones((2, 3))
    text = jax.jit(lambda x, key: jr.value_and_penalty(f, x, key)).lower(x, jax.random.key(0)).as_text(debug_info=True)
    named = [line for line in text.splitlines() if "jacobian_penalty" in line]
    assert named
    assert not any("jacobian_penalty/tanh" in line for line in named)


def test_value_and_penalty_equal_their_parts(small_mlp, key):
    f, x = small_mlp
    for probe in ("sphere", "orthonormal", "rademacher", "gaussian"):
        z, penalty = jr.value_and_penalty(f, x, key, num_projections=2, probe=probe)
        np.testing.assert_allclose(z, f(x), rtol=1e-5, atol=1e-7)
        q = jr.projected_frobenius_sq(f, x, key, num_projections=2, probe=probe)
        np.testing.assert_allclose(penalty, q.mean(), rtol=1e-5, atol=1e-7)
    z, penalty = jr.value_and_exact_penalty(f, x, chunk_size=2)
    np.testing.assert_allclose(z, f(x), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(penalty, frobenius_sq(f, x).mean(), rtol=1e-5)


def test_aux_is_handed_through(small_mlp, key):
    f, x = small_mlp
    with_aux = lambda x: (f(x), {"mean": x.mean()})
    (z, aux), penalty = jr.value_and_penalty(with_aux, x, key, has_aux=True)
    np.testing.assert_allclose(penalty, jr.value_and_penalty(f, x, key)[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(aux["mean"], x.mean(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(z, f(x), rtol=1e-5, atol=1e-7)
    (_, aux), exact = jr.value_and_exact_penalty(with_aux, x, has_aux=True)
    np.testing.assert_allclose(exact, jr.value_and_exact_penalty(f, x)[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(aux["mean"], x.mean(), rtol=1e-5, atol=1e-7)


def penalty_of(params, x, key, activation=jnp.tanh, **options):
    return jr.value_and_penalty(lambda x: mlp(params, x, activation), x, key, **options)[1]


@pytest.mark.parametrize("probe", ["exact", "sphere", "orthonormal", "rademacher", "gaussian"])
def test_gradient_equals_finite_differences(x64, key, probe):
    """In float64, along random directions of all parameters; far from zero, so no detached Jacobian."""
    params = mlp_params(key, (6, 7, 5, 4), jnp.float64)
    x = jax.random.normal(key, (3, 6), jnp.float64)
    if probe == "exact":
        penalty = lambda p: jr.value_and_exact_penalty(lambda x: mlp(p, x), x, chunk_size=3)[1]
    else:
        penalty = lambda p: penalty_of(p, x, key, probe=probe, num_projections=2, sample_fraction=0.7)
    penalty = jax.jit(penalty)
    gradient = jax.grad(penalty)(params)
    h = 1e-5
    for seed in (1, 2):
        direction = mlp_params(jax.random.key(seed), (6, 7, 5, 4), jnp.float64)
        step = lambda s: jax.tree.map(lambda p, d: p + s * d, params, direction)
        numeric = (penalty(step(h)) - penalty(step(-h))) / (2 * h)
        analytic = sum(
            jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        np.testing.assert_allclose(analytic, numeric, rtol=1e-7)
        assert abs(analytic) > 1e-2


def test_relu_biases_have_zero_gradient(key):
    """J of a ReLU net is constant between kinks; weights still get a gradient, and so do the biases of tanh."""
    params = mlp_params(key, (6, 7, 5, 4))
    x = jax.random.normal(key, (8, 6))
    relu = jax.grad(penalty_of)(params, x, key, jax.nn.relu)
    tanh = jax.grad(penalty_of)(params, x, key, jnp.tanh)
    for (relu_w, relu_b), (tanh_w, tanh_b), last in zip(relu, tanh, (False, False, True), strict=True):
        np.testing.assert_array_equal(relu_b, 0)
        assert jnp.abs(relu_w).max() > 1e-3
        assert jnp.abs(tanh_w).max() > 1e-3
        assert last or jnp.abs(tanh_b).max() > 1e-3


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.84, 1.0])
def test_sub_batch_is_unbiased_and_keeps_the_value(key, fraction):
    params = mlp_params(key, (6, 7, 4))
    x = jax.random.normal(key, (10, 6)) * jnp.linspace(0.1, 3, 10)[:, None]
    f = lambda x: mlp(params, x)
    z, mean, norms = jax.jit(lambda k: on_part(fraction)(f, x, None, k))(key)
    np.testing.assert_allclose(mean, norms.mean(), rtol=1e-6)
    np.testing.assert_allclose(z, f(x), rtol=1e-5)
    assert norms.shape == (max(1, round(10 * fraction)),)
    draw = jax.jit(jax.vmap(lambda k: jr.value_and_penalty(f, x, k, sample_fraction=fraction)[1]))
    draws = draw(jax.random.split(key, 4000))
    error = draws.std() / np.sqrt(4000)
    assert abs(draws.mean() - frobenius_sq(f, x).mean()) < 4 * error


def test_sub_batch_with_aux_keeps_the_whole_batch(small_mlp, key):
    f, x = small_mlp
    with_aux = lambda x: (f(x), x.mean())
    (z, mean), _ = jr.value_and_penalty(with_aux, x, key, sample_fraction=0.5, has_aux=True)
    np.testing.assert_allclose(z, f(x), rtol=1e-6)
    np.testing.assert_allclose(mean, x.mean(), rtol=1e-6)


def test_pytrees(key):
    x = {"a": jax.random.normal(key, (4, 3)), "b": jax.random.normal(key, (4, 2, 2))}
    f = lambda x: {"sum": x["a"].sum(1) * x["b"].sum((1, 2)), "dense": jnp.sin(x["b"])}
    for fraction in (0.5, 1.0):
        z, _ = jr.value_and_penalty(f, x, key, num_projections=5, probe="orthonormal", sample_fraction=fraction)
        chex.assert_trees_all_close(z, f(x))
    _, penalty = jr.value_and_penalty(f, x, key, num_projections=5, probe="orthonormal")
    np.testing.assert_allclose(penalty, frobenius_sq(f, x).mean(), rtol=1e-5)


def test_joint_loss_is_equation_5():
    params = {"w": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    np.testing.assert_allclose(jr.joint_loss(1.0, 4.0, lambda_jr=0.1), 1.2, rtol=1e-6)
    np.testing.assert_allclose(jr.joint_loss(1.0, 4.0, params, lambda_jr=0.1, lambda_wd=0.01), 1.27, rtol=1e-6)
    with pytest.raises(ValueError, match="params must be given"):
        jr.joint_loss(1.0, 4.0, lambda_jr=0.1, lambda_wd=0.01)


def test_standard_error(small_mlp, key):
    """Over keys and resampled rows, the spread of the mean is what the standard error says."""
    f, _ = small_mlp
    x = jax.random.normal(key, (1000, 40, 12))
    norms = jax.vmap(lambda x, k: jr.projected_frobenius_sq(f, x, k))(x, jax.random.split(key, 1000))
    spread = norms.mean(1).std()
    np.testing.assert_allclose(jax.vmap(jr.standard_error)(norms).mean(), spread, rtol=0.1)
    assert jr.standard_error(jnp.ones(1)) == 0


def test_noise_reading(key):
    """E||f(x + eps) - f(x)||^2 = sigma^2 ||J||_F^2 for small sigma: lambda_jr is the variance of input noise."""
    params = mlp_params(key, (6, 7, 4))
    x = jax.random.normal(key, (5, 6))
    sigma = 1e-2
    noise = sigma * jax.random.normal(key, (20_000, 5, 6))
    moved = jax.vmap(lambda e: jnp.sum((mlp(params, x + e) - mlp(params, x)) ** 2, 1))(noise).mean(0)
    np.testing.assert_allclose(moved, sigma**2 * frobenius_sq(lambda x: mlp(params, x), x), rtol=0.05)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01])
def test_bad_fraction(small_mlp, key, fraction):
    f, x = small_mlp
    with pytest.raises(ValueError, match=r"sample_fraction must lie in \(0, 1\], got"):
        jr.value_and_penalty(f, x, key, sample_fraction=fraction)


def test_bad_input(small_mlp, key):
    f, x = small_mlp
    with pytest.raises(TypeError, match="x must be real floating point"):
        jr.value_and_penalty(f, x.astype(int), key)
    with pytest.raises(TypeError, match="x must be real floating point"):
        jr.value_and_exact_penalty(f, x.astype(int))
    with pytest.raises(ValueError, match="batch size of x"):
        jr.value_and_penalty(lambda x: f(x)[:2], x, key)
    with pytest.raises(TypeError, match="key must be a typed key"):
        jr.value_and_penalty(f, x, None, sample_fraction=0.5)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu], ids=["tanh", "relu"])
@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
@pytest.mark.parametrize("num_projections", [3, 4, "exact"])
def test_accumulated_mean_equals_the_plain_one(key, activation, chunk_size, num_projections):
    """Value, norms and gradients in parameters and input, whatever the chunks; jit inside grad and grad inside jit."""
    params = mlp_params(key, (6, 7, 5, 4))
    x = jax.random.normal(key, (8, 6))
    is_exact = num_projections == "exact"
    penalty = exact(chunk_size) if is_exact else projected(num_projections, chunk_size=chunk_size)

    def chunked(params, x):
        return penalty(lambda x: mlp(params, x, activation), x, None, key)[1]

    def plain(params, x):
        f = lambda x: mlp(params, x, activation)
        if is_exact:
            return jr.exact_frobenius_sq(f, x).mean()
        return jr.projected_frobenius_sq(f, x, key, num_projections=num_projections).mean()

    value, expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(params, x)
    np.testing.assert_allclose(chunked(params, x), value, rtol=1e-5)
    for gradient in (jax.jit(jax.grad(chunked, (0, 1))), jax.grad(jax.jit(chunked), (0, 1))):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient(params, x), expected)


def test_accumulated_mean_under_forward_over_reverse(key):
    """A Hessian-vector product of the penalised loss, jvp of grad."""
    params = mlp_params(key, (6, 7, 4))
    x = jax.random.normal(key, (8, 6))
    loss = lambda chunk_size: lambda p: jr.value_and_exact_penalty(lambda x: mlp(p, x), x, chunk_size=chunk_size)[1]
    product = lambda f: jax.jvp(jax.grad(f), (params,), (jax.tree.map(jnp.sin, params),))[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), product(loss(1)), product(loss(10))
    )


def test_norms_of_the_mean_carry_no_gradient(key):
    params = mlp_params(key, (6, 7, 4))
    x = jax.random.normal(key, (8, 6))
    norms = lambda p: exact()(lambda x: mlp(p, x), x, None, None)[2].sum()
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.grad(norms)(params)))
    expected = jr.exact_frobenius_sq(lambda x: mlp(params, x), x)
    np.testing.assert_allclose(norms(params), expected.sum(), rtol=1e-5)


def test_a_function_without_entries_has_norm_0():
    x, nothing = jnp.ones((3, 4)), lambda x: x[:, :0]
    assert jr.exact_frobenius_sq(nothing, x).tolist() == [0, 0, 0]
    for z, mean in (jr.value_and_exact_penalty(nothing, x), jr.value_and_penalty(nothing, x, jax.random.key(0))):
        assert z.shape == (3, 0)
        assert mean == 0
    loss = lambda scale: jr.value_and_exact_penalty(lambda x: scale * nothing(x), x)[1]
    assert jax.grad(loss)(2.0) == 0


def test_weight_decay_of_half_precision_does_not_overflow():
    """Summed in float32; of complex parameters the squared modulus, with its gradient."""
    decay = lambda params: jr.joint_loss(0.0, 0.0, params, lambda_jr=0.0, lambda_wd=1.0)
    assert float(decay([jnp.full(1000, 10, jnp.float16)])) == 50_000
    assert float(decay([jnp.full(10, 1, jnp.bfloat16)] * 200)) == 1000
    z = jnp.array([3 + 4j, 1j])
    assert float(decay([z])) == pytest.approx(13)
    np.testing.assert_allclose(jax.grad(decay)([z])[0], jnp.conj(z))
