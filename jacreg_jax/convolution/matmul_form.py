"""The three partial gradients as matmuls on patches, a block of samples at a time: on CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jacreg_jax.convolution.form import Geometry, Role
from jacreg_jax.convolution.lax_form import transposed
from jacreg_jax.convolution.tiling import Tiling
from jacreg_jax.types import Array


def matmul_form(a: Array, b: Array, *, result: Role, geometry: Geometry, precision: Any) -> Array:
    """Matmuls on the patches of a block of samples at a time: y = P(x) w, dx = P^T(g w^T), dw = P(x)^T g."""
    form: Callable[..., Array] = partial(_MATMUL_FORMS[result], geometry=geometry, precision=precision)
    for _ in range(a.ndim - 4):
        form = jax.vmap(form)
    return form(a, b)


def _matmul_output(x: Array, w: Array, *, geometry: Geometry, precision: Any) -> Array:
    tiling = Tiling.of(geometry, *w.shape[2:])
    band = tiling.band(w)

    def block(x: Array) -> Array:
        return tiling.untile(jnp.dot(tiling.patches(x), band, precision=precision))

    return _map_blocks(block, tiling.block_size(x.dtype), x)


def _matmul_input(w: Array, g: Array, *, geometry: Geometry, precision: Any) -> Array:
    tiling = Tiling.of(geometry, *w.shape[2:])
    band = tiling.band(w)

    def block(g: Array) -> Array:
        patches = jnp.dot(tiling.tile(g), band.T, precision=precision)
        return transposed(tiling.patches, (g.shape[0], *geometry.input, w.shape[2]), patches)

    return _map_blocks(block, tiling.block_size(w.dtype), g)


def _matmul_kernel(x: Array, g: Array, *, geometry: Geometry, precision: Any) -> Array:
    tiling = Tiling.of(geometry, x.shape[-1], g.shape[-1])
    wide = x.dtype if jnp.finfo(x.dtype).bits >= 32 else jnp.float32  # sum over blocks without rounding in between

    def block(x: Array, g: Array) -> Array:  # (g^T P)^T, the faster order
        return jnp.dot(tiling.tile(g).T, tiling.patches(x), precision=precision, preferred_element_type=wide)

    band = _sum_blocks(block, tiling.block_size(x.dtype), x, g).T
    return transposed(tiling.band, (*geometry.kernel, *tiling.channels), band).astype(x.dtype)


_MATMUL_FORMS: dict[Role, Callable[..., Array]] = {
    "output": _matmul_output,
    "input": _matmul_input,
    "kernel": _matmul_kernel,
}


def _map_blocks(f: Callable[[Array], Array], size: int, x: Array) -> Array:
    """f, linear and row by row, on blocks of about this many samples."""
    (blocks,) = _blocks(size, x)
    y = f(blocks[0])[None] if len(blocks) == 1 else lax.map(f, blocks)
    return y.reshape(-1, *y.shape[2:])[: x.shape[0]]


def _sum_blocks(f: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """The sum of f over the blocks; f is zero on zeros."""
    blocks = _blocks(size, *arrays)
    total = f(*(a[0] for a in blocks))
    if len(blocks[0]) == 1:
        return total
    total, _ = lax.scan(lambda total, block: (total + f(*block), None), total, [a[1:] for a in blocks])
    return total


def _blocks(size: int, *arrays: Array) -> list[Array]:
    """Arrays [B, ...] as [blocks, n, ...], filled up with zeros where no near number of blocks divides B."""
    batch = arrays[0].shape[0]
    fewest = -(-batch // min(size, batch))
    blocks = next((k for k in range(fewest, min(2 * fewest, batch) + 1) if batch % k == 0), fewest)
    rows = -(-batch // blocks)
    fill = blocks * rows - batch
    if fill:
        arrays = tuple(jnp.pad(a, ((0, fill),) + ((0, 0),) * (a.ndim - 1)) for a in arrays)
    return [a.reshape(blocks, rows, *a.shape[1:]) for a in arrays]
