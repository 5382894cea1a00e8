"""Figure S6: robustness against the size of lambda_jr, under white noise, PGD and CW; LeNet', DDNet and ResNet-18.

Command:    python -m experiments figure_s6 [--problem cifar10_ddnet --num-steps 15000] [--attacks "white noise" PGD]
Paper:      curves only, base models with L2 and, but for ResNet-18, dropout: larger lambda_jr, larger distances, until
            accuracy falls.
Time:       2 CPU cores, LeNet': 10 minutes a model at full length, and 10 minutes for CW; DDNet: 50 times that.
Leaves:     experiments/results/figure_s6[_PROBLEM]/ATTACK-LAMBDA.json, by seed, and clean-LAMBDA.json.
"""

import dataclasses
from functools import partial
from typing import Literal

from experiments.lab.problems import CIFAR10_DDNET, CIFAR10_RESNET18, MNIST_LENET, PROBLEMS, Problem
from experiments.page import results
from experiments.page.elements import Element
from experiments.studies import strength

NETWORKS = {"LeNet'": MNIST_LENET, "DDNet": CIFAR10_DDNET, "ResNet-18": CIFAR10_RESNET18}


@dataclasses.dataclass(frozen=True)
class Config(strength.Config):
    """The defaults are the paper's, but for the values of lambda_jr."""

    problem: Literal["mnist_lenet", "cifar10_ddnet", "cifar10_resnet18"] = "mnist_lenet"


QUICK = strength.QUICK


def cells(config: Config):
    """The three panels of a network."""
    problem = PROBLEMS[config.problem]
    return strength.cells(problem.folder("figure_s6"), problem, config)


def folder(problem: Problem) -> str:
    """Of the results of a network."""
    return results.longest(problem.folder("figure_s6"))


ELEMENTS = [
    Element(
        f"Figure S6, {name}",
        "a larger lambda_jr gives larger fooling distances (here: by CW)",
        lambda problem=problem: strength.claim(folder(problem), problem),
        lambda problem=problem: results.names(f"{folder(problem)}/*"),
    )
    for name, problem in NETWORKS.items()
]
TABLES, FIGURES = {}, {}
for _problem in NETWORKS.values():
    TABLES[_problem.folder("figure_s6")] = partial(lambda p: strength.table(folder(p)), _problem)
    FIGURES[_problem.folder("figure_s6")] = partial(lambda p: strength.figure(folder(p), p), _problem)
