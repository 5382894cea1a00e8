"""What the devices of a mesh do together inside of a sharded body: keys by row, and sums over the axis."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.accumulation import Loss
from jacreg_jax.generators import folded_alike
from jacreg_jax.keys import check_key
from jacreg_jax.manual_axes import axes_of
from jacreg_jax.types import PyTree


def row_keys(key: jax.Array, rows: int, axis_name: str | None) -> jax.Array:
    """One key for each row this device holds, folded from its place in the whole batch.

    So the noise of a sample is the same on 1, 2 or 8 devices and under every backend; a replicated key would give
    every shard the same draw. Keys of the kind unsafe_rbg become rbg ones, see `generators.folded_alike`.

    Args:
        key: typed key of the step.
        rows: of this device.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere.

    Returns:
        [rows] typed keys.

    Raises:
        TypeError: key is not a typed key.
        ValueError: rows is no count.

    Example:
        >>> row_keys(jax.random.key(0), 3, None).shape
        (3,)
    """
    check_key(key)
    checks.count("rows", rows, least=0)
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * rows
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(folded_alike(key), first + jnp.arange(rows))


def varying(tree: PyTree, axis_name: str | None) -> PyTree:
    """The replicated tree marked as each device's own, so that its gradient is this device's share alone.

    Without it the gradient in shard_map comes back already summed, and a later mean is N times too large.

    Args:
        tree: pytree of arrays.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere: the tree itself.

    Returns:
        The same.

    Example:
        >>> varying(1.0, None)
        1.0
    """
    return tree if axis_name is None else jax.lax.pcast(tree, axis_name, to="varying")


def share_of_mean(loss: Loss, axis_name: str | None) -> Loss:
    """The loss over the number of devices: summed over them, it and its gradient are those of the whole batch's mean.

    Args:
        loss: (params, state, batch, keys) -> (loss, (model_state, metrics)), as for `training.make_train_step`.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere: the loss itself.

    Returns:
        Such a loss.

    Example:
        >>> loss = lambda params, state, batch, keys: (params, ({}, {}))
        >>> share_of_mean(loss, None) is loss
        True
    """
    if axis_name is None:
        return loss

    def share(*arguments: Any) -> tuple[Any, Any]:
        value, rest = loss(*arguments)
        return value / jax.lax.axis_size(axis_name), rest

    return share


def mean_loss(loss: Callable[[PyTree], Any], axis_name: str | None) -> Callable[[PyTree], Any]:
    """The mean over the devices of each one's loss, whose gradient is the mean of theirs, alike on all devices.

    Args:
        loss: params -> scalar, of this device's rows.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere: the loss itself.

    Returns:
        params -> scalar, differentiable in reverse.

    Example:
        >>> loss = lambda params: params**2
        >>> mean_loss(loss, None) is loss
        True
    """
    if axis_name is None:
        return loss

    @jax.custom_vjp  # the transpose of pmean is another one in pmap than in shard_map
    def mean(params: PyTree) -> Any:
        return jax.lax.pmean(loss(varying(params, axis_name)), axis_name)

    def forward(params: PyTree) -> tuple[Any, PyTree]:
        found: tuple[Any, PyTree] = jax.lax.pmean(jax.value_and_grad(loss)(varying(params, axis_name)), axis_name)
        return found

    mean.defvjp(forward, lambda grads, cotangent: (jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads),))
    return mean


def sum_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """The sum over the axis; the tree itself on one device.

    On a GPU the leaves travel as one vector, whose parts the next kernels read where they lie. XLA, given the leaves,
    makes such a vector too, in several pieces, and copies each leaf out of it by a kernel of its own.

    Args:
        tree: pytree of arrays.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere.

    Returns:
        The same, alike on all devices.

    Example:
        >>> sum_over_devices(1.0, None)
        1.0
    """
    if axis_name is None or not jax.tree.leaves(tree):
        return tree
    flat = lambda tree: _sum_of_vectors(tree, axis_name)
    return jax.lax.platform_dependent(tree, cuda=flat, rocm=flat, default=lambda tree: jax.lax.psum(tree, axis_name))


def _sum_of_vectors(tree: PyTree, axis_name: str) -> PyTree:
    """The sum over the axis, of one vector for each dtype."""
    leaves, structure = jax.tree.flatten(tree)
    summed = list(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        vector = jax.lax.psum(jnp.concatenate([leaves[i].ravel() for i in places]), axis_name)
        for i in places:
            part, vector = jnp.split(vector, [leaves[i].size])
            summed[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, summed)


def mean_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """The mean of every inexact leaf over the axis; the tree itself on one device.

    Counters, flags and keys keep their type: the largest over the devices, which all hold the same. A leaf that
    shard_map knows to be alike on all devices stays as it is.

    Args:
        tree: pytree of arrays.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere.

    Returns:
        The same, alike on all devices.

    Example:
        >>> mean_over_devices(1.0, None)
        1.0
    """
    if axis_name is None:
        return tree

    is_unknown = not axes_of(jax.lax.pcast(jnp.zeros(()), axis_name, to="varying"))  # pmap does not keep track

    def mean(leaf: jax.Array) -> jax.Array:
        if not (is_unknown or axis_name in axes_of(leaf)):
            return leaf
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jax.lax.pmean(leaf, axis_name)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = mean(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if leaf.dtype == bool:
            return jax.lax.pmax(leaf.astype(jnp.int8), axis_name).astype(bool)
        return jax.lax.pmax(leaf, axis_name)

    return jax.tree.map(mean, tree)


def stacked_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """Every leaf of every device, [D, ...]; by a sum, which joins that of the gradients in one all-reduce.

    Args:
        tree: pytree of small arrays.
        axis_name: of the mesh inside of shard_map and pmap, None elsewhere: [1, ...].

    Returns:
        The same, alike on all devices.

    Example:
        >>> stacked_over_devices(jnp.float32(1), None)
        Array([1.], dtype=float32)
    """
    if axis_name is None:
        return jax.tree.map(lambda leaf: leaf[None], tree)
    place = jnp.arange(jax.lax.axis_size(axis_name)) == jax.lax.axis_index(axis_name)
    beside = lambda leaf: place.reshape(-1, *(1,) * jnp.ndim(leaf))
    return jax.lax.psum(jax.tree.map(lambda leaf: jnp.where(beside(leaf), leaf[None], 0), tree), axis_name)
