"""Train one committed model once more and compare: is what the results say what this machine makes?

Command:    python -m experiments verify table1/1-none --seed 3
Says:       every number of the model as committed, as made here, and how far the seeds of its cell scatter. Equal
            weights are equal numbers; another machine, or another version of XLA, rounds otherwise, and a training
            carries that far. A number within two standard deviations of the cell's seeds is called alike.
Time:       that of the model: seconds for 1 sample per class of MNIST, 10 minutes for "all".
Leaves:     the model in runs/verify; nothing in the results.
"""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments import RESULTS, RUNS
from experiments.lab import record, zoo
from experiments.lab.cells import Cell


@dataclasses.dataclass(frozen=True)
class Config:
    """Which model."""

    cell: Annotated[str, tyro.conf.Positional] = "table1/1-none"
    """A file of the results, without its .json: table1/1-none, 15000-steps/figure_s3/CW-none."""
    seed: int = 0
    """Of the model; one that the file holds."""
    results: Path = RESULTS
    """Where the file lies."""
    runs: Path = RUNS / "verify"
    """For the model that is trained here, or found there."""
    data_dir: str | None = None
    """Prepared tensorflow-datasets folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""


QUICK = {"cell": "table1/1-none"}


def run(config: Config) -> dict[str, tuple[float, float]]:
    """Train, measure, print a table; {number: (committed, here)}.

    Raises:
        ValueError: there is no such file or seed, or its command makes another configuration today.
    """
    committed = read(config)
    model_committed = committed["models"][str(config.seed)]
    cell = cell_of(config, committed)
    options = dataclasses.replace(parsed(config, committed)[1], runs=config.runs)
    ((_, model),) = zoo.train(cell.recipe, [config.seed], options, watch=cell.watch)
    here = numbers_of(json.loads(json.dumps(cell.measure(model, config.seed))))
    there = numbers_of(model_committed)
    others = [numbers_of(other) for other in committed["models"].values() if "diverged_at" not in other]
    rows = {name: (there[name], here[name]) for name in there if name in here}
    same = {True: "the same weights", False: "other weights", None: "which the file does not name"}
    known = model_committed.get("weights")
    print(f"{config.cell}, seed {config.seed}; weights: {same[known and known == model.weights]}")
    for name, (old, new) in rows.items():
        print(f"{name:<24} committed {old:<10.5g} here {new:<10.5g} {verdict(old, new, [o[name] for o in others])}")
    return rows


def read(config: Config) -> dict:
    """The result file, which holds the seed."""
    path = config.results / f"{config.cell}.json"
    if not path.exists():
        raise ValueError(f"cell must name a file of {config.results}, such as table1/1-none, got {config.cell!r}")
    committed = record.read_json(path)
    if str(config.seed) not in committed.get("models", {}):
        held = ", ".join(committed.get("models", {})) or "no models"
        raise ValueError(f"seed must be one that {path} holds, {held}; got {config.seed}")
    if step := committed["models"][str(config.seed)].get("diverged_at"):
        raise ValueError(f"seed must be one whose training stayed finite; {config.seed} diverged at step {step:,}")
    return committed


def parsed(config: Config, committed: dict):
    """The experiment and its Config, by the command that wrote the file."""
    from experiments.__main__ import parse

    name, *arguments = shlex.split(committed["environment"]["command"])[3:]
    module, found = parse(name, arguments)
    return module, dataclasses.replace(found, runs=config.runs, data_dir=config.data_dir)


def cell_of(config: Config, committed: dict) -> Cell:
    """How the model was trained and measured."""
    module, options = parsed(config, committed)
    if not hasattr(module, "cells"):
        name = module.__name__.rsplit(".", 1)[-1]
        raise ValueError(
            f"cell must be one of an experiment of cells, and {name}, which made {config.cell}, has none; "
            f"python -m experiments {name} --out FOLDER makes all of it once more"
        )
    known = {str(options.results.relative_to(options.out) / cell.name): cell for cell in module.cells(options)}
    command = committed["environment"]["command"]
    if config.cell not in known:
        raise ValueError(f"{command} makes {', '.join(known)}, and no {config.cell}")
    cell = known[config.cell]
    here = json.loads(json.dumps(cell.config()))
    if here != committed["config"]:
        changed = record.difference(committed["config"], here)
        raise ValueError(f"{command} makes another configuration today; (there, here) of what differs: {changed}")
    return cell


def numbers_of(metrics: dict, prefix: str = "") -> dict[str, float]:
    """Every number by its dotted name; of a list of distances the median and the share without one."""
    found = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            found |= numbers_of(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            found[prefix + name] = float(value)
        elif isinstance(value, list) and value and not isinstance(value[-1], dict):
            numbers = np.array([np.inf if v is None else v for v in value], float)
            found[f"{prefix}{name}, median"] = float(np.median(numbers))
        elif isinstance(value, list) and value:
            found |= numbers_of(value[-1], f"{prefix}{name}, last.")
    return found


def verdict(old: float, new: float, seeds: list[float]) -> str:
    """How far apart, beside the scatter of the cell's seeds."""
    if old == new:
        return "the same"
    if len(seeds) < 3 or not np.isfinite([old, new, *seeds]).all():
        return f"differs by {new - old:+.3g}; fewer than three seeds to judge it by"
    scatter = float(np.std(seeds, ddof=1))
    word = "alike" if abs(new - old) <= 2 * scatter else "NOT alike"
    return f"{word}: differs by {new - old:+.3g}, the seeds scatter by {scatter:.3g}"
