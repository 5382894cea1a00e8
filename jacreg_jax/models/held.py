"""BatchNorm for a penalty: train mode, its statistics constant for the derivative with respect to x, and for it alone.

The penalty takes J = dz/dx at fixed statistics, so that rows are independent; the gradient of the loss runs through
them, in the parameters. Two derivatives, one inside the other, of one forward pass: the inner one is told to stop at
the statistics, the outer one is not. `batch_statistics_mode` says the same with a second pass.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from flax import linen as nn

from jacreg_jax.functional import constant_inside
from jacreg_jax.models.apply import train_mode
from jacreg_jax.modes import keeps_average
from jacreg_jax.types import Apply, PyTree


def held_statistics_mode(module: nn.Module, **options: Any) -> Apply:
    """(params, model_state, x, key) -> (logits, model_state): train mode, statistics constant inside the penalty.

    What to penalise where there is BatchNorm: `penalties.of_model(held_statistics_mode(module))`. The numbers are those
    of `batch_statistics_mode` where the module draws no dropout, at the cost of one forward and one backward pass less:
    the loss takes its logits and its new statistics from here. With dropout, the penalty shares the mask of the step.

    The function itself is train mode. `penalties.projected` and `exact`, and what stands around them, take its `inside`
    where they differentiate, and `penalties.of` refuses it.

    Args:
        module: as for `train_mode`, with the statistics of `flax.linen.BatchNorm` alone.
        **options: other arguments of its call.

    Returns:
        A function for `penalties.of_model`.

    Raises:
        TypeError: module is no linen module; in a call, a module in it keeps running averages of its own.

    Example:
        >>> from jacreg_jax import penalties
        >>> from jacreg_jax.models import ResNet18
        >>> penalty = penalties.of_model(held_statistics_mode(ResNet18()))
    """
    return HeldStatistics(train_mode(module, **options))


@dataclasses.dataclass(frozen=True)
class HeldStatistics:
    """Train mode, and the form of it that a penalty differentiates with respect to x."""

    train: Apply
    is_train_mode: ClassVar[bool] = True  # a penalty of this form has computed what the loss needs

    def __call__(self, params: PyTree, model_state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        """(logits, model_state) of train mode."""
        return self.train(params, model_state, x, key)

    def inside(self, params: PyTree, model_state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        """The same numbers; right under a derivative with respect to x, and wrong under one in the parameters alone."""
        with nn.intercept_methods(_hold):
            return self.train(params, model_state, x, key)


def _hold(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """In train mode, BatchNorm normalises by statistics that the innermost derivative does not see."""
    module = context.module
    if not keeps_average(module) or context.method_name != "__call__":
        return method(*args, **kwargs)
    if not isinstance(module, nn.BatchNorm):
        raise TypeError(
            f"module holds a {type(module).__name__}, which keeps running averages of its own: held_statistics_mode "
            "knows those of flax.linen.BatchNorm; take batch_statistics_mode(module)"
        )
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    if nn.merge_param("use_running_average", module.use_running_average, given):
        return method(*args, **kwargs)
    running, momentum = dict(module.variables["batch_stats"]), module.momentum
    object.__setattr__(module, "momentum", 0.0)  # of this call's own copy: the variables become the batch's own
    dtype = method(*args, **kwargs).dtype
    object.__setattr__(module, "momentum", momentum)
    of_batch: dict[str, jax.Array] = {name: module.get_variable("batch_stats", name) for name in running}
    for name, value in of_batch.items():
        module.put_variable("batch_stats", name, momentum * running[name] + (1 - momentum) * value)
    return _normalised(module, args[0] if args else kwargs["x"], **constant_inside(of_batch)).astype(dtype)


def _normalised(module: nn.BatchNorm, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    """scale (x - mean) / sqrt(var + epsilon) + bias, as x * factor + shift: two sums in its gradient, not three."""
    axes = {axis % x.ndim for axis in (module.axis if isinstance(module.axis, tuple | list) else (module.axis,))}
    along = lambda leaf: leaf.reshape([x.shape[i] if i in axes else 1 for i in range(x.ndim)])
    factor, params = jax.lax.rsqrt(along(var) + module.epsilon), module.variables.get("params", {})
    if module.use_scale:
        factor = factor * along(params["scale"])
    shift = -along(mean) * factor
    if module.use_bias:
        shift = shift + along(params["bias"])
    return x * factor + shift
