"""Table 1's few-shot cells with the penalty on the network without dropout: the paper does not say what it penalises.

Command:    python -m experiments dropout_in_penalty [--columns 1]
Paper:      1 sample per class, all combined: 51.7 +- 2.1 %.
Time:       one CPU core: about 20 seconds a model for 1 sample per class.
Leaves:     experiments/results/dropout_in_penalty/COLUMN.json, by seed; models in runs/models.
"""

import dataclasses
from typing import Literal

from experiments import zoo
from experiments.recipes import REGULARIZERS, Recipe
from jacreg_jax.models import eval_mode


@dataclasses.dataclass(frozen=True)
class WithoutDropout(Recipe):
    """The penalty is that of the network in eval mode; in Table 1 both branches share the dropout mask."""

    penalised: str = "eval mode"

    def penalty_apply(self, module):
        """As for `training.classification_loss`."""
        return eval_mode(module)


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of dropout_in_penalty."""

    columns: tuple[Literal["1", "3", "10", "30"], ...] = ("1",)
    """Samples per class."""
    seeds: int = 15
    num_steps: int | None = None
    """Shorter training; None: 10,000."""

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Table 1's row "all combined", but for what is penalised."""
        base = WithoutDropout(**dataclasses.asdict(REGULARIZERS["all"]))
        return {column: base.few_shot(int(column)).shortened(self.num_steps) for column in self.columns}


QUICK = zoo.QUICK | {
    "seeds": 1,
    "num_steps": 20,
}


def run(config: Config):
    """Train and evaluate every model that the results lack."""
    test = zoo.images("mnist", "test", config.data_dir)
    for column, recipe in config.recipes.items():
        path = config.out / "dropout_in_penalty" / f"{column}.json"
        models = zoo.fill_clean(path, recipe, test, range(config.seeds), config, norms=0)
        print(
            f"{column} per class, no dropout in the penalty: {[round(100 * m['accuracy'], 1) for m in models.values()]}"
        )
