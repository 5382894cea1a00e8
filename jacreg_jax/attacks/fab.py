"""Fast adaptive boundary attack, targeted: projections onto the linearised boundary within the box."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.losses import true_logit
from jacreg_jax.attacks.result import (
    AttackResult,
    Norm,
    check_count,
    check_inputs,
    distance,
    finish,
    is_correct,
    is_fooled,
    spread,
    zero_gradient,
)


def fab(
    f: Callable,
    x,
    y,
    key=None,
    *,
    norm: Norm = "l2",
    num_targets: int = 9,
    num_steps: int = 100,
    overshoot: float = 1.05,
    alpha_max: float = 0.1,
    beta: float = 0.9,
    bounds=(0.0, 1.0),
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
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with distances in `norm`.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; counts below 1.

    Reference: Croce, Hein (2019), https://arxiv.org/abs/1907.02044.
    """
    del key
    check_inputs(x, y, bounds, norm=norm)
    check_count("num_targets", num_targets)
    check_count("num_steps", num_steps)
    low, span = bounds[0], bounds[1] - bounds[0]
    unit = (x - low) / span  # the projections work in the unit box
    logits = f(x)
    order = jnp.argsort(logits, axis=1)
    classes = logits.shape[1]

    def one_target(k, carry):
        target = jnp.take(order, classes - 2 - k, axis=1)

        def lead(u):
            z = f(low + span * u)
            difference = true_logit(z, target) - true_logit(z, y)
            return jnp.sum(difference), difference

        def step(i, carry):
            u, best, shortest, steps = carry
            w, difference = jax.grad(lead, has_aux=True)(u)
            offset = jnp.sum((w * u).reshape(len(u), -1), axis=1) - difference  # the hyperplane is w . u = offset
            from_here, from_image = (project_to_plane(p, w, offset, norm) for p in (u, unit))
            here, image = (jnp.maximum(distance(d, norm), 1e-8) for d in (from_here, from_image))
            alpha = spread(jnp.clip(here / (here + image), 0, alpha_max), u)
            u = jnp.clip((1 - alpha) * (u + overshoot * from_here) + alpha * (unit + overshoot * from_image), 0, 1)
            fooled = is_fooled(f(low + span * u), y)
            length = distance(u - unit, norm)
            better = fooled & (length < shortest)
            best = jnp.where(spread(better, u) > 0, u, best)
            steps = jnp.where(better, k * num_steps + i + 1, steps)
            u = jnp.where(spread(fooled, u) > 0, unit + beta * (u - unit), u)
            return u, best, jnp.where(better, length, shortest), steps

        best, shortest, steps = carry
        _, *carry = jax.lax.fori_loop(0, num_steps, step, (unit, best, shortest, steps))
        return tuple(carry)

    shortest = jnp.where(is_correct(logits, y), jnp.inf, 0).astype(x.dtype)
    start = unit, shortest, jnp.zeros(len(x), jnp.int32)
    best, shortest, steps = jax.lax.fori_loop(0, min(num_targets, classes - 1), one_target, start)
    x_adv = jnp.where(spread(jnp.isinf(shortest), x) > 0, x, low + span * best)
    return finish(f, x, y, x_adv, norm=norm, steps=steps, grad_zero=zero_gradient(f, x, y))


def project_to_plane(u, w, offset, norm: Norm) -> jax.Array:
    """The shortest d with w . (u + d) = offset and 0 <= u + d <= 1; as near as the box allows where there is none.

    With the sign of w such that w . u >= offset, d(s) = clip(-s v, -u, 1 - u), v = w in L2 and sign(w) in L-infinity.
    w . d(s) falls with s, convex and piecewise linear, so that Newton's method from s = 0 rises to the root.

    Args:
        u: points [B, ...] of the unit box.
        w: normals [B, ...].
        offset: [B].
        norm: of the distance that is smallest.

    Returns:
        d, [B, ...].
    """
    rows = lambda a: a.reshape(len(a), -1)
    flat, normal = rows(u), rows(w)
    scale = jnp.max(jnp.abs(normal), axis=1, keepdims=True)  # genuine gradients can lie below any fixed threshold
    scale = jnp.where(scale > 0, scale, 1)
    normal, offset = normal / scale, offset[:, None] / scale
    gap = jnp.sum(normal * flat, axis=1, keepdims=True) - offset
    normal, gap = jnp.where(gap >= 0, normal, -normal), jnp.abs(gap)
    v = normal if norm == "l2" else jnp.sign(normal)
    move = lambda s: jnp.clip(-s * v, -flat, 1 - flat)

    def newton(carry):
        i, s, _ = carry
        d = move(s)
        missing = gap + jnp.sum(normal * d, axis=1, keepdims=True)
        is_free = jnp.where(v > 0, d > -flat, d < 1 - flat)  # a pixel moves against v
        slope = jnp.sum(jnp.where(is_free, normal * v, 0), axis=1, keepdims=True)
        # nothing left to move: the plane does not meet the box
        s = s + jnp.where(slope > 0, jnp.maximum(missing, 0) / jnp.where(slope > 0, slope, 1), 0)
        return i + 1, s, (missing > 1e-6 * gap) & (slope > 0)

    begin = 0, jnp.zeros_like(gap), jnp.ones_like(gap, bool)
    _, s, _ = jax.lax.while_loop(lambda c: (c[0] < 50) & jnp.any(c[2]), newton, begin)
    return move(s).reshape(u.shape)
