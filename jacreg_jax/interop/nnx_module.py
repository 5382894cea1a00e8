"""flax.nnx modules."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks, modes, shares
from jacreg_jax.functional import CallsOfNorms, Functional, reads_running_statistics
from jacreg_jax.interop.function import require
from jacreg_jax.types import PyTree


def from_nnx(model: Any, **options: Any) -> Functional:
    """A flax.nnx module; `apply` is in the mode it is in, `train` and `eval` call its own train() and eval().

    The module is merged anew in every call, with `copy=True`: an update of BatchNorm's statistics inside a
    vector-Jacobian product is a trace error otherwise. Dropout draws from `key`, not from the module's own stream, and
    every stream from a key of its own.

    Args:
        model: a `flax.nnx.Module`. Where its call says the mode, as in train=True, that argument is found by its name,
            one of `modes.MODES`.
        **options: for the module's call.

    Returns:
        Functional.

    Raises:
        ValueError: not an nnx module.

    Example:
        >>> from flax import nnx
        >>> apply, params, model_state = from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> apply(params, model_state, jnp.ones((1, 3)))[0].shape
        (1, 2)
    """
    from flax import nnx

    require(isinstance(model, nnx.Module), "flax.nnx.Module", model)
    model = nnx.clone(model)
    nnx.pop(model, nnx.Intermediate)  # what an earlier call has sown
    parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
    graph, params, streams, state = parts
    modes.warn_of_unknown_mode(type(model).__call__, options)
    names = modes.mode_arguments(type(model).__call__)
    of_call = {mode: options | modes.in_mode(names, mode == "train") for mode in ("train", "eval")} | {"": options}

    def merged(params: PyTree, state: PyTree, key: Any = None, mode: str = "") -> Any:
        module = nnx.merge(graph, params, streams, state, copy=True)
        if mode:
            getattr(module, mode)()
        for node in _batch_norms(nnx, module) if shares.batch_axis() else ():
            node.axis_name = node.axis_name or shares.batch_axis()  # averages over the axis of the mesh too
        if key is not None:
            _reseed(nnx, module, key)
        return module

    def call(params: PyTree, state: PyTree, x: Any, key: Any = None, *, mode: str = "") -> tuple[Any, PyTree]:
        module = merged(params, state, key, mode)
        output = module(x, **of_call[mode])
        if nnx.pop(module, nnx.Intermediate):
            checks.warn("the module sows: what it sows is kept out of the model's state, and no loss sees it")
        new: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)
        return output, new[3]

    def at_batch(params: PyTree, state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        """`functional.at_batch_statistics`; nnx cuts the gradient of what it keeps, so that notes take its place."""
        train, evaluate = merged(params, state, key, "train"), merged(params, state, key, "eval")
        notes = [_note(*place) for place in _running(nnx, train)]
        try:
            train(jax.lax.stop_gradient(x), **of_call["train"])
        except TypeError as error:
            if _Note.__name__ in str(error):
                raise TypeError(_LIFTED) from error
            raise
        CallsOfNorms({i: note.times for i, note in enumerate(notes)}).tell()
        for note, (module, name) in zip(notes, _running(nnx, evaluate), strict=True):
            getattr(module, name).set_value(note.value)
        return evaluate(x, **of_call["eval"]), state

    return Functional(
        call,
        params,
        state,
        train=partial(call, mode="train"),
        eval=reads_running_statistics(partial(call, mode="eval")),
        batch_statistics=at_batch,
        rebuild=lambda params, state: nnx.merge(graph, params, streams, state, copy=True),
    )


_LIFTED = (
    "model must hold no BatchNorm inside of nnx.remat, nnx.scan or another lifted transformation for batch_statistics: "
    "take jax.checkpoint around the whole of f, or flax.linen, whose lifted BatchNorms serve"
)


def _reseed(nnx: Any, module: Any, key: Any) -> None:
    """Every stream of random numbers gets a key of its own, whatever its name, and so does every layer of a stack."""
    found = (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RngStream))
    for place, stream in enumerate(found):
        own, shape = jax.random.fold_in(key, place), stream.key.shape
        if shape:
            of_layers = [jax.random.fold_in(own, layer) for layer in range(math.prod(shape))]
            own = jnp.stack(of_layers).reshape(shape)
        stream.key.set_value(own)
        stream.count.set_value(jnp.zeros(shape, jnp.uint32))


def _batch_norms(nnx: Any, model: Any) -> list[Any]:
    return [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.BatchNorm)]


def _running(nnx: Any, model: Any) -> list[tuple[Any, str]]:
    """(module, attribute) of every running average that is kept with a momentum, as nnx.BatchNorm's."""
    nodes = (node for _, node in nnx.iter_graph(model) if modes.keeps_average(node))
    return [(m, name) for m in nodes for name in sorted(vars(m)) if isinstance(getattr(m, name), nnx.BatchStat)]


class _Note:
    """Stands in for a running average and takes down the batch's own, with its gradient."""

    _can_update = False  # nnx then leaves the gradient in

    def __init__(self, value: Any):
        self.value, self.times = value, 0

    def __getitem__(self, place: Any) -> Any:
        return self.value[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self.set_value(value)

    def get_value(self) -> Any:
        return self.value

    def set_value(self, value: Any) -> None:
        self.value, self.times = value, self.times + 1


def _note(module: Any, name: str) -> _Note:
    """The module's attribute replaced by a note, and its momentum by none."""
    note = _Note(getattr(module, name).get_value())
    object.__setattr__(module, name, note)
    object.__setattr__(module, "momentum", 0.0)
    return note
