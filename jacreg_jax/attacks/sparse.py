"""What is different in L1: the exact projection onto ball and box together, and steps along few entries.

Reference: Croce, Hein (2021), "Mind the box", https://arxiv.org/abs/2103.01208.
"""

import jax
import jax.numpy as jnp

from jacreg_jax.checks import Bounds
from jacreg_jax.types import Array


def project_l1(x_adv: Array, x: Array, epsilon: Array, bounds: Bounds) -> Array:
    """The nearest point to x_adv, in L2, with ||. - x||_1 <= epsilon and within bounds, for x within bounds.

    Entry i moves by min(max(a_i - s, 0), r_i), a_i = |x_adv - x|_i, r_i its room in that direction, with one threshold
    s for all. Their sum falls piecewise linearly in s, with corners at max(a_i - r_i, 0) and a_i: sorted, they hold
    the s at which it is epsilon.

    Args:
        x_adv: [B, ...].
        x: [B, ...], the centre.
        epsilon: [B, 1, ...] beside x.
        bounds: (low, high), scalars or arrays beside x.
    """
    delta = (x_adv - x).reshape(len(x), -1)
    down, up = ((b - x).reshape(len(x), -1) for b in bounds)
    room = jnp.maximum(jnp.where(delta < 0, -down, up), 0)
    wanted, radius = jnp.abs(delta), epsilon.reshape(len(x), 1)
    corner = jnp.concatenate([jnp.maximum(wanted - room, 0), wanted], axis=1)
    turn = jnp.concatenate([jnp.ones_like(wanted), -jnp.ones_like(wanted)], axis=1)  # entries that begin or end to fall
    corner, turn = jax.lax.sort((corner, turn), num_keys=1)
    falling = jnp.cumsum(turn, axis=1)  # entries that fall behind each corner
    drop = jnp.cumsum(falling[:, :-1] * jnp.diff(corner, axis=1), axis=1)
    whole = jnp.minimum(wanted, room).sum(1, keepdims=True)
    at_corner = whole - jnp.concatenate([jnp.zeros_like(whole), drop], axis=1)  # the sum at each corner
    last = jnp.sum(at_corner > radius, axis=1, keepdims=True, dtype=jnp.int32) - 1  # the last one above epsilon
    pick = lambda a: jnp.take_along_axis(a, jnp.maximum(last, 0), axis=1)
    threshold = pick(corner) + (pick(at_corner) - radius) / jnp.maximum(pick(falling), 1)
    threshold = jnp.where(last >= 0, jnp.minimum(threshold, corner[:, -1:]), 0)
    moved = jnp.minimum(jnp.maximum(wanted - threshold, 0), room)
    return x + (jnp.sign(delta) * moved).reshape(x.shape)


def sparse_direction(gradient: Array, share: Array | float) -> Array:
    """The signs of this share of the gradient's entries, the largest, of length 1 in L1; share a number or [B]."""
    flat = gradient.reshape(len(gradient), -1)
    size = flat.shape[1]
    place = jnp.clip((1 - jnp.asarray(share, flat.dtype)) * size, 0, size - 1).astype(jnp.int32)
    place = jnp.broadcast_to(place, (len(flat),))[:, None]
    least = jnp.take_along_axis(jnp.sort(jnp.abs(flat), axis=1), place, axis=1)
    signs = jnp.sign(jnp.where(jnp.abs(flat) >= least, flat, 0))
    return (signs / jnp.maximum(jnp.abs(signs).sum(1, keepdims=True), 1)).reshape(gradient.shape)


def num_moved(x_adv: Array, x: Array) -> Array:
    """Entries that differ, [B]."""
    return jnp.sum((x_adv != x).reshape(len(x), -1), axis=1, dtype=x.dtype)
