"""Weak scaling on paper: a step's time on one chip, and that of its all-reduce on many. Nothing of it was measured.

    t(D) = max(FLOPs / peak, bytes moved / bandwidth) + sum over all-reduces [2 (D - 1) / D bytes / link + hops latency]

No overlap of the two is assumed: the efficiency t(1) / t(D) is that of a step which waits for every sum.
"""

import math
from typing import NamedTuple

from experiments.page import results


class Chip(NamedTuple):
    """What a chip and its network can do at most, by their makers' data sheets."""

    flops: float  # a second; of matrix products at XLA's default precision
    memory: float  # bytes a second
    link: float  # bytes a second of an all-reduce inside a slice, both directions of one ring
    slice: int  # chips of one slice
    outside: float  # bytes a second of a chip between slices
    latency: float  # seconds a hop


V5E = Chip(flops=197e12, memory=819e9, link=90e9, slice=256, outside=3e9, latency=1e-6)
CHIPS = (1, 8, 64, 256, 1024)


def step_seconds(row: dict, chip: Chip) -> float:
    """The step of one chip, bound by arithmetic or by memory."""
    return max(row["flops"] / chip.flops, row["bytes_moved"] / chip.memory)


def sum_seconds(calls: int, size: float, chips: int, chip: Chip) -> float:
    """So many all-reduces of `size` bytes in all: a ring in each slice, and one between slices."""
    inside, slices = min(chips, chip.slice), math.ceil(chips / chip.slice)
    around = lambda d, link: 2 * (d - 1) / d * size / link
    hops = 2 * (math.isqrt(inside) - 1) + 2 * (slices - 1)
    return around(inside, chip.link) + around(slices, chip.outside * inside) + calls * hops * chip.latency


def table() -> str:
    """Milliseconds of a step and its efficiency, TPU v5e, from the compiler's own counts."""
    found = results.read("accelerators_v5e")
    if found is None:
        return "not run"
    share, rows = found["config"]["share"], found["rows"]
    many = {(r["network"], r["variant"]): r for r in rows if r["chips"] > 1 and r["backend"] == "jit"}
    lines = []
    for (network, variant), row in many.items():
        alone = next((r for r in rows if (r["network"], r["variant"], r["chips"]) == (network, variant, 1)), None)
        if alone is None:
            continue
        calls, size = row["collectives"].get("all-reduce", (0, 0))
        first = step_seconds(alone, V5E)
        times = [first + (sum_seconds(calls, size, chips, V5E) if chips > 1 else 0) for chips in CHIPS]
        cells = [f"{1e3 * t:.2f} ({100 * first / t:.0f} %)" for t in times]
        lines.append([f"{network} {variant}", f"{calls} of {size / 1e6:.2f} MB", *cells])
    header = [f"TPU v5e, {share} samples a chip; ms a step (efficiency)", "all-reduces", *(f"{n} chips" for n in CHIPS)]
    return results.table(header, lines)


def hosts() -> str:
    """The measured step of a host with two CPU cores, and the gradients' all-reduce over 10 gigabit Ethernet."""
    link, latency, lines = 1.25e9, 50e-6, []
    for name, label in {"lenet": "LeNet'", "ddnet": "DDNet", "resnet18": "ResNet-18"}.items():
        measured, counted = results.read(f"benchmark_{name}_cpu"), results.read("sharded_cpu")
        if measured is None or counted is None:
            continue
        seconds = (
            next(r["ms"] for r in measured["rows"] if (r["variant"], r["framework"]) == ("n = 1", "jacreg_jax")) / 1e3
        )
        of = [r for r in counted["rows"] if (r["network"], r["variant"], r["backend"]) == (label, "n = 1", "jit")]
        if not of:
            continue
        sizes = of[0]["collectives"]["all-reduce"]
        time = lambda d: seconds + 2 * (d - 1) / d * sum(sizes) / link + len(sizes) * 2 * math.log2(d) * latency
        cells = [f"{1e3 * time(d):.0f} ({100 * seconds / time(d):.0f} %)" for d in (1, 2, 8, 64)]
        lines.append([f"{label} n = 1", f"{len(sizes)} of {sum(sizes) / 1e6:.2f} MB", *cells])
    header = ["hosts of two cores; ms a step (efficiency)", "all-reduces", *(f"{d} hosts" for d in (1, 2, 8, 64))]
    return results.table(header, lines) if lines else "not run"


TABLES = {"projection": table, "projection_hosts": hosts}
