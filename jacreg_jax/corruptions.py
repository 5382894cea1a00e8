"""Common corruptions of images, drawn by code: noise, blur, weather and digital, each in five severities.

    evaluation.run_attack(corruptions.corruption("fog"), f, x, y, key, severity=3).success      # who is fooled by it
    corruptions.corrupted("fog", image, key, severity=3)                                        # [B, H, W, C]

Names, families and constants are those of CIFAR-10-C (Hendrycks, Dietterich 2019), in shares of the image's side where
they are lengths, of the shorter side where it is not square; but elastic_transform, a shift field alone, has its own,
pixelate rounds to the nearest number of pixels, and zoom_blur leaves the largest zoom out. The images are not that data
set's: the draws are others, and blurs end at the border by repeating it.
"""

import math
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax import checks
from jacreg_jax.concrete import look
from jacreg_jax.corruption_filters import (
    and_zoomed,
    blurred,
    disk,
    jpeg,
    moved,
    plasma,
    quantization,
    resized,
    smooth,
    streak,
)
from jacreg_jax.explicit_axes import automatic
from jacreg_jax.keys import sample_keys
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, Function

SEVERITIES = (1, 2, 3, 4, 5)
# by name: a constant for each severity
GAUSSIAN = (0.04, 0.06, 0.08, 0.09, 0.10)
SHOT = (500.0, 250.0, 100.0, 75.0, 50.0)
IMPULSE = (0.01, 0.02, 0.03, 0.05, 0.07)
DEFOCUS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))  # radius and smoothing at 32 pixels
MOTION = ((6.0, 1.0), (6.0, 1.5), (6.0, 2.0), (8.0, 2.0), (9.0, 2.5))  # reach and deviation at 32 pixels
ZOOM = (1.06, 1.11, 1.16, 1.21, 1.26)
FOG = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))  # amount, and how fast detail fades
BRIGHTNESS = (0.05, 0.10, 0.15, 0.20, 0.30)
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
ELASTIC, ELASTIC_WIDTH = (0.02, 0.03, 0.05, 0.07, 0.09), 0.06  # size and smoothness, in shares of a side
PIXELATE = (0.95, 0.9, 0.85, 0.75, 0.65)
JPEG = (80, 65, 58, 50, 40)

# each takes one image [H, W, C], its key, and its severity, which may be traced


