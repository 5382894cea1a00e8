"""Models of any library as the pure function that training takes: apply, params, model_state = from_LIBRARY(model).

``apply(params, model_state, x, key) -> (output, model_state)`` goes into `training.classification_loss`;
``bind(apply, params, model_state)`` is the f(x) that penalties, attacks and evaluation take. Nothing here imports a
library: each adapter needs only the one whose model it is given.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Functional(NamedTuple):
    """A model taken apart: a pure function, what is trained, and what else changes."""

    apply: Callable  # (params, model_state, x, key) -> (output, model_state)
    params: Any
    model_state: Any  # running statistics and the like; {} where there are none


def bind(apply: Callable, params, model_state=None, key: jax.Array | None = None) -> Callable:
    """f(x) -> output, with everything else held; a pytree of it, so that new parameters do not recompile."""
    return jax.tree_util.Partial(_Output(apply), params, model_state if model_state is not None else {}, key)


def from_function(f: Callable, params) -> Functional:
    """A bare function f(params, x) -> output.

    Raises:
        ValueError: f is not callable.
    """
    if not callable(f):
        raise ValueError(f"f must be a function of (params, x), got {type(f).__name__}")
    return Functional(lambda params, state, x, key=None: (f(params, x), state), params, {})


def from_linen(module, variables, **options) -> Functional:
    """A flax.linen module and what its `init` gave.

    Args:
        module: a `flax.linen.Module`.
        variables: {"params": ..., and other collections, which are then updated and returned}.
        **options: for the module's call, such as train=True.

    Raises:
        ValueError: not a linen module, or variables without "params".
    """
    from flax import linen

    _require(isinstance(module, linen.Module), "flax.linen.Module", module)
    if "params" not in variables:
        raise ValueError(f"variables must hold 'params', got {sorted(variables)}")
    state = {name: collection for name, collection in variables.items() if name != "params"}

    def apply(params, state, x, key=None):
        rngs = None if key is None else {"dropout": key}
        return module.apply({"params": params, **state}, x, rngs=rngs, mutable=list(state), **options)

    return Functional(apply, variables["params"], state)


def from_nnx(model) -> Functional:
    """A flax.nnx module, in the mode it is in: call model.train() or model.eval() before.

    The module is merged anew in every call, with `copy=True`: an update of BatchNorm's statistics inside a
    vector-Jacobian product is a trace error otherwise. Dropout draws from `key`, not from the module's own stream.

    Raises:
        ValueError: not an nnx module.
    """
    from flax import nnx

    _require(isinstance(model, nnx.Module), "flax.nnx.Module", model)
    graph, params, streams, state = nnx.split(model, nnx.Param, nnx.RngState, ...)
    is_random = bool(jax.tree.leaves(streams))

    def apply(params, state, x, key=None):
        merged = nnx.merge(graph, params, streams, state, copy=True)
        if key is not None and is_random:
            nnx.reseed(merged, **dict.fromkeys(_stream_names(merged), key))
        output = merged(x)
        return output, nnx.split(merged, nnx.Param, nnx.RngState, ...)[3]

    def _stream_names(module):
        found = (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream))
        return sorted({str(stream.tag) for stream in found})

    return Functional(apply, params, state)


def from_equinox(model, state=None) -> Functional:
    """An equinox module of single samples, mapped over the batch.

    Args:
        model: an `equinox.Module`, called as model(x) or model(x, key=key), and with a state as model(x, state).
        state: from `equinox.nn.make_with_state`, for BatchNorm with axis_name="batch".

    Raises:
        ValueError: not an equinox module.
    """
    import equinox

    _require(isinstance(model, equinox.Module) and callable(model), "callable equinox.Module", model)
    params, rest = equinox.partition(model, equinox.is_inexact_array)
    takes_key = "key" in inspect.signature(type(model).__call__).parameters

    def apply(params, state, x, key=None):
        merged = equinox.combine(params, rest)
        keys = jax.random.split(key, len(x)) if takes_key and key is not None else None
        options = (lambda key: {"key": key}) if takes_key else (lambda key: {})
        axes = None if keys is None else 0
        if isinstance(state, equinox.nn.State):
            call = lambda x, state, key: merged(x, state, **options(key))
            return jax.vmap(call, in_axes=(0, None, axes), out_axes=(0, None), axis_name="batch")(x, state, keys)
        call = lambda x, key: merged(x, **options(key))
        return jax.vmap(call, in_axes=(0, axes), axis_name="batch")(x, keys), state

    return Functional(apply, params, {} if state is None else state)


def from_haiku(transformed, params, state=None, **options) -> Functional:
    """What `haiku.transform` or `haiku.transform_with_state` gave.

    Args:
        transformed: `haiku.Transformed`, or `haiku.TransformedWithState`.
        params: from its `init`.
        state: from its `init`, with state.
        **options: for the function, such as is_training=True.

    Raises:
        ValueError: neither of the two.
    """
    import haiku

    stateful = isinstance(transformed, haiku.TransformedWithState)
    _require(stateful or isinstance(transformed, haiku.Transformed), "haiku.Transformed", transformed)

    def apply(params, state, x, key=None):
        if stateful:
            return transformed.apply(params, state, key, x, **options)
        return transformed.apply(params, key, x, **options), state

    return Functional(apply, params, {} if state is None else state)


class _Output:
    """The first of what apply returns; equal for equal functions, so that compiled programs are found again."""

    def __init__(self, apply):
        self.apply = apply

    def __call__(self, params, state, key, x):
        return self.apply(params, state, x, key)[0]

    def __eq__(self, other):
        return isinstance(other, _Output) and self.apply == other.apply

    def __hash__(self):
        return hash(self.apply)


def _require(holds: bool, expected: str, model):
    if not holds:
        raise ValueError(f"model must be a {expected}, got {type(model).__module__}.{type(model).__name__}")
