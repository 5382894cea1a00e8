"""The sceptic's question: at equal cost and equal clean accuracy, what do the penalty, its relatives and adversarial
training buy, under everything that the library can throw at a network?

Command:    python -m experiments sceptic --num-steps 15000
            python -m experiments sceptic --problem cifar10_ddnet --num-steps 15000
Asks:       for each way of training, on the base of the paper's defences: clean accuracy; the worst case, in L2, of
            converged CW, DDN, FAB-T and the standard ensemble, and in L-infinity of the ensemble; certified radii of
            the smoothed network; accuracy under twelve corruptions. Cost is in plain steps, by arithmetic.
Time:       one CPU core: 5 to 10 minutes a LeNet', trained at a tenth of the length and tried on 200 images.
Leaves:     experiments/results/sceptic[_PROBLEM]/KIND-METHOD.json, by seed.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import distances, measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import PROBLEMS, Problem, held_out
from experiments.page import plots, results
from experiments.studies.methods import NEAR, Method, at_equal_accuracy, methods
from jacreg_jax import certify, corruptions, evaluation

RADII = {
    "mnist": {"linf": (0.1, 0.3), "l2": (1.0, 1.5, 2.0)},
    "cifar10": {"linf": (2 / 255, 8 / 255), "l2": (0.25, 0.5)},
}
KINDS = ("clean", "worst", "smoothed", "corrupted")
SIGMA = 0.25  # of the smoothed network
DRAWN = 2  # points of clean accuracy below the best that the figure reaches to
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


def ran(problem: Problem) -> dict[str, tuple[Method, dict[str, list[dict]]]]:
    """{name: (method, its models by kind)} of all that ran, at the greatest length."""
    folder = results.longest(problem.folder("sceptic"))
    of = lambda name: {kind: results.models(f"{folder}/{kind}-{record.slug(name)}") for kind in KINDS}
    found = {name: (method, of(name)) for name, method in methods(problem).items()}
    return {name: (method, kinds) for name, (method, kinds) in found.items() if kinds["clean"]}


def rows(problem: Problem, found: dict) -> str:
    """A row for each method."""
    of, lines = lambda models, value, digits: results.spread(list(map(value, models)), digits), []
    radii = [f"{norm} {epsilon:.3g}" for norm, sizes in RADII[problem.dataset].items() for epsilon in sizes]
    for name, (method, kinds) in found.items():
        clean, worsts, smooth, corrupt = kinds.values()
        row = [name, f"{method.cost:.2g}", of(clean, results.percent, 1), of(clean, results.norm, 2)]
        row.append(of(worsts, results.median, 2))
        row += [of(worsts, lambda m, r=r: 100 * m["robust"][r], 1) for r in radii]
        row.append(of(smooth, lambda m: 100 * m["certified"]["0.5"], 1))
        lines.append([*row, of(corrupt, lambda m: 100 * float(np.mean(list(m["accuracy"].values()))), 1)])
    header = ["on L2 and dropout", "cost", "clean, %", "‖J‖_F", "median L2, worst case"]
    header += [f"robust, {r}, %" for r in radii] + ["certified, l2 0.5, %", "corrupted, %"]
    return results.table(header, lines)


def table(name: str) -> str:
    """All that ran, and beneath it of each family the strongest of near clean accuracy."""
    problem = PROBLEMS[name]
    if not (found := ran(problem)):
        return "not run"
    chosen = at_equal_accuracy(
        methods(problem), {n: map(results.percent, kinds["clean"]) for n, (_, kinds) in found.items()}
    )
    near = {n: found[n] for n in chosen.values() if n}
    without = [family for family, n in chosen.items() if not n]
    above = f"The strongest of each family within {NEAR:g} point of the base's clean accuracy, which alone decides"
    above += f" (none of: {', '.join(without)})" * bool(without)
    return "\n\n".join([rows(problem, found), f"{above}:", rows(problem, near)])


def figure(name: str):
    """Cost, clean accuracy, and robustness in both norms: a line for each family; None where nothing was run."""
    problem, families = PROBLEMS[name], {}
    if not (found := [(method, kinds) for method, kinds in ran(problem).values() if kinds["worst"]]):
        return None
    accuracy = lambda kinds: np.mean(list(map(results.percent, kinds["clean"])))
    best = max(accuracy(kinds) for _, kinds in found)
    for method, kinds in found:
        if accuracy(kinds) >= best - DRAWN:
            families.setdefault(f"{method.family} ({method.cost:.2g})", []).append(kinds)
    within = [f"linf {epsilon:.3g}" for epsilon in RADII[problem.dataset]["linf"]]
    panels = {"median L2 distance, worst case": results.median}
    panels |= {f"robust, {r}, %": lambda model, r=r: 100 * model["robust"][r] for r in within}
    drawing, axes = plt.subplots(1, len(panels), figsize=(15, 4.5))
    for axis, (label, value) in zip(axes, panels.items(), strict=True):
        for i, (family, members) in enumerate(families.items()):
            x, dx = means_and_deviations([kinds["clean"] for kinds in members], results.percent)
            y, dy = means_and_deviations([kinds["worst"] for kinds in members], value)
            style = {"color": plt.get_cmap("tab10")(i % 10), "marker": "osDv^<>P*Xh"[i % 11]}
            axis.errorbar(x, y, dy, dx, label=family, linewidth=1, elinewidth=0.8, **style)
        axis.set(xlabel="clean accuracy, %", ylabel=label)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "in brackets: cost of a step, plain ones; lines join the strengths of a family; "
    title += f"left out: more than {DRAWN} points below the best clean accuracy"
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 5, "frameon": False}
    drawing.legend(handles, labels, title=title, fontsize=8, title_fontsize=8, **below)
    plots.say_length(drawing, results.num_steps(results.longest(problem.folder("sceptic"))), problem.num_steps)
    return drawing


def means_and_deviations(members: list[list[dict]], value: Callable[[dict], float]) -> tuple[list, list]:
    """Over the seeds of each; deviations of 0 where there is one."""
    values = [list(map(value, models)) for models in members]
    return [np.mean(v) for v in values], [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]


TABLES = {"sceptic": partial(table, "mnist_lenet"), "sceptic_cifar10_ddnet": partial(table, "cifar10_ddnet")}
FIGURES = {"sceptic": partial(figure, "mnist_lenet"), "sceptic_cifar10_ddnet": partial(figure, "cifar10_ddnet")}
