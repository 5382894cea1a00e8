"""Figure 2: exact Jacobian penalty against n = 1 and n = 3 projections, test accuracy and ||J||_F during training.

Command:    python -m experiments figure2 [--num-steps 15000]
Paper:      the three are the same to the eye; n = 1 and exact end at the same accuracy and ||J||_F.
Time:       2 CPU cores, 15,000 steps: some 5 minutes for n = 1, 7 for n = 3, 20 for exact; the full length ten times.
Leaves:     experiments/results/figure2/VARIANT.json, by seed.
"""

import dataclasses
from typing import Literal

from experiments import record, zoo
from experiments.recipes import LAMBDA_JR, Recipe

VARIANTS = {"exact": "exact", "n = 1": 1, "n = 3": 3}


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of figure2; the defaults are the paper's."""

    variants: tuple[Literal["exact", "n = 1", "n = 3"], ...] = ("n = 1", "n = 3", "exact")
    seeds: int = 5
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    points: int = 30
    """Tests during training."""
    norms: int | None = 1000
    """Test samples that ||J||_F is averaged over; None: all."""


QUICK = zoo.QUICK | {
    "variants": ("n = 1", "exact"),
    "seeds": 1,
    "num_steps": 20,
    "points": 2,
    "norms": 50,
}


def run(config: Config):
    """Train what is missing, testing on the way."""
    test = zoo.images("mnist", "test", config.data_dir)
    observe = lambda params: {"test": zoo.clean(params, test, norms=config.norms)}
    for variant in config.variants:
        recipe = Recipe(lambda_jr=LAMBDA_JR, num_projections=VARIANTS[variant]).shortened(config.num_steps)
        every = max(1, recipe.num_steps // config.points)
        if every % config.dispatch:
            raise ValueError(f"num_steps / points must be a multiple of dispatch, {config.dispatch}; got {every}")
        apart = f"-every-{every}-norms-{config.norms}"

        def compute(seeds, recipe=recipe, every=every, apart=apart):
            for seed, _ in zoo.train(recipe, seeds, config, observe, every, apart):
                rows = [r for r in zoo.history(zoo.model_path(recipe, seed, config, apart)) if "test" in r]
                yield seed, {"curve": [{"step": row["step"], **row["test"]} for row in rows]}

        path = config.out / "figure2" / f"{variant.replace(' = ', '')}.json"
        settings = {"recipe": dataclasses.asdict(recipe), "norms": config.norms, "every": every}
        models = record.fill(path, settings, range(config.seeds), compute)["models"]
        for seed, model in models.items():
            last = model["curve"][-1]
            print(f"{variant}, seed {seed}: {100 * last['accuracy']:.2f} %, {last['jacobian_norm']['mean']:.2f}")
