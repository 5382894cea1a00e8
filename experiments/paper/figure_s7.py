"""Figure S7: robustness of ResNet-18 on ImageNet against the size of lambda_jr, under white noise, PGD and CW.

Command:    python -m experiments figure_s7
Paper:      curves only, one run: the penalty confers robustness against the attacks, none is visible under white noise.
Protocol:   100 epochs in batches of 256, the learning rate quenched every 30, weight decay 1e-4; PGD within 16/255, CW
            on 10,000 images; attacks clip to [0, 1] as if all channels had mean 0.4490 and deviation 0.2260. BatchNorm
            as in figure_s4.
Time:       500,400 steps a model: for several GPUs, `--devices N`; not run here.
Leaves:     experiments/results/figure_s7/ATTACK-LAMBDA.json, by seed, and clean-LAMBDA.json.
"""

import dataclasses

from experiments.lab.problems import IMAGENET_RESNET18
from experiments.page import results
from experiments.page.elements import Element
from experiments.studies import strength

FOLDER = "figure_s7"


@dataclasses.dataclass(frozen=True)
class Config(strength.Config):
    """The paper's."""

    lambdas: tuple[float, ...] = (0.0, 1e-4, 3e-4, 1e-3)
    seeds: int = 1
    num_attacked: int = 10_000
    norms: int | None = 1000
    """Test images that ||J||_F is averaged over."""


QUICK = strength.QUICK | {"lambdas": (1e-3,), "num_steps": 1, "dispatch": 1, "checkpoint_every": 1}
QUICK |= {"num_attacked": 2, "norms": 2}


def cells(config: Config):
    """All three panels."""
    return strength.cells(FOLDER, IMAGENET_RESNET18, config)


ELEMENTS = [
    Element(
        "Figure S7",
        "a larger lambda_jr gives larger fooling distances (here: by CW); ResNet-18, ImageNet",
        lambda: strength.claim(results.longest(FOLDER), IMAGENET_RESNET18, full_seeds=1),
        lambda: results.names(f"{results.longest(FOLDER)}/*"),
    )
]
TABLES = {"figure_s7": lambda: strength.table(results.longest(FOLDER), Config.num_attacked)}
FIGURES = {"figure_s7": lambda: strength.figure(results.longest(FOLDER), IMAGENET_RESNET18)}
