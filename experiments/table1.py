"""Table 1: test accuracy of LeNet' on MNIST from 1, 3, 10, 30 samples per class and all, and ||J||_F, 5 regularizers.

Command:    python -m experiments table1 [--columns 1 3 10 30 all] [--regularizers none L2 dropout Jacobian all]
Paper:      all samples: 98.9 / 99.2 / 98.6 / 99.0 / 99.1 %, ||J||_F 32.9 / 4.6 / 21.5 / 1.1 / 1.2.
Time:       one CPU core: up to 6 minutes a model of 30 per class, 10 to 30 of "all"; any can be killed.
Leaves:     experiments/results/table1/COLUMN-REGULARIZER.json, by seed; models in runs/models.
"""

import dataclasses
import itertools
from typing import Literal

from experiments import zoo
from experiments.recipes import REGULARIZERS, Recipe

Column = Literal["1", "3", "10", "30", "all"]
Regularizer = Literal["none", "L2", "dropout", "Jacobian", "all"]


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of table1; the defaults are the paper's."""

    columns: tuple[Column, ...] = ("1", "3", "10", "30", "all")
    """Samples per class."""
    regularizers: tuple[Regularizer, ...] = ("none", "L2", "dropout", "Jacobian", "all")
    seeds: int = 15
    """Models of each few-shot cell; seed 0, 1, ..."""
    seeds_all: int = 5
    """Models of each cell of the column "all"."""
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 10,000, and 150,000 for "all"."""
    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""

    @property
    def recipes(self) -> dict[tuple[Column, Regularizer], Recipe]:
        """How the models of every cell are trained."""
        cells = itertools.product(self.columns, self.regularizers)
        few = lambda recipe, column: recipe if column == "all" else recipe.few_shot(int(column))
        return {(c, r): few(REGULARIZERS[r], c).shortened(self.num_steps) for c, r in cells}


QUICK = zoo.QUICK | {
    "columns": ("1", "all"),
    "regularizers": ("none", "all"),
    "seeds": 2,
    "seeds_all": 1,
    "num_steps": 20,
    "norms": 100,
    "together": 2,
}


def run(config: Config):
    """Train and evaluate every model that the results lack, cell by cell."""
    test = zoo.images("mnist", "test", config.data_dir)
    for (column, regularizer), recipe in config.recipes.items():
        path = config.out / "table1" / f"{column}-{regularizer}.json"
        seeds = range(config.seeds_all if column == "all" else config.seeds)
        models = zoo.fill_clean(path, recipe, test, seeds, config, config.norms)
        accuracies = ", ".join(f"{100 * m['accuracy']:.1f}" for m in models.values())
        print(f"{column} samples per class, {regularizer}: {accuracies} %")
