"""One setting of the C library that the speed of large programs on CPU hangs on."""

import ctypes
import sys

from jacreg_jax import checks

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # names of glibc's malloc.h


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let this process keep the memory it frees, up to blocks of `limit` bytes; call it before the first JAX operation.

    XLA allocates the temporaries of a program anew in every call. glibc returns blocks of more than 32 MiB to the
    system each time, on any thread but the first always, and the next call pays a page fault for every 4 KiB: up to
    a third of a step whose temporaries are 40 to 300 MiB. All threads then share one arena, which small allocations
    from many threads at once would feel. Process-wide, and of no effect on a GPU or TPU.

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
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_THRESHOLD: limit, _M_TRIM_THRESHOLD: 2**31 - 1, _M_ARENA_MAX: 1}
    return all(mallopt(name, value) for name, value in settings.items())
