"""Decision cells: which class a model sees in a plane through a sample (Figures 1, S1, S2). No plotting here.

A plane is an origin x0, [H, W, C] or any shape, and two orthonormal directions; a point is x0 + a d1 + b d2, with a and
b L2 distances in raw pixels. Points are not clipped to [0, 1], as in the paper's figures: the plane stays flat.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks, programs
from jacreg_jax.explicit_axes import entry
from jacreg_jax.keys import check_key
from jacreg_jax.predictions import predicted_class
from jacreg_jax.types import Array, Counter, Function


class Plane(NamedTuple):
    """Origin and two orthonormal directions, each of the shape of one sample.

    Example:
        >>> plane = Plane(jnp.zeros(3), jnp.array([1.0, 0, 0]), jnp.array([0, 1.0, 0]))
        >>> plane.points(jnp.array([[2.0, 3.0]])).tolist()
        [[2.0, 3.0, 0.0]]
    """

    origin: Array
    first: Array
    second: Array

    def points(self, coordinates: Array) -> Array:
        """Samples at coordinates [N, 2]; [N, ...]."""
        a, b = (coordinates[:, i].reshape(-1, *(1,) * self.origin.ndim) for i in (0, 1))
        return self.origin[None] + a * self.first[None] + b * self.second[None]

    def __repr__(self) -> str:
        return f"Plane through samples of shape {jnp.shape(self.origin)}"


class Cells(NamedTuple):
    """The class map of a square in a plane: `classes` and `confidence` (largest softmax value), both [R, R].

    Row i, column j is the point at (axis[j], axis[i]); axis [R] runs from -extent to extent. Where a logit is not
    finite there is no class, -1, and the confidence is 0.

    Example:
        >>> plane = Plane(jnp.zeros(2), jnp.array([1.0, 0]), jnp.array([0, 1.0]))
        >>> decision_cells(lambda x: x, plane, extent=2.0, resolution=5)
        Cells of 2 classes, 5 x 5 points to 2 from the origin
    """

    classes: Array
    confidence: Array
    axis: Array

    def __repr__(self) -> str:
        if isinstance(self.classes, jax.core.Tracer) or jnp.ndim(self.classes) != 2:
            return f"Cells of shape {jnp.shape(self.classes)}"
        count, extent = len(set(jnp.ravel(self.classes).tolist())), float(self.axis[-1])
        return f"Cells of {count} classes, {len(self.axis)} x {len(self.axis)} points to {extent:.4g} from the origin"


def random_plane(x: Array, key: Array) -> Plane:
    """Plane through one sample x along two random orthonormal directions.

    Args:
        x: one sample, floating point, of at least two entries.
        key: typed key.

    Returns:
        Plane.

    Raises:
        TypeError: x is not floating point; key is not a typed key.
        ValueError: x has fewer than two entries.

    Example:
        >>> plane = random_plane(jnp.zeros((2, 3)), jax.random.key(0))
        >>> abs(round(float(jnp.vdot(plane.first, plane.second)), 5))
        0.0
    """
    check_key(key)
    x = _sample(x, "x")
    first, second = jax.random.normal(key, (2, *x.shape), x.dtype)
    return _orthonormal(x, first, second)


def adversarial_plane(x: Array, x_adv_1: Array, x_adv_2: Array) -> Plane:
    """Plane through a sample and two adversarial examples of it; the first lies on the first axis (Figure S2).

    Args:
        x: one sample, floating point.
        x_adv_1: another of the same shape.
        x_adv_2: a third, not on the line through both.

    Returns:
        Plane.

    Raises:
        TypeError: no floating point arrays.
        ValueError: shapes that differ; three samples on one line, where they are concrete.

    Example:
        >>> plane = adversarial_plane(jnp.zeros(2), jnp.array([2.0, 0.0]), jnp.array([1.0, 3.0]))
        >>> plane.first.tolist(), plane.second.tolist()
        ([1.0, 0.0], [0.0, 1.0])
    """
    x, one, two = _sample(x, "x"), _sample(x_adv_1, "x_adv_1"), _sample(x_adv_2, "x_adv_2")
    if not x.shape == one.shape == two.shape:
        raise ValueError(f"x, x_adv_1 and x_adv_2 must be of one shape, got {x.shape}, {one.shape} and {two.shape}")
    return _orthonormal(x, one - x, two - x)


@entry
def decision_cells(f: Function, plane: Plane, *, extent: float, resolution: int = 201, batch_size: int = 2048) -> Cells:
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
        ValueError: extent not above 0, resolution below 2, batch_size below 1; logits not [B, C].

    Example:
        >>> f = lambda x: jnp.stack([x[:, 0], -x[:, 0]], axis=1)
        >>> plane = Plane(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
        >>> decision_cells(f, plane, extent=1.0, resolution=2).classes.tolist()
        [[1, 0], [1, 0]]
    """
    _check(f, plane)
    checks.positive("extent", extent)
    resolution, batch_size = checks.count("resolution", resolution, least=2), checks.count("batch_size", batch_size)
    sizes = {"resolution": resolution, "batch_size": batch_size}
    cells: Cells = programs.called_once(_cells, f, _one(plane), plane, extent, **sizes)
    return cells


