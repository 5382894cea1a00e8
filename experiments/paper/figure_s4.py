"""Figure S4: robustness of ResNet-18 on CIFAR-10 against white noise (4 regularizers), PGD and CW (4 defences).

Command:    python -m experiments figure_s4 [--num-steps 1500]
Paper:      curves only, the claims of Figure S3; the base models have L2 and no dropout.
BatchNorm:  running statistics by momentum 0.9, of the images that the cross-entropy sees, and of them alone; the
            penalty takes the network at the statistics of its batch, held: a sample's Jacobian is then its own. The
            paper says neither. Attacked and tested is the network at the running statistics.
Time:       one CPU core: 16 to 35 hours a model at full length; meant for a GPU.
Leaves:     experiments/results/figure_s4/noise-REGULARIZER.json and ATTACK-DEFENCE.json, by seed.
"""

from experiments.lab.problems import CIFAR10_RESNET18
from experiments.page import results
from experiments.page.elements import Element
from experiments.studies import robustness

FOLDER = "figure_s4"
Config = robustness.Config
QUICK = robustness.QUICK | {"regularizers": (), "defences": ("none",), "num_steps": 1, "num_attacked": 2}
QUICK |= {"dispatch": 1, "checkpoint_every": 1}


def cells(config: Config):
    """All three panels."""
    return robustness.cells(FOLDER, CIFAR10_RESNET18, config)


ELEMENTS = [
    Element(
        "Figure S4",
        "under white noise and CW the penalty helps (here: above no regularization and no defence); ResNet-18",
        lambda: robustness.claim(results.longest(FOLDER), CIFAR10_RESNET18),
        lambda: results.names(f"{results.longest(FOLDER)}/*"),
    )
]
TABLES = {"figure_s4": lambda: robustness.table(results.longest(FOLDER), "L2")}
FIGURES = {"figure_s4": lambda: robustness.figure(results.longest(FOLDER), CIFAR10_RESNET18)}
