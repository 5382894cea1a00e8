"""Table 1: test accuracy of LeNet' on MNIST from 1, 3, 10, 30 samples per class and all, and ||J||_F, 5 regularizers.

Command:    python -m experiments table1 [--columns 1 3 10 30 all] [--regularizers none L2 dropout Jacobian all]
Paper:      all samples: 98.9 / 99.2 / 98.6 / 99.0 / 99.1 %, ||J||_F 32.9 / 4.6 / 21.5 / 1.1 / 1.2.
Time:       one CPU core: up to 6 minutes a model of 30 per class, 10 to 30 of "all"; any can be killed.
Leaves:     experiments/results/table1/COLUMN-REGULARIZER.json, by seed; models in runs/models.
"""

import numpy as np

from experiments.lab.problems import MNIST_LENET
from experiments.page import results
from experiments.page.elements import Element
from experiments.page.results import NAMES
from experiments.paper import numbers
from experiments.studies import generalization

Config, QUICK = generalization.Config, generalization.QUICK
STUDY = generalization.Study("table1", MNIST_LENET, numbers.TABLE1, numbers.TABLE1_NORM)
FEW = numbers.COLUMNS[:-1]


def cells(config: Config):
    """Every cell of the table."""
    return generalization.cells("table1", MNIST_LENET, config)


def norms_two_ways() -> str:
    """Both readings of the mean of ||J||_F."""
    rows = []
    for name, label in NAMES.items():
        found = [m["jacobian_norm"] for m in STUDY.cell("all", name).values()]
        both = [results.spread([m[k] for m in found], 2) for k in ("mean", "rms")]
        rows.append([label, *both, str(numbers.TABLE1_NORM[name][0])])
    return results.table(["all samples", "mean of the norm", "root of the mean square", "paper"], rows)


def outside() -> str:
    """Every cell that differs from the paper's."""
    cells = STUDY.compared()
    found = [(label, results.compare(values, *against), against[0]) for label, values, *against in cells]
    marked = [line for line in found if "!" in line[1]]
    few = sum(not label.startswith(("all", "‖J‖")) for label, _, _ in marked)
    head = f"{len(marked)} of {sum(bool(values) for _, values, *_ in cells)} cells, {few} of them few-shot:"
    lines = [f"- {label}: {mean} ± {half} in the paper, {ours} here" for label, ours, (mean, half, _) in marked]
    return "\n".join([head, "", *lines])


def by_column() -> str:
    """Ours minus the paper's: the column's own offset, and how far the rows scatter about it."""
    rows = []
    for column in FEW:
        models = STUDY.column(column)
        ours = {name: results.interval(map(results.percent, models[name].values()))[0] for name in NAMES}
        offsets = [ours[name] - numbers.TABLE1[name][column][0] for name in NAMES]
        halves = [np.hypot(numbers.TABLE1[n][column][1], results.interval(map(results.percent, models[n].values()))[1])
                  for n in NAMES]  # fmt: skip
        scatter, expected = np.std(offsets, ddof=1), np.sqrt(np.mean(np.square(halves))) / 2.1
        rows.append([column, f"{np.mean(offsets):+.1f}", f"{scatter:.1f}", f"{expected:.1f}", str(len(models["none"]))])
    header = ["samples per class", "ours - paper, mean of the rows", "scatter of the rows about it",
              "scatter of rows on subsets of their own", "seeds"]  # fmt: skip
    return results.table(header, rows)


TABLES = {
    "table1": STUDY.table,
    "table1_paired": STUDY.paired,
    "table1_norms": norms_two_ways,
    "table1_outside": outside,
    "table1_by_column": by_column,
}
ELEMENTS = [Element("Table 1", "accuracy by samples per class, ‖J‖_F; LeNet', MNIST", STUDY.state, STUDY.files)]
