"""Which class logits name, if any: one logit is two classes, and logits which are not finite name none."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.types import Array


def as_logits(z: Array) -> Array:
    """Logits [..., C] of at least two classes: a single logit z, [B] or [..., 1], becomes (0, z), class 1 above 0.

    Example:
        >>> as_logits(jnp.array([2.0, -1.0])).tolist()
        [[0.0, 2.0], [0.0, -1.0]]

    Raises:
        TypeError: no array.
    """
    if not hasattr(z, "ndim"):
        raise TypeError(f"f(x) must be one array of logits, got {type(z).__name__}")
    if z.ndim == 0 or (z.ndim > 1 and z.shape[-1] != 1):
        return z
    z = z[..., 0] if z.ndim > 1 else z
    return jnp.stack([jnp.zeros_like(z), z], axis=-1)


def predicted_class(logits: Array) -> Array:
    """Argmax of logits [..., C], the first among equals; -1 where a logit is NaN or infinite; [...] int32.

    A model that has overflowed is never right, never certified, and has no decision cell.

    Example:
        >>> predicted_class(jnp.array([[1.0, 2.0], [jnp.nan, 0.0], [jnp.inf, 0.0]])).tolist()
        [1, -1, -1]
    """
    return jnp.where(jnp.isfinite(logits).all(-1), jax.lax.argmax(logits, logits.ndim - 1, jnp.int32), -1)


def with_enough_classes(attacks: Mapping[str, Any], classes: int) -> list[str]:
    """Names of the attacks that can run on so many classes; of those whose `least_classes` are more, a warning.

    Classes are 0 where f gives logits of positions, which no such attack takes.
    """
    least = {name: getattr(attack, "least_classes", 0) for name, attack in attacks.items()}
    for name, needed in least.items():
        if needed > classes:
            got = f"f gives {classes}" if classes else "one label for each sample"
            checks.warn(f"{name} is left out: it needs at least {needed} classes, {got}")
    return [name for name, needed in least.items() if needed <= classes]
