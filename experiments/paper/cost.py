"""What a step with the penalty costs: the paper's Section 2 beside what `make bench` measured."""

from experiments.page import results
from experiments.page.elements import Element, missing
from experiments.paper.numbers import COST

ARITHMETIC = 2.13  # by XLA's own count, held by tests/test_cost.py


def measured() -> float | None:
    """A step with n = 1 over a plain one, LeNet' on CPU."""
    found = results.read("benchmark_lenet_cpu")
    if found is None:
        return None
    times = {r["variant"]: r["ms"] for r in found["rows"] if r["framework"] == "jacreg_jax"}
    return times["n = 1"] / times["plain"]


def table() -> str:
    """LeNet' with n = 1."""
    ours = measured()
    rows = [
        ["paper, on a GP100 in PyTorch", f"about {COST}"],
        ["here, measured on CPU", "not run" if ours is None else f"{ours:.2f}"],
        ["here, by arithmetic", f"{ARITHMETIC}"],
        ["here, on a GPU", "not run"],
    ]
    return results.table(["LeNet', a step with n = 1 over a plain one", "cost"], rows)


def state():
    """The claim is about a GPU."""
    ours = measured()
    return "not run", "on a GPU" + ("" if ours is None else f"; {ours:.2f} on CPU, {ARITHMETIC} by arithmetic")


TABLES = {"cost": table}
ELEMENTS = [
    Element("Section 2, cost", f"a step with n = 1 costs about {COST} plain ones; LeNet', MNIST, one GPU", state),
    Element("Section 2, footnote 4", "about 2 for ResNet-18 on CIFAR-10", missing("on CPU only the step is timed")),
]
