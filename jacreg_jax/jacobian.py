"""Squared Frobenius norm of the input-output Jacobian: exact, and estimated by random projections.

For a batched function ``f`` and one sample, J = dz/dx has C rows (all entries of z) and I columns (all entries of
x). Everywhere here ``f`` maps [B, ...] to [B, ...], parameters closed over, and x and f(x) may be pytrees of such
arrays. Row a of f(x) must depend on row a of x alone: one vector-Jacobian product of the whole batch is then B
per-sample products. Train-mode BatchNorm breaks that rule; `rows_are_independent` checks it.

Equation numbers are those of Hoffman, Roberts, Yaida, "Robust Learning with Jacobian Regularization" (2019).
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

Probe = Literal["sphere", "orthonormal", "rademacher", "gaussian"]
PROBES = ("sphere", "orthonormal", "rademacher", "gaussian")


def exact_frobenius_sq(
    f: Callable, x, *, mode: Literal["auto", "reverse", "forward"] = "auto", chunk_size: int | None = None
) -> jax.Array:
    """Squared Frobenius norm of the Jacobian of every sample, by a sum over an orthonormal basis (Eq. 6).

    ||J||_F^2 = sum_c ||J^T e_c||^2  (reverse mode, C products)  = sum_i ||J e_i||^2  (forward mode, I products).

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent; pytrees in and out are welcome.
        x: float array or pytree of arrays [B, ...].
        mode: "reverse", "forward", or "auto", which takes forward where I < C.
        chunk_size: basis vectors handled at once. None: all at once (fastest). Smaller chunks are scanned with a
            checkpoint each, which bounds the memory of the gradient at one more product per basis vector.

    Returns:
        [B] array in float32, or in float64 where f(x) or x is.

    Raises:
        TypeError: x or f(x) is not real floating point.
        ValueError: unknown mode, chunk_size below 1, or batch sizes that differ.

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Eqs. 3 and 6.
    """
    flat = _Rows(x, "x")
    outputs = _Rows(jax.eval_shape(f, x), "f(x)", batch=flat.batch)
    if mode not in ("auto", "reverse", "forward"):
        raise ValueError(f"mode must be 'auto', 'reverse' or 'forward', got {mode!r}")
    if mode == "forward" or (mode == "auto" and flat.size < outputs.size):
        _, jvp = jax.linearize(f, x)
        return _sum_over_basis(lambda e: _sum_sq(jvp(flat.unravel(e))), flat, chunk_size)
    return exact_from_vjp(*jax.vjp(f, x), x, chunk_size=chunk_size)


def projected_frobenius_sq(
    f: Callable, x, key: jax.Array, *, num_projections: int = 1, probe: Probe = "sphere"
) -> jax.Array:
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
        ValueError: num_projections below 1, or above C for "orthonormal"; unknown probe; batch sizes that differ.

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Algorithm 1.
    """
    batch_size(x)
    z, vjp = jax.vjp(f, x)
    return projected_from_vjp(z, vjp, x, key, num_projections=num_projections, probe=probe)


def exact_from_vjp(z, vjp: Callable, x, *, chunk_size: int | None = None) -> jax.Array:
    """`exact_frobenius_sq` in reverse mode for one who has called ``z, vjp = jax.vjp(f, x)`` already."""
    outputs = _Rows(z, "f(x)", batch=_Rows(x, "x").batch)
    return _sum_over_basis(lambda e: _sum_sq(vjp(outputs.unravel(e))), outputs, chunk_size)


def projected_from_vjp(
    z, vjp: Callable, x, key: jax.Array, *, num_projections: int = 1, probe: Probe = "sphere"
) -> jax.Array:
    """`projected_frobenius_sq` for one who has called ``z, vjp = jax.vjp(f, x)`` already."""
    outputs = _Rows(z, "f(x)", batch=_Rows(x, "x").batch)
    v = sample_probes(key, outputs.batch, outputs.size, num_projections, probe)  # [B, n, C]
    project = lambda v: _sum_sq(vjp(outputs.unravel(v)))  # [B, C] -> [B]
    if num_projections == 1:  # no leading axis: one axis less for the compiler to shuffle
        return project(v[:, 0])
    return jnp.mean(jax.vmap(project, in_axes=1)(v), axis=0)


