"""How values are named in messages, and warnings that point at the caller's own line."""

import sys
import warnings
from typing import Any

import numpy as np

_NOT_THE_CALLER = {"jacreg_jax", "jax", "jaxlib", "flax", "optax", "haiku", "equinox", "jaxtyping", "beartype"}
_NOT_THE_CALLER |= {"functools", "contextlib"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the line outside of this library, and of those that it runs on, that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _NOT_THE_CALLER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def what(value: Any) -> str:
    """The type of a value, or dtype and shape of an array."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    return type(value).__name__ if dtype is None or shape is None else f"{dtype}{list(shape)}"


def short(value: Any) -> str:
    """A number as it is, an array by its ends."""
    array = np.asarray(value)
    if array.ndim == 0:
        return str(array if array.dtype.kind in "fiu" else array.astype(np.float64))
    wide = array.astype(np.float64)
    return f"values from {wide.min()} to {wide.max()}"
