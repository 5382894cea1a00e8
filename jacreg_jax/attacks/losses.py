"""What attacks climb: losses [...] of logits [..., C] and labels [...], without cancellation in float32.

Usually one for each sample, [B]; of tokens one for each position, [B, T].
"""

import jax
import jax.numpy as jnp

from jacreg_jax.types import Array


def others(logits: Array, y: Array) -> Array:
    """Logits with the true class at -inf.

    Args:
        logits: [..., C].
        y: integer labels [...].

    Returns:
        [..., C].

    Example:
        >>> others(jnp.array([[3.0, 1.0]]), jnp.array([0])).tolist()
        [[-inf, 1.0]]
    """
    return jnp.where(jax.nn.one_hot(y, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def true_logit(logits: Array, y: Array) -> Array:
    """z_y; [...].

    Args:
        logits: [..., C].
        y: integer labels [...].

    Returns:
        [...].

    Example:
        >>> true_logit(jnp.array([[3.0, 1.0]]), jnp.array([1])).tolist()
        [1.0]
    """
    return jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]


def log_odds(logits: Array, y: Array) -> Array:
    """logsumexp_{c != y} z_c - z_y = log((1 - p_y) / p_y): what cross-entropy is a rising function of.

    Its gradient has the direction of the cross-entropy's without the factor 1 - p_y, so sign and unit-length steps are
    the same, and it does not vanish however confident the model is.

    Args:
        logits: [..., C].
        y: integer labels [...].

    Returns:
        [...].

    Example:
        >>> log_odds(jnp.array([[3.0, 1.0]]), jnp.array([0])).tolist()
        [-2.0]
    """
    return jax.nn.logsumexp(others(logits, y), axis=-1) - true_logit(logits, y)


def cross_entropy(logits: Array, y: Array) -> Array:
    """-log softmax(z)_y = softplus(log odds against y).

    The usual form's gradient is p_y - 1 by subtraction: wrong from a margin of 16 and exactly zero from 17 in float32,
    which makes a confident model look robust. This one is right up to 87, where 1 - p_y leaves float32.

    Args:
        logits: [..., C].
        y: integer labels [...].

    Returns:
        [...].

    Example:
        >>> cross_entropy(jnp.array([[1.0, 1.0]]), jnp.array([0])).round(3).tolist()
        [0.6930000185966492]
    """
    return jax.nn.softplus(log_odds(logits, y))


def margin(logits: Array, y: Array) -> Array:
    """max_{c != y} z_c - z_y: positive where fooled (Carlini and Wagner's f6 with the sign turned).

    Args:
        logits: [..., C].
        y: integer labels [...].

    Returns:
        [...].

    Example:
        >>> margin(jnp.array([[3.0, 1.0]]), jnp.array([0])).tolist()
        [-2.0]
    """
    return jnp.max(others(logits, y), axis=-1) - true_logit(logits, y)


def dlr(logits: Array, y: Array) -> Array:
    """Difference-of-logits ratio, (max_{c != y} z_c - z_y) / (z_(1) - z_(3)): unchanged by a rescaling of the logits.

    z_(k) is the k-th largest logit; needs 3 classes.

    Args:
        logits: [..., C].
        y: integer labels [...].

    Returns:
        [...].

    Example:
        >>> dlr(jnp.array([[5.0, 3.0, 1.0]]), jnp.array([0])).tolist()  # (3 - 5) / (5 - 1)
        [-0.5]

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    ordered = jnp.sort(logits, axis=-1)
    return margin(logits, y) / (ordered[..., -1] - ordered[..., -3] + 1e-12)


def dlr_targeted(logits: Array, y: Array, target: Array) -> Array:
    """(z_target - z_y) / (z_(1) - (z_(3) + z_(4)) / 2); needs 4 classes.

    Args:
        logits: [..., C].
        y: integer labels [...].
        target: integer classes [...].

    Returns:
        [...].

    Example:
        >>> # (2 - 5) / (5 - (2 + 0) / 2)
        >>> dlr_targeted(jnp.array([[5.0, 3.0, 2.0, 0.0]]), jnp.array([0]), jnp.array([2])).tolist()
        [-0.75]

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    ordered = jnp.sort(logits, axis=-1)
    spread = ordered[..., -1] - (ordered[..., -3] + ordered[..., -4]) / 2
    return (true_logit(logits, target) - true_logit(logits, y)) / (spread + 1e-12)
