"""Carlini and Wagner's L2 attack: Adam in tanh space, a binary search on the constant for every sample."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.result import AttackResult, Trajectory, choose
from jacreg_jax.attacks.start import Goal, Start, begin, finish, varying
from jacreg_jax.attacks.trace import blank, record
from jacreg_jax.checks import Bounds
from jacreg_jax.deprecation import renamed_arguments
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function, PyTree


class _Best(NamedTuple):
    """The nearest fooling image so far, over all steps of all searches."""

    x_adv: Array
    squared: Array  # [B], +inf where none was found
    step: Array  # [B] int32, over all searches
    seen: Trajectory | None = None


class _Constants(NamedTuple):
    """State of the binary search on the constant c of every sample."""

    const: Array
    lower: Array
    upper: Array


class _Problem(NamedTuple):
    """What is minimised, over w + delta with x' = centre + half tanh(w + delta), or w + delta where unbounded."""

    start: Start
    centre: Any
    half: Any
    is_boxed: Any  # bool, or an array of them beside x: bounded from both sides
    w: Array
    confidence: float

    def images(self, delta: Array) -> Array:
        """[B, ...] within bounds; where only one side is bounded the gradient passes through the clipping."""
        v = self.w + delta
        boxed = self.centre + self.half * jnp.tanh(v)
        if self.is_boxed is True:
            return boxed
        return jnp.where(self.is_boxed, boxed, v + jax.lax.stop_gradient(self.start.clip(v) - v))


class _Moments(NamedTuple):
    first: Array
    second: Array
    number: Array  # int32, of updates


class _Adam(NamedTuple):
    """Kingma, Ba (2014): delta <- delta - rate m / (sqrt(v) + eps), m and v freed of their bias towards zero."""

    rate: float
    eps: float

    def update(self, gradient: Array, moments: _Moments) -> tuple[Array, _Moments]:
        first, second = (
            (1 - decay) * gradient**order + decay * old
            for decay, order, old in ((0.9, 1, moments.first), (0.999, 2, moments.second))
        )
        number = moments.number + 1
        free = lambda moment, decay: moment / (1 - jax.lax.pow(jnp.asarray(decay, moment.dtype), number))
        update = -self.rate * (free(first, 0.9) / (jnp.sqrt(free(second, 0.999)) + self.eps))
        return update, _Moments(first, second, number)


@renamed_arguments(num_searches="binary_search_steps")
@once
def carlini_wagner(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    num_steps: int = 1000,
    binary_search_steps: int = 10,
    learning_rate: float = 0.005,
    initial_const: ArrayLike | None = None,
    confidence: float = 0.0,
    smoother: float = 0.999999,
    adam_eps: float = 1e-8,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    trace: bool = False,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """The nearest image in L2 that f calls another class; the defaults are the paper's setting.

    Minimises ||x' - x||^2 + c max(0, z_y - max_{c' != y} z_c' + confidence), or minus the margin of another criterion,
    over w with x' = tanh(w) scaled to bounds (x' = w where there are none), by Adam from zero in every search. c is
    multiplied by 10 until the sample is fooled, then bisected; with 10 or more values the last repeats the smallest c
    that worked. The best of all steps counts, not the last.

    The paper's setting is far from converged on a Jacobian-regularised model: report `carlini_wagner_converged` or the
    best of several attacks (`best_of`) beside it.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; for `samples` alone.
        num_steps: Adam steps in each search.
        binary_search_steps: values of c that are tried.
        learning_rate: of Adam.
        initial_const: first c, scalar or [B]; None: 0.01 times the shortest range of a pixel, squared.
        confidence: margin by which the other class must lead.
        smoother: keeps arctanh of pixels at the bounds finite; pixels start 1 - smoother inside.
        adam_eps: of Adam; near saturated pixels gradients lie below the usual 1e-8, 1e-14 lets them move.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        trace: keep loss and distance of every step in `trajectory`.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

    Returns:
        AttackResult with L2 distances.

    Raises:
        TypeError, ValueError: see `start.begin`; counts below 1; learning_rate, initial_const or adam_eps not
            above 0; confidence negative; smoother outside (0, 1) in float32.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> found = carlini_wagner(f, x, y, num_steps=200, initial_const=1.0, binary_search_steps=2)
        >>> [round(float(d), 2) for d in found.distance]
        [0.2, 0.4]

    Reference: Carlini, Wagner (2017), https://arxiv.org/abs/1608.04644, with loss f6.
    """
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key if samples else None, confidence=confidence, goal=goal)
    num_steps = checks.count("num_steps", num_steps)
    binary_search_steps = checks.count("binary_search_steps", binary_search_steps)
    initial_const = 0.01 * start.inputs.span**2 if initial_const is None else initial_const
    checks.positive("initial_const", initial_const, batch=len(start.x))
    checks.positive("learning_rate", learning_rate)
    checks.positive("adam_eps", adam_eps)
    if not 0 < float(np.float32(smoother)) < 1:
        raise ValueError(f"smoother must lie between 0 and 1 in float32, got {smoother}")
    problem = _problem(start, smoother, confidence)
    adam = _Adam(learning_rate, adam_eps)

    def search(k: Counter, carry: tuple[_Best, _Constants]) -> tuple[_Best, _Constants]:
        best, (const, lower, upper) = carry
        if binary_search_steps >= 10:
            const = jnp.where(k == binary_search_steps - 1, jnp.minimum(upper, 1e10 * start.inputs.span**2), const)
        best, found = _descend(problem, adam, const, num_steps, k * num_steps + 1, best)
        upper = jnp.where(found, jnp.minimum(upper, const), upper)
        lower = jnp.where(found, lower, jnp.maximum(lower, const))
        const = jnp.where(jnp.isinf(upper), 10 * const, (lower + upper) / 2)
        return best, _Constants(const, lower, upper)

    infinite = start.full(jnp.inf, start.x.dtype)
    best = _Best(start.x, infinite, start.zeros(), blank(start, binary_search_steps * num_steps, trace))
    constants = _Constants(start.full(initial_const, infinite.dtype), start.full(0, infinite.dtype), infinite)
    best, _ = jax.lax.fori_loop(0, binary_search_steps, search, (best, constants))
    x_adv, backward = _just_over(start, best.x_adv), binary_search_steps * num_steps
    return finish(start, x_adv, norm="l2", steps=best.step, forward=1, backward=backward, trajectory=best.seen)


