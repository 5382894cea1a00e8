"""Figure 3: robustness of LeNet' on MNIST against white noise (5 regularizers), PGD and CW (4 defences).

Command:    python -m experiments figure3
Paper:      curves only: Jacobian regularization is the most robust in (a); alone it beats adversarial training in
            (b, c), and both together are best. The base models of (b, c) have L2 and dropout.
Time:       2 CPU cores: noise seconds, PGD a minute, CW some 10 minutes a model; after the training of 8 models.
Leaves:     experiments/results/figure3/noise-REGULARIZER.json and attacks-DEFENCE.json, by seed.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np

from experiments import attacked, record, zoo
from experiments.recipes import DEFENCES, REGULARIZERS, Recipe
from jacreg_jax import attacks, evaluation


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of figure3; the defaults are the paper's, and the grid of (a) is ours."""

    regularizers: tuple[Literal["none", "L2", "dropout", "Jacobian", "all"], ...] = tuple(REGULARIZERS)
    """Panel (a)."""
    defences: tuple[Literal["none", "adversarial", "Jacobian", "both"], ...] = tuple(DEFENCES)
    """Panels (b) and (c)."""
    seeds: int = 5
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 150,000."""
    sigmas: tuple[float, ...] = tuple(round(0.05 * i, 2) for i in range(21))
    """Standard deviations of the noise, in raw pixels."""
    attacks: tuple[Literal["PGD", "CW"], ...] = ("PGD", "CW")
    num_attacked: int = 1000
    """Test samples of (b) and (c); (a) uses all."""

    @property
    def recipes(self) -> dict[tuple[str, str], Recipe]:
        """How the models are trained."""
        found = {("regularizer", name): REGULARIZERS[name] for name in self.regularizers}
        found |= {("defence", name): DEFENCES[name] for name in self.defences}
        return {name: recipe.shortened(self.num_steps) for name, recipe in found.items()}


QUICK = zoo.QUICK | {
    "regularizers": ("none",),
    "defences": ("both",),
    "attacks": ("PGD",),
    "seeds": 1,
    "num_steps": 20,
    "sigmas": (0.0, 0.3),
    "num_attacked": 20,
}


def noisy(f, x, y, keys, sigma):
    """White noise of standard deviation sigma."""
    return attacks.white_noise(f, x, y, keys, sigma=sigma)


def noise_curve(params, seed: int, test: dict, sigmas) -> dict:
    """Accuracy on the whole test set under noise of each deviation."""
    f, key = zoo.raw_predictor(params), jax.random.key(seed)
    under = lambda sigma: evaluation.run_attack(noisy, f, test["image"], test["label"], key, sigma).success
    return {"accuracy": [float(1 - np.mean(under(sigma))) for sigma in sigmas]}


def run(config: Config):
    """Train what is missing; noise, then the attacks in their order."""
    test = zoo.images("mnist", "test", config.data_dir)
    for name in config.regularizers:
        recipe = config.recipes["regularizer", name]

        def noise(seeds, recipe=recipe):
            for seed, params in zoo.train(recipe, seeds, config):
                yield seed, noise_curve(params, seed, test, config.sigmas)

        settings = {"recipe": dataclasses.asdict(recipe), "sigmas": config.sigmas}
        record.fill(config.out / "figure3" / f"noise-{name}.json", settings, range(config.seeds), noise)
    for attack in config.attacks:
        for name in config.defences:
            recipe = config.recipes["defence", name]
            path = config.out / "figure3" / f"{attack}-{name}.json"
            attacked.fill(path, recipe, attack, test, config.num_attacked, range(config.seeds), config)
