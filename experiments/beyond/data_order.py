"""Table 1 and 2's models of all samples, the batches in another order: the paper does not say how it draws them.

Command:    python -m experiments data_order [--num-steps 15000]
Paper:      none, Jacobian: 98.9 / 99.0 %, USPS 80.4 / 81.3 %, ||J||_F 32.9 / 1.1.
Time:       one CPU core: 9 minutes a model without a regularizer, 20 with Jacobian, at full length.
Leaves:     experiments/results/data_order/REGULARIZER-ORDER.json, by seed; models in runs/models.
"""

import dataclasses
import itertools
from typing import get_args

from experiments.lab import measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import Order, regularizers
from experiments.page import results
from experiments.page.results import NAMES
from experiments.studies.generalization import Regularizer

RECIPES = regularizers(MNIST_LENET)


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """The same seeds, so the same initial parameters and draws, and other batches."""

    regularizers: tuple[Regularizer, ...] = ("none", "Jacobian")
    orders: tuple[Order, ...] = get_args(Order)
    seeds: int = 3


QUICK = options.QUICK | {
    "regularizers": ("none",),
    "orders": ("same every epoch", "with replacement"),
    "norms": 50,
}


def cells(config: Config) -> list[Cell]:
    """On MNIST and USPS."""

    def both(model, seed):
        usps = measure.clean(model, seed, norms=0, data_dir=config.data_dir, dataset="usps")
        return measure.clean(model, seed, norms=config.norms, data_dir=config.data_dir) | {"usps": usps["accuracy"]}

    found = []
    for regularizer, order in itertools.product(config.regularizers, config.orders):
        recipe = dataclasses.replace(RECIPES[regularizer].shortened(config.num_steps), order=order)
        name = f"data_order/{regularizer}-{record.slug(order)}"
        found.append(Cell(name, recipe, range(config.seeds), {"norms": config.norms}, both))
    return found


def table() -> str:
    """Models of all samples by the order of their batches, other things equal."""
    rows = []
    for (name, label), order in itertools.product(NAMES.items(), get_args(Order)):
        file = f"{results.longest('data_order')}/{name}-{record.slug(order)}"
        if found := results.models(file):
            shares = [results.spread([100 * m[k] for m in found], 2) for k in ("accuracy", "usps")]
            norms = results.spread(list(map(results.norm, found)), 2)
            rows.append([label, order, results.steps(results.config(file)["recipe"]), *shares, norms])
    header = ["all samples", "order of the batches", "steps", "test accuracy, %", "USPS, %", "‖J‖_F"]
    return results.table(header, rows) if rows else "not run"


TABLES = {"data_order": table}
