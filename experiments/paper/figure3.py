"""Figure 3: robustness of LeNet' on MNIST against white noise (5 regularizers), PGD and CW (4 defences).

Command:    python -m experiments figure3
Paper:      curves only: Jacobian regularization is the most robust in (a); alone it beats adversarial training in
            (b, c), and both together are best. The base models of (b, c) have L2 and dropout.
Time:       2 CPU cores: noise seconds, PGD a minute, CW some 10 minutes a model; after the training of 8 models.
Leaves:     experiments/results/figure3/noise-REGULARIZER.json and ATTACK-DEFENCE.json, by seed.
"""

import itertools

from experiments.lab.problems import MNIST_LENET
from experiments.page import results
from experiments.page.elements import Element, of_claim
from experiments.paper.numbers import FULL
from experiments.studies import robustness

Config, QUICK = robustness.Config, robustness.QUICK


def cells(config: Config):
    """All three panels."""
    return robustness.cells("figure3", MNIST_LENET, config)


def noise_gains() -> list[list[float]]:
    """Of Jacobian alone over every other regularizer, at the deviations of the table."""
    sigmas = results.config("figure3/noise-Jacobian")["sigmas"]
    found = {name: results.by_seed(f"figure3/noise-{name}") for name in results.NAMES}
    at = lambda s: lambda model: model["accuracy"][sigmas.index(s)]
    others = [models for name, models in found.items() if name != "Jacobian"]
    return [results.paired(other, found["Jacobian"], at(s)) for other in others for s in robustness.SIGMAS]


def attack_gains() -> list[list[float]]:
    """Of Jacobian alone over adversarial training, and of both together over Jacobian alone, by PGD and by CW."""
    gains = []
    for attack, value in (("PGD", lambda model: robustness.survivors(model, 32)), ("CW", results.median)):
        names = ("adversarial", "Jacobian", "both")
        by_strength = [results.by_seed(f"figure3/{attack}-{name}") for name in names]
        gains += [results.paired(less, more, value) for less, more in itertools.pairwise(by_strength)]
    return gains


ELEMENTS = [
    Element(
        "Figure 3a",
        "under white noise, Jacobian is the most robust regularizer",
        lambda: of_claim("figure3/noise-Jacobian", noise_gains, MNIST_LENET.num_steps, FULL),
        lambda: results.names("figure3/noise-*"),
    ),
    Element(
        "Figure 3b, c",
        "under PGD and CW, Jacobian alone outperforms adversarial training, and both are best",
        lambda: of_claim("figure3/CW-Jacobian", attack_gains, MNIST_LENET.num_steps, FULL),
        lambda: results.names("figure3/[PC]*"),
    ),
]
TABLES = {"figure3": lambda: robustness.table("figure3", "L2 and dropout")}
FIGURES = {"figure3": lambda: robustness.figure("figure3", MNIST_LENET)}
