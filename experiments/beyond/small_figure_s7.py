"""The path of Figure S7 on twenty photographs, ten of them attacked: a demonstration, no evidence for the figure.

Command:    python -m experiments small_figure_s7
Data:       the photographs that foolbox ships (`make peers`), prepared like the whole of ImageNet under RUNS.
Protocol:   that of figure_s7: ResNet-18 at 224 pixels, 100 epochs, the learning rate quenched every 30, PGD within
            16/255, the attacks' odd clipping. But an epoch is one step of twenty images, the ten that are attacked are
            ten of those, and CW takes 5 searches of 100 steps at rate 0.02, not 10 of 1,000 at 0.005.
Time:       one CPU core: two hours.
Leaves:     experiments/results/small_figure_s7/ATTACK-LAMBDA.json and clean-LAMBDA.json.
"""

import dataclasses

from experiments.lab import small_imagenet
from experiments.lab.cells import Cell, fill
from experiments.lab.distances import Attack
from experiments.lab.problems import IMAGENET_SMALL
from experiments.page import results
from experiments.studies import strength
from experiments.studies.robustness import attack_cell
from jacreg_jax import attacks

FOLDER = "small_figure_s7"
SIZES = {"num_steps": 100, "binary_search_steps": 5, "learning_rate": 0.02, "initial_const": 0.01}
SHORT_CW = Attack("CW", attacks.carlini_wagner, SIZES)


@dataclasses.dataclass(frozen=True)
class Config(strength.Config):
    """The paper's values of lambda_jr."""

    lambdas: tuple[float, ...] = (0.0, 1e-4, 3e-4, 1e-3)
    seeds: int = 1
    num_attacked: int = 10
    norms: int | None = 2
    """Test images that ||J||_F is averaged over: each takes 1,000 products."""
    workers: int = 0
    dispatch: int = 5
    checkpoint_every: int = 20


QUICK = strength.QUICK | {"lambdas": (1e-3,), "num_steps": 1, "dispatch": 1, "checkpoint_every": 1}
QUICK |= {"num_attacked": 2, "norms": 2}


def cells(config: Config) -> list[Cell]:
    """As Figure S7 has them, but for CW."""
    without = dataclasses.replace(config, attacks=tuple(a for a in config.attacks if a != SHORT_CW.name))
    found = strength.cells(FOLDER, IMAGENET_SMALL, without)
    for value in config.lambdas if SHORT_CW.name in config.attacks else ():
        recipe = strength.recipe(IMAGENET_SMALL, value)
        found.append(attack_cell(f"{FOLDER}/CW-{value:g}", recipe, SHORT_CW, config))
    return found


def run(config: Config):
    """Prepare the photographs, whatever else data_dir holds; then all cells.

    Raises:
        ImportError: foolbox is not installed.
    """
    folder = small_imagenet.prepared(config.runs / "small_imagenet")
    config = dataclasses.replace(config, data_dir=str(folder))
    return fill(cells(config), config)


TABLES = {FOLDER: lambda: strength.table(results.longest(FOLDER), Config.num_attacked)}
FIGURES = {FOLDER: lambda: strength.figure(results.longest(FOLDER), IMAGENET_SMALL)}
