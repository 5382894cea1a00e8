"""Gradients of a loss at every sample: the sum over the batch, so that no sample sees the batch size."""

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import Norm, distance, spread
from jacreg_jax.attacks.sparse import sparse_direction
from jacreg_jax.types import Array, Function


@jax.custom_vjp
def with_finite_gradient(x: Array) -> Array:
    """x itself; a gradient's entries that are NaN count as 0 from here on, infinite ones as its largest finite one."""
    return x


def _finite(_: None, gradient: Array) -> tuple[Array]:
    size = jnp.where(jnp.isfinite(gradient), jnp.abs(gradient), 0)
    largest = spread(distance(size, "linf"), gradient)
    largest = jnp.where(largest > 0, largest, 1)
    return (jnp.clip(jnp.nan_to_num(gradient), -largest, largest),)


with_finite_gradient.defvjp(lambda x: (x, None), _finite)


def loss_gradient(f: Function, x: Array, y: Array, loss: Function = log_odds) -> Array:
    """D loss_a / d x_a of every sample, [B, ...]."""
    gradient: Array = jax.grad(lambda x: jnp.sum(loss(f(x), y)))(x)
    return gradient


def is_zero(gradient: Array) -> Array:
    """Every entry of a sample's gradient is exactly zero; [B] bool of gradient [B, ...]."""
    return jnp.all(gradient.reshape(len(gradient), -1) == 0, axis=1)


def zero_gradient(f: Function, x: Array, y: Array, loss: Function = log_odds) -> Array:
    """[B] bool: the gradient of the loss at x is exactly zero."""
    return is_zero(loss_gradient(f, x, y, loss))


def ascent_direction(gradient: Array, norm: Norm) -> Array:
    """Steepest unit step: sign(g), or g / ||g||_2, scaled by max|g| first so that tiny gradients do not underflow.

    In L1 the signs of the largest twentieth of the entries: the steepest, one entry alone, would take a step for each.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    if norm == "l1":
        return sparse_direction(gradient, 0.05)
    largest = spread(distance(gradient, "linf"), gradient)
    scaled = gradient / jnp.where(largest > 0, largest, 1)
    return scaled / jnp.maximum(spread(distance(scaled, "l2"), gradient), 1e-12)
