"""Devices that are not here: a compiler makes programs for a named topology all the same."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

# what XLA asks of a GPU, as it reads it from one
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 1 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Target(NamedTuple):
    """A kind of chip: the devices of so many of them, and what its compiler is told."""

    devices: Callable[[int], list]
    options: dict[str, Any]


def h100(chips: int) -> list:
    """H100s: eight on a host."""
    shape = {1: "1x1x1", 8: "1x1x8", 64: "1x8x8"}[chips]
    described = topologies.get_topology_desc("cuda", platform="cuda", target_config=H100, topology=shape)
    return list(described.devices)


def v5e(chips: int) -> list:
    """TPU v5e: one chip is the first of a host's four."""
    described = topologies.get_topology_desc({1: "v5e:2x2", 8: "v5e:2x4", 64: "v5e:8x8"}[chips], platform="tpu")
    return list(described.devices)[:chips]


def cpu(chips: int) -> list:
    """Virtual devices of this process."""
    return jax.devices("cpu")[:chips]


# autotuning would run kernels
TARGETS = {"h100": Target(h100, {"xla_gpu_autotune_level": 0}), "v5e": Target(v5e, {}), "cpu": Target(cpu, {})}


def prepare(name: str):
    """Before anything is computed: this process itself stays on CPU.

    Raises:
        ImportError: the compiler is not installed.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_platforms", "cpu")
    if name == "cpu":
        jax.config.update("jax_num_cpu_devices", 8)
    try:
        TARGETS[name].devices(1)
    except Exception as error:  # the plug-ins do not say what they raise
        raise ImportError(f"the compiler for {name} cannot be used ({error}); run `make check-accelerators`") from error
