"""Squared Frobenius norm of the input-output Jacobian: exact, and estimated by random projections.

For a batched function ``f`` and one sample, J = dz/dx has C rows (all entries of z) and I columns (all entries of
x). Everywhere here ``f`` maps [B, ...] to [B, ...], parameters closed over, and x and f(x) may be pytrees of such
arrays. Row a of f(x) must depend on row a of x alone: one vector-Jacobian product of the whole batch is then B
per-sample products. Train-mode BatchNorm breaks that rule; `rows_are_independent` checks it.

Equation numbers are those of Hoffman, Roberts, Yaida, "Robust Learning with Jacobian Regularization" (2019).
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jacreg_jax import checks, signatures
from jacreg_jax.explicit_axes import entry
from jacreg_jax.probes import Probe, sample_probes
from jacreg_jax.programs import once
from jacreg_jax.rows import Rows, batch_size, chunked, products_at_once, sum_sq
from jacreg_jax.types import Array, Bool, Float, Function, PyTree


@once
def exact_frobenius_sq(
    f: Function, x: PyTree, *, mode: Literal["auto", "reverse", "forward"] = "auto", chunk_size: int | None = None
) -> Float[Array, " B"]:
    """Squared Frobenius norm of the Jacobian of every sample, by a sum over an orthonormal basis (Eq. 6).

    ||J||_F^2 = sum_c ||J^T e_c||^2  (reverse mode, C products)  = sum_i ||J e_i||^2  (forward mode, I products).

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent; pytrees in and out are welcome.
        x: float array or pytree of arrays [B, ...].
        mode: "reverse", "forward", or "auto", which takes forward where I < C and f has no rule for reverse mode alone.
        chunk_size: basis vectors handled at once. None: all at once (fastest), or where x or f(x) is large, as many as
            hold 2^24 entries of it. Smaller chunks are scanned with a checkpoint each, which bounds the memory of the
            gradient at one more product per basis vector.

    Returns:
        [B] array in float32, or in float64 where f(x) or x is.

    Raises:
        TypeError: x or f(x) is not real floating point.
        ValueError: unknown mode, chunk_size below 1, or batch sizes that differ.

    Example:
        >>> exact_frobenius_sq(lambda x: 3 * x, jnp.ones((2, 4)))
        Array([36., 36.], dtype=float32)

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Eqs. 3 and 6.
    """
    checks.function("f", f)
    inputs = Rows(x, "x")
    outputs = Rows(jax.eval_shape(f, x), "f(x)", batch=inputs.batch)
    checks.one_of("mode", mode, ("auto", "reverse", "forward"))
    if mode == "forward" or (mode == "auto" and inputs.size < outputs.size and _runs_forward(f, x)):
        _, jvp = jax.linearize(f, x)
        return _sum_over_basis(jvp, inputs, chunk_size, products_at_once(inputs, outputs, inputs.size))
    return exact_from_vjp(*jax.vjp(f, x), x, chunk_size=chunk_size)


@entry
def projected_frobenius_sq(
    f: Function, x: PyTree, key: jax.Array, *, num_projections: int = 1, probe: Probe = "sphere"
) -> Float[Array, " B"]:
    """Unbiased estimate of ||J||_F^2 of every sample from random projections (Eqs. 7-8).

    (1/n) sum_mu ||J^T v_mu||^2 with E[v v^T] = I. For the paper's probe v is sqrt(C) times a unit vector, which is
    Eq. 8 with its missing factor C (Eq. 7 and Algorithm 1 have it).

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent.
        x: float array or pytree of arrays [B, ...].
        key: typed key from `jax.random.key`, or B of them, one for each sample.
        num_projections: n, the number of products.
        probe: "sphere" (the paper), "orthonormal" (n orthogonal directions: variance times (C-n)/(C-1), exact at
            n = C), "rademacher" (random signs) or "gaussian".

    Returns:
        [B] array in float32 (float64 for a float64 model).

    Raises:
        TypeError: x or f(x) is not real floating point; key is not a typed key.
        ValueError: num_projections below 1, or above C for "orthonormal"; unknown probe; batch sizes that
            differ.

    Example:
        >>> f, x = lambda x: 3 * x, jnp.ones((2, 4))
        >>> bool(jnp.allclose(projected_frobenius_sq(f, x, jax.random.key(0)), 36))  # J J^T = 9: no variance
        True

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Algorithm 1.
    """
    checks.function("f", f)
    batch_size(x)
    z, vjp = jax.vjp(f, x)
    return projected_from_vjp(z, vjp, x, key, num_projections=num_projections, probe=probe)


def exact_from_vjp(
    z: PyTree, vjp: Callable[..., Any], x: PyTree, *, chunk_size: int | None = None
) -> Float[Array, " B"]:
    """`exact_frobenius_sq` in reverse mode, for callers that already hold ``z, vjp = jax.vjp(f, x)``.

    Args:
        z: f(x), an array or pytree of arrays [B, ...].
        vjp: cotangent like z -> (cotangent like x,).
        x: float array or pytree of arrays [B, ...].
        chunk_size: as for `exact_frobenius_sq`.

    Returns:
        [B].

    Raises:
        TypeError: x or z is not real floating point; vjp cannot be called.
        ValueError: chunk_size below 1, or batch sizes that differ.

    Example:
        >>> x = jnp.ones((2, 4))
        >>> exact_from_vjp(*jax.vjp(lambda x: 3 * x, x), x)
        Array([36., 36.], dtype=float32)
    """
    checks.function("vjp", vjp)
    inputs = Rows(x, "x")
    outputs = Rows(z, "f(x)", batch=inputs.batch)
    return _sum_over_basis(vjp, outputs, chunk_size, products_at_once(inputs, outputs, outputs.size))


def projected_from_vjp(
    z: PyTree, vjp: Callable[..., Any], x: PyTree, key: jax.Array, *, num_projections: int = 1, probe: Probe = "sphere"
) -> Float[Array, " B"]:
    """`projected_frobenius_sq`, for callers that already hold ``z, vjp = jax.vjp(f, x)``.

    Args:
        z: f(x), an array or pytree of arrays [B, ...].
        vjp: cotangent like z -> (cotangent like x,).
        x: float array or pytree of arrays [B, ...].
        key: typed key, or B of them.
        num_projections: n.
        probe: as for `projected_frobenius_sq`.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: as `projected_frobenius_sq`; vjp cannot be called.

    Example:
        >>> x = jnp.ones((2, 4))
        >>> z, vjp = jax.vjp(lambda x: 3 * x, x)
        >>> projected_from_vjp(z, vjp, x, jax.random.key(0), num_projections=4, probe="orthonormal").round(3)
        Array([36., 36.], dtype=float32)
    """
    checks.function("vjp", vjp)
    outputs = Rows(z, "f(x)", batch=Rows(x, "x").batch)
    v = sample_probes(key, outputs.batch, outputs.size, num_projections, probe)  # [B, n, C]
    project = lambda v: sum_sq(vjp(outputs.unravel(v)))  # [B, C] -> [B]
    if num_projections == 1:  # no leading axis: one axis less for the compiler to shuffle
        return project(v[:, 0])
    return jnp.mean(jax.vmap(project, in_axes=1)(v), axis=0)


@entry
def rows_are_independent(f: Function, x: PyTree, key: jax.Array, *, tolerance: float = 1e-6) -> Bool[Array, ""]:
    """Whether each row of f(x) depends on its own row of x alone, seen from random cotangents.

    J^T (s v) = s J^T v for random v and one weight s_b for each row: true of independent rows, and false where a row
    sees another of another weight. The weights are 16 powers of two, whose products round nothing, in random order: up
    to 16 rows all differ, and of more a lone pair of equal ones is overlooked by one draw in 16, by all three in 4,000.

    False under train-mode BatchNorm, where the exact norm is under-reported and the projected one carries cross-sample
    terms.

    Args:
        f: batched function, [B, ...] -> [B, ...].
        x: float array or pytree of arrays [B, ...].
        key: typed key.
        tolerance: largest ||J^T (s v) - s J^T v|| / ||s J^T v||.

    Returns:
        Boolean scalar.

    Raises:
        TypeError, ValueError: as `projected_frobenius_sq`.

    Example:
        >>> rows_are_independent(lambda x: x - x.mean(0, keepdims=True), jnp.ones((4, 2)), jax.random.key(0)).item()
        False
    """
    checks.function("f", f)
    checks.non_negative("tolerance", tolerance)
    inputs = Rows(x, "x")
    z, vjp = jax.vjp(f, x)
    outputs = Rows(z, "f(x)", batch=inputs.batch)
    v = sample_probes(key, outputs.batch, outputs.size, 1, "gaussian")[:, 0]
    unweighted, found = vjp(outputs.unravel(v)), []
    for draw in range(1 if inputs.batch <= 16 else 3):
        s = _distinct_weights(jax.random.fold_in(key, inputs.batch + draw), inputs.batch)
        scale = lambda leaf, s=s: leaf * s.astype(leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
        mixed, own = vjp(outputs.unravel(v * s[:, None])), jax.tree.map(scale, unweighted)
        cross = jax.tree.map(jnp.subtract, mixed, own)
        found.append(jnp.sum(sum_sq(cross)) <= tolerance**2 * jnp.sum(sum_sq(own)))
    return jnp.stack(found).all()


def _runs_forward(f: Function, x: PyTree) -> bool:
    """Whether f has a forward derivative: what holds a `custom_vjp` has none."""
    found = signatures.equations(jax.make_jaxpr(f)(x).jaxpr)
    return not any(str(equation.primitive).startswith("custom_vjp") for equation in found)


def _distinct_weights(key: jax.Array, batch: int) -> Float[Array, " B"]:
    """+-2^k with -4 <= k < 4, a different one for each of any 16 rows of a random order."""
    place = jax.random.permutation(key, batch) % 16
    sizes = jnp.asarray([2.0**k for k in range(-4, 4)])
    return jnp.where(place < 8, 1.0, -1.0) * sizes[place % 8]


def _sum_over_basis(
    product: Callable[..., Any], rows: Rows, chunk_size: int | None, default: int
) -> Float[Array, " B"]:
    """Sum of ||product(e)||^2 over the unit vectors of rows.size dimensions, the same e for every sample."""
    chunk_size = checks.optional_count("chunk_size", chunk_size) or default
    chunks = chunked(jnp.arange(rows.size), chunk_size, fill_value=rows.size)
    sum_of = lambda chunk: jax.vmap(lambda index: sum_sq(product(rows.unit(index))))(chunk).sum(0)  # [k] -> [B]
    if len(chunks) == 1:
        return sum_of(chunks[0])
    return jax.lax.map(jax.checkpoint(sum_of), chunks).sum(0)
