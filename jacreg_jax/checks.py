"""The one place that looks at the values of arguments, so that a wrong call says what is wrong with it.

Shapes and types are always checked. Values are checked where they are concrete, see `concrete`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.concrete import look

Bounds = tuple[Any, Any]


# numbers


def count(name: str, value: Any, *, least: int = 1) -> int:
    """The value as an int: Python and numpy integers of at least `least`, no bool and no float.

    Example:
        >>> count("num_steps", np.int64(3))
        3

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least:
        return int(value)
    raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def optional_count(name: str, value: Any) -> int | None:
    """None, or as `count`.

    Raises:
        ValueError: it is anything else.
    """
    if value is None:
        return None
    try:
        return count(name, value)
    except ValueError:
        raise ValueError(f"{name} must be None or an integer of at least 1, got {value!r}") from None


def non_negative(name: str, value: Any, *, batch: int | None = None) -> None:
    """A finite number of at least 0, or with `batch` also one for each sample, [B].

    Raises:
        TypeError: not a real number.
        ValueError: negative, NaN or infinite; neither a scalar nor [B].
    """
    _number(name, value, batch, lambda v: v >= 0, "must be at least 0")


def positive(name: str, value: Any, *, batch: int | None = None) -> None:
    """A finite number above 0, or with `batch` also one for each sample, [B].

    Raises:
        TypeError: not a real number.
        ValueError: 0, negative, NaN or infinite; neither a scalar nor [B].
    """
    _number(name, value, batch, lambda v: v > 0, "must be above 0")


def finite(name: str, value: Any, *, batch: int | None = None) -> None:
    """A finite number, or with `batch` also one for each sample, [B].

    Raises:
        TypeError: not a real number.
        ValueError: NaN or infinite; neither a scalar nor [B].
    """
    _number(name, value, batch, lambda v: v == v, "must be finite")


def at_least(name: str, value: Any, least: float) -> None:
    """A finite number of at least `least`.

    Raises:
        TypeError: not a real number.
        ValueError: smaller, NaN or infinite.
    """
    _number(name, value, None, lambda v: v >= least, f"must be at least {least}")


def fraction(name: str, value: Any, *, zero: bool = False, one: bool = False) -> None:
    """A number between 0 and 1; the ends belong to it where `zero` and `one` say so.

    Example:
        >>> fraction("rho", 0.75)

    Raises:
        TypeError: not a real number.
        ValueError: outside, NaN.
    """
    words = f"must lie in {'[' if zero else '('}0, 1{']' if one else ')'}"
    inside = lambda v: ((v >= 0) if zero else (v > 0)) & ((v <= 1) if one else (v < 1))
    _number(name, value, None, inside, words)


def shares(name: str, value: Any, *, of_one: bool = False) -> None:
    """Every entry in [0, 1]; with `of_one` those along the last axis sum to 1, within 1 %.

    Raises:
        ValueError: an entry outside, or NaN; another sum.
    """

    def test(value: np.ndarray) -> None:
        wide = np.asarray(value).astype(np.float64)
        if not np.all((wide >= 0) & (wide <= 1 + 1e-6)):
            raise ValueError(f"{name} must hold values from 0 to 1, got {_short(value)}")
        if of_one and not np.allclose(wide.sum(-1), 1, atol=0.01):
            raise ValueError(f"{name} must be distributions that sum to 1, got sums {_short(wide.sum(-1))}")

    look(test, value)


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """One of the allowed values.

    Example:
        >>> one_of("norm", "l2", ("linf", "l2"))

    Raises:
        ValueError: it is none of them.
    """
    allowed = tuple(allowed)
    if not any(type(value) is type(a) and value == a for a in allowed):
        *first, last = [repr(a) for a in allowed]
        raise ValueError(f"{name} must be {', '.join(first) + ' or ' if first else ''}{last}, got {value!r}")


def _number(name: str, value: Any, batch: int | None, is_right: Callable[[Any], Any], words: str) -> None:
    dtype = getattr(value, "dtype", None)
    dtype = np.asarray(value).dtype if dtype is None else dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number, got {_what(value)}")
    shape = np.shape(value)
    if shape != () and shape != (batch,):
        wanted = "a scalar" if batch is None else f"a scalar or have shape ({batch},), one for each sample"
        raise ValueError(f"{name} must be {wanted}; got shape {shape}")

    def test(value: np.ndarray) -> None:
        wide = np.asarray(value).astype(np.float64)
        if not np.all(is_right(wide)):
            raise ValueError(f"{name} {words}, got {_short(value)}")
        if not np.all(np.isfinite(wide)):
            raise ValueError(f"{name} must be finite, got {_short(value)}")

    look(test, value)


# arrays


