"""Side-by-side timings of this library and of its PyTorch twin: `make bench`."""

import experiments.benchmarks.kept_memory  # noqa: F401, I001  first of all

import dataclasses
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import tyro
from experiments.lab.options import in_paragraphs
from tqdm import tqdm

from experiments.benchmarks import attack_cost, page, step_cost
from experiments.benchmarks.rows import write
from experiments.benchmarks.step_cost import jax_case, scan_case, torch_case
from experiments.benchmarks.torch_worker import Worker
from experiments.lab import stopping

ALL = ("plain", "n = 1", "n = 3", "exact", "on a part, 1/4", "lazily, 4")
# network -> what is timed; ResNet-18's exact norm takes minutes a step on CPU
VARIANTS = {"lenet": ALL, "ddnet": ALL, "resnet18": tuple(v for v in ALL if v != "exact")}
VARIANTS |= {"cnn": ("plain", "n = 1"), "vit": ("plain", "n = 1"), "critic": ("WGAN-GP",)}
ONE_CORE = {"ddnet": ALL[:4], "resnet18": ALL[:2]}
BATCH_SIZES = {"resnet18": 32, "vit": 32, "critic": 64}  # on CPU; 100 elsewhere


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed and for how long; the defaults are those of the committed results."""

    models: tuple[str, ...] = tuple(VARIANTS)
    one_core: bool = False  # this process and PyTorch on one core: DDNet and ResNet-18
    rounds: int = 5
    seconds: float = 0.7  # of one measurement
    torch: bool = True
    steps: bool = True  # of training
    attacks: tuple[str, ...] = tuple(attack_cost.NETWORKS)  # with foolbox, pyautoattack and adv-lib beside them
    batch_size: int = 0  # 0: 100, and less for the large networks on CPU
    save: bool = True


def makers_of(model: str, config: Config, worker: Worker | None) -> Iterator[partial]:
    """What makes the cases of one network."""
    on_cpu = jax.default_backend() == "cpu"
    size = config.batch_size or (BATCH_SIZES.get(model, 100) if on_cpu else 100)
    is_small = model in ("lenet", "cnn", "critic") or not on_cpu
    for variant in (ONE_CORE if config.one_core else VARIANTS)[model]:
        yield partial(jax_case, model, variant, size)
        if worker:
            yield partial(torch_case, worker, model, variant, size)
        if config.one_core or model == "vit":
            continue
        if variant in ("plain", "n = 1") and model in ("lenet", "ddnet"):
            yield partial(scan_case, model, variant, size, 8 if model == "ddnet" and on_cpu else 100)
        # XLA's own second derivatives of a large network take minutes
        if on_cpu and variant in ("plain", "n = 1", "WGAN-GP") and (is_small or variant == "plain"):
            yield partial(jax_case, model, variant, size, plain_lax=True)
        if worker and variant == "plain" and model in ("lenet", "ddnet", "resnet18"):
            yield partial(torch_case, worker, model, variant, size, compiled=True)


def cases_of(model: str, config: Config, worker: Worker | None) -> list[step_cost.Case]:
    """The cases of one network, with a progress line while they compile: for a GPU, where that takes long, together."""
    makers = list(makers_of(model, config, worker))
    with ThreadPoolExecutor(1 if jax.default_backend() == "cpu" else 8) as pool:
        made = pool.map(lambda make: make(), makers)
        return list(tqdm(made, desc=f"compile {model}", total=len(makers), leave=False, disable=None))


def main(config: Config):
    """Time every network in turn, then the attacks; print tables, write results/benchmark_NAME_BACKEND.json."""
    if config.one_core and len(os.sched_getaffinity(0)) > 1:  # before a process starts: libraries count cores on import
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        os.execv(sys.executable, [sys.executable, "-m", "experiments.benchmarks", *sys.argv[1:]])
    place = jax.default_backend() + ("_one_core" if config.one_core else "")
    worker = Worker(len(os.sched_getaffinity(0))) if config.torch else None
    models = [m for m in config.models if not config.one_core or m in ONE_CORE] if config.steps else []
    for model in models:
        cases = cases_of(model, config, worker)
        bar = lambda items, model=model: tqdm(items, desc=f"time {model}", leave=False, disable=None)
        step_cost.measure(cases, rounds=config.rounds, target_seconds=config.seconds, progress=bar)
        rows = [case.row() for case in cases]
        print(page.step_table(rows), flush=True)
        if config.save:
            write(f"{model}_{place}", rows, config)
    if config.attacks and worker:
        rows = [row for network in config.attacks for row in attack_cost.measure(worker, network)]
        print(page.attack_table(rows))
        if config.save:
            write(f"attacks_{place}", rows, config)


if __name__ == "__main__":
    with stopping.in_one_line("stopped; tables that were printed are written, the others start anew"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
