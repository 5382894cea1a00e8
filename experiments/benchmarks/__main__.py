"""Side-by-side timings of this library and of its PyTorch twin: `make bench`."""

import dataclasses
import os

import jax
import tyro
from tqdm import tqdm

from experiments import RESULTS
from experiments.benchmarks import attack_cost, page, step_cost
from experiments.benchmarks.step_cost import VARIANTS, jax_case, scan_case, torch_case
from experiments.benchmarks.torch_worker import Worker
from experiments.lab import record, stopping
from jacreg_jax import host_memory


@dataclasses.dataclass(frozen=True)
class Config:
    """What is timed and for how long; the defaults are those of the committed results."""

    models: tuple[str, ...] = ("lenet", "ddnet", "resnet18")
    variants: tuple[str, ...] = tuple(VARIANTS)
    rounds: int = 5
    seconds: float = 0.7  # of one measurement
    torch: bool = True
    compiled_torch: bool = True
    attacks: bool = True  # with foolbox and pyautoattack beside them
    lax: bool = True  # XLA's own convolutions, too
    batch_size: int = 0  # 0: 100, and 32 for resnet18 on CPU
    save: bool = True


def cases_of(model: str, config: Config, worker: Worker | None):
    """The cases of one model, with a progress line while they compile."""
    on_cpu = jax.default_backend() == "cpu"
    size = config.batch_size or (32 if model == "resnet18" and on_cpu else 100)
    # ResNet-18's plain-lax second derivatives and exact norms take minutes a step on CPU
    is_small = model == "lenet" or not on_cpu
    for variant in tqdm(config.variants, desc=f"compile {model}", leave=False):
        is_exact = VARIANTS[variant].get("num_projections") == "exact"
        if model == "resnet18" and is_exact and on_cpu:
            continue
        yield jax_case(model, variant, size)
        if variant in ("plain", "n = 1") and model != "resnet18":
            yield scan_case(model, variant, size, 100 if is_small else 8)
        if config.lax and on_cpu and variant in ("plain", "n = 1") and (is_small or variant == "plain"):
            yield jax_case(model, variant, size, plain_lax=True)
        if worker:
            yield torch_case(worker, model, variant, size)
            if config.compiled_torch and variant == "plain":
                yield torch_case(worker, model, variant, size, compiled=True)


def main(config: Config):
    """Time every model in turn, then the attacks; print tables, write results/benchmark_NAME_BACKEND.json."""
    host_memory.keep_freed_memory()
    worker = Worker(os.cpu_count()) if config.torch else None
    for model in config.models:
        cases = list(cases_of(model, config, worker))
        bar = lambda items, model=model: tqdm(items, desc=f"time {model}", leave=False)
        step_cost.measure(cases, rounds=config.rounds, target_seconds=config.seconds, progress=bar)
        rows = [case.row() for case in cases]
        print(page.step_table(rows), flush=True)
        write(model, rows, config)
    if config.attacks and worker:
        rows = attack_cost.measure(worker)
        print(page.attack_table(rows))
        write("attacks", rows, config)


def write(name: str, rows: list[dict], config: Config):
    """One file a model: its ratios are of one run."""
    if config.save:
        settings = {"config": dataclasses.asdict(config), "environment": record.environment()}
        path = RESULTS / f"benchmark_{name}_{jax.default_backend()}.json"
        record.write_json(path, settings | {"rows": rows})


if __name__ == "__main__":
    with stopping.in_one_line("stopped; tables that were printed are written, the others start anew"):
        main(tyro.cli(Config, description=__doc__))
