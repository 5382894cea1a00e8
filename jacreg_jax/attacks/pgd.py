"""Projected gradient descent in an L-infinity or L2 ball, one compiled loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.ball import project, random_in_ball
from jacreg_jax.attacks.gradient import ascent_direction, loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import AttackResult, Norm, spread
from jacreg_jax.attacks.start import begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.concrete import look
from jacreg_jax.keys import check_key
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function


@once
def pgd(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array | None = None,
    *,
    epsilon: ArrayLike,
    step_size: ArrayLike,
    num_steps: int,
    norm: Norm = "linf",
    random_start: bool = False,
    loss: Function = log_odds,
    bounds: Bounds = (0.0, 1.0),
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
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with distances in `norm`.

    Raises:
        TypeError, ValueError: see `start.begin`; num_steps below 1; step_size 0 where epsilon is not; random_start
            without a typed key.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> pgd(f, x, y, epsilon=0.3, step_size=0.1, num_steps=5).success.tolist()
        [True, False]

    Reference: Madry et al. (2017), https://arxiv.org/abs/1706.06083.
    """
    num_steps = checks.count("num_steps", num_steps)
    checks.one_of("random_start", random_start, (True, False))
    if random_start:
        check_key(key)
    sizes = {"epsilon": epsilon, "step_size": step_size}
    begun = begin(f, x, y, bounds, key=key if random_start else None, norm=norm, **sizes)
    _check_moves(step_size, epsilon)
    image, label, within = begun.x, begun.y, begun.bounds
    start = image
    if random_start:
        start = project(image + random_in_ball(begun.keys, image, epsilon, norm), image, epsilon, norm, within)

    def step(_: Counter, x_adv: Array) -> Array:
        direction = ascent_direction(loss_gradient(f, x_adv, label, loss), norm)
        return project(x_adv + spread(step_size, image) * direction, image, epsilon, norm, within)

    x_adv = jax.lax.fori_loop(0, num_steps, step, start)
    return finish(begun, x_adv, norm=norm, steps=begun.full(num_steps, jnp.int32), loss=loss)


def _check_moves(step_size: ArrayLike, epsilon: ArrayLike) -> None:
    """ValueError for steps of size 0 in a ball that is no point: nothing would be tried."""

    def test(step_size: Any, epsilon: Any) -> None:
        if np.any((step_size == 0) & (epsilon != 0)):
            raise ValueError(f"step_size must be above 0 where epsilon is, got {step_size}")

    look(test, step_size, epsilon)
