"""The tables and the figure of `sceptic`."""

from collections.abc import Callable, Iterable
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import record
from experiments.lab.problems import PROBLEMS, Problem
from experiments.page import plots, results
from experiments.studies.methods import KINDS, NEAR, RADII, Method, at_equal_accuracy, methods

DRAWN = 2  # points of clean accuracy below the best that the figure reaches to
RIVAL = "Jacobian"  # the family that the others are compared with, seed by seed

Measured = dict[str, dict[str, dict]]  # {kind: {seed: model}}
Found = dict[str, tuple[Method, Measured]]  # by method


def ran(problem: Problem) -> Found:
    """All that ran, at the greatest length."""
    folder = results.longest(problem.folder("sceptic"))
    of = lambda name: {kind: results.by_seed(f"{folder}/{kind}-{record.slug(name)}") for kind in KINDS}
    found = {name: (method, of(name)) for name, method in methods(problem).items()}
    return {name: (method, kinds) for name, (method, kinds) in found.items() if kinds["clean"]}


def columns(problem: Problem) -> dict[str, tuple[str, Callable[[dict], float], int]]:
    """{header: (kind, value of a model, digits)}."""
    radii = [f"{norm} {epsilon:.3g}" for norm, sizes in RADII[problem.dataset].items() for epsilon in sizes]
    robust = lambda radius: lambda model: 100 * model["robust"][radius]
    return {
        "clean, %": ("clean", results.percent, 1),
        "‖J‖_F": ("clean", results.norm, 2),
        "median L2, worst case": ("worst", results.median, 2),
        **{f"robust, {radius}, %": ("worst", robust(radius), 1) for radius in radii},
        "certified, l2 0.5, %": ("smoothed", lambda model: 100 * model["certified"]["0.5"], 1),
        "corrupted, %": ("corrupted", lambda model: 100 * float(np.mean(list(model["accuracy"].values()))), 1),
    }


def rows(problem: Problem, found: Found) -> str:
    """A row for each method."""
    shown = columns(problem)
    lines = [
        [name, f"{method.cost:.2g}"]
        + [results.spread(list(map(value, kinds[kind].values())), digits) for kind, value, digits in shown.values()]
        for name, (method, kinds) in found.items()
    ]
    return results.table(["on L2 and dropout", "cost", *shown], lines)


def differences(problem: Problem, found: Found, rival: str) -> str:
    """A row for each other method: its models' values less those of the rival's models of the same seed."""
    shown, lines = columns(problem), []
    for name, (_, kinds) in found.items():
        pairs = lambda kind, value, k=kinds: results.paired(found[rival][1][kind], k[kind], value)
        lines.append([name, *(results.spread(pairs(kind, value), digits) for kind, value, digits in shown.values())])
    return results.table([f"less {rival}", *shown], [line for line in lines if line[0] != rival])


def table(name: str) -> str:
    """All that ran; of each family the strongest of near clean accuracy; these less the Jacobian penalty."""
    problem = PROBLEMS[name]
    if not (found := ran(problem)):
        return "not run"
    clean = {n: map(results.percent, kinds["clean"].values()) for n, (_, kinds) in found.items()}
    chosen = at_equal_accuracy(methods(problem), clean)
    near = {n: found[n] for n in chosen.values() if n}
    without = [family for family, n in chosen.items() if not n]
    above = f"The strongest of each family within {NEAR:g} point of the base's clean accuracy, which alone decides"
    above += f" (none of: {', '.join(without)})" * bool(without)
    blocks = [rows(problem, found), f"{above}:", rows(problem, near)]
    if rival := chosen.get(RIVAL):
        blocks += [
            f"The same, less {rival}: differences of models of the same seed:",
            differences(problem, near, rival),
        ]
    return "\n\n".join(blocks)


def figure(name: str):
    """Cost, clean accuracy, and robustness in both norms: a line for each family; None where nothing was run."""
    problem, families = PROBLEMS[name], {}
    if not (found := [(method, kinds) for method, kinds in ran(problem).values() if kinds["worst"]]):
        return None
    accuracy = lambda kinds: np.mean(list(map(results.percent, kinds["clean"].values())))
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
            x, dx = means_and_deviations([kinds["clean"].values() for kinds in members], results.percent)
            y, dy = means_and_deviations([kinds["worst"].values() for kinds in members], value)
            style = {"color": plt.get_cmap("tab10")(i % 10), "marker": "osDv^<>P*Xh"[i % 11]}
            axis.errorbar(x, y, dy, dx, label=family, linewidth=1, elinewidth=0.8, **style)
        axis.set(xlabel="clean accuracy, %", ylabel=label)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "in brackets: cost of a step, plain ones; bars: standard deviation over seeds; lines join a family; "
    title += f"left out: more than {DRAWN} points below the best clean accuracy"
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 5, "frameon": False}
    drawing.legend(handles, labels, title=title, fontsize=8, title_fontsize=8, **below)
    plots.say_length(drawing, results.num_steps(results.longest(problem.folder("sceptic"))), problem.num_steps)
    return drawing


def means_and_deviations(members: list[Iterable[dict]], value: Callable[[dict], float]) -> tuple[list, list]:
    """Over the seeds of each; deviations of 0 where there is one."""
    values = [list(map(value, models)) for models in members]
    return [np.mean(v) for v in values], [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values]


TABLES = {"sceptic": partial(table, "mnist_lenet"), "sceptic_cifar10_ddnet": partial(table, "cifar10_ddnet")}
FIGURES = {"sceptic": partial(figure, "mnist_lenet"), "sceptic_cifar10_ddnet": partial(figure, "cifar10_ddnet")}
