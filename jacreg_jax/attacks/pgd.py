"""Projected gradient descent in an L-infinity, L2 or L1 ball, one compiled loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.ball import project, random_in_ball
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.result import AttackResult, Norm, Trajectory, spread
from jacreg_jax.attacks.start import Goal, Start, begin, finish
from jacreg_jax.attacks.trace import blank, record
from jacreg_jax.checks import Bounds
from jacreg_jax.concrete import look
from jacreg_jax.keys import check_key
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function, PyTree


@once
def pgd(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    epsilon: ArrayLike,
    step_size: ArrayLike,
    num_steps: int,
    norm: Norm = "linf",
    random_start: bool = False,
    loss: Function | None = None,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    trace: bool = False,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """num_steps of x <- project(x + step_size * direction), direction the gradient's sign or unit vector.

    The projection is onto the ball of radius epsilon around the input, then onto bounds. The last iterate counts.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; needed for random_start and samples.
        epsilon: radius in raw pixels, scalar or [B]; in L-infinity also with all axes of x, such as [1, F].
        step_size: in raw pixels, as epsilon.
        num_steps: gradient steps.
        norm: "linf", "l2" or "l1"; in L1 a step goes along the largest twentieth of the gradient's entries.
        random_start: start from a uniform point of the ball.
        loss: per-sample loss of (logits, y); None: the criterion's own, of classes `losses.log_odds`.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        trace: keep loss and distance of every step in `trajectory`.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    sizes: dict[str, Any] = {"epsilon": epsilon, "step_size": step_size}
    goal = Goal(criterion, target, samples)
    begun = begin(f, x, y, bounds, key=key if random_start or samples else None, norm=norm, goal=goal, **sizes)
    check_moves(step_size, epsilon)
    ball = Ball(epsilon, step_size, norm)
    first = ball.random_start(begun) if random_start else begun.x
    seen = blank(begun, num_steps, trace)
    x_adv, seen = ascend(begun.f, begun.objective(loss), begun.x, first, ball, begun.bounds, num_steps, seen)
    steps = begun.full(num_steps, jnp.int32)
    told: dict[str, Any] = {"within": epsilon, "backward": num_steps, "trajectory": seen}
    return finish(begun, x_adv, norm=norm, steps=steps, loss=loss, **told)


class Ball(NamedTuple):
    """Where the iterates may go, and how far a step leads."""

    epsilon: ArrayLike
    step_size: ArrayLike
    norm: Norm

    def random_start(self, start: Start) -> Array:
        """A uniform point of the ball, within bounds."""
        drawn = start.x + random_in_ball(start.keys, start.x, self.epsilon, self.norm)
        return project(drawn, start.x, self.epsilon, self.norm, start.bounds)


def ascend(
    f: Function,
    objective: Function,
    image: Array,
    first: Array,
    ball: Ball,
    bounds: Bounds,
    num_steps: Counter,
    seen: Trajectory | None = None,
) -> tuple[Array, Trajectory | None]:
    """The last of num_steps projected steps up objective(f(x)) [B], and the trajectory.

    Args:
        f: images -> outputs.
        objective: outputs -> [B].
        image: centre of the ball, [B, ...].
        first: where to begin, [B, ...].
        ball: epsilon, step size and norm.
        bounds: (low, high), floats or arrays beside the images.
        num_steps: of the loop, an integer or a traced one.
        seen: blank trajectory, or None.
    """

    def climb(x_adv: Array) -> tuple[Array, Array]:
        value = objective(f(x_adv))
        return jnp.sum(value), value

    def step(i: Counter, carry: tuple[Array, Trajectory | None]) -> tuple[Array, Trajectory | None]:
        x_adv, seen = carry
        gradient, value = jax.grad(climb, has_aux=True)(x_adv)
        moved = x_adv + spread(ball.step_size, image) * ascent_direction(gradient, ball.norm)
        seen = record(seen, i, value, x_adv - image, ball.norm)
        return project(moved, image, ball.epsilon, ball.norm, bounds), seen

    return jax.lax.fori_loop(0, num_steps, step, (first, seen))


def check_moves(step_size: ArrayLike, epsilon: ArrayLike) -> None:
    """ValueError for steps of size 0 in a ball that is no point: nothing would be tried."""

    def test(step_size: Any, epsilon: Any) -> None:
        if np.any((step_size == 0) & (epsilon != 0)):
            raise ValueError(f"step_size must be above 0 where epsilon is, got {step_size}")

    look(test, step_size, epsilon)
