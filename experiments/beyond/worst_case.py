"""Beyond the paper: the worst case over CW, DDN, FAB-T and the standard ensemble together, on every seed, in L2.

Command:    python -m experiments worst_case --seeds 2
Asks:       robust accuracy where a sample counts only if nothing fools it; the ensemble alone is weaker at small
            radii than CW, DDN and FAB-T are. On models without and with the base of the paper, L2 and dropout.
Time:       2 CPU cores, 1,000 samples: about half an hour a model; what beyond_attacks has found is not found anew.
Leaves:     experiments/results/worst_case/MODEL.json, by seed.
"""

import dataclasses
from functools import partial
from typing import Literal

import numpy as np

from experiments.lab import distances, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import regularized
from experiments.page import results

NAMES = {
    "none": "no regularization",
    "Jacobian": "Jacobian",
    "base": "L2 and dropout",
    "all": "L2, dropout, Jacobian",
    "adversarial": "L2, dropout, adversarial training",
    "both": "L2, dropout, adversarial training, Jacobian",
}
FIRST = ("CW", "DDN", "FAB-T")


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """Models and radii."""

    models: tuple[Literal["none", "Jacobian", "base", "all", "adversarial", "both"], ...] = (
        "none",
        "Jacobian",
        "base",
        "all",
    )
    epsilons: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """L2, raw pixels."""
    seeds: int = 2
    num_attacked: int = 1000
    num_queries: int = 5000
    """Of Square."""


# nothing is left for the ensemble, whose compilation takes longest
QUICK = options.QUICK | {"models": ("none",), "epsilons": (20.0,), "num_attacked": 4}


def cells(config: Config) -> list[Cell]:
    """A model each."""
    attacks = [distances.by_name(MNIST_LENET)[name].config() for name in FIRST]
    settings = {"attacks": attacks, "ensemble": "l2"}
    settings |= {name: getattr(config, name) for name in ("epsilons", "num_attacked", "num_queries")}
    recipes, of_model = regularized(MNIST_LENET), partial(worst, config=config)
    return [
        Cell(f"worst_case/{n}", recipes[n].shortened(config.num_steps), range(config.seeds), settings, of_model)
        for n in config.models
    ]


def worst(model, seed: int, *, config: Config) -> dict:
    """The smallest distance of every sample, and the share still robust after each attack, by epsilon."""
    known = distances.by_name(MNIST_LENET)
    found = {a: distances.find(model, seed, known[a], config.num_attacked, config)["distance"] for a in FIRST}
    smallest = np.minimum.accumulate(list(found.values()))  # after the first, the first two, all three
    robust = {}
    for epsilon in config.epsilons:
        counts = dict(zip(FIRST, (smallest > epsilon).sum(1).tolist(), strict=True))
        left = np.flatnonzero(smallest[-1] > epsilon)
        every = {"norm": "l2", "num_queries": config.num_queries, "options": config, "left": left}
        counts |= distances.robust_after(model, seed, epsilon=epsilon, **every)
        robust[f"{epsilon:g}"] = {name: count / config.num_attacked for name, count in counts.items()}
    return {"distance": record.as_json(smallest[-1]), "robust": robust}


def table() -> str:
    """Median of the smallest distance, and robust accuracy under everything."""
    found = {name: results.models(f"worst_case/{name}") for name in NAMES}
    epsilons = next((list(m[0]["robust"]) for m in found.values() if m), [])
    rows = []
    for name, models in found.items():
        if models:
            shares = [[100 * min(m["robust"][e].values()) for m in models] for e in epsilons]
            medians = results.spread(list(map(results.median, models)), 3)
            rows.append([NAMES[name], medians, *(results.spread(values, 1) for values in shares)])
    header = ["worst case of CW, DDN, FAB-T and the ensemble, L2", "median distance, first three"]
    header += [f"robust at {e}, %" for e in epsilons]
    return results.table(header, rows) if rows else "not run"


TABLES = {"worst_case": table}
