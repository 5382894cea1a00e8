"""Which experiments there are, and the tables, figures and elements they own: found by glob, listed nowhere.

Experiments of your own: folders in JACREG_EXPERIMENTS, separated as in PATH.
"""

import ast
import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
EXTRA = "JACREG_EXPERIMENTS"


def files() -> dict[str, Path]:
    """Every module that may own something shown, by name.

    Raises:
        ValueError: two of one name.
    """
    found = {}
    folders = (HERE / "paper", HERE / "beyond", *map(Path, filter(None, os.environ.get(EXTRA, "").split(os.pathsep))))
    inside = [HERE / f"{name}.py" for name in ("demo", "train", "sweep", "verify", "runbook")]
    inside += [HERE / "benchmarks" / f"{name}.py" for name in ("page", "on_gpu", "sharded", "ddnet_attacks")]
    inside += [HERE / "accelerators" / "tables.py", HERE / "accelerators" / "projection.py"]
    for path in [*inside, *(path for folder in folders for path in sorted(folder.glob("[!_]*.py")))]:
        if path.stem in found:
            raise ValueError(f"two experiments are called {path.stem}: {found[path.stem]} and {path}")
        found[path.stem] = path
    return found


def names() -> list[str]:
    """Those that run: a Config, and cells or a run of its own."""
    return sorted(name for name, path in files().items() if "Config" in (d := _defined(path)) and {"cells", "run"} & d)


def load(name: str) -> ModuleType:
    """The module of a name in `files`."""
    path = files()[name]
    if path.is_relative_to(HERE):
        return importlib.import_module(".".join(("experiments", *path.relative_to(HERE).with_suffix("").parts)))
    full = f"experiments_elsewhere_{name}"
    spec = importlib.util.spec_from_file_location(full, path)
    module = sys.modules[full] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def owned(what: str) -> dict | list:
    """All that the modules hold under TABLES or FIGURES (name -> function), or ELEMENTS (a list).

    Raises:
        ValueError: two of one name.
    """
    parts = [getattr(load(name), what) for name, path in files().items() if what in _defined(path)]
    if what == "ELEMENTS":
        return [element for part in parts for element in part]
    found = {}
    for part in parts:
        if found.keys() & part.keys():
            raise ValueError(f"{what} has two of {', '.join(found.keys() & part.keys())}")
        found |= part
    return found


def _defined(path: Path) -> set[str]:
    """Names that a file binds at its top level."""
    return _defined_at(path, path.stat().st_mtime_ns)


@functools.cache
def _defined_at(path: Path, changed: int) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        for target in targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                found |= {getattr(part, "name", None) or getattr(part, "id", None)}
    return found
