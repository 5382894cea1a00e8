"""The three partial gradients as matmuls on patches, a block of samples at a time: on CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax.convolution.blocks import map_blocks, sum_blocks
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

    return map_blocks(block, tiling.block_size(x.dtype), x)


def _matmul_input(w: Array, g: Array, *, geometry: Geometry, precision: Any) -> Array:
    tiling = Tiling.of(geometry, *w.shape[2:])
    band, wide = tiling.band(w), _wide(w.dtype)  # overlapping patches are added

    def block(g: Array) -> Array:
        patches = jnp.dot(tiling.tile(g), band.T, precision=precision, preferred_element_type=wide)
        return transposed(tiling.patches, (g.shape[0], *geometry.input, w.shape[2]), patches).astype(w.dtype)

    return map_blocks(block, tiling.block_size(w.dtype), g)


def _matmul_kernel(x: Array, g: Array, *, geometry: Geometry, precision: Any) -> Array:
    tiling = Tiling.of(geometry, x.shape[-1], g.shape[-1])
    wide = _wide(x.dtype)  # blocks are added

    def block(x: Array, g: Array) -> Array:  # (g^T P)^T, the faster order
        return jnp.dot(tiling.tile(g).T, tiling.patches(x), precision=precision, preferred_element_type=wide)

    band = sum_blocks(block, tiling.block_size(x.dtype), x, g).T
    return transposed(tiling.band, (*geometry.kernel, *tiling.channels), band).astype(x.dtype)


def _wide(dtype: Any) -> Any:
    """What sums of products are kept in, so that nothing is rounded in between."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


_MATMUL_FORMS: dict[Role, Callable[..., Array]] = {
    "output": _matmul_output,
    "input": _matmul_input,
    "kernel": _matmul_kernel,
}
