"""Is it robustness, or are the gradients masked? Checks that a claim should pass before it is made.

All take f: raw pixels [B, ...] -> logits [B, C], x raw pixels and integer labels y.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import attacks, checks as values, evaluation
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.gradient import is_zero
from jacreg_jax.attacks.inputs import inputs
from jacreg_jax.attacks.losses import others, true_logit
from jacreg_jax.attacks.pgd import Ball, ascend
from jacreg_jax.attacks.result import NORMS, Norm, distance, spread
from jacreg_jax.attacks.start import Goal, begin, finish
from jacreg_jax.explicit_axes import automatic
from jacreg_jax.keys import normal_like
from jacreg_jax.programs import once
from jacreg_jax.signatures import Named
from jacreg_jax.types import Array, Function


class Check(NamedTuple):
    """One finding: what was measured, the limit it should keep, and whether it does.

    Example:
        >>> Check(value=0.0, limit=0.002, passed=True).passed
        True
    """

    value: float
    limit: float
    passed: bool


_DUAL: dict[str, Norm] = {"l2": "l2", "linf": "l1", "l1": "linf"}


@once
def linearised_margin(f: Function, x: ArrayLike, y: ArrayLike, *, norm: Norm = "l2") -> Array:
    """min_c (z_y - z_c) / ||grad (z_y - z_c)||_dual: the distance to the boundary if f were linear; [B].

    The dual of L2 is L2, that of L-infinity L1 and that of L1 L-infinity. Not a bound: a ratio to found distances above
    1 means that the linearisation promises more than there is.

    Args:
        f: batched function, [B, ...] -> logits [B, C], or one logit [B] for two classes; rows independent.
        x: floating point inputs [B, ...], of any range.
        y: integer labels [B].
        norm: of the distance, "l2", "linf" or "l1".

    Returns:
        [B]; negative where the sample is wrong, +inf where every gradient is zero, NaN where a logit or a gradient is.

    Raises:
        TypeError, ValueError: see `attacks.start.begin`.

    Example:
        >>> f = lambda x: jnp.stack([x[:, 0], 1 - x[:, 0]], axis=1)  # class 0 above 0.5
        >>> linearised_margin(f, jnp.array([[0.75], [0.5]]), jnp.array([0, 0])).tolist()
        [0.25, 0.0]
    """
    start = begin(f, x, y, None, norm=norm)
    z, vjp = jax.vjp(start.judge, start.x)
    z, y = jnp.asarray(z), jnp.asarray(start.y)
    if z.ndim != 2:
        raise ValueError(f"f(x) must be logits [B, C], got shape {z.shape}")
    classes = z.shape[-1]

    def slope(c: Array) -> Array:
        direction = jax.nn.one_hot(y, classes, dtype=z.dtype) - jax.nn.one_hot(c, classes, dtype=z.dtype)[None]
        return distance(vjp(direction)[0], _DUAL[norm])

    slopes = jax.lax.map(slope, jnp.arange(classes)).T  # [B, C]
    lead = true_logit(z, y)[:, None] - others(z, y)  # +inf at y itself
    margins = jnp.min(jnp.where(slopes > 0, lead / jnp.where(slopes > 0, slopes, 1), jnp.inf), axis=1)
    return jnp.where(jnp.isfinite(z).all(-1) & jnp.isfinite(slopes).all(-1), margins, jnp.nan)


def zero_gradient_share(f: Function, x: Any, y: Any, *, batch_size: int = 500) -> float:
    """Share of samples whose loss has a gradient of exactly zero at the clean image; should be 0.

    Args:
        f: raw pixels [B, ...] -> logits [B, C].
        x: floating point inputs [N, ...].
        y: integer labels [N].
        batch_size: B.

    Returns:
        A share from 0 to 1.

    Raises:
        TypeError, ValueError: see `attacks.start.begin` and `evaluation.map_batches`.

    Example:
        >>> zero_gradient_share(jnp.round, np.array([[0.2, 0.9]], np.float32), np.array([1]))
        1.0
    """
    return float(evaluation.map_batches(_zero_gradient, f, x, y, batch_size=batch_size).mean())


@automatic
def checks(
    f: Function,
    x: Any,
    y: Any,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    num_steps: Sequence[int] = (10, 40, 100),
    num_queries: int = 1000,
    tolerance: float = 0.002,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    bounds: values.Bounds | None = (0.0, 1.0),
    batch_size: int = 500,
    progress: evaluation.Progress | None = None,
) -> dict[str, Check]:
    """The usual checks against gradient masking, by name, each with its value, limit and verdict.

    - not finite: share of samples whose clean logits, or their gradients, are not finite; 0.
    - zero gradient: share of samples without a gradient; 0.
    - square gains: share of samples that Square fools and APGD does not; at most tolerance.
    - more steps: largest rise of robust accuracy from fewer to more PGD steps; at most tolerance.
    - larger epsilon: the same from epsilon to twice that; at most tolerance.
    - unbounded: accuracy under PGD over the whole pixel range; 0.
    - noise: share fooled by uniform noise of size epsilon minus the share fooled by FGSM; at most tolerance.
    - single step: accuracy under iterated PGD minus accuracy under FGSM; at most tolerance.

    Args:
        f: raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes, or what the criterion looks at.
        x: raw pixels [N, ...]: images [N, H, W, C], or anything else, such as a pytree.
        y: integer labels [N].
        key: typed key.
        epsilon: radius in raw pixels, above 0; in L-infinity also at least 0 with all axes of x, such as [1, F].
        norm: "linf", "l2" or "l1".
        num_steps: of PGD, rising.
        num_queries: of Square.
        tolerance: share of samples.
        criterion: what counts as a success, see `attacks.criteria`.
        target: classes [N], or one for all, that f shall say.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to one sample, a pytree like x, or None.
            Where there are none, "unbounded" goes to ten times the range of x.
        batch_size: B.
        progress: wraps the batches of each attack.

    Returns:
        name -> Check.

    Raises:
        TypeError, ValueError: as the attacks when called directly; num_steps not rising; epsilon or tolerance out of
            range.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> options = {"epsilon": 0.3, "num_steps": (1, 5), "num_queries": 10}
        >>> found = checks(f, np.array([[0.7]], np.float32), np.array([0]), jax.random.key(0), **options)
        >>> found["zero gradient"].passed
        True
    """
    values.on_host(x=x, y=y, key=key, epsilon=epsilon, target=target)
    image, within, _, _ = inputs(x, bounds)
    values.one_of("norm", norm, NORMS)
    if np.ndim(epsilon) and norm == "linf":
        values.non_negative("epsilon", epsilon, beside=image.shape)
    else:
        values.positive("epsilon", epsilon)
    values.fraction("tolerance", tolerance, zero=True, one=True)
    steps = [values.count("num_steps", n) for n in values.items("num_steps", num_steps, "counts, such as (10, 40)")]
    if not steps or any(b <= a for a, b in itertools.pairwise(steps)):
        raise ValueError(f"num_steps must be rising counts, at least one; got {tuple(steps)}")
    epsilon = np.asarray(epsilon, np.float32) if np.ndim(epsilon) else float(np.asarray(epsilon))
    aim: dict[str, Any] = {} if target is None else {"target": target}
    options = norm, values.count("num_queries", num_queries), criterion, Named(bounds)

    def survivors(kind: str, size: Any, **more: Any) -> Any:
        attack = _attack(kind, *options)
        run = partial(evaluation.run_attack, attack, f, x, y, key, batch_size=batch_size, progress=progress)
        return ~run(epsilon=size, **aim, **more).success

    def climbed(size: Any, count: int) -> Any:
        return survivors("pgd", size, count=np.full(len(image), count, np.int32))

    single, by_steps = climbed(epsilon, 1), [climbed(epsilon, n) for n in steps]
    wider, everything = climbed(2 * epsilon, steps[-1]), climbed(_whole(image, within, norm), steps[-1])
    strong = survivors("apgd", epsilon) & by_steps[-1]
    searched, noise = survivors("square", epsilon), survivors("noise", epsilon)
    shares = [float(s.mean()) for s in by_steps]
    clean = evaluation.run_attack(_looked_at(*options[2:]), f, x, y, key, batch_size=batch_size, **aim)
    findings = {
        "not finite": (float(1 - clean.finite.mean()), 0.0),
        "zero gradient": (float(clean.zero.mean()), 0.0),
        "square gains": (float((strong & ~searched).mean()), tolerance),
        "more steps": (max([b - a for a, b in itertools.pairwise(shares)], default=0.0), tolerance),
        "larger epsilon": (float(wider.mean()) - shares[-1], tolerance),
        "unbounded": (float(everything.mean()), 0.0),
        "noise": (float(single.mean()) - float(noise.mean()), tolerance),
        "single step": (shares[-1] - float(single.mean()), tolerance),
    }
    return {name: Check(value, limit, value <= limit) for name, (value, limit) in findings.items()}


# defined once, so that another call compiles nothing


@lru_cache(maxsize=256)
def _attack(kind: str, norm: Norm, num_queries: int, criterion: Any, bounds: Named) -> Function:
    """(f, x, y, key, *, epsilon, target) -> AttackResult of these options; pgd takes count as well."""
    options: dict[str, Any] = {"norm": norm, "bounds": bounds.value, "criterion": criterion}
    if kind == "apgd":
        return partial(attacks.apgd, **options)
    if kind == "square":
        return partial(attacks.square, num_queries=num_queries, **options)
    return partial(_pgd if kind == "pgd" else _noise, options)


@lru_cache(maxsize=256)
def _looked_at(criterion: Any, bounds: Named) -> Function:
    """(f, x, y, key, *, target) -> what the clean samples are like."""
    return partial(_clean, {"criterion": criterion, "bounds": bounds.value})


def _pgd(
    options: dict[str, Any],
    f: Function,
    x: Any,
    y: Array,
    key: Array,
    epsilon: Array,
    count: Array,
    target: Array | None = None,
) -> attacks.AttackResult:
    """PGD of a number of steps that is no constant, [B] of one value: one program for all of them."""
    del key
    goal, norm, num_steps = Goal(options["criterion"], target), options["norm"], jnp.max(count)
    start = begin(f, x, y, options["bounds"], norm=norm, goal=goal, epsilon=epsilon)
    size = spread(epsilon, start.x)
    step_size = jnp.where(num_steps == 1, size, 2.5 * size / num_steps.astype(size.dtype))
    ball = Ball(epsilon, step_size, norm)
    x_adv, _ = ascend(start.f, start.objective(None), start.x, start.x, ball, start.bounds, num_steps)
    return finish(start, x_adv, norm=norm, steps=start.full(num_steps, jnp.int32), within=epsilon, backward=num_steps)


def _noise(
    options: dict[str, Any], f: Function, x: Any, y: Array, key: Array, epsilon: Array, target: Array | None = None
) -> Any:
    """One draw of noise of size epsilon in the norm."""
    goal, norm = Goal(options["criterion"], target), options["norm"]
    start = begin(f, x, y, options["bounds"], norm=norm, goal=goal, epsilon=epsilon)
    noise = normal_like(key, start.x)
    unit = jnp.sign(noise) if norm == "linf" else noise / spread(distance(noise, norm), noise)
    return _Noise(start.reached(start.f(start.clip(start.x + spread(epsilon, noise) * unit))))


class _Noise(NamedTuple):
    success: Array


class _Clean(NamedTuple):
    finite: Array
    zero: Array


def _clean(
    options: dict[str, Any], f: Function, x: Any, y: Array, key: Array | None, target: Array | None = None
) -> _Clean:
    """Of the clean samples: are outputs finite, are gradients zero."""
    del key
    start = begin(f, x, y, options.get("bounds"), goal=Goal(options["criterion"], target))
    gradient = start._replace(f=start.judge).gradient(start.x)  # as it is
    finite = jnp.isfinite(gradient.reshape(len(gradient), -1)).all(1)
    return _Clean(start.finite & finite, is_zero(gradient))


def _zero_gradient(f: Function, x: Any, y: Array) -> Array:
    return _clean({"criterion": misclassified}, f, x, y, None).zero


def _whole(image: Array, bounds: values.Bounds, norm: Norm) -> float:
    """The length of the whole box, or of ten times the range of the inputs where it has no end."""
    wide = np.asarray(image, np.float64)
    span = np.broadcast_to(np.asarray(bounds[1], np.float64) - np.asarray(bounds[0], np.float64), wide.shape)[:1]
    span = np.where(np.isfinite(span), span, 10 * (wide.max() - wide.min()))
    return float({"linf": span.max(), "l1": span.sum(), "l2": np.sqrt((span**2).sum())}[norm])
