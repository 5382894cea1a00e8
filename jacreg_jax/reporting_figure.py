"""The figure of a report."""

from typing import Any

import numpy as np


def draw(sections: dict[str, dict[str, Any]]) -> Any:
    """Accuracy under noise, accuracy under corruptions by severity, and robust accuracy after each attack."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError('figure() draws with matplotlib: pip install "jacreg-jax[experiments]"') from None

    panels = [
        panel for panel in (_noise, _corruptions, _worst_case) if panel.__name__[1:].replace("_", " ") in sections
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        panel(axis, sections)
    return figure


def _noise(axis: Any, sections: dict[str, dict[str, Any]]) -> None:
    found = sections["noise"]
    sigmas = [0.0, *(float(name.split("=")[1]) for name in found)]
    clean = next(iter(sections["clean"].values()))
    axis.plot(sigmas, [100 * clean, *(100 * v for v in found.values())], marker="o")
    axis.set(xlabel="standard deviation of white noise", ylabel="accuracy, %", ylim=(0, 103), title="white noise")


def _corruptions(axis: Any, sections: dict[str, dict[str, Any]]) -> None:
    found = {name: v for name, v in sections["corruptions"].items() if isinstance(v, list)}
    for i, (name, values) in enumerate(found.items()):
        look = {"color": f"C{i % 10}", "linestyle": "-" if i < 10 else "--"}  # ten colours, twelve families
        axis.plot(range(1, 6), 100 * np.asarray(values), marker=".", label=name.replace("_", " "), **look)
    axis.set(xlabel="severity", ylabel="accuracy, %", ylim=(0, 103), title="corruptions", xticks=range(1, 6))
    axis.legend(fontsize=7, ncols=2)


def _worst_case(axis: Any, sections: dict[str, dict[str, Any]]) -> None:
    found = sections["worst case"]
    places = np.arange(len(found))[::-1]
    is_last = [name.endswith("robust accuracy") for name in found]
    axis.barh(places, [100 * v for v in found.values()], color=["C3" if last else "C0" for last in is_last])
    axis.set(yticks=places, yticklabels=list(found), xlabel="robust accuracy, %", xlim=(0, 100), title="worst case")
    axis.tick_params(axis="y", labelsize=7)
