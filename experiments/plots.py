"""Figures from arrays: what a person looks at."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

CLASS_COLOURS = plt.get_cmap("tab10")


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


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
    return "\n".join([line(header), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])
