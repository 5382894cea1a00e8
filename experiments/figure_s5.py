"""Figure S5 (a, d): test error against fooling distance under white noise, FGSM, PGD and CW, without and with defence.

Command:    python -m experiments figure_s5
Paper:      curves only: CW > PGD > FGSM > white noise in strength; a kink where PGD meets its cap of 32/255.
Time:       2 CPU cores: some 10 minutes a model, nearly all CW; nothing where figure3 has run.
Leaves:     experiments/results/figure_s5/ATTACK-DEFENCE.json, by seed.
"""

import dataclasses
from typing import Literal

from experiments import attacked, record, zoo
from experiments.recipes import DEFENCES, Recipe


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of figure_s5; the defaults are the paper's."""

    defences: tuple[Literal["none", "both"], ...] = ("none", "both")
    """none: L2 and dropout; both: with Jacobian regularization and adversarial training."""
    attacks: tuple[Literal["white noise", "FGSM", "PGD", "CW"], ...] = ("white noise", "FGSM", "PGD", "CW")
    seeds: int = 5
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    num_attacked: int = 1000

    @property
    def recipes(self) -> dict[str, Recipe]:
        """How the models are trained."""
        return {name: DEFENCES[name].shortened(self.num_steps) for name in self.defences}


QUICK = zoo.QUICK | {
    "defences": ("none",),
    "attacks": ("white noise", "FGSM"),
    "seeds": 1,
    "num_steps": 20,
    "num_attacked": 20,
}


def run(config: Config):
    """Train what is missing, and attack."""
    test = zoo.images("mnist", "test", config.data_dir)
    for name, recipe in config.recipes.items():
        for attack in config.attacks:
            path = config.out / "figure_s5" / f"{record.slug(attack)}-{name}.json"
            attacked.fill(path, recipe, attack, test, config.num_attacked, range(config.seeds), config)
