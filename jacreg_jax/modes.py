"""The modes of a model: which arguments of its call say that it trains, and which modules keep running averages."""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from jacreg_jax import checks

# arguments that choose the mode of a model, and their value in train mode
MODES = {"train": True, "training": True, "is_training": True, "is_train": True, "train_mode": True}
MODES |= {"deterministic": False, "use_running_average": False, "inference": False}
MODES |= {"eval": False, "is_eval": False, "eval_mode": False, "evaluate": False}


def mode_arguments(call: Callable[..., Any], *, with_a_value: bool = False) -> tuple[str, ...]:
    """The arguments of MODES that this call takes, in that order.

    Args:
        call: of a module's class, or a function.
        with_a_value: those alone whose default is True or False; with None the module itself decides.

    Example:
        >>> mode_arguments(lambda self, x, deterministic, train=False: x)
        ('train', 'deterministic')
    """
    parameters = inspect.signature(call).parameters
    has_value = lambda name: isinstance(parameters[name].default, bool)
    return tuple(name for name in MODES if name in parameters and (has_value(name) or not with_a_value))


def in_mode(names: tuple[str, ...], is_train: bool) -> dict[str, bool]:
    """Values of these arguments in train or in eval mode.

    Example:
        >>> in_mode(("deterministic", "train"), True)
        {'deterministic': False, 'train': True}
    """
    return {name: MODES[name] == is_train for name in names}


def warn_of_unknown_mode(call: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """A UserWarning where a call has no argument of MODES, but one that is True or False and may be a mode.

    Args:
        call: of a module's class, or a function.
        options: arguments that are given by the caller, which so has decided.
    """
    parameters = inspect.signature(call).parameters
    unknown = [n for n, p in parameters.items() if p.annotation in (bool, "bool") or isinstance(p.default, bool)]
    if unknown and not any(name in MODES for name in parameters) and not options.keys() & set(unknown):
        checks.warn(
            f"the call of the model takes {unknown[0]!r}, which no mode is known by: train and eval mode are the same "
            f"here. Name it as one of {', '.join(MODES)}, or give {unknown[0]}=True or False if it is none"
        )


def keeps_average(module: Any) -> bool:
    """Whether a module has a momentum, as one that keeps running averages, and BatchNorm, does."""
    momentum = getattr(module, "momentum", None)
    is_scalar = getattr(momentum, "shape", None) == ()
    return (isinstance(momentum, numbers.Real) or is_scalar) and not isinstance(momentum, bool)
