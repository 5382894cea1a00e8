"""Table 1's few-shot cells under other initial parameters: the paper says Xavier, and not which of the two.

Command:    python -m experiments initializations [--columns 1] [--regularizers none]
Paper:      1 sample per class, no regularization: 49.2 +- 1.9 %.
Time:       one CPU core: about 12 seconds a model for 1 sample per class.
Leaves:     experiments/results/initializations/COLUMN-REGULARIZER-INITIALIZATION.json, by seed; models in runs/models.
"""

import dataclasses
from typing import Literal

from experiments import zoo
from experiments.recipes import REGULARIZERS

# "xavier", uniform, is what Table 1 itself starts from
Initialization = Literal["xavier_normal", "torch"]


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of initializations."""

    columns: tuple[Literal["1", "3", "10", "30"], ...] = ("1",)
    """Samples per class."""
    regularizers: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = ("none",)
    initializations: tuple[Initialization, ...] = ("xavier_normal", "torch")
    seeds: int = 15
    num_steps: int | None = None
    """Shorter training; None: 10,000."""


QUICK = zoo.QUICK | {
    "seeds": 1,
    "num_steps": 20,
    "initializations": ("torch",),
}


def run(config: Config):
    """Train and evaluate every model that the results lack."""
    test = zoo.images("mnist", "test", config.data_dir)
    cells = [(c, r, i) for c in config.columns for r in config.regularizers for i in config.initializations]
    for column, regularizer, initialization in cells:
        cell = REGULARIZERS[regularizer].few_shot(int(column)).shortened(config.num_steps)
        recipe = dataclasses.replace(cell, initialization=initialization)
        path = config.out / "initializations" / f"{column}-{regularizer}-{initialization}.json"
        models = zoo.fill_clean(path, recipe, test, range(config.seeds), config, norms=0)
        accuracies = ", ".join(f"{100 * m['accuracy']:.1f}" for m in models.values())
        print(f"{column} samples per class, {regularizer}, {initialization}: {accuracies} %")
