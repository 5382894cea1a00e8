"""From stored bytes to what the network sees, with the paper's constants.

Two spaces. *Raw pixels* `raw`, in [0, 1]: attacks, noise, clipping and distances live here. *Model space* `x`, the
preprocessed input: the penalty and every reported ||J||_F are taken with respect to it, as in the paper. `normalize`
leads from the first to the second; `wrap` puts it inside the function that an attack sees.
"""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax import checks
from jacreg_jax.types import Function

Pixels: TypeAlias = Any  # numpy or jax array


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The affine map x = (raw - mean) / std, the same for every pixel of a channel.

    For one std, distances in model space are those in raw pixels divided by it, and so are Jacobians with respect to
    raw pixels, ||dz/d raw||_F = ||dz/dx||_F / std, relative to those with respect to x.

    Args:
        mean: a number, or one for each channel of the last axis, as a tuple.
        std: the same, positive.

    Raises:
        ValueError: mean and std differ in shape, or std is not positive.

    Example:
        >>> Preprocessing(0.5, 0.25).normalize(jnp.array([0.5, 1.0])).tolist()
        [0.0, 2.0]
    """

    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if np.shape(self.mean) != np.shape(self.std) or np.ndim(self.std) > 1:
            raise ValueError(
                f"mean and std must both be numbers or tuples of one length, got {self.mean!r} and {self.std!r}"
            )
        for name, value in (("mean", self.mean), ("std", self.std)):
            found = np.asarray(value)
            if found.dtype.kind not in "fiu" or not np.isfinite(found).all():
                raise ValueError(f"{name} must be finite numbers, got {value!r}")
        if not np.all(np.asarray(self.std) > 0):
            raise ValueError(f"std must be positive, got {self.std!r}")

    def normalize(self, raw: Pixels) -> Pixels:
        """Raw pixels [0, 1] to model space, (raw - mean) / std; float array [..., channels], dtype kept."""
        return (raw - _like(raw, self.mean)) / _like(raw, self.std)

    def denormalize(self, x: Pixels) -> Pixels:
        """Model space to raw pixels, x * std + mean: the inverse of `normalize`."""
        return x * _like(x, self.std) + _like(x, self.mean)

    def wrap(self, f: Function) -> Function:
        """The function of raw pixels, raw -> f(normalize(raw)), that attacks and noise tests take.

        Args:
            f: function of the preprocessed input, [B, H, W, C] -> [B, ...].

        Returns:
            Function of raw pixels in [0, 1], same shapes.
        """
        return lambda raw: f(self.normalize(raw))


MNIST = Preprocessing(mean=0.1307, std=0.3081)
"""Mean and deviation of the training pixels; the paper's text says "variance"."""
CIFAR10 = Preprocessing(mean=0.5, std=0.5)
"""x = 2 raw - 1."""
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""Of each channel, as torchvision's models take it."""

# Digits from elsewhere are fed to MNIST models, so they take MNIST's constants, as USPS does in the paper.
PREPROCESSING = {"digits": MNIST, "mnist": MNIST, "usps": MNIST, "cifar10": CIFAR10}


def from_uint8(images: Pixels) -> Pixels:
    """Stored bytes to raw pixels, images / 255.

    Args:
        images: uint8 array of any shape, numpy or jax (inside jit too).

    Returns:
        float32 array in [0, 1], same shape and kind.

    Raises:
        TypeError: images is not uint8.

    Example:
        >>> from_uint8(np.asarray([0, 255], np.uint8)).tolist()
        [0.0, 1.0]
    """
    if getattr(images, "dtype", None) != np.uint8:
        raise TypeError(f"images must be a uint8 array, got {getattr(images, 'dtype', type(images).__name__)}")
    return images.astype(np.float32) / np.float32(255)


def resize_bilinear(images: Pixels, size: int | tuple[int, int]) -> Pixels:
    """Bilinear interpolation of a batch of images, as the paper upsamples USPS from 16x16 to 28x28.

    `jax.image.resize` with antialiasing: pixel centres at half integers, edges clamped. It agrees with PIL's (and so
    with torchvision's) bilinear filter, to rounding for floats and to one grey level for bytes; when upsampling also
    with torch's interpolate(align_corners=False).

    Args:
        images: [N, H, W, C], uint8 or float, numpy or jax.
        size: (height, width) in pixels, or one number for both.

    Returns:
        [N, height, width, C] of the dtype and kind of images; bytes are rounded.

    Raises:
        TypeError: images is neither uint8 nor float.
        ValueError: images does not have four axes, or size is below 1.

    Example:
        >>> resize_bilinear(np.zeros((2, 16, 16, 1), np.uint8), 28).shape
        (2, 28, 28, 1)
    """
    height, width = size if isinstance(size, tuple) else (size, size)
    if not hasattr(images, "ndim"):
        raise TypeError(f"images must be an array [N, H, W, C], got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C], got shape {images.shape}")
    for length in (height, width):
        checks.count("size", length)
    is_bytes = images.dtype == np.uint8
    if not is_bytes:
        _require_float(images, "images")
    shape = (images.shape[0], height, width, images.shape[3])
    resized = jax.image.resize(jnp.asarray(images, jnp.float32 if is_bytes else None), shape, "bilinear")
    if is_bytes:
        resized = jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)
    return np.asarray(resized) if isinstance(images, np.ndarray) else resized


def _like(x: Pixels, constant: float | tuple[float, ...]) -> Any:
    """The constant in the dtype of x, with axes of length 1 in front so that it meets the channels of x."""
    _require_float(x, "pixels")
    value = np.asarray(constant, x.dtype)
    if value.ndim == 0:
        return value
    if x.shape[-1:] != value.shape:
        raise ValueError(f"pixels must have {value.size} channels on the last axis, got shape {x.shape}")
    return value.reshape((1,) * (x.ndim - 1) + value.shape)


def _require_float(x: Any, what: str) -> None:
    if not jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.floating):
        raise TypeError(
            f"{what} must be a float array, got {getattr(x, 'dtype', type(x).__name__)}; see `from_uint8` for bytes"
        )
