"""A convolution of stride s as one of stride 1: s x s pixels become channels, y = conv(S x, S w).

S x [B, H/s, W/s, s s C] holds a coarse pixel's values, and S w [ceil(k/s), ceil(k/s), s s C, O] the kernel's, filled up
with zeros. Both are linear, so that the other two forms are dx = S^T (input form) and dw = S^T (kernel form).
"""

import jax.numpy as jnp
from jax import lax

from jacreg_jax.convolution.form import Geometry
from jacreg_jax.types import Array


def unstrided(geometry: Geometry) -> Geometry:
    """The geometry of the convolution of S x and S w: no padding, stride 1."""
    down, across = (-(-k // s) for k, s in zip(geometry.kernel, geometry.strides, strict=True))
    rows, columns = geometry.output
    return Geometry((rows + down - 1, columns + across - 1), (down, across), (1, 1), ((0, 0), (0, 0)))


def coarse_image(x: Array, geometry: Geometry) -> Array:
    """S x, of x [B, H, W, C]."""
    (height, width), (s, t) = unstrided(geometry).input, geometry.strides
    lows = [low for low, _ in geometry.padding]
    highs = [n - size - low for n, size, low in zip((s * height, t * width), x.shape[1:3], lows, strict=True)]
    pads = [(0, 0, 0), *((low, high, 0) for low, high in zip(lows, highs, strict=True)), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), pads).reshape(len(x), height, s, width, t, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, -1)


def coarse_kernel(w: Array, geometry: Geometry) -> Array:
    """S w, of w [k_h, k_w, C, O]."""
    (down, across), (s, t) = unstrided(geometry).kernel, geometry.strides
    fill = s * down - w.shape[0], t * across - w.shape[1]
    w = jnp.pad(w, ((0, fill[0]), (0, fill[1]), (0, 0), (0, 0)))
    w = w.reshape(down, s, across, t, *w.shape[2:]).transpose(0, 2, 1, 3, 4, 5)
    return w.reshape(down, across, -1, w.shape[-1])
