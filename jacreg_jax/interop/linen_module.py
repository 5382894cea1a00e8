"""flax.linen modules."""

from collections.abc import Mapping
from typing import Any

from jacreg_jax.functional import Functional
from jacreg_jax.interop.function import require
from jacreg_jax.modes import MODES


def from_linen(module: Any, variables: Any, **options: Any) -> Functional:
    """A flax.linen module and what its `init` gave.

    Args:
        module: a `flax.linen.Module`. Its modes are found by the arguments of its call that are named as one of
            `modes.MODES`, such as train, training, deterministic, inference or use_running_average.
        variables: {"params": ..., and other collections, which are then updated and returned}.
        **options: for the module's call, such as train=True.

    Returns:
        Functional.

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

    require(isinstance(module, linen.Module), "flax.linen.Module", module, "module")
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(f"variables must hold 'params', got {got}")
    from jacreg_jax.models import apply as linen_apply

    state = {name: collection for name, collection in variables.items() if name != "params"}
    others = {name: value for name, value in options.items() if name not in MODES}
    return Functional(
        linen_apply.called_with(module, **options),
        variables["params"],
        state,
        train=linen_apply.train_mode(module, **others),
        eval=linen_apply.eval_mode(module, **others),
        batch_statistics=linen_apply.batch_statistics_mode(module, **others),
        rebuild=lambda params, state: {"params": params, **state},
    )
