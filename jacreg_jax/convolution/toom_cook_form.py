"""The three partial gradients as matmuls on Toom-Cook tiles: 2.25 to 4 times fewer products than taps, in float32.

    T(x, w, g) = sum_{a, t} X^[a, t, :] W^[a] G^[a, t, :]^T

with a over n^2 products and t over tiles. The forms share their transforms: X^ of the forward pass is the X^ of the
kernel's gradient, and G^ that of both gradients, computed once in a program. The sums of a tile have coefficients, so
that rounding is some three times that of a plain sum of products (five with n = 7); see docs/performance.md.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jacreg_jax.convolution.blocks import map_blocks, sum_blocks
from jacreg_jax.convolution.form import Geometry, Role, Shape, channels_of
from jacreg_jax.convolution.tiles import Tiles
from jacreg_jax.convolution.toom_cook import POINTS
from jacreg_jax.types import Array

_BLOCK_BYTES = 2**28  # of the largest array of tiles


def covers(a: Shape, b: Shape, dtype: Any, *, result: Role, geometry: Geometry, precision: Any) -> bool:
    """Whether tiles pay: float32, 3x3 or 5x5 of stride 1, 32 channels or more on both sides, no exact sums wanted."""
    is_tiled = geometry.kernel in ((3, 3), (5, 5)) and geometry.strides == (1, 1) and min(geometry.output) >= 4
    is_wide = min(channels_of(result, a, b)) >= 32
    return is_tiled and is_wide and dtype == jnp.float32 and not wants_exact_sums(precision)


def wants_exact_sums(precision: Any) -> bool:
    """Whether a precision, as lax takes it, asks for more than the default."""
    pair = precision if isinstance(precision, tuple) else (precision,)
    return any(p not in (None, lax.Precision.DEFAULT, "default", "fastest", "bfloat16") for p in pair)


def toom_cook_form(a: Array, b: Array, *, result: Role, geometry: Geometry) -> Array:
    """y = to_output(X^ W^), dx = to_input(G^ W^^T), dw = to_kernel(X^^T G^), over leading dimensions by vmap."""
    if a.ndim > 4:
        return jax.vmap(lambda a, b: toom_cook_form(a, b, result=result, geometry=geometry))(a, b)
    tiles = tiles_of(geometry)
    rows, columns = tiles.counts
    sample = 4 * tiles.products**2 * rows * columns * max(channels_of(result, a.shape, b.shape))
    size = max(1, _BLOCK_BYTES // sample)
    if result == "kernel":
        product = lambda x, g: jnp.einsum("atc,ato->aco", tiles.of_input(x), tiles.of_output(g))
        return tiles.to_kernel(sum_blocks(product, size, a, b))
    if result == "output":
        kernel = tiles.of_kernel(b)
        forth = lambda x: tiles.to_output(jnp.einsum("atc,aco->ato", tiles.of_input(x), kernel), len(x))
        return map_blocks(forth, size, a)
    kernel = tiles.of_kernel(a)
    back = lambda g: tiles.to_input(jnp.einsum("ato,aco->atc", tiles.of_output(g), kernel), len(g))
    return map_blocks(back, size, b)


def tiles_of(geometry: Geometry) -> Tiles:
    """The tiles with the fewest products; 7 in a dimension round too much for five taps."""
    candidates = [Tiles(geometry, n) for n in POINTS if n <= 6 or geometry.kernel[0] == 3]
    return min(candidates, key=lambda tiles: tiles.products**2 * tiles.counts[0] * tiles.counts[1])
