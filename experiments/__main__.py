"""python -m experiments NAME [options]: every module here with a `Config` and a `run` is an experiment."""

import dataclasses
import importlib
import os
import pkgutil
import sys
from pathlib import Path

import tyro

import experiments


def names() -> list[str]:
    """Names of the modules that define Config and run."""
    modules = (m.name for m in pkgutil.iter_modules(experiments.__path__) if not m.name.startswith("_"))
    sources = {name: Path(experiments.__path__[0], f"{name}.py") for name in modules}
    return sorted(n for n, path in sources.items() if path.exists() and "\ndef run(" in path.read_text())


def parse(name: str, arguments: list[str]):
    """The frozen Config of experiment `name`, its defaults the paper's; --quick starts from the module's QUICK."""
    module = importlib.import_module(f"experiments.{name}")
    default = module.Config()
    if "--quick" in arguments:
        default = dataclasses.replace(default, **module.QUICK)
    arguments = [a for a in arguments if a != "--quick"]
    program = f"python -m experiments {name} [--quick]"
    return module, tyro.cli(module.Config, args=arguments, default=default, prog=program, description=module.__doc__)


def main():
    """Run the experiment that the command line names."""
    listing = "experiments: " + ", ".join(names())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"{__doc__}\n\n{listing}\n\nOptions of one: python -m experiments NAME --help")
        return
    if sys.argv[1] not in names():
        sys.exit(f"unknown experiment {sys.argv[1]!r}; {listing}")
    module, config = parse(sys.argv[1], sys.argv[2:])
    prepare_process()
    try:
        module.run(config)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:  # a failed download is an OSError
        if os.environ.get("JACREG_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(JACREG_TRACEBACK=1 shows where)")


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


if __name__ == "__main__":
    main()
