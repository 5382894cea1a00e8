"""One training body over many devices: a data mesh, and the backends jit, shard_map and pmap over it.

Each device runs the program of one device on its share of the batch, and one all-reduce sums the gradients, whatever
the backend. The compiler places nothing by itself: it would gather activations, or do the whole batch on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P

from jacreg_jax import checks
from jacreg_jax.collectives import (
    mean_loss as mean_loss,
    mean_over_devices as mean_over_devices,
    row_keys as row_keys,
    share_of_mean as share_of_mean,
    stacked_over_devices as stacked_over_devices,
    sum_over_devices as sum_over_devices,
    varying as varying,
)
from jacreg_jax.explicit_axes import automatic_step, within
from jacreg_jax.guard import check_batch
from jacreg_jax.types import PyTree

AXIS = "data"
Backend: TypeAlias = Literal["jit", "shard_map", "pmap"]
WHOLE, ON_ROWS = P(), P(AXIS)
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


def check_mesh(mesh: Any) -> Mesh:
    """The mesh, which has an axis "data"; explicit axes, those of `jax.make_mesh` by default, as automatic ones.

    Raises:
        TypeError: no mesh.
        ValueError: it has no such axis.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, as data_mesh() makes it, got {type(mesh).__name__}")
    if AXIS not in mesh.shape:
        raise ValueError(f"mesh must have an axis {AXIS!r}, as that of data_mesh() has, got axes {mesh.axis_names}")
    automatic = (AxisType.Auto,) * len(mesh.axis_names)
    return mesh if mesh.axis_types == automatic else Mesh(mesh.devices, mesh.axis_names, axis_types=automatic)


def num_shares(mesh: Mesh | None, backend: Backend) -> int:
    """In how many parts a batch is split: over the axis "data", by pmap over all devices.

    Args:
        mesh: from `data_mesh`; None: one device.
        backend: "jit", "shard_map" or "pmap".

    Returns:
        A count.

    Example:
        >>> num_shares(None, "jit")
        1
    """
    return 1 if mesh is None else mesh.size if backend == "pmap" else mesh.shape[AXIS]


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
    mesh = check_mesh(mesh)
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
    mesh = check_mesh(mesh)
    sharding = NamedSharding(mesh, P(AXIS))
    checks.on_host(batch=batch)
    check_batch(batch, shares=len(mesh.local_devices))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def map_over_devices(
    body: Step, mesh: Mesh | None, backend: Backend = "jit", *, donate: bool = True, batch_specs: Any = ON_ROWS
) -> Step:
    """Compile body(state, batch, axis_name) -> (state, metrics) over the mesh; the result is called (state, batch).

    The state is replicated and the batch split; several batches come one after the other, in the body as in the call.
    The body runs on each device, on its share, and averages by itself over the axis "data". "jit" places what it is
    given on the mesh; "shard_map" is the same program.

    Args:
        body: see above; one body serves the three backends. On one device axis_name is None.
        mesh: from `data_mesh`; None: one device, no sharding (jit only).
        backend: "jit", "shard_map" or "pmap".
        donate: give the buffers of the old state to the new one.
        batch_specs: `PartitionSpec` of the batch, or of several a tuple of them; the leading axis by default.

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
    specs = (batch_specs,) if isinstance(batch_specs, P) else tuple(batch_specs)
    names = ["batch"] if len(specs) == 1 else [f"batch_{i}" for i in range(len(specs))]
    checks.function("body", body, ("state", *names, "axis_name"))
    if mesh is None and backend != "jit":
        raise ValueError(f"mesh must be given for backend {backend!r}, got None; make one with data_mesh()")
    mesh = None if mesh is None else check_mesh(mesh)
    donated = (0,) if donate else ()
    on_axis: Step = lambda state, *batches: body(state, *batches, AXIS)
    if mesh is None:
        return jax.jit(automatic_step(lambda state, *batches: body(state, *batches, None)), donate_argnums=donated)
    if backend == "pmap":
        return _pmapped(on_axis, list(mesh.devices.flat), specs)
    mapped = within(jax.shard_map(on_axis, mesh=mesh, in_specs=(P(), *specs), out_specs=(P(), P())), mesh)
    placed: dict[str, Any] = {}
    if backend == "jit":
        on_mesh = lambda *specs: tuple(NamedSharding(mesh, spec) for spec in specs)
        placed = {"in_shardings": on_mesh(P(), *specs), "out_shardings": on_mesh(P(), P())}
    return jax.jit(mapped, donate_argnums=donated, **placed)


def _pmapped(on_axis: Step, devices: list[jax.Device], specs: tuple[P, ...]) -> Step:
    """The body under pmap, called with whole batches."""
    split_axes = tuple(spec.index(AXIS) if AXIS in spec else None for spec in specs)
    # in_axes and out_axes None: the state stays unstacked, one format for checkpoints of all backends
    in_axes = None, *(None if axis is None else 0 for axis in split_axes)
    mapped = jax.pmap(on_axis, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=devices)

    def stacked(axis: int | None, tree: PyTree) -> PyTree:
        if axis is None:
            return tree
        shape = lambda leaf: (*leaf.shape[:axis], len(devices), -1, *leaf.shape[axis + 1 :])
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(shape(leaf)), axis, 0), tree)

    stack = lambda batches: tuple(map(stacked, split_axes, batches))
    step: Any = lambda state, *batches: mapped(state, *stack(batches))
    # as a jitted function has it
    step.lower = lambda state, *batches: mapped.lower(state, *jax.eval_shape(stack, batches))
    return step


def map_over_members(
    train: Callable[..., Any], mesh: Mesh | None, backend: Backend = "jit", *, donate: bool = True
) -> Callable[..., Any]:
    """Compile train(state, data, indices) of M models with a leading axis [M]; each device trains its share of them.

    Args:
        train: function of the models that are here, such as a `jax.vmap`.
        mesh: from `data_mesh`; None: one device.
        backend: "jit"; the others have nothing to add.
        donate: give the buffers of the old state to the new one.

    Returns:
        Compiled function; the data are the same for all models.

    Raises:
        ValueError: another backend; mesh without an axis "data".
        TypeError: mesh is none.

    Example:
        >>> double = lambda state, data, indices: (2 * state, {})
        >>> step = map_over_members(double, data_mesh(jax.devices()[:1]))
        >>> step(jnp.ones(4), jnp.ones(()), jnp.zeros(4, int))[0].tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    checks.one_of("backend", backend, ("jit",))
    checks.function("train", train, ("state", "data", "indices"))
    donated = (0,) if donate else ()
    if mesh is None:
        return jax.jit(automatic_step(train), donate_argnums=donated)
    mesh = check_mesh(mesh)
    specs = P(AXIS), P(), P(AXIS)
    mapped = within(jax.shard_map(train, mesh=mesh, in_specs=specs, out_specs=P(AXIS)), mesh)
    placed = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(mapped, donate_argnums=donated, in_shardings=placed)
