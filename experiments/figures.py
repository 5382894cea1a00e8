"""Figures of the results page, drawn from the committed results; each returns None where nothing was run."""

import json

import matplotlib.pyplot as plt
import numpy as np

from experiments import plots, record
from experiments.figure_tables import survivors
from experiments.recipes import Recipe
from experiments.tables import DEFENCE_NAMES, NAMES, models
from jacreg_jax.evaluation import fooling_curve

DEFENCE_COLOURS = {"none": "#444444", "adversarial": "#ff7f0e", "Jacobian": "#d62728", "both": "#9467bd"}
ATTACK_COLOURS = {"white noise": "#1f77b4", "FGSM": "#2ca02c", "PGD": "#ff7f0e", "CW": "#d62728"}
COLOURS = {"none": "#444444", "L2": "#1f77b4", "dropout": "#2ca02c", "Jacobian": "#d62728", "all": "#9467bd"}


def band(axes, x, curves, colour, label: str):
    """Mean of the seeds, and a shade of one standard deviation where there are several."""
    curves = np.asarray(curves, float)
    mean, std = curves.mean(0), curves.std(0, ddof=1) if len(curves) > 1 else 0
    axes.plot(x, mean, color=colour, label=f"{label} ({len(curves)} seed{'s' * (len(curves) > 1)})", linewidth=1.4)
    if len(curves) > 1:
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


def legend(axes, columns: int = 2, title: str | None = None):
    """Below the panel, where it hides no curve."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": columns}
    axes.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, **place)


def legend_or_not_run(axes, **options):
    """What a panel without curves says instead of a legend."""
    if axes.lines:
        legend(axes, **options)
    else:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")


def length(recipe: dict) -> str:
    """Of the training, beside the paper's."""
    steps, full = recipe["num_steps"], Recipe().num_steps
    return f"{steps:,} training steps" + f", {steps / full:.2g} of the paper's" * (steps != full)


def figure2():
    """Exact penalty against n = 1 and n = 3, during training."""
    found = {name: models(f"figure2/{name}") for name in ("exact", "n1", "n3")}
    if not any(found.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for (name, seeds), colour in zip(found.items(), ("#17becf", "#1f77b4", "#ff4500"), strict=True):
        if not seeds:
            continue
        recipe = config(f"figure2/{name}")["recipe"]
        steps = [point["step"] for point in seeds[0]["curve"]]
        label = {"exact": "exact", "n1": "n = 1", "n3": "n = 3"}[name]
        band(axes[0], steps, [[100 * p["accuracy"] for p in m["curve"]] for m in seeds], colour, label)
        band(axes[1], steps, [[p["jacobian_norm"]["mean"] for p in m["curve"]] for m in seeds], colour, label)
    for axis in axes:
        for quench in range(recipe["quench_every"], recipe["num_steps"], recipe["quench_every"]):
            axis.axvline(quench, color="gray", linestyle="--", linewidth=0.8)
        axis.set_xlabel("training step, thousands")
        axis.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}")
        legend(axis, 3)
    figure.suptitle(f"{length(recipe)}; dashed: the learning rate falls tenfold", y=1.02, fontsize=10)
    axes[0].set(ylabel="test accuracy, %", title="(a) accuracy")
    axes[1].set(ylabel="mean ||J||_F, preprocessed input", title="(b) norm of the Jacobian")
    return figure


def figure3():
    """White noise by regularizer; PGD and CW by defence."""
    noise = {name: models(f"figure3/noise-{name}") for name in NAMES}
    attacked = {a: {n: models(f"figure3/{a}-{n}") for n in DEFENCE_NAMES} for a in ("PGD", "CW")}
    if not any(noise.values()):
        return None
    figure, axes = plt.subplots(1, 3, figsize=(14, 4))
    for name, seeds in noise.items():
        if seeds:
            sigmas = config(f"figure3/noise-{name}")["sigmas"]
            band(axes[0], sigmas, [[100 * a for a in m["accuracy"]] for m in seeds], COLOURS[name], NAMES[name])
    axes[0].set(title="(a) white noise", xlabel="standard deviation, raw pixels", ylabel="test accuracy, %")
    for name, seeds in attacked["PGD"].items():
        if seeds:
            steps = np.arange(61)
            curves = [[100 * survivors(m, k) for k in steps] for m in seeds]
            band(axes[1], steps, curves, DEFENCE_COLOURS[name], DEFENCE_NAMES[name])
    axes[1].set(title="(b) PGD, 1/255 a step, within 32/255", xlabel="steps", ylabel="test accuracy, %")
    for name, seeds in attacked["CW"].items():
        if seeds:
            grid = np.linspace(0, 4, 161)
            curves = [100 - 100 * fooling_curve(record.from_json(m["distance"]), grid) for m in seeds]
            band(axes[2], grid, curves, DEFENCE_COLOURS[name], DEFENCE_NAMES[name])
    axes[2].set(title="(c) CW", xlabel="L2 distance, raw pixels", ylabel="test accuracy, %")
    for axis in axes:
        axis.set_ylim(0, 100)
        legend_or_not_run(axis)
    return figure


