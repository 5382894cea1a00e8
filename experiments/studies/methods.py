"""Ways of training, compared at equal cost and equal clean accuracy; all on the base of the paper's defences."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.lab.problems import CIFAR10_DDNET, CIFAR10_DDNET_GELU, Problem
from experiments.lab.recipes import Recipe, defences, jacobian

REAL = {"mnist": 0.3, "cifar10": 8 / 255}  # radii in L-infinity, raw pixels, that others train and attack at
PENALTIES = {  # what a step costs in plain ones, by arithmetic, and the sizes of lambda_jr
    "Jacobian": (2, (0.01, 0.03, 0.1)),
    "input gradient": (2, (0.01, 0.1, 1.0)),
    "input gradient, L1": (2, (0.01, 0.1, 1.0)),
    "noise consistency": (2, (0.01, 0.1)),
    "spectral norm": (8 / 3, (0.01, 0.1)),  # one power iteration
}
# the base network with a smooth activation, where its own is not: the L1 norm of the input gradient asks for one
SMOOTH = {CIFAR10_DDNET.name: CIFAR10_DDNET_GELU}
RADII = {  # within which robust accuracy is asked for, by data set and norm
    "mnist": {"linf": (0.1, 0.3), "l2": (1.0, 1.5, 2.0)},
    "cifar10": {"linf": (2 / 255, 8 / 255), "l2": (0.25, 0.5)},
}
KINDS = ("clean", "worst", "smoothed", "corrupted")  # what is measured of each model
NEAR = 1.0  # points of clean accuracy below the base that still count as equal


class Method(NamedTuple):
    """A way of training, its family, and what a step costs in plain ones, by arithmetic."""

    recipe: Recipe
    family: str
    cost: float


def methods(problem: Problem) -> dict[str, Method]:
    """By name; those of a family stand in the order of their strength."""
    base, real = defences(problem)["none"], REAL[problem.dataset]
    smooth = SMOOTH.get(problem.name, problem)
    found = {"base": Method(base, "base", 1)}
    if smooth != problem:
        found["base, smooth"] = Method(dataclasses.replace(base, problem=smooth), "base, smooth", 1)
    for family, (cost, sizes) in PENALTIES.items():
        for size in sizes:
            penalised = jacobian(problem, size) if family == "Jacobian" else {"lambda_jr": size, "relative": family}
            network = {"problem": smooth} if family == "input gradient, L1" else {}
            found[f"{family}, {size:g}"] = Method(dataclasses.replace(base, **penalised, **network), family, cost)
    pgd = lambda steps: {"max_epsilon": real, "pgd_steps": steps}
    trained = {
        "FGSM, the paper's epsilon": ({"max_epsilon": problem.max_epsilon}, 2),
        "PGD, 1 step": (pgd(1), 2),
        "PGD, 7 steps": (pgd(7), 8),
        "PGD, 1 step, and Jacobian": (pgd(1) | jacobian(problem, problem.lambda_jr), 3),
    }
    return found | {name: Method(dataclasses.replace(base, **terms), name, c) for name, (terms, c) in trained.items()}


def at_equal_accuracy(known: Mapping[str, Method], clean: Mapping[str, Iterable[float]]) -> dict[str, str | None]:
    """{family: the strongest of its methods with at most `NEAR` points less clean accuracy than the base, or None}.

    Clean accuracy alone decides, so that nothing is chosen by what is compared afterwards.

    Args:
        known: of `methods`.
        clean: clean accuracies, %, of the seeds of each method that ran.
    """
    mean = {name: float(np.mean(list(values))) for name, values in clean.items()}
    if "base" not in mean:
        return {}
    found: dict[str, str | None] = {}
    for name, method in known.items():
        if name in mean:
            near = mean[name] >= mean["base"] - NEAR
            found[method.family] = name if near else found.get(method.family)
    return found
