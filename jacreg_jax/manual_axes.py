"""Inside of shard_map: over which axes of the mesh a value varies, and values that vary as others do."""

from typing import Any

import jax

from jacreg_jax.types import PyTree


def axes_of(leaf: Any) -> set[Any]:
    """Axes of the mesh over which a value varies inside shard_map; the attribute's name depends on JAX's version."""
    kind = jax.typeof(leaf)
    return set(kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", ()))


def varying(tree: PyTree, *like: Any) -> Any:
    """The same arrays, marked inside shard_map as varying over every axis of the mesh that `like` varies over."""
    axes = {axis for leaf in jax.tree.leaves(like) for axis in axes_of(leaf)}

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - axes_of(leaf), key=str))  # the same program in every process
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, tree) if axes else tree
