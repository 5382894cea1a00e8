"""haiku.transform and haiku.transform_with_state."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import shares
from jacreg_jax.functional import CallsOfNorms, Functional, at_batch_statistics, reads_running_statistics
from jacreg_jax.interop.function import require
from jacreg_jax.modes import MODES, in_mode
from jacreg_jax.types import Apply, PyTree


def from_haiku(transformed: Any, params: PyTree, state: PyTree = None, **options: Any) -> Functional:
    """What `haiku.transform` or `haiku.transform_with_state` gave.

    Args:
        transformed: `haiku.Transformed`, or `haiku.TransformedWithState`.
        params: from its `init`.
        state: from its `init`, with state.
        **options: for the function, such as is_training=True. The modes are found by those that are named as one of
            `modes.MODES`, such as is_training, train or deterministic.

    Returns:
        Functional.

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
    require(stateful or isinstance(transformed, haiku.Transformed), "haiku.Transformed", transformed, "transformed")

    def call(params: PyTree, state: PyTree, x: Any, key: Any = None, **mode: Any) -> tuple[Any, PyTree]:
        with haiku.intercept_methods(over_whole_batch):
            if stateful:
                return transformed.apply(params, state, key, x, **options | mode)
            return transformed.apply(params, key, x, **options | mode), state

    def is_norm_call(context: Any) -> bool:
        return isinstance(context.module, haiku.BatchNorm) and context.method_name == "__call__"

    def over_whole_batch(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """On a share of a batch, BatchNorm averages over the axis of the mesh too."""
        if shares.batch_axis() is not None and is_norm_call(context):
            context.module.cross_replica_axis = context.module.cross_replica_axis or shares.batch_axis()
        return method(*args, **kwargs)

    def statistics(params: PyTree, state: PyTree, x: Any, key: Any) -> PyTree:
        """A train-mode pass from averages of no batch leaves the batch's own: haiku's averages are debiased."""
        fresh = {
            name: jax.tree.map(jnp.zeros_like, values) if name.endswith(("/mean_ema", "/var_ema")) else values
            for name, values in state.items()
        }
        calls = CallsOfNorms()

        def counted(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if is_norm_call(context):
                calls[context.module.module_name] += 1
            return method(*args, **kwargs)

        with haiku.intercept_methods(counted):
            new = train(params, fresh, x, key)[1]
        calls.tell()
        return new

    initial = {} if state is None else state
    rebuild = lambda params, state: (params, state)
    names = tuple(name for name in options if name in MODES)
    if not names:  # one mode is all there is
        return Functional(call, params, initial, call, call, None if stateful else call, rebuild)
    train: Apply = partial(call, **in_mode(names, True))
    evaluate = reads_running_statistics(partial(call, **in_mode(names, False)))
    return Functional(call, params, initial, train, evaluate, at_batch_statistics(statistics, evaluate), rebuild)