def mean_from_vjp(
    z,
    vjp: Callable,
    x,
    key: jax.Array | None = None,
    *,
    num_projections: int | Literal["exact"],
    probe: Probe = "sphere",
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Batch mean of ||J||_F^2, exact or estimated, and the [B] values for statistics, without a gradient.

    What a loss needs is the mean alone, so its gradient is accumulated chunk by chunk during the forward pass: the
    memory of one chunk and no product computed twice. That gradient is a `custom_vjp`: reverse mode and forward over
    reverse, but no plain `jax.jvp` where there is more than one chunk.

    Args:
        z: f(x), of ``z, vjp = jax.vjp(f, x)``.
        vjp: its transpose.
        x: as in `exact_frobenius_sq`.
        key: typed key, or B of them; not needed for "exact".
        num_projections: n, or "exact" for all C basis vectors.
        probe: as in `projected_frobenius_sq`.
        chunk_size: products at once. None: 1 on CPU, where a product fills the cache, and all of them elsewhere.

    Returns:
        (mean, norms): scalar and [B].

    Raises:
        TypeError, ValueError: as the functions above; chunk_size below 1.
    """
    outputs = _Rows(z, "f(x)", batch=_Rows(x, "x").batch)
    if num_projections == "exact":
        directions, count = jnp.eye(outputs.size), 1
        product = lambda e: _sum_sq(vjp(outputs.unravel(jnp.broadcast_to(e, (outputs.batch, outputs.size)))))
    else:
        probes = sample_probes(key, outputs.batch, outputs.size, num_projections, probe)
        directions, count = jnp.moveaxis(probes, 1, 0), num_projections  # [n, B, C]
        product = lambda v: _sum_sq(vjp(outputs.unravel(v)))
    if chunk_size is None:
        chunk_size = 1 if jax.default_backend() == "cpu" else max(1, len(directions))
    chunks = _chunks(directions, chunk_size)
    if chunks.shape[1] == 1:  # no axis of length 1 for the compiler to shuffle
        norms_of, chunks = product, chunks[:, 0]
    else:
        norms_of = lambda chunk: jax.vmap(product)(chunk).sum(0)
    if len(chunks) == 1:
        norms = norms_of(chunks[0]) / count
        return jnp.mean(norms), jax.lax.stop_gradient(norms)
    zero_norms = _sum_sq(jax.tree.map(jnp.zeros_like, x))  # varying as x inside shard_map
    mean, norms = _accumulated_mean(norms_of, chunks, zero_norms)
    return mean / count, jax.lax.stop_gradient(norms) / count


def _accumulated_mean(norms_of: Callable, chunks: jax.Array, zero_norms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum over the chunks of norms_of(chunk), [B]: its mean with the gradient made on the way, and itself without."""
    closed = jax.make_jaxpr(norms_of)(chunks[0])
    is_float = [jnp.issubdtype(constant.dtype, jnp.floating) for constant in closed.consts]
    floats = [c for c, is_it in zip(closed.consts, is_float, strict=True) if is_it]
    others = [c for c, is_it in zip(closed.consts, is_float, strict=True) if not is_it]

    def norms_from(chunk, floats, others):
        """norms_of(chunk) with all that it closes over as arguments, as custom_vjp needs them."""
        floats, others = iter(floats), iter(others)
        constants = [next(floats if is_it else others) for is_it in is_float]
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, constants))(chunk)[0]

    @jax.custom_vjp
    def total(floats, others, chunks, zero_norms):
        norms = jax.lax.map(lambda chunk: norms_from(chunk, floats, others), chunks).sum(0)
        return jnp.mean(norms), norms

    def forward(floats, others, chunks, zero_norms):
        def body(carry, chunk):
            norms, vjp = jax.vjp(lambda floats: norms_from(chunk, floats, others), floats)
            (grads,) = vjp(jnp.full_like(norms, 1 / norms.shape[0]))
            return jax.tree.map(jnp.add, carry, (norms, grads)), None

        start = zero_norms, jax.tree.map(jnp.zeros_like, floats)
        (norms, grads), _ = jax.lax.scan(body, start, chunks)
        return (jnp.mean(norms), norms), grads

    def backward(grads, cotangents):
        return jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), grads), None, None, None

    total.defvjp(forward, backward)
    return total(floats, others, chunks, zero_norms)


