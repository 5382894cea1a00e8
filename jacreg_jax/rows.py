"""A pytree of arrays [B, ...] as one matrix [B, size], and sums over its rows."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax.types import Array, Float, PyTree

_AUX = "; of an f that gives (output, state), take the output, or has_aux=True where it can be said"
_PYTHON = {f"Typed{kind.__name__.title()}": kind.__name__ for kind in (bool, int, float, complex)}  # jax's, in a trace


AT_ONCE = 2**24  # products times entries of x or f(x), whichever are more; 4 GiB in a ResNet-18 at 224 pixels


class Rows:
    """How a pytree of arrays [B, ...] lies in one matrix [B, size].

    Args:
        tree: real floating point arrays [B, ...], or their shapes.
        name: of the argument, for messages.
        batch: B where it is known already.

    Raises:
        TypeError: a leaf is not an array, or not real floating point.
        ValueError: no leaf, or leading sizes that differ.
    """

    def __init__(self, tree: PyTree, name: str, batch: int | None = None):
        self.leaves, self.treedef = jax.tree.flatten(tree)
        if not self.leaves:
            raise ValueError(f"{name} holds no array")
        hint = _AUX if name == "f(x)" and isinstance(tree, tuple) else ""
        for leaf in self.leaves:
            if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
                kind = _PYTHON.get(type(leaf).__name__, type(leaf).__name__)
                got = kind if leaf is tree else f"a {type(tree).__name__} of {kind}"
                raise TypeError(f"{name} must be an array or a pytree of arrays, got {got}{hint}")
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"{name} must be real floating point to be differentiated, got {leaf.dtype}{hint}")
        shapes = [leaf.shape for leaf in self.leaves]
        batches = {shape[0] if shape else None for shape in shapes} | ({batch} if batch is not None else set())
        if len(batches) != 1 or None in batches:
            wanted = "one leading batch axis" if batch is None else f"the batch size of x, {batch}, in front"
            raise ValueError(f"{name} must have {wanted}, got shapes {shapes}{hint}")
        self.batch = int(shapes[0][0])
        self.sizes = [math.prod(shape[1:]) for shape in shapes]
        self.size = sum(self.sizes)

    def unravel(self, rows: Float[Array, "B size"]) -> Any:
        """[B, size] -> the pytree."""
        parts, start = [], 0
        for leaf, size in zip(self.leaves, self.sizes, strict=True):
            part = rows[:, start : start + size].reshape(leaf.shape).astype(leaf.dtype)
            parts.append(part + jnp.zeros_like(leaf))  # inside shard_map: marks a constant as varying where the leaf is
            start += size
        return jax.tree.unflatten(self.treedef, parts)

    def ravel(self, tree: PyTree) -> Float[Array, "B size"]:
        """The inverse of unravel, at least in float32."""
        wide = lambda leaf: leaf.astype(at_least_float32(leaf.dtype))
        return jnp.concatenate([wide(leaf).reshape(self.batch, -1) for leaf in jax.tree.leaves(tree)], axis=1)

    def unit(self, index: Array) -> Any:
        """The unit vector e_index in every row, as the pytree; zero where index is size or more."""
        e = (jnp.arange(self.size) == index).astype(jnp.zeros(()).dtype)
        return self.unravel(jnp.broadcast_to(e, (self.batch, self.size)))


def at_least_float32(dtype: Any) -> Any:
    """The dtype itself, or float32 in place of half precision; by hand, since promotion may be strict."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def batch_size(x: PyTree) -> int:
    """B of a pytree of float arrays [B, ...]; TypeError or ValueError where x is not one."""
    return Rows(x, "x").batch


def sum_sq(tree: PyTree) -> Float[Array, " B"]:
    """Per-sample sum of squares, at least in float32; never a norm, whose gradient at 0 is NaN."""
    total: Any = 0.0
    for leaf in jax.tree.leaves(tree):
        wide = leaf.astype(at_least_float32(leaf.dtype))
        total = total + jnp.sum(wide**2, axis=tuple(range(1, leaf.ndim)))
    return total


def sum_abs(tree: PyTree) -> Float[Array, " B"]:
    """Per-sample L1 norm, at least in float32.

    Example:
        >>> sum_abs(jnp.array([[3.0, -4.0]])).tolist()
        [7.0]
    """
    wide = lambda leaf: jnp.abs(leaf.astype(at_least_float32(leaf.dtype)))
    return sum(jnp.sum(wide(leaf).reshape(len(leaf), -1), axis=1) for leaf in jax.tree.leaves(tree))  # type: ignore[return-value]


def times(scale: Float[Array, " B"], tree: PyTree) -> PyTree:
    """Each row times a number of its own, in the precision of the tree.

    Example:
        >>> times(jnp.array([2.0]), jnp.array([[3.0, -4.0]])).tolist()
        [[6.0, -8.0]]
    """
    by_row = lambda leaf: (scale.reshape(-1, *(1,) * (leaf.ndim - 1)) * leaf).astype(leaf.dtype)
    return jax.tree.map(by_row, tree)


def products_at_once(inputs: Rows, outputs: Rows, count: int) -> int:
    """Of `count` products, where nobody says how many: all, or equal shares that AT_ONCE bounds."""
    most = max(1, AT_ONCE // max(1, inputs.batch * max(inputs.size, outputs.size)))
    count = max(1, count)
    return math.ceil(count / math.ceil(count / most))


def chunked(directions: Array, chunk_size: int, fill_value: int = 0) -> Array:
    """[k, ...] as [chunks, chunk_size, ...], filled up with fill_value."""
    chunk_size = max(1, min(chunk_size, len(directions)))
    fill = -len(directions) % chunk_size
    pads = ((0, fill),) + ((0, 0),) * (directions.ndim - 1)
    directions = jnp.pad(directions, pads, constant_values=fill_value)
    return directions.reshape(len(directions) // chunk_size, chunk_size, *directions.shape[1:])
