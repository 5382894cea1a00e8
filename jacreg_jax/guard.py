"""A compiled step that looks at concrete labels and rows before it runs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jacreg_jax.concrete import Deferred


class Guarded:
    """The compiled function, called after the tests of its concrete data; everything else is the function's own.

    Args:
        compiled: called with the same arguments.
        data_of: arguments -> the arrays by name that the tests are for.
        tests: filled while the function is traced, see `concrete.deferred`.
    """

    def __init__(self, compiled: Callable[..., Any], data_of: Callable[..., Mapping[str, Any]], tests: list[Deferred]):
        self.compiled, self.data_of, self.tests = compiled, data_of, tests
        self._seen: dict[str, Any] = {}  # arrays that passed, held so that their identity stays theirs

    def __call__(self, *arguments: Any) -> Any:
        """Test, and call; what the first call traced is tested behind it."""
        self._test(*arguments)
        before = len(self.tests)
        result = self.compiled(*arguments)
        if len(self.tests) > before:
            self._seen.clear()
            self._test(*arguments)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)

    def _test(self, *arguments: Any) -> None:
        values = {name: v for name, v in self.data_of(*arguments).items() if _is_at_hand(v)}
        fresh = {name: v for name, v in values.items() if self._seen.get(name) is not v}
        if not fresh or not self.tests:
            return
        for test in self.tests:
            try:
                test(values)
            except KeyError:  # an array that is not at hand
                continue
        self._seen = {name: v for name, v in values.items() if isinstance(v, jax.Array)}  # numpy's may change


def _is_at_hand(value: Any) -> bool:
    """A numpy array, or one of JAX on the host: looking at it waits for nothing."""
    if isinstance(value, np.ndarray):
        return True
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return False
    return value.is_fully_addressable and all(device.platform == "cpu" for device in value.devices())


def check_rows(indices: Any, count: int) -> None:
    """ValueError for a concrete row index outside of the data, which a gather would clamp in silence."""
    if not _is_at_hand(indices):
        return
    found = np.asarray(indices)
    if found.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {found.dtype}")
    if found.size and (found.min() < 0 or found.max() >= count):
        raise ValueError(f"indices must be rows 0 to {count - 1} of the data, got {found.min()} to {found.max()}")
