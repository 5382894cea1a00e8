"""Table 1's few-shot cells from other initial parameters: the paper says Xavier, and not which of the two.

Command:    python -m experiments initializations [--columns 1] [--regularizers none]
Paper:      1 sample per class, no regularization: 49.2 +- 1.9 %.
Time:       one CPU core: about 12 seconds a model for 1 sample per class.
Leaves:     experiments/results/initializations/COLUMN-REGULARIZER-INITIALIZATION[-draw-N].json, by seed.
"""

import dataclasses
import itertools
from functools import partial
from typing import Literal

import numpy as np

from experiments.lab import measure, options
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.page import results
from experiments.page.results import NAMES
from experiments.studies import generalization
from experiments.studies.generalization import Regularizer


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """The subset of a seed stays that of Table 1."""

    columns: tuple[Literal["1", "3", "10", "30"], ...] = ("1",)
    """Samples per class."""
    regularizers: tuple[Regularizer, ...] = ("none",)
    initializations: tuple[Literal["xavier", "xavier_normal", "torch"], ...] = ("xavier", "xavier_normal", "torch")
    """"xavier", uniform, is what Table 1 itself starts from."""
    draws: tuple[int, ...] = (1,)
    """Each draws other initial parameters. 0: the numbers of Table 1's, scaled as the initialization asks."""
    seeds: int = 15


QUICK = options.QUICK | {"initializations": ("torch",)}


def cells(config: Config) -> list[Cell]:
    """Every cell but Table 1's own."""
    clean, found = partial(measure.clean, norms=0, data_dir=config.data_dir), []
    every = itertools.product(config.columns, config.regularizers, config.initializations, config.draws)
    for column, regularizer, initialization, draw in every:
        if (initialization, draw) != ("xavier", 0):
            recipe = generalization.recipe(MNIST_LENET, column, regularizer).shortened(config.num_steps)
            recipe = dataclasses.replace(recipe, initialization=initialization, draw=draw)
            name = f"initializations/{column}-{regularizer}-{initialization}" + f"-draw-{draw}" * bool(draw)
            found.append(Cell(name, recipe, range(config.seeds), {}, clean))
    return found


def table() -> str:
    """Beside Table 1's models of the same seeds: means, difference by seed, and correlation over the seeds."""
    rows = []
    for file in results.names("initializations/*"):
        column, regularizer, initialization, *draw = file.split("/")[1].split("-", 3)
        first, second = (results.by_seed(n) for n in (f"table1/{column}-{regularizer}", file))
        seeds = [seed for seed in first if seed in second]
        both = [[results.percent(models[seed]) for seed in seeds] for models in (first, second)]
        moved = results.paired(first, second, results.percent)
        how = f"drawn anew, {draw[0].split('-')[1]}" if draw else "Table 1's numbers, rescaled"
        together = f"{np.corrcoef(both)[0, 1]:.2f}" if len(seeds) > 2 else ""
        rows.append([column, NAMES[regularizer], initialization, how, *(results.spread(v, 1) for v in both),
                     results.spread(moved, 1), together])  # fmt: skip
    header = ["samples per class", "regularizer", "initialization", "initial parameters", "Table 1 (xavier), %",
              "ours, %", "difference by seed", "correlation"]  # fmt: skip
    return results.table(header, rows) if rows else "not run"


TABLES = {"initializations": table}
