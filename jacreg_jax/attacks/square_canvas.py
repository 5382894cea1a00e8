"""How samples lie on images for Square, and the windows that it draws there."""

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.attacks.result import Norm
from jacreg_jax.types import Array

Sides: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"  # of the square of every query

# queries after which the share of pixels in a square is halved
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Canvas(NamedTuple):
    """How samples lie on images: [H, W] and channels; what is no image is a row, or is filled up to a square."""

    sample: tuple[int, ...]  # shape of one
    image: tuple[int, int]
    channels: int

    @property
    def is_image(self) -> bool:
        """Whether neighbours in the sample are neighbours here, all of them its own."""
        return len(self.sample) in (2, 3) and self.image == self.sample[:2]

    @classmethod
    def of(cls, x: Array, norm: Norm) -> "Canvas":
        """In L2 and L1 at least 5 x 5, the least that their grid of bumps needs."""
        sample = x.shape[1:]
        if len(sample) in (2, 3):
            image, channels = (sample[0], sample[1]), sample[2] if len(sample) == 3 else 1
        else:
            size = math.prod(sample)
            side = math.ceil(math.sqrt(size))
            image, channels = ((1, size) if norm == "linf" else (side, side)), 1
        if norm != "linf":
            image = (max(image[0], 5), max(image[1], 5))
        return cls(sample, image, channels)

    def paint(self, delta: Array) -> Array:
        """[B, ...] -> [B, H, W, C]."""
        if len(self.sample) in (2, 3):
            height, width = (n - m for n, m in zip(self.image, self.sample, strict=False))
            delta = delta.reshape(len(delta), *self.sample[:2], self.channels)
            return jnp.pad(delta, ((0, 0), (0, height), (0, width), (0, 0)))
        flat = delta.reshape(len(delta), -1)
        missing = math.prod(self.image) - flat.shape[1]
        return jnp.pad(flat, ((0, 0), (0, missing))).reshape(len(delta), *self.image, 1)

    def read(self, images: Array) -> Array:
        """The inverse of paint."""
        if len(self.sample) in (2, 3):
            return images[:, : self.sample[0], : self.sample[1]].reshape(len(images), *self.sample)
        return images.reshape(len(images), -1)[:, : math.prod(self.sample)].reshape(len(images), *self.sample)


def sizes_of(num_queries: int, initial_share: float, image: tuple[int, int], norm: Norm) -> Sides:
    """Side of the square of every query."""
    share = initial_share / 2.0 ** np.searchsorted(_HALVINGS, np.arange(num_queries), side="left")
    if min(image) == 1:  # a row: the window is a stretch of it
        return np.maximum(np.round(share * max(image)).astype(int), 1)
    sides = np.round(np.sqrt(share * image[0] * image[1])).astype(int)
    sides = np.maximum(sides, 1) if norm == "linf" else np.maximum(sides, 3) | 1  # odd ones in L2
    return np.asarray(np.minimum(sides, min(image)))


def window_at(key: Array, side: Array, canvas: Canvas) -> tuple[Array, Array]:
    """[H, W] bool: a square of this side at a random place; and its upper left corner.

    On images the last place of each axis is left out, as in the reference code; a row of features has all of them.
    """
    size = jnp.asarray(canvas.image, jnp.int32)
    places = size - side + (0 if canvas.is_image else 1)
    corner = jax.random.randint(key, (2,), 0, jnp.maximum(places, 1), jnp.int32)
    at = [jnp.arange(n, dtype=jnp.int32) for n in canvas.image]
    inside = [(a >= c) & (a < c + side) for a, c in zip(at, corner, strict=True)]
    return inside[0][:, None] & inside[1][None, :], corner


def signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """+-1 by a fair coin."""
    return jax.random.rademacher(key, shape, dtype)
