"""Results and logs on disk, written whole or not at all."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

RUNS = Path("runs")  # raw runs, ignored by git
RESULTS = Path(__file__).parent / "results"  # small json and figures, committed


def write_json(path: Path, content) -> None:
    """Write content to path atomically: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def save_figure(figure, path: Path) -> None:
    """Save a matplotlib figure to path atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    figure.savefig(partial, dpi=150, bbox_inches="tight")
    partial.replace(path)


def environment() -> dict:
    """Versions and devices that a result depends on."""
    import jax

    packages = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    devices = sorted({device.device_kind for device in jax.devices()})
    return {"python": platform.python_version(), **packages, "devices": devices, "device_count": jax.device_count()}
