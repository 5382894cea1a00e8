"""Auto-PGD: steps whose size adapts to how the loss rises; untargeted and targeted, in L-infinity, L2 and L1."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks import apgd_l1, apgd_search
from jacreg_jax.attacks.apgd_search import Found, Search
from jacreg_jax.attacks.class_criteria import Targeted
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.losses import dlr_targeted
from jacreg_jax.attacks.result import AttackResult, Norm
from jacreg_jax.attacks.start import Goal, Start, begin, finish
from jacreg_jax.attacks.trace import blank
from jacreg_jax.checks import Bounds
from jacreg_jax.deprecation import renamed
from jacreg_jax.keys import check_key
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function, PyTree

Loss = Literal["ce", "dlr", "targeted"]
_LEAST_CLASSES = {"ce": 2, "dlr": 3, "targeted": 4}


@once
def apgd(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    loss: Loss = "ce",
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int | None = None,
    rho: float = 0.75,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    trace: bool = False,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """Auto-PGD in a ball of radius epsilon: momentum, and a step that is halved where fewer than rho of them helped.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; the start is a random point on the sphere.
        epsilon: radius in raw pixels, scalar or [B]; in L-infinity also with all axes of x, such as [1, F].
        norm: "linf", "l2" or "l1"; in L1 steps go along few entries, the fewer the more the best point so far needs,
            first in balls of three and two times the radius (Croce, Hein 2021).
        loss: "ce", the criterion's own loss; "dlr", the difference-of-logits ratio, which a rescaling of the logits
            does not change (3 classes at least); or "targeted", that ratio towards each of the likeliest other classes
            in turn (4 classes at least).
            Use more than one: on Jacobian-regularised models "ce" fools more than "dlr", on confident ones less.
        num_steps: gradient steps of each run.
        num_restarts: of the whole, each from another start.
        num_targets: classes that "targeted" tries, at most C - 1; None: 9. Not for the other losses.
        rho: share of steps that must raise the loss between two checkpoints; not in L1.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        trace: keep loss and distance of every step in `trajectory`.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key, norm=norm, epsilon=epsilon, goal=goal)
    num_steps, num_restarts = checks.count("num_steps", num_steps), checks.count("num_restarts", num_restarts)
    if checks.optional_count("num_targets", num_targets) is not None and loss != "targeted":
        raise ValueError(f"num_targets is for loss='targeted' alone, got {num_targets} with loss {loss!r}")
    targets = _targets(start, loss, num_targets)

    def run(i: Counter, found: Found) -> Found:
        goal, offset = _objective(start, loss, i % targets), i * num_steps
        search = Search(start, goal, loss == "ce", epsilon, norm, num_steps, rho, offset)
        keys = jax.vmap(jax.random.fold_in, (0, None))(start.keys, i)
        return apgd_l1.run(search, keys, found) if norm == "l1" else apgd_search.run(search, keys, found)

    seen = blank(start, num_restarts * targets * num_steps, trace)
    nothing = Found(start.x, ~start.clean_correct, start.zeros(), start.zeros(), seen)
    found = jax.lax.fori_loop(0, num_restarts * targets, run, nothing)
    spent = {"backward": found.passes, "trajectory": found.seen, "within": epsilon}
    return finish(start, found.x_adv, norm=norm, steps=found.steps, **spent)


apgd_targeted = renamed("apgd_targeted", partial(apgd, loss="targeted"), 'apgd(loss="targeted")')


def _targets(start: Start, loss: Loss, num_targets: int | None) -> int:
    """How many classes are tried, after the check that there are enough."""
    if loss == "ce":
        return 1
    is_one = isinstance(start.criterion_inside, Targeted)
    rivals = start.criterion.num_rivals(start.logits)
    if not is_one and not rivals:
        raise ValueError(f"loss {loss!r} is for logits [B, C] and their labels, not for criterion {start.criterion}")
    if is_one and start.label is None:
        raise ValueError(f"y must be labels [B] for loss {loss!r}, got None")
    classes = start.num_classes
    if classes < _LEAST_CLASSES[loss]:
        raise ValueError(f"loss {loss!r} needs at least {_LEAST_CLASSES[loss]} classes, f gives {classes}")
    return 1 if is_one or loss == "dlr" else min(num_targets or 9, rivals)


def _objective(start: Start, loss: Loss, k: Counter) -> Function:
    """Outputs -> what is climbed, [B]."""
    if loss == "targeted":
        is_one = isinstance(start.criterion_inside, Targeted)
        rival = start.y if is_one else start.criterion.rival(k, start.logits)
        label = jnp.asarray(start.label, jnp.int32)
        mean = start.criterion.mean_of(lambda z, y: dlr_targeted(z, y, rival))
        return lambda z: mean(z, label)
    if loss == "dlr":
        return lambda z: start.criterion.ratio(z, start.y)
    return start.objective(None)
