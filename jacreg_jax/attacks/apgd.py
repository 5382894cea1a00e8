"""Auto-PGD: steps whose size is halved where the loss has stopped rising; untargeted and targeted."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.attacks.losses import dlr, dlr_targeted, log_odds
from jacreg_jax.attacks.pgd import ascent_direction, project
from jacreg_jax.attacks.result import (
    AttackResult,
    Norm,
    check_count,
    check_inputs,
    finish,
    is_correct,
    is_fooled,
    sample_keys,
    spread,
    zero_gradient,
)

Loss = Literal["ce", "dlr"]


class _State(NamedTuple):
    x_adv: jax.Array
    x_old: jax.Array
    gradient: jax.Array
    x_best: jax.Array
    gradient_best: jax.Array
    loss_best: jax.Array
    loss_last: jax.Array  # of the step before
    rises: jax.Array  # steps since the last checkpoint that raised the loss
    loss_checked: jax.Array  # best loss at the last checkpoint
    was_reduced: jax.Array  # whether the step was halved there
    step_size: jax.Array
    fooling: jax.Array  # an image that fools f, where `done`
    done: jax.Array
    steps: jax.Array


def apgd(
    f: Callable,
    x,
    y,
    key: jax.Array,
    *,
    epsilon,
    norm: Norm = "linf",
    loss: Loss = "ce",
    num_steps: int = 100,
    num_restarts: int = 1,
    rho: float = 0.75,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """Auto-PGD in a ball of radius epsilon: momentum, and a step that is halved where fewer than rho of them helped.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; the start is a random point on the sphere.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf" or "l2".
        loss: "ce", or "dlr", the difference-of-logits ratio, which a rescaling of the logits does not change. Use both:
            on Jacobian-regularised models "ce" fools more, on confident ones "dlr" does.
        num_steps: gradient steps.
        num_restarts: of the whole, each from another start.
        rho: share of steps that must raise the loss between two checkpoints.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with distances in `norm`.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; counts below 1; unknown loss; "dlr" with fewer than 3 classes.

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    _check(f, x, y, bounds, norm, epsilon, num_steps, {"ce": 2, "dlr": 3}.get(loss), f"loss {loss!r}")
    check_count("num_restarts", num_restarts)
    keys = sample_keys(key, len(x))
    objective = lambda logits: (log_odds if loss == "ce" else dlr)(logits, y)

    def restart(r, carry):
        begin = jax.vmap(jax.random.fold_in, (0, None))(keys, r)
        return _run(f, x, y, begin, objective, loss == "ce", epsilon, norm, num_steps, rho, bounds, carry)

    found = jax.lax.fori_loop(0, num_restarts, restart, _nothing_found(f, x, y))
    return finish(f, x, y, found[0], norm=norm, steps=found[2], grad_zero=zero_gradient(f, x, y))


