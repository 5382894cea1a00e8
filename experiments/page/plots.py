"""Figures from arrays: what a person looks at."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from experiments.page import results

CLASS_COLOURS = plt.get_cmap("tab10")
COLOURS = {"none": "#444444", "L2": "#1f77b4", "dropout": "#2ca02c", "Jacobian": "#d62728", "all": "#9467bd"}
DEFENCE_COLOURS = {"none": "#444444", "adversarial": "#ff7f0e", "Jacobian": "#d62728", "both": "#9467bd"}
ATTACK_COLOURS = {"white noise": "#1f77b4", "FGSM": "#2ca02c", "PGD": "#ff7f0e", "CW": "#d62728"}


def draw_cells(axes, classes, confidence, extent: float, radius: float, title: str):
    """Decision cells of one model in a plane through a sample.

    Colour: predicted class; strength and contours: largest softmax value; circle: the nearest boundary in the plane.

    Args:
        axes: matplotlib axes.
        classes: [R, R] integer, row = second direction.
        confidence: [R, R] in [0, 1].
        extent: half the side of the square, L2 distance in raw pixels.
        radius: distance to the nearest boundary in the plane, same unit; inf if none was met.
        title: of the panel.
    """
    rgba = CLASS_COLOURS(np.asarray(classes) % 10)
    rgba[..., 3] = np.clip((np.asarray(confidence) - 0.1) / 0.9, 0.05, 1)
    box = (-extent, extent, -extent, extent)
    axes.imshow(rgba, origin="lower", extent=box, interpolation="nearest")
    grid = np.linspace(-extent, extent, len(confidence))
    axes.contour(grid, grid, confidence, levels=[0.4, 0.6, 0.8, 0.95], colors="k", linewidths=0.4, alpha=0.5)
    axes.plot(0, 0, "ko", markersize=5)
    if np.isfinite(radius):
        axes.add_patch(plt.Circle((0, 0), radius, fill=False, color="k", linewidth=1.2))
    nearest = f"nearest boundary at {radius:.2f}" if np.isfinite(radius) else "no boundary in reach"
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    axes.set(xlim=box[:2], ylim=box[2:], aspect="equal")
    axes.set(title=f"{title}\n{nearest}", xlabel="L2 distance in raw pixels")


def draw_image(axes, image, title: str):
    """One raw image [H, W, 1] in grey."""
    axes.imshow(np.asarray(image)[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.set(title=title, xticks=[], yticks=[])


def class_legend(figure, classes):
    """One colour patch for each class that is seen, below the panels."""
    seen = sorted({int(c) for c in np.unique(np.asarray(classes))})
    patches = [plt.Rectangle((0, 0), 1, 1, color=CLASS_COLOURS(c % 10)) for c in seen]
    labels = [str(c) for c in seen]
    figure.legend(patches, labels, title="predicted class", loc="lower center", ncols=len(seen), frameon=False)


def band(axes, x, curves, colour, label: str):
    """Mean of the seeds, and a shade of one standard deviation where there are several."""
    curves = np.asarray(curves, float)
    mean, std = curves.mean(0), curves.std(0, ddof=1) if len(curves) > 1 else 0
    axes.plot(x, mean, color=colour, label=f"{label} ({len(curves)} seed{'s' * (len(curves) > 1)})", linewidth=1.4)
    if len(curves) > 1:
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, linewidth=0)


# L2 distance, raw pixels, up to which curves are drawn, by data set
REACH = {"mnist": {"white noise": 12, "PGD": 4, "CW": 4, "all": 10}}
REACH["cifar10"] = {"white noise": 12, "PGD": 1.5, "CW": 1, "all": 5}
REACH["imagenet"] = {"white noise": 200, "PGD": 25, "CW": 15, "all": 200}  # 50 times the pixels


def fooled_within(distances, grid) -> np.ndarray:
    """Test error in % at every distance of the grid."""
    return 100 * np.searchsorted(np.sort(distances), grid, side="right") / len(distances)


def legend(axes, columns: int = 2, title: str | None = None):
    """Below the panel, where it hides no curve; "not run" in a panel without one."""
    if not axes.lines:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center")
        return
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": columns}
    axes.legend(frameon=False, fontsize=8, title=title, title_fontsize=8, **place)


def save(figure, path: Path) -> None:
    """Save a matplotlib figure to path atomically; an .svg is the same every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    same = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    with plt.rc_context({"svg.hashsalt": "jacreg_jax"}):
        figure.savefig(partial, dpi=150, bbox_inches="tight", **same)
    partial.replace(path)


def say_length(figure, steps: int, full: int) -> None:
    """Above a figure of shorter trainings than the paper's."""
    if steps != full:
        figure.suptitle(length(steps, full), y=1.0, fontsize=10)


def length(steps: int, full: int) -> str:
    """Of a training, beside the paper's."""
    return f"{steps:,} training steps" + f", {steps / full:.2g} of the paper's" * (steps != full)


def planes(path: Path, facts: dict, titles: dict[str, str]):
    """A row for each sample: the image, and each model's decision cells in a plane around it.

    Args:
        path: .npz of ROW/image, ROW/MODEL/classes, confidence and radius.
        facts: with samples (label, dots) and the extent of a panel.
        titles: of the models.

    Raises:
        ValueError: the file is damaged; with its path and the remedy.
    """
    extent = facts["config"]["extent"]
    arrays = results.arrays(path)
    rows, columns = len(facts["samples"]), len(titles) + 1
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 3.9 * rows), squeeze=False)
    for row, sample in enumerate(facts["samples"]):
        draw_image(axes[row, 0], arrays[f"{row}/image"][..., None] / 255, f"label {sample['label']}")
        for axis, (model, title) in zip(axes[row, 1:], titles.items(), strict=True):
            classes, confidence, radius = (
                arrays[f"{row}/{model}/{part}"] for part in ("classes", "confidence", "radius")
            )
            draw_cells(axis, classes, confidence / 255, extent, radius, title)
            for dot, colour in zip(sample["dots"], ("#555555", "white"), strict=False):
                axis.plot(*dot, "o", color=colour, markeredgecolor="k", markersize=5)
    seen = np.concatenate([arrays[k].ravel() for k in arrays if k.endswith("classes")])
    figure.subplots_adjust(hspace=0.35, bottom=0.16 / rows + 0.04)
    class_legend(figure, seen)
    return figure
