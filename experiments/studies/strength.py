"""Figures S6 and S7: robustness against the size of lambda_jr, under white noise, PGD and CW."""

import dataclasses
import itertools
from functools import partial
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import Problem
from experiments.lab.recipes import Recipe, defences, jacobian
from experiments.page import plots, results
from experiments.page.elements import State, missing, of_claim
from experiments.studies.robustness import attack_cell

PANELS = "white noise", "PGD", "CW"


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """The values of lambda_jr are ours, around the paper's 0.01."""

    lambdas: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
    attacks: tuple[Literal["white noise", "PGD", "CW"], ...] = ("white noise", "PGD", "CW")
    num_attacked: int = 1000


QUICK = options.QUICK | {"lambdas": (0.1,), "attacks": ("white noise",), "num_attacked": 20, "norms": 50}


def recipe(problem: Problem, lambda_jr: float) -> Recipe:
    """The base of the defences, penalised."""
    return dataclasses.replace(defences(problem)["none"], **jacobian(problem, lambda_jr))


def cells(folder: str, problem: Problem, config: Config) -> list[Cell]:
    """Clean accuracy and norm, then each attack, by lambda_jr."""
    clean, found = partial(measure.clean, norms=config.norms, data_dir=config.data_dir, workers=config.workers), []
    for value in config.lambdas:
        whole = recipe(problem, value)
        short, seeds = whole.shortened(config.num_steps), range(config.seeds)
        found.append(Cell(f"{folder}/clean-{value:g}", short, seeds, {"norms": config.norms}, clean))
        for attack in config.attacks:
            found.append(attack_cell(f"{folder}/{record.slug(attack)}-{value:g}", whole, attack, config))
    return found


def values(folder: str) -> list[str]:
    """Those of lambda_jr that ran, in order."""
    return sorted((name.split("clean-")[1] for name in results.names(f"{folder}/clean-*")), key=float)


def medians(folder: str, value: str) -> list[list[float]]:
    """Median distances by attack, over the seeds."""
    found = (results.models(f"{folder}/{record.slug(attack)}-{value}") for attack in PANELS)
    return [list(map(results.median, models)) for models in found]


def claim(folder: str, problem: Problem, full_seeds: int = 5) -> tuple[State, str]:
    """The median CW distance rises with lambda_jr, from the smallest to the greatest that ran."""
    found = values(folder)
    cw = [results.by_seed(f"{folder}/CW-{value}") for value in found]
    if len(found) < 2 or not all(cw):
        return missing(results.names(f"{folder}/*"))
    rises = lambda: [results.paired(low, high, results.median) for low, high in itertools.pairwise(cw)]
    return of_claim(f"{folder}/CW-{found[-1]}", rises, problem.num_steps, full_seeds)


def table(folder: str, num_attacked: int = 1000) -> str:
    """Clean accuracy, norm and median distances by lambda_jr."""
    rows = []
    for value in values(folder):
        name = f"{folder}/clean-{value}"
        clean = results.models(name)
        rows.append(
            [
                value,
                results.steps(results.config(name)["recipe"]),
                results.spread(list(map(results.percent, clean)), 1),
                results.spread(list(map(results.norm, clean)), 2),
                *(results.spread(found, 2) for found in medians(folder, value)),
            ]
        )
    header = ["lambda_jr", "steps", "test accuracy, %", "‖J‖_F", *(f"{attack}, median L2" for attack in PANELS)]
    whole = results.table(header, rows) + results.fewer(results.names(f"{folder}/[PCw]*"), num_attacked)
    return whole if rows else "not run"


def figure(folder: str, problem: Problem):
    """Test accuracy against distance by lambda_jr; None where nothing was run."""
    found = values(folder)
    if not found:
        return None
    drawing, axes = plt.subplots(1, 3, figsize=(14, 4))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(found)))
    for axis, attack in zip(axes, PANELS, strict=True):
        grid = np.linspace(0, plots.REACH[problem.dataset][attack], 161)
        for value, colour in zip(found, colours, strict=True):
            seeds = results.models(f"{folder}/{record.slug(attack)}-{value}")
            if seeds:
                curves = [100 - plots.fooled_within(results.distances(m), grid) for m in seeds]
                plots.band(axis, grid, curves, colour, value)
        axis.set(title=attack, xlabel="L2 distance, raw pixels", ylabel="test accuracy, %", ylim=(0, 100))
        plots.legend(axis, title="lambda_jr")
    plots.say_length(drawing, results.num_steps(folder), problem.num_steps)
    return drawing
