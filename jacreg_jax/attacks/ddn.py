"""Decoupled direction and norm: the cheap minimum-norm L2 attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.gradient import ascent_direction, is_zero
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import AttackResult, choose, distance, is_fooled, spread
from jacreg_jax.attacks.start import begin, finish, varying
from jacreg_jax.checks import Bounds
from jacreg_jax.deprecation import renamed_arguments
from jacreg_jax.keys import check_key, normal_like
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function


class _State(NamedTuple):
    delta: Array
    epsilon: Array  # [B] radius of the next step
    best: Array  # the shortest fooling delta
    shortest: Array  # [B] its length
    steps: Array  # [B] int32
    grad_zero: Array  # [B] bool, at the clean sample


@renamed_arguments(initial_epsilon="init_epsilon")
@once
def ddn(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array,
    *,
    num_steps: int = 100,
    init_epsilon: ArrayLike = 1.0,
    gamma: float = 0.05,
    loss: Function = log_odds,
    bounds: Bounds = (0.0, 1.0),
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
        init_epsilon: first radius in raw pixels, scalar or [B].
        gamma: relative change of the radius in a step.
        loss: per-sample loss of (logits, y), climbed.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with L2 distances.

    Raises:
        TypeError, ValueError: see `start.begin`; num_steps below 1; init_epsilon not above 0; gamma outside (0, 1); key
            is not a typed key.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> [round(float(d), 2) for d in ddn(f, x, y, jax.random.key(0)).distance]
        [0.2, 0.4]

    Reference: Rony et al. (2019), https://arxiv.org/abs/1811.09600.
    """
    check_key(key)
    start = begin(f, x, y, bounds, key=key)
    checks.positive("init_epsilon", init_epsilon, batch=len(start.x))
    checks.fraction("gamma", gamma)
    num_steps = checks.count("num_steps", num_steps)
    image, label, (low, high) = start.x, start.y, start.bounds
    keys = start.keys
    farthest = distance(jnp.maximum(image - low, high - image), "l2")

    def climb(delta: Array) -> tuple[Array, Array]:
        logits = f(image + delta)
        return jnp.sum(loss(logits, label)), is_fooled(logits, label)

    def step(i: Counter, s: _State) -> _State:
        gradient, fooled = jax.grad(climb, has_aux=True)(s.delta)
        direction, zero = _direction(gradient, keys, i)
        length = distance(s.delta, "l2")
        better = fooled & (length <= s.shortest)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * i / num_steps)) / 2
        delta = s.delta + rate * direction
        epsilon = jnp.minimum(s.epsilon * jnp.where(fooled, 1 - gamma, 1 + gamma), farthest)
        delta = delta * spread(epsilon / jnp.maximum(distance(delta, "l2"), 1e-12), image)
        return _State(
            delta=start.clip(image + delta) - image,
            epsilon=epsilon,
            best=choose(better, s.delta, s.best),
            shortest=jnp.where(better, length, s.shortest),
            steps=jnp.where(better, i, s.steps),
            grad_zero=jnp.where(i == 0, zero, s.grad_zero),
        )

    zero = varying(jnp.zeros_like(image), image)
    first = _State(zero, start.full(init_epsilon, farthest.dtype), zero, farthest, start.zeros(), start.none())
    end = jax.lax.fori_loop(0, num_steps, step, first)
    return finish(start, image + end.best, norm="l2", steps=end.steps, grad_zero=end.grad_zero)


def _direction(gradient: Array, keys: Array, i: Counter) -> tuple[Array, Array]:
    """The unit gradient, or a random unit vector where it is zero; and where it was."""
    zero = is_zero(gradient)

    def with_random(gradient: Array) -> Array:
        drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        return choose(zero, normal_like(drawn, gradient), gradient)

    gradient = jax.lax.cond(jnp.any(zero), with_random, lambda g: g, gradient)
    return ascent_direction(gradient, "l2"), zero
