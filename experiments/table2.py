"""Table 2: LeNet' trained on all of MNIST, tested on USPS, 5 regularizers: does stability carry to another domain?

Command:    python -m experiments table2
Paper:      80.4 / 83.3 / 81.9 / 81.3 / 85.7 % for none / L2 / dropout / Jacobian / all.
Time:       seconds, after table1's models of the column "all", which it trains where they are missing.
Leaves:     experiments/results/table2/REGULARIZER.json, by seed.
"""

import dataclasses
from typing import Literal

from experiments import zoo
from experiments.recipes import REGULARIZERS, Recipe


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of table2; the defaults are the paper's."""

    regularizers: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = tuple(REGULARIZERS)
    seeds: int = 5
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""

    @property
    def recipes(self) -> dict[str, Recipe]:
        """How the models are trained."""
        return {name: REGULARIZERS[name].shortened(self.num_steps) for name in self.regularizers}


QUICK = zoo.QUICK | {
    "regularizers": ("none",),
    "seeds": 1,
    "num_steps": 20,
}


def run(config: Config):
    """Train the models that are missing, and test them on USPS, upsampled to 28x28."""
    test = zoo.images("usps", "test", config.data_dir)
    for name, recipe in config.recipes.items():
        path = config.out / "table2" / f"{name}.json"
        models = zoo.fill_clean(path, recipe, test, range(config.seeds), config, norms=0)
        print(f"USPS, {name}: " + ", ".join(f"{100 * m['accuracy']:.1f}" for m in models.values()) + " %")
