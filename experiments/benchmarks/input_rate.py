"""Images a second that one core reads, decodes and crops: ImageNet's records, in this process or by one worker.

Measured on the 20 photographs that foolbox ships, most of 512 x 512 pixels and 86 kB, a fifth more than ImageNet's.

Command:    python -m experiments.benchmarks.input_rate
Leaves:     experiments/results/benchmark_input_rate_cpu.json
"""

import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import tyro
from tqdm import tqdm

from experiments.benchmarks import page
from experiments.benchmarks.rows import write
from experiments.lab import small_imagenet, stopping
from experiments.lab.options import in_paragraphs
from jacreg_jax.datasets import images, streams

TRANSFORMS = {
    "decoded alone": images.stored,
    "random crop to 224, flip": images.augmented,
    "resized to 256, middle 224": images.centered,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long is measured."""

    batch_size: int = 20
    batches: int = 10
    rounds: int = 5


def rate(batches: streams.Batches, config: Config) -> float:
    """Images a second of processor time, of this process and its worker: what else runs here does not count."""
    with batches:
        next(batches)
        start = processor_seconds()
        for _ in range(config.batches):
            next(batches)
        return config.batches * config.batch_size / (processor_seconds() - start)


def processor_seconds() -> float:
    """That this process and its workers have used."""
    ticks = 0
    for worker in multiprocessing.active_children():
        user, system = Path(f"/proc/{worker.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        ticks += int(user) + int(system)
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measure(source: streams.Source, config: Config) -> list[dict]:
    """The median over the rounds, of every transform."""
    rows = []
    for name, transform in TRANSFORMS.items():
        sized = partial(_cut, transform) if transform is images.stored else transform
        for workers in (0, 1):
            make = partial(streams.train_batches, source, sized, batch_size=config.batch_size, num_workers=workers)
            found = [rate(make(), config) for _ in tqdm(range(config.rounds), desc=name, leave=False, disable=None)]
            rows.append({"transform": name, "workers": workers, "images_per_second": statistics.median(found)})
    return rows


def _cut(transform, data, rng):
    """The first 64 x 64 pixels, so that photographs of all sizes make a batch."""
    return transform(data, rng)[:64, :64]


def main(config: Config):
    """Prepare the small folder, measure on one core, print the table, write the result."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        small_imagenet.prepare(Path(folder), times=10)
        rows = measure(streams.open_split("imagenet2012", "train", data_dir=folder), config)
    write("input_rate_cpu", rows, config)
    print(page.input_rate())


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
