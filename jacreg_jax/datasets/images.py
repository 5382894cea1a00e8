"""Encoded images to arrays of bytes, cropped and flipped as torchvision does it, by pillow: the ImageNet protocol.

    training    RandomResizedCrop(224), RandomHorizontalFlip      `augmented`
    test        Resize(256), CenterCrop(224)                      `centered`
    as stored                                                     `stored`

Each is (data, rng) -> uint8 [H, W, C] and pickles, so that worker processes can run it; other sizes by
`functools.partial(augmented, size=160)`. ToTensor and Normalize are `from_uint8` and `IMAGENET.normalize`, on the
device. The same boxes give the same pixels as torchvision on PIL images, bit by bit; pillow resizes with antialiasing.
"""

import io
import math
from typing import Any

import numpy as np

from jacreg_jax import checks
from jacreg_jax.datasets.loading import _extra

SCALE = (0.08, 1.0)  # of the area
RATIO = (3 / 4, 4 / 3)  # width over height


def augmented(
    data: bytes,
    rng: np.random.Generator,
    *,
    size: int = 224,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> np.ndarray:
    """A random box of the image, resized to a square, and mirrored every second time.

    Args:
        data: a JPEG or PNG file.
        rng: decides on the box and the mirror.
        size: pixels of a side.
        scale: least and greatest share of the area that the box takes.
        ratio: least and greatest width over height of the box.

    Returns:
        uint8 [size, size, 3].

    Raises:
        OSError: data is no image, or a damaged one.
        ValueError: size is below 1, scale does not lie in (0, 1], or ratio is not positive.

    Example:
        >>> from jacreg_jax.datasets import images
        >>> images.augmented(images.encoded(np.zeros((40, 30, 3), np.uint8)), np.random.default_rng(0), size=8).shape
        (8, 8, 3)

    Reference:
        torchvision.transforms.RandomResizedCrop, after Szegedy et al., Going deeper with convolutions, 2014
        (https://arxiv.org/abs/1409.4842).
    """
    checks.count("size", size)
    image = decode(data)
    top, left, height, width = crop_box(image.height, image.width, rng, scale=scale, ratio=ratio)
    image = image.crop((left, top, left + width, top + height)).resize((size, size), _bilinear())
    pixels = np.asarray(image)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def centered(
    data: bytes, rng: np.random.Generator | None = None, *, size: int = 224, shorter_side: int = 256
) -> np.ndarray:
    """The middle of the image, resized before so that its shorter side has `shorter_side` pixels.

    Args:
        data: a JPEG or PNG file.
        rng: not used; transforms take one.
        size: pixels of a side of the middle.
        shorter_side: pixels, at least size.

    Returns:
        uint8 [size, size, 3].

    Raises:
        OSError: data is no image, or a damaged one.
        ValueError: size is below 1, or shorter_side below size.

    Example:
        >>> from jacreg_jax.datasets import images
        >>> images.centered(images.encoded(np.zeros((40, 30, 3), np.uint8)), size=8, shorter_side=10).shape
        (8, 8, 3)

    Reference:
        torchvision.transforms.Resize and CenterCrop.
    """
    checks.count("shorter_side", shorter_side, least=checks.count("size", size))
    image = decode(data)
    shortest = min(image.size)
    # the longer side is cut off, not rounded, and the corner is rounded half to even: both as torchvision does
    width, height = (int(shorter_side * side / shortest) for side in image.size)
    image = image.resize((width, height), _bilinear())
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def stored(data: bytes, rng: np.random.Generator | None = None, *, channels: int = 3) -> np.ndarray:
    """The image as it is stored.

    Args:
        data: a JPEG or PNG file.
        rng: not used; transforms take one.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 [H, W, channels].

    Raises:
        OSError: data is no image, or a damaged one.
        ValueError: channels is neither 1 nor 3.

    Example:
        >>> from jacreg_jax.datasets import images
        >>> images.stored(images.encoded(np.zeros((28, 28, 1), np.uint8)), channels=1).shape
        (28, 28, 1)
    """
    pixels = np.asarray(decode(data, channels=channels))
    return pixels.reshape(*pixels.shape[:2], channels)


def decode(data: bytes, *, channels: int = 3) -> Any:
    """A JPEG or PNG file as a pillow image of RGB, or of grey levels.

    Args:
        data: the file's bytes.
        channels: 1 for grey, 3 for RGB; images of other modes are converted.

    Returns:
        PIL.Image.Image.

    Raises:
        OSError: data is no image, or a damaged one.
        ValueError: channels is neither 1 nor 3.

    Example:
        >>> decode(encoded(np.zeros((4, 6, 3), np.uint8))).size
        (6, 4)
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    with _extra("PIL.Image").open(io.BytesIO(data)) as image:
        return image.convert("RGB" if channels == 3 else "L")


def encoded(pixels: np.ndarray) -> bytes:
    """Bytes of pixels as a PNG file, which loses nothing: what `decode` reads.

    Args:
        pixels: uint8 [H, W, 1] or [H, W, 3].

    Returns:
        The file.

    Raises:
        TypeError: pixels are no bytes.
        ValueError: pixels have another shape.

    Example:
        >>> encoded(np.zeros((4, 6, 3), np.uint8))[1:4]
        b'PNG'
    """
    if getattr(pixels, "dtype", None) != np.uint8:
        raise TypeError(f"pixels must be a uint8 array, got {getattr(pixels, 'dtype', type(pixels).__name__)}")
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"pixels must be [H, W, 1] or [H, W, 3], got shape {pixels.shape}")
    file = io.BytesIO()
    _extra("PIL.Image").fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random box: its area uniform, the logarithm of its aspect ratio uniform.

    Ten tries to lie inside the image; then the largest box in the middle whose aspect ratio is allowed.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        rng: decides on the box.
        scale: least and greatest share of the area.
        ratio: least and greatest width over height.

    Returns:
        The box, pixels.

    Raises:
        ValueError: height or width is below 1, scale does not lie in (0, 1], or ratio is not positive.

    Example:
        >>> crop_box(10, 20, np.random.default_rng(0), scale=(1, 1), ratio=(2, 2))
        (0, 0, 10, 20)

    Reference:
        torchvision.transforms.RandomResizedCrop.get_params.
    """
    checks.count("height", height)
    checks.count("width", width)
    _check_range("scale", scale, 1.0)
    _check_range("ratio", ratio, math.inf)
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def _check_range(name: str, value: Any, most: float) -> None:
    if isinstance(value, tuple) and len(value) == 2:
        least, greatest = value
        if all(isinstance(v, int | float) for v in value) and 0 < least <= greatest <= most and greatest < math.inf:
            return
    limit = f" <= {most:g}" if most < math.inf else ""
    raise ValueError(f"{name} must be a tuple (least, greatest), 0 < least <= greatest{limit}, got {value!r}")


def _bilinear() -> Any:
    return _extra("PIL.Image").Resampling.BILINEAR
