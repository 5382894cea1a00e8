"""Table 2: LeNet' trained on all of MNIST, tested on USPS, 5 regularizers: does stability carry to another domain?

Command:    python -m experiments table2
Paper:      80.4 / 83.3 / 81.9 / 81.3 / 85.7 % for none / L2 / dropout / Jacobian / all.
Time:       seconds, after table1's models of the column "all", which it trains where they are missing.
Leaves:     experiments/results/table2/REGULARIZER.json, by seed.
"""

import dataclasses
from functools import partial
from typing import Literal

from experiments.lab import measure, options
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import regularizers
from experiments.page import elements, results
from experiments.page.results import NAMES
from experiments.paper import numbers

RECIPES = regularizers(MNIST_LENET)


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """The defaults are the paper's."""

    regularizers: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = tuple(RECIPES)


QUICK = options.QUICK | {"regularizers": ("none",)}


def cells(config: Config) -> list[Cell]:
    """The models of the column "all" on the test images of USPS, upsampled to 28x28."""
    usps = partial(measure.clean, norms=0, data_dir=config.data_dir, dataset="usps")
    recipes = {name: RECIPES[name].shortened(config.num_steps) for name in config.regularizers}
    return [Cell(f"table2/{name}", recipe, range(config.seeds), {}, usps) for name, recipe in recipes.items()]


def ours(name: str) -> list[float]:
    """Accuracies of a regularizer, in %."""
    return list(map(results.percent, results.models(f"table2/{name}", RECIPES[name].config())))


def table() -> str:
    """Accuracy on USPS."""
    printed = ["paper", *(f"{numbers.TABLE2[name][0]} ± {numbers.TABLE2[name][1]}" for name in NAMES)]
    found = [results.compare(ours(name), numbers.TABLE2[name]) for name in NAMES]
    return results.table(["USPS", *NAMES.values()], [printed, ["ours", *found]])


TABLES = {"table2": table}
ELEMENTS = [
    elements.Element(
        "Table 2",
        "accuracy on USPS of models trained on MNIST",
        lambda: elements.of_cells((ours(name), numbers.TABLE2[name]) for name in NAMES),
        lambda: results.names("table2/*"),
    )
]
