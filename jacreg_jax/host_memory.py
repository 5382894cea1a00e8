"""Settings of the host's memory that the speed of large programs on CPU hangs on."""

import ctypes
import mmap
import sys

from jacreg_jax import checks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # names of glibc's malloc.h


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let this process keep the memory it frees, up to blocks of `limit` bytes; call it first of all.

    XLA allocates the temporaries of a program anew in every call. glibc returns blocks of more than 32 MiB to the
    system each time, on any thread but the first always, and the next call pays a page fault for every 4 KiB: up to
    a third of a step whose temporaries are 40 to 300 MiB. All threads then share one arena, which small allocations
    from many threads at once would feel; threads that began before keep theirs, and with them the faults, so that the
    call belongs before other imports. The memory lies in huge pages of 2 MiB where Linux gives them on advice.
    Process-wide, and of no effect on a GPU or TPU.

    Args:
        limit: bytes, below 2^31.

    Returns:
        Whether the C library took the setting; False where it is not glibc.

    Raises:
        ValueError: limit out of range.

    Example:
        >>> import sys, jacreg_jax
        >>> taken = jacreg_jax.host_memory.keep_freed_memory()
    """
    checks.count("limit", limit)
    if limit >= 2**31:
        raise ValueError(f"limit must be between 1 and 2**31 - 1 bytes, got {limit}")
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = {_M_MMAP_THRESHOLD: limit, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}  # -1: never
    taken = all(libc.mallopt(name, value) for name, value in settings.items())
    if taken:
        _advise_huge_pages(libc, limit - 2**20)
    return taken


def _advise_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Let the heap grow by `size` bytes, which cost nothing before they are written, and ask for huge pages there."""
    if size <= 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    address = libc.malloc(size)
    if address:
        start = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (address + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
        libc.free(address)
