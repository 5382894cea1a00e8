"""decision_cells.py on models whose cells are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import decision_cells


def half_space(x):
    """Class 1 where the first pixel exceeds 1.5."""
    return jnp.stack([jnp.zeros(len(x)), 8 * (x.reshape(len(x), -1)[:, 0] - 1.5)], axis=1)


@pytest.fixture
def plane():
    """Through the origin of 2x3 pixels; the first direction makes 60 degrees with the first pixel."""
    first = jnp.zeros(6).at[0].set(0.5).at[1].set(np.sqrt(3) / 2).reshape(2, 3)
    second = jnp.zeros(6).at[2].set(1.0).reshape(2, 3)
    return decision_cells.Plane(jnp.zeros((2, 3)), first, second)


def test_random_plane_is_orthonormal(key):
    x = jax.random.uniform(key, (4, 5, 1))
    plane = decision_cells.random_plane(x, key)
    a, b = plane.first.ravel(), plane.second.ravel()
    np.testing.assert_allclose([a @ a, b @ b, a @ b], [1, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(plane.points(jnp.zeros((1, 2)))[0], x)
    other = decision_cells.random_plane(x, jax.random.key(1))
    assert not np.allclose(other.first, plane.first)


def test_adversarial_plane_holds_both_examples(key):
    x, one, two = jax.random.uniform(key, (3, 4, 5, 1))
    plane = decision_cells.adversarial_plane(x, one, two)
    length = jnp.linalg.norm((one - x).ravel())
    np.testing.assert_allclose(plane.points(jnp.array([[length, 0.0]]))[0], one, atol=1e-5)
    coordinates = jnp.array([[jnp.vdot(two - x, plane.first), jnp.vdot(two - x, plane.second)]])
    np.testing.assert_allclose(plane.points(coordinates)[0], two, atol=1e-5)


def test_cells_of_a_half_space(plane):
    """The boundary 0.5 a = 1.5 is the line a = 3; confidence is the softmax's."""
    cells = decision_cells.decision_cells(half_space, plane, extent=5.0, resolution=21, batch_size=50)
    a = np.broadcast_to(np.asarray(cells.axis)[None, :], (21, 21))
    clear = np.abs(a - 3) > 1e-3
    np.testing.assert_array_equal(np.asarray(cells.classes)[clear], (a > 3)[clear])
    np.testing.assert_allclose(cells.confidence, 1 / (1 + np.exp(-np.abs(8 * (0.5 * a - 1.5)))), rtol=1e-4)


def test_boundary_distance(plane):
    distance = jax.jit(lambda e: decision_cells.boundary_distance(half_space, plane, extent=e))
    assert distance(5.0) == pytest.approx(3, abs=1e-3)
    assert distance(2.0) == np.inf


@pytest.mark.parametrize("num_radii", [1, 4, 7])
def test_boundary_off_the_grid(plane, num_radii):
    """The grid of radii brackets the boundary at 3, the bisection finds it."""
    distance = decision_cells.boundary_distance(half_space, plane, extent=5.0, num_radii=num_radii, num_rays=360)
    assert distance == pytest.approx(3, abs=1e-4)
    near = decision_cells.boundary_distance(half_space, plane, extent=3.1, num_radii=num_radii)
    assert near == pytest.approx(3, abs=1e-4)


def test_bad_grid(plane):
    with pytest.raises(ValueError, match="extent must be above 0, got 0"):
        decision_cells.decision_cells(half_space, plane, extent=0, resolution=21)
