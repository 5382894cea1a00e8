"""How every attack begins and ends: arguments checked, clean outputs computed once, the result judged once more."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.attacks.criteria import Criterion, chosen, misclassified
from jacreg_jax.attacks.gradient import is_zero, with_finite_gradient
from jacreg_jax.attacks.inputs import Inputs, inputs
from jacreg_jax.attacks.random_models import OverDraws, over_draws
from jacreg_jax.attacks.result import (
    FOOLED,
    FROM_THE_START,
    NEVER,
    NORMS,
    NOT_FINITE,
    AttackResult,
    Norm,
    Trajectory,
    choose,
    distance,
    spread,
)
from jacreg_jax.concrete import look
from jacreg_jax.keys import check_key, sample_keys
from jacreg_jax.manual_axes import varying as varying
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, Function


class Goal(NamedTuple):
    """What an attack is to reach, as its caller says it."""

    criterion: Any = misclassified  # what counts as a success, see `criteria`
    target: Any = None  # integer classes [B], or one for all
    samples: int | None = None  # draws of f(x, key) at every point


ANY_OTHER_CLASS = Goal()


class Start(NamedTuple):
    """What every attack works on; float16 and bfloat16 inputs are worked on in float32, as rounded ones."""

    f: Function  # raw pixels [B, ...] -> outputs z as the criterion wants them, at least in float32
    judge: Function  # the same, with draws of its own where f draws, and with gradients as they are
    x: Array  # [B, ...] raw pixels, at least in float32
    y: Any  # what the criterion compares outputs with: labels [B], targets, clean outputs
    label: Any  # as the caller gave it
    bounds: checks.Bounds  # (low, high), floats or arrays beside x
    keys: Any  # [B] typed keys, or None
    logits: Any  # z of the clean inputs
    clean_correct: Array  # [B] bool: finite, the goal not reached
    finite: Array  # [B] bool, of the clean outputs
    criterion: Criterion
    inputs: Inputs

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[-1])

    @property
    def criterion_inside(self) -> Criterion:
        """That of one draw, where f draws."""
        return self.criterion.inner if isinstance(self.criterion, OverDraws) else self.criterion

    def clip(self, x_adv: Array) -> Array:
        """The nearest images within bounds."""
        return jnp.clip(x_adv, *self.bounds)

    def full(self, value: Any, dtype: Any) -> Array:
        """[B] of one value, or of B; inside shard_map it varies over the mesh as the samples do, so that loops may."""
        return varying(jnp.broadcast_to(jnp.asarray(value, dtype), (len(self.x),)), self.clean_correct)

    def none(self) -> Array:
        """[B] bool, False everywhere."""
        return self.full(False, bool)

    def zeros(self) -> Array:
        """[B] int32 zeros, where steps are counted."""
        return self.full(0, jnp.int32)

    def reached(self, z: Any) -> Array:
        """[B] bool: these outputs are a success."""
        return self.criterion.reached(z, self.y)

    def margin(self, z: Any) -> Array:
        """[B], above 0 where they are."""
        return self.criterion.margin(z, self.y)

    def objective(self, loss: Function | None) -> Callable[[Any], Array]:
        """z -> [B]: a loss (z, y) of the caller's, or None for the criterion's own."""
        pair = self.criterion.loss if loss is None else self.criterion.mean_of(loss)
        return lambda z: pair(z, self.y)

    def gradient(self, x_adv: Array, loss: Function | None = None) -> Array:
        """Of every sample's own loss, [B, ...]."""
        objective = self.objective(loss)
        found: Array = jax.grad(lambda x: jnp.sum(objective(self.f(x))))(x_adv)
        return found


