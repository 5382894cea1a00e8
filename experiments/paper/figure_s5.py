"""Figure S5 (a, d): test error against fooling distance under white noise, FGSM, PGD and CW, without and with defence.

Command:    python -m experiments figure_s5
Paper:      curves only: CW > PGD > FGSM > white noise in strength; a kink where PGD meets its cap of 32/255.
Time:       2 CPU cores: some 10 minutes a model, nearly all CW; nothing where figure3 has run.
Leaves:     experiments/results/figure_s5/ATTACK-DEFENCE.json, by seed.
"""

import dataclasses
import itertools
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab import options, record
from experiments.lab.cells import Cell
from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import defences
from experiments.page import plots, results
from experiments.page.elements import Element, missing, of_claim
from experiments.paper.numbers import FULL
from experiments.studies.robustness import attack_cell

ATTACKS, PANELS = ("white noise", "FGSM", "PGD", "CW"), ("none", "both")


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """The defaults are the paper's."""

    defences: tuple[Literal["none", "both"], ...] = PANELS
    """none: L2 and dropout; both: with Jacobian regularization and adversarial training."""
    attacks: tuple[Literal["white noise", "FGSM", "PGD", "CW"], ...] = ATTACKS
    num_attacked: int = 1000


QUICK = options.QUICK | {"defences": ("none",), "attacks": ("white noise", "FGSM"), "num_attacked": 20}


def cells(config: Config) -> list[Cell]:
    """Defence by defence."""
    bases = defences(MNIST_LENET)
    pairs = itertools.product(config.defences, config.attacks)
    return [attack_cell(f"figure_s5/{record.slug(a)}-{name}", bases[name], a, config) for name, a in pairs]


def models(defence: str) -> dict[str, list[dict]]:
    """Of each attack."""
    return {attack: results.models(f"figure_s5/{record.slug(attack)}-{defence}") for attack in ATTACKS}


def table() -> str:
    """Median fooling distance by attack."""
    rows = []
    for name in PANELS:
        found = [list(map(results.median, seeds)) for seeds in models(name).values()]
        rows.append([results.DEFENCE_NAMES[name], *(results.spread(values, 2) for values in found)])
    return results.table(["median L2 distance", *ATTACKS], rows)


def figure():
    """Test error against fooling distance, without and with defence."""
    found = {name: models(name) for name in PANELS}
    if not any(seeds for by_attack in found.values() for seeds in by_attack.values()):
        return None
    drawing, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    grid = np.linspace(0, 10, 401)
    for axis, (name, by_attack) in zip(axes, found.items(), strict=True):
        for attack, seeds in by_attack.items():
            if seeds:
                curves = [plots.fooled_within(results.distances(m), grid) for m in seeds]
                plots.band(axis, grid, curves, plots.ATTACK_COLOURS[attack], attack)
        title = {"none": "(a) L2 and dropout", "both": "(d) + Jacobian and adversarial training"}[name]
        axis.set(title=title, xlabel="L2 distance, raw pixels", ylabel="test error, %", ylim=(0, 100))
        plots.legend(axis)
    return drawing


def holds() -> bool:
    """CW is stronger than PGD, PGD than FGSM, FGSM than white noise, on the model without defence."""
    medians = [np.mean(list(map(results.median, seeds))) for seeds in models("none").values()]
    return all(weak > strong for weak, strong in itertools.pairwise(medians))


ELEMENTS = [
    Element(
        "Figure S5a, d",
        "CW > PGD > FGSM > white noise in strength (here: by median distance, without defence); LeNet', MNIST",
        lambda: of_claim("figure_s5/CW-none", holds, MNIST_LENET.num_steps, FULL),
    ),
    Element("Figure S5b, c, e, f", "the same, DDNet and ResNet-18 on CIFAR-10", missing("no experiment yet")),
]
TABLES = {"figure_s5": table}
FIGURES = {"figure_s5": figure}
