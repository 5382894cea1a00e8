"""Keeps freed memory, on import: before other imports start threads, which would allocate from arenas of their own."""

from jacreg_jax import host_memory

host_memory.keep_freed_memory()
