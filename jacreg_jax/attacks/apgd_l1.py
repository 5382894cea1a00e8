"""One run of Auto-PGD in L1: sparse steps, whose sparsity follows that of the best point so far.

Reference: Croce, Hein (2021), "Mind the box", https://arxiv.org/abs/2103.01208.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.apgd_search import Found, Search, evaluate, with_new
from jacreg_jax.attacks.ball import project
from jacreg_jax.attacks.result import choose, spread
from jacreg_jax.attacks.sparse import num_moved, sparse_direction
from jacreg_jax.attacks.trace import record
from jacreg_jax.keys import normal_like
from jacreg_jax.types import Array, Counter


class _State(NamedTuple):
    x_adv: Array
    gradient: Array
    x_best: Array
    gradient_best: Array
    loss_best: Array
    share: Array  # [B] of the entries that a step moves
    moved: Array  # [B] entries that the best point moved at the last checkpoint
    step_size: Array  # [B] in units of epsilon
    found: Found


def run(search: Search, keys: Array, found: Found) -> Found:
    """Three phases, in balls of 3, 2 and 1 times the radius; only the last counts. One where there are few steps."""
    x = search.start.x
    epsilon = jnp.asarray(search.epsilon, x.dtype)
    drawn = x + normal_like(keys, x)
    long = math.ceil(0.3 * search.num_steps)
    phases = [(3, long), (2, long), (1, search.num_steps - 2 * long)] if search.num_steps >= 10 else [(1, None)]
    at, is_drawn, offset = drawn, True, search.offset
    for times, steps in phases:
        steps = search.num_steps if steps is None else steps
        part = search._replace(epsilon=times * epsilon, num_steps=steps, offset=offset)
        state = _phase(part, project(at, x, times * epsilon, "l1", search.start.bounds), is_drawn, found, times == 1)
        found, at, is_drawn, offset = state.found, state.x_best, len(phases) == 1, offset + steps
    return found


def _phase(search: Search, x_adv: Array, is_drawn: bool, found: Found, counts: bool) -> _State:
    """Steps in one ball; `counts` says whether fooling images in it count."""

    def step(carry: tuple[Array, _State]) -> tuple[Array, _State]:
        i, state = carry
        state = _step(search, i, state, counts)
        every = max(int(0.04 * search.num_steps), 1)
        checked = _checkpoint(search, state)
        return i + 1, jax.tree.map(lambda c, s: jnp.where((i + 1) % every == 0, c, s), checked, state)

    going_on = lambda carry: (carry[0] < search.num_steps) & ~jnp.all(carry[1].found.done)
    begin = jnp.zeros((), jnp.int32), _first(search, x_adv, is_drawn, found, counts)
    return jax.lax.while_loop(going_on, step, begin)[1]


def _first(search: Search, x_adv: Array, is_drawn: bool, found: Found, counts: bool) -> _State:
    start = search.start
    gradient, loss, fooled = evaluate(search, x_adv)
    size = start.x[0].size
    moved = start.full(size, start.x.dtype) if is_drawn else num_moved(x_adv, start.x)
    share = start.full(0.2, start.x.dtype) if is_drawn else moved / size / 1.5
    found = with_new(found, fooled & ~found.done & counts, x_adv, found.steps)
    return _State(x_adv, gradient, x_adv, gradient, loss, share, moved, start.full(1, start.x.dtype), found)


def _step(search: Search, i: Counter, s: _State, counts: bool) -> _State:
    x, epsilon = search.start.x, spread(search.epsilon, search.start.x)
    ahead = s.x_adv + spread(s.step_size, x) * epsilon * sparse_direction(s.gradient, s.share)
    x_adv = project(ahead, x, search.epsilon, "l1", search.start.bounds)
    gradient, loss, fooled = evaluate(search, x_adv)
    going = ~s.found.done
    new, higher = fooled & going & counts, loss > s.loss_best
    seen = record(s.found.seen, search.offset + i, loss, x_adv - x, "l1", going)
    steps: Any = jnp.where(new, i + 1, s.found.steps)
    return s._replace(
        x_adv=x_adv,
        gradient=gradient,
        x_best=choose(higher, x_adv, s.x_best),
        gradient_best=choose(higher, gradient, s.gradient_best),
        loss_best=jnp.where(higher, loss, s.loss_best),
        found=with_new(s.found._replace(seen=seen), new, x_adv, steps),
    )


def _checkpoint(search: Search, s: _State) -> _State:
    """Where the best point became sparser, full steps from there; elsewhere shorter ones, down to a tenth."""
    moved = num_moved(s.x_best, search.start.x)
    sparser = moved < 0.95 * s.moved
    return s._replace(
        share=moved / search.start.x[0].size / 1.5,
        step_size=jnp.clip(jnp.where(sparser, 1, s.step_size / 1.5), 0.1, 1),
        moved=moved,
        x_adv=choose(sparser, s.x_best, s.x_adv),
        gradient=choose(sparser, s.gradient_best, s.gradient),
    )
