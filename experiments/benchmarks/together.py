"""Models of DDNet in one program, vmapped, and one after the other: what a step of each takes on a GPU.

Command:    python -m experiments.benchmarks.together [--matmuls]
Time:       one H100: 3 minutes, nearly all of it compilation.
Leaves:     experiments/results/benchmark_together_BACKEND.json
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.interpreters import mlir

from experiments.benchmarks import on_gpu
from experiments.benchmarks.rows import write
from experiments.lab import stopping
from experiments.lab.batches import rows_of
from experiments.lab.options import in_paragraphs
from experiments.lab.problems import CIFAR10_DDNET, images
from experiments.lab.programs import initial_state, make_steps
from experiments.lab.recipes import regularizers
from jacreg_jax.convolution.matmul_form import matmul_form
from jacreg_jax.convolution.primitive import convolution_p

# regularizer, samples per class (None: batches of 100 out of all), models in one program
CASES = (("none", None, 1), ("none", None, 4), ("Jacobian", None, 1), ("Jacobian", None, 2))
CASES += (("none", 3, 10), ("Jacobian", 3, 1), ("Jacobian", 3, 5))


@dataclasses.dataclass(frozen=True)
class Config:
    """How long is timed."""

    steps: int = 50
    """Of a dispatch."""
    rounds: int = 4
    """The least of them is taken."""
    matmuls: bool = False
    """Convolutions as matrix products, as on CPU."""
    data_dir: str | None = None


def build(case: tuple, data: dict, config: Config) -> list:
    """A compiled program, its state and its rows."""
    regularizer, column, count = case
    recipe = regularizers(CIFAR10_DDNET)[regularizer]
    recipe = recipe if column is None else recipe.few_shot(column)
    steps, optimizer = make_steps([recipe] * count)
    states = [initial_state(recipe, seed, optimizer) for seed in range(count)]
    rows = [rows_of(recipe, seed, np.asarray(data["label"]))(0, config.steps) for seed in range(count)]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states) if count > 1 else states[0]
    rows = np.stack(rows) if count > 1 else rows[0]
    return [steps, jax.block_until_ready(steps(state, data, rows))[0], rows]


def milliseconds(program: list, data: dict, config: Config) -> float:
    """Of a step of all models of a program."""
    times, (steps, state, rows) = [], program
    for _ in range(config.rounds):
        start = time.perf_counter()
        state, metrics = steps(state, data, rows)
        jax.device_get(metrics)
        times.append(1e3 * (time.perf_counter() - start) / config.steps)
    return min(times)


def main(config: Config):
    """Compile all side by side, then time one after the other; print a table, write the result."""
    if config.matmuls:
        lowered = mlir.lower_fun(matmul_form, multiple_results=False)
        mlir.register_lowering(convolution_p, lowered, platform="cuda")
    data = images(CIFAR10_DDNET, "train", config.data_dir)
    with ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else len(CASES)) as pool:
        programs = list(pool.map(partial(build, data=data, config=config), CASES))
    names = ("regularizer", "samples_per_class", "models")
    rows = [
        dict(zip(names, case, strict=True)) | {"matmuls": config.matmuls, "ms": milliseconds(program, data, config)}
        for case, program in zip(CASES, programs, strict=True)
    ]
    print(on_gpu.together_table(rows))
    write(f"together{'_matmuls' * config.matmuls}_{jax.default_backend()}", rows, config)


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written, the same command starts anew"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
