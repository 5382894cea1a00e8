"""Projected gradient descent in an L-infinity or L2 ball, one compiled loop."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.fgsm import loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import (
    AttackResult,
    Norm,
    check_count,
    check_inputs,
    distance,
    finish,
    sample_keys,
    spread,
)


def pgd(
    f: Callable,
    x,
    y,
    key=None,
    *,
    epsilon,
    step_size,
    num_steps: int,
    norm: Norm = "linf",
    random_start: bool = False,
    loss: Callable = log_odds,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """num_steps of x <- project(x + step_size * direction), direction the gradient's sign or unit vector.

    The projection is onto the ball of radius epsilon around the input, then onto bounds. The last iterate counts.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; needed for random_start.
        epsilon: radius in raw pixels, scalar or [B].
        step_size: in raw pixels, scalar or [B].
        num_steps: gradient steps.
        norm: "linf" or "l2".
        random_start: start from a uniform point of the ball.
        loss: per-sample loss of (logits, y); the default has the cross-entropy's direction, see `losses.log_odds`.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with distances in `norm`.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; num_steps below 1; random_start without a typed key.

    Reference: Madry et al. (2017), https://arxiv.org/abs/1706.06083.
    """
    check_inputs(x, y, bounds, norm=norm, epsilon=epsilon, step_size=step_size)
    check_count("num_steps", num_steps)
    start = project(x + _uniform_in_ball(key, x, epsilon, norm), x, epsilon, norm, bounds) if random_start else x

    def step(_, x_adv):
        direction = ascent_direction(loss_gradient(f, x_adv, y, loss), norm)
        return project(x_adv + spread(step_size, x) * direction, x, epsilon, norm, bounds)

    x_adv = jax.lax.fori_loop(0, num_steps, step, start)
    clean_gradient = loss_gradient(f, x, y, loss)
    grad_zero = jnp.all(clean_gradient.reshape(len(x), -1) == 0, axis=1)
    return finish(f, x, y, x_adv, norm=norm, steps=jnp.full(len(x), num_steps), grad_zero=grad_zero)


def ascent_direction(gradient: jax.Array, norm: Norm) -> jax.Array:
    """Steepest unit step: sign(g), or g / ||g||_2, scaled by max|g| first so that tiny gradients do not underflow."""
    if norm == "linf":
        return jnp.sign(gradient)
    largest = spread(distance(gradient, "linf"), gradient)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(spread(distance(scaled, "l2"), gradient), 1e-12)


def project(x_adv, x, epsilon, norm: Norm, bounds) -> jax.Array:
    """The nearest point of the ball around x, then of bounds."""
    epsilon, delta = spread(epsilon, x), x_adv - x
    if norm == "linf":
        delta = jnp.clip(delta, -epsilon, epsilon)
    else:
        length = spread(distance(delta, "l2"), x)
        delta = delta * jnp.minimum(1, epsilon / jnp.maximum(length, 1e-12))
    return jnp.clip(x + delta, *bounds)


def _uniform_in_ball(key, x, epsilon, norm: Norm) -> jax.Array:
    keys = sample_keys(key, len(x))
    epsilon = spread(epsilon, x)
    if norm == "linf":
        return epsilon * jax.vmap(lambda k, x: jax.random.uniform(k, x.shape, x.dtype, -1, 1))(keys, x)
    draw = jax.vmap(lambda k, x: jax.random.ball(k, x.size, dtype=x.dtype).reshape(x.shape))
    return epsilon * draw(keys, x)