carlini_wagner_converged = partial(carlini_wagner, num_steps=3000, learning_rate=0.01, adam_eps=1e-14)
"""Carlini and Wagner's attack with three times the steps, twice the rate, an Adam that moves saturated pixels."""


def _just_over(start: Start, x_adv: Array) -> Array:
    """The images, a ten-thousandth further from x where they lie so near the boundary that f rounds them back."""
    further = start.clip(start.x + 1.0001 * (x_adv - start.x))
    return choose(start.reached(start.judge(x_adv)), x_adv, further)


def _problem(start: Start, smoother: float, confidence: float) -> _Problem:
    low, high = start.bounds
    is_boxed: Any = True
    if any(isinstance(b, jax.core.Tracer) or not np.isfinite(b).all() for b in (low, high)):
        is_boxed = jnp.isfinite(low) & jnp.isfinite(high)
        low, high = jnp.where(is_boxed, low, 0), jnp.where(is_boxed, high, 1)
    centre, half = (low + high) / 2, (high - low) / 2
    w = jnp.arctanh(smoother * (start.x - centre) / half)
    return _Problem(start, centre, half, is_boxed, jnp.where(is_boxed, w, start.x), confidence)


def _objective(problem: _Problem, delta: Array, const: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Sum of the losses, in units of the range; each, the images, their squared distances, and who is fooled."""
    start = problem.start
    x_adv = problem.images(delta)
    z = start.f(x_adv)
    squared = jnp.sum((x_adv - start.x).reshape(len(start.x), -1) ** 2, axis=1)
    lead = start.margin(z)
    value = squared + const * jnp.maximum(0, problem.confidence - lead)
    return jnp.sum(value / start.inputs.span**2), (
        value,
        x_adv,
        squared,
        start.reached(z) & (lead >= problem.confidence),
    )


def _descend(
    problem: _Problem, adam: _Adam, const: Array, num_steps: int, first: Array | int, best: _Best
) -> tuple[_Best, Array]:
    """Adam from zero for one c of every sample: the best of all so far, and whether this c fooled f."""
    gradient_of: Callable[..., Any] = jax.grad(_objective, argnums=1, has_aux=True)

    def step(i: Counter, carry: tuple[Array, _Moments, _Best, Array]) -> tuple[Array, _Moments, _Best, Array]:
        delta, moments, best, found = carry
        gradient, (value, x_adv, squared, fooled) = gradient_of(problem, delta, const)
        new = _Best(x_adv, squared, jnp.full_like(best.step, first + i), best.seen)
        better = fooled & (squared < best.squared)
        best = jax.tree.map(lambda n, b: choose(better, n, b), new, best)
        best = best._replace(seen=record(best.seen, first + i - 1, value, x_adv - problem.start.x, "l2"))
        update, moments = adam.update(gradient, moments)
        return delta + update, moments, best, found | fooled

    delta = varying(jnp.zeros_like(problem.start.x), problem.start.x)
    begin = delta, _Moments(delta, delta, jnp.zeros((), jnp.int32)), best, problem.start.none()
    _, _, best, found = jax.lax.fori_loop(0, num_steps, step, begin)
    return best, found