def figure_s5():
    """Test error against fooling distance, without and with defence."""
    found = {n: {a: models(f"figure_s5/{a.replace(' ', '-')}-{n}") for a in ATTACK_COLOURS} for n in ("none", "both")}
    if not any(seeds for by_attack in found.values() for seeds in by_attack.values()):
        return None
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, (name, by_attack) in zip(axes, found.items(), strict=True):
        for attack, seeds in by_attack.items():
            if seeds:
                grid = np.linspace(0, 10, 401)
                curves = [100 * np.asarray(fooling_curve(record.from_json(m["distance"]), grid)) for m in seeds]
                band(axis, grid, curves, ATTACK_COLOURS[attack], attack)
        title = {"none": "(a) L2 and dropout", "both": "(d) + Jacobian and adversarial training"}[name]
        axis.set(title=title, xlabel="L2 distance, raw pixels", ylabel="test error, %", ylim=(0, 100))
        legend_or_not_run(axis)
    return figure


def figure_s6():
    """Test accuracy against distance by lambda_jr."""
    paths = (record.RESULTS / "figure_s6").glob("clean-*.json")
    values = sorted((p.stem.split("-", 1)[1] for p in paths), key=float)
    if not values:
        return None
    kinds = {"white-noise": ("white noise", 12), "PGD": ("PGD", 4), "CW": ("CW", 4)}
    figure, axes = plt.subplots(1, 3, figsize=(14, 4))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(values)))
    for axis, (attack, (title, stop)) in zip(axes, kinds.items(), strict=True):
        for value, colour in zip(values, colours, strict=True):
            seeds = models(f"figure_s6/{attack}-{value}")
            if seeds:
                grid = np.linspace(0, stop, 161)
                curves = [100 - 100 * np.asarray(fooling_curve(record.from_json(m["distance"]), grid)) for m in seeds]
                band(axis, grid, curves, colour, value)
        axis.set(title=title, xlabel="L2 distance, raw pixels", ylabel="test accuracy, %", ylim=(0, 100))
        legend_or_not_run(axis, title="lambda_jr")
    figure.suptitle(length(config(f"figure_s6/clean-{values[0]}")["recipe"]), y=1.0, fontsize=10)
    return figure


def cells(name: str):
    """Decision cells of Figure 1, S1 or S2."""
    path = record.RESULTS / "figure1" / f"figure{name}.npz"
    if not path.exists():
        return None
    facts = json.loads(path.with_suffix(".json").read_text())
    panels, extent = list(facts["config"]["recipes"]), facts["config"]["extent"]
    titles = {"none": "L2 and dropout", "both": "+ Jacobian, adversarial training"} if name == "S2" else NAMES
    with np.load(path) as arrays:
        rows, columns = len(facts["samples"]), len(panels) + 1
        figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.9 * rows), squeeze=False)
        for row, sample in enumerate(facts["samples"]):
            plots.draw_image(axes[row, 0], arrays[f"{row}/image"][..., None] / 255, f"label {sample['label']}")
            for axis, panel in zip(axes[row, 1:], panels, strict=True):
                get = lambda key, row=row, panel=panel: arrays[f"{row}/{panel}/{key}"]
                plots.draw_cells(axis, get("classes"), get("confidence") / 255, extent, get("radius"), titles[panel])
                for dot, colour in zip(sample["dots"], ("#555555", "white"), strict=False):
                    axis.plot(*dot, "o", color=colour, markeredgecolor="k", markersize=5)
        seen = np.concatenate([arrays[k].ravel() for k in arrays if k.endswith("classes")])
    figure.subplots_adjust(hspace=0.35, bottom=0.16 / rows + 0.04)
    plots.class_legend(figure, seen)
    return figure


def config(name: str) -> dict:
    """The configuration of a result file."""
    return json.loads((record.RESULTS / f"{name}.json").read_text())["config"]


FIGURES = {
    "figure1": lambda: cells("1"),
    "figure_s1": lambda: cells("S1"),
    "figure_s2": lambda: cells("S2"),
    "figure2": figure2,
    "figure3": figure3,
    "figure_s5": figure_s5,
    "figure_s6": figure_s6,
}
