"""Bare functions, and what all adapters share."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from jacreg_jax import checks
from jacreg_jax.functional import Functional, Output
from jacreg_jax.types import Apply, Function, PyTree


def bind(apply: Apply, params: PyTree, model_state: PyTree = None, key: jax.Array | None = None) -> Function:
    """f(x) -> output, with everything else held; a pytree of it, so that new parameters do not recompile.

    Args:
        apply: (params, model_state, x, key) -> (output, model_state).
        params: pytree of parameters.
        model_state: None: {}.
        key: typed key, for a model that draws.

    Returns:
        f.

    Raises:
        TypeError: apply cannot be called so.

    Example:
        >>> apply, params, model_state = from_function(lambda p, x: x @ p, jnp.ones((3, 2)))
        >>> bind(apply, params)(jnp.ones((1, 3)))
        Array([[3., 3.]], dtype=float32)
    """
    checks.function("apply", apply, ("params", "model_state", "x", "key"))
    return jax.tree_util.Partial(Output(apply), params, model_state if model_state is not None else {}, key)


def from_function(f: Callable[[PyTree, Any], Any], params: PyTree) -> Functional:
    """A bare function f(params, x) -> output.

    Args:
        f: pure function.
        params: pytree of parameters.

    Returns:
        Functional.

    Raises:
        ValueError: f cannot be called.

    Example:
        >>> functional = from_function(lambda p, x: x @ p, jnp.ones((3, 2)))
        >>> functional.predictor()(jnp.ones((1, 3)))
        Array([[3., 3.]], dtype=float32)
    """
    if not callable(f):
        raise ValueError(f"f must be a function of (params, x), got {type(f).__name__}")
    apply: Apply = lambda params, state, x, key=None: (f(params, x), state)
    return Functional(apply, params, {}, apply, apply, apply, lambda params, state: partial(f, params))


def require(holds: bool, expected: str, model: Any, name: str = "model") -> None:
    """ValueError that names what came, unless the model is what is expected."""
    if not holds:
        raise ValueError(f"{name} must be a {expected}, got {type(model).__module__}.{type(model).__name__}")
