"""What is different in L1: the exact projection onto ball and box together, and steps along few entries.

Reference: Croce, Hein (2021), "Mind the box", https://arxiv.org/abs/2103.01208.
"""

import jax
import jax.numpy as jnp

from jacreg_jax.checks import Bounds
from jacreg_jax.types import Array, Counter


def project_l1(x_adv: Array, x: Array, epsilon: Array, bounds: Bounds) -> Array:
    """The nearest point to x_adv, in L2, with ||. - x||_1 <= epsilon and within bounds, for x within bounds.

    Entry i moves by min(max(a_i - s, 0), r_i), a_i = |x_adv - x|_i, r_i its room in that direction, with one threshold
    s for all. Their sum falls piecewise linearly in s: bisection to two neighbours in floating point, and a line
    between them.

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
    move = lambda s: jnp.minimum(jnp.maximum(wanted - s, 0), room)
    length = lambda s: move(s).sum(1, keepdims=True)

    def halve(_: Counter, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = ends
        middle = (left + right) / 2
        is_long = length(middle) > radius
        return jnp.where(is_long, middle, left), jnp.where(is_long, right, middle)

    largest = wanted.max(1, keepdims=True)
    left, right = jax.lax.fori_loop(0, 32, halve, (jnp.zeros_like(largest), largest))
    long, short = length(left), length(right)
    between = right - (right - left) * jnp.clip((radius - short) / jnp.where(long > short, long - short, 1), 0, 1)
    moved = move(jnp.where(length(jnp.zeros_like(largest)) > radius, between, 0))
    return x + (jnp.sign(delta) * jnp.where(radius > 0, moved, 0)).reshape(x.shape)


def sparse_direction(gradient: Array, share: Array | float) -> Array:
    """The signs of this share of the gradient's entries, the largest, of length 1 in L1; share a number or [B]."""
    flat = gradient.reshape(len(gradient), -1)
    size = flat.shape[1]
    place = jnp.clip((1 - jnp.asarray(share, flat.dtype)) * size, 0, size - 1).astype(jnp.int32)
    count = jnp.broadcast_to(size - place, (len(flat),)).astype(flat.dtype)[:, None]
    least = largest_with(jnp.abs(flat), jnp.ones_like(flat), count)
    signs = jnp.sign(jnp.where(jnp.abs(flat) >= least, flat, 0))
    return (signs / jnp.maximum(jnp.abs(signs).sum(1, keepdims=True), 1)).reshape(gradient.shape)


def largest_with(values: Array, weight: Array, wanted: Array) -> Array:
    """The largest t for which the entries of at least t weigh as much as wanted, [B, 1]; 0 where all are too light.

    Floats of one sign are ordered as their bits are, so that t is found bit by bit, which is many times faster than a
    sort.

    Args:
        values: [B, n], none negative.
        weight: [B, n], none negative.
        wanted: [B, 1].
    """
    kind = jnp.uint64 if values.dtype.itemsize == 8 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(values, kind)
    highest = 8 * values.dtype.itemsize - 2

    def set_bit(i: Counter, t: Array) -> Array:
        tried = t | (jnp.ones((), kind) << jnp.asarray(highest - i, kind))
        heavy = jnp.sum(jnp.where(bits >= tried, weight, 0), axis=1, keepdims=True) >= wanted
        return jnp.where(heavy, tried, t)

    found = jax.lax.fori_loop(0, highest + 1, set_bit, bits[:, :1] ^ bits[:, :1])
    return jax.lax.bitcast_convert_type(found, values.dtype)


def num_moved(x_adv: Array, x: Array) -> Array:
    """Entries that differ, [B]."""
    return jnp.sum((x_adv != x).reshape(len(x), -1), axis=1, dtype=x.dtype)
