"""What corruptions are made of: kernels and blurs, fractal noise, displacement, blocks of cosines."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.types import Array

# JPEG's table for luminance (ITU-T T.81, Table K.1)
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)


def gaussian(deviation: float) -> "np.ndarray":
    """[k] weights of a Gaussian out to three deviations; one weight where it is narrow."""
    reach = max(0, round(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(deviation, 1e-6)) ** 2)
    return weights / weights.sum()


def disk(radius: float, smoothing: float, reach: int) -> "np.ndarray":
    """[2 reach + 1, 2 reach + 1] weights of a disk, smoothed by a Gaussian."""
    places = np.arange(-reach, reach + 1)
    inside = (places[:, None] ** 2 + places[None] ** 2 <= radius**2).astype(np.float64)
    narrow = np.exp(-0.5 * (places / max(smoothing, 1e-6)) ** 2)
    narrow /= narrow.sum()
    rows = np.apply_along_axis(np.convolve, 0, inside, narrow, mode="same")
    weights = np.apply_along_axis(np.convolve, 1, rows, narrow, mode="same")
    return weights / weights.sum()


def streak(length: Array, deviation: Array, angle: Array, reach: int) -> Array:
    """[2 reach + 1, 2 reach + 1] weights along a line through the middle out to a length, falling as a Gaussian."""
    places = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
    along = places[None] * jnp.cos(angle) + places[:, None] * jnp.sin(angle)
    across = places[:, None] * jnp.cos(angle) - places[None] * jnp.sin(angle)
    weights = jnp.exp(-0.5 * (along / deviation) ** 2) * jnp.maximum(1 - jnp.abs(across), 0)
    weights = jnp.where(jnp.abs(along) <= length, weights, 0.0)
    return weights / weights.sum()


def blurred(image: Array, kernel: Any) -> Array:
    """[H, W, C] under a kernel [k, k], the border repeated."""
    kernel = jnp.asarray(kernel, image.dtype)
    up, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    planes = jnp.moveaxis(jnp.pad(image, ((up, up), (left, left), (0, 0)), mode="edge"), -1, 0)[:, None]
    return jnp.moveaxis(jax.lax.conv_general_dilated(planes, kernel[None, None], (1, 1), "VALID")[:, 0], 0, -1)


def smooth(field: Array, deviation: float) -> Array:
    """[n, H, W] under a Gaussian, the border repeated."""
    weights = gaussian(deviation)
    return jnp.moveaxis(blurred(blurred(jnp.moveaxis(field, 0, -1), weights[:, None]), weights[None]), -1, 0)


def plasma(key: Array, shape: tuple[int, ...], decay: Any) -> Array:
    """[H, W] of fractal noise in [0, 1]: octaves of random fields, each twice as fine and `decay` times as weak."""
    total, cells, octave = jnp.zeros(shape), 2, 0
    while cells <= 2 * max(shape):
        coarse = jax.random.uniform(jax.random.fold_in(key, octave), (cells, cells))
        total = total + jax.image.resize(coarse, shape, "linear") / decay**octave
        cells, octave = 2 * cells, octave + 1
    low, high = total.min(), total.max()
    return (total - low) / jnp.maximum(high - low, 1e-6)


def moved(image: Array, displacement: Array) -> Array:
    """[H, W, C] whose pixels come from places [2, H, W] away, between pixels linearly, the border repeated."""
    height, width, _ = image.shape
    rows, columns = jnp.meshgrid(
        *(jnp.arange(side, dtype=displacement.dtype) for side in (height, width)), indexing="ij"
    )
    places = [rows + displacement[0], columns + displacement[1]]
    take = lambda channel: jax.scipy.ndimage.map_coordinates(channel, places, order=1, mode="nearest")
    return jax.vmap(take, in_axes=-1, out_axes=-1)(image)


def magnified(image: Array, zoom: Array) -> Array:
    """The middle of [H, W, C], as large as the whole."""
    size = jnp.asarray(image.shape[:2], image.dtype)
    scale, shift = jnp.full(2, zoom, image.dtype), (1 - zoom) * size / 2
    return jax.image.scale_and_translate(image, image.shape, (0, 1), scale, shift, method="linear", antialias=False)


def and_zoomed(images: tuple[Array, Array], zoom_weight: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
    """One more zoom in the sum; a function with a name compiles once."""
    (image, total), (zoom, weight) = images, zoom_weight
    return (image, total + weight * magnified(image, zoom)), None


def resized(image: Array, height: int, width: int, method: str) -> Array:
    """[height, width, C]."""
    return jax.image.resize(image, (height, width, image.shape[-1]), method)


def quantization(quality: int) -> "np.ndarray":
    """[8, 8] steps of JPEG's rounding at a quality from 1 to 100."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return np.clip(np.floor((LUMINANCE * scale + 50) / 100), 1, 255)


def jpeg(image: Array, steps: Array) -> Array:
    """[H, W, C] in [0, 1], in blocks of 8 x 8 cosines, rounded to multiples of steps [8, 8]; each channel alike."""
    cosines, steps = jnp.asarray(_cosines(), image.dtype), steps[None, :, None, :, None]
    height, width, channels = image.shape
    padded = jnp.pad(image, ((0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    blocks = (255 * padded - 128).reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8, channels)
    coefficients = jnp.einsum("ui,rickd,vk->rucvd", cosines, blocks, cosines)
    rounded = jnp.round(coefficients / steps) * steps
    pixels = jnp.einsum("ui,rucvd,vk->rickd", cosines, rounded, cosines)
    return ((pixels.reshape(padded.shape) + 128) / 255)[:height, :width]


def _cosines() -> "np.ndarray":
    """[8, 8] the orthonormal cosine transform."""
    u, i = np.arange(8)[:, None], np.arange(8)[None]
    return np.where(u == 0, np.sqrt(1 / 8), 0.5) * np.cos((2 * i + 1) * u * np.pi / 16)
