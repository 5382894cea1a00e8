"""Decision cells: which class a model sees in a plane through a sample (Figures 1, S1, S2). No plotting here.

A plane is an origin x0, [H, W, C] or any shape, and two orthonormal directions; a point is x0 + a d1 + b d2, with a and
b L2 distances in raw pixels. Points are not clipped to [0, 1], as in the paper's figures: the plane stays flat.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Plane(NamedTuple):
    """Origin and two orthonormal directions, each of the shape of one sample."""

    origin: jax.Array
    first: jax.Array
    second: jax.Array

    def points(self, coordinates: jax.Array) -> jax.Array:
        """Samples at coordinates [N, 2]; [N, ...]."""
        spread = lambda c: c.reshape(-1, *(1,) * self.origin.ndim)
        a, b = spread(coordinates[:, 0]), spread(coordinates[:, 1])
        return self.origin[None] + a * self.first[None] + b * self.second[None]


class Cells(NamedTuple):
    """The class map of a square in a plane: `classes` and `confidence` (largest softmax value), both [R, R].

    Row i, column j is the point at (axis[j], axis[i]); axis [R] runs from -extent to extent.
    """

    classes: jax.Array
    confidence: jax.Array
    axis: jax.Array


def random_plane(x: jax.Array, key: jax.Array) -> Plane:
    """Plane through one sample x along two random orthonormal directions."""
    first, second = jax.random.normal(key, (2, *x.shape), x.dtype)
    return _orthonormal(x, first, second)


def adversarial_plane(x: jax.Array, x_adv_1: jax.Array, x_adv_2: jax.Array) -> Plane:
    """Plane through a sample and two adversarial examples of it; the first lies on the first axis (Figure S2)."""
    return _orthonormal(x, x_adv_1 - x, x_adv_2 - x)


def decision_cells(f: Callable, plane: Plane, *, extent: float, resolution: int = 201, batch_size: int = 2048) -> Cells:
    """Predicted class and confidence on a square grid of the plane.

    Args:
        f: raw pixels [B, ...] -> logits [B, C].
        plane: from `random_plane` or `adversarial_plane`.
        extent: half the side of the square, L2 distance in raw pixels.
        resolution: R, grid points along a side; odd, so that the sample itself is one of them.
        batch_size: points at once.

    Returns:
        Cells.

    Raises:
        ValueError: extent not positive or resolution below 2.
    """
    if extent <= 0 or resolution < 2:
        raise ValueError(f"extent must be positive and resolution at least 2, got {extent} and {resolution}")
    axis = jnp.linspace(-extent, extent, resolution)
    b, a = jnp.meshgrid(axis, axis, indexing="ij")
    logits = _at(f, plane, jnp.stack([a.ravel(), b.ravel()], axis=1), batch_size)
    square = lambda values: values.reshape(resolution, resolution)
    return Cells(square(jnp.argmax(logits, -1)), square(jnp.max(jax.nn.softmax(logits), -1)), axis)


def boundary_distance(
    f: Callable, plane: Plane, *, extent: float, num_rays: int = 360, num_radii: int = 200, batch_size: int = 2048
) -> jax.Array:
    """Distance from the sample to the nearest decision boundary within the plane, +inf if none lies within extent.

    Along each of num_rays directions the first change of class on a grid of radii is bracketed, then bisected 20 times.
    """
    angles = jnp.linspace(0, 2 * jnp.pi, num_rays, endpoint=False)
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)  # [A, 2]
    radii = jnp.linspace(0, extent, num_radii + 1)
    own = jnp.argmax(f(plane.origin[None]), -1)[0]
    grid = (radii[1:, None, None] * directions[None]).reshape(-1, 2)
    changed = (jnp.argmax(_at(f, plane, grid, batch_size), -1) != own).reshape(num_radii, num_rays)
    first = jnp.argmax(changed, axis=0)  # index into radii[1:]

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        beyond = jnp.argmax(f(plane.points(middle[:, None] * directions)), -1) != own
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    _, high = jax.lax.fori_loop(0, 20, halve, (radii[first], radii[first + 1]))
    return jnp.min(jnp.where(changed.any(0), high, jnp.inf))


def _at(f, plane, coordinates, batch_size):
    return jax.lax.map(lambda c: f(plane.points(c[None]))[0], coordinates, batch_size=batch_size)


def _orthonormal(origin, first, second) -> Plane:
    first = first / jnp.linalg.norm(first.ravel())
    second = second - jnp.vdot(first, second) * first
    return Plane(origin, first, second / jnp.linalg.norm(second.ravel()))
