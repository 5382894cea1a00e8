"""The batch mean of ||J||_F^2 as a loss needs it: its gradient is accumulated product by product."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jacreg_jax import checks
from jacreg_jax.explicit_axes import brought, here
from jacreg_jax.manual_axes import axes_of
from jacreg_jax.probes import Probe, sample_probes
from jacreg_jax.rows import Rows, at_least_float32, chunked, products_at_once, sum_sq
from jacreg_jax.types import Array, Float, PyTree

VJP = Callable[..., Any]  # of ``z, vjp = jax.vjp(f, x)``
MeanAndNorms = tuple[Float[Array, ""], Float[Array, " B"]]


def mean_projected(
    z: PyTree, vjp: VJP, x: PyTree, key: jax.Array, *, num_projections: int, probe: Probe, chunk_size: int | None
) -> MeanAndNorms:
    """Batch mean of (1/n) sum_mu ||J^T v_mu||^2, and the [B] estimates for statistics, without a gradient.

    Arguments and errors as `projected_from_vjp`; chunk_size as `accumulated_mean`.
    """
    inputs = Rows(x, "x")
    outputs = Rows(z, "f(x)", batch=inputs.batch)
    probes = sample_probes(key, outputs.batch, outputs.size, num_projections, probe)
    product = lambda v: sum_sq(vjp(outputs.unravel(v)))
    at_once = chunk_size, products_at_once(inputs, outputs, num_projections)
    mean, norms = accumulated_mean(product, jnp.moveaxis(probes, 1, 0), sum_sq(_zeros(x)), *at_once)
    return mean / num_projections, norms / num_projections


def mean_exact(z: PyTree, vjp: VJP, x: PyTree, key: Any = None, *, chunk_size: int | None) -> MeanAndNorms:
    """Batch mean of sum_c ||J^T e_c||^2, and the [B] norms for statistics, without a gradient.

    Arguments and errors as `exact_from_vjp`; chunk_size as `accumulated_mean`. It draws nothing from the key.
    """
    inputs = Rows(x, "x")
    outputs = Rows(z, "f(x)", batch=inputs.batch)
    basis, zeros, product = jnp.arange(outputs.size), sum_sq(_zeros(x)), lambda index: sum_sq(vjp(outputs.unit(index)))
    at_once = chunk_size, products_at_once(inputs, outputs, outputs.size)
    return accumulated_mean(product, basis, zeros, *at_once, fill_value=outputs.size)


def accumulated_mean(
    product: Callable[[Array], Array],
    directions: Array,
    zero_norms: Float[Array, " B"],
    chunk_size: int | None,
    elsewhere: int,
    fill_value: int = 0,
) -> MeanAndNorms:
    """Mean over the batch of sum_k product(directions[k]), [B] each, and the sums without a gradient.

    The gradient of the mean is accumulated chunk by chunk during the forward pass: the memory of one chunk, and no
    product computed twice. It is a `custom_vjp`: reverse mode and forward over reverse, but no plain `jax.jvp` where
    there is more than one chunk.

    Args:
        product: direction -> [B].
        directions: [k, ...].
        zero_norms: [B] zeros, varying over the devices of a shard_map as the norms do.
        chunk_size: directions at once. None: 1 on CPU, where a product fills the cache.
        elsewhere: the same on other backends: all of them, or as many as hold 2^24 entries of x or f(x).
        fill_value: a direction whose product is zero.

    Raises:
        ValueError: chunk_size below 1.
    """
    chunk_size = checks.optional_count("chunk_size", chunk_size)
    if chunk_size is None:
        chunk_size = 1 if jax.default_backend() == "cpu" else elsewhere
    if not len(directions):  # f(x) has no entries
        return jnp.mean(zero_norms), zero_norms
    chunks = chunked(directions, chunk_size, fill_value)
    norms_of = lambda chunk: jax.vmap(product)(chunk).sum(0)
    if chunks.shape[1] == 1:  # no axis of length 1 for the compiler to shuffle
        norms_of, chunks = product, chunks[:, 0]
    if len(chunks) == 1:
        norms = norms_of(chunks[0])
        return jnp.mean(norms), jax.lax.stop_gradient(norms)
    mean, norms = _sum_with_its_gradient(norms_of, chunks, zero_norms)
    return mean, jax.lax.stop_gradient(norms)


def _sum_with_its_gradient(norms_of: Callable[[Array], Array], chunks: Array, zero_norms: Array) -> MeanAndNorms:
    """Mean over the batch of the sum over the chunks, with the gradient made on the way; and the sums without."""
    closed = jax.make_jaxpr(norms_of)(chunks[0])
    jaxpr, held = closed.jaxpr, brought(closed.consts)
    is_inexact = [jnp.issubdtype(constant.dtype, jnp.inexact) for constant in held.arrays]
    inexact = [c for c, is_it in zip(held.arrays, is_inexact, strict=True) if is_it]
    others = [c for c, is_it in zip(held.arrays, is_inexact, strict=True) if not is_it]  # no tangent: integers, keys
    dtypes, batch = [c.dtype for c in inexact], zero_norms.shape[0]
    scale = 2.0 ** (batch - 1).bit_length()  # cotangents scale / B in [1, 2): 1 / B underflows in float16

    def norms_from(chunk: Array, inexact: list[Array], others: list[Array]) -> Array:
        """norms_of(chunk) with all that it closes over as arguments, as custom_vjp needs them."""
        left = iter(inexact), iter(others)
        constants = held.back([next(left[0] if is_it else left[1]) for is_it in is_inexact])
        norms: Array = jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(chunk)[0]
        return norms

    @jax.custom_vjp
    def total(inexact: list[Array], others: list[Array], chunks: Array, zero_norms: Array) -> MeanAndNorms:
        norms = jax.lax.map(lambda chunk: norms_from(chunk, inexact, others), chunks).sum(0)
        return jnp.mean(norms), norms

    def forward(
        inexact: list[Array], others: list[Array], chunks: Array, zero_norms: Array
    ) -> tuple[MeanAndNorms, list[Array]]:
        def add(carry: Any, chunk: Array) -> tuple[Any, None]:
            norms, vjp = jax.vjp(lambda inexact: norms_from(chunk, inexact, others), inexact)
            grads = brought(vjp(jnp.full_like(norms, scale / batch))[0]).arrays
            return jax.tree.map(lambda total, new: total + new.astype(total.dtype), carry, (norms, grads)), None

        (norms, grads), _ = jax.lax.scan(add, (zero_norms, jax.tree.map(_wide_zeros, inexact)), chunks)
        return (jnp.mean(norms), norms), grads

    def backward(grads: list[Array], cotangents: MeanAndNorms) -> tuple[Any, ...]:
        weight = cotangents[0] / scale
        scaled = [_times(weight, g).astype(dtype) for g, dtype in zip(grads, dtypes, strict=True)]
        lay = [s for s, is_it in zip(held.shardings, is_inexact, strict=True) if is_it]
        return held.gradients(scaled, lay), None, None, None

    total.defvjp(here(forward), here(backward))
    return total(inexact, others, chunks, zero_norms)


def _times(weight: Array, gradient: Array) -> Array:
    """Their product; a gradient that is summed over the devices already takes the mean of their weights, all equal."""
    summed = tuple(sorted(axes_of(weight) - axes_of(gradient), key=str))
    return (jax.lax.pmean(weight, summed) if summed else weight) * gradient


def _wide_zeros(constant: Array) -> Array:
    """Zeros in which gradients of the constant are summed: at least float32, cast once at the end."""
    return jnp.zeros_like(constant, dtype=at_least_float32(constant.dtype))


def _zeros(x: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, x)  # varying as x inside shard_map
