"""What an attack returns, and the checks that every attack shares."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.attacks.losses import log_odds

Norm = Literal["linf", "l2"]


class AttackResult(NamedTuple):
    """The outcome for every sample of a batch.

    A sample whose clean logits are not finite counts as wrong from the start; logits that become NaN under attack never
    count as a success.
    """

    x_adv: jax.Array  # [B, ...] raw pixels; the input itself where it was wrong from the start
    success: jax.Array  # [B] bool: f calls x_adv something other than y, by a last evaluation
    distance: jax.Array  # [B] in the attack's norm; 0 where wrong from the start, +inf where never fooled
    clean_correct: jax.Array  # [B] bool
    steps: jax.Array  # [B] int32: gradient steps to the point that was kept
    grad_zero: jax.Array  # [B] bool: the gradient at the clean sample was exactly zero; a sign of masking


def spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """[B] or scalar as [B, 1, ...] beside x [B, ...]."""
    return jnp.broadcast_to(jnp.asarray(values, x.dtype), x.shape[:1]).reshape(-1, *(1,) * (x.ndim - 1))


def distance(delta: jax.Array, norm: Norm) -> jax.Array:
    """Per-sample norm of delta [B, ...]; [B]."""
    flat = delta.reshape(delta.shape[0], -1)
    return jnp.abs(flat).max(1) if norm == "linf" else jnp.sqrt(jnp.sum(flat**2, axis=1))


def is_correct(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Argmax = y and no NaN; [B]."""
    return (jnp.argmax(logits, -1) == y) & ~jnp.isnan(logits).any(-1)


def is_fooled(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Argmax is a class other than y, and no NaN; [B]."""
    return (jnp.argmax(logits, -1) != y) & ~jnp.isnan(logits).any(-1)


def finish(f: Callable, x, y, x_adv, *, norm: Norm, steps, grad_zero) -> AttackResult:
    """The result for candidates x_adv, judged by one more evaluation of f."""
    clean_correct = is_correct(f(x), y)
    x_adv = jnp.where(spread(clean_correct, x) > 0, x_adv, x)
    success = ~clean_correct | is_fooled(f(x_adv), y)
    reached = jnp.where(success, distance(x_adv - x, norm), jnp.inf)
    zero = jnp.zeros_like(y)
    return AttackResult(
        x_adv,
        success,
        jnp.where(clean_correct, reached, 0.0),
        clean_correct,
        jnp.where(clean_correct, steps, zero).astype(jnp.int32),
        grad_zero,
    )


def best_of(*results: AttackResult) -> AttackResult:
    """The nearest fooling image of several attacks for every sample, the point-wise worst case.

    The results must be in the same norm; where none succeeds the first one's image stays.
    """
    nearest = jnp.argmin(jnp.stack([r.distance for r in results]), axis=0)

    def choose(*leaves):
        index = nearest.reshape(1, -1, *(1,) * (leaves[0].ndim - 1))
        return jnp.take_along_axis(jnp.stack(leaves), index, axis=0)[0]

    return jax.tree.map(choose, *results)


def zero_gradient(f: Callable, x, y, loss: Callable = log_odds) -> jax.Array:
    """[B] bool: the gradient of the loss at x is exactly zero."""
    gradient = jax.grad(lambda x: jnp.sum(loss(f(x), y)))(x)
    return jnp.all(gradient.reshape(len(x), -1) == 0, axis=1)


def check_inputs(x, y, bounds, *, norm: str | None = None, **non_negative) -> None:
    """Raise for what no attack can work on; values are looked at where they are concrete.

    Raises:
        TypeError: x is not floating point, or y not integer.
        ValueError: y is not [B]; pixels outside bounds by more than 1e-6; unknown norm; a negative epsilon, ....
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating point raw pixels, got {x.dtype}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"y must be integer labels, got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape {x.shape[:1]}, one label for each sample, got {y.shape}")
    if norm is not None and norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")
    low, high = bounds
    if not isinstance(x, jax.core.Tracer) and x.size:
        least, most = float(np.asarray(x).min()), float(np.asarray(x).max())
        if not (low - 1e-6 <= least and most <= high + 1e-6):
            raise ValueError(f"x must lie in bounds ({low}, {high}), got values from {least} to {most}")
    for name, value in non_negative.items():
        if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} must be at least 0, got {value}")


def check_count(name: str, value: int) -> None:
    """ValueError unless value is an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def sample_keys(key, batch: int) -> jax.Array:
    """One typed key for each sample: fold_in of its row, or the B keys given.

    Raises:
        TypeError: key is not a typed key.
        ValueError: neither one key nor B.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"key must be a typed key, as jax.random.key(seed) makes it; got {got}")
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key must be one key or {batch} keys, one for each sample; got shape {key.shape}")
    return key
