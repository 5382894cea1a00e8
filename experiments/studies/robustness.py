"""Figures 3, S3 and S4: accuracy under white noise by regularizer, under PGD and CW by defence."""

import dataclasses
from functools import partial
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import distances, measure, options
from experiments.lab.cells import Cell
from experiments.lab.problems import Problem
from experiments.lab.recipes import defences, regularizers
from experiments.page import plots, results
from experiments.page.elements import State, missing, of_claim
from experiments.page.results import DEFENCE_NAMES, NAMES

SIGMAS, STEPS = (0.2, 0.4, 0.6), (16, 32, 300)  # of the tables
FULL = 5  # the paper's models of each


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """The defaults are the paper's, and the grid of (a) is ours."""

    regularizers: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = tuple(NAMES)
    """Panel (a)."""
    defences: tuple[Literal["none", "adversarial", "Jacobian", "both"], ...] = tuple(DEFENCE_NAMES)
    """Panels (b) and (c)."""
    sigmas: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(21))
    """Standard deviations of the noise, in raw pixels."""
    attacks: tuple[Literal["PGD", "CW"], ...] = ("PGD", "CW")
    num_attacked: int = 1000
    """Test samples of (b) and (c); (a) uses all."""


QUICK = options.QUICK | {
    "regularizers": ("none",),
    "defences": ("both",),
    "attacks": ("PGD",),
    "sigmas": (0.0, 0.3),
    "num_attacked": 20,
}


def cells(folder: str, problem: Problem, config: Config) -> list[Cell]:
    """Noise, then the attacks in their order; regularizers that the problem's network does not take are left out."""
    seeds, (rows, bases) = range(config.seeds), (regularizers(problem), defences(problem))
    noise = partial(measure.noise_curve, sigmas=config.sigmas, data_dir=config.data_dir)
    found = [
        Cell(f"{folder}/noise-{name}", rows[name].shortened(config.num_steps), seeds, {"sigmas": config.sigmas}, noise)
        for name in config.regularizers
        if name in rows
    ]
    for attack in config.attacks:
        for name in config.defences:
            found.append(attack_cell(f"{folder}/{attack}-{name}", bases[name], attack, config))
    return found


def attack_cell(name: str, recipe, attack: str | distances.Attack, config) -> Cell:
    """Distances of one attack, or of that of a name; config holds seeds, num_steps, num_attacked."""
    chosen = distances.by_name(recipe.problem)[attack] if isinstance(attack, str) else attack
    find = partial(distances.measure, attack=chosen, num_samples=config.num_attacked, options=config)
    settings = chosen.config() | {"num_samples": config.num_attacked}
    return Cell(name, recipe.shortened(config.num_steps), range(config.seeds), settings, find)


def survivors(model: dict, steps: int) -> float:
    """Share of samples, in %, not fooled within so many PGD steps."""
    found = results.distances(model)
    hit = np.where(np.isfinite(found), model["steps"], np.inf)
    return 100 * float(np.mean((found > 0) & (hit > steps)))


def table(folder: str, base: str) -> str:
    """Numbers one reads off the curves: accuracy under noise, after PGD, and the median CW distance."""
    if not results.names(f"{folder}/*"):
        return "not run"
    rows = []
    for name, label in NAMES.items():
        found, sigmas = (
            results.models(f"{folder}/noise-{name}"),
            results.config(f"{folder}/noise-{name}").get("sigmas", []),
        )
        at = [[100 * m["accuracy"][sigmas.index(s)] for m in found] if s in sigmas else [] for s in SIGMAS]
        rows.append([label, *(results.spread(values, 1) for values in at)])
    noise = results.table(["(a) accuracy under white noise, %", *(f"sigma {s}" for s in SIGMAS)], rows)
    rows = []
    for name, label in DEFENCE_NAMES.items():
        pgd, cw = (results.models(f"{folder}/{attack}-{name}") for attack in ("PGD", "CW"))
        after = [results.spread([survivors(m, k) for m in pgd], 1) for k in STEPS]
        rows.append([label, *after, results.spread(list(map(results.median, cw)), 3)])
    header = [f"(b, c) base with {base}", "PGD, 16 steps, %", "32 steps, %", "300 steps, %", "CW median L2"]
    return noise + "\n\n" + results.table(header, rows) + results.fewer(results.names(f"{folder}/[PC]*"))


def claim(folder: str, problem: Problem) -> tuple[State, str]:
    """The paper's words on Figures S3 and S4: the penalty's success is retained under white noise and CW."""
    noise, cw = ([results.by_seed(f"{folder}/{a}-{n}") for n in ("none", "Jacobian")] for a in ("noise", "CW"))
    if not all(noise + cw):
        return missing(results.names(f"{folder}/*"))

    def gains() -> list[list[float]]:
        sigmas = results.config(f"{folder}/noise-Jacobian")["sigmas"]
        at = lambda s: lambda model: model["accuracy"][sigmas.index(s)]
        return [*(results.paired(*noise, at(s)) for s in SIGMAS), results.paired(*cw, results.median)]

    return of_claim(f"{folder}/CW-Jacobian", gains, problem.num_steps, FULL)


def figure(folder: str, problem: Problem):
    """White noise by regularizer; PGD and CW by defence; None where nothing was run."""
    noise = {name: results.models(f"{folder}/noise-{name}") for name in NAMES}
    attacked = {a: {n: results.models(f"{folder}/{a}-{n}") for n in DEFENCE_NAMES} for a in ("PGD", "CW")}
    if not any(seeds for found in (noise, *attacked.values()) for seeds in found.values()):
        return None
    drawing, axes = plt.subplots(1, 3, figsize=(14, 4))
    for name, seeds in noise.items():
        if seeds:
            sigmas = results.config(f"{folder}/noise-{name}")["sigmas"]
            curves = [[100 * a for a in m["accuracy"]] for m in seeds]
            plots.band(axes[0], sigmas, curves, plots.COLOURS[name], NAMES[name])
    steps, grid = np.arange(61), np.linspace(0, plots.REACH[problem.dataset]["CW"], 161)
    curves_of = {
        "PGD": (steps, lambda m: [survivors(m, k) for k in steps]),
        "CW": (grid, lambda m: 100 - plots.fooled_within(results.distances(m), grid)),
    }
    for axis, (attack, by_defence) in zip(axes[1:], attacked.items(), strict=True):
        x, curve = curves_of[attack]
        for name, seeds in by_defence.items():
            if seeds:
                plots.band(axis, x, list(map(curve, seeds)), plots.DEFENCE_COLOURS[name], DEFENCE_NAMES[name])
    radius = round(255 * problem.pgd_radius)
    axes[0].set(title="(a) white noise", xlabel="standard deviation, raw pixels")
    axes[1].set(title=f"(b) PGD, 1/255 a step, within {radius}/255", xlabel="steps")
    axes[2].set(title="(c) CW", xlabel="L2 distance, raw pixels")
    for axis in axes:
        axis.set(ylabel="test accuracy, %", ylim=(0, 100))
        plots.legend(axis)
    plots.say_length(drawing, results.num_steps(folder), problem.num_steps)
    return drawing
