"""Decoupled direction and norm: the cheap minimum-norm L2 attack."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.pgd import ascent_direction
from jacreg_jax.attacks.result import (
    AttackResult,
    check_count,
    check_inputs,
    distance,
    finish,
    is_fooled,
    sample_keys,
    spread,
)


def ddn(
    f: Callable,
    x,
    y,
    key: jax.Array,
    *,
    num_steps: int = 100,
    initial_epsilon: float = 1.0,
    gamma: float = 0.05,
    loss: Callable = log_odds,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """The nearest fooling image in L2 by gradient steps whose radius shrinks while fooled and grows while not.

    delta <- delta + a_t g / ||g||, epsilon <- epsilon (1 -+ gamma), delta <- epsilon delta / ||delta||, clipped to
    bounds; a_t falls from 1 to 0.01 along a cosine. Where the gradient is zero the direction is random.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; used where a gradient is zero.
        num_steps: gradient steps.
        initial_epsilon: first radius in raw pixels.
        gamma: relative change of the radius in a step.
        loss: per-sample loss of (logits, y), climbed.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L2 distances.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; num_steps below 1; key is not a typed key.

    Reference: Rony et al. (2019), https://arxiv.org/abs/1811.09600.
    """
    check_inputs(x, y, bounds, initial_epsilon=initial_epsilon, gamma=gamma)
    check_count("num_steps", num_steps)
    keys = sample_keys(key, len(x))
    farthest = distance(jnp.maximum(x - bounds[0], bounds[1] - x), "l2")

    def climb(delta):
        logits = f(x + delta)
        return jnp.sum(loss(logits, y)), is_fooled(logits, y)

    def step(i, carry):
        delta, epsilon, best, shortest, steps, _ = carry
        gradient, fooled = jax.grad(climb, has_aux=True)(delta)
        direction, is_zero = _direction(gradient, keys, i)
        length = distance(delta, "l2")
        better = fooled & (length <= shortest)
        best = jnp.where(spread(better, x) > 0, delta, best)
        shortest = jnp.where(better, length, shortest)
        steps = jnp.where(better, i, steps)

        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * i / num_steps)) / 2
        delta = delta + rate * direction
        epsilon = jnp.minimum(epsilon * jnp.where(fooled, 1 - gamma, 1 + gamma), farthest)
        delta = delta * spread(epsilon / jnp.maximum(distance(delta, "l2"), 1e-12), x)
        return jnp.clip(x + delta, *bounds) - x, epsilon, best, shortest, steps, jnp.where(i == 0, is_zero, carry[-1])

    zero = jnp.zeros_like(x)
    nothing = jnp.zeros(len(x), bool)
    start = zero, jnp.full_like(farthest, initial_epsilon), zero, farthest, jnp.zeros(len(x), jnp.int32), nothing
    _, _, best, _, steps, grad_zero = jax.lax.fori_loop(0, num_steps, step, start)
    return finish(f, x, y, x + best, norm="l2", steps=steps, grad_zero=grad_zero)


def _direction(gradient, keys, i):
    """The unit gradient, or a random unit vector where it is zero; and where it was."""
    is_zero = jnp.all(gradient.reshape(len(gradient), -1) == 0, axis=1)
    draw = lambda key, g: jax.random.normal(jax.random.fold_in(key, i), g.shape, g.dtype)

    def with_random(gradient):
        return jnp.where(spread(is_zero, gradient) > 0, jax.vmap(draw)(keys, gradient), gradient)

    gradient = jax.lax.cond(jnp.any(is_zero), with_random, lambda g: g, gradient)
    return ascent_direction(gradient, "l2"), is_zero
