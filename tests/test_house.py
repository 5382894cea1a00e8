"""Who may import whom, what a plain import costs, and that the names promised to users exist."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as command_line

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "jacreg_jax"

# third parties each part may import at module level, and its siblings; functions may import more (lazily)
BASE = {"jax", "numpy"}
MAP = {
    "jacobian": (BASE, set()),
    "convolution": (BASE, set()),
    "pooled_convolution": (BASE, {"convolution"}),
    "host_memory": (set(), set()),
    "sharding": (BASE, set()),
    "attacks": (BASE | {"optax"}, {"attacks"}),
    "masking": (BASE, {"attacks", "evaluation"}),
    "adversarial_training": (BASE, {"attacks"}),
    "penalty": (BASE, {"jacobian"}),
    "relatives": (BASE | {"optax"}, {"jacobian", "penalty"}),
    "cyclopropagation": (BASE, {"jacobian"}),
    "schedules": (BASE | {"optax"}, set()),
    "interop": (BASE, set()),
    "models": (BASE | {"flax"}, {"convolution", "pooled_convolution", "models"}),
    "accumulation": (BASE, set()),
    "training": (BASE | {"optax"}, {"accumulation", "jacobian", "penalty", "sharding"}),
    "evaluation": (BASE, set()),
    "decision_cells": (BASE, set()),
    "certify": (BASE, set()),  # scipy and the attacks lazily
    "datasets": (BASE, {"datasets"}),
    "datasets/builders.py": (BASE | {"tensorflow_datasets", "PIL"}, {"datasets"}),  # itself imported lazily
    "__init__": (BASE, {"jacobian", "penalty"}),
}


def part(path: Path) -> str:
    return path.relative_to(LIBRARY).parts[0].removesuffix(".py")


def module_level_imports(path: Path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ([f"{module}.{a.name}" for a in node.names] if module == "jacreg_jax" else [module])


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: str(p.relative_to(LIBRARY)))
def test_imports_follow_the_map(path):
    third_parties, siblings = MAP.get(str(path.relative_to(LIBRARY)), MAP[part(path)])
    for name in module_level_imports(path):
        first, *rest = name.split(".")
        if first == "jacreg_jax":
            assert rest[0] in siblings | {part(path)}, f"{path.name} may not import {name}"
        elif first not in sys.stdlib_module_names:
            assert first in third_parties, f"{path.name} may not import {name}"


def test_experiments_do_not_import_each_other():
    for path in (ROOT / "experiments").rglob("*.py"):
        for name in module_level_imports(path):
            if name.startswith("experiments."):
                assert name.split(".")[1] not in command_line.names(), f"{path.name} may not import {name}"


def test_import_brings_nothing_but_jax_and_flax():
    """`import jacreg_jax` loads no more than `import jax, flax` does, and makes no backend."""
    script = (
        "import sys, jax, flax; before = set(sys.modules); import jacreg_jax;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(sorted(new));"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    new, initialized = out.splitlines()
    assert ast.literal_eval(new) == ["jacreg_jax"]
    assert initialized == "False"
