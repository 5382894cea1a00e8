"""What a process does before anything else."""

from pathlib import Path


def prepare_process():
    """Keep compiled programs between runs, and freed memory within one.

    Programs lie in ~/.cache/jacreg_jax unless JAX_COMPILATION_CACHE_DIR says otherwise.
    """
    import jax

    from jacreg_jax import host_memory

    host_memory.keep_freed_memory()
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/jacreg_jax/xla").expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