def gaussian_noise(image: Array, key: Array, severity: Any) -> Array:
    """X + N(0, sigma^2).

    Example:
        >>> gaussian_noise(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    return image + _of(GAUSSIAN, severity) * jax.random.normal(key, image.shape, image.dtype)


def shot_noise(image: Array, key: Array, severity: Any) -> Array:
    """Photons counted: Poisson(c x) / c.

    Example:
        >>> shot_noise(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    c = _of(SHOT, severity)
    return (jax.random.poisson(key, c * image).astype(c.dtype) / c).astype(image.dtype)


def impulse_noise(image: Array, key: Array, severity: Any) -> Array:
    """A share of the values becomes black or white.

    Example:
        >>> impulse_noise(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    u, share = jax.random.uniform(key, image.shape), _of(IMPULSE, severity)
    return jnp.where(u < share / 2, 0.0, jnp.where(u < share, 1.0, image))


def defocus_blur(image: Array, key: Array, severity: Any) -> Array:
    """The mean over a disk of whole pixels; on images of less than 32 a side some of them are a single pixel.

    At 28 pixels severity 4 leaves the image as it is, at 8 every severity does.

    Example:
        >>> defocus_blur(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    del key
    scale = min(image.shape[:2]) / 32
    reach = max(1, math.ceil(scale * max(radius for radius, _ in DEFOCUS)))
    return blurred(image, _of([disk(scale * radius, scale * soft, reach) for radius, soft in DEFOCUS], severity))


def motion_blur(image: Array, key: Array, severity: Any) -> Array:
    """The mean along a line of a direction that is drawn, within 45 degrees of the horizontal.

    Example:
        >>> motion_blur(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    scale = min(image.shape[:2]) / 32
    reach, deviation = scale * _of(MOTION, severity)
    angle = jax.random.uniform(key, minval=-jnp.pi / 4, maxval=jnp.pi / 4)
    return blurred(image, streak(reach, deviation, angle, math.ceil(scale * max(r for r, _ in MOTION))))


def zoom_blur(image: Array, key: Array, severity: Any) -> Array:
    """The mean over the image and its zooms from 1 to a largest one, in steps of 0.01.

    Example:
        >>> zoom_blur(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    del key
    zooms = np.arange(1, max(ZOOM), 0.01)
    weights = jnp.where(zooms < _of(ZOOM, severity) - 1e-6, 1.0, 0.0)
    (_, total), _ = jax.lax.scan(and_zoomed, (image, image), (jnp.asarray(zooms, image.dtype), weights))
    return total / (weights.sum() + 1)


def fog(image: Array, key: Array, severity: Any) -> Array:
    """A cloud of fractal noise is added, and the sum scaled to the old maximum.

    Example:
        >>> fog(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    amount, decay = _of(FOG, severity)
    most = image.max()
    return (image + amount * plasma(key, image.shape[:2], decay)[..., None]) * most / (most + amount)


def brightness(image: Array, key: Array, severity: Any) -> Array:
    """The largest channel of every pixel grows by a constant, at the same hue.

    Example:
        >>> brightness(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    del key
    value = image.max(axis=-1, keepdims=True)
    grown = jnp.minimum(value + _of(BRIGHTNESS, severity), 1.0)
    return jnp.where(value > 0, image * grown / jnp.where(value > 0, value, 1.0), grown)


def contrast(image: Array, key: Array, severity: Any) -> Array:
    """The distance from the mean of every channel shrinks.

    Example:
        >>> contrast(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    del key
    mean = image.mean(axis=(0, 1), keepdims=True)
    return mean + _of(CONTRAST, severity) * (image - mean)


def elastic_transform(image: Array, key: Array, severity: Any) -> Array:
    """Every pixel comes from a place nearby, by a smooth random field.

    Example:
        >>> elastic_transform(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    side = min(image.shape[:2])
    field = smooth(jax.random.uniform(key, (2, *image.shape[:2]), minval=-1.0, maxval=1.0), ELASTIC_WIDTH * side)
    return moved(image, side * _of(ELASTIC, severity) * field / jnp.maximum(jnp.abs(field).max(), 1e-6))


def pixelate(image: Array, key: Array, severity: Any) -> Array:
    """Fewer pixels, then as many as before, each repeated.

    Example:
        >>> pixelate(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    del key
    height, width = image.shape[:2]

    def to(share: float) -> Function:
        fewer = max(1, round(height * share)), max(1, round(width * share))
        return lambda x: resized(resized(x, *fewer, "linear"), height, width, "nearest")

    return jax.lax.switch(severity - 1, [to(share) for share in PIXELATE], image)


def jpeg_compression(image: Array, key: Array, severity: Any) -> Array:
    """Blocks of 8 x 8 cosines, rounded as JPEG of this quality rounds luminance.

    Example:
        >>> jpeg_compression(jnp.full((8, 8, 1), 0.5), jax.random.key(0), 3).shape
        (8, 8, 1)
    """
    del key
    return jpeg(image, _of([quantization(quality) for quality in JPEG], severity))


FAMILIES: dict[str, Function] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise, defocus_blur, motion_blur, zoom_blur, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
    )
}


@automatic
def corrupted(name: str, image: Any, key: Array, *, severity: Any) -> Array:
    """Images under a corruption, clipped to [0, 1].

    Args:
        name: one of FAMILIES.
        image: [B, H, W, C] in [0, 1].
        key: typed key, or B of them.
        severity: 1 to 5, scalar or [B].

    Returns:
        [B, H, W, C].

    Raises:
        TypeError: image is not floating point; key is no typed key.
        ValueError: unknown name; image not [B, H, W, C], or with values outside of [0, 1]; severity out of range.

    Example:
        >>> corrupted("contrast", jnp.ones((2, 8, 8, 1)), jax.random.key(0), severity=5).shape
        (2, 8, 8, 1)

    Reference: Hendrycks, Dietterich (2019), https://arxiv.org/abs/1903.12261.
    """
    checks.one_of("name", name, FAMILIES)
    image = checks.inputs(image, "image")
    if image.ndim != 4:
        raise ValueError(f"image must be [B, H, W, C], got shape {image.shape}")
    checks.shares("image", image)
    severities = jnp.broadcast_to(jnp.asarray(_checked(severity, len(image)), jnp.int32), len(image))
    wide = image.astype(at_least_float32(image.dtype))
    found = jax.vmap(FAMILIES[name])(wide, sample_keys(key, len(image)), severities)
    return jnp.clip(found, 0.0, 1.0).astype(image.dtype)


def corruption(name: str) -> Function:
    """The corruption as an attack that tries once, for `evaluation.run_attack(..., severity=3)`.

    Args:
        name: one of FAMILIES.

    Returns:
        (f, x, y, key, *, severity) -> AttackResult, L2 distances; the same object for the same name.

    Raises:
        ValueError: unknown name.

    Example:
        >>> f = lambda x: jnp.stack([x.mean((1, 2, 3)), 0.6 * jnp.ones(len(x))], axis=1)  # class 0 where it is light
        >>> x, y = 0.4 * jnp.ones((2, 8, 8, 1)), jnp.array([1, 1])
        >>> corruption("brightness")(f, x, y, jax.random.key(0), severity=5).success.tolist()
        [True, True]
    """
    checks.one_of("name", name, FAMILIES)
    return _corruption(name)


@lru_cache
def _corruption(name: str) -> Function:
    return partial(_tried, name)


def _tried(name: str, f: Function, x: Any, y: Any, key: Array, *, severity: Any) -> Any:
    from jacreg_jax.attacks.start import begin, finish

    start = begin(f, x, y, (0.0, 1.0), key=key)
    x_adv = corrupted(name, start.x, start.keys, severity=severity)
    return finish(start, x_adv, norm="l2", steps=start.full(0, jnp.int32))


def _of(table: Any, severity: Any) -> Array:
    """The constants of a severity."""
    return jnp.asarray(np.asarray(table, np.float32))[severity - 1]


def _checked(severity: Any, batch: int) -> Any:
    def test(values: "np.ndarray") -> None:
        if not np.isin(values, SEVERITIES).all():
            raise ValueError(f"severity must be one of {SEVERITIES}, got {values}")

    if isinstance(severity, bool | str) or severity is None or np.shape(severity) not in ((), (batch,)):
        raise ValueError(f"severity must be one of {SEVERITIES}, or {batch} of them, got {severity!r}")
    look(test, severity)
    return severity
