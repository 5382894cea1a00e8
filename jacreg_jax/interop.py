"""Models of any library as the pure functions that training takes: functional = from_LIBRARY(model).

``apply, params, model_state = functional``, and ``apply(params, model_state, x, key) -> (output, model_state)`` goes
into `training.classification_loss`; ``functional.predictor(params, model_state)`` is the f(x) that penalties, attacks
and evaluation take. Nothing here imports a library: each adapter needs only the one whose model it is given.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax.functional import (
    Functional as Functional,
    Output,
    at_batch_statistics,
    reads_running_statistics,
)
from jacreg_jax.types import Apply, Function, PyTree


def bind(apply: Apply, params: PyTree, model_state: PyTree = None, key: jax.Array | None = None) -> Function:
    """f(x) -> output, with everything else held; a pytree of it, so that new parameters do not recompile.

    Args:
        apply: (params, model_state, x, key) -> (output, model_state).
        params: pytree of parameters.
        model_state: None: {}.
        key: typed key, for a model that draws.

    Example:
        >>> apply, params, model_state = from_function(lambda p, x: x @ p, jnp.ones((3, 2)))
        >>> bind(apply, params)(jnp.ones((1, 3)))
        Array([[3., 3.]], dtype=float32)
    """
    return jax.tree_util.Partial(Output(apply), params, model_state if model_state is not None else {}, key)


def from_function(f: Callable[[PyTree, Any], Any], params: PyTree) -> Functional:
    """A bare function f(params, x) -> output.

    Args:
        f: pure function.
        params: pytree of parameters.

    Raises:
        ValueError: f cannot be called.

    Example:
        >>> functional = from_function(lambda p, x: x @ p, jnp.ones((3, 2)))
        >>> functional.predictor()(jnp.ones((1, 3)))
        Array([[3., 3.]], dtype=float32)
    """
    if not callable(f):
        raise ValueError(f"f must be a function of (params, x), got {type(f).__name__}")
    apply: Apply = lambda params, state, x, key=None: (f(params, x), state)
    return Functional(apply, params, {}, apply, apply, apply, lambda params, state: partial(f, params))


def from_linen(module: Any, variables: Any, **options: Any) -> Functional:
    """A flax.linen module and what its `init` gave.

    Args:
        module: a `flax.linen.Module`. Its modes are found by the argument of its call: train, training, is_training,
            deterministic or use_running_average.
        variables: {"params": ..., and other collections, which are then updated and returned}.
        **options: for the module's call, such as train=True.

    Raises:
        ValueError: not a linen module, or variables without "params".

    Example:
        >>> from flax import linen as nn
        >>> module, x = nn.Dense(2), jnp.ones((1, 3))
        >>> apply, params, model_state = from_linen(module, module.init(jax.random.key(0), x))
        >>> apply(params, model_state, x)[0].shape
        (1, 2)
    """
    from flax import linen

    _require(isinstance(module, linen.Module), "flax.linen.Module", module)
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params', got {sorted(variables)}")
    from jacreg_jax.models import apply as linen_apply

    state = {name: collection for name, collection in variables.items() if name != "params"}
    others = {name: value for name, value in options.items() if name not in linen_apply.MODES}
    return Functional(
        linen_apply.called_with(module, **options),
        variables["params"],
        state,
        train=linen_apply.train_mode(module, **others),
        eval=linen_apply.eval_mode(module, **others),
        batch_statistics=linen_apply.batch_statistics_mode(module, **others),
        rebuild=lambda params, state: {"params": params, **state},
    )


def from_nnx(model: Any) -> Functional:
    """A flax.nnx module; `apply` is in the mode it is in, `train` and `eval` call its own train() and eval().

    The module is merged anew in every call, with `copy=True`: an update of BatchNorm's statistics inside a
    vector-Jacobian product is a trace error otherwise. Dropout draws from `key`, not from the module's own stream.

    Args:
        model: a `flax.nnx.Module`.

    Raises:
        ValueError: not an nnx module.

    Example:
        >>> from flax import nnx
        >>> apply, params, model_state = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> apply(params, model_state, jnp.ones((1, 3)))[0].shape
        (1, 2)
    """
    from flax import nnx

    _require(isinstance(model, nnx.Module), "flax.nnx.Module", model)
    parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
    graph, params, streams, state = parts
    is_random = bool(jax.tree.leaves(streams))

    def merged(params: PyTree, state: PyTree, key: Any = None, mode: str = "") -> Any:
        module = nnx.merge(graph, params, streams, state, copy=True)
        if mode:
            getattr(module, mode)()
        if key is not None and is_random:
            found = (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream))
            nnx.reseed(module, **dict.fromkeys(sorted({str(stream.tag) for stream in found}), key))
        return module

    def call(params: PyTree, state: PyTree, x: Any, key: Any = None, *, mode: str = "") -> tuple[Any, PyTree]:
        module = merged(params, state, key, mode)
        output = module(x)
        new: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return output, new[3]

    def at_batch(params: PyTree, state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        """`functional.at_batch_statistics`; nnx cuts the gradient of what it keeps, so that notes take its place."""
        train, evaluate = merged(params, state, key, "train"), merged(params, state, key, "eval")
        notes = [_note(*place) for place in _running(nnx, train)]
        train(jax.lax.stop_gradient(x))
        for note, (module, name) in zip(notes, _running(nnx, evaluate), strict=True):
            getattr(module, name).set_value(note.value)
        return evaluate(x), state

    return Functional(
        call,
        params,
        state,
        train=partial(call, mode="train"),
        eval=reads_running_statistics(partial(call, mode="eval")),
        batch_statistics=at_batch,
        rebuild=lambda params, state: nnx.merge(graph, params, streams, state, copy=True),
    )


def _running(nnx: Any, model: Any) -> list[tuple[Any, str]]:
    """(module, attribute) of every running average that is kept with a momentum, as nnx.BatchNorm's."""
    nodes = (node for _, node in nnx.iter_graph(model) if isinstance(getattr(node, "momentum", None), float))
    return [(m, name) for m in nodes for name in sorted(vars(m)) if isinstance(getattr(m, name), nnx.BatchStat)]


