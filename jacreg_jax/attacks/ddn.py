"""Decoupled direction and norm: the cheap minimum-norm L2 attack."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.gradient import ascent_direction, is_zero
from jacreg_jax.attacks.result import AttackResult, Trajectory, choose, distance, spread
from jacreg_jax.attacks.start import Goal, begin, finish, varying
from jacreg_jax.attacks.trace import blank, record
from jacreg_jax.checks import Bounds
from jacreg_jax.deprecation import renamed_arguments
from jacreg_jax.keys import check_key, normal_like
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function, PyTree


class _State(NamedTuple):
    delta: Array
    epsilon: Array  # [B] radius of the next step
    best: Array  # the shortest fooling delta
    shortest: Array  # [B] its length
    steps: Array  # [B] int32
    grad_zero: Array  # [B] bool, at the clean sample
    seen: Trajectory | None


@renamed_arguments(initial_epsilon="init_epsilon")
@once
def ddn(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    num_steps: int = 100,
    init_epsilon: ArrayLike | None = None,
    gamma: float = 0.05,
    loss: Function | None = None,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    trace: bool = False,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """The nearest fooling image in L2 by gradient steps whose radius shrinks while fooled and grows while not.

    delta <- delta + a_t g / ||g||, epsilon <- epsilon (1 -+ gamma), delta <- epsilon delta / ||delta||, clipped to
    bounds; a_t falls from 1 to 0.01 along a cosine, times the shortest range of a pixel. Where the gradient is zero
    the direction is random.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; used where a gradient is zero, and for samples.
        num_steps: gradient steps. They lead down to about init_epsilon (1 - gamma)^num_steps, 0.006 by default: take
            more, or a smaller init_epsilon, where fooling samples lie as near.
        init_epsilon: first radius in raw pixels, scalar or [B]; None: the shortest range of a pixel.
        gamma: relative change of the radius in a step.
        loss: per-sample loss of (logits, y), climbed; None: the criterion's own, of classes `losses.log_odds`.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        trace: keep loss and distance of every step in `trajectory`.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    start = begin(f, x, y, bounds, key=key, goal=Goal(criterion, target, samples))
    init_epsilon = start.inputs.span if init_epsilon is None else init_epsilon
    checks.positive("init_epsilon", init_epsilon, batch=len(start.x))
    checks.fraction("gamma", gamma)
    num_steps = checks.count("num_steps", num_steps)
    image, (low, high), keys, objective = start.x, start.bounds, start.keys, start.objective(loss)
    farthest = distance(jnp.maximum(image - low, high - image), "l2")

    def climb(delta: Array) -> tuple[Array, tuple[Array, Array]]:
        z = start.f(image + delta)
        value = objective(z)
        return jnp.sum(value), (value, start.reached(z))

    def step(i: Counter, s: _State) -> _State:
        gradient, (value, fooled) = jax.grad(climb, has_aux=True)(s.delta)
        direction, zero = _direction(gradient, keys, i)
        length = distance(s.delta, "l2")
        better = fooled & (length <= s.shortest)
        rate = 0.01 + 0.99 * (1 + jnp.cos(jnp.pi * i / num_steps)) / 2
        delta = s.delta + spread(rate * start.inputs.span, image) * direction
        epsilon = jnp.minimum(s.epsilon * jnp.where(fooled, 1 - gamma, 1 + gamma), farthest)
        delta = delta * spread(epsilon / jnp.maximum(distance(delta, "l2"), 1e-12), image)
        return _State(
            delta=start.clip(image + delta) - image,
            epsilon=epsilon,
            best=choose(better, s.delta, s.best),
            shortest=jnp.where(better, length, s.shortest),
            steps=jnp.where(better, i, s.steps),
            grad_zero=jnp.where(i == 0, zero, s.grad_zero),
            seen=record(s.seen, i, value, s.delta, "l2"),
        )

    zero = varying(jnp.zeros_like(image), image)
    seen = blank(start, num_steps, trace)
    first = _State(zero, start.full(init_epsilon, farthest.dtype), zero, farthest, start.zeros(), start.none(), seen)
    end = jax.lax.fori_loop(0, num_steps, step, first)
    told = {"grad_zero": end.grad_zero, "backward": num_steps, "trajectory": end.seen}
    return finish(start, image + end.best, norm="l2", steps=end.steps, **told)


def _direction(gradient: Array, keys: Array, i: Counter) -> tuple[Array, Array]:
    """The unit gradient, or a random unit vector where it is zero; and where it was."""
    zero = is_zero(gradient)

    def with_random(gradient: Array) -> Array:
        drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        return choose(zero, normal_like(drawn, gradient), gradient)

    gradient = jax.lax.cond(jnp.any(zero), with_random, lambda g: g, gradient)
    return ascent_direction(gradient, "l2"), zero
