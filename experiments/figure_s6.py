"""Figure S6 (LeNet' panels): robustness against the size of lambda_jr, under white noise, PGD and CW.

Command:    python -m experiments figure_s6 [--attacks "white noise" PGD]
Paper:      curves only, base models with L2 and dropout: larger lambda_jr, larger distances, until accuracy falls.
Time:       2 CPU cores: an hour a model at full length, and 10 minutes for CW.
Leaves:     experiments/results/figure_s6/ATTACK-LAMBDA.json, by seed, and clean-LAMBDA.json.
"""

import dataclasses
from typing import Literal

from experiments import attacked, record, zoo
from experiments.recipes import DEFENCES, Recipe


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of figure_s6; the values of lambda_jr are ours, around the paper's 0.01."""

    lambdas: tuple[float, ...] = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)
    attacks: tuple[Literal["white noise", "PGD", "CW"], ...] = ("white noise", "PGD", "CW")
    seeds: int = 5
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    num_attacked: int = 1000
    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""

    @property
    def recipes(self) -> dict[float, Recipe]:
        """How the models are trained, by lambda_jr."""
        base = DEFENCES["none"].shortened(self.num_steps)
        return {value: dataclasses.replace(base, lambda_jr=value) for value in self.lambdas}


QUICK = zoo.QUICK | {
    "lambdas": (0.1,),
    "attacks": ("white noise",),
    "seeds": 1,
    "num_steps": 20,
    "num_attacked": 20,
    "norms": 50,
}


def run(config: Config):
    """Train what is missing; clean accuracy, then each attack."""
    test = zoo.images("mnist", "test", config.data_dir)
    for value, recipe in config.recipes.items():
        folder = config.out / "figure_s6"
        zoo.fill_clean(folder / f"clean-{value:g}.json", recipe, test, range(config.seeds), config, config.norms)
        for attack in config.attacks:
            path = folder / f"{record.slug(attack)}-{value:g}.json"
            attacked.fill(path, recipe, attack, test, config.num_attacked, range(config.seeds), config)
