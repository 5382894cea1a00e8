"""What an attack moves: an array, or the floating point leaves of a pytree, the others held as they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.checks import Bounds
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, PyTree


class Inputs(NamedTuple):
    """The inputs as one array that attacks work on, at least in float32, and the way back."""

    x: Array  # [B, ...], or [B, size] of all floating point leaves
    bounds: Bounds
    unpack: Callable[[Array], PyTree]  # x -> what f takes, rounded to the precision that came
    pack: Callable[[PyTree], Array]

    @property
    def ranges(self) -> Any:
        """Of every pixel from bound to bound, a float or [B, ...]; 1 where one is missing. Units of default sizes."""
        low, high = self.bounds
        if isinstance(low, float) and isinstance(high, float):
            return high - low if high - low < float("inf") else 1.0
        found = jnp.broadcast_to(high - low, self.x.shape)
        return jnp.where(jnp.isfinite(found), found, 1)

    @property
    def span(self) -> Any:
        """The shortest of them, a float or [B]."""
        found = self.ranges
        return found if isinstance(found, float) else found.reshape(len(self.x), -1).min(1)


def inputs(x: Any, bounds: Any) -> Inputs:
    """Check inputs and bounds.

    Args:
        x: floating point array [B, ...], or a pytree of arrays [B, ...] of which one at least is floating point.
        bounds: as for `checks.bounds`; of a pytree each of low and high is one for all, or a pytree like x, whose
            entries beside leaves that are held do not count.

    Raises:
        TypeError, ValueError: see `checks.inputs` and `checks.bounds`.
    """
    if jax.tree_util.all_leaves([x]) or isinstance(x, list) or not jax.tree.leaves(x):
        return _array(checks.inputs(x), bounds)
    return _tree(x, bounds)


def batch_size(x: Any) -> int:
    """B of inputs, checked."""
    return len(inputs(x, None).x)


def _array(image: Array, bounds: Any) -> Inputs:
    low, high = checks.bounds(bounds, image)
    dtype, wide = image.dtype, at_least_float32(image.dtype)
    low, high = (b if isinstance(b, float) else b.astype(wide) for b in (low, high))
    return Inputs(image.astype(wide), (low, high), lambda a: a.astype(dtype), lambda a: a.astype(wide))


def _tree(x: PyTree, bounds: Any) -> Inputs:
    leaves, structure = jax.tree.flatten(x)
    moves = [hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    batch = {leaf.shape[0] if getattr(leaf, "shape", ()) else None for leaf in leaves}
    if not any(moves):
        raise TypeError(f"x must be floating point in one leaf at least, got {[checks.what(v) for v in leaves]}")
    if len(batch) != 1 or None in batch:
        raise ValueError(f"x must be arrays of one number of samples, got {[checks.what(v) for v in leaves]}")
    parts = [_array(checks.inputs(leaf), b) for leaf, b in zip(leaves, _pairs(bounds, leaves), strict=True) if b]
    wide = jnp.result_type(*(part.x.dtype for part in parts))
    flat = lambda arrays: jnp.concatenate([a.reshape(len(a), -1).astype(wide) for a in arrays], axis=1)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + part.x[0].size)

    def unpack(a: Array) -> PyTree:
        moved = iter([p.unpack(a[:, i:j].reshape(p.x.shape)) for p, i, j in zip(parts, ends, ends[1:], strict=False)])
        return jax.tree.unflatten(structure, [next(moved) if m else v for m, v in zip(moves, leaves, strict=True)])

    def pack(tree: PyTree) -> Array:
        return flat([leaf for leaf, m in zip(jax.tree.leaves(tree), moves, strict=True) if m])

    low, high = (flat([jnp.broadcast_to(p.bounds[i], p.x.shape) for p in parts]) for i in (0, 1))
    return Inputs(flat([p.x for p in parts]), (low, high), unpack, pack)


def _pairs(bounds: Any, leaves: list[Any]) -> list[Any]:
    """(low, high) of every leaf, None of those that are held."""
    bounds = (None, None) if bounds is None else bounds
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (low, high), or None, got {checks.what(bounds)}")

    def of_leaves(bound: Any) -> list[Any]:
        found = jax.tree.leaves(bound, is_leaf=lambda v: v is None)
        if len(found) not in (1, len(leaves)):
            raise ValueError(f"bounds must be one for all or a pytree like x, {len(leaves)} leaves, got {len(found)}")
        return found * len(leaves) if len(found) == 1 else found

    low, high = map(of_leaves, bounds)
    is_float = [jnp.issubdtype(getattr(v, "dtype", int), jnp.floating) for v in leaves]
    return [(a, b) if m else None for a, b, m in zip(low, high, is_float, strict=True)]
