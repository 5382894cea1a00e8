"""A compiled step that looks at its batch before it runs: at its form always, at labels where they are new."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.concrete import Deferred


class Guarded:
    """The compiled function, called after the tests of its data; everything else is the function's own.

    Args:
        compiled: called with the same arguments.
        data_of: arguments -> the data by name that the tests are for; raises for data of a wrong form.
        traced: filled while the function is traced, see `concrete.deferred`.
    """

    def __init__(self, compiled: Callable[..., Any], data_of: Callable[..., Any], traced: list[Deferred]):
        self.compiled, self.data_of, self.traced = compiled, data_of, traced
        self._takes = inspect.signature(data_of)
        self._tests: dict[Any, list[Deferred]] = {}  # by the kind of state and data that was traced
        self._kind: Any = None  # of the last call
        self._seen: dict[str, Any] = {}  # arrays that passed, held so that their identity stays theirs

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Test, and call; what the first call of a kind traced is tested behind it."""
        if named or len(arguments) != len(self._takes.parameters):
            arguments = self._bound(*arguments, **named)
        data = by_name(self.data_of(*arguments))
        kind = _model(arguments[0]), *((k, np.shape(v), _dtype(v)) for k, v in data.items() if hasattr(v, "dtype"))
        if kind != self._kind:
            self._kind, self._seen = kind, {}
        if kind in self._tests:
            self._look(data, self._tests[kind])
            return self.compiled(*arguments)
        self.traced.clear()
        result = self.compiled(*arguments)
        self._tests[kind] = list(self.traced)
        self._look(data, self._tests[kind])
        return result

    def __getattr__(self, name: str) -> Any:
        if name == "compiled":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.compiled, name)

    def _bound(self, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        try:
            return self._takes.bind(*arguments, **named).args
        except TypeError as error:
            raise TypeError(f"a step takes ({', '.join(self._takes.parameters)}): {error}") from None

    def _look(self, data: Mapping[str, Any], tests: list[Deferred]) -> None:
        values = {name: v for name, v in data.items() if _is_at_hand(v)}
        if not tests or all(self._seen.get(name) is v for name, v in values.items()):
            return
        for test in tests:
            try:
                test(values)
            except KeyError:  # an array that is not at hand
                continue
        self._seen = {name: v for name, v in values.items() if isinstance(v, jax.Array)}  # numpy's may change


def by_name(data: Any) -> Mapping[str, Any]:
    """The data as arrays by name; none where they have no names."""
    return data if isinstance(data, Mapping) else {}


def check_batch(batch: Any, name: str = "batch", *, shares: int = 1) -> None:
    """Arrays [B, ...] of one B of at least 1, which `shares` devices divide evenly.

    Raises:
        TypeError: a leaf is no array.
        ValueError: no leaf, no batch axis, no sample, another number of rows, or one that does not split.
    """
    leaves = jax.tree.leaves(batch)
    try:
        rows = {leaf.shape[0] for leaf in leaves if leaf.dtype is not None}
    except (AttributeError, IndexError):
        rows = set()
    if len(rows) == 1 and 0 not in rows and not next(iter(rows)) % shares:
        return
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(batch)}
    if not found:
        raise ValueError(f"{name} must hold arrays [B, ...], got {batch!r}")
    for where, leaf in found.items():
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{name} must hold arrays [B, ...] alone, got {type(leaf).__name__} as {name}{where}")
        if not leaf.shape:
            raise ValueError(f"{name} must hold arrays [B, ...] alone, got a scalar as {name}{where}")
    lengths = {f"{name}{where}": leaf.shape[0] for where, leaf in found.items()}
    if len(rows) != 1 or 0 in rows:
        raise ValueError(f"{name} must hold at least one row, and as many in every array, got {lengths}")
    raise ValueError(f"{name} must split evenly over {shares} devices, got {next(iter(rows))} rows")


def check_rows(indices: Any, count: int, axes: str = "[T, B]", *, shares: int = 1) -> None:
    """Integers of this many axes, and where they are at hand none outside of the data: a gather would clamp it.

    The rows of each step must split over `shares` devices, or the models of [M, T, B].

    Raises:
        TypeError: no array of integers.
        ValueError: another number of axes, no rows, or a row outside of [0, count); what does not split.
    """
    if not hasattr(indices, "shape") or not hasattr(indices, "dtype"):
        raise TypeError(f"indices must be an array of integers {axes}, got {type(indices).__name__}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices must be integers, got {indices.dtype}")
    if indices.ndim != axes.count(",") + 1 or not indices.shape[-1]:
        raise ValueError(f"indices must be {axes}, B rows for each step, got shape {tuple(indices.shape)}")
    split, what = (indices.shape[0], "models") if axes.startswith("[M") else (indices.shape[-1], "rows for each step")
    if split % shares:
        raise ValueError(f"indices must split evenly over {shares} devices, got {split} {what}")
    if not _is_at_hand(indices):
        return
    found = np.asarray(indices)
    if found.size and (found.min() < 0 or found.max() >= count):
        raise ValueError(f"indices must be rows 0 to {count - 1} of the data, got {found.min()} to {found.max()}")


def check_optimizer(optimizer: Any) -> None:
    """An optax transformation.

    Raises:
        TypeError: it is none.
    """
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise TypeError(f"optimizer must be an optax transformation, got {type(optimizer).__name__}")


def check_is_state(state: Any) -> None:
    """What a train step carries on.

    Raises:
        TypeError: no TrainState.
    """
    if not all(hasattr(state, name) for name in ("params", "opt_state", "model_state", "step", "key")):
        raise TypeError(f"state must be a TrainState, as init_state makes it, got {type(state).__name__}")


def check_state(state: Any, optimizer: Any) -> None:
    """A state of this optimizer; looked at while a step is traced.

    Raises:
        TypeError: no TrainState.
        ValueError: the state of another optimizer.
    """
    check_is_state(state)
    try:
        expected = jax.eval_shape(optimizer.init, state.params)
    except Exception:  # it cannot be known
        return
    form = lambda tree: (jax.tree.structure(tree), [np.shape(leaf) for leaf in jax.tree.leaves(tree)])
    if form(expected) != form(state.opt_state):
        raise ValueError(
            "state must be that of the optimizer of this step, init_state(params, optimizer, key), got an opt_state of "
            f"another one or of other params: {_names(state.opt_state)} where {_names(expected)} is expected"
        )


def _names(tree: Any) -> str:
    """The types in an optimizer's state."""
    if isinstance(tree, tuple) and type(tree) is tuple:
        return f"({', '.join(map(_names, tree))})"
    return type(tree).__name__


def _dtype(value: Any) -> Any:
    """As a compiled function takes it: without x64, float64 comes as float32."""
    return jax.dtypes.canonicalize_dtype(value.dtype) if isinstance(value, np.ndarray) else value.dtype


def _model(state: Any) -> Any:
    """Structure and shapes of what decides, beside the data, which tests a step traces."""
    leaves, structure = jax.tree.flatten((getattr(state, "params", None), getattr(state, "model_state", None)))
    return structure, *(np.shape(leaf) for leaf in leaves)


def _is_at_hand(value: Any) -> bool:
    """A numpy array, or one of JAX on the host: looking at it waits for nothing."""
    if isinstance(value, np.ndarray):
        return True
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return False
    return value.is_fully_addressable and all(device.platform == "cpu" for device in value.devices())
