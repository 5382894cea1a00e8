"""Table 3: test accuracy of DDNet on CIFAR-10 from 1, 3, 10, 30 samples per class and all, and ||J||_F.

Command:    python -m experiments table3 [--columns all --num-steps 15000 --seeds-all 2]
Paper:      all samples: 76.8 / 77.8 / 80.7 / 75.4 / 78.6 %, ||J||_F 115.1 / 29.4 / 184.2 / 4.0 / 5.2.
Time:       one CPU core: 3 to 6 minutes a model of 1 per class, 4 to 10 hours of "all"; see `runbook --list`.
Leaves:     experiments/results/table3/COLUMN-REGULARIZER.json, by seed; models in runs/models.
"""

from experiments.lab.problems import CIFAR10_DDNET
from experiments.page.elements import Element
from experiments.paper import numbers
from experiments.studies import generalization

Config = generalization.Config
QUICK = generalization.QUICK | {"columns": ("1",), "regularizers": ("Jacobian",), "seeds": 1, "num_steps": 10}
STUDY = generalization.Study("table3", CIFAR10_DDNET, numbers.TABLE3, numbers.TABLE3_NORM)


def cells(config: Config):
    """Every cell of the table."""
    return generalization.cells("table3", CIFAR10_DDNET, config)


TABLES = {"table3": STUDY.table, "table3_paired": STUDY.paired, "table3_shortened": STUDY.shortened}
ELEMENTS = [Element("Table 3", "accuracy by samples per class, ‖J‖_F; DDNet, CIFAR-10", STUDY.state, STUDY.files)]
