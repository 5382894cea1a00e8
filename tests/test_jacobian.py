"""jacobian.py against the whole Jacobian matrix, and its estimators against their own analytic moments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr
from jacreg_jax import probes
from jacreg_jax.keys import sample_keys
from jacreg_jax.rows import Rows, products_at_once
from tests.conftest import mlp_params
from tests.reference import frobenius_sq, jacobian_matrix

PROBES = probes.PROBES


def two_inputs(x):
    """A dictionary in, a dictionary out: dense predictions [B, 3, 2] and one number."""
    h = jnp.tanh(x["image"].reshape(x["image"].shape[0], -1) @ jnp.linspace(-1, 1, 24).reshape(12, 2))
    return {"dense": jnp.stack([h, h**2, jnp.sin(h)], 1), "number": x["scale"][:, 0] * h[:, 0]}


@pytest.fixture
def pytree(key):
    a, b = jax.random.split(key)
    return {"image": jax.random.normal(a, (4, 3, 4)), "scale": jax.random.normal(b, (4, 1))}


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
def test_exact_equals_the_matrix(small_mlp, mode, chunk_size):
    f, x = small_mlp
    exact = jax.jit(lambda x: jr.exact_frobenius_sq(f, x, mode=mode, chunk_size=chunk_size))(x)
    np.testing.assert_allclose(exact, frobenius_sq(f, x), rtol=1e-5)


@pytest.mark.parametrize("jac", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_exact_on_pytrees(pytree, mode, jac):
    exact = jr.exact_frobenius_sq(two_inputs, pytree, mode=mode)
    np.testing.assert_allclose(exact, frobenius_sq(two_inputs, pytree, jac), rtol=1e-5)


def test_auto_takes_forward_where_inputs_are_fewer(key):
    """A function without a forward rule shows which way was taken; "auto" goes the other way then."""

    @jax.custom_vjp
    def f(x):
        return jnp.tile(jnp.sin(x), (1, 5))

    f.defvjp(lambda x: (f(x), x), lambda x, g: (jnp.cos(x) * g.reshape(2, 5, 3).sum(1),))
    x = jax.random.normal(key, (2, 3))
    with pytest.raises(TypeError, match="forward-mode"):
        jr.exact_frobenius_sq(f, x, mode="forward")
    expected = 5 * jnp.sum(jnp.cos(x) ** 2, axis=1)
    for mode in ("auto", "reverse"):
        np.testing.assert_allclose(jr.exact_frobenius_sq(f, x, mode=mode), expected, rtol=1e-5)
    counted = lambda f: str(jax.make_jaxpr(lambda x: jr.exact_frobenius_sq(f, x, chunk_size=1))(x))
    assert "length=3" in counted(lambda x: jnp.tile(jnp.sin(x), (1, 5))), "three inputs, three products"


def test_linear_network_is_weight_decay(key):
    """||J||_F^2 = ||W||_F^2, its half has gradient W, and biases do not matter."""
    w, b = jax.random.normal(key, (5, 7)), jnp.ones(5)
    x = jax.random.normal(key, (3, 7))
    half = lambda w, b: 0.5 * jnp.mean(jr.exact_frobenius_sq(lambda x: x @ w.T + b[None, :], x))
    np.testing.assert_allclose(2 * half(w, b), jnp.sum(w**2), rtol=1e-6)
    gradient = jax.grad(half, (0, 1))(w, b)
    np.testing.assert_allclose(gradient[0], w, rtol=1e-5)
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("num_projections", [1, 3])
def test_probes_mean_and_variance(small_mlp, key, probe, num_projections):
    """Over 20,000 keys: the mean within 4 analytic standard errors, the variance within 10 % of the formula."""
    f, x = small_mlp
    draws = 20_000
    estimate = lambda k: jr.projected_frobenius_sq(f, x, k, num_projections=num_projections, probe=probe)
    q = jax.jit(jax.vmap(estimate))(jax.random.split(key, draws))
    j = jacobian_matrix(f, x)
    variance = jr.projection_variance(j @ j.mT, num_projections=num_projections, probe=probe)
    error = np.abs(q.mean(0) - jr.exact_frobenius_sq(f, x)) / np.sqrt(variance / draws)
    assert np.all(error < 4), error
    np.testing.assert_allclose(q.var(0, ddof=1), variance, rtol=0.1)


def test_probes_differ_in_variance(small_mlp, key):
    """The four formulas are not one another: at n = 3 orthonormal < sphere < gaussian."""
    f, x = small_mlp
    j = jacobian_matrix(f, x)
    v = {p: jr.projection_variance(j @ j.mT, num_projections=3, probe=p) for p in PROBES}
    assert np.all(v["orthonormal"] < 0.6 * v["sphere"])
    assert np.all(v["sphere"] < v["gaussian"])
    assert not np.allclose(v["rademacher"], v["sphere"], rtol=0.05)


def test_variance_bound(small_mlp):
    """Eq. 16: relative variance of the sphere at most 2 (C-1) / (C+2), reached at rank 1."""
    c = 5
    bound = 2 * (c - 1) / (c + 2)
    f, x = small_mlp
    j = jacobian_matrix(f, x)
    gram = j @ j.mT
    assert np.all(jr.projection_variance(gram) <= bound * jnp.trace(gram, axis1=1, axis2=2) ** 2)
    rank_1 = jnp.outer(jnp.arange(c), jnp.arange(c)).astype(float)
    np.testing.assert_allclose(jr.projection_variance(rank_1), bound * jnp.trace(rank_1) ** 2, rtol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_full_orthonormal_frame_is_exact(small_mlp, seed):
    f, x = small_mlp
    q = jr.projected_frobenius_sq(f, x, jax.random.key(seed), num_projections=5, probe="orthonormal")
    np.testing.assert_allclose(q, jr.exact_frobenius_sq(f, x), rtol=1e-5)
    one = jr.projected_frobenius_sq(f, x, jax.random.key(seed), num_projections=4, probe="orthonormal")
    assert not np.allclose(one, q, rtol=1e-3)


@pytest.mark.parametrize("probe", ["sphere", "orthonormal", "rademacher"])
def test_one_output_is_exact(key, probe):
    f = lambda x: jnp.sum(jnp.sin(x), axis=1, keepdims=True)
    x = jax.random.normal(key, (4, 3))
    np.testing.assert_allclose(
        jr.projected_frobenius_sq(f, x, key, probe=probe), jr.exact_frobenius_sq(f, x), rtol=1e-5
    )


def test_same_key_same_draw_other_key_other_draw(small_mlp):
    f, x = small_mlp
    q = [jr.projected_frobenius_sq(f, x, jax.random.key(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(q[0], q[1])
    assert np.all(q[0] != q[2])


@pytest.mark.parametrize("probe", PROBES)
def test_a_sample_does_not_depend_on_its_batch(small_mlp, key, probe):
    f, x = small_mlp
    whole = jr.projected_frobenius_sq(f, x, key, num_projections=2, probe=probe)
    head = jr.projected_frobenius_sq(f, x[:4], key, num_projections=2, probe=probe)
    np.testing.assert_allclose(head, whole[:4], rtol=1e-5)
    keys = sample_keys(key, 6)
    order = jnp.array([3, 0, 5, 1, 2, 4])
    moved = jr.projected_frobenius_sq(f, x[order], keys[order], num_projections=2, probe=probe)
    np.testing.assert_allclose(moved, whole[order], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_penalised_in_float32(key, dtype):
    """The squares overflow float16 and leave bfloat16's 8 bits; the result does neither."""
    w = 40 * jax.random.normal(key, (5, 64))
    x = jax.random.normal(key, (3, 64), dtype)
    f = lambda x: x @ w.astype(dtype).T
    exact = jr.exact_frobenius_sq(f, x)
    assert exact.dtype == jnp.float32
    assert exact[0] > jnp.finfo(jnp.float16).max
    np.testing.assert_allclose(exact, jnp.sum(w**2), rtol=5e-3)
    assert jr.projected_frobenius_sq(f, x, key).dtype == jnp.float32


