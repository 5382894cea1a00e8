"""The sceptic's question: at equal cost and equal clean accuracy, what do the penalty, its relatives and adversarial
training buy, under everything that the library can throw at a network?

Command:    python -m experiments sceptic --num-steps 15000
            python -m experiments sceptic --problem cifar10_ddnet --num-steps 15000
Asks:       for each way of training, on the base of the paper's defences: clean accuracy; the worst case, in L2, of
            converged CW, DDN, FAB-T and the standard ensemble, and in L-infinity of the ensemble; certified radii of
            the smoothed network; accuracy under twelve corruptions. Cost is in plain steps, by arithmetic.
Time:       one CPU core: 2 to 8 minutes to train a LeNet' at a tenth of the length, some 15 to try it on 200 images.
Leaves:     experiments/results/sceptic[_PROBLEM]/KIND-METHOD.json, by seed.
"""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import distances, measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import PROBLEMS, Problem, held_out
from experiments.lab.recipes import Recipe, defences, jacobian
from experiments.page import plots, results
from jacreg_jax import certify, corruptions, evaluation

REAL = {"mnist_lenet": 0.3, "cifar10_ddnet": 8 / 255}  # radii in L-infinity that others train and attack at
RADII = {"mnist_lenet": {"linf": (0.1, 0.3), "l2": (1.0, 1.5, 2.0)}}
RADII["cifar10_ddnet"] = {"linf": (2 / 255, 8 / 255), "l2": (0.25, 0.5)}
KINDS = ("clean", "worst", "smoothed", "corrupted")
SIGMA = 0.25  # of the smoothed network
FIRST = ("CW, 3 times the steps", "DDN", "FAB-T")


class Method(NamedTuple):
    """A way of training, and what a step costs in plain ones."""

    changes: dict
    cost: float


def methods(problem: Problem) -> dict[str, Method]:
    """Each on the base of the paper's defences."""
    real, of = REAL[problem.name], lambda size: jacobian(problem, size)
    found = {"base": Method({}, 1)}
    found |= {f"Jacobian, {size:g}": Method(of(size), 2) for size in (0.01, 0.03, 0.1)}
    for name, size in (("input gradient", 1.0), ("noise consistency", 0.1), ("spectral norm", 0.01)):
        cost = {"input gradient": 2, "noise consistency": 2, "spectral norm": 3}[name]
        found[name] = Method({"lambda_jr": size, "relative": name}, cost)
    found["FGSM, the paper's epsilon"] = Method({"max_epsilon": problem.max_epsilon}, 2)
    found["PGD, 1 step"] = Method({"max_epsilon": real, "pgd_steps": 1}, 2)
    found["PGD, 7 steps"] = Method({"max_epsilon": real, "pgd_steps": 7}, 8)
    found["PGD, 1 step, and Jacobian"] = Method(found["PGD, 1 step"].changes | of(problem.lambda_jr), 3)
    return found


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """What is tried."""

    problem: Literal["mnist_lenet", "cifar10_ddnet"] = "mnist_lenet"
    methods: tuple[str, ...] = ()
    """Of those that the table lists; none: all."""
    seeds: int = 3
    num_attacked: int = 200
    num_queries: int = 1000
    """Of Square."""
    num_smoothed: int = 1000
    """Draws for each certified image."""


QUICK = options.QUICK | {"methods": ("noise consistency",), "num_attacked": 2, "num_queries": 5, "num_smoothed": 100}


def cells(config: Config) -> list[Cell]:
    """Method by method.

    Raises:
        ValueError: an unknown method.
    """
    problem = PROBLEMS[config.problem]
    known, base, folder = methods(problem), defences(problem)["none"], problem.folder("sceptic")
    if unknown := set(config.methods) - known.keys():
        raise ValueError(f"methods must be among {', '.join(known)}; got {', '.join(sorted(unknown))}")
    sizes = {"num_attacked": config.num_attacked}
    radii = {f"epsilons_{norm}": list(found) for norm, found in RADII[problem.name].items()}
    kinds = {
        "clean": ({"norms": config.norms}, partial(measure.clean, norms=config.norms, data_dir=config.data_dir)),
        "worst": (sizes | radii | {"num_queries": config.num_queries}, partial(worst, config=config)),
        "smoothed": (sizes | {"sigma": SIGMA, "num_samples": config.num_smoothed}, partial(smoothed, config=config)),
        "corrupted": (sizes, partial(corrupted, config=config)),
    }
    found = []
    for name in config.methods or known:
        recipe: Recipe = dataclasses.replace(base, **known[name].changes).shortened(config.num_steps)
        for kind, (settings, measured) in kinds.items():
            file = f"{folder}/{kind}-{slug(name)}"
            found.append(Cell(file, recipe, range(config.seeds), settings, measured))
    return found


