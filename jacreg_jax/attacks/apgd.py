"""Auto-PGD: steps whose size is halved where the loss has stopped rising; untargeted and targeted."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.ball import project, random_on_sphere
from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.losses import dlr, dlr_targeted, log_odds
from jacreg_jax.attacks.result import AttackResult, Norm, choose, is_fooled, spread
from jacreg_jax.attacks.start import Start, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.deprecation import renamed
from jacreg_jax.keys import check_key
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function

Loss = Literal["ce", "dlr", "targeted"]
_LEAST_CLASSES = {"ce": 2, "dlr": 3, "targeted": 4}


class _Search(NamedTuple):
    """What stays the same through one run."""

    start: Start
    objective: Function  # logits [B, C] -> what is climbed, [B]
    is_ce: bool
    epsilon: ArrayLike
    norm: Norm
    num_steps: int
    rho: float


class _Found(NamedTuple):
    """What all runs so far have found."""

    x_adv: Array  # an image that fools f, where `done`
    done: Array  # [B] bool; wrong samples are from the start
    steps: Array  # [B] int32


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
    step_size: Array
    found: _Found


@once
def apgd(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    loss: Loss = "ce",
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int | None = None,
    rho: float = 0.75,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Auto-PGD in a ball of radius epsilon: momentum, and a step that is halved where fewer than rho of them helped.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; the start is a random point on the sphere.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf" or "l2".
        loss: "ce"; "dlr", the difference-of-logits ratio, which a rescaling of the logits does not change (3 classes at
            least); or "targeted", that ratio towards each of the likeliest other classes in turn (4 classes at least).
            Use more than one: on Jacobian-regularised models "ce" fools more than "dlr", on confident ones less.
        num_steps: gradient steps of each run.
        num_restarts: of the whole, each from another start.
        num_targets: classes that "targeted" tries, at most C - 1; None: 9. Not for the other losses.
        rho: share of steps that must raise the loss between two checkpoints.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with distances in `norm`.

    Raises:
        TypeError, ValueError: see `start.begin`; counts below 1; num_targets with another loss; unknown loss, or fewer
            classes than it needs; rho outside (0, 1); key is not a typed key.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> apgd(f, x, y, jax.random.key(0), epsilon=0.3, num_steps=5).success.tolist()
        [True, False]

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    check_key(key)
    checks.one_of("loss", loss, _LEAST_CLASSES)
    checks.fraction("rho", rho)
    start = begin(f, x, y, bounds, key=key, norm=norm, epsilon=epsilon)
    num_steps, num_restarts = checks.count("num_steps", num_steps), checks.count("num_restarts", num_restarts)
    if checks.optional_count("num_targets", num_targets) is not None and loss != "targeted":
        raise ValueError(f"num_targets is for loss='targeted' alone, got {num_targets} with loss {loss!r}")
    targets = min(num_targets or 9, start.num_classes - 1) if loss == "targeted" else 1
    if start.num_classes < _LEAST_CLASSES[loss]:
        raise ValueError(f"loss {loss!r} needs at least {_LEAST_CLASSES[loss]} classes, f gives {start.num_classes}")
    order = jnp.argsort(start.logits, axis=1)

    def run(i: Counter, found: _Found) -> _Found:
        target = jnp.take(order, start.num_classes - 2 - i % targets, axis=1) if loss == "targeted" else None
        search = _Search(start, _objective(loss, start.y, target), loss == "ce", epsilon, norm, num_steps, rho)
        return _run(search, jax.vmap(jax.random.fold_in, (0, None))(start.keys, i), found)

    nothing = _Found(start.x, ~start.clean_correct, start.zeros())
    found = jax.lax.fori_loop(0, num_restarts * targets, run, nothing)
    return finish(start, found.x_adv, norm=norm, steps=found.steps)


apgd_targeted = renamed("apgd_targeted", partial(apgd, loss="targeted"), 'apgd(loss="targeted")')


def _objective(loss: Loss, y: Array, target: Array | None) -> Function:
    if target is not None:
        return lambda logits: dlr_targeted(logits, y, target)
    return lambda logits: (log_odds if loss == "ce" else dlr)(logits, y)


def _run(search: _Search, keys: Array, found: _Found) -> _Found:
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


def _evaluate(search: _Search, x_adv: Array) -> tuple[Array, Array, Array]:
    """Gradient, loss [B], and where f is fooled [B]."""

    def climb(x_adv: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = search.start.f(x_adv)
        loss = search.objective(logits)
        return jnp.sum(loss), (loss, is_fooled(logits, search.start.y))

    gradient, (loss, fooled) = jax.grad(climb, has_aux=True)(x_adv)
    return gradient, loss, fooled


def _first(search: _Search, keys: Array, found: _Found) -> _State:
    """The state at a random point of the sphere."""
    x = search.start.x
    x_adv = search.start.clip(x + spread(search.epsilon, x) * random_on_sphere(keys, x, search.norm))
    gradient, loss, fooled = _evaluate(search, x_adv)
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
        step_size=search.start.full(2, x.dtype) * jnp.asarray(search.epsilon, x.dtype),
        found=_Found(choose(new, x_adv, found.x_adv), found.done | new, found.steps),
    )


def _move(search: _Search, i: Counter, s: _State) -> Array:
    """A gradient step, and three quarters of it plus a quarter of the last."""
    x = search.start.x
    into_ball = partial(project, x=x, epsilon=search.epsilon, norm=search.norm, bounds=search.start.bounds)
    weight = jnp.where(i > 0, 0.75, 1.0).astype(x.dtype)
    ahead = into_ball(s.x_adv + spread(s.step_size, x) * ascent_direction(s.gradient, search.norm))
    momentum = s.x_adv - s.x_old
    return into_ball(s.x_adv + weight * (ahead - s.x_adv) + (1 - weight) * momentum)


def _step(search: _Search, i: Counter, s: _State) -> _State:
    x_adv = _move(search, i, s)
    gradient, loss, fooled = _evaluate(search, x_adv)
    new = fooled & ~s.found.done
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
        found=_Found(
            choose(new, x_adv, s.found.x_adv), s.found.done | new, jnp.where(new, i + 1, s.found.steps)
        ),
    )  # fmt: skip


def _checkpoint(search: _Search, length: Array, s: _State) -> _State:
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