def apgd_targeted(
    f: Callable,
    x,
    y,
    key: jax.Array,
    *,
    epsilon,
    norm: Norm = "linf",
    num_targets: int = 9,
    num_steps: int = 100,
    rho: float = 0.75,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """Auto-PGD on the targeted difference-of-logits ratio, towards each of the likeliest other classes in turn.

    Arguments as for `apgd`; num_targets: classes tried, at most C - 1.

    Raises:
        ValueError: fewer than 4 classes, and as `apgd`.
    """
    classes = _check(f, x, y, bounds, norm, epsilon, num_steps, 4, "the targeted ratio")
    check_count("num_targets", num_targets)
    keys = sample_keys(key, len(x))
    order = jnp.argsort(f(x), axis=1)

    def one_target(k, carry):
        begin = jax.vmap(jax.random.fold_in, (0, None))(keys, k)
        target = jnp.take(order, classes - 2 - k, axis=1)
        objective = lambda logits: dlr_targeted(logits, y, target)
        return _run(f, x, y, begin, objective, False, epsilon, norm, num_steps, rho, bounds, carry)

    found = jax.lax.fori_loop(0, min(num_targets, classes - 1), one_target, _nothing_found(f, x, y))
    return finish(f, x, y, found[0], norm=norm, steps=found[2], grad_zero=zero_gradient(f, x, y))


def _check(f, x, y, bounds, norm, epsilon, num_steps, least_classes, what) -> int:
    check_inputs(x, y, bounds, norm=norm, epsilon=epsilon)
    check_count("num_steps", num_steps)
    if least_classes is None:
        raise ValueError(f"loss must be 'ce' or 'dlr', got {what.removeprefix('loss ')}")
    classes = jax.eval_shape(f, x).shape[-1]
    if classes < least_classes:
        raise ValueError(f"{what} needs at least {least_classes} classes, f gives {classes}")
    return classes


def _nothing_found(f, x, y):
    """(x_adv, done, steps): wrong samples are done from the start."""
    return x, ~is_correct(f(x), y), jnp.zeros(len(x), jnp.int32)


def _run(f, x, y, keys, objective, is_ce, epsilon, norm, num_steps, rho, bounds, found):
    """One run; (x_adv, done, steps) with what it finds added. Nothing is computed where all samples are done."""
    is_checkpoint, intervals = _checkpoints(num_steps)
    radius = spread(epsilon, x)

    def evaluate(x_adv):
        def climb(x_adv):
            logits = f(x_adv)
            loss = objective(logits)
            return jnp.sum(loss), (loss, is_fooled(logits, y))

        gradient, (loss, fooled) = jax.grad(climb, has_aux=True)(x_adv)
        return gradient, loss, fooled

    def move(state, i):
        """A gradient step, and three quarters of it plus a quarter of the last."""
        weight = jnp.where(i > 0, 0.75, 1.0)
        step = spread(state.step_size, x) * ascent_direction(state.gradient, norm)
        ahead = project(state.x_adv + step, x, epsilon, norm, bounds)
        momentum = state.x_adv - state.x_old
        return project(state.x_adv + weight * (ahead - state.x_adv) + (1 - weight) * momentum, x, epsilon, norm, bounds)

    def step(carry):
        i, s = carry
        x_adv = move(s, i)
        gradient, loss, fooled = evaluate(x_adv)
        new = fooled & ~s.done
        s = s._replace(fooling=_where(new, x_adv, s.fooling), done=s.done | new, steps=jnp.where(new, i + 1, s.steps))
        higher = loss > s.loss_best
        s = s._replace(
            x_old=s.x_adv,
            x_adv=x_adv,
            gradient=gradient,
            x_best=_where(higher, x_adv, s.x_best),
            gradient_best=_where(higher, gradient, s.gradient_best),
            loss_best=jnp.where(higher, loss, s.loss_best),
            rises=s.rises + (loss > s.loss_last),
            loss_last=loss,
        )
        return i + 1, _tree_where(jnp.asarray(is_checkpoint)[i], check(s, jnp.asarray(intervals)[i]), s)

    def check(s, interval):
        """Halve the step and go back to the best point where the loss oscillates or has not improved."""
        oscillates = s.rises <= rho * interval
        is_stuck = ~s.was_reduced & (s.loss_checked >= s.loss_best)
        reduce = oscillates | is_stuck
        return s._replace(
            step_size=jnp.where(reduce, s.step_size / 2, s.step_size),
            x_adv=_where(reduce, s.x_best, s.x_adv),
            gradient=_where(reduce, s.gradient_best, s.gradient),
            was_reduced=reduce,
            loss_checked=s.loss_best,
            rises=jnp.zeros_like(s.rises),
        )

    x_adv = jnp.clip(x + radius * _on_sphere(keys, x, norm), *bounds)
    x_found, done, steps = found
    gradient, loss, fooled = evaluate(x_adv)
    new = fooled & ~done
    start = _State(
        x_adv=x_adv,
        x_old=x_adv,
        gradient=gradient,
        x_best=x_adv,
        gradient_best=gradient,
        loss_best=loss,
        # the reference code compares the first loss with a row of zeros; the cross-entropy is always above it
        loss_last=jnp.full_like(loss, -jnp.inf) if is_ce else jnp.zeros_like(loss),
        rises=jnp.zeros(len(x), jnp.int32),
        loss_checked=loss,
        was_reduced=jnp.ones(len(x), bool),
        step_size=2 * jnp.broadcast_to(jnp.asarray(epsilon, x.dtype), (len(x),)),
        fooling=_where(new, x_adv, x_found),
        done=done | new,
        steps=steps,
    )
    going_on = lambda carry: (carry[0] < num_steps) & ~jnp.all(carry[1].done)
    _, end = jax.lax.while_loop(going_on, step, (jnp.zeros((), jnp.int32), start))
    return end.fooling, end.done, end.steps


def _checkpoints(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
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


def _on_sphere(keys, x, norm: Norm):
    """A random point of the unit sphere of the norm, for every sample."""
    if norm == "linf":
        t = jax.vmap(lambda k, x: jax.random.uniform(k, x.shape, x.dtype, -1, 1))(keys, x)
        return t / spread(jnp.abs(t.reshape(len(x), -1)).max(1), x)
    return ascent_direction(jax.vmap(lambda k, x: jax.random.normal(k, x.shape, x.dtype))(keys, x), "l2")


def _where(condition, new, old):
    return jnp.where(spread(condition, new) > 0, new, old)


def _tree_where(condition, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
