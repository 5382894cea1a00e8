"""A cell: one file of results, models of one recipe by seed. `fill` trains and measures what the files lack."""

import logging
import numbers
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.lab import record, zoo
from experiments.lab.options import Options
from experiments.lab.recipes import Recipe
from experiments.lab.zoo import Model, Watch
from jacreg_jax import training

LOG = logging.getLogger(__name__)


class Cell(NamedTuple):
    """What one result file holds, and how it comes about."""

    name: str  # of the file in the results folder, "table1/1-none"
    recipe: Recipe
    seeds: Sequence[int]
    settings: dict  # what the numbers depend on beside recipe and seed
    measure: Callable[[Model, int], dict]  # (model, seed) -> metrics
    watch: Watch | None = None

    def config(self) -> dict:
        """As the file says it."""
        return {"recipe": self.recipe.config()} | self.settings


def fill(cells: Iterable[Cell], options: Options) -> dict[str, dict[str, dict]]:
    """{cell: {seed: metrics}} of the seeds that the cells ask for; what the files lack is trained and measured.

    Every metric stands beside the digest of the weights that it is of. A model that diverged has the step instead.
    """
    cells, found = list(cells), {}
    beside = dict.fromkeys(cell.recipe for cell in cells)
    for cell in cells:
        path = options.results / f"{cell.name}.json"
        check_weights(cell, path, options)

        def compute(seeds, cell=cell):
            for seed in seeds:
                yield seed, outcome(cell, seed, seeds, options, beside)

        found[cell.name] = fill_file(path, cell.config(), cell.seeds, compute)
    return found


def outcome(cell: Cell, seed: int, seeds: Sequence[int], options: Options, beside: Iterable[Recipe]) -> dict:
    """What is measured of one model; {"diverged_at": step} where its training stopped being finite."""
    try:
        model = zoo.trained(cell.recipe, seed, seeds, options, beside, cell.watch)
    except training.NonFiniteError as error:
        LOG.warning(error)
        return {"diverged_at": error.step}
    return cell.measure(model, seed) | {"weights": model.weights}


def fill_file(path: Path, config: dict, seeds: Iterable[int], compute: Callable) -> dict[str, dict]:
    """{seed: metrics} of one file; says what was found, and whether anything was run for it."""
    computed, seeds = [], list(seeds)

    def noted(missing):
        for seed, metrics in compute(missing):
            computed.append(seed)
            yield seed, metrics

    models = record.fill(path, config, seeds, noted)["models"]
    for seed in seeds:
        print(f"{path.parent.name}/{path.stem}, seed {seed}: {brief(models[str(seed)])}")
    if not computed:
        print(f"read from {path}, nothing trained; --out FOLDER to run it")
    return {str(seed): models[str(seed)] for seed in seeds}


def check_weights(cell: Cell, path: Path, options: Options):
    """That a result is of the models that lie in the runs folder, where both are there.

    Raises:
        ValueError: it is of other weights, such as a model that was trained once more.
    """
    models = record.read_result(path, cell.config())["models"]
    for seed in cell.seeds:
        file, written = zoo.model_path(cell.recipe, seed, options, cell.watch), models.get(str(seed), {}).get("weights")
        if written and file.exists() and (here := zoo.load(file, cell.recipe.problem).weights) != written:
            raise ValueError(
                f"{path} holds seed {seed} with the weights {written}, and {file} is a model with others, {here}. "
                "Choose another folder with --out, or remove one of the two"
            )


def brief(metrics: dict) -> str:
    """One line of metrics: numbers as they are, the median of distances, the ends of a curve."""
    return ", ".join(part for name, value in metrics.items() if (part := _brief(name, value)))


def _brief(name: str, value) -> str:
    if isinstance(value, dict):
        return f"{name} ({brief(value)})"
    if isinstance(value, numbers.Number):
        return f"{name} {value:.4g}"
    if not isinstance(value, list) or not value or name == "steps":
        return ""
    if name == "distance":
        return f"median distance {np.median([np.inf if v is None else v for v in value]):.3f}"
    ends = [brief(v) if isinstance(v, dict) else f"{v:.4g}" for v in (value[0], value[-1])]
    return f"{name} {ends[0]} ... {ends[1]}"
