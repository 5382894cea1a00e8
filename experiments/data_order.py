"""Table 1 and 2's models of all samples, the batches in another order: the paper does not say how it draws them.

Command:    python -m experiments data_order [--num-steps 15000]
Paper:      none, Jacobian: 98.9 / 99.0 %, USPS 80.4 / 81.3 %, ||J||_F 32.9 / 1.1.
Time:       one CPU core: 9 minutes a model without a regularizer, 20 with Jacobian, at full length.
Leaves:     experiments/results/data_order/REGULARIZER-ORDER.json, by seed; models in runs/models.
"""

import dataclasses
from typing import Literal

import numpy as np

from experiments import record, zoo
from experiments.recipes import REGULARIZERS, Recipe

# "reshuffled", a new permutation every epoch, is what all other models are trained with
Order = Literal["reshuffled", "reshuffled otherwise", "same every epoch", "with replacement"]


@dataclasses.dataclass(frozen=True)
class Ordered(Recipe):
    """The same seed, so the same initial parameters and draws, and other batches."""

    order: Order = "reshuffled otherwise"

    def batches(self, seed, first_step, num_steps, num_samples):
        """As for Recipe."""
        if self.order == "reshuffled otherwise":
            return super().batches(seed + 1000, first_step, num_steps, num_samples)
        if self.order == "same every epoch":
            epoch = super().batches(seed, 0, num_samples // self.batch_size, num_samples)
            return epoch[np.arange(first_step, first_step + num_steps) % len(epoch)]
        steps = range(first_step, first_step + num_steps)
        draws = [np.random.default_rng((seed, t)).integers(num_samples, size=self.batch_size) for t in steps]
        return np.asarray(draws, np.int32)


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of data_order."""

    regularizers: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = ("none", "Jacobian")
    orders: tuple[Order, ...] = ("reshuffled", "reshuffled otherwise", "same every epoch", "with replacement")
    seeds: int = 3
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""

    @property
    def recipes(self) -> dict[tuple[str, Order], Recipe]:
        """How the models are trained."""
        return {(r, o): self._recipe(r, o) for r in self.regularizers for o in self.orders}

    def _recipe(self, regularizer: str, order: Order) -> Recipe:
        recipe = REGULARIZERS[regularizer].shortened(self.num_steps)
        return recipe if order == "reshuffled" else Ordered(**dataclasses.asdict(recipe), order=order)


QUICK = zoo.QUICK | {
    "regularizers": ("none",),
    "orders": ("same every epoch", "with replacement"),
    "seeds": 1,
    "num_steps": 20,
    "norms": 50,
}


def run(config: Config):
    """Train the models that are missing, and test them on MNIST and USPS."""
    mnist, usps = (zoo.images(name, "test", config.data_dir) for name in ("mnist", "usps"))

    def compute(recipe, seeds):
        for seed, params in zoo.train(recipe, seeds, config):
            elsewhere = {"usps": zoo.clean(params, usps, norms=0)["accuracy"]}
            yield seed, zoo.clean(params, mnist, norms=config.norms) | elsewhere

    for (regularizer, order), recipe in config.recipes.items():
        path = config.out / "data_order" / f"{regularizer}-{record.slug(order)}.json"
        settings = {"recipe": dataclasses.asdict(recipe), "norms": config.norms}
        models = record.fill(path, settings, range(config.seeds), lambda seeds, r=recipe: compute(r, seeds))["models"]
        norms = ", ".join(f"{m['jacobian_norm']['rms']:.1f}" for m in models.values())
        print(f"{regularizer}, {order}: ||J||_F {norms}")
