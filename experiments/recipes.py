"""How the paper's models are trained: a recipe is all that decides a model, but for its seed."""

import dataclasses
from typing import Literal

import numpy as np

from experiments import record, runner


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A LeNet' on MNIST; the defaults are the paper's for training on all samples, without any regularizer."""

    weight_decay: float = 0.0
    dropout_rate: float = 0.0
    lambda_jr: float = 0.0
    num_projections: int | Literal["exact"] = 1
    probe: str = "sphere"
    sample_fraction: float = 1.0
    lazy: int = 1
    max_epsilon: float = 0.0
    """Adversarial training by FGSM with epsilon ~ U[0, max_epsilon], in raw pixels."""
    samples_per_class: int | None = None
    """None: all 60,000, in batches; else one full batch."""
    batch_size: int = 100
    learning_rate: float = 0.1
    quench_every: int | None = 50_000
    """The learning rate falls tenfold after as many steps; None: never."""
    num_steps: int = 150_000
    initialization: str = "xavier"
    dataset: str = "mnist"

    def few_shot(self, samples_per_class: int) -> "Recipe":
        """The same on a subsample: full batch, constant learning rate 0.01, 10,000 steps (section 3.1)."""
        return dataclasses.replace(
            self, samples_per_class=samples_per_class, learning_rate=0.01, quench_every=None, num_steps=10_000
        )

    def shortened(self, num_steps: int | None) -> "Recipe":
        """The same in num_steps, the learning rate quenched at the same shares of them; itself for None."""
        if num_steps is None:
            return self
        quench = self.quench_every and max(1, self.quench_every * num_steps // self.num_steps)
        return dataclasses.replace(self, num_steps=num_steps, quench_every=quench)

    def penalty_apply(self, module):
        """What is penalised in place of the trained network, see `training.classification_loss`; None: itself."""
        del module

    def batches(self, seed: int, first_step: int, num_steps: int, num_samples: int) -> np.ndarray:
        """Rows of the batches of these steps, [T, B]: every epoch in a new order, see `runner.batch_indices`."""
        return runner.batch_indices(seed, first_step, num_steps, self.batch_size, num_samples)

    def program(self) -> "Recipe":
        """Stands for all recipes that differ from this one in the sizes of lambda_jr and weight_decay alone.

        Models of these can be trained in one compiled program. A penalty of size 0 would cost what one costs, and is
        another program; a weight decay of size 0 costs nothing.
        """
        return dataclasses.replace(self, lambda_jr=float(self.lambda_jr != 0), weight_decay=0.0)

    def digest(self) -> str:
        """Ten characters that differ between recipes."""
        return record.digest(dataclasses.asdict(self))


WEIGHT_DECAY, DROPOUT_RATE, LAMBDA_JR, MAX_EPSILON = 5e-4, 0.5, 0.01, 0.01
_BASE = {"weight_decay": WEIGHT_DECAY, "dropout_rate": DROPOUT_RATE}

# the five rows of Table 1, and the four defences of Figure 3, whose base has weight decay and dropout
REGULARIZERS = {
    "none": Recipe(),
    "L2": Recipe(weight_decay=WEIGHT_DECAY),
    "dropout": Recipe(dropout_rate=DROPOUT_RATE),
    "Jacobian": Recipe(lambda_jr=LAMBDA_JR),
    "all": Recipe(lambda_jr=LAMBDA_JR, **_BASE),
}
DEFENCES = {
    "none": Recipe(**_BASE),
    "adversarial": Recipe(max_epsilon=MAX_EPSILON, **_BASE),
    "Jacobian": Recipe(lambda_jr=LAMBDA_JR, **_BASE),
    "both": Recipe(lambda_jr=LAMBDA_JR, max_epsilon=MAX_EPSILON, **_BASE),
}
