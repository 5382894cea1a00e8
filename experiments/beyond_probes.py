"""Beyond the paper: other probes, a part of the batch, every fourth step: accuracy, ||J||_F and time at equal steps.

Command:    python -m experiments beyond_probes [--num-steps 15000]
Time:       2 CPU cores, 15,000 steps: 3 to 8 minutes a model.
Leaves:     experiments/results/beyond_probes/VARIANT.json, by seed.
"""

import dataclasses
from pathlib import Path

from experiments import record, zoo
from experiments.recipes import LAMBDA_JR, Recipe

VARIANTS = {
    "sphere": {},
    "rademacher": {"probe": "rademacher"},
    "sphere, n = 3": {"num_projections": 3},
    "orthonormal, n = 3": {"num_projections": 3, "probe": "orthonormal"},
    "a quarter of the batch": {"sample_fraction": 0.25},
    "every 4th step": {"lazy": 4},
}


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of beyond_probes."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: int = 3
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""


QUICK = {
    "variants": ("orthonormal, n = 3", "every 4th step"),
    "seeds": 1,
    "num_steps": 20,
    "norms": 50,
    "dispatch": 10,
    "checkpoint_every": 10,
    "out": Path("runs/quick"),
    "runs": Path("runs/quick"),
}


def run(config: Config):
    """Train and test what is missing."""
    test = zoo.images("mnist", "test", config.data_dir)
    for name in config.variants:
        recipe = Recipe(lambda_jr=LAMBDA_JR, **VARIANTS[name]).shortened(config.num_steps)

        def compute(seeds, recipe=recipe):
            for seed, params in zoo.train(recipe, seeds, config):
                time = {"ms_per_step": zoo.milliseconds(recipe, seed, config)}
                yield seed, zoo.clean(params, test, norms=config.norms) | time

        path = config.out / "beyond_probes" / f"{name.replace(', ', '-').replace(' = ', '').replace(' ', '-')}.json"
        settings = {"recipe": dataclasses.asdict(recipe), "norms": config.norms}
        for seed, model in record.fill(path, settings, range(config.seeds), compute)["models"].items():
            norm = model["jacobian_norm"]["mean"]
            print(f"{name}, seed {seed}: {100 * model['accuracy']:.2f} %, {norm:.3f}, {model['ms_per_step']:.1f} ms")