def begin(
    f: Function,
    x: Any,
    y: Any,
    bounds: checks.Bounds | None,
    *,
    key: Any = None,
    norm: Any = "l2",
    goal: Goal = ANY_OTHER_CLASS,
    per_entry: bool = False,
    **sizes: Any,
) -> Start:
    """Check what every attack takes, and call f on the clean images.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C] or one logit [B] or [B, 1] (class 1 above 0), logits
            of positions [B, ..., C], or whatever the criterion looks at; f(x, key) with `samples`.
        x: raw pixels [B, ...] within bounds, or a pytree of arrays, of which the floating point ones are moved.
        y: integer labels [B], each in [0, C); what the criterion wants.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.
        key: typed key, or B of them; None where nothing is drawn.
        norm: "linf", "l2" or "l1".
        goal: what the attack is to reach.
        per_entry: sizes may have all axes of x; they may also in L-infinity.
        **sizes: numbers of at least 0 by name, scalar or [B], such as epsilon.

    Raises:
        TypeError: x is not floating point, y not integer, bounds no pair, a size no number, or key no typed key.
        ValueError: an empty batch; y not [B] or not in [0, C); bounds NaN or reversed; pixels outside of bounds;
            outputs that the criterion cannot read; an unknown norm; a size that is negative, infinite or NaN; target
            together with a criterion.
    """
    _, target, samples = goal
    checks.function("f", f, ("x", "key") if samples is not None else ("x",))
    given = inputs(x, bounds)
    image = given.x
    checks.one_of("norm", norm, NORMS)
    beside = image.shape if per_entry or norm == "linf" else ()
    for name, value in sizes.items():
        checks.non_negative(name, value, batch=len(image), beside=beside)
    if checks.optional_count("samples", samples) is not None:
        check_key(key)
    keys = None if key is None else sample_keys(key, len(image))
    if ("epsilon" in sizes or per_entry) and not look(lambda *_: None, *jax.tree.leaves(x)):  # in a jit of the caller
        low, high = given.bounds  # wide enough for x: clipping must not lead out of the ball
        given = given._replace(bounds=(jnp.minimum(low, image), jnp.maximum(high, image)))
    image = varying(image, y, target, keys, sizes, given.bounds)
    criterion = chosen(goal.criterion, target)
    criterion = criterion if samples is None else OverDraws(criterion)
    function = _function(f, criterion, given, keys, samples)
    z = function(image)
    y_read = criterion.reference(z, y, target)
    image, y_read, keys = varying((image, y_read, keys), z)
    finite = jnp.stack([jnp.isfinite(a.reshape(len(a), -1)).all(1) for a in jax.tree.leaves(z)]).all(0)
    correct = finite & ~criterion.reached(z, y_read)
    judge = function if samples is None else _function(f, criterion, given, keys, samples, judge=True)
    climbed = lambda x: function(with_finite_gradient(x))
    return Start(climbed, judge, image, y_read, y, given.bounds, keys, z, correct, finite, criterion, given)


def finish(
    start: Start,
    x_adv: Array,
    *,
    norm: Norm,
    steps: Array,
    grad_zero: Array | None = None,
    loss: Function | None = None,
    within: Any = None,
    forward: Any = 0,
    backward: Any = 0,
    trajectory: Trajectory | None = None,
) -> AttackResult:
    """The result for candidates x_adv, judged by one more evaluation of f.

    Args:
        start: as `begin` gave it.
        x_adv: [B, ...].
        norm: of the distance.
        steps: [B].
        grad_zero: [B] bool where it is known already.
        loss: whose gradient at the clean images is looked at where grad_zero is not given.
        within: epsilon of the ball that x_adv was projected to. A distance above it by the rounding of x is epsilon;
            above it by that of half precision, to which x_adv goes back, it stays what it is.
        forward: evaluations of f without a gradient between the first and the last, [B] or one number.
        backward: gradients, each with an evaluation.
        trajectory: of the steps.
    """
    x, clean_correct = start.x, start.clean_correct
    unpacked = start.inputs.unpack(choose(clean_correct, x_adv, x))
    seen = start.inputs.pack(unpacked)
    success = ~clean_correct | start.reached(start.judge(seen))
    length = distance(seen - x, norm)
    success = success & (jnp.isfinite(length) | ~clean_correct)
    if within is not None:
        length = _unrounded(length, within, x, norm)
    reached = jnp.where(success, length, jnp.inf)
    if grad_zero is None:
        grad_zero, backward = is_zero(start.gradient(x, loss)), backward + 1
    ended = jnp.where(success, FOOLED, NEVER)
    wrong = jnp.where(start.finite, FROM_THE_START, NOT_FINITE)
    count = lambda n: jnp.where(clean_correct, start.full(n, jnp.int32), 0)
    return AttackResult(
        unpacked,
        success,
        jnp.where(clean_correct, reached, 0.0),
        clean_correct,
        count(steps),
        grad_zero,
        jnp.where(clean_correct, ended, wrong).astype(jnp.int32),
        count(forward + backward) + 2,
        count(backward),
        trajectory,
    )


def _unrounded(length: Array, epsilon: Any, x: Array, norm: Norm) -> Array:
    """Distances [B], with epsilon for those that only the rounding of sums x + delta has led beyond it."""
    sizes, flat = spread(epsilon, x), x.reshape(len(x), -1)  # [B, 1, ...], or as x or one sample of it
    size = sizes.reshape(len(sizes), -1).max(1)
    entries = {"linf": 1.0, "l2": flat.shape[1] ** 0.5, "l1": float(flat.shape[1])}[norm]
    slack = jnp.finfo(x.dtype).eps * (4 * size + entries * jnp.abs(flat).max(1))
    return jnp.where(length <= size + slack, jnp.minimum(length, size), length)


def _function(
    f: Function, criterion: Criterion, given: Inputs, keys: Any, samples: int | None, *, judge: bool = False
) -> Function:
    """F of packed inputs, rounded as they came, with outputs as the criterion wants them, at least in float32."""
    batch = len(given.x)
    drawn = None if samples is None else over_draws(f, keys, samples)

    def widen(z: Any) -> Any:
        is_float = hasattr(z, "dtype") and jnp.issubdtype(z.dtype, jnp.floating)
        return z.astype(at_least_float32(z.dtype)) if is_float else z  # else the checks say so

    def function(x: Array) -> Any:
        x = given.unpack(x)
        z = f(x) if drawn is None else drawn(x, judge=judge)
        return criterion.outputs(jax.tree.map(widen, z), batch)

    return function
