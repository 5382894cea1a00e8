"""What every benchmark leaves: rows, with the settings and the machine that they were measured on."""

import dataclasses
import os
from typing import Any

from experiments import RESULTS
from experiments.lab import record


def write(name: str, rows: list[dict], config: Any):
    """results/benchmark_NAME.json: a file each, since ratios are of one run."""
    settings = {"config": dataclasses.asdict(config), "environment": record.environment(), "machine": machine()}
    record.write_json(RESULTS / f"benchmark_{name}.json", settings | {"rows": rows})


def machine() -> str:
    """The processor's name, the cores this process may use, and whether it has AVX-512."""
    try:
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        return "unknown"
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    cores = len(os.sched_getaffinity(0))
    wide = ", AVX-512" if "avx512f" in facts.get("flags", "") else ""
    return f"{facts.get('model name', 'unknown')}, {cores} core{'s' if cores > 1 else ''}{wide}"
