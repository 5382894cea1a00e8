"""Toom-Cook tiles of images: the transforms of input, kernel and output, and their transposes, for float32 on CPU.

    X^[a, t, :] = (B^T (x) B^T) tiles of x     W^[a] = (G (x) G) w     y = tiles (A^T (x) A^T) Y^[a, t, :]

a runs over n^2 products, t over tiles (sample, row, column) of m x m outputs. Each stage is one loop over memory, along
the channels, that XLA may not merge with the next: merged, it would compute each value several times.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jacreg_jax.convolution.form import Geometry
from jacreg_jax.convolution.toom_cook import Matrix, Transforms, transforms
from jacreg_jax.types import Array


class Tiles(NamedTuple):
    """How the outputs of a convolution of stride 1 and a square kernel lie in tiles of m x m."""

    geometry: Geometry
    products: int

    @property
    def matrices(self) -> Transforms:
        """Of one dimension."""
        return transforms(self.products, self.geometry.kernel[0])

    @property
    def side(self) -> int:
        """M, outputs of a tile in one dimension."""
        return self.products - self.geometry.kernel[0] + 1

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles in a column and in a row of the image; the last may stick out."""
        rows, columns = (-(-size // self.side) for size in self.geometry.output)
        return rows, columns

    def of_input(self, x: Array) -> Array:
        """X^: [B, H, W, C] -> [n^2, B tiles, C]."""
        n, m, (down, across) = self.products, self.side, self.counts
        batch, _, width, channels = x.shape
        low, _ = self.geometry.padding[1]
        read = across * m + n - m
        x = _pad(x, 2, low, read - width - low)
        x = _rows(_band(self.matrices.input, self.geometry.input[0], m, down, self.geometry.padding[0][0]), x)
        x = jnp.swapaxes(x.reshape(batch, n, down, read, channels), 0, 1)
        step = m * (across - 1) + 1
        x = _combine(self.matrices.input, [x[:, :, :, v : v + step : m] for v in range(n)], 1)
        return x.reshape(n * n, -1, channels)

    def to_input(self, spread: Array, batch: int) -> Array:
        """The transpose of of_input: [n^2, B tiles, C] -> [B, H, W, C]."""
        n, m, (down, across) = self.products, self.side, self.counts
        (top, _), (left, _) = self.geometry.padding
        height, width = self.geometry.input
        channels = spread.shape[-1]
        spread = spread.reshape(n, n, batch, down, across, channels)
        back = self.matrices.input.T
        columns = _alone(lambda s: _combine(back, [s[:, v] for v in range(n)], -2), spread)
        image = _alone(lambda s: _overlap_add(s, 3, m, left, width), columns).reshape(n, batch, down, width * channels)
        rows = _alone(lambda s: _combine(back, [s[u] for u in range(n)], 2), image)
        return _alone(lambda s: _overlap_add(s, 1, m, top, height), rows).reshape(batch, height, width, channels)

    def of_output(self, y: Array) -> Array:
        """G^, the transpose of to_output: [B, H', W', O] -> [n^2, B tiles, O]."""
        n, m, (down, across) = self.products, self.side, self.counts
        batch, height, width, features = y.shape
        y = _pad(y, 2, 0, across * m - width)
        back = self.matrices.output.T
        y = _rows(_band(back, height, m, down, 0), y)
        y = jnp.swapaxes(y.reshape(batch, n, down, across, m, features), 0, 1)
        return _combine(back, [y[..., q, :] for q in range(m)], 1).reshape(n * n, -1, features)

    def to_output(self, products: Array, batch: int) -> Array:
        """Y^ -> y: [n^2, B tiles, O] -> [B, H', W', O]."""
        n, m, (down, across) = self.products, self.side, self.counts
        height, width = self.geometry.output
        features = products.shape[-1]
        products = products.reshape(n, n, batch, down, across, features)
        forth = self.matrices.output
        columns = _alone(lambda p: _combine(forth, [p[:, v] for v in range(n)], -2), products)
        columns = columns.reshape(n, batch, down, across * m * features)

        def rows(z: Array) -> Array:
            y = _combine(forth, [z[u] for u in range(n)], 2).reshape(batch, down * m, across * m, features)
            return y[:, :height, :width]

        return _alone(rows, columns)

    def of_kernel(self, w: Array) -> Array:
        """W^: [k, k, C, O] -> [n^2, C, O]."""
        both = np.kron(self.matrices.kernel, self.matrices.kernel)
        return jnp.dot(both.astype(w.dtype), w.reshape(both.shape[1], -1)).reshape(-1, *w.shape[2:])

    def to_kernel(self, products: Array) -> Array:
        """The transpose of of_kernel: [n^2, C, O] -> [k, k, C, O]."""
        both = np.kron(self.matrices.kernel, self.matrices.kernel).T.astype(products.dtype)
        w = jnp.dot(both, products.reshape(both.shape[1], -1))
        return w.reshape(*self.geometry.kernel, *products.shape[1:])


def _alone(stage: Callable[[Array], Array], x: Array) -> Array:
    """A stage as a call of its own: XLA drops optimization barriers before it fuses, but not the border of a call."""
    with set_xla_metadata(inlineable="false"):
        return jax.jit(stage)(x)


def _combine(matrix: Matrix, parts: list[Array], axis: int) -> Array:
    """sum_u matrix[:, u] parts[u] along a new axis."""
    shape = [1] * (parts[0].ndim + 1)
    shape[axis] = len(matrix)
    terms = []
    for column, part in zip(matrix.T, parts, strict=True):
        part = jnp.expand_dims(part, axis)
        terms.append(part if np.all(column == 1) else column.astype(part.dtype).reshape(shape) * part)
    return sum(terms[1:], terms[0])


def _band(matrix: Matrix, size: int, m: int, tiles: int, low: int) -> Matrix:
    """[n tiles, size]: the matrix [n, k] at row m i - low of every tile i, cut to what the image has."""
    n, k = matrix.shape
    band = np.zeros((n, tiles, size))
    for i in range(tiles):
        for u in range(k):
            if 0 <= (row := m * i + u - low) < size:
                band[:, i, row] = matrix[:, u]
    return band.reshape(n * tiles, size)


def _rows(band: Matrix, x: Array) -> Array:
    """[B, H, W, C] -> [B, n tiles, W C]: a matrix product of every image, which absorbs padding and ragged tiles."""
    x = x.reshape(*x.shape[:2], -1)
    many = jnp.broadcast_to(band.astype(x.dtype), (x.shape[0], *band.shape))
    return lax.dot_general(many, x, (((2,), (1,)), ((0,), (0,))))


def _overlap_add(x: Array, axis: int, m: int, low: int, size: int) -> Array:
    """[..., tiles, n, ...] at axis and axis + 1 -> [..., size, ...]: tile i begins at m i - low."""
    tiles, n = x.shape[axis : axis + 2]
    image: Any = 0.0
    for begin in range(0, n, m):  # parts of m values, each without overlap
        part = lax.slice_in_dim(x, begin, min(begin + m, n), axis=axis + 1)
        part = _pad(part, axis + 1, 0, m - part.shape[axis + 1])
        part = part.reshape(*x.shape[:axis], tiles * m, *x.shape[axis + 2 :])
        image = image + _pad(part, axis, begin - low, low + size - begin - tiles * m)
    return image


def _pad(x: Array, axis: int, low: int, high: int) -> Array:
    """Zeros before and after, or less of the array where they are negative."""
    if not low and not high:
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])
