"""Table 1's few-shot cells with the penalty on the network without dropout: the paper does not say what it penalises.

Command:    python -m experiments dropout_in_penalty [--columns 1]
Paper:      1 sample per class, all combined: 51.7 +- 2.1 %.
Time:       one CPU core: about 20 seconds a model for 1 sample per class.
Leaves:     experiments/results/dropout_in_penalty/COLUMN.json, by seed; models in runs/models.
"""

import dataclasses
from functools import partial
from typing import Literal

from experiments.lab import measure, options
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.page import results
from experiments.studies import generalization


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """Table 1's row "all combined", but for what is penalised; there both branches share the dropout mask."""

    columns: tuple[Literal["1", "3", "10", "30"], ...] = ("1",)
    """Samples per class."""
    seeds: int = 15


QUICK = options.QUICK


def cells(config: Config) -> list[Cell]:
    """A column each."""
    clean, found = partial(measure.clean, norms=0, data_dir=config.data_dir), []
    for column in config.columns:
        recipe = generalization.recipe(MNIST_LENET, column, "all").shortened(config.num_steps)
        recipe = dataclasses.replace(recipe, penalised="eval mode")
        found.append(Cell(f"dropout_in_penalty/{column}", recipe, range(config.seeds), {}, clean))
    return found


def table() -> str:
    """With and without dropout in the penalty, over the seeds that both have, and the difference by seed."""
    rows = []
    columns = (file.split("/")[1] for file in results.names("dropout_in_penalty/*"))
    for column in sorted(columns, key=int):
        first, second = (results.by_seed(file) for file in (f"table1/{column}-all", f"dropout_in_penalty/{column}"))
        both = [[results.percent(m[s]) for s in first.keys() & second.keys()] for m in (first, second)]
        moved = results.paired(first, second, results.percent)
        rows.append([column, *(results.spread(values, 1) for values in both), results.spread(moved, 1)])
    header = [
        "samples per class",
        "Table 1 (one mask for both branches)",
        "penalty without dropout",
        "difference by seed",
    ]
    return results.table(header, rows) if rows else "not run"


TABLES = {"dropout_in_penalty": table}
