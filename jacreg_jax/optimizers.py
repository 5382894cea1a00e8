"""SGD and the learning rate of the paper, as optax transformations."""

import inspect
from collections.abc import Iterable
from typing import Any

import optax

from jacreg_jax import checks
from jacreg_jax.types import PyTree


def quench(initial: float, boundaries: Iterable[int], factor: float = 0.1) -> optax.Schedule:
    """Learning rate `initial`, multiplied by `factor` at each of the given steps (paper: tenfold at 50k and 100k).

    Args:
        initial: learning rate before the first of them.
        boundaries: steps, each of which counts once; with 0 among them the first step is multiplied already.
        factor: at each of them.

    Returns:
        Schedule of the step.

    Raises:
        TypeError: not real numbers; boundaries is no sequence, or a dict: the factor is one for all.
        ValueError: initial or factor not above 0; a boundary that is no step.

    Example:
        >>> [round(float(quench(0.1, [2])(step)), 3) for step in range(4)]
        [0.1, 0.1, 0.01, 0.01]
    """
    checks.positive("initial", initial)
    checks.positive("factor", factor)
    steps = [checks.count("boundaries", step, least=0) for step in checks.items("boundaries", boundaries, "steps")]
    return optax.piecewise_constant_schedule(initial, dict.fromkeys(steps, factor))


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: optax.ScalarOrSchedule = 0.0
) -> optax.GradientTransformation:
    """SGD as in the paper: u <- rho u + g + lambda_WD theta, theta <- theta - eta u.

    The decay is coupled, the gradient of (lambda_WD / 2) ||theta||^2, and acts on all parameters, as in torch. It may
    be traced, such as one of several under vmap.

    Args:
        learning_rate: eta, or a schedule of the step.
        momentum: rho, in [0, 1).
        weight_decay: lambda_WD, or a schedule of the step.

    Returns:
        An optax transformation.

    Raises:
        TypeError: not real numbers.
        ValueError: negative, not finite, or momentum of 1 or more.

    Example:
        >>> optimizer = sgd(quench(0.1, [50_000, 100_000]), weight_decay=5e-4)
    """
    if not callable(learning_rate):
        checks.non_negative("learning_rate", learning_rate)
    checks.fraction("momentum", momentum, zero=True)
    if not callable(weight_decay):
        checks.non_negative("weight_decay", weight_decay)
    step = optax.sgd(learning_rate, momentum=momentum or None)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return step
    return optax.chain(optax.add_decayed_weights(weight_decay), step)


def updated(
    optimizer: Any, grads: PyTree, opt_state: PyTree, params: PyTree, extra: dict[str, Any]
) -> tuple[PyTree, PyTree]:
    """(updates, opt_state) of an optimizer that gets those extra arguments which its update takes.

    Most take any; some, such as `optax.contrib.sam`, name theirs and refuse all others.

    Args:
        optimizer: an optax transformation, or `optax.MultiSteps`.
        grads: gradients of params.
        opt_state: its state.
        params: parameters.
        extra: by name, such as value.

    Returns:
        What its update returns.

    Example:
        >>> updates, _ = updated(optax.sgd(0.5), 1.0, optax.sgd(0.5).init(2.0), 2.0, {"value": 3.0})
        >>> float(updates)
        -0.5
    """
    update = optax.with_extra_args_support(optimizer).update
    taken = inspect.signature(update).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        extra = {name: value for name, value in extra.items() if name in taken}
    return update(grads, opt_state, params, **extra)
