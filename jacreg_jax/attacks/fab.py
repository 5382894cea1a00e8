"""Fast adaptive boundary attack, targeted: projections onto the linearised boundary within the box."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.losses import true_logit
from jacreg_jax.attacks.result import AttackResult, Norm, choose, distance, is_fooled, spread
from jacreg_jax.attacks.start import begin, finish, varying
from jacreg_jax.checks import Bounds
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function


class _Best(NamedTuple):
    """The nearest fooling point of the unit box so far, over all targets."""

    u: Array
    distance: Array  # [B]; +inf where none was found, 0 where wrong from the start
    steps: Array  # [B] int32


@once
def fab(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array | None = None,
    *,
    norm: Norm = "l2",
    num_targets: int = 9,
    num_steps: int = 100,
    overshoot: float = 1.05,
    alpha_max: float = 0.1,
    beta: float = 0.9,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """The nearest fooling image by projecting onto z_target - z_y = 0, linearised, towards each likely class in turn.

    x' <- (1 - a) (x' + 1.05 d(x')) + a (x + 1.05 d(x)), where d(.) leads to the hyperplane within bounds and a favours
    whichever is nearer; a fooling x' is kept if it is the nearest so far and pulled back, x + 0.9 (x' - x).

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used: the attack starts from the image itself.
        norm: "l2" or "linf".
        num_targets: classes tried, the likeliest first, at most C - 1.
        num_steps: for each class.
        overshoot: eta of the paper.
        alpha_max: largest weight of the projection from the image.
        beta: the pull back.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

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
    del key
    start = begin(f, x, y, bounds, norm=norm)
    num_targets = min(checks.count("num_targets", num_targets), start.num_classes - 1)
    num_steps = checks.count("num_steps", num_steps)
    checks.at_least("overshoot", overshoot, 1)
    checks.fraction("alpha_max", alpha_max, zero=True, one=True)
    checks.fraction("beta", beta, one=True)
    label, low, span = start.y, start.bounds[0], start.bounds[1] - start.bounds[0]
    image = start.x - low  # the projections work in the box [0, span]
    order = jnp.argsort(start.logits, axis=1)

    def lead(u: Array, target: Array) -> tuple[Array, Array]:
        z = start.f(low + u)
        difference = true_logit(z, target) - true_logit(z, label)
        return jnp.sum(difference), difference

    def step(u: Array, target: Array) -> Array:
        """Towards the linearised boundary, from here and from the image."""
        w, difference = jax.grad(lead, has_aux=True)(u, target)
        offset = jnp.sum((w * u).reshape(len(u), -1), axis=1) - difference  # the hyperplane is w . u = offset
        from_here, from_image = (project_to_plane(p, w, offset, norm, span) for p in (u, image))
        here, there = (jnp.maximum(distance(d, norm), 1e-8) for d in (from_here, from_image))
        alpha = spread(jnp.clip(here / (here + there), 0, alpha_max), u)
        mixed = (1 - alpha) * (u + overshoot * from_here) + alpha * (image + overshoot * from_image)
        return jnp.clip(mixed, 0, span)

    def one_target(k: Counter, best: _Best) -> _Best:
        target = jnp.take(order, start.num_classes - 2 - k, axis=1)

        def body(i: Counter, carry: tuple[Array, _Best]) -> tuple[Array, _Best]:
            u, best = step(carry[0], target), carry[1]
            fooled = is_fooled(start.f(low + u), label)
            length = distance(u - image, norm)
            better = fooled & (length < best.distance)
            new = _Best(u, length, jnp.full_like(best.steps, k * num_steps + i + 1))
            pulled_back = choose(fooled, image + beta * (u - image), u)
            return pulled_back, jax.tree.map(lambda n, b: choose(better, n, b), new, best)

        _, best = jax.lax.fori_loop(0, num_steps, body, (image, best))
        return best

    farthest = jnp.where(start.clean_correct, jnp.inf, 0).astype(image.dtype)
    best = jax.lax.fori_loop(0, num_targets, one_target, _Best(image, farthest, start.zeros()))
    x_adv = choose(jnp.isinf(best.distance), start.x, start.clip(low + best.u))
    return finish(start, x_adv, norm=norm, steps=best.steps)


def project_to_plane(u: Array, w: Array, offset: Array, norm: Norm, span: Any = 1.0) -> Array:
    """The shortest d with w . (u + d) = offset and 0 <= u + d <= span; as near as the box allows where there is none.

    With the sign of w such that w . u >= offset, d(s) = clip(-s v, -u, span - u), v = w in L2, sign(w) in L-infinity;
    w . d(s) falls with s, convex and piecewise linear, so that Newton's method from s = 0 rises to the root.

    Args:
        u: points [B, ...] of the box [0, span].
        w: normals [B, ...].
        offset: [B].
        norm: of the distance that is smallest.
        span: sides of the box, a scalar or an array beside u.

    Returns:
        d, [B, ...].
    """
    flat, normal = u.reshape(len(u), -1), w.reshape(len(w), -1)
    room = (span - u).reshape(len(u), -1)
    scale = jnp.max(jnp.abs(normal), axis=1, keepdims=True)  # genuine gradients can lie below any fixed threshold
    scale = jnp.where(scale > 0, scale, 1)
    normal, offset = normal / scale, offset[:, None] / scale
    gap = jnp.sum(normal * flat, axis=1, keepdims=True) - offset
    normal, gap = jnp.where(gap >= 0, normal, -normal), jnp.abs(gap)
    v = normal if norm == "l2" else jnp.sign(normal)

    def move(s: Array) -> Array:
        return jnp.clip(-s * v, -flat, room)

    def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, s, _ = carry
        d = move(s)
        missing = gap + jnp.sum(normal * d, axis=1, keepdims=True)
        is_free = jnp.where(v > 0, d > -flat, d < room)  # a pixel moves against v
        slope = jnp.sum(jnp.where(is_free, normal * v, 0), axis=1, keepdims=True)
        # nothing left to move: the plane does not meet the box
        s = s + jnp.where(slope > 0, jnp.maximum(missing, 0) / jnp.where(slope > 0, slope, 1), 0)
        return i + 1, s, (missing > 1e-6 * gap) & (slope > 0)

    first = jnp.zeros((), jnp.int32), *varying((jnp.zeros_like(gap), jnp.ones_like(gap, bool)), gap)
    _, s, _ = jax.lax.while_loop(lambda c: (c[0] < 50) & jnp.any(c[2]), newton, first)
    return move(s).reshape(u.shape)
