"""The run book: all that the results page shows, in order of value; what is missing is run, one experiment at a time.

Command:    python -m experiments runbook [--list] [--hours 8]      `make paper`
            python -m experiments runbook --gpu --hours 0.15 --beside 4     `make paper-gpu`: at most 9 minutes
Says:       for every line its command, how many models are missing, and about how long they take on two CPU cores.
Stops:      after --hours, by Ctrl-C, or when all is there; the same command goes on from the last checkpoint.
Time:       days on two CPU cores; --list prints it line by line.
Leaves:     what the experiments leave; models and checkpoints in files of under 16 MB each, so that they can be copied
            from machine to machine. A line that fails is said at the end, and the others run.
"""

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from experiments import RESULTS, RUNS
from experiments.lab import record, zoo
from experiments.lab.recipes import Recipe
from experiments.page import results

CPU = (
    "table3 --columns 1",
    "table3 --columns 3 --seeds 5",
    "table3 --columns all --num-steps 15000 --seeds-all 2",
    "figure_s3 --num-steps 15000 --seeds 1",
    "figure_s5 --problem cifar10_ddnet --num-steps 15000 --seeds 1",
    "figure_s6 --problem cifar10_ddnet --num-steps 15000 --seeds 1 --attacks 'white noise' PGD",
    "figure_s6 --problem cifar10_ddnet --num-steps 15000 --seeds 1 --attacks CW --num-attacked 250",
    "table3 --columns 10 --seeds 3",
    "table3 --columns 30 --seeds 1",
    "figure_s4 --num-steps 1500 --seeds 1 --attacks PGD",
    "figure_s4 --num-steps 1500 --seeds 1 --attacks CW --num-attacked 100",  # 1,000 images: hours a model
    "figure_s5 --problem cifar10_resnet18 --num-steps 1500 --seeds 1 --attacks 'white noise' FGSM PGD",
    "figure_s5 --problem cifar10_resnet18 --num-steps 1500 --seeds 1 --attacks CW --num-attacked 100",
    "figure_s6 --problem cifar10_resnet18 --num-steps 1500 --seeds 1 --attacks 'white noise' PGD",
    "figure_s6 --problem cifar10_resnet18 --num-steps 1500 --seeds 1 --attacks CW --num-attacked 100",
    "table3 --columns all --regularizers none Jacobian --seeds-all 1",
    "table1 --columns all",
    "table2",
    "table1 --columns 1 3 --seeds 45",
    "figure3 --seeds 3",
    "figure_s5 --seeds 3",
    "figure2 --seeds 1",
    "figure_s6 --seeds 1",
    "beyond_attacks --models base all",
    "worst_case",
    "small_figure_s7",
    "sceptic --num-steps 15000",
    "sceptic --problem cifar10_ddnet --num-steps 15000",
)
GPU = (
    *("table3", "figure_s3", "figure_s5 --problem cifar10_ddnet", "figure_s6 --problem cifar10_ddnet"),
    *("figure_s4", "figure_s5 --problem cifar10_resnet18", "figure_s6 --problem cifar10_resnet18"),
    *("table1", "table2", "figure2", "figure3", "figure_s5", "figure_s6", "figure1", "cost"),
    *("beyond_attacks", "worst_case", "sceptic", "sceptic --problem cifar10_ddnet"),
)
SAME_STEP = {"cifar10_ddnet_gelu": "cifar10_ddnet"}  # taken to cost the same
VARIANTS = {1: "n = 1", 3: "n = 3", "exact": "exact"}


