"""Beyond the paper: other probes, a part of the batch, every fourth step: accuracy, ||J||_F and time at equal steps.

Command:    python -m experiments beyond_probes [--num-steps 15000]
Time:       2 CPU cores, 15,000 steps: 3 to 8 minutes a model.
Leaves:     experiments/results/beyond_probes/VARIANT.json, by seed, and milliseconds.json.
"""

import dataclasses
import json
from typing import Literal

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

    variants: tuple[
        Literal[
            "sphere", "rademacher", "sphere, n = 3", "orthonormal, n = 3", "a quarter of the batch", "every 4th step"
        ],
        ...,
    ] = tuple(VARIANTS)
    seeds: int = 3
    timed: bool = True
    """Time fresh steps of the variants, all in turn; needs a core for itself."""
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""

    @property
    def recipes(self) -> dict[str, Recipe]:
        """How the models are trained, by variant."""
        recipes = {name: Recipe(lambda_jr=LAMBDA_JR, **VARIANTS[name]) for name in self.variants}
        return {name: recipe.shortened(self.num_steps) for name, recipe in recipes.items()}


QUICK = zoo.QUICK | {
    "variants": ("orthonormal, n = 3", "every 4th step"),
    "seeds": 1,
    "num_steps": 20,
    "norms": 50,
}


def run(config: Config):
    """Train and test what is missing; then the time of fresh steps, all variants in turn."""
    folder = config.out / "beyond_probes"
    test = zoo.images("mnist", "test", config.data_dir)
    for name in config.variants:
        path = folder / f"{record.slug(name)}.json"
        models = zoo.fill_clean(path, config.recipes[name], test, range(config.seeds), config, config.norms)
        for seed, model in models.items():
            print(f"{name}, seed {seed}: {100 * model['accuracy']:.2f} %, {model['jacobian_norm']['mean']:.3f}")
    if not config.timed:
        return
    path, settings = folder / "milliseconds.json", {"variants": config.variants, "dispatch": config.dispatch}
    if not record.is_done(path, settings):
        found = {"milliseconds": zoo.milliseconds(config.recipes, config), "environment": record.environment()}
        record.write_json(path, {"config": settings} | found)
    print(f"milliseconds a step: {json.loads(path.read_text())['milliseconds']}")