def test_float64(x64, key):
    f = lambda x: jnp.sin(x) @ jnp.ones((3, 2))
    x = jax.random.normal(key, (4, 3), jnp.float64)
    exact = jr.exact_frobenius_sq(f, x)
    assert exact.dtype == jnp.float64
    np.testing.assert_allclose(exact, 2 * jnp.sum(jnp.cos(x) ** 2, 1), rtol=1e-14)
    frame = jr.projected_frobenius_sq(f, x, key, num_projections=2, probe="orthonormal")
    np.testing.assert_allclose(frame, exact, rtol=1e-13)


def test_zero_jacobian_has_a_finite_gradient(key):
    """A zero-initialised head: the norm is 0 and its gradient is 0, not NaN."""
    x = jax.random.normal(key, (4, 3))
    for norm in (jr.exact_frobenius_sq, lambda f, x: jr.projected_frobenius_sq(f, x, key)):
        value, gradient = jax.value_and_grad(lambda w: jnp.mean(norm(lambda x: jnp.tanh(x) @ w, x)))(jnp.zeros((3, 2)))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_empty_and_single_batches(small_mlp, key):
    f, x = small_mlp
    assert jr.exact_frobenius_sq(f, x[:0]).shape == (0,)
    np.testing.assert_allclose(jr.exact_frobenius_sq(f, x[:1]), frobenius_sq(f, x[:1]), rtol=1e-5)


