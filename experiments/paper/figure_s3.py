"""Figure S3: robustness of DDNet on CIFAR-10 against white noise (5 regularizers), PGD and CW (4 defences).

Command:    python -m experiments figure_s3
Paper:      curves only: as Figure 3, with mixed results under PGD when Jacobian and adversarial training are combined.
Time:       8 models of 150,000 steps: meant for a GPU.
Leaves:     experiments/results/figure_s3/noise-REGULARIZER.json and ATTACK-DEFENCE.json, by seed.
"""

from experiments.lab.problems import CIFAR10_DDNET
from experiments.page.elements import Element, missing
from experiments.studies import robustness

Config = robustness.Config
QUICK = robustness.QUICK | {"regularizers": (), "defences": ("none",), "num_steps": 2, "num_attacked": 4}


def cells(config: Config):
    """All three panels."""
    return robustness.cells("figure_s3", CIFAR10_DDNET, config)


ELEMENTS = [Element("Figure S3", "as Figure 3, DDNet on CIFAR-10", missing("`python -m experiments figure_s3`"))]
TABLES = {"figure_s3": lambda: robustness.table("figure_s3", "L2 and dropout")}
FIGURES = {"figure_s3": lambda: robustness.figure("figure_s3", CIFAR10_DDNET)}
