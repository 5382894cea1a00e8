"""Fast adaptive boundary attack, targeted: projections onto the linearised boundary within the box."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.criterion import Pair
from jacreg_jax.attacks.result import AttackResult, Norm, choose, distance, spread
from jacreg_jax.attacks.sparse import largest_with
from jacreg_jax.attacks.start import Goal, begin, finish, varying
from jacreg_jax.checks import Bounds
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function, PyTree


class _Best(NamedTuple):
    """The nearest fooling point of the unit box so far, over all targets."""

    u: Array
    distance: Array  # [B]; +inf where none was found, 0 where wrong from the start
    steps: Array  # [B] int32


@once
def fab(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    norm: Norm = "l2",
    num_targets: int = 9,
    num_steps: int = 100,
    overshoot: float = 1.05,
    alpha_max: float = 0.1,
    beta: float = 0.9,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """The nearest fooling image by projecting onto z_target - z_y = 0, linearised, towards each likely class in turn.

    x' <- (1 - a) (x' + 1.05 d(x')) + a (x + 1.05 d(x)), where d(.) leads to the hyperplane within bounds and a favours
    whichever is nearer; a fooling x' is kept if it is the nearest so far and pulled back, x + 0.9 (x' - x).

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; for `samples` alone, the attack starts from the image itself.
        norm: "l2", "linf" or "l1".
        num_targets: classes tried, the likeliest first, at most C - 1; for other criteria not used.
        num_steps: for each class.
        overshoot: eta of the paper.
        alpha_max: largest weight of the projection from the image; 0 where a share of positions must be wrong.
        beta: the pull back.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

    Returns:
        AttackResult with distances in `norm`.

    Raises:
        TypeError, ValueError: see `start.begin`; counts below 1; overshoot below 1; alpha_max outside [0, 1]; beta
            outside (0, 1].

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> [round(float(d), 2) for d in fab(f, x, y).distance]
        [0.2, 0.4]

    Reference: Croce, Hein (2019), https://arxiv.org/abs/1907.02044.
    """
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key if samples else None, norm=norm, goal=goal)
    num_targets = min(checks.count("num_targets", num_targets), start.criterion.num_leads(start.logits))
    num_steps = checks.count("num_steps", num_steps)
    _check(overshoot, alpha_max, beta)
    image, box = start.x, start.bounds  # and of a joint lead no step back: it loses the positions that are wrong
    alpha_max = 0.0 if start.criterion.is_joint(start.logits) else alpha_max

    def step(u: Array, lead: Pair) -> Array:
        """Towards the linearised boundary, from here and from the image."""

        def climb(u: Array) -> tuple[Array, Array]:
            difference = lead(start.f(u), start.y)
            return jnp.sum(difference), difference

        w, difference = jax.grad(climb, has_aux=True)(u)
        offset = jnp.sum((w * u).reshape(len(u), -1), axis=1) - difference  # the hyperplane is w . u = offset
        from_here, from_image = (project_to_plane(p, w, offset, norm, box) for p in (u, image))
        here, there = (jnp.maximum(distance(d, norm), 1e-8) for d in (from_here, from_image))
        alpha = spread(jnp.clip(here / (here + there), 0, alpha_max), u)
        mixed = (1 - alpha) * (u + overshoot * from_here) + alpha * (image + overshoot * from_image)
        return start.clip(mixed)

    def one_target(k: Counter, best: _Best) -> _Best:
        lead = start.criterion.lead(k, start.logits)

        def body(i: Counter, carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
            u, best = step(carry[0], lead), carry[1]
            fooled = start.reached(start.f(u))
            length = distance(u - image, norm)
            better = fooled & (length < best.distance)
            new = _Best(u, length, jnp.full_like(best.steps, k * num_steps + i + 1))
            pulled_back = choose(fooled, image + beta * (u - image), u)
            return pulled_back, jax.tree.map(lambda n, b: choose(better, n, b), new, best)

        _, best = jax.lax.fori_loop(0, num_steps, body, (image, best))
        return best

    farthest = jnp.where(start.clean_correct, jnp.inf, 0).astype(image.dtype)
    best = jax.lax.fori_loop(0, num_targets, one_target, _Best(image, farthest, start.zeros()))
    x_adv = choose(jnp.isinf(best.distance), image, start.clip(best.u))
    passes = num_targets * num_steps
    return finish(start, x_adv, norm=norm, steps=best.steps, forward=passes, backward=passes)


def _check(overshoot: float, alpha_max: float, beta: float) -> None:
    checks.at_least("overshoot", overshoot, 1)
    checks.fraction("alpha_max", alpha_max, zero=True, one=True)
    checks.fraction("beta", beta, one=True)


def project_to_plane(u: Array, w: Array, offset: Array, norm: Norm, bounds: Bounds = (0.0, 1.0)) -> Array:
    """The shortest d with w . (u + d) = offset and u + d within bounds; as near as the box allows where there is none.

    With the sign of w such that w . u >= offset, d(s) = clip(-s v, low - u, high - u), v = w in L2, sign(w) in
    L-infinity; w . d(s) falls with s, convex and piecewise linear, so that Newton's method from s = 0 rises to the
    root. In L1 the entries with the largest |w| move first, each as far as it may.

    Args:
        u: points [B, ...] of the box.
        w: normals [B, ...].
        offset: [B].
        norm: of the distance that is smallest.
        bounds: (low, high), scalars or arrays beside u.

    Returns:
        d, [B, ...].
    """
    flat, normal = u.reshape(len(u), -1), w.reshape(len(w), -1)
    down, up = ((b - u).reshape(len(u), -1) for b in bounds)
    scale = jnp.max(jnp.abs(normal), axis=1, keepdims=True)  # genuine gradients can lie below any fixed threshold
    scale = jnp.where(scale > 0, scale, 1)
    normal, offset = normal / scale, offset[:, None] / scale
    gap = jnp.sum(normal * flat, axis=1, keepdims=True) - offset
    normal, gap = jnp.where(gap >= 0, normal, -normal), jnp.abs(gap)
    if norm == "l1":
        return _largest_first(normal, gap, jnp.where(normal > 0, down, up)).reshape(u.shape)
    v = normal if norm == "l2" else jnp.sign(normal)

    def move(s: Array) -> Array:
        return jnp.clip(-s * v, down, up)

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, s, _ = carry
        d = move(s)
        missing = gap + jnp.sum(normal * d, axis=1, keepdims=True)
        is_free = jnp.where(v > 0, d > down, d < up)  # a pixel moves against v
        slope = jnp.sum(jnp.where(is_free, normal * v, 0), axis=1, keepdims=True)
        # nothing left to move: the plane does not meet the box
        s = s + jnp.where(slope > 0, jnp.maximum(missing, 0) / jnp.where(slope > 0, slope, 1), 0)
        return i + 1, s, (missing > 1e-6 * gap) & (slope > 0)

    first = jnp.zeros((), jnp.int32), *varying((jnp.zeros_like(gap), jnp.ones_like(gap, bool)), gap)
    _, s, _ = jax.lax.while_loop(lambda c: (c[0] < 50) & jnp.any(c[2]), newton, first)
    return move(s).reshape(u.shape)


def _largest_first(normal: Array, gap: Array, room: Array) -> Array:
    """D [B, n] with normal . d = -gap: entries move against the normal to their room, in the order of |normal|."""
    slope, far = jnp.abs(normal), jnp.where(normal != 0, jnp.abs(room), 0)
    gain = jnp.minimum(gap, slope * far)  # of a whole move
    last = largest_with(slope, gain, gap)  # the slope of those that move in part
    before = jnp.sum(jnp.where(slope > last, gain, 0), axis=1, keepdims=True)
    at_last = jnp.sum(jnp.where(slope == last, gain, 0), axis=1, keepdims=True)
    part = jnp.clip((gap - before) / jnp.where(at_last > 0, at_last, 1), 0, 1)
    whole = jnp.minimum(far, gain / jnp.where(slope > 0, slope, 1))
    return -jnp.sign(normal) * jnp.where(slope > last, whole, jnp.where(slope == last, part * whole, 0))
