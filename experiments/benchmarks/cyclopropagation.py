"""Cyclopropagation against reverse over reverse: time and memory of the penalty's gradient for perceptrons.

Command:    python -m experiments.benchmarks.cyclopropagation
Leaves:     experiments/results/benchmark_cyclopropagation_BACKEND.json
"""

import experiments.benchmarks.kept_memory  # noqa: F401, I001  first of all

import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from experiments.lab.options import in_paragraphs
from tqdm import tqdm

from experiments.benchmarks import page
from experiments.benchmarks.rows import write
from experiments.benchmarks.step_cost import Case, measure
from experiments.lab import stopping
from jacreg_jax import exact_frobenius_sq, penalties
from jacreg_jax.cyclopropagation import TANH, penalty_and_grad, perceptron

SHAPES = {"2 layers of 200": (784, 200, 10), "4 layers of 200": (784, 200, 200, 200, 10), "wide": (784, 1000, 1000, 10)}


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed."""

    batch_size: int = 100
    rounds: int = 5
    seconds: float = 0.5  # of one measurement


def forms():
    """Gradient of the mean penalty in the parameters, by name: (params, x, key) -> (penalty, gradient)."""
    by_autodiff = lambda penalty: jax.value_and_grad(penalty)
    mean = lambda penalty: lambda p, x, key: penalty(lambda x: perceptron(p, x, TANH), x, None, key)[1]
    return {
        ("exact", "cyclopropagation"): lambda p, x, key: penalty_and_grad(p, x),
        ("exact", "cyclopropagation, one probe at a time"): lambda p, x, key: penalty_and_grad(p, x, chunk_size=1),
        ("exact", "reverse over reverse, all at once"): by_autodiff(
            lambda p, x, key: exact_frobenius_sq(lambda x: perceptron(p, x, TANH), x).mean()
        ),
        ("exact", "reverse over reverse, accumulated"): by_autodiff(mean(penalties.exact())),
        ("n = 1", "cyclopropagation"): lambda p, x, key: penalty_and_grad(p, x, key, num_projections=1),
        ("n = 1", "reverse over reverse"): by_autodiff(mean(penalties.projected())),
    }


def case_of(label: str, form: str, f, arguments) -> Case:
    """One compiled gradient, to be timed."""
    start = time.perf_counter()
    compiled = jax.jit(f).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis().temp_size_in_bytes
    run = lambda k: jax.block_until_ready([compiled(*arguments) for _ in range(k)]) and None
    return Case(label, form, "jacreg_jax", run, round(seconds, 2), memory)


def main(config: Config):
    """Time all forms on all shapes, print the table, write the result."""
    cases = []
    for shape, sizes in SHAPES.items():
        draw = lambda *size: jnp.asarray(np.random.default_rng(0).normal(size=size) / np.sqrt(size[-1]), jnp.float32)
        params = [(draw(o, i), jnp.zeros(o)) for i, o in itertools.pairwise(sizes)]
        arguments = params, draw(config.batch_size, sizes[0]), jax.random.key(0)
        for (penalty, form), f in forms().items():
            cases.append(case_of(f"{shape}, {penalty}", form, f, arguments))
    measure(
        cases,
        rounds=config.rounds,
        target_seconds=config.seconds,
        progress=lambda i: tqdm(i, leave=False, disable=None),
    )
    rows = [case.row() for case in cases]
    write(f"cyclopropagation_{jax.default_backend()}", rows, config)
    print(page.cyclopropagation())


if __name__ == "__main__":
    with stopping.in_one_line("stopped; tables that were printed are written, the others start anew"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
