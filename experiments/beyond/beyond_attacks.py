"""Beyond the paper: does the gain hold under converged attacks and under the standard ensemble (AutoAttack)?

Command:    python -m experiments beyond_attacks [--models none Jacobian base all]
Asks:       (a) the ratio of median L2 distances, Jacobian over plain, under CW at the paper's setting, CW with 3 times
            the steps, and the smallest of CW, DDN and FAB-T for each sample; (b) robust accuracy at several epsilon.
Time:       2 CPU cores, 1,000 samples: about an hour a model for (a), half an hour for (b).
Leaves:     experiments/results/beyond_attacks/: clean-MODEL, ATTACK-MODEL and ensemble-NORM-MODEL.json, by seed.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from experiments.lab import distances, measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import regularized
from experiments.page import results
from experiments.studies.robustness import attack_cell

# plain and penalised: without any other regularizer, and with L2 and dropout, as in the paper
PAIRS = {("none", "Jacobian"): ("no regularization", "Jacobian"), ("base", "all"): ("L2 and dropout", "+ Jacobian")}
ATTACKS = ("CW", "CW, 3 times the steps", "DDN", "FAB-T")


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """Models, attacks and radii."""

    models: tuple[Literal["none", "L2", "dropout", "Jacobian", "all", "base", "adversarial", "both"], ...] = (
        "none",
        "Jacobian",
    )
    """base: L2 and dropout; all: with Jacobian too; both: with adversarial training beside it."""
    attacks: tuple[Literal["CW", "DDN", "FAB-T", "CW, 3 times the steps"], ...] = ATTACKS
    ensembles: tuple[Literal["linf", "l2"], ...] = ("linf", "l2")
    epsilons_linf: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15)
    """Raw pixels."""
    epsilons_l2: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    seeds: int = 1
    num_attacked: int = 1000
    num_queries: int = 5000
    """Of Square."""


QUICK = options.QUICK | {
    "models": ("none",),
    "attacks": ("DDN",),
    "ensembles": ("linf",),
    "epsilons_linf": (0.1,),
    "num_queries": 20,
    "norms": 50,
    "num_attacked": 10,
}


def cells(config: Config) -> list[Cell]:
    """What the models are without an attack, distances by every attack, then robust accuracy."""
    recipes = {name: regularized(MNIST_LENET)[name] for name in config.models}
    short = {name: recipe.shortened(config.num_steps) for name, recipe in recipes.items()}
    clean, found = partial(measure.clean, norms=config.norms, data_dir=config.data_dir), []
    of_model = lambda kind, name, settings, measured: Cell(
        f"beyond_attacks/{kind}-{name}", short[name], range(config.seeds), settings, measured
    )
    for name in recipes:
        found.append(of_model("clean", name, {"norms": config.norms}, clean))
    for attack in config.attacks:
        for name, recipe in recipes.items():
            found.append(attack_cell(f"beyond_attacks/{record.slug(attack)}-{name}", recipe, attack, config))
    for norm in config.ensembles:
        settings = {"norm": norm}
        settings |= {k: getattr(config, k) for k in ("num_attacked", "num_queries", f"epsilons_{norm}")}
        for name in recipes:
            found.append(of_model(f"ensemble-{norm}", name, settings, partial(ensemble, norm=norm, config=config)))
    return found


def ensemble(model, seed: int, *, norm: str, config: Config) -> dict:
    """Share of samples still robust after each attack of the standard ensemble, by epsilon."""
    every = {"norm": norm, "num_queries": config.num_queries, "options": config, "left": range(config.num_attacked)}
    after = {e: distances.robust_after(model, seed, epsilon=e, **every) for e in getattr(config, f"epsilons_{norm}")}
    share = lambda counts: {name: count / config.num_attacked for name, count in counts.items()}
    return {f"{epsilon:g}": share(counts) for epsilon, counts in after.items()}


def table() -> str:
    """The ratio of medians, Jacobian over plain, under ever stronger attacks; robust accuracy of the ensemble."""
    parts = []
    for pair, labels in PAIRS.items():
        of = lambda kind, pair=pair: {name: results.by_seed(f"beyond_attacks/{kind}-{name}") for name in pair}
        clean, found = of("clean"), {attack: of(record.slug(attack)) for attack in ATTACKS}
        if not any(models for kind in (clean, *found.values()) for models in kind.values()):
            parts.append(f"{labels[0]} against {labels[1]}: not run.")
            continue
        rows = [ratio(attack, found[attack], results.median) for attack in ATTACKS]
        best = {name: smallest([found[a][name] for a in ("CW", "DDN", "FAB-T")]) for name in pair}
        rows.append(ratio("smallest of CW, DDN, FAB-T", best, lambda d: float(np.median(d))))
        without = [ratio("test accuracy, %", clean, results.percent), ratio("‖J‖_F", clean, results.norm)]
        header = [*labels, "ratio", "seeds alone"]
        parts.append(results.table(["without an attack", *header], without))
        parts.append(results.table(["median L2 distance", *header], rows))
    return "\n\n".join([*parts, *map(robust_table, ("linf", "l2"))])


def smallest(found: list[dict[str, dict]]) -> dict[str, np.ndarray]:
    """The smallest distance of each sample, for the seeds that all attacks have."""
    seeds = [seed for seed in found[0] if all(seed in attack for attack in found)]
    return {seed: np.min([results.distances(attack[seed]) for attack in found], axis=0) for seed in seeds}


def ratio(label: str, found: dict[str, dict], value: Callable) -> list[str]:
    """Both models over the seeds that both have, the ratio of their means, and that of each seed."""
    plain, penalised = found.values()
    seeds = [seed for seed in plain if seed in penalised]
    first, second = ([value(models[seed]) for seed in seeds] for models in (plain, penalised))
    means = f"{np.mean(second) / np.mean(first):.2f}" if seeds else ""
    alone = ", ".join(f"{b / a:.2f}" for a, b in zip(first, second, strict=True))
    return [label, results.spread(first, 3), results.spread(second, 3), means, alone]


def robust_table(norm: str) -> str:
    """Share of samples that no attack of the ensemble fools; in L2 beside what CW, DDN and FAB-T leave."""
    names = {name: label for pair, labels in PAIRS.items() for name, label in zip(pair, labels, strict=True)}
    found = {name: results.by_seed(f"beyond_attacks/ensemble-{norm}-{name}") for name in names}
    epsilons = next(
        (results.config(f"beyond_attacks/ensemble-{norm}-{n}")[f"epsilons_{norm}"] for n in found if found[n]), []
    )
    rows = []
    for name, models in found.items():
        if models:
            shares = [[100 * m[f"{e:g}"]["square"] for m in models.values()] for e in epsilons]
            rows.append([names[name], "ensemble", *(results.spread(values, 1) for values in shares)])
        if models and norm == "l2":
            nearest = smallest([results.by_seed(f"beyond_attacks/{a}-{name}") for a in ("CW", "DDN", "FAB-T")])
            shares = [[100 * float(np.mean(d > e)) for d in nearest.values()] for e in epsilons]
            first = [f"{values[0]:.1f} (seed {next(iter(nearest))})" if values else "not run" for values in shares]
            rows.append(["", "CW, DDN, FAB-T", *first])
    label = {"linf": "L-infinity", "l2": "L2"}[norm]
    header = [f"robust accuracy, {label}, %", "after", *(f"epsilon {e:g}" for e in epsilons)]
    return results.table(header, rows) if rows else f"Standard ensemble, {label}: not run."


def retrained() -> str:
    """Seed 0 in Table 1, and trained once more by a later program for these attacks."""
    rows = []
    for name, label in zip(*next(iter(PAIRS.items())), strict=True):
        for which, file in (("Table 1", f"table1/all-{name}"), ("once more", f"beyond_attacks/clean-{name}")):
            model = results.by_seed(file, regularized(MNIST_LENET)[name].config()).get("0")
            values = [f"{results.percent(model):.2f}", f"{results.norm(model):.1f}"] if model else ["not run"] * 2
            rows.append([label, which, *values])
    return results.table(["all samples, seed 0", "", "test accuracy, %", "‖J‖_F"], rows)


TABLES = {"beyond_attacks": table, "retrained": retrained}
