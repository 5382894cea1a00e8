"""Which devices and processes take part: a mesh over all of them, and what the processes agree on.

Every process runs the same command. The first one alone writes; all read the same folder, and decide alike.
"""

import contextlib
import dataclasses
import json
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from experiments.lab import record
from jacreg_jax import sharding


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The other processes of this command; none by default."""

    coordinator: str | None = None
    """HOST:PORT of the first process."""
    count: int | None = None
    """How many processes there are."""
    index: int | None = None
    """Which of them this is, from 0."""
    detect: bool = False
    """Find them by the environment of SLURM, Kubernetes, Open MPI or a TPU slice, as jax.distributed does."""
    patience: int = 30
    """Seconds after which a process that is not heard of counts as dead, and the others stop."""
    arrival: int = 300
    """Seconds in which all must have come."""

    def __post_init__(self):
        given = [self.coordinator, self.count, self.index]
        if any(value is not None for value in given) and None in given:
            raise ValueError(
                "hosts must be given by all of coordinator, count and index, or be found by detect; got "
                f"coordinator {self.coordinator}, count {self.count}, index {self.index}"
            )
        if self.count is not None and not 0 <= self.index < self.count:
            raise ValueError(f"hosts.index must be from 0 to {self.count - 1}, got {self.index}")
        if self.patience < 10:
            raise ValueError(f"hosts.patience must be at least 10 seconds, got {self.patience}")


def join(hosts: Hosts) -> None:
    """Meet the other processes; before anything asks for devices.

    Raises:
        RuntimeError: they did not all come in time.
    """
    if not hosts.detect and hosts.coordinator is None:
        return
    # a process that ends while others wait for it lets them know at once, and is not waited for
    jax.distributed.initialize(
        hosts.coordinator,
        hosts.count,
        hosts.index,
        initialization_timeout=hosts.arrival,
        heartbeat_timeout_seconds=hosts.patience,
        shutdown_timeout_seconds=hosts.patience,
    )
    record.WRITES = is_first()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def mesh_of(devices: int | None) -> jax.sharding.Mesh | None:
    """The mesh of so many devices; None for one. All of them where there are several processes.

    Raises:
        ValueError: more devices than there are, or fewer where there are several processes.
    """
    there = jax.devices()
    if jax.process_count() > 1:
        if devices not in (None, len(there)):
            raise ValueError(f"devices must be all {len(there)} where several processes take part, got {devices}")
        return sharding.data_mesh(there)
    if devices is None or devices == 1:
        return None
    if devices > len(there):
        hint = "; JAX_NUM_CPU_DEVICES=8 makes a CPU look like 8" if there[0].platform == "cpu" else ""
        raise ValueError(f"devices must be from 1 to {len(there)}, which are here; got {devices}{hint}")
    return sharding.data_mesh(there[:devices])


def placed(tree, mesh: jax.sharding.Mesh | None, spec: PartitionSpec = sharding.WHOLE):
    """Arrays that every process holds whole, on the devices of the mesh; as they are without one.

    Raises:
        ValueError: an axis of them does not split evenly.
    """
    if mesh is None:
        return tree
    on_mesh = NamedSharding(mesh, spec)

    def place(leaf):
        leaf = np.asarray(leaf)
        rows = leaf.shape[spec.index(sharding.AXIS)] if sharding.AXIS in spec else 0
        if rows % mesh.size:
            raise ValueError(f"batches must split evenly over {mesh.size} devices, got {rows} rows; see --devices")
        return jax.make_array_from_callback(leaf.shape, on_mesh, lambda index: leaf[index])

    return jax.tree.map(place, tree)


def here(tree):
    """Arrays that are alike on all devices, as arrays of this process alone; others as they are."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree)


def agreed(value):
    """The first process' value, anything that json holds, in every process."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(len(text), np.int32)))
    own = np.frombuffer(text.ljust(size)[:size], np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(own)))


def greatest(number: int) -> int:
    """The greatest of the processes' numbers."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number, np.int32)).max())


def total(numbers: list[float]) -> list[float]:
    """The sums of the processes' numbers."""
    if jax.process_count() == 1:
        return numbers
    return multihost_utils.process_allgather(np.asarray(numbers, np.float32)).sum(0).tolist()


def meet(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def faults_of_others():
    """An error of a collective, which is what a process sees of another's death, becomes one line and exit status 1."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        first = str(error).splitlines()[0]
        line = f"process {jax.process_index()} stopped: another process is gone, or cannot be reached ({first}); "
        print(f"{line}the same commands go on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(1)  # an exit in order would wait for the one that is gone
