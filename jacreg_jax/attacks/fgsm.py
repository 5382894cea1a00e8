"""Fast gradient sign method, Eq. 10 of the paper."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import AttackResult, check_inputs, finish, spread


def loss_gradient(f: Callable, x, y, loss: Callable = log_odds) -> jax.Array:
    """D loss_a / d x_a of every sample; the sum over the batch, so that no sample sees the batch size."""
    return jax.grad(lambda x: jnp.sum(loss(f(x), y)))(x)


def fgsm(f: Callable, x, y, key=None, *, epsilon, loss: Callable = log_odds, bounds=(0.0, 1.0)) -> AttackResult:
    """clip(x + epsilon * sign(d loss / d x)): one step of the gradient's sign.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used; here for the common order of arguments.
        epsilon: size of the step in raw pixels, scalar or [B].
        loss: per-sample loss of (logits, y); the default has the cross-entropy's direction, see `losses.log_odds`.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L-infinity distances.

    Raises:
        TypeError, ValueError: see `result.check_inputs`.

    Reference: Goodfellow, Shlens, Szegedy (2014), https://arxiv.org/abs/1412.6572.
    """
    del key
    check_inputs(x, y, bounds, epsilon=epsilon)
    gradient = loss_gradient(f, x, y, loss)
    x_adv = jnp.clip(x + spread(epsilon, x) * jnp.sign(gradient), *bounds)
    grad_zero = jnp.all(gradient.reshape(len(x), -1) == 0, axis=1)
    return finish(f, x, y, x_adv, norm="linf", steps=jnp.ones(len(x), jnp.int32), grad_zero=grad_zero)