def worst(model, seed: int, *, config: Config) -> dict:
    """The smallest L2 distance of the searches, and the share that nothing fools, by norm and radius."""
    known = distances.by_name(model.problem)
    every = [distances.find(model, seed, known[a], config.num_attacked, config)["distance"] for a in FIRST]
    smallest, robust = np.min(every, axis=0), {}
    for norm, radii in RADII[model.problem.name].items():
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


def slug(method: str) -> str:
    """In the name of a file."""
    return record.slug(method).replace("'", "")


def found_of(problem: Problem, kind: str, method: str) -> list[dict]:
    """The models of a method, at the greatest length that was run."""
    return results.models(
        f"{results.longest(problem.folder('sceptic'))}/{kind}-{record.slug(method).replace(chr(39), '')}"
    )


def table(name: str) -> str:
    """A row for each method."""
    problem, rows = PROBLEMS[name], []
    radii = [f"{norm} {epsilon:.3g}" for norm, found in RADII[name].items() for epsilon in found]
    for method, (_, cost) in methods(problem).items():
        clean, worsts, smooth, corrupt = (found_of(problem, kind, method) for kind in KINDS)
        if clean:
            of = lambda models, value, digits: results.spread(list(map(value, models)), digits)
            row = [method, f"{cost:g}", of(clean, results.percent, 1), of(clean, results.norm, 2)]
            row.append(of(worsts, results.median, 2))
            row += [of(worsts, lambda m, r=r: 100 * m["robust"][r], 1) for r in radii]
            row.append(of(smooth, lambda m: m["radius"], 2))
            rows.append([*row, of(corrupt, lambda m: 100 * float(np.mean(list(m["accuracy"].values()))), 1)])
    header = ["on L2 and dropout", "cost", "clean, %", "‖J‖_F", "median L2, worst case"]
    header += [f"robust, {r}, %" for r in radii] + ["median certified L2", "corrupted, %"]
    return results.table(header, rows) if rows else "not run"


def figure(name: str):
    """Cost against the worst-case distance, clean accuracy in colour; None where nothing was run."""
    problem, points = PROBLEMS[name], []
    for method, (_, cost) in methods(problem).items():
        clean, worsts = found_of(problem, "clean", method), found_of(problem, "worst", method)
        if clean and worsts:
            accuracy = float(np.mean(list(map(results.percent, clean))))
            points.append((method, cost, list(map(results.median, worsts)), accuracy))
    if not points:
        return None
    drawing, axis = plt.subplots(figsize=(8, 5))
    names, costs, medians, accuracies = zip(*points, strict=True)
    means, errors = [np.mean(m) for m in medians], [np.std(m, ddof=1) if len(m) > 1 else 0 for m in medians]
    axis.errorbar(costs, means, yerr=errors, fmt="none", ecolor="#999999", linewidth=1)
    dots = axis.scatter(costs, means, c=accuracies, cmap="viridis", s=60, zorder=3)
    for label, cost, mean in zip(names, costs, means, strict=True):
        axis.annotate(label, (cost, mean), xytext=(7, 3), textcoords="offset points", fontsize=8)
    drawing.colorbar(dots, label="clean accuracy, %")
    axis.set(xlabel="cost of a step, plain ones", ylabel="median L2 distance, worst case", xlim=(0, max(costs) + 3))
    plots.say_length(drawing, results.num_steps(results.longest(problem.folder("sceptic"))), problem.num_steps)
    return drawing


TABLES = {"sceptic": partial(table, "mnist_lenet"), "sceptic_cifar10_ddnet": partial(table, "cifar10_ddnet")}
FIGURES = {"sceptic": partial(figure, "mnist_lenet"), "sceptic_cifar10_ddnet": partial(figure, "cifar10_ddnet")}
