"""Figure 2: exact Jacobian penalty against n = 1 and n = 3 projections, test accuracy and ||J||_F during training.

Command:    python -m experiments figure2
Paper:      the three are the same to the eye; n = 1 and exact end at the same accuracy and ||J||_F.
Time:       one CPU core and model: some 50 minutes for n = 1, 70 for n = 3, two hours for exact.
Leaves:     experiments/results/figure2/VARIANT.json, by seed.
"""

import dataclasses
from functools import partial
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import measure, options, zoo
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import Recipe, plain
from experiments.page import plots, results
from experiments.page.elements import Element, of_claim
from experiments.paper.numbers import FULL

VARIANTS = {"exact": "exact", "n = 1": 1, "n = 3": 3}
FILES = {name: name.replace(" = ", "") for name in VARIANTS}
COLOURS = {"exact": "#17becf", "n = 1": "#1f77b4", "n = 3": "#ff4500"}


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """The defaults are the paper's."""

    variants: tuple[Literal["exact", "n = 1", "n = 3"], ...] = ("n = 1", "n = 3", "exact")
    points: int = 30
    """Tests during training."""
    norms: int | None = 1000
    """Test samples that ||J||_F is averaged over during training, None: all. At the end it is always all of them."""


QUICK = options.QUICK | {"variants": ("n = 1", "exact"), "points": 2, "norms": 50}


def cells(config: Config) -> list[Cell]:
    """Models that are tested on the way.

    Raises:
        ValueError: num_steps / points is no multiple of dispatch.
    """
    found = []
    for name in config.variants:
        recipe = dataclasses.replace(
            plain(MNIST_LENET), lambda_jr=MNIST_LENET.lambda_jr, num_projections=VARIANTS[name]
        ).shortened(config.num_steps)
        every = max(1, recipe.num_steps // config.points)
        if every % config.dispatch:
            raise ValueError(f"num_steps / points must be a multiple of dispatch, {config.dispatch}; got {every}")
        clean = partial(measure.clean, seed=0, norms=config.norms, data_dir=config.data_dir)
        watch = zoo.Watch(
            lambda model, clean=clean: {"test": clean(model)}, every, f"-every-{every}-norms-{config.norms}"
        )
        settings = {"norms": config.norms, "every": every}
        of_run = partial(curve, recipe=recipe, watch=watch, config=config)
        found.append(Cell(f"figure2/{FILES[name]}", recipe, range(config.seeds), settings, of_run, watch))
    return found


def curve(model: zoo.Model, seed: int, *, recipe: Recipe, watch: zoo.Watch, config: Config) -> dict:
    """What was seen while the model was trained, and its end on the whole test set.

    The squared norms have a long tail: a thousand samples tell two models 10 % apart that are equal on ten thousand.
    """
    end = measure.clean(model, seed=0, norms=None, data_dir=config.data_dir)
    rows = [row for row in zoo.history(zoo.model_path(recipe, seed, config, watch)) if "test" in row]
    return {"curve": [{"step": row["step"], **row["test"]} for row in rows], "end": end}


def file(name: str) -> str:
    """The result of a variant, at the greatest length that was run."""
    return f"{results.longest('figure2')}/{FILES[name]}"


def ends(name: str) -> dict[str, dict]:
    """Of a variant after its training, on the whole test set, by seed."""
    return {seed: model["end"] for seed, model in results.by_seed(file(name)).items()}


def table() -> str:
    """Each variant after its training, on the whole test set."""
    rows = []
    for name in VARIANTS:
        found = list(ends(name).values())
        steps = results.steps(results.config(file(name))["recipe"]) if found else "not run"
        values = (list(map(results.percent, found)), 2), (list(map(results.norm, found)), 3)
        rows.append([name, steps, *(results.spread(*of) for of in values)])
    return results.table(["penalty", "steps", "test accuracy, %", "‖J‖_F"], rows)


def figure():
    """During training; None where nothing was run."""
    found = {name: results.models(file(name)) for name in VARIANTS}
    if not any(found.values()):
        return None
    drawing, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, seeds in found.items():
        if seeds:
            recipe, steps = results.config(file(name))["recipe"], [point["step"] for point in seeds[0]["curve"]]
            for axis, value in zip(axes, (results.percent, results.norm), strict=True):
                plots.band(axis, steps, [list(map(value, m["curve"])) for m in seeds], COLOURS[name], name)
    for axis in axes:
        for quench in range(recipe["quench_every"], recipe["num_steps"], recipe["quench_every"]):
            axis.axvline(quench, color="gray", linestyle="--", linewidth=0.8)
        axis.set_xlabel("training step, thousands")
        axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}")
        plots.legend(axis, 3)
    title = plots.length(recipe["num_steps"], MNIST_LENET.num_steps)
    drawing.suptitle(f"{title}; dashed: the learning rate falls tenfold", y=1.02, fontsize=10)
    axes[0].set(ylabel="test accuracy, %", title="(a) accuracy")
    axes[1].set(ylabel="‖J‖_F, preprocessed input", title="(b) norm of the Jacobian")
    return drawing


def margins() -> list[list[float]]:
    """What is left of 0.1 points and of 5 % between n = 1 and exact at the end."""
    one, exact = ends("n = 1"), ends("exact")
    points = results.paired(exact, one, results.percent)
    ratios = np.exp(results.paired(exact, one, lambda end: np.log(results.norm(end))))
    return [[0.1 - abs(p) for p in points], [0.05 - abs(ratio - 1) for ratio in ratios]]


TABLES = {"figure2": table}
FIGURES = {"figure2": figure}
ELEMENTS = [
    Element(
        "Figure 2",
        "exact penalty and one projection end at the same accuracy and ‖J‖_F (here: within 0.1 points and 5 %)",
        lambda: of_claim(file("n = 1"), margins, MNIST_LENET.num_steps, FULL),
        lambda: results.names(f"{results.longest('figure2')}/*"),
    )
]
