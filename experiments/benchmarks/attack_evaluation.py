"""What evaluating a trained LeNet' costs: the ensemble, whose samples leave when they are done, and a report.

Command:    taskset -c 1 python -m experiments.benchmarks.attack_evaluation --part ensemble    # and --part report
Leaves:     experiments/results/benchmark_attack_PART_cpu.json
Time:       five minutes, and twenty for the report, on one core
"""

import dataclasses
import os
import time
import warnings
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.benchmarks import page
from experiments.benchmarks.rows import write
from experiments.lab import stopping
from experiments.lab.options import in_paragraphs
from jacreg_jax import attack_runs, attacks, datasets, evaluation, reporting, training
from jacreg_jax.models import LeNet, initialize, predictor, train_mode


@dataclasses.dataclass(frozen=True)
class Config:
    """What is evaluated; the defaults are those of the committed results."""

    part: Literal["ensemble", "report"] = "ensemble"
    num_steps: int = 1000  # of the training
    samples: int = 0  # test images; 0: 250 for the ensemble, 1,000 for the report
    num_queries: int = 5000
    epsilons: tuple[float, ...] = (0.1, 0.2)
    budget: Literal["standard", "quick"] = "standard"
    data_dir: str | None = None  # TFDS_DATA_DIR
    save: bool = True


def model(config: Config):
    """(f, x, y): LeNet' after some steps of SGD on MNIST, and the first test images."""
    folder = config.data_dir or os.environ.get("TFDS_DATA_DIR")
    image, label = datasets.load("mnist", "train", data_dir=folder)
    data = {"image": jnp.asarray(datasets.from_uint8(image)), "label": jnp.asarray(label, jnp.int32)}
    params, state = initialize(LeNet(), jax.random.key(0), data["image"][:1])
    optimizer = training.sgd(0.05)
    steps = training.make_train_steps(training.classification_loss(train_mode(LeNet())), optimizer)
    indices = np.random.default_rng(0).integers(0, len(label), (config.num_steps, 100))
    trained, _ = steps(training.init_state(params, optimizer, jax.random.key(1), state), data, indices)
    image, label = datasets.load("mnist", "test", data_dir=folder)
    count = config.samples or (250 if config.part == "ensemble" else 1000)
    x, y = np.asarray(datasets.from_uint8(image[:count]), np.float32), np.asarray(label[:count], np.int32)
    return predictor(LeNet(), trained.params, {}), x, y


def ensemble(config: Config) -> list[dict[str, Any]]:
    """Seconds of the processor, compilation apart: with all samples to the end, and with those that are left."""
    f, x, y = model(config)
    whole = attacks.standard_ensemble(num_queries=config.num_queries)
    options: dict[str, Any] = {"key": jax.random.key(0), "batch_size": len(x)}
    all_of = lambda names, **o: [evaluation.run_attack(whole[n], f, x, y, **options, **o) for n in names]
    left = lambda names, **o: evaluation.worst_case({n: whole[n] for n in names}, f, x, y, **options, **o)
    cases = {"the ensemble": tuple(whole), "Square alone": ("square",)}
    rows = []
    for epsilon in config.epsilons:
        for name, names in cases.items():
            row = {"epsilon": epsilon, "attacks": name, "samples": len(x)}
            for how, run, long in (("all", all_of, np.inf), ("left", left, 0)):
                attack_runs.LONG = dict.fromkeys(attack_runs.LONG, long)
                run(names, epsilon=epsilon)
                start = time.process_time()  # of one core; others may share it
                found = run(names, epsilon=epsilon)
                row[how] = time.process_time() - start
                fooled = found[0].success if how == "left" else np.any([r.success for r in found], axis=0)
                row[f"robust, {how}"] = 1 - float(np.mean(fooled))
            rows.append(row)
            print(row, flush=True)
    return rows


def report(config: Config) -> list[dict[str, Any]]:
    """Seconds of every section, compilation included, on images that no process has seen."""
    f, x, y = model(config)
    budget = {"standard": reporting.standard, "quick": reporting.quick}[config.budget]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start, busy = time.perf_counter(), time.process_time()
        found = evaluation.report(
            f, x, y, jax.random.key(0), epsilon={"linf": 0.1, "l2": 1.5}, budget=budget, progress=False
        )
        seconds = time.perf_counter() - start
    print(found)
    rows = [{"section": name, "seconds": value} for name, value in found.sections["seconds"].items()]
    return [*rows, {"section": "all", "seconds": seconds, "of_the_processor": time.process_time() - busy}]


def main(config: Config):
    """Measure one part, print its table, write results/benchmark_attack_PART_cpu.json."""
    parts = {"ensemble": (ensemble, page.ensemble_table), "report": (report, page.report_table)}
    make, table = parts[config.part]
    rows = make(config)
    if config.save:
        write(f"attack_{config.part}_{jax.default_backend()}", rows, config)
    print(table(rows))


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
