"""What an attack returns, and how images are judged."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jacreg_jax.predictions import predicted_class
from jacreg_jax.types import Array

Norm = Literal["linf", "l2"]
NORMS = ("linf", "l2")


class AttackResult(NamedTuple):
    """The outcome for every sample of a batch.

    A sample whose clean logits are not all finite counts as wrong from the start; logits that become NaN under attack
    never count as a success.
    """

    x_adv: Array  # [B, ...] raw pixels; the input itself where it was wrong from the start
    success: Array  # [B] bool: f calls x_adv something other than y, by a last evaluation
    distance: Array  # [B] in the attack's norm; 0 where wrong from the start, +inf where never fooled
    clean_correct: Array  # [B] bool
    steps: Array  # [B] int32: gradient steps to the point that was kept
    grad_zero: Array  # [B] bool: the gradient at the clean sample was exactly zero; a sign of masking


def spread(values: Any, x: Array) -> Array:
    """[B] or scalar as [B, 1, ...] beside x [B, ...]."""
    return jnp.broadcast_to(jnp.asarray(values, x.dtype), x.shape[:1]).reshape(-1, *(1,) * (x.ndim - 1))


def choose(condition: Array, new: Array, old: Array) -> Array:
    """New where the condition [B] holds, row by row; new and old [B, ...]."""
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def distance(delta: Array, norm: Norm) -> Array:
    """Per-sample norm of delta [B, ...]; [B]."""
    flat = delta.reshape(delta.shape[0], -1)
    return jnp.abs(flat).max(1) if norm == "linf" else jnp.sqrt(jnp.sum(flat**2, axis=1))


def is_correct(logits: Array, y: Array) -> Array:
    """Argmax = y, every logit finite; [B]."""
    return predicted_class(logits) == y.astype(jnp.int32)


def is_fooled(logits: Array, y: Array) -> Array:
    """Argmax is a class other than y, and no logit is NaN; [B]."""
    return (jax.lax.argmax(logits, logits.ndim - 1, jnp.int32) != y.astype(jnp.int32)) & ~jnp.isnan(logits).any(-1)


def best_of(*results: AttackResult) -> AttackResult:
    """The nearest fooling image of several attacks for every sample, the point-wise worst case.

    The results must be in the same norm; where none succeeds the first one's image stays.

    Args:
        *results: of attacks on the same samples, at least one.

    Returns:
        AttackResult; each row is that row of the result with the smallest distance.

    Raises:
        TypeError: what is no AttackResult.
        ValueError: no result, or results of different numbers of samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from jacreg_jax import attacks
        >>> f = lambda x: x @ jnp.array([[1.0, -1.0], [0.0, 0.0]])
        >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
        >>> found = attacks.best_of(attacks.fgsm_distance(f, x - 0.5, y, bounds=(-1, 1)))
        >>> bool(found.success[0])
        True
    """
    for result in results:
        if not isinstance(result, AttackResult):
            raise TypeError(f"results must be AttackResults, got {type(result).__name__}")
    if len({r.x_adv.shape for r in results}) != 1:
        raise ValueError(f"results must be of one number of samples, got images {[r.x_adv.shape for r in results]}")
    nearest = jnp.argmin(jnp.stack([r.distance for r in results]), axis=0)

    def of_nearest(*leaves: Array) -> Array:
        index = nearest.reshape(1, -1, *(1,) * (leaves[0].ndim - 1))
        return jnp.take_along_axis(jnp.stack(leaves), index, axis=0)[0]

    return AttackResult(*map(of_nearest, *results))
