"""Mutation testing: break the library in one place, and see whether a fast test goes red.

    python -m tests.mutants record      which tests execute which line, and their seconds: half an hour
    python -m tests.mutants judge       300 random mutations; goes on where it stopped: half a minute each
    python -m tests.mutants confirm     the tests that noticed pass where nothing is broken
    python -m tests.mutants page        docs/mutants.md, with the reasons of tests/mutants_reasons.json

All happens in a copy of the last commit. The tests that execute the mutated line run first, the cheapest before all;
then those that reach its file, as many as `--budget` seconds allow. `judge --budget 600` tries the survivors again.
"""

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from tests.mutants_page import page
from tests.mutations import Mutation, digest, mutated, sample

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "runs" / "mutants"  # not committed
CHECKOUT, RECORD, RESULTS = FOLDER / "checkout", FOLDER / "record.json", FOLDER / "results.jsonl"
REASONS, PAGE = ROOT / "tests" / "mutants_reasons.json", ROOT / "docs" / "mutants.md"
# tests of other things than the library's numbers
OTHER = ("experiments", "house", "pages", "shown", "cases", "datasets", "host_memory", "models", "preproc")


def check_out() -> None:
    """The last commit, in a folder that keeps its compiled programs."""
    CHECKOUT.mkdir(parents=True, exist_ok=True)
    for path in CHECKOUT.iterdir():
        if path.name != ".jax_cache":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "x"], cwd=CHECKOUT, input=archive.stdout, check=True)


def run(*command: str, seconds: float) -> None:
    """`python -m tests.mutants_tests command` in the copy, within some seconds of its own time."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
    command = [sys.executable, "-m", "tests.mutants_tests", *command]
    options = {"cwd": CHECKOUT, "env": os.environ | {"PYTHONPATH": str(CHECKOUT)}}
    options |= {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # a pipe would wait for what tests started
    with contextlib.suppress(subprocess.TimeoutExpired):  # a lock without end
        subprocess.run(command, preexec_fn=limit, timeout=10 * seconds, **options)


def first_failure(tests: list[str], seconds: float) -> str:
    """Which of these tests fails first, in this order; none: "", and "time" where they take longer than that."""
    wanted, answer = FOLDER / "order.json", FOLDER / "answer.json"
    wanted.write_text(json.dumps(tests))
    answer.write_text(json.dumps("time"))
    run("judge", str(wanted), str(answer), seconds=seconds)
    return json.loads(answer.read_text())


def record() -> None:
    """Runs each test file that is new or changed once, without a mutation."""
    known = json.loads(RECORD.read_text())["tests"] if RECORD.exists() else {}
    files = [path for path in sorted((CHECKOUT / "tests").glob("test_*.py")) if not any(o in path.stem for o in OTHER)]
    new = [path for path in files if known.get(f"tests/{path.name}") != digest(path.read_text())]
    for path in tqdm(new, desc="recording", dynamic_ncols=True):
        run("record", str(RECORD), f"tests/{path.name}", seconds=3600)


def order(mutation: Mutation, source: str, recorded: dict) -> list[str]:
    """The tests that execute the line, or else the function around it; then the others that reach the file."""
    lines = {int(line): tests for line, tests in recorded["lines"].get(mutation.file, {}).items()}
    on = lambda span: {test for line in span for test in lines.get(line, [])}
    executing = {test for of in recorded["lines"].values() for tests in of.values() for test in tests}
    looking = set(recorded["seconds"]) - executing  # they read signatures and sources, and call nothing
    is_same = recorded["library"].get(mutation.file) == digest(source)  # else an edit moved the lines
    near = (on(mutation.lines) or on(mutation.function) | looking) if is_same else set()
    return sorted(on(lines) | looking, key=lambda test: (test not in near, recorded["seconds"][test], test))


def judge(mutation: Mutation, recorded: dict, budget: float) -> dict:
    """Which test notices a mutation, if any does."""
    path, start = CHECKOUT / "jacreg_jax" / mutation.file, time.perf_counter()
    original = path.read_text()
    tests, spent = [], 0.0
    for test in order(mutation, original, recorded):
        spent += recorded["seconds"][test]
        if tests and spent > budget:
            break
        tests.append(test)
    path.write_text(mutated(original, mutation.number))
    try:
        killed_by = first_failure(tests, 3 * min(spent, budget) + 60)
    finally:
        path.write_text(original)
    took = round(time.perf_counter() - start, 1)
    return {"key": mutation.key, "killed_by": killed_by, "tests": len(tests), "budget": budget, "seconds": took}


def results() -> dict[str, dict]:
    """The last answer for each mutation, by its key."""
    rows = map(json.loads, RESULTS.read_text().splitlines()) if RESULTS.exists() else []
    return {row["key"]: row for row in rows}


def judge_all(mutations: list[Mutation], budget: float) -> None:
    """Appends the answers that are missing; survivors of a smaller budget are judged again."""
    done, recorded = results(), json.loads(RECORD.read_text())
    is_judged = lambda row: row["killed_by"] or row["budget"] >= budget
    wanted = [m for m in mutations if not (m.key in done and is_judged(done[m.key]))]
    for mutation in tqdm(wanted, desc="mutants", dynamic_ncols=True):
        row = judge(mutation, recorded, budget)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def confirm(mutations: list[Mutation]) -> None:
    """Each test that noticed a mutation passes without one."""
    noticed = {results()[m.key]["killed_by"] for m in mutations if m.key in results()} - {"", "time", "collection"}
    failed = first_failure(sorted(noticed), 3600)
    print(f"fails without a mutation: {failed}" if failed else f"{len(noticed)} tests pass without a mutation")


def main() -> None:
    """Does one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "judge", "confirm", "page"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", nargs="*", default=[], help="modules or folders that are left out")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for one mutation")
    config = parser.parse_args()
    check_out()
    mutations = sample(CHECKOUT / "jacreg_jax", config.count, config.seed, config.skip)
    if config.command == "record":
        record()
    elif config.command == "judge":
        judge_all(mutations, config.budget)
    elif config.command == "confirm":
        confirm(mutations)
    else:
        PAGE.write_text(page(mutations, results(), json.loads(REASONS.read_text()), config.skip))


if __name__ == "__main__":
    main()
