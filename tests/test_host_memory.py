"""host_memory.py: the setting is taken, pages of a large temporary are kept, and bad limits are named."""

import subprocess
import sys

import pytest

from jacreg_jax import host_memory

SCRIPT = """
import resource, sys
from jacreg_jax import host_memory
if sys.argv[1] == "kept":
    assert host_memory.keep_freed_memory()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jax.lax.fori_loop(0, 2, lambda i, a: a * 1.01 + i, jnp.outer(x, x)).sum())
x = jnp.arange(3000.0)  # a temporary of 34 MiB
for _ in range(3):
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    f(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_large_temporaries_keep_their_pages():
    faults = {}
    for name in ("given back", "kept"):
        out = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True).stdout
        faults[name] = int(out)
    assert faults["kept"] < 0.75 * faults["given back"], faults


HUGE = """
from jacreg_jax import host_memory
assert host_memory.keep_freed_memory()
import jax.numpy as jnp
x = jnp.ones(2**26).block_until_ready()  # 256 MiB
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""


GIVEN = """
import mmap
memory = mmap.mmap(-1, 2**28, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
for start in range(0, 2**28, 4096):
    memory[start] = 1
print(next(line.split()[1] for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""


def huge_pages() -> bool:
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            return "[never]" not in file.read()
    except OSError:
        return False


@pytest.mark.skipif(not huge_pages(), reason="this kernel gives no huge pages")
def test_large_arrays_lie_in_huge_pages():
    """Most of 256 MiB that XLA allocates; where memory is in pieces, most of what the kernel gives who asks for it."""
    ours, given = (
        int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for script in (HUGE, GIVEN)
    )
    assert ours > 200 / 256 * min(given, 256 * 1024)
    assert given > 0


def test_limits():
    for limit in (0, 2**31):
        with pytest.raises(ValueError, match=f"limit must be .*, got {limit}"):
            host_memory.keep_freed_memory(limit)
