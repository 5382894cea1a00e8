"""The three partial gradients as matmuls on Toom-Cook tiles: a quarter to a third of the products, in float32.

    T(x, w, g) = sum_{a, t} X^[a, t, :] W^[a] G^[a, t, :]^T

with a over n^2 products and t over tiles. The forms share their transforms: X^ of the forward pass is the X^ of the
kernel's gradient, and G^ that of both gradients, computed once in a program. The sums of a tile have coefficients, so
that rounding is three to ten times that of a plain sum of products; docs/performance.md has a table.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jacreg_jax.convolution.blocks import map_blocks, sum_blocks
from jacreg_jax.convolution.form import Geometry, Role, Shape, channels_of, shape_of
from jacreg_jax.convolution.lax_form import transposed
from jacreg_jax.convolution.space_to_depth import coarse_image, coarse_kernel, unstrided
from jacreg_jax.convolution.tiles import Tiles
from jacreg_jax.convolution.toom_cook import POINTS
from jacreg_jax.types import Array

_BLOCK_BYTES = 2**28  # of the largest array of tiles
_LEAST_TILES = 20  # measured: with fewer, im2col is as fast


def covers(a: Shape, b: Shape, dtype: Any, *, result: Role, geometry: Geometry, precision: Any) -> bool:
    """Whether tiles pay: float32, 32 channels or more on both sides, 4 x 4 outputs or more, no exact sums wanted.

    Kernels are 3x3 and 5x5 of stride 1, and 5x5 and 6x6 of stride 2, which are 3x3 on four times the channels. For few
    tiles the transform of the kernel would cost more than it saves.
    """
    is_unstrided = geometry.strides == (1, 1) and geometry.kernel in ((3, 3), (5, 5))
    is_strided = geometry.strides == (2, 2) and geometry.kernel in ((5, 5), (6, 6))
    is_wide = min(channels_of(result, a, b)) >= 32 and min(geometry.output) >= 4
    if not (is_unstrided or is_strided) or not is_wide or dtype != jnp.float32 or wants_exact_sums(precision):
        return False
    rows, columns = tiles_of(unstrided(geometry)).counts
    batch = (b if result == "input" else a)[-4]
    return batch * rows * columns >= _LEAST_TILES


def wants_exact_sums(precision: Any) -> bool:
    """Whether a precision, as lax takes it, asks for more than the default."""
    pair = precision if isinstance(precision, tuple) else (precision,)
    return any(p not in (None, lax.Precision.DEFAULT, "default", "fastest", "bfloat16") for p in pair)


def toom_cook_form(a: Array, b: Array, *, result: Role, geometry: Geometry) -> Array:
    """One of the three forms, of any stride, over leading dimensions by vmap."""
    if a.ndim > 4:
        return jax.vmap(lambda a, b: toom_cook_form(a, b, result=result, geometry=geometry))(a, b)
    if geometry.strides == (1, 1):
        return _FORMS[result](a, b, geometry)
    image = lambda x: coarse_image(x, geometry)
    kernel = lambda w: coarse_kernel(w, geometry)
    if result == "output":
        return _output(image(a), kernel(b), unstrided(geometry))
    shape = shape_of(result, geometry, a.shape, b.shape)
    if result == "input":
        return transposed(image, shape, _input(kernel(a), b, unstrided(geometry)))
    return transposed(kernel, shape, _kernel(image(a), b, unstrided(geometry)))


def _output(x: Array, w: Array, geometry: Geometry) -> Array:
    """y = to_output(X^ W^)."""
    tiles = tiles_of(geometry)
    kernel = tiles.of_kernel(w)
    block = lambda x: tiles.to_output(jnp.einsum("atc,aco->ato", tiles.of_input(x), kernel), len(x))
    return map_blocks(block, _block_size(tiles, *w.shape[2:]), x)


def _input(w: Array, g: Array, geometry: Geometry) -> Array:
    """dx = to_input(G^ W^^T)."""
    tiles = tiles_of(geometry)
    kernel = tiles.of_kernel(w)
    block = lambda g: tiles.to_input(jnp.einsum("ato,aco->atc", tiles.of_output(g), kernel), len(g))
    return map_blocks(block, _block_size(tiles, *w.shape[2:]), g)


def _kernel(x: Array, g: Array, geometry: Geometry) -> Array:
    """dw = to_kernel(X^^T G^)."""
    tiles = tiles_of(geometry)
    block = lambda x, g: jnp.einsum("atc,ato->aco", tiles.of_input(x), tiles.of_output(g))
    return tiles.to_kernel(sum_blocks(block, _block_size(tiles, x.shape[-1], g.shape[-1]), x, g))


_FORMS: dict[Role, Callable[[Array, Array, Geometry], Array]] = {"output": _output, "input": _input, "kernel": _kernel}


def _block_size(tiles: Tiles, channels: int, features: int) -> int:
    """Samples whose tiles stay within the limit."""
    rows, columns = tiles.counts
    return max(1, _BLOCK_BYTES // (4 * tiles.products**2 * rows * columns * max(channels, features)))


def tiles_of(geometry: Geometry) -> Tiles:
    """The tiles with the fewest products; 7 in a dimension round too much for five taps."""
    candidates = [Tiles(geometry, n) for n in POINTS if n <= 6 or geometry.kernel[0] == 3]
    return min(candidates, key=lambda tiles: tiles.products**2 * tiles.counts[0] * tiles.counts[1])
