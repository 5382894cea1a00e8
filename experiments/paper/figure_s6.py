"""Figure S6 (LeNet' panels): robustness against the size of lambda_jr, under white noise, PGD and CW.

Command:    python -m experiments figure_s6 [--attacks "white noise" PGD]
Paper:      curves only, base models with L2 and dropout: larger lambda_jr, larger distances, until accuracy falls.
Time:       2 CPU cores: an hour a model at full length, and 10 minutes for CW.
Leaves:     experiments/results/figure_s6/ATTACK-LAMBDA.json, by seed, and clean-LAMBDA.json.
"""

import itertools

import numpy as np

from experiments.lab.problems import MNIST_LENET
from experiments.page.elements import Element, missing, of_claim
from experiments.paper.numbers import FULL
from experiments.studies import strength

Config, QUICK = strength.Config, strength.QUICK


def cells(config: Config):
    """Every panel of LeNet'."""
    return strength.cells("figure_s6", MNIST_LENET, config)


def holds() -> bool:
    """Median CW distance rises with lambda_jr."""
    cw = [np.mean(strength.medians("figure_s6", value)[-1]) for value in strength.values("figure_s6")]
    return all(low < high for low, high in itertools.pairwise(cw))


ELEMENTS = [
    Element(
        "Figure S6, LeNet'",
        "a larger lambda_jr gives larger fooling distances (here: by CW)",
        lambda: of_claim("figure_s6/CW-0.01", holds, MNIST_LENET.num_steps, FULL),
    ),
    Element("Figure S6, DDNet and ResNet-18", "the same on CIFAR-10", missing("no experiment yet")),
]
TABLES = {"figure_s6": lambda: strength.table("figure_s6")}
FIGURES = {"figure_s6": lambda: strength.figure("figure_s6", MNIST_LENET)}
