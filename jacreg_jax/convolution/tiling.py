"""How patches of an image lie in a matrix: im2col, or bands of several output columns where channels are few."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jacreg_jax.convolution.form import Geometry
from jacreg_jax.types import Array


class Tiling(NamedTuple):
    """Row-tiled Toeplitz form of a convolution: t output columns at once from the k rows of columns that they see.

    patches(x) [rows, K] @ band(w) [K, t O], K = k_h ((t - 1) s + k_w) C. Against im2col, which is t = 1, the band costs
    ((t - 1) s + k_w) / k_w times the arithmetic and moves that over t of the patch bytes: it pays for few channels,
    whose matmuls would be too thin to be bound by arithmetic.
    """

    geometry: Geometry
    channels: tuple[int, int]
    columns: int

    @classmethod
    def of(cls, geometry: Geometry, channels: int, features: int) -> "Tiling":
        """The tiling for C input and O output channels.

        t O of 24 or more fills the vector registers, t of k_w - 1 keeps the band below twice the arithmetic, and a
        divisor of the output's width leaves no column unused.
        """
        width = geometry.output[1]
        columns = 1
        if _is_narrow(channels, features):
            least = max(2, geometry.kernel[1] - 1, -(-24 // features))
            columns = next((t for t in range(least, 2 * least) if width % t == 0), least)
        return cls(geometry, (channels, features), min(width, columns))

    @property
    def tiles(self) -> int:
        """Of t columns in a row of the output."""
        return -(-self.geometry.output[1] // self.columns)

    @property
    def width(self) -> int:
        """Input columns that a tile sees."""
        return (self.columns - 1) * self.geometry.strides[1] + self.geometry.kernel[1]

    def block_size(self, dtype: Any) -> int:
        """Samples whose patches stay in cache, and outweigh the kernel that every block reads again."""
        (kh, kw), (out_h, _) = self.geometry.kernel, self.geometry.output
        sample = out_h * self.tiles * kh * self.width * self.channels[0]
        kernel = kh * kw * self.channels[0] * self.channels[1]
        limit = 2**23 if _is_narrow(*self.channels) else 2**22
        return max(1, max(limit // dtype.itemsize, 2 * kernel) // sample)

    def patches(self, x: Array) -> Array:
        """[n, H, W, C] -> [n H' tiles, k_h width C]."""
        (kh, _), (sh, sw), (out_h, _) = self.geometry.kernel, self.geometry.strides, self.geometry.output
        step = self.columns * sw
        read = ((out_h - 1) * sh + kh, (self.tiles - 1) * step + self.width)
        sizes = zip(self.geometry.input, read, self.geometry.padding, strict=True)
        pads = [(low, n - size - low, 0) for size, n, (low, _) in sizes]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
        rows = [slice(u, u + (out_h - 1) * sh + 1, sh) for u in range(kh)]
        if self.columns == 1:
            across = [slice(v, v + (self.tiles - 1) * sw + 1, sw) for v in range(self.width)]
            x = jnp.concatenate([x[:, row, column] for row in rows for column in across], axis=-1)
            return x.reshape(-1, x.shape[-1])
        x = jnp.stack([x[:, :, j * step : j * step + self.width] for j in range(self.tiles)], axis=2)
        x = jnp.stack([x[:, row] for row in rows], axis=3)
        return x.reshape(-1, kh * self.width * x.shape[-1])

    def band(self, w: Array) -> Array:
        """[k_h, k_w, C, O] -> [k_h width C, t O]: the kernel at each of the t places it takes in the width."""
        kh, kw, channels, features = w.shape
        if self.columns == 1:
            return w.reshape(-1, features)
        t, v, p = np.ogrid[: self.columns, :kw, : self.width]
        places = (p == t * self.geometry.strides[1] + v).astype(w.dtype)
        band = jnp.einsum("tvp,uvco->upcto", places, w, precision=lax.Precision.HIGHEST)
        return band.reshape(kh * self.width * channels, self.columns * features)

    def tile(self, y: Array) -> Array:
        """[n, H', W', O] -> [n H' tiles, t O], columns filled up with zeros."""
        fill = self.tiles * self.columns - self.geometry.output[1]
        return jnp.pad(y, ((0, 0), (0, 0), (0, fill), (0, 0))).reshape(-1, self.columns * y.shape[-1])

    def untile(self, y: Array) -> Array:
        """The inverse of tile."""
        out_h, out_w = self.geometry.output
        return y.reshape(-1, out_h, self.tiles * self.columns, self.channels[1])[:, :, :out_w]


def _is_narrow(channels: int, features: int) -> bool:
    return channels * features <= 256