def test_rows_are_independent(small_mlp, key):
    f, x = small_mlp
    assert jr.rows_are_independent(f, x, key)
    assert not jr.rows_are_independent(lambda x: f(x - x.mean(0, keepdims=True)), x, key)


def test_train_mode_batch_statistics_bias_the_norm(key):
    """What the docstrings warn of: with batch statistics exact is far too small and the probe's mean is not."""
    params = mlp_params(key, (10, 20, 10))
    x = jax.random.normal(key, (4, 10))

    def f(x):
        h = x @ params[0][0].T
        return jnp.tanh((h - h.mean(0, keepdims=True)) / h.std(0, keepdims=True)) @ params[1][0].T

    whole = jax.jacrev(f)(x)  # [B, C, B, I]
    own = jnp.einsum("acai->", whole**2) / 4
    all_blocks = jnp.sum(whole**2) / 4
    exact = jr.exact_frobenius_sq(f, x).mean()
    probes = jax.vmap(lambda k: jr.projected_frobenius_sq(f, x, k))(jax.random.split(key, 4000)).mean()
    assert exact < 0.6 * own
    np.testing.assert_allclose(probes, all_blocks, rtol=0.05)


def test_traces_once(small_mlp, key):
    f, x = small_mlp
    norm = jax.jit(chex.assert_max_traces(lambda x, k: jr.projected_frobenius_sq(f, x, k), n=1))
    for seed in range(3):
        norm(x + seed, jax.random.key(seed))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_projections": 0}, "num_projections must be an integer of at least 1, got 0"),
        ({"num_projections": -2}, "num_projections must be an integer of at least 1, got -2"),
        ({"num_projections": 6, "probe": "orthonormal"}, "at most C = 5 for the orthonormal probe, got 6"),
        ({"probe": "cube"}, "probe must be .*, got 'cube'"),
    ],
)
def test_bad_options(small_mlp, key, options, message):
    f, x = small_mlp
    with pytest.raises(ValueError, match=message):
        jr.projected_frobenius_sq(f, x, key, **options)