class _Note:
    """Stands in for a running average and takes down the batch's own, with its gradient."""

    _can_update = False  # nnx then leaves the gradient in

    def __init__(self, value: Any):
        self.value = value

    def __getitem__(self, place: Any) -> Any:
        return self.value[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self.value = value

    def get_value(self) -> Any:
        return self.value

    def set_value(self, value: Any) -> None:
        self.value = value


def _note(module: Any, name: str) -> _Note:
    """The module's attribute replaced by a note, and its momentum by none."""
    note = _Note(getattr(module, name).get_value())
    object.__setattr__(module, name, note)
    object.__setattr__(module, "momentum", 0.0)
    return note


def from_equinox(model: Any, state: Any = None) -> Functional:
    """An equinox module of single samples, mapped over the batch.

    Args:
        model: an `equinox.Module`, called as model(x) or model(x, key=key), and with a state as model(x, state).
        state: from `equinox.nn.make_with_state`, for BatchNorm with axis_name="batch".

    Raises:
        ValueError: not an equinox module.

    Example:
        >>> import equinox
        >>> apply, params, model_state = from_equinox(equinox.nn.Linear(3, 2, key=jax.random.key(0)))
        >>> apply(params, model_state, jnp.ones((1, 3)))[0].shape
        (1, 2)
    """
    import equinox

    _require(isinstance(model, equinox.Module) and callable(model), "callable equinox.Module", model)
    params, rest = equinox.partition(model, equinox.is_inexact_array)
    takes_key = "key" in inspect.signature(type(model).__call__).parameters

    def call(params: PyTree, state: Any, x: Any, key: Any = None, *, mode: str | None = None) -> tuple[Any, Any]:
        merged = equinox.combine(params, rest)
        if mode is not None:
            merged = equinox.nn.inference_mode(merged, value=mode == "eval")
        keys = jax.random.split(key, len(x)) if takes_key and key is not None else None
        options = (lambda key: {"key": key}) if takes_key else (lambda key: {})
        axes = None if keys is None else 0
        if isinstance(state, equinox.nn.State):
            one = lambda x, state, key: merged(x, state, **options(key))
            return jax.vmap(one, in_axes=(0, None, axes), out_axes=(0, None), axis_name="batch")(x, state, keys)
        one_stateless = lambda x, key: merged(x, **options(key))
        return jax.vmap(one_stateless, in_axes=(0, axes), axis_name="batch")(x, keys), state

    def statistics(params: PyTree, state: Any, x: Any, key: Any) -> Any:
        """A train-mode pass leaves the statistics that train mode normalizes with in the state."""
        return call(params, _afresh(equinox, model, state), x, key, mode="train")[1]

    train = partial(call, mode="train")
    evaluate = reads_running_statistics(partial(call, mode="eval"))
    rebuild = lambda params, state: (equinox.combine(params, rest), state)
    initial = {} if state is None else state
    return Functional(call, params, initial, train, evaluate, at_batch_statistics(statistics, evaluate), rebuild)


def _afresh(equinox: Any, model: Any, state: Any) -> Any:
    """The state with the averages of every BatchNorm of mode "batch" as before the first batch.

    Mode "ema" normalizes with the average itself, this batch's share included, in training too: it stays.
    """
    if not isinstance(state, equinox.nn.State):
        return state
    state = jax.tree.map(lambda leaf: leaf, state)  # a copy: equinox lets each State be used once
    is_norm = lambda node: isinstance(node, equinox.nn.BatchNorm)
    for norm in filter(is_norm, jax.tree.leaves(model, is_leaf=is_norm)):
        if norm.mode == "batch":
            zeros = jax.tree.map(jnp.zeros_like, state.get(norm.batch_state_index))
            count = jnp.zeros_like(state.get(norm.batch_counter))
            state = state.set(norm.batch_counter, count).set(norm.batch_state_index, zeros)
    return state


def from_haiku(transformed: Any, params: PyTree, state: PyTree = None, **options: Any) -> Functional:
    """What `haiku.transform` or `haiku.transform_with_state` gave.

    Args:
        transformed: `haiku.Transformed`, or `haiku.TransformedWithState`.
        params: from its `init`.
        state: from its `init`, with state.
        **options: for the function, such as is_training=True. The modes are found by one that is named is_training,
            train, training or deterministic.

    Raises:
        ValueError: neither of the two.

    Example:
        >>> import haiku
        >>> transformed, x = haiku.transform(lambda x: haiku.Linear(2)(x)), jnp.ones((1, 3))
        >>> apply, params, model_state = from_haiku(transformed, transformed.init(jax.random.key(0), x))
        >>> apply(params, model_state, x)[0].shape
        (1, 2)
    """
    import haiku

    stateful = isinstance(transformed, haiku.TransformedWithState)
    _require(stateful or isinstance(transformed, haiku.Transformed), "haiku.Transformed", transformed)

    def call(params: PyTree, state: PyTree, x: Any, key: Any = None, **mode: Any) -> tuple[Any, PyTree]:
        if stateful:
            return transformed.apply(params, state, key, x, **options | mode)
        return transformed.apply(params, key, x, **options | mode), state

    def statistics(params: PyTree, state: PyTree, x: Any, key: Any) -> PyTree:
        """A train-mode pass from averages of no batch leaves the batch's own: haiku's averages are debiased."""
        fresh = {
            name: jax.tree.map(jnp.zeros_like, values) if name.endswith(("/mean_ema", "/var_ema")) else values
            for name, values in state.items()
        }
        return train(params, fresh, x, key)[1]

    initial = {} if state is None else state
    rebuild = lambda params, state: (params, state)
    train_value = {"is_training": True, "train": True, "training": True, "deterministic": False}
    name = next((name for name in train_value if name in options), None)
    if name is None:  # one mode is all there is
        return Functional(call, params, initial, call, call, None if stateful else call, rebuild)
    train: Apply = partial(call, **{name: train_value[name]})
    evaluate = reads_running_statistics(partial(call, **{name: not train_value[name]}))
    return Functional(call, params, initial, train, evaluate, at_batch_statistics(statistics, evaluate), rebuild)


def _require(holds: bool, expected: str, model: Any) -> None:
    if not holds:
        raise ValueError(f"model must be a {expected}, got {type(model).__module__}.{type(model).__name__}")