def sample_probes(key: jax.Array, batch: int, dimension: int, num_projections: int, probe: Probe) -> jax.Array:
    """Random directions v with E[v v^T] = I for every sample, [B, n, C] in float32 (float64 under x64).

    The direction of a sample depends on the key and on its row alone, not on how many rows there are. The signs of
    the orthonormal frame are those of LAPACK's QR and not Haar; ||J^T v||^2 does not see them.
    """
    if probe not in PROBES:
        raise ValueError(f"probe must be one of {PROBES}, got {probe!r}")
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, got {num_projections}")
    if probe == "orthonormal" and num_projections > dimension:
        raise ValueError(
            f"num_projections must be at most C = {dimension} for the orthonormal probe, got {num_projections}"
        )
    keys = sample_keys(key, batch)
    shape, dtype = (num_projections, dimension), jnp.zeros(()).dtype
    if probe == "rademacher":
        return jax.vmap(lambda k: jax.random.rademacher(k, shape, dtype))(keys)
    v = jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)
    if probe == "gaussian":
        return v
    if probe == "orthonormal":
        return jnp.sqrt(dimension) * jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(v, 1, 2)).Q, 1, 2)
    return jnp.sqrt(dimension) * v / jnp.linalg.norm(v, axis=-1, keepdims=True)


def projection_variance(gram: jax.Array, *, num_projections: int = 1, probe: Probe = "sphere") -> jax.Array:
    """Variance of `projected_frobenius_sq` for A = J J^T (Eq. 15 and its relatives).

    With T = tr A and S = tr A^2:  sphere (2C S - 2 T^2) / ((C+2) n);  orthonormal: that times (C-n)/(C-1);
    gaussian 2 S / n;  rademacher 2 (S - sum_i A_ii^2) / n.

    Args:
        gram: A = J J^T, [..., C, C].
        num_projections: n.
        probe: as in `projected_frobenius_sq`.

    Returns:
        [...] array.

    Raises:
        ValueError: gram is not square, n out of range, unknown probe.
    """
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must have shape [..., C, C], got {gram.shape}")
    if probe not in PROBES:
        raise ValueError(f"probe must be one of {PROBES}, got {probe!r}")
    c, n = gram.shape[-1], num_projections
    if n < 1 or (probe == "orthonormal" and n > c):
        raise ValueError(f"num_projections must be at least 1, and at most C = {c} for 'orthonormal'; got {n}")
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    trace_sq = jnp.sum(gram**2, axis=(-2, -1))
    if probe == "gaussian":
        return 2 * trace_sq / n
    if probe == "rademacher":
        return 2 * (trace_sq - jnp.sum(jnp.diagonal(gram, axis1=-2, axis2=-1) ** 2, axis=-1)) / n
    sphere = (2 * c * trace_sq - 2 * trace**2) / ((c + 2) * n)
    return sphere if probe == "sphere" else sphere * (c - n) / max(c - 1, 1)


