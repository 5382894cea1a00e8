"""The ball around an image within which an attack may move: projections onto it, random points of it."""

from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.result import Norm, distance, spread
from jacreg_jax.attacks.sparse import project_l1
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import normal_like, sample_keys
from jacreg_jax.types import Array


def project(x_adv: Array, x: Array, epsilon: Any, norm: Norm, bounds: Bounds) -> Array:
    """The nearest point of the ball of radius epsilon around x, then of bounds; in L1 of both at once.

    Epsilon is a scalar, [B], or in L-infinity an array with all axes of x.
    """
    epsilon, delta = spread(epsilon, x), x_adv - x
    if norm == "l1":
        return jnp.clip(project_l1(x_adv, x, epsilon, bounds), *bounds)  # the clipping of rounding alone
    if norm == "linf":
        delta = jnp.clip(delta, -epsilon, epsilon)
    else:
        length = spread(distance(delta, "l2"), x)
        delta = delta * jnp.minimum(1, epsilon / jnp.maximum(length, 1e-12))
    return jnp.clip(x + delta, *bounds)


def random_in_ball(key: Any, x: Array, epsilon: Any, norm: Norm) -> Array:
    """A uniform point of the ball of radius epsilon around zero, for every sample; [B, ...]."""
    keys, epsilon = sample_keys(key, len(x)), spread(epsilon, x)
    if norm == "linf":
        return jnp.multiply(epsilon, _uniform_like(keys, x))
    if norm == "l1":
        return jnp.multiply(epsilon, jax.vmap(_in_l1_ball)(keys, x))

    def draw(key: Array, x: Array) -> Array:
        point: Array = jax.random.ball(key, x.size, dtype=x.dtype)
        return point.reshape(x.shape)

    return jnp.multiply(epsilon, jax.vmap(draw)(keys, x))


def random_on_sphere(keys: Array, x: Array, norm: Norm) -> Array:
    """A random point of the unit sphere of the norm, for every sample; [B, ...]."""
    if norm == "l2":
        return ascent_direction(normal_like(keys, x), "l2")
    t = _uniform_like(keys, x)
    return t / spread(jnp.abs(t.reshape(len(x), -1)).max(1), x)


def _uniform_like(keys: Array, x: Array) -> Array:
    return jax.vmap(lambda k, x: jax.random.uniform(k, x.shape, x.dtype, -1, 1))(keys, x)


def _in_l1_ball(key: Array, x: Array) -> Array:
    """Uniform: exponential variates over their sum, which one more than the entries of x has part in."""
    sizes, signs = jax.random.split(key)
    drawn = jax.random.exponential(sizes, (x.size + 1,), x.dtype)
    point = drawn[:-1] / jnp.sum(drawn) * jax.random.rademacher(signs, (x.size,), x.dtype)
    return point.reshape(x.shape)
