"""Ways of training, compared at equal cost and equal clean accuracy; all on the base of the paper's defences."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from experiments.lab.problems import CIFAR10_DDNET, CIFAR10_DDNET_GELU, Problem
from experiments.lab.recipes import Recipe, defences, jacobian

REAL = {"mnist": 0.3, "cifar10": 8 / 255}  # radii in L-infinity, raw pixels, that others train and attack at
COSTS = {"Jacobian": 2, "input gradient": 2, "input gradient, L1": 2, "noise consistency": 2, "spectral norm": 3}
SIZES = {"input gradient": (0.01, 0.1, 1.0), "input gradient, L1": (0.01, 0.1, 1.0)}
SIZES |= {"Jacobian": (0.01, 0.03, 0.1), "noise consistency": (0.01, 0.1), "spectral norm": (0.01, 0.1)}
STEPS = {"1 step": 1, "7 steps": 7}  # of PGD
# the base network with a smooth activation, where its own is not: the L1 norm of the input gradient asks for one
SMOOTH = {CIFAR10_DDNET.name: CIFAR10_DDNET_GELU}
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
    for family, cost in COSTS.items():
        for size in SIZES[family]:
            penalised = jacobian(problem, size) if family == "Jacobian" else {"lambda_jr": size, "relative": family}
            network = {"problem": smooth} if family == "input gradient, L1" else {}
            found[f"{family}, {size:g}"] = Method(dataclasses.replace(base, **penalised, **network), family, cost)
    trained = {"FGSM, the paper's epsilon": ({"max_epsilon": problem.max_epsilon}, 2)}
    trained |= {f"PGD, {steps}": ({"max_epsilon": real, "pgd_steps": n}, 1 + n) for steps, n in STEPS.items()}
    beside = trained["PGD, 1 step"][0] | jacobian(problem, problem.lambda_jr)
    trained["PGD, 1 step, and Jacobian"] = (beside, 3)
    return found | {name: Method(dataclasses.replace(base, **terms), name, c) for name, (terms, c) in trained.items()}


def at_equal_accuracy(known: Mapping[str, Method], clean: Mapping[str, Iterable[float]]) -> dict[str, str | None]:
    """{family: the strongest of its methods with at most `NEAR` points less clean accuracy than the base, or None}.

    Clean accuracy alone decides, so that nothing is chosen by what is compared afterwards.

    Args:
        known: of `methods`.
        clean: clean accuracies, %, of the seeds of each method that ran.
    """
    mean = {name: float(np.mean(list(values))) for name, values in clean.items()}
    found: dict[str, str | None] = {}
    for name, method in known.items():
        if "base" in mean and name in mean:
            near = mean[name] >= mean["base"] - NEAR
            found[method.family] = name if near else found.get(method.family)
    return found
