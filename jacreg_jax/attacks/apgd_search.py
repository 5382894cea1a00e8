"""One run of Auto-PGD in L-infinity and L2: momentum, checkpoints, and a step that is halved at them."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax.attacks.ball import project, random_on_sphere
from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.result import Norm, Trajectory, choose, spread
from jacreg_jax.attacks.start import Start
from jacreg_jax.attacks.trace import record
from jacreg_jax.types import Array, Counter, Function


class Search(NamedTuple):
    """What stays the same through one run."""

    start: Start
    objective: Function  # logits [B, C] -> what is climbed, [B]
    is_ce: bool
    epsilon: ArrayLike
    norm: Norm
    num_steps: int
    rho: float
    offset: Any = 0  # steps of the runs before, in the trajectory


class Found(NamedTuple):
    """What all runs so far have found."""

    x_adv: Array  # an image that fools f, where `done`
    done: Array  # [B] bool; wrong samples are from the start
    steps: Array  # [B] int32
    passes: Array  # [B] int32, gradients until it was done
    seen: Trajectory | None = None


class _State(NamedTuple):
    x_adv: Array
    x_old: Array
    gradient: Array
    x_best: Array
    gradient_best: Array
    loss_best: Array
    loss_last: Array  # of the step before
    rises: Array  # steps since the last checkpoint that raised the loss
    loss_checked: Array  # best loss at the last checkpoint
    was_reduced: Array  # whether the step was halved there
    step_size: Array  # [B] in units of epsilon
    found: Found


def run(search: Search, keys: Array, found: Found) -> Found:
    """One run, with what it finds added. Nothing is computed where all samples are done."""
    ends, lengths = (jnp.asarray(a) for a in _checkpoints(search.num_steps))

    def step(carry: tuple[Array, _State]) -> tuple[Array, _State]:
        i, state = carry
        state = _step(search, i, state)
        checked = _checkpoint(search, lengths[i], state)
        return i + 1, jax.tree.map(lambda c, s: jnp.where(ends[i], c, s), checked, state)

    going_on = lambda carry: (carry[0] < search.num_steps) & ~jnp.all(carry[1].found.done)
    begin = jnp.zeros((), jnp.int32), _first(search, keys, found)
    return jax.lax.while_loop(going_on, step, begin)[1].found


def evaluate(search: Search, x_adv: Array) -> tuple[Array, Array, Array]:
    """Gradient, loss [B], and where f is fooled [B]."""

    def climb(x_adv: Array) -> tuple[Array, tuple[Array, Array]]:
        z = search.start.f(x_adv)
        loss = search.objective(z)
        return jnp.sum(loss), (loss, search.start.reached(z))

    gradient, (loss, fooled) = jax.grad(climb, has_aux=True)(x_adv)
    return gradient, loss, fooled


def _first(search: Search, keys: Array, found: Found) -> _State:
    """The state at a random point of the sphere."""
    x = search.start.x
    x_adv = search.start.clip(x + spread(search.epsilon, x) * random_on_sphere(keys, x, search.norm))
    gradient, loss, fooled = evaluate(search, x_adv)
    new = fooled & ~found.done
    return _State(
        x_adv=x_adv,
        x_old=x_adv,
        gradient=gradient,
        x_best=x_adv,
        gradient_best=gradient,
        loss_best=loss,
        # the reference code compares the first loss with a row of zeros; the cross-entropy is always above it
        loss_last=search.start.full(-jnp.inf if search.is_ce else 0, loss.dtype),
        rises=search.start.zeros(),
        loss_checked=loss,
        was_reduced=~search.start.none(),
        step_size=search.start.full(2, x.dtype),
        found=with_new(found, new, x_adv, found.steps),
    )


def _move(search: Search, i: Counter, s: _State) -> Array:
    """A gradient step, and three quarters of it plus a quarter of the last."""
    x = search.start.x
    into_ball = partial(project, x=x, epsilon=search.epsilon, norm=search.norm, bounds=search.start.bounds)
    weight = jnp.where(i > 0, 0.75, 1.0).astype(x.dtype)
    step = spread(s.step_size, x) * spread(search.epsilon, x)
    ahead = into_ball(s.x_adv + step * ascent_direction(s.gradient, search.norm))
    momentum = s.x_adv - s.x_old
    return into_ball(s.x_adv + weight * (ahead - s.x_adv) + (1 - weight) * momentum)


def _step(search: Search, i: Counter, s: _State) -> _State:
    x_adv = _move(search, i, s)
    gradient, loss, fooled = evaluate(search, x_adv)
    new, going = fooled & ~s.found.done, ~s.found.done
    seen = record(s.found.seen, search.offset + i, loss, x_adv - search.start.x, search.norm, going)
    higher = loss > s.loss_best
    return s._replace(
        x_old=s.x_adv,
        x_adv=x_adv,
        gradient=gradient,
        x_best=choose(higher, x_adv, s.x_best),
        gradient_best=choose(higher, gradient, s.gradient_best),
        loss_best=jnp.where(higher, loss, s.loss_best),
        rises=s.rises + (loss > s.loss_last).astype(jnp.int32),
        loss_last=loss,
        found=with_new(s.found._replace(seen=seen), new, x_adv, jnp.where(new, i + 1, s.found.steps)),
    )


def with_new(found: Found, new: Array, x_adv: Array, steps: Array) -> Found:
    """What was found, with one more evaluation, in which `new` samples are fooled."""
    passes = found.passes + (~found.done).astype(jnp.int32)
    return Found(choose(new, x_adv, found.x_adv), found.done | new, steps, passes, found.seen)


def _checkpoint(search: Search, length: Array, s: _State) -> _State:
    """Halve the step and go back to the best point where the loss oscillates or has not improved."""
    oscillates = s.rises.astype(s.step_size.dtype) <= search.rho * length.astype(s.step_size.dtype)
    is_stuck = ~s.was_reduced & (s.loss_checked >= s.loss_best)
    reduce = oscillates | is_stuck
    return s._replace(
        step_size=jnp.where(reduce, s.step_size / 2, s.step_size),
        x_adv=choose(reduce, s.x_best, s.x_adv),
        gradient=choose(reduce, s.gradient_best, s.gradient),
        was_reduced=reduce,
        loss_checked=s.loss_best,
        rises=search.start.zeros(),
    )


def _checkpoints(num_steps: int) -> tuple[Any, Any]:
    """Whether step i ends an interval, and how long that interval was; intervals shrink from 22 % by 3 % to 6 %."""
    interval, least, shrink = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    ends, lengths, since = [], [], 0
    for _ in range(num_steps):
        since += 1
        ends.append(since == interval)
        lengths.append(interval)
        if ends[-1]:
            interval, since = max(interval - shrink, least), 0
    return np.asarray(ends), np.asarray(lengths)
