"""Old names: they work for one release, 0.2, and say what to write instead."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """DeprecationWarning that says the new name."""
    warnings.warn(f"{old} is deprecated since 0.2, use {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed(old: str, function: Callable[P, R], new: str | None = None) -> Callable[P, R]:
    """The function under its old name, which warns."""

    @functools.wraps(function)
    def under_old_name(*args: P.args, **kwargs: P.kwargs) -> R:
        warn(old, new or function.__qualname__)
        return function(*args, **kwargs)

    return under_old_name


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: keyword arguments old="new" are still taken under the old name, with a warning.

    Raises:
        TypeError: old and new name together.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given: dict[str, Any] = dict(kwargs)
            for old, new in new_names.items():
                if old in given:
                    warn(f"{function.__name__}({old}=...)", f"{new}=...")
                    if new in given:
                        raise TypeError(f"{function.__name__} got both {new} and its old name {old}")
                    given[new] = given.pop(old)
            return function(*args, **given)

        return wrapper

    return decorate
