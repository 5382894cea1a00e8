"""Figure S5: test error against fooling distance under white noise, FGSM, PGD and CW, without and with defence.

Command:    python -m experiments figure_s5 [--problem cifar10_ddnet --num-steps 15000]
Paper:      curves only: CW > PGD > FGSM > white noise in strength; a kink where PGD meets its cap of 32/255 (MNIST).
Panels:     (a, d) LeNet' on MNIST, (b, e) DDNet, (c, f) ResNet-18 on CIFAR-10.
Time:       2 CPU cores, LeNet': some 10 minutes a model, nearly all CW; nothing where figure3, S3 or S4 has run.
Leaves:     experiments/results/figure_s5[_PROBLEM]/ATTACK-DEFENCE.json, by seed.
"""

import dataclasses
import itertools
from functools import partial
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import PROBLEMS, Problem
from experiments.lab.recipes import defences
from experiments.page import plots, results
from experiments.page.elements import Element, State, missing, of_claim
from experiments.paper.numbers import FULL
from experiments.studies.robustness import attack_cell

ATTACKS, PANELS = ("white noise", "FGSM", "PGD", "CW"), ("none", "both")
NETWORKS = {"mnist_lenet": "LeNet', MNIST", "cifar10_ddnet": "DDNet, CIFAR-10", "cifar10_resnet18": "ResNet-18"}


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """The defaults are the paper's."""

    problem: Literal["mnist_lenet", "cifar10_ddnet", "cifar10_resnet18"] = "mnist_lenet"
    defences: tuple[Literal["none", "both"], ...] = PANELS
    """none: L2, and dropout but in ResNet-18; both: with Jacobian regularization and adversarial training."""
    attacks: tuple[Literal["white noise", "FGSM", "PGD", "CW"], ...] = ATTACKS
    num_attacked: int = 1000


QUICK = options.QUICK | {"defences": ("none",), "attacks": ("white noise", "FGSM"), "num_attacked": 20}


def cells(config: Config) -> list[Cell]:
    """Defence by defence."""
    problem = PROBLEMS[config.problem]
    folder, bases = problem.folder("figure_s5"), defences(problem)
    pairs = itertools.product(config.defences, config.attacks)
    return [attack_cell(f"{folder}/{record.slug(a)}-{name}", bases[name], a, config) for name, a in pairs]


def folder(problem: Problem) -> str:
    """Of the results of a network."""
    return results.longest(problem.folder("figure_s5"))


def models(problem: Problem, defence: str) -> dict[str, dict[str, dict]]:
    """Of each attack, by seed."""
    return {attack: results.by_seed(f"{folder(problem)}/{record.slug(attack)}-{defence}") for attack in ATTACKS}


def table() -> str:
    """Median fooling distance by attack."""
    rows = []
    for network, name in itertools.product(NETWORKS, PANELS):
        by_attack = models(PROBLEMS[network], name)
        ran = next((f"{folder(PROBLEMS[network])}/{record.slug(a)}-{name}" for a in ATTACKS if by_attack[a]), None)
        steps = results.steps(results.config(ran)["recipe"]) if ran else "not run"
        found = [list(map(results.median, seeds.values())) for seeds in by_attack.values()]
        medians = (results.spread(values, 2) for values in found)
        rows.append([NETWORKS[network], results.DEFENCE_NAMES[name], steps, *medians])
    short = results.fewer(name for network in NETWORKS for name in results.names(f"{folder(PROBLEMS[network])}/*"))
    return results.table(["median L2 distance", "defence", "steps", *ATTACKS], rows) + short


def figure():
    """Test error against fooling distance: a column for each network; None without results."""
    if not any(results.names(f"{folder(PROBLEMS[network])}/*") for network in NETWORKS):
        return None
    drawing, axes = plt.subplots(2, 3, figsize=(14, 8.4), sharey=True)
    letters = iter("abcdef")
    for row, name in zip(axes, PANELS, strict=True):
        for axis, network in zip(row, NETWORKS, strict=True):
            grid = np.linspace(0, plots.REACH[PROBLEMS[network].dataset]["all"], 401)
            for attack, seeds in models(PROBLEMS[network], name).items():
                if seeds:
                    curves = [plots.fooled_within(results.distances(m), grid) for m in seeds.values()]
                    plots.band(axis, grid, curves, plots.ATTACK_COLOURS[attack], attack)
            axis.set_title(title(next(letters), network, name), fontsize=10)
            axis.set(xlabel="L2 distance, raw pixels", ylim=(0, 100))
            plots.legend(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("test error, %")
    drawing.subplots_adjust(hspace=0.5)
    return drawing


def title(letter: str, network: str, defence: str) -> str:
    """Of a panel, with the length of a training that is shorter than the paper's."""
    ran, full = results.names(f"{folder(PROBLEMS[network])}/*"), PROBLEMS[network].num_steps
    steps = results.num_steps(folder(PROBLEMS[network])) if ran else full
    label = {"none": "no defence", "both": "Jacobian and adversarial"}[defence]
    return f"({letter}) {NETWORKS[network]}, {label}" + f"\n{plots.length(steps, full)}" * (steps != full)


def claim(network: str) -> tuple[State, str]:
    """CW is stronger than PGD, PGD than FGSM, FGSM than white noise, on the model without defence and shared images."""
    problem = PROBLEMS[network]
    found = models(problem, "none")
    if not all(found.values()):
        return missing(results.names(f"{folder(problem)}/*"))
    shared = min(
        len(m["distance"]) for seeds in found.values() for m in seeds.values()
    )  # images that all were measured on
    distance = lambda model: results.median(model, shared)
    gaps = lambda: [results.paired(strong, weak, distance) for weak, strong in itertools.pairwise(found.values())]
    return of_claim(f"{folder(problem)}/CW-none", gaps, problem.num_steps, FULL)


def about(network: str) -> list[str]:
    """That the claim is about."""
    return results.names(f"{folder(PROBLEMS[network])}/*-none")


ORDER = "CW > PGD > FGSM > white noise in strength (here: by median distance, without defence)"
ELEMENTS = [
    Element(f"Figure S5{panels}", f"{ORDER}; {NETWORKS[network]}", partial(claim, network), partial(about, network))
    for panels, network in zip(("a, d", "b, e", "c, f"), NETWORKS, strict=True)
]
TABLES = {"figure_s5": table}
FIGURES = {"figure_s5": figure}
