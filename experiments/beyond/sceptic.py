"""The sceptic's question: at equal cost and equal clean accuracy, what do the penalty, its relatives and adversarial
training buy, under everything that the library can throw at a network?

Command:    python -m experiments sceptic --num-steps 15000
            python -m experiments sceptic --problem cifar10_ddnet --num-steps 15000
Asks:       for each way of training, on the base of the paper's defences: clean accuracy; the worst case, in L2, of
            converged CW, DDN, FAB-T and the standard ensemble, and in L-infinity of the ensemble; certified radii of
            the smoothed network; accuracy under twelve corruptions. Cost is in plain steps, by arithmetic.
Time:       one CPU core: 5 to 10 minutes a LeNet', trained at a tenth of the length and tried on 200 images.
Leaves:     experiments/results/sceptic[_PROBLEM]/KIND-METHOD.json, by seed; `sceptic_page` shows them.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import numpy as np

from experiments.lab import distances, measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import PROBLEMS, held_out
from experiments.studies.methods import KINDS, RADII, methods
from jacreg_jax import certify, corruptions, evaluation

SIGMA = 0.25  # of the smoothed network
FIRST = ("CW, 3 times the steps", "DDN", "FAB-T")


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """What is tried."""

    problem: Literal["mnist_lenet", "cifar10_ddnet"] = "mnist_lenet"
    methods: tuple[str, ...] = ()
    """Of training, as the table names them; none: all."""
    kinds: tuple[Literal["clean", "worst", "smoothed", "corrupted"], ...] = KINDS
    """What is measured of each model."""
    seeds: int = 3
    num_attacked: int = 200
    num_queries: int = 1000
    """Of Square."""
    num_smoothed: int = 1000
    """Draws for each certified image."""


QUICK = options.QUICK | {
    "methods": ("noise consistency, 0.1",),
    "num_attacked": 2,
    "num_queries": 5,
    "num_smoothed": 100,
}


def cells(config: Config) -> list[Cell]:
    """Method by method.

    Raises:
        ValueError: an unknown one.
    """
    problem = PROBLEMS[config.problem]
    known, folder = methods(problem), problem.folder("sceptic")
    if unknown := set(config.methods) - known.keys():
        raise ValueError(f"methods must be among {'; '.join(known)}; got {'; '.join(sorted(unknown))}")
    sizes = {"num_attacked": config.num_attacked}
    radii = {f"epsilons_{norm}": list(found) for norm, found in RADII[problem.dataset].items()}
    kinds = {
        "clean": ({"norms": config.norms}, partial(measure.clean, norms=config.norms, data_dir=config.data_dir)),
        "worst": (sizes | radii | {"num_queries": config.num_queries}, partial(worst, config=config)),
        "smoothed": (sizes | {"sigma": SIGMA, "num_samples": config.num_smoothed}, partial(smoothed, config=config)),
        "corrupted": (sizes, partial(corrupted, config=config)),
    }
    found = []
    for name in config.methods or known:
        recipe = known[name].recipe.shortened(config.num_steps)
        for kind in config.kinds:
            settings, measured = kinds[kind]
            file = f"{folder}/{kind}-{record.slug(name)}"
            found.append(Cell(file, recipe, range(config.seeds), settings, measured))
    return found


def worst(model, seed: int, *, config: Config) -> dict:
    """The smallest L2 distance of the searches, and the share that nothing fools, by norm and radius."""
    known = distances.by_name(model.problem)
    every = [distances.find(model, seed, known[a], config.num_attacked, config)["distance"] for a in FIRST]
    smallest, robust = np.min(every, axis=0), {}
    for norm, radii in RADII[model.problem.dataset].items():
        for epsilon in radii:
            left = np.flatnonzero(smallest > (epsilon if norm == "l2" else 0.0))
            asked = {"norm": norm, "epsilon": epsilon, "num_queries": config.num_queries, "options": config}
            counts = distances.robust_after(model, seed, left=left, **asked)
            robust[f"{norm} {epsilon:.3g}"] = min(counts.values(), default=len(left)) / config.num_attacked
    return {"distance": record.as_json(smallest), "robust": robust}


def smoothed(model, seed: int, *, config: Config) -> dict:
    """Certified accuracy of the smoothed network at L2 radii, and the median radius."""
    test = held_out(model.problem, config.num_attacked, config.data_dir)
    x, key = np.asarray(model.problem.attack_space(test["image"])), jax.random.key(seed)
    sizes = {"sigma": SIGMA, "num_samples": config.num_smoothed, "batch_size": 20}
    found = certify.certify_smoothed(model.raw_f, x, key, **sizes)
    radius = np.where(found.prediction == np.asarray(test["label"]), found.radius, 0.0)
    return {"radius": float(np.median(radius)), "certified": {f"{r:g}": float(np.mean(radius > r)) for r in (0, 0.5)}}


def corrupted(model, seed: int, *, config: Config) -> dict:
    """Mean accuracy over five severities, by family."""
    test, key = held_out(model.problem, config.num_attacked, config.data_dir), jax.random.key(seed)
    x, y = model.problem.attack_space(test["image"]), test["label"]
    under = lambda name, s: evaluation.run_attack(corruptions.corruption(name), model.raw_f, x, y, key, severity=s)
    share = lambda name: float(np.mean([1 - under(name, s).success.mean() for s in corruptions.SEVERITIES]))
    return {"accuracy": {name: share(name) for name in corruptions.FAMILIES}}
