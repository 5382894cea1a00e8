"""One training body over many devices: a data mesh, and the backends jit, shard_map and pmap over it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from jacreg_jax import checks
from jacreg_jax.guard import check_batch
from jacreg_jax.keys import check_key
from jacreg_jax.types import PyTree

AXIS = "data"
Backend: TypeAlias = Literal["jit", "shard_map", "pmap"]
BACKENDS = ("jit", "shard_map", "pmap")
Step: TypeAlias = Callable[..., tuple[Any, dict[str, Any]]]  # (state, batch) -> (state, metrics)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of one axis, "data", over the given devices or all of them.

    Args:
        devices: such as `jax.devices()[:2]`; None: all.

    Returns:
        A mesh for `training.make_train_step`, `replicate` and `shard_batch`.

    Raises:
        TypeError: what is no device.
        ValueError: no devices, or one of them twice.

    Example:
        >>> data_mesh(jax.devices()[:1]).shape["data"]
        1
    """
    if devices is None:
        devices = jax.devices()
    if not isinstance(devices, list | tuple | np.ndarray) or not all(isinstance(d, jax.Device) for d in devices):
        raise TypeError(f"devices must be a sequence of jax.Device, such as jax.devices()[:2], got {devices!r}")
    devices = list(devices)
    if not devices or len(set(devices)) != len(devices):
        raise ValueError(f"devices must be at least one, each once, got {devices}")
    # Auto by name: the default, Explicit, makes x[permutation] raise inside user models
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def check_mesh(mesh: Any) -> None:
    """A mesh with the axis "data".

    Raises:
        TypeError: no mesh.
        ValueError: it has no such axis.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, as data_mesh() makes it, got {type(mesh).__name__}")
    if AXIS not in mesh.shape:
        raise ValueError(f"mesh must have an axis {AXIS!r}, as that of data_mesh() has, got axes {mesh.axis_names}")


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree on every device of the mesh.

    Args:
        tree: pytree of arrays, such as a TrainState.
        mesh: from `data_mesh`.

    Returns:
        The same, replicated.

    Raises:
        TypeError: mesh is none, or a leaf no array.
        ValueError: mesh has no axis "data".

    Example:
        >>> replicate({"w": jnp.ones(2)}, data_mesh())["w"].sharding.is_fully_replicated
        True
    """
    check_mesh(mesh)
    for leaf in jax.tree.leaves(tree):
        if not (isinstance(leaf, bool | int | float) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))):
            raise TypeError(f"tree must hold arrays alone, got {type(leaf).__name__}")
    # device_put refuses typed keys on a mesh that spans processes
    return jax.jit(lambda t: t, out_shardings=NamedSharding(mesh, P()))(tree)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """The batch split over the devices along its leading axis; each process passes its own rows.

    Args:
        batch: pytree of [B, ...].
        mesh: from `data_mesh`.

    Returns:
        The same as global arrays.

    Raises:
        TypeError: mesh is none, or a leaf of the batch no array.
        ValueError: mesh has no axis "data"; no rows, or a number of them that is not a multiple of that of the devices.

    Example:
        >>> mesh = data_mesh(jax.devices()[:1])
        >>> shard_batch({"image": np.ones((4, 3))}, mesh)["image"].shape
        (4, 3)
    """
    check_mesh(mesh)
    sharding = NamedSharding(mesh, P(AXIS))
    checks.on_host(batch=batch)
    check_batch(batch, shares=len(mesh.local_devices))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def row_keys(key: jax.Array, rows: int, axis_name: str | None) -> jax.Array:
    """One key for each row this device holds, folded from its place in the whole batch.

    So the noise of a sample is the same on 1, 2 or 8 devices and under every backend; a replicated key would give
    every shard the same draw.

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
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(rows))


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


def mean_over_devices(tree: PyTree, axis_name: str | None) -> PyTree:
    """The mean of every inexact leaf over the axis; the tree itself on one device or under jit.

    Counters, flags and keys keep their type: the largest over the devices, which all hold the same.

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

    def mean(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jax.lax.pmean(leaf, axis_name)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = mean(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if leaf.dtype == bool:
            return jax.lax.pmax(leaf.astype(jnp.int8), axis_name).astype(bool)
        return jax.lax.pmax(leaf, axis_name)

    return jax.tree.map(mean, tree)


def map_over_devices(body: Step, mesh: Mesh | None, backend: Backend = "jit", *, donate: bool = True) -> Step:
    """Compile body(state, batch, axis_name) -> (state, metrics) over the mesh; the result is called (state, batch).

    The state is replicated and the batch split along its leading axis. Under jit axis_name is None and the compiler
    places the sums; under shard_map and pmap it is "data" and the body averages by itself.

    Args:
        body: see above; one body serves the three backends.
        mesh: from `data_mesh`; None: one device, no sharding (jit only).
        backend: "jit", "shard_map" or "pmap".
        donate: give the buffers of the old state to the new one.

    Returns:
        Compiled function (state, batch) -> (state, metrics).

    Raises:
        TypeError: body cannot be called so; mesh is none.
        ValueError: unknown backend; no mesh for shard_map or pmap, or one without an axis "data".

    Example:
        >>> body = lambda state, batch, axis_name: (state + mean_over_devices(batch.mean(), axis_name), {})
        >>> step = map_over_devices(body, data_mesh(jax.devices()[:1]), "shard_map")
        >>> float(step(jnp.float32(1), jnp.ones(4))[0])
        2.0
    """
    checks.one_of("backend", backend, BACKENDS)
    checks.function("body", body, ("state", "batch", "axis_name"))
    if mesh is None and backend != "jit":
        raise ValueError(f"mesh must be given for backend {backend!r}, got None; make one with data_mesh()")
    if mesh is not None:
        check_mesh(mesh)
    donated = (0,) if donate else ()
    on_axis: Step = lambda state, batch: body(state, batch, AXIS)
    if mesh is None:
        return jax.jit(lambda state, batch: body(state, batch, None), donate_argnums=donated)
    if backend == "jit":
        whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
        return jax.jit(
            lambda state, batch: body(state, batch, None),
            donate_argnums=donated,
            in_shardings=(whole, split),
            out_shardings=(whole, whole),
        )
    if backend == "shard_map":
        mapped = jax.shard_map(on_axis, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=(P(), P()))
        return jax.jit(mapped, donate_argnums=donated)
    return _pmapped(on_axis, list(mesh.devices.flat))


def _pmapped(on_axis: Step, devices: list[jax.Device]) -> Step:
    """The body under pmap, called with whole batches."""
    # in_axes and out_axes None: the state stays unstacked, one format for checkpoints of all backends
    mapped = jax.pmap(on_axis, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=devices)
    stack = lambda leaf: leaf.reshape(len(devices), leaf.shape[0] // len(devices), *leaf.shape[1:])
    return lambda state, batch: mapped(state, jax.tree.map(stack, batch))
