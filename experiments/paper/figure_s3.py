"""Figure S3: robustness of DDNet on CIFAR-10 against white noise (5 regularizers), PGD and CW (4 defences).

Command:    python -m experiments figure_s3 [--num-steps 15000]
Paper:      curves only: the penalty's success is retained under white noise and CW; under PGD the results are mixed
            when it is combined with adversarial training.
Time:       one CPU core: 5 to 10 hours a model at full length, and hours for CW on 1,000 images; 8 models a seed.
Leaves:     experiments/results/figure_s3/noise-REGULARIZER.json and ATTACK-DEFENCE.json, by seed.
"""

from experiments.lab.problems import CIFAR10_DDNET
from experiments.page import results
from experiments.page.elements import Element
from experiments.studies import robustness

FOLDER = "figure_s3"
Config = robustness.Config
QUICK = robustness.QUICK | {"regularizers": (), "defences": ("none",), "num_steps": 2, "num_attacked": 4}


def cells(config: Config):
    """All three panels."""
    return robustness.cells(FOLDER, CIFAR10_DDNET, config)


ELEMENTS = [
    Element(
        "Figure S3",
        "under white noise and CW the penalty helps (here: above no regularization and no defence); DDNet, CIFAR-10",
        lambda: robustness.claim(results.longest(FOLDER), CIFAR10_DDNET),
        lambda: results.names(f"{results.longest(FOLDER)}/*"),
    )
]
TABLES = {"figure_s3": lambda: robustness.table(results.longest(FOLDER), "L2 and dropout")}
FIGURES = {"figure_s3": lambda: robustness.figure(results.longest(FOLDER), CIFAR10_DDNET)}
