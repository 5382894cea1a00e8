"""Beyond the paper: other probes, a part of the batch, every fourth step: accuracy, ||J||_F and time at equal steps.

Command:    python -m experiments beyond_probes [--num-steps 15000]
Time:       2 CPU cores, 15,000 steps: 3 to 8 minutes a model.
Leaves:     experiments/results/beyond_probes/VARIANT.json, by seed, and milliseconds.json.
"""

import dataclasses
from functools import partial
from typing import Literal

from experiments.lab import cells as lab_cells, measure, options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import Recipe, plain
from experiments.page import results

VARIANTS = {
    "sphere": {},
    "rademacher": {"probe": "rademacher"},
    "sphere, n = 3": {"num_projections": 3},
    "orthonormal, n = 3": {"num_projections": 3, "probe": "orthonormal"},
    "a quarter of the batch": {"sample_fraction": 0.25},
    "every 4th step": {"lazy": 4},
}
Variant = Literal[
    "sphere", "rademacher", "sphere, n = 3", "orthonormal, n = 3", "a quarter of the batch", "every 4th step"
]


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """What is compared."""

    variants: tuple[Variant, ...] = tuple(VARIANTS)
    seeds: int = 3
    timed: bool = True
    """Time fresh steps of the variants, all in turn; needs a core for itself."""


QUICK = options.QUICK | {"variants": ("every 4th step",), "norms": 50}


def recipes(config: Config) -> dict[str, Recipe]:
    """How the models are trained, by variant."""
    base = dataclasses.replace(plain(MNIST_LENET), lambda_jr=MNIST_LENET.lambda_jr)
    return {n: dataclasses.replace(base, **VARIANTS[n]).shortened(config.num_steps) for n in config.variants}


def cells(config: Config) -> list[Cell]:
    """A variant each."""
    clean = partial(measure.clean, norms=config.norms, data_dir=config.data_dir)
    return [
        Cell(f"beyond_probes/{record.slug(name)}", recipe, range(config.seeds), {"norms": config.norms}, clean)
        for name, recipe in recipes(config).items()
    ]


def files(config: Config) -> dict[str, dict]:
    """The times."""
    return {"beyond_probes/milliseconds": {"variants": config.variants, "dispatch": config.dispatch}}


def run(config: Config):
    """Train and test what is missing; then the time of fresh steps, all variants in turn."""
    lab_cells.fill(cells(config), config)
    if not config.timed:
        return
    ((name, settings),) = files(config).items()
    path = config.results / f"{name}.json"
    if not record.is_done(path, settings):
        found = {"milliseconds": measure.milliseconds(recipes(config), config), "environment": record.environment()}
        record.write_json(path, {"config": settings} | found)
    print(f"milliseconds a step: {record.read_json(path)['milliseconds']}")


def table() -> str:
    """Accuracy, norm and time by variant."""
    folder = results.longest("beyond_probes")
    times = (results.read(f"{folder}/milliseconds") or {"milliseconds": {}})["milliseconds"]
    rows = []
    for name in VARIANTS:
        file = f"{folder}/{record.slug(name)}"
        found = results.models(file)
        rows.append(
            [
                name,
                results.steps(results.config(file)["recipe"]) if found else "not run",
                results.spread(list(map(results.percent, found)), 2),
                results.spread(list(map(results.norm, found)), 3),
                f"{times[name]:.1f}" if name in times else "not run",
            ]
        )
    return results.table(["penalty", "steps", "test accuracy, %", "‖J‖_F", "ms a step"], rows)


TABLES = {"beyond_probes": table}