def inputs(x: Any, name: str = "x", *, what: str = "floating point raw pixels") -> jax.Array:
    """Inputs as a JAX array: real floating point, [B, ...], at least one sample.

    Raises:
        TypeError: no array, or not real floating point.
        ValueError: no batch axis, or nothing in it.
    """
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(f"{name} must be an array, {what} [B, ...], got {_what(x)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be {what}, got {x.dtype}")
    if len(x.shape) == 0:
        raise ValueError(f"{name} must have a batch axis in front, [B, ...], got a scalar")
    if 0 in x.shape:
        raise ValueError(f"{name} must hold at least one sample and one entry in each, got shape {tuple(x.shape)}")
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def labels(y: Any, shape: Sequence[int], num_classes: int, name: str = "y") -> jax.Array:
    """Labels as a JAX array: integer labels of this shape, usually [B], each from 0 to num_classes - 1.

    Raises:
        TypeError: no array of integers.
        ValueError: another shape; a label outside of [0, num_classes).
    """
    if not (hasattr(y, "shape") and hasattr(y, "dtype")):
        raise TypeError(f"{name} must be an array of integer labels, got {_what(y)}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"{name} must be integer labels, got {y.dtype}")
    if tuple(y.shape) != tuple(shape):
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, one label for each sample or position, got {tuple(y.shape)}"
        )

    def test(y: np.ndarray) -> None:
        if y.size and (y.min() < 0 or y.max() >= num_classes):
            raise ValueError(
                f"{name} must hold labels from 0 to {num_classes - 1}, f gives {num_classes} classes;"
                f" got labels from {y.min()} to {y.max()}"
            )

    look(test, y)
    return jnp.asarray(y)


def num_classes(z: Any, batch: int, name: str = "f(x)") -> int:
    """C of logits [B, C]: real floating point, at least two classes. z may be what `jax.eval_shape` gives.

    Raises:
        TypeError: not one array of floating point logits.
        ValueError: not [B, C]; a single logit.
    """
    if not (hasattr(z, "shape") and hasattr(z, "dtype")):
        raise TypeError(f"{name} must be one array of logits [B, C], got {_what(z)}")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point logits, got {z.dtype}")
    shape = tuple(z.shape)
    if shape in ((batch,), (batch, 1)):
        raise ValueError(
            f"{name} must be logits [B, C] of at least 2 classes, got shape {shape}; stack a single logit z of class 1"
            " as jnp.stack([-z, z], -1) or jnp.stack([0 * z, z], -1), z of shape [B]"
        )
    if len(shape) != 2 or shape[0] != batch or shape[1] < 2:
        raise ValueError(f"{name} must be logits [B, C] with B = {batch} and at least 2 classes, got shape {shape}")
    return int(shape[1])


def bounds(bounds: Any, x: jax.Array) -> Bounds:
    """(low, high), each a float or an array that lies beside x [B, ...] with all its axes.

    Each may be a scalar or an array that broadcasts to x: per channel [C], per feature, per sample [B, 1, ...].

    Raises:
        TypeError: not a pair of real numbers.
        ValueError: NaN or infinite; low not below high somewhere; a shape that does not broadcast to x; x outside.
    """
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (low, high), got {_what(bounds)}")
    low, high = (_bound(b, x) for b in bounds)
    if not any(isinstance(b, jax.core.Tracer) for b in (low, high)):
        wide_low, wide_high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not (np.isfinite(wide_low).all() and np.isfinite(wide_high).all() and np.all(wide_low < wide_high)):
            raise ValueError(f"bounds must be finite with low below high, got ({_short(low)}, {_short(high)})")
        look(lambda x: _inside(x, wide_low, wide_high), x)
    return low, high


def _bound(bound: Any, x: jax.Array) -> Any:
    dtype = bound.dtype if isinstance(bound, jax.Array) else np.asarray(bound).dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"bounds must be real numbers, got {_what(bound)}")
    shape = np.shape(bound)
    if shape == () and not isinstance(bound, jax.core.Tracer):
        return float(bound)
    try:
        fits = np.broadcast_shapes(shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"bounds must be scalars or broadcast to x of shape {x.shape}, got shape {shape}")
    beside = (1,) * (x.ndim - len(shape)) + shape
    if isinstance(bound, jax.core.Tracer):
        return bound.astype(x.dtype).reshape(beside)
    return np.asarray(bound).astype(x.dtype).reshape(beside)  # concrete also where x is traced


def _inside(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Rounding is let pass: 1e-6 of the range, and the precision of x's dtype."""
    size = np.maximum(np.abs(low), np.abs(high))
    slack = 1e-6 * np.maximum(1, high - low) + float(np.spacing(x.dtype.type(1))) * size
    wide = np.asarray(x).astype(np.float64)
    if not (np.all(wide >= low - slack) and np.all(wide <= high + slack)):
        raise ValueError(
            f"x must lie in bounds ({_short(low)}, {_short(high)}), got values from {wide.min()} to {wide.max()}"
        )


# words


def _what(value: Any) -> str:
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    return type(value).__name__ if dtype is None or shape is None else f"{dtype}{list(shape)}"


def _short(value: Any) -> str:
    """A number as it is, an array by its ends."""
    array = np.asarray(value)
    if array.ndim == 0:
        return str(array if array.dtype.kind in "fiu" else array.astype(np.float64))
    wide = array.astype(np.float64)
    return f"values from {wide.min()} to {wide.max()}"
