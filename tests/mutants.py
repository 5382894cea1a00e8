"""Mutation testing: break the library in one place, and see whether a test goes red.

    python -m tests.mutants --count 300 --seed 0 --out runs/mutants.jsonl     (or: make mutants)

Each mutant changes one operator, comparison, constant or condition of one module, in a copy of the checkout; the fast
tests of that module then run until the first failure. Results are appended, so that a run that was stopped goes on.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
CORE = ["test_faults.py", "test_transformations.py"]
# the tests that must notice, nearest first
TESTS = {
    "jacobian.py": ["test_jacobian.py", *CORE],
    "probes.py": ["test_jacobian.py"],
    "rows.py": ["test_jacobian.py", "test_penalty.py"],
    "mean_norm.py": ["test_penalty.py", *CORE],
    "penalty.py": ["test_penalty.py", *CORE],
    "penalties.py": ["test_penalty.py", "test_deprecation.py", *CORE],
    "metrics.py": ["test_accumulation.py", "test_sharding.py"],
    "supervised.py": ["test_training.py", *CORE],
    "training.py": ["test_training.py", "test_faults.py", "test_sharding.py"],
    "guard.py": ["test_faults.py"],
    "accumulation.py": ["test_accumulation.py", "test_training.py"],
    "relatives.py": ["test_relatives.py", *CORE],
    "cyclopropagation.py": ["test_cyclopropagation.py", "test_bad_input.py"],
    "sharding.py": ["test_sharding.py", "test_faults.py"],
    "certify.py": ["test_certify.py"],
    "interval_rules.py": ["test_certify.py"],
    "intervals.py": ["test_certify.py"],
    "masking.py": ["test_masking.py"],
    "evaluation.py": ["test_evaluation.py"],
    "fooling.py": ["test_evaluation.py"],
    "batches.py": ["test_evaluation.py"],
    "decision_cells.py": ["test_decision_cells.py"],
    "pooled_convolution.py": ["test_pooled_convolution.py"],
    "convolution": ["test_convolution.py"],
    "attacks": [
        "test_attacks_simple.py",
        "test_attacks_formulas.py",
        "test_attacks_strong.py",
        "test_attacks_faults.py",
    ],
}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Mod: ast.Mult}
OPERATORS |= {ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
NAMES = {"minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "any": "all", "all": "any"}
NAMES |= {"argmax": "argmin", "argmin": "argmax", "zeros_like": "ones_like", "ones_like": "zeros_like"}


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """(node, what is done to it) of every mutation; annotations, messages and docstrings are left alone."""
    skipped = set()
    for node in ast.walk(tree):
        for left_alone in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            skipped |= set(map(id, ast.walk(left_alone))) if left_alone is not None else set()
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.ImportFrom | ast.Import | ast.AnnAssign):
            skipped |= set(map(id, ast.walk(node)))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "warn":
            skipped |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield node, "comparison"
        elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            yield node, "operator"
        elif isinstance(node, ast.BoolOp):
            yield node, "and / or"
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield node, "sign or not"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield node, "constant"
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, "name"
        elif isinstance(node, ast.IfExp):
            yield node, "condition"


def mutate(tree: ast.Module, node: ast.AST, kind: str) -> str:
    """Source of the tree with this node changed."""
    if kind == "comparison":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "operator":
        node.op = OPERATORS[type(node.op)]()
    elif kind == "and / or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif kind == "sign or not":
        node.op = ast.UAdd() if isinstance(node.op, ast.USub) else node.op
        if not isinstance(node.op, ast.UAdd):
            node.operand = ast.UnaryOp(node.op, node.operand)
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif kind == "name":
        node.attr = NAMES[node.attr]
    else:
        node.body, node.orelse = node.orelse, node.body
    return ast.unparse(ast.fix_missing_locations(tree))


def mutants(seed: int) -> list[tuple[str, int]]:
    """(file, number of the mutation in it) of all modules in a random order."""
    found = []
    for path in sorted((ROOT / "jacreg_jax").rglob("*.py")):
        name = str(path.relative_to(ROOT / "jacreg_jax"))
        if name in TESTS or name.split("/")[0] in TESTS:
            found += [(name, i) for i, _ in enumerate(places(ast.parse(path.read_text())))]
    random.Random(seed).shuffle(found)
    return found


def judge(checkout: Path, name: str, number: int, timeout: float) -> dict:
    """Whether the tests of a module notice a mutation of it."""
    original = (ROOT / "jacreg_jax" / name).read_text()
    tree = ast.parse(original)
    node, kind = list(places(tree))[number]
    line, before = node.lineno, ast.unparse(node)
    (checkout / "jacreg_jax" / name).write_text(mutate(tree, node, kind))
    tests = [f"tests/{test}" for test in TESTS.get(name) or TESTS[name.split("/")[0]]]
    tests = [test for test in tests if (checkout / test).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    try:
        run = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=timeout)
        killed = run.returncode != 0
    except subprocess.TimeoutExpired:
        killed = True  # a loop without end
    finally:
        (checkout / "jacreg_jax" / name).write_text(original)
    return {"file": name, "number": number, "line": line, "kind": kind, "before": before[:100], "killed": killed}


def main() -> None:
    """Judge mutants until there are as many as wanted; print the share and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for the tests of one mutant")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.jsonl")
    config = parser.parse_args()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in config.out.read_text().splitlines()] if config.out.exists() else []
    seen = {(row["file"], row["number"]) for row in done}
    wanted = [m for m in mutants(config.seed)[: config.count] if m not in seen]
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        ignore = shutil.ignore_patterns(".git", ".venv", "runs", "results", "__pycache__")
        shutil.copytree(ROOT, checkout, ignore=ignore)
        os.environ["PYTHONPATH"] = str(checkout)
        for name, number in tqdm(wanted, desc="mutants", dynamic_ncols=True):
            row = judge(checkout, name, number, config.timeout)
            done.append(row)
            with config.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    killed = sum(row["killed"] for row in done)
    print(f"{killed} of {len(done)} mutants killed")
    for row in done:
        if not row["killed"]:
            print(f"survived: {row['file']}:{row['line']} {row['kind']}: {row['before']}")


if __name__ == "__main__":
    main()
