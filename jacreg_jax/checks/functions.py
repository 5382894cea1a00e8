"""Functions: what must be callable, and with what; those that change their own state."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.tree_util import keystr

from jacreg_jax.checks.words import what

P = ParamSpec("P")
R = TypeVar("R")
_BATCHED = (
    "f is called with the whole batch, [B, ...] -> [B, ...]: of a function of one sample, as an equinox module is, "
    "take jax.vmap(f)"
)
_FOREIGN = (
    "f is traced by JAX and must be written in it, not in numpy or torch; a model of another framework is a black box, "
    "jax.pure_callback(f, shape, x), which has no derivative"
)
_MUTATION = {"TraceContextError", "JaxTransformError"}  # of flax.nnx and flax.linen, neither imported here


def function(name: str, value: Any, arguments: Sequence[str] | None = ("x",), hint: str = "") -> None:
    """A callable that can be called with these arguments by position; None: with any.

    Example:
        >>> function("apply", lambda params, state, x, key: x, ("params", "state", "x", "key"))

    Raises:
        TypeError: it cannot be called, or not with so many arguments.
    """
    call = "" if arguments is None else f" as ({', '.join(arguments)})"
    if not callable(value):
        raise TypeError(f"{name} must be callable{call}{hint}, got {what(value)}")
    if arguments is None:
        return
    try:
        takes = inspect.signature(value)
    except (TypeError, ValueError):  # no signature to look at
        return
    try:
        takes.bind(*arguments)
    except TypeError:
        own = f"{getattr(value, '__name__', type(value).__name__)}({', '.join(takes.parameters)})"
        raise TypeError(f"{name} must be callable{call}{hint}, got {own}") from None


def signature(name: str, value: Any, form: str) -> inspect.Signature:
    """What a callable takes.

    Example:
        >>> signature("function", lambda f, x: x, "(f, x)")
        <Signature (f, x)>

    Raises:
        TypeError: it cannot be called, or is one of Python's own, which do not say what they take.
    """
    if not callable(value):
        raise TypeError(f"{name} must be callable as {form}, got {type(value).__name__}")
    try:
        return inspect.signature(value)
    except ValueError:
        raise TypeError(f"{name} must be callable as {form}, got {value!r}, which does not say what it takes") from None


def takes(function: Any, name: str) -> bool:
    """Whether a function, and each that it wraps, has an argument of this name.

    Example:
        >>> takes(lambda f, losses=None: f, "losses"), takes(lambda f: f, "losses")
        (True, False)
    """
    if isinstance(function, functools.partial):
        return name not in function.keywords and takes(function.func, name)
    try:
        parameters = inspect.signature(function, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # no signature to look at
        return False
    inner = getattr(function, "__wrapped__", None)
    hands_on = inner is not None and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return name in parameters or (hands_on and takes(inner, name))


def pair(name: str, found: Any, form: str) -> tuple[Any, Any]:
    """What a user's function gave, where it shall give two things.

    Example:
        >>> pair("objective", (1.0, {}), "(losses, metrics)")
        (1.0, {})

    Raises:
        TypeError: no tuple or list of two.
    """
    if not isinstance(found, tuple | list) or len(found) != 2:
        got = f"{type(found).__name__} of {len(found)}" if isinstance(found, tuple | list) else what(found)
        raise TypeError(f"{name} must give {form}, got {got}")
    return tuple(found)


def of_form(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss for a train step, which says so where it does not give what a loss gives.

    Example:
        >>> of_form(lambda *arguments: (0.0, ({}, {})))(None, None, None, None)
        (0.0, ({}, {}))

    Raises:
        TypeError: in a call, it gives something else.
        ValueError: in a call, it gives a model_state of other shapes than it got.
    """
    form = "(loss, (model_state, metrics)), metrics a dict"
    shapes = lambda tree: {keystr(path) or "the top": np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}

    def looked_at(params: Any, state: Any, batch: Any, keys: Any) -> Any:
        value, rest = pair("loss", loss(params, state, batch, keys), form)
        model_state, metrics = pair("loss", rest, form)
        if not isinstance(metrics, Mapping):
            raise TypeError(f"loss must give {form}, got metrics of type {type(metrics).__name__}")
        came, gives = shapes(getattr(state, "model_state", model_state)), shapes(model_state)
        if came != gives:
            at = min(name for name, _ in came.items() ^ gives.items())
            got = f"{came.get(at, 'nothing')} came at {at}, and it gives {gives.get(at, 'nothing')}"
            raise ValueError(f"loss must give a model_state of the shapes of the one in state: {got}")
        return value, (model_state, metrics)

    return looked_at


def items(name: str, value: Any, form: str) -> tuple[Any, ...]:
    """The members of a sequence, which may be an iterator.

    Example:
        >>> items("boundaries", range(2), "steps")
        (0, 1)

    Raises:
        TypeError: one value alone, a text, a dict or a set.
    """
    if isinstance(value, str | bytes | Mapping | set | frozenset):
        raise TypeError(f"{name} must be a sequence of {form}, got {type(value).__name__}")
    try:
        return tuple(value)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {form}, got {what(value)}") from None


def free_names(name: str, metrics: Mapping[str, Any], taken: Sequence[str]) -> None:
    """Metrics of a user's function by names that are not taken.

    Example:
        >>> free_names("objective", {"top3": 0.5}, ("loss",))

    Raises:
        ValueError: one is.
    """
    if both := sorted(set(taken) & metrics.keys()):
        raise ValueError(f"{name} must not call a metric {' or '.join(map(repr, both))}: that of the step is called so")


def pure(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: says what to do where a function under study changes its own state while it is traced, or fails."""
    takes_f = "f" in inspect.signature(function).parameters

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with jax.named_scope(function.__name__.strip("_")):  # in profiles, by the name that the user called
                return function(*args, **kwargs)
        except Exception as error:
            if type(error).__name__ not in _MUTATION:
                if takes_f:
                    _advise(error)
                raise
            raise TypeError(
                "f must be a pure function of x, got one that changes the state of a flax module while it is traced, "
                "as BatchNorm and Dropout do in train mode. Take the module apart: functional = interop.from_nnx(model)"
                " or from_linen(module, variables), then f = lambda x: functional.train(params, model_state, x, key), "
                "which gives (f(x), new state) for has_aux=True, or functional.batch_statistics, or eval mode"
            ) from error

    return call


def _advise(error: Exception) -> None:
    """A note on an error that was raised in f, not in this library: what f is called with, or that JAX is wanted."""
    innermost = inspect.getinnerframes(error.__traceback__, context=0)[-1].frame if error.__traceback__ else None
    if innermost is None or innermost.f_globals.get("__name__", "").startswith("jacreg_jax"):
        return
    foreign = type(error).__name__ == "TracerArrayConversionError"
    note = _FOREIGN if foreign else _BATCHED if isinstance(error, TypeError | ValueError) else None
    if note is not None and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
