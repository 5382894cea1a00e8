"""Who may import whom in experiments/: paper, beyond -> studies -> lab -> jacreg_jax; page reads, without jax."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "experiments"
FILES = sorted(p for p in HERE.rglob("*.py") if "results" not in p.parts)

# room or file at the top: the rooms of experiments/ that it may import, and others' packages
NUMERICS = {"numpy", "matplotlib"}
MAP = {
    "__init__": (set(), set()),
    "catalogue": (set(), set()),
    "page": ({"page"}, NUMERICS | {"scipy"}),
    "lab": ({"lab"}, {"jax", "jacreg_jax", "numpy", "flax", "orbax", "tqdm"}),
    "studies": ({"lab", "page", "studies"}, NUMERICS | {"jacreg_jax"}),
    "paper": ({"lab", "page", "studies"}, NUMERICS | {"jax", "jacreg_jax", "flax"}),
    "beyond": ({"lab", "page", "studies"}, NUMERICS | {"jax", "jacreg_jax", "flax"}),
    "benchmarks": ({"lab", "page", "benchmarks"}, NUMERICS | {"jax", "jacreg_jax", "flax", "tqdm", "tyro", "torch"}),
    "accelerators": ({"lab", "page", "benchmarks", "accelerators"}, {"jax", "numpy", "tqdm", "tyro"}),
    "demo": ({"lab", "page"}, NUMERICS | {"jax", "jacreg_jax"}),
    "train": ({"lab"}, {"jax", "jacreg_jax", "numpy", "tensorboardX"}),
    "sweep": ({"lab", "train"}, {"submitit"}),
    "verify": ({"__main__", "catalogue", "lab"}, {"numpy", "tyro"}),
    "runbook": ({"__main__", "lab", "page"}, set()),
    "report": ({"catalogue", "lab", "page"}, NUMERICS),
    "__main__": ({"catalogue", "lab"}, {"tyro", "jax", "jacreg_jax"}),
}
PEERS = {"adv_lib", "foolbox", "pyautoattack"}  # of the benchmarks, inside functions


def room(path: Path) -> str:
    return path.relative_to(HERE).parts[0].removesuffix(".py")


def imports(path: Path):
    """All of a file, inside functions too: (module, name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(HERE)))
def test_imports_follow_the_map(path):
    rooms, third_parties = MAP[room(path)]
    for module, name in imports(path):
        first, *rest = module.split(".")
        if first == "experiments":
            target = rest[0] if rest else name
            if (HERE / target).is_dir() or (HERE / f"{target}.py").exists():  # else a name of experiments/__init__
                full = [*rest, name]
                numbers = room(path) == "paper" and full[:2] == ["paper", "numbers"]
                assert target in rooms or numbers, f"{path.name} may not import {module} {name}"
        elif first not in sys.stdlib_module_names and not (room(path) == "benchmarks" and first in PEERS):
            assert first in third_parties, f"{path.name} may not import {module}"


def test_an_experiment_is_short():
    for path in (HERE / "paper").glob("[!_]*.py"):
        lines = path.read_text().count("\n")
        assert 20 <= lines <= 140, f"{path.name} has {lines} lines"


def test_every_experiment_says_what_it_is():
    from experiments import catalogue

    for name in catalogue.names():
        text = catalogue.load(name).__doc__
        assert f"python -m experiments {name}" in text, f"{name} does not say its command"
        assert "Time:" in text, f"{name} does not say how long it takes"
        assert "Leaves:" in text, f"{name} does not say what it leaves"


def test_the_library_imports_no_experiment():
    for path in (ROOT / "jacreg_jax").rglob("*.py"):
        assert not {"experiments", "tests"} & {module.split(".")[0] for module, _ in imports(path) if module}


def test_reading_needs_no_jax():
    script = "import sys; from experiments.page import results, plots, elements; print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "False"
