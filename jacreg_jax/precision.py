"""Mixed precision: a model that computes in bfloat16 between float32 parameters, losses and penalties."""

from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.types import Apply, PyTree


def computed_in(dtype: Any, apply: Apply) -> Apply:
    """The same model with its parameters and its input cast to a dtype, and its output cast back to float32.

    Parameters and their gradients, the state, the loss and the sums of the penalty stay in float32; the products inside
    of the model, and of its vector-Jacobian products, are in the dtype. XLA sums the products of a matmul in float32.

    Args:
        dtype: such as `jnp.bfloat16`; float16 needs a loss scale of one's own.
        apply: (params, model_state, x, key) -> (output, model_state).

    Returns:
        Such a function; what it is marked with, such as reading running statistics, stays.

    Raises:
        TypeError: dtype is no floating point type; apply cannot be called so.

    Example:
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> half = computed_in(jnp.bfloat16, apply)
        >>> half(jnp.ones((3, 2)), {}, jnp.ones((1, 3)), None)[0].dtype
        dtype('float32')
    """
    _check_floating(dtype)
    checks.function("apply", apply, ("params", "model_state", "x", "key"))

    def computed(params: PyTree, model_state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        output, new = apply(_cast(params, dtype), model_state, _cast(x, dtype), key)
        back = lambda leaf, like: leaf.astype(like.dtype) if hasattr(like, "dtype") else leaf
        is_same = str(jax.tree.structure(new)) == str(jax.tree.structure(model_state))
        return _cast(output, jnp.float32), jax.tree.map(back, new, model_state) if is_same else new

    computed.computed_in = jnp.dtype(dtype)  # type: ignore[attr-defined]  # `penalties.of_model` looks at it
    for mark in ("reads_running_statistics", "is_train_mode"):
        if hasattr(apply, mark):
            setattr(computed, mark, getattr(apply, mark))
    if hasattr(apply, "inside"):  # what a penalty differentiates, see `models.held_statistics_mode`
        computed.inside = computed_in(dtype, apply.inside)  # type: ignore[attr-defined]
    return computed


def _check_floating(dtype: Any) -> None:
    try:
        is_floating = dtype is not None and jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        is_floating = False
    if not is_floating:
        raise TypeError(f"dtype must be a floating point type, such as jnp.bfloat16, got {dtype!r}")


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Floating point leaves in the dtype; others, such as tokens, as they are."""

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)
