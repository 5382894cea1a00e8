"""Fast gradient sign method, Eq. 10 of the paper."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.gradient import is_zero, loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import AttackResult, spread
from jacreg_jax.attacks.start import begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.types import Array, Function


@checks.pure
def fgsm(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array | None = None,
    *,
    epsilon: ArrayLike,
    loss: Function = log_odds,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """clip(x + epsilon * sign(d loss / d x)): one step of the gradient's sign.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used; here for the common order of arguments.
        epsilon: size of the step in raw pixels, scalar or [B].
        loss: per-sample loss of (logits, y); the default has the cross-entropy's direction, see `losses.log_odds`.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with L-infinity distances.

    Raises:
        TypeError, ValueError: see `start.begin`.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> fgsm(f, x, y, epsilon=0.3).success.tolist()
        [True, False]

    Reference: Goodfellow, Shlens, Szegedy (2014), https://arxiv.org/abs/1412.6572.
    """
    del key
    start = begin(f, x, y, bounds, epsilon=epsilon)
    gradient = loss_gradient(f, start.x, start.y, loss)
    x_adv = start.clip(start.x + spread(epsilon, start.x) * jnp.sign(gradient))
    steps = start.full(1, jnp.int32)
    return finish(start, x_adv, norm="linf", steps=steps, grad_zero=is_zero(gradient))
