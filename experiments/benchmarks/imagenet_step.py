"""ResNet-18 at 224 x 224 with 1,000 classes: one training step with n = 1, and the exact norm of one image in chunks.

Images come from the input pipeline; each part runs in a process of its own, whose peak memory is its own.

Command:    python -m experiments.benchmarks.imagenet_step
Leaves:     experiments/results/benchmark_imagenet_step_cpu.json
"""

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro

import jacreg_jax as jr
from experiments.benchmarks import page
from experiments.benchmarks.rows import write
from experiments.lab import programs, small_imagenet, stopping, streams
from experiments.lab.options import in_paragraphs
from experiments.lab.problems import IMAGENET_RESNET18
from experiments.lab.recipes import plain
from jacreg_jax import models, training


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured; the defaults are those of the committed results."""

    batch_size: int = 8
    chunk_size: int = 8  # rows of the Jacobian at once, of 1,000
    lambda_jr: float = 0.01
    part: Literal["both", "step", "norm"] = "both"  # both: each in a process of its own, and the result is written


def step(config: Config) -> dict:
    """Two steps, the first of which compiles."""
    problem = dataclasses.replace(IMAGENET_RESNET18, augment=None)
    recipe = dataclasses.replace(plain(problem), lambda_jr=config.lambda_jr, batch_size=config.batch_size)
    loss, optimizer = programs.loss_and_optimizer(recipe, lambda_jr=config.lambda_jr, weight_decay=problem.weight_decay)
    train_step, state = training.make_train_step(loss, optimizer), programs.initial_state(recipe, 0, optimizer)
    with photographs(problem, config.batch_size) as feed:
        for _ in range(2):
            batch, start = next(feed), time.perf_counter()
            state, metrics = jax.block_until_ready(train_step(state, batch))
    seconds = time.perf_counter() - start
    return {"part": "step", "seconds": seconds, **{name: float(value) for name, value in metrics.items()}}


def norm(config: Config) -> dict:
    """||J||_F of one image, all 1,000 rows; beside it what the compiler would need for all of them at once."""
    module = models.ResNet18(num_classes=1000, variant="imagenet")
    params, state = models.initialize(module, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    f = models.predictor(module, params, state)
    with photographs(IMAGENET_RESNET18, 1) as feed:
        x = IMAGENET_RESNET18.preprocessing.normalize(next(feed)["image"])
    compiled = [
        jax.jit(lambda x, size=size: jr.exact_frobenius_sq(f, x, chunk_size=size)).lower(x).compile()
        for size in (config.chunk_size, 1000)
    ]
    temporaries = [program.memory_analysis().temp_size_in_bytes for program in compiled]
    start = time.perf_counter()
    value = float(jnp.sqrt(compiled[0](x))[0])
    seconds = time.perf_counter() - start
    return {"part": "norm", "seconds": seconds, "norm": value} | dict(
        zip(("temporary_bytes", "temporary_bytes_at_once"), temporaries, strict=True)
    )


def photographs(problem, batch_size: int):
    """Training batches of the small ImageNet."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = small_imagenet.prepare(Path(folder))
        source = streams.streams.open_split("imagenet2012", "train", data_dir=prepared.parents[1])
        records = [source[i] for i in range(len(source))]
    return streams.training(problem, batch_size=batch_size, seed=0, source=records)


def measured(part: str, config: Config) -> dict:
    """One part in a process of its own, with its peak memory."""
    options = [f"--{f.name.replace('_', '-')}={getattr(config, f.name)}" for f in dataclasses.fields(Config)[:-1]]
    command = [sys.executable, "-m", "experiments.benchmarks.imagenet_step", f"--part={part}", *options]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])


def main(config: Config):
    """Measure, print the table, write the result."""
    if config.part != "both":
        row = {"step": step, "norm": norm}[config.part](config)
        print(json.dumps(row | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
        return
    write("imagenet_step_cpu", [measured(part, config) for part in ("step", "norm")], config)
    print(page.imagenet_step())


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
