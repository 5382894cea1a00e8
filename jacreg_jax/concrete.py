"""Tests of concrete values, and what a trace leaves of them.

Under `jax.jit` values are not concrete. A wrapper that holds the concrete arrays, such as `evaluation.run_attack`, asks
for the tests that the trace could not make (`deferred`) and makes them itself, with the same words.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import jax
import numpy as np

Test: TypeAlias = Callable[..., None]  # raises for bad concrete values
Deferred: TypeAlias = Callable[[Mapping[str, Any]], None]  # raises for a bad one among the values by name


class _Deferred:
    """Names of the watched tracers, leaf by leaf, and the tests that met them: functions of all values by name."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.names = {
            id(leaf): (name, i)
            for name, a in arguments.items()
            for i, leaf in enumerate(jax.tree.leaves(a))
            if isinstance(leaf, jax.core.Tracer)
        }
        self.tests: list[Deferred] = []


_watched: ContextVar[_Deferred | None] = ContextVar("watched", default=None)


@contextmanager
def deferred(arguments: Mapping[str, Any]) -> Iterator[list[Deferred]]:
    """Collect what a trace cannot check: the list fills with tests of the concrete values by name.

    Args:
        arguments: the tracers by name.
    """
    watch = _Deferred(arguments)
    token = _watched.set(watch)
    try:
        yield watch.tests
    finally:
        _watched.reset(token)


def look(test: Test, *values: Any) -> bool:
    """Test concrete values; leave the test to whoever watches the traced ones among them. False: nobody does."""
    names = dict.fromkeys(id(v) for v in values if isinstance(v, jax.core.Tracer))
    if not names:
        test(*map(np.asarray, values))
        return True
    watch = _watched.get()
    is_watched = watch is not None and names.keys() <= watch.names.keys()
    if watch is not None and is_watched:
        given = [watch.names.get(id(v), v) for v in values]
        is_name = [isinstance(v, jax.core.Tracer) for v in values]
        watch.tests.append(
            lambda whole: test(*(_found(whole, g) if n else np.asarray(g) for g, n in zip(given, is_name, strict=True)))
        )
    return is_watched


def _found(whole: Mapping[str, Any], place: tuple[str, int]) -> "np.ndarray":
    """The leaf of that number of the value of that name."""
    name, i = place
    return np.asarray(jax.tree.leaves(whole[name])[i])