def test_bad_arguments(small_mlp, key):
    f, x = small_mlp
    with pytest.raises(TypeError, match="x must be real floating point.*int32"):
        jr.exact_frobenius_sq(f, x.astype(int))
    with pytest.raises(TypeError, match="x must be real floating point.*int32"):
        jr.projected_frobenius_sq(f, x.astype(int), key)
    with pytest.raises(TypeError, match=r"f\(x\) must be real floating point"):
        jr.exact_frobenius_sq(lambda x: jnp.argmax(x, -1), x)
    with pytest.raises(ValueError, match=r"f\(x\) must have the batch size of x, 6"):
        jr.exact_frobenius_sq(lambda x: f(x).sum(0), x)
    with pytest.raises(ValueError, match="x must have one leading batch axis"):
        jr.exact_frobenius_sq(lambda x: x["a"], {"a": x, "b": x[:2]})
    with pytest.raises(ValueError, match="x holds no array"):
        jr.exact_frobenius_sq(f, ())
    with pytest.raises(ValueError, match="mode must be .*'sideways'"):
        jr.exact_frobenius_sq(f, x, mode="sideways")
    with pytest.raises(ValueError, match="chunk_size must be None or an integer of at least 1, got 0"):
        jr.exact_frobenius_sq(f, x, chunk_size=0)
    with pytest.raises(ValueError, match="gram must have shape"):
        jr.projection_variance(jnp.ones((3, 4)))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (None, TypeError, "NoneType"),
        (0, TypeError, "int"),
        (jnp.zeros(2, jnp.uint32), TypeError, r"uint32\[2\]"),
        (jax.random.split(jax.random.key(0), 3), ValueError, "one key or 6 keys"),
    ],
)
def test_bad_keys(small_mlp, bad, error, message):
    f, x = small_mlp
    with pytest.raises(error, match=message):
        jr.projected_frobenius_sq(f, x, bad)


FOLDED = {  # [1, 2^18] -> [1, 512] and back: 512 products of 2^18 entries, 512 MiB at once
    "reverse": (2**18, lambda x: jnp.sin(x).reshape(1, 512, -1).sum(2)),
    "forward": (512, lambda x: jnp.sin(x[:, :, None] * jnp.arange(512.0)[None, None]).reshape(1, -1)),
}


@pytest.mark.parametrize("mode", FOLDED)
def test_products_of_large_arrays_do_not_all_live_at_once(mode):
    """Without a chunk_size 64 of them do, of 2^24 entries together; the sum is that of all at once."""
    inputs, f = FOLDED[mode]
    shape = jax.ShapeDtypeStruct((1, inputs), jnp.float32)
    norm = lambda **size: jax.jit(lambda x: jr.exact_frobenius_sq(f, x, mode=mode, **size))
    memory = lambda f: f.lower(shape).compile().memory_analysis().temp_size_in_bytes
    assert memory(norm()) == pytest.approx(memory(norm(chunk_size=64)))
    rows = Rows(shape, "x"), Rows(jax.eval_shape(f, shape), "f(x)")
    assert products_at_once(*rows, 512) == 64
    x = jnp.linspace(-1, 1, inputs)[None]
    np.testing.assert_allclose(norm()(x), norm(chunk_size=512)(x), rtol=1e-5)


def test_how_many_products_live_at_once():
    """All of small arrays, equal shares of large ones, one of the largest; of no product at all, one."""
    rows = lambda size: Rows(jnp.zeros((4, size)), "x")
    assert products_at_once(rows(3072), rows(10), 10) == 10
    assert products_at_once(rows(2**20), rows(1000), 1000) == 4
    assert products_at_once(rows(1000), rows(2**20), 1000) == 4
    assert products_at_once(rows(2**16), rows(100), 100) == 50
    assert products_at_once(Rows(jax.ShapeDtypeStruct((4, 2**25), jnp.float32), "x"), rows(3), 3) == 1
    assert products_at_once(rows(0), rows(0), 0) == 1