def rows_are_independent(f: Callable, x, key: jax.Array, *, tolerance: float = 1e-6) -> jax.Array:
    """Whether each row of f(x) depends on its own row of x alone, seen from random cotangents; a boolean scalar.

    A cotangent on the even rows must give no gradient on the odd ones, and the reverse. False under train-mode
    BatchNorm, where the exact norm is under-reported and the projected one carries cross-sample terms.
    """
    flat = _Rows(x, "x")
    z, vjp = jax.vjp(f, x)
    outputs = _Rows(z, "f(x)", batch=flat.batch)
    v = sample_probes(key, flat.batch, outputs.size, 1, "gaussian")[:, 0]
    even = (jnp.arange(flat.batch) % 2 == 0)[:, None]
    norms = jnp.stack([_sum_sq(vjp(outputs.unravel(jnp.where(rows, v, 0)))) for rows in (even, ~even)])
    own = jnp.where(even[:, 0], norms[0], norms[1]).sum()
    cross = jnp.where(even[:, 0], norms[1], norms[0]).sum()
    return cross <= tolerance**2 * own


def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """One typed key for each of B samples: `fold_in` of the row, or the B keys given."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"key must be a typed key, as jax.random.key(seed) makes it; got {got}")
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key must be one key or {batch} keys, one for each sample; got shape {key.shape}")
    return key


def batch_size(x) -> int:
    """B of a pytree of float arrays [B, ...]; TypeError or ValueError where x is not one."""
    return _Rows(x, "x").batch


class _Rows:
    """How a pytree of arrays [B, ...] lies in one matrix [B, size]."""

    def __init__(self, tree, name: str, batch: int | None = None):
        self.leaves, self.treedef = jax.tree.flatten(tree)
        if not self.leaves:
            raise ValueError(f"{name} holds no array")
        for leaf in self.leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"{name} must be real floating point to be differentiated, got {leaf.dtype}")
        shapes = [leaf.shape for leaf in self.leaves]
        batches = {shape[0] if shape else None for shape in shapes} | ({batch} if batch is not None else set())
        if len(batches) != 1 or None in batches:
            wanted = "one leading batch axis" if batch is None else f"the batch size of x, {batch}, in front"
            raise ValueError(f"{name} must have {wanted}, got shapes {shapes}")
        self.batch = batches.pop()
        self.sizes = [leaf.size // max(self.batch, 1) for leaf in self.leaves]
        self.size = sum(self.sizes)

    def unravel(self, rows: jax.Array):
        """[B, size] -> the pytree."""
        parts, start = [], 0
        for leaf, size in zip(self.leaves, self.sizes, strict=True):
            part = rows[:, start : start + size].reshape(leaf.shape).astype(leaf.dtype)
            parts.append(part + jnp.zeros_like(leaf))  # inside shard_map: marks a constant as varying where the leaf is
            start += size
        return jax.tree.unflatten(self.treedef, parts)


def _sum_sq(tree) -> jax.Array:
    """Per-sample sum of squares, [B], at least in float32; never a norm, whose gradient at 0 is NaN."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        total = total + jnp.sum(wide**2, axis=tuple(range(1, leaf.ndim)))
    return total


def _sum_over_basis(norm_sq: Callable, rows: _Rows, chunk_size: int | None) -> jax.Array:
    """Sum of norm_sq(e) over the unit vectors of rows.size dimensions, the same e for every sample."""
    chunks = _chunks(jnp.eye(rows.size), max(rows.size, 1) if chunk_size is None else chunk_size)
    # [k, size] -> [B]
    sum_of = lambda chunk: jax.vmap(lambda e: norm_sq(jnp.broadcast_to(e, (rows.batch, rows.size))))(chunk).sum(0)
    if len(chunks) == 1:
        return sum_of(chunks[0])
    return jax.lax.map(jax.checkpoint(sum_of), chunks).sum(0)


def _chunks(directions: jax.Array, chunk_size: int) -> jax.Array:
    """[k, ...] as [chunks, chunk_size, ...], filled up with zeros, whose products are zero."""
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    chunk_size = max(1, min(chunk_size, len(directions)))
    fill = -len(directions) % chunk_size
    directions = jnp.pad(directions, ((0, fill),) + ((0, 0),) * (directions.ndim - 1))
    return directions.reshape(len(directions) // chunk_size, chunk_size, *directions.shape[1:])
