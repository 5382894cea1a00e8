"""Compile the sharded training step for chips that are not here, and count what the programs hold.

Command:    make check-accelerators, which installs each compiler into a folder of its own and calls
            python -m experiments.accelerators h100|v5e|cpu
Time:       h100 10 minutes, v5e an hour, on one core
Leaves:     experiments/results/accelerators_NAME.json, a row as soon as it is there; other rows stay
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from jax.sharding import Mesh, SingleDeviceSharding
from tqdm import tqdm

from experiments import RESULTS
from experiments.accelerators import counting, tables, targets
from experiments.benchmarks import sharded
from experiments.lab import record, stopping
from experiments.lab.options import in_paragraphs

CASES = ((1, "jit"), (8, "jit"), (8, "shard_map"), (64, "jit"), (64, "shard_map"))
KEY = ("network", "variant", "chips", "backend")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled; the defaults are those of the committed results."""

    target: Annotated[Literal["h100", "v5e", "cpu"], tyro.conf.Positional]
    networks: tuple[str, ...] = ("LeNet'", "DDNet", "ResNet-18")
    variants: tuple[str, ...] = ("plain", "n = 1")
    share: int = 128  # rows of each device
    chips: tuple[int, ...] = (1, 8, 64)  # on CPU at most 8
    backends: tuple[str, ...] = ("jit", "shard_map")
    missing: bool = False  # only what is not in the result yet


def compiled(network: str, variant: str, chips: int, backend: str, config: Config):
    """The step for so many chips, from shapes alone."""
    target = targets.TARGETS[config.target]
    devices = target.devices(chips)
    mesh = Mesh(np.array(devices), ("data",)) if chips > 1 else None
    parts = sharded.NETWORKS[network], sharded.VARIANTS[variant], mesh, backend, config.share * chips
    step, *arguments = sharded.step_and_arguments(*parts)
    if mesh is None:
        place = SingleDeviceSharding(devices[0])
        shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        arguments = jax.tree.map(shape, arguments)
    return step.lower(*arguments).compile(compiler_options=target.options)


def main(config: Config):
    """Compile case by case, one at a time, write each row, print the table."""
    targets.prepare(config.target)
    path = RESULTS / f"accelerators_{config.target}.json"
    rows = read(path)
    most = 8 if config.target == "cpu" else 64
    for network, variant in ((n, v) for n in config.networks for v in config.variants):
        cases = [c for c in CASES if c[0] in config.chips and c[0] <= most and c[1] in config.backends]
        for chips, backend in tqdm(cases, desc=f"{network} {variant}", disable=None):
            key = network, variant, chips, backend
            if config.missing and key in rows:
                continue
            start = time.perf_counter()
            program = compiled(*key, config)
            row = dict(zip(KEY, key, strict=True)) | counting.counts(program)
            rows[key] = row | {"compile_seconds": round(time.perf_counter() - start, 1), "share": config.share}
            settings = {"config": {"share": config.share}, "environment": record.environment()}
            record.write_json(path, settings | {"rows": list(rows.values())})
    print(tables.table(config.target))


def read(path: Path) -> dict[tuple, dict]:
    """The rows that are there, by what they are of."""
    return {tuple(row[k] for k in KEY): row for row in record.read_json(path)["rows"]} if path.exists() else {}


if __name__ == "__main__":
    with stopping.in_one_line("stopped; rows that are done are written, and --missing goes on"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
