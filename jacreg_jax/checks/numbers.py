"""Numbers: counts, coefficients, sizes, shares of one, and choices."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jacreg_jax.checks.words import short, what
from jacreg_jax.concrete import look


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


def non_negative(name: str, value: Any, *, batch: int | None = None, beside: Sequence[int] = ()) -> None:
    """A finite number of at least 0; with `batch` also one for each sample, [B], with `beside` one for each entry.

    Raises:
        TypeError: not a real number.
        ValueError: negative, NaN or infinite; neither a scalar nor [B].
    """
    _number(name, value, batch, lambda v: v >= 0, "must be at least 0", beside)


def positive(name: str, value: Any, *, batch: int | None = None, beside: Sequence[int] = ()) -> None:
    """A finite number above 0; with `batch` also one for each sample, [B], with `beside` one for each entry.

    Raises:
        TypeError: not a real number.
        ValueError: 0, negative, NaN or infinite; neither a scalar nor [B].
    """
    _number(name, value, batch, lambda v: v > 0, "must be above 0", beside)


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
    """Every entry in [0, 1], but for rounding; with `of_one` those along the last axis sum to 1, within 1 %.

    Raises:
        ValueError: an entry outside, or NaN; another sum.
    """

    def test(value: np.ndarray) -> None:
        wide = np.asarray(value).astype(np.float64)
        if not np.all((wide >= -1e-6) & (wide <= 1 + 1e-6)):
            raise ValueError(f"{name} must hold values from 0 to 1, got {short(value)}")
        if of_one and not np.allclose(wide.sum(-1), 1, atol=0.01):
            raise ValueError(f"{name} must be distributions that sum to 1, got sums {short(wide.sum(-1))}")

    look(test, value)


def generator(name: str, *seed: Any) -> np.random.Generator:
    """A generator of numpy from a seed: non-negative integers, or sequences of them.

    Raises:
        ValueError: anything else.
    """
    entries = [entry for part in seed for entry in (part if isinstance(part, list | tuple | np.ndarray) else [part])]
    if not entries or not all(isinstance(e, int | np.integer) and not isinstance(e, bool) and e >= 0 for e in entries):
        got = seed[0] if len(seed) == 1 else seed
        raise ValueError(f"{name} must be a non-negative integer, or a sequence of them, got {got!r}")
    return np.random.default_rng(entries if len(entries) > 1 else entries[0])


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


def _fits(shape: Sequence[int], beside: Sequence[int]) -> bool:
    """Whether every axis is there, of full size or 1; with fewer axes [B] and [C] would look the same."""
    return 1 < len(shape) == len(beside) and all(n in (1, m) for n, m in zip(shape, beside, strict=True))


def _number(
    name: str, value: Any, batch: int | None, is_right: Callable[[Any], Any], words: str, beside: Sequence[int] = ()
) -> None:
    dtype = getattr(value, "dtype", None)
    dtype = np.asarray(value).dtype if dtype is None else dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{name} must be a real number, got {what(value)}")
    shape = np.shape(value)
    if shape != () and shape != (batch,) and not _fits(shape, beside):
        wanted = "a scalar" if batch is None else f"a scalar or have shape ({batch},), one for each sample"
        wanted += f", or all axes of x, {tuple(beside)}, each of full size or 1" if len(beside) > 1 else ""
        raise ValueError(f"{name} must be {wanted}; got shape {shape}")

    def test(value: np.ndarray) -> None:
        wide = np.asarray(value).astype(np.float64)
        if not np.all(is_right(wide)):
            raise ValueError(f"{name} {words}, got {short(value)}")
        if not np.all(np.isfinite(wide)):
            raise ValueError(f"{name} must be finite, got {short(value)}")

    look(test, value)
