"""equinox modules of single samples."""

import contextlib
import inspect
import sys
import types
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jacreg_jax import modes, shares
from jacreg_jax.functional import Functional, at_batch_statistics, reads_running_statistics
from jacreg_jax.interop.function import require
from jacreg_jax.types import PyTree

KEYS = "key", "rng", "rngs", "prng_key"


def from_equinox(model: Any, state: Any = None, **options: Any) -> Functional:
    """An equinox module of single samples, mapped over the batch.

    Args:
        model: an `equinox.Module`, called as model(x) or model(x, key=key), and with a state as model(x, state). Its
            key may be called rng, rngs or prng_key; its call may say the mode, by an argument of `modes.MODES`.
        state: from `equinox.nn.make_with_state`, for BatchNorm with axis_name="batch".
        **options: for the module's call.

    Returns:
        Functional. Its batch_statistics takes a BatchNorm that one pass calls twice at the statistics of its last call.

    Raises:
        ValueError: not an equinox module; one that holds a state, as BatchNorm does, without it.

    Example:
        >>> import equinox
        >>> apply, params, model_state = from_equinox(equinox.nn.Linear(3, 2, key=jax.random.key(0)))
        >>> apply(params, model_state, jnp.ones((1, 3)))[0].shape
        (1, 2)
    """
    import equinox

    require(isinstance(model, equinox.Module) and callable(model), "callable equinox.Module", model)
    indices = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, equinox.nn.StateIndex))
    if state is None and any(isinstance(leaf, equinox.nn.StateIndex) for leaf in indices):
        raise ValueError(
            "model holds a state, as BatchNorm does, and state is None: from_equinox(model, state), both of "
            "equinox.nn.make_with_state"
        )
    params, rest = equinox.partition(model, equinox.is_inexact_array)
    of_call = type(model).__call__
    modes.warn_of_unknown_mode(of_call, options)
    names = modes.mode_arguments(of_call, with_a_value=True)
    key_name = next((name for name in KEYS if name in inspect.signature(of_call).parameters), None)

    def call(params: PyTree, state: Any, x: Any, key: Any = None, *, mode: str | None = None) -> tuple[Any, Any]:
        merged = equinox.combine(params, rest)
        if mode is not None:
            merged = equinox.nn.inference_mode(merged, value=mode == "eval")
        given = options | ({} if mode is None else modes.in_mode(names, mode == "train"))
        keys = _keys_of_rows(key, x) if key_name and key is not None else None
        arguments = (lambda key: given | {key_name: key}) if key_name else (lambda key: given)
        axes = None if keys is None else 0
        if isinstance(state, equinox.nn.State):
            one = lambda x, state, key: merged(x, state, **arguments(key))
            mapped = jax.vmap(one, in_axes=(0, None, axes), out_axes=(0, None), axis_name="batch")
            with _over_whole_batch(equinox):
                return mapped(x, state, keys)
        one_stateless = lambda x, key: merged(x, **arguments(key))
        return jax.vmap(one_stateless, in_axes=(0, axes), axis_name="batch")(x, keys), state

    def statistics(params: PyTree, state: Any, x: Any, key: Any) -> Any:
        """A train-mode pass leaves the statistics that train mode normalizes with in the state."""
        return call(params, _afresh(equinox, model, state), x, key, mode="train")[1]

    train = partial(call, mode="train")
    evaluate = reads_running_statistics(partial(call, mode="eval"))
    rebuild = lambda params, state: (equinox.combine(params, rest), state)
    initial = {} if state is None else state
    return Functional(call, params, initial, train, evaluate, at_batch_statistics(statistics, evaluate), rebuild)


def _keys_of_rows(key: Any, x: PyTree) -> Any:
    """A key for each row, none of which is that of the row in a penalty which shares the key."""
    return jax.random.split(jax.random.fold_in(key, 1), len(jax.tree.leaves(x)[0]))


@contextlib.contextmanager
def _over_whole_batch(equinox: Any) -> Iterator[None]:
    """On a share of a batch, every BatchNorm averages over the axis of the mesh too, and in a part over its rows.

    shard_map refuses a mean over the named axis of a `vmap`, which is how BatchNorm averages. So the mean that it calls
    is one that knows what to do under `vmap`, and needs no name. A state takes a new value only where it is like the
    old one, the mesh that it lies on included; a constant, as mode "ema" sets, lies on none.
    """
    axis = shares.batch_axis()
    if axis is None and not jax.sharding.get_abstract_mesh().manual_axes:
        yield
        return
    over_devices = lambda mean: mean if axis is None else jax.lax.pmean(mean, axis)
    over_rows = jax.custom_batching.custom_vmap(lambda x: x)
    over_rows.def_vmap(lambda size, is_batched, x: (over_devices(jnp.mean(x, axis=0)), False))
    of_channel = jax.custom_batching.custom_vmap(over_rows)  # BatchNorm's own vmap, over the channels, is the inner one
    of_channel.def_vmap(lambda size, is_batched, x: (over_rows(x), True))
    lax = types.SimpleNamespace(**vars(jax.lax) | {"pmean": lambda x, name: of_channel(x)})
    norms, states = (sys.modules[kind.__module__] for kind in (equinox.nn.BatchNorm, equinox.nn.State))
    with mock.patch.object(norms, "lax", lax), mock.patch.object(states, "tree_equal", _alike):
        yield


def _alike(old: PyTree, new: PyTree) -> bool:
    """Of one structure, with leaves of the same shapes and dtypes."""
    kinds = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return bool(kinds(old) == kinds(new))


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
