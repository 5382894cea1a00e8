"""Criteria of any outputs: how far they have moved, and functions of the user's own."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.criterion import Criterion, Pair
from jacreg_jax.types import Array, Function


@dataclass(frozen=True)
class Moved(Criterion):
    """||z - z_0||_2 > delta, z_0 the clean output, or y where `from_label`."""

    delta: float
    from_label: bool = False

    def reference(self, z: Any, y: Any, target: Any) -> Any:
        """z_0, or y."""
        super().reference(z, y, target)
        if not self.from_label:
            return jax.lax.stop_gradient(z)
        shapes = jax.tree.map(jnp.shape, z)
        if jax.tree.map(jnp.shape, y) != shapes:
            raise ValueError(f"y must have the shape of f(x), {shapes}, got {jax.tree.map(jnp.shape, y)}")
        return jax.tree.map(lambda z, y: jnp.asarray(y, z.dtype), z, y)

    def margin(self, z: Any, y: Any) -> Array:
        """||z - y||_2 - delta."""
        return _length(_difference(z, y)) - self.delta

    def num_leads(self, z: Any) -> int:
        """A single output rises or falls."""
        return 2 if _is_single(z) else 1

    def lead(self, k: Any, z: Any) -> Pair:
        """+-(z - y) - delta of a single output."""
        if not _is_single(z):
            return self.margin
        return lambda z, y: (1 - 2 * k) * _difference(z, y)[:, 0] - self.delta


@dataclass(frozen=True)
class OfMargin(Criterion):
    """A function of the user's."""

    function: Function

    def margin(self, z: Any, y: Any) -> Array:
        """What the function gives, [B]."""
        value = self.function(z, y)
        batch = jax.tree.leaves(z)[0].shape[:1]
        if getattr(value, "shape", None) != batch:
            got = getattr(value, "shape", type(value).__name__)
            raise ValueError(f"criterion must give one margin for each sample, {list(batch)}, got {got}")
        return jnp.asarray(value)


def _difference(z: Any, y: Any) -> Array:
    """Z - y of all leaves, [B, outputs]."""
    rows = jax.tree.map(lambda z, y: (z - y).reshape(len(z), -1), z, y)
    return jnp.concatenate(jax.tree.leaves(rows), axis=1)


def _is_single(z: Any) -> bool:
    return sum(leaf.size for leaf in jax.tree.leaves(z)) == len(jax.tree.leaves(z)[0])


def _length(d: Array) -> Array:
    """||d||_2 of rows; at 0 its gradient is that of the sum over the root of the number of outputs."""
    squared = jnp.sum(d**2, axis=1)
    is_zero = squared == 0
    along = jnp.sum(d, axis=1) / jnp.sqrt(jnp.asarray(d.shape[1], d.dtype))
    return jnp.where(is_zero, along, jnp.sqrt(jnp.where(is_zero, 1, squared)))
