"""Properties that hold for any shape, dtype and pytree: hypothesis draws them, jacrev and algebra say what is right."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

import jacreg_jax as jr
from jacreg_jax import metrics, penalties
from tests.reference import frobenius_sq

small = settings(max_examples=5, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
batches, seeds = st.integers(1, 4), st.integers(0, 2**31 - 1)


@st.composite
def problems(draw, dtype="float32"):
    """(f, x): a smooth function of a random pytree of arrays to another, rows independent."""
    batch, seed = draw(batches), draw(seeds)
    inputs = draw(st.lists(shapes, min_size=1, max_size=3))
    outputs = draw(st.lists(shapes, min_size=1, max_size=2))
    rng = np.random.default_rng(seed)
    x = {f"x{i}": jnp.asarray(rng.normal(size=(batch, *s)), dtype) for i, s in enumerate(inputs)}
    size = sum(int(np.prod(s)) for s in inputs)
    weights = [jnp.asarray(rng.normal(size=(size, int(np.prod(s)))) / np.sqrt(size), dtype) for s in outputs]

    def f(x):
        flat = jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)], axis=1)
        return tuple(jnp.tanh(flat @ w).reshape(len(flat), *s) for w, s in zip(weights, outputs, strict=True))

    return f, x


@small
@given(problems(), st.integers(1, 7), st.sampled_from(["reverse", "forward", "auto"]))
def test_exact_is_the_whole_matrix(problem, chunk_size, mode):
    f, x = problem
    right = frobenius_sq(f, x)
    np.testing.assert_allclose(
        jax.jit(partial(jr.exact_frobenius_sq, f, mode=mode, chunk_size=chunk_size))(x), right, rtol=1e-4, atol=1e-6
    )
    z, mean = jax.jit(partial(jr.value_and_exact_penalty, f, chunk_size=chunk_size))(x)
    np.testing.assert_allclose(mean, right.mean(), rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), z, f(x))


@small
@given(problems(), seeds)
def test_a_whole_frame_is_exact_and_a_part_is_a_part(problem, seed):
    f, x = problem
    size = sum(leaf[0].size for leaf in f(x))
    key = jax.random.key(seed)
    compiled = partial(jr.projected_frobenius_sq, f, num_projections=size, probe="orthonormal")
    frame = jax.jit(compiled)(x, key)
    right = frobenius_sq(f, x)
    np.testing.assert_allclose(frame, right, rtol=1e-3, atol=1e-5)
    batch = len(jax.tree.leaves(x)[0])
    z, _, norms = jax.jit(partial(penalties.on_part(0.5, penalties.exact()), f))(x, None, key)
    assert norms.shape == (max(1, round(0.5 * batch)),)
    assert all(np.isclose(n, right, rtol=1e-3, atol=1e-5).any() for n in norms)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), z, f(x))


@small
@given(problems(), seeds, st.floats(-3, 3))
def test_scaling_and_order(problem, seed, factor):
    """||J(a f)||^2 = a^2 ||J(f)||^2; a sample's value goes with its row and its key."""
    f, x = problem
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(x)[0]))
    norms = jr.projected_frobenius_sq(f, x, keys)
    scaled = jr.projected_frobenius_sq(lambda x: jax.tree.map(lambda z: factor * z, f(x)), x, keys)
    np.testing.assert_allclose(scaled, factor**2 * norms, rtol=1e-3, atol=1e-5)
    order = np.random.default_rng(seed).permutation(len(keys))
    moved = jr.projected_frobenius_sq(f, jax.tree.map(lambda leaf: leaf[order], x), keys[order])
    np.testing.assert_allclose(moved, norms[order], rtol=1e-4, atol=1e-6)


@small
@given(st.data(), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_norms_come_in_float32(data, dtype):
    f, x = data.draw(problems(dtype))
    norms = jax.jit(partial(jr.exact_frobenius_sq, f))(x)
    assert norms.dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x)
    tolerance = {"float16": 0.02, "bfloat16": 0.15, "float32": 1e-4}[dtype]
    right = frobenius_sq(lambda x: jax.tree.map(lambda z: z.astype(jnp.float32), f(x)), wide)
    np.testing.assert_allclose(norms, right, rtol=tolerance, atol=0.05 if dtype != "float32" else 1e-6)


@small
@given(problems(), seeds)
def test_rows_are_independent_until_they_are_not(problem, seed):
    f, x = problem
    key = jax.random.key(seed)
    assert jr.rows_are_independent(f, x, key)
    batch = len(jax.tree.leaves(x)[0])
    for shift in range(1, batch):
        mixed = lambda x, s=shift: f(jax.tree.map(lambda leaf: leaf + 0.5 * jnp.roll(leaf, s, 0), x))
        assert not jr.rows_are_independent(mixed, x, key)


@small
@given(st.lists(st.floats(0, 100), min_size=2, max_size=6), st.integers(1, 4))
def test_errors_of_shares_are_those_of_the_whole(norms, shares):
    """`metrics.merged` of equal shares gives mean and standard error of all their samples."""
    values = jnp.asarray([[v + i for v in norms] for i in range(shares)], jnp.float32)
    found = {"p": values.mean(1), "p_error": jax.vmap(jr.standard_error)(values)}
    found["p_count"] = jnp.full(shares, float(len(norms)))
    whole = metrics.merged(found, lambda v: jnp.mean(v, axis=0), shares)
    np.testing.assert_allclose(whole["p"], values.mean(), rtol=1e-5)
    np.testing.assert_allclose(whole["p_error"], jr.standard_error(values.ravel()), rtol=1e-3, atol=1e-4)
