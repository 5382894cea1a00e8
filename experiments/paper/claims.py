"""What the paper claims beside its tables and figures."""

from collections.abc import Callable

import numpy as np

from experiments.lab.problems import MNIST_LENET
from experiments.lab.recipes import regularizers
from experiments.page import results
from experiments.page.elements import Element, State

FEW = ("1", "3", "10", "30")  # samples per class


def norms(name: str) -> list[float]:
    """||J||_F of Table 1's models of all samples."""
    return list(map(results.norm, results.models(f"table1/all-{name}", regularizers(MNIST_LENET)[name].config())))


def smaller_norm() -> tuple[State, str]:
    """An order of magnitude, Jacobian against none."""
    plain, jacobian = norms("none"), norms("Jacobian")
    if not plain or not jacobian:
        return "not run", ""
    factor = np.mean(plain) / np.mean(jacobian)
    return "reproduced" if factor >= 10 else "outside", f"{factor:.0f} times smaller"


def better_than_none(folder: str, names: tuple[str, ...], label: Callable[[str], str]) -> tuple[State, str]:
    """Whether accuracy rises by more than its 95 % interval, seed by seed."""
    notes, risen = [], []
    for name in names:
        first, second = (results.by_seed(f"{folder}/{label(n)}") for n in ("none", name))
        moved = results.paired(first, second, results.percent)
        if not moved:
            return "not run", ""
        mean, half = results.interval(moved)
        risen.append(half is not None and mean > half)
        notes.append(f"{results.NAMES[name]} {'+' * (mean > 0)}{results.spread(moved, 1)}")
    return "reproduced" if all(risen) else "unsettled", "by seed: " + ", ".join(notes)


def few_shot() -> tuple[State, str]:
    """All combined against none, in every few-shot column."""
    states = [better_than_none("table1", ("all",), lambda n, c=c: f"{c}-{n}") for c in FEW]
    notes = [
        f"{column}: {note.removeprefix('by seed: all combined ')}"
        for column, (_, note) in zip(FEW, states, strict=True)
    ]
    kinds = {state for state, _ in states}
    return kinds.pop() if len(kinds) == 1 else "unsettled", "by seed, at " + "; ".join(notes)


ELEMENTS = [
    Element(
        "Section 3.1, norm",
        "‖J‖_F is an order of magnitude smaller with Jacobian regularization",
        smaller_norm,
        lambda: ("table1/all-none", "table1/all-Jacobian"),
    ),
    Element(
        "Section 3.1, few samples",
        "all combined improves the accuracy",
        few_shot,
        lambda: [f"table1/{c}-{name}" for c in FEW for name in ("none", "all")],
    ),
    Element(
        "Section 3.1, new domain",
        "each regularizer raises the accuracy on USPS",
        lambda: better_than_none("table2", ("L2", "dropout", "Jacobian", "all"), lambda name: name),
        lambda: results.names("table2/*"),
    ),
    Element(
        "Section 2, error",
        "the estimate's error falls as one over the root of n_proj B",
        lambda: ("reproduced", "by the analytic variance, tests/test_jacobian.py"),
    ),
    Element(
        "Appendix C",
        "the penalty's gradient in closed form, cyclopropagation",
        lambda: ("reproduced", "equals automatic differentiation, tests/test_cyclopropagation.py"),
    ),
]