@dataclasses.dataclass(frozen=True)
class Config:
    """How much is run, and where it lies."""

    list: bool = False
    """Say what is missing, and run nothing."""
    gpu: bool = False
    """All at full length with the paper's seeds; of LeNet' the models of a cell in one program."""
    hours: float | None = None
    """Stop after as many; None: when all is there."""
    beside: int = 1
    """Commands that run at once, if they want no model in common; on a GPU some train while others are compiled."""
    out: Path = RESULTS
    runs: Path = RUNS
    data_dir: str | None = None
    """Prepared tensorflow-datasets folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""


QUICK = {"list": True}


class Line(NamedTuple):
    """One command of the book."""

    command: str
    missing: int  # models that a result file lacks
    hours: float | None  # of their training on two CPU cores; None: no step of theirs was timed
    models: frozenset = frozenset()  # those models, (recipe, seed)


def run(config: Config) -> list[str]:
    """Print the book, then run what is missing, line by line; returns the commands that did not finish.

    Raises:
        ValueError: hours is no positive number, or beside is below 1.
    """
    if config.hours is not None and not config.hours > 0:
        raise ValueError(f"hours must be positive, got {config.hours}")
    if config.beside < 1:
        raise ValueError(f"beside must be at least 1, got {config.beside}")
    counted: set = set()
    lines = [line_of(command, config, counted) for command in (GPU if config.gpu else CPU)]
    print(listing(lines))
    deadline = time.monotonic() + 3600 * (config.hours or 1e6)
    failed = work([] if config.list else [line for line in lines if line.missing], config, deadline)
    if failed:
        print("\nnot finished:\n" + "\n".join(failed))
    return failed


def listing(lines: list[Line]) -> str:
    """A table of the book."""
    hours = lambda h: "not timed" if h is None else f"{h:.1f}"
    rows = [[str(i), line.command, str(line.missing), hours(line.hours)] for i, line in enumerate(lines, 1)]
    total = sum(line.hours or 0 for line in lines)
    head = ["", "python -m experiments", "models missing", "hours of training, two CPU cores"]
    return results.table(head, rows) + f"\n\n{total:.0f} hours in all, without the attacks"


def line_of(command: str, config: Config, counted: set) -> Line:
    """What a command would still do; the training of models that lines before it make, `counted`, is not its own."""
    module, options = parsed(command, config)
    if not hasattr(module, "cells"):
        wanted = [options.results / f"{name}.json" for name in module.files(options)]
        return Line(command, sum(not path.exists() for path in wanted), None)
    found = {}
    for cell in module.cells(options):
        path = options.results / f"{cell.name}.json"
        held = record.read_json(path)["models"] if path.exists() else {}
        for seed in cell.seeds:
            if str(seed) not in held:
                found[cell.name, seed] = cell
    untrained = {
        (cell.recipe, seed)
        for (_, seed), cell in found.items()
        if not zoo.model_path(cell.recipe, seed, options, cell.watch).exists()
    } - counted
    counted |= untrained
    hours = [hours_of(recipe) for recipe, _ in untrained]
    wanted = frozenset((cell.recipe, seed) for (_, seed), cell in found.items())
    return Line(command, len(found), None if None in hours else sum(hours), wanted)


def parsed(command: str, config: Config):
    """The experiment and its Config."""
    from experiments.__main__ import parse

    name, *arguments = shlex.split(command)
    module, options = parse(name, arguments)
    return module, dataclasses.replace(options, out=config.out, runs=config.runs, data_dir=config.data_dir)


def hours_of(recipe: Recipe) -> float | None:
    """Of a training on two CPU cores, by the steps that `cost` timed; a smaller batch takes its share of a step."""
    name = SAME_STEP.get(recipe.problem.name, recipe.problem.name)
    timed = (results.read(f"cost/{name}") or {}).get("milliseconds")
    if timed is None:
        return None
    step = timed[VARIANTS[recipe.num_projections] if recipe.lambda_jr else "plain"]
    step += timed["plain"] * (recipe.pgd_steps or bool(recipe.max_epsilon))  # the attack's own gradients
    images = 10 * recipe.samples_per_class if recipe.samples_per_class else recipe.batch_size
    return recipe.num_steps * step * images / recipe.problem.batch_size / 3.6e6


def work(waiting: Iterable[Line], config: Config, deadline: float) -> list[str]:
    """Run lines in their order, `beside` at once; those that failed. At the deadline all are told to save and stop."""
    waiting, failed = list(waiting), []
    running: dict[subprocess.Popen, Line] = {}

    def ended(process):
        line, code = running.pop(process), process.wait()
        if code:
            failed.append(f"{line.command}: exit status {code}")

    try:
        while (waiting or running) and time.monotonic() < deadline:
            if line := following(waiting, running.values(), config.beside):
                print(f"\n{line.command}", flush=True)
                waiting.remove(line)
                running[start(line.command, config)] = line
            else:
                time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                ended(process)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in list(running):
            ended(process)
    return failed


def following(waiting: Iterable[Line], running: Iterable[Line], beside: int) -> Line | None:
    """The first line that may start: there is room for it, and none that runs wants one of its models."""
    busy = list(running)
    free = (line for line in waiting if not any(line.models & other.models for other in busy))
    return next(free, None) if len(busy) < beside else None


def start(command: str, config: Config) -> subprocess.Popen:
    """The process of a command; several on one GPU must not each take most of its memory beforehand."""
    own = ["--out", str(config.out), "--runs", str(config.runs)]
    own += ["--data-dir", config.data_dir] if config.data_dir else []
    environment = os.environ | ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if config.beside > 1 else {})
    return subprocess.Popen([sys.executable, "-m", "experiments", *shlex.split(command), *own], env=environment)