def _cells(f: Function, plane: Plane, extent: ArrayLike, *, resolution: int, batch_size: int) -> Cells:
    extent = jnp.asarray(extent, plane.origin.dtype)
    axis = jnp.linspace(-extent, extent, resolution, dtype=plane.origin.dtype)
    b, a = jnp.meshgrid(axis, axis, indexing="ij")
    logits = _at(f, plane, jnp.stack([a.ravel(), b.ravel()], axis=1), batch_size)
    classes = predicted_class(logits)
    confidence = jnp.max(jax.nn.softmax(jnp.where(classes[:, None] >= 0, logits, 0)), -1)
    confidence = jnp.where(classes >= 0, confidence, 0)
    return Cells(classes.reshape(resolution, resolution), confidence.reshape(resolution, resolution), axis)


@entry
def boundary_distance(
    f: Function, plane: Plane, *, extent: ArrayLike, num_rays: int = 360, num_radii: int = 200, batch_size: int = 2048
) -> Array:
    """Distance from the sample to the nearest decision boundary within the plane, +inf if none lies within extent.

    Along each of num_rays directions the first change of class on a grid of radii is bracketed, then bisected 20 times.
    Logits that are not finite are no class, so the edge of where they are finite is a boundary.

    Args:
        f: raw pixels [B, ...] -> logits [B, C].
        plane: from `random_plane` or `adversarial_plane`.
        extent: largest radius, L2 distance in raw pixels.
        num_rays: directions, evenly spread over the circle.
        num_radii: grid points along each.
        batch_size: points at once.

    Returns:
        Scalar; 0 where the logits of the sample itself are not finite.

    Raises:
        ValueError: extent not above 0, a count below 1; logits not [B, C].

    Example:
        >>> f = lambda x: jnp.stack([0.3 - x[:, 0], x[:, 0] - 0.3], axis=1)
        >>> plane = Plane(jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
        >>> round(float(boundary_distance(f, plane, extent=1.0)), 4)
        0.3
    """
    _check(f, plane)
    checks.positive("extent", extent)
    num_rays, num_radii = checks.count("num_rays", num_rays), checks.count("num_radii", num_radii)
    sizes = {"num_rays": num_rays, "num_radii": num_radii, "batch_size": checks.count("batch_size", batch_size)}
    distance: Array = programs.called_once(_boundary, f, _one(plane), plane, extent, **sizes)
    return distance


def _boundary(f: Function, plane: Plane, extent: ArrayLike, *, num_rays: int, num_radii: int, batch_size: int) -> Array:
    dtype = plane.origin.dtype
    angles = jnp.linspace(0, 2 * jnp.pi, num_rays, endpoint=False, dtype=dtype)
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)  # [A, 2]
    radii = jnp.linspace(0, extent, num_radii + 1, dtype=dtype)
    own = predicted_class(f(plane.origin[None]))[0]
    grid = (radii[1:, None, None] * directions[None]).reshape(-1, 2)
    changed = (predicted_class(_at(f, plane, grid, batch_size)) != own).reshape(num_radii, num_rays)
    first = jnp.argmax(changed, axis=0)  # index into radii[1:]

    def halve(_: Counter, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        beyond = predicted_class(_at(f, plane, middle[:, None] * directions, batch_size)) != own
        return jnp.where(beyond, low, middle), jnp.where(beyond, middle, high)

    _, high = jax.lax.fori_loop(0, 20, halve, (radii[first], radii[first + 1]))
    return jnp.where(own >= 0, jnp.min(jnp.where(changed.any(0), high, jnp.inf)), 0)


def _check(f: Any, plane: Any) -> None:
    checks.function("f", f)
    if not isinstance(plane, Plane):
        raise TypeError(f"plane must be a Plane, as random_plane or adversarial_plane give, got {type(plane).__name__}")


def _one(plane: Plane) -> jax.ShapeDtypeStruct:
    """One sample with its batch axis, which f is called on everywhere."""
    return jax.ShapeDtypeStruct((1, *plane.origin.shape), plane.origin.dtype)


def _at(f: Function, plane: Plane, coordinates: Array, batch_size: int) -> Array:
    """Logits [N, C] at coordinates [N, 2]."""
    checks.num_classes(jax.eval_shape(lambda c: f(plane.points(c)), coordinates[:1]), 1)
    return jax.lax.map(lambda c: f(plane.points(c[None]))[0], coordinates, batch_size=batch_size)


def _sample(x: Array, name: str) -> Array:
    return checks.inputs(x[None] if hasattr(x, "shape") else x, name, what="one floating point sample")[0]


def _orthonormal(origin: Array, first: Array, second: Array) -> Plane:
    """Gram-Schmidt."""
    length = jnp.linalg.norm(second.ravel())
    first = first / jnp.linalg.norm(first.ravel())
    second = second - jnp.vdot(first, second) * first
    left = jnp.linalg.norm(second.ravel())
    if not isinstance(left, jax.core.Tracer) and not bool(left > 1e-6 * length):
        raise ValueError(
            "x must have at least two entries, and a plane two directions that are not parallel: x, x_adv_1 and "
            "x_adv_2 may not lie on one line"
        )
    second = second / left
    return Plane(origin, first, second)
