"""What the maps of Figures 1, S1 and S2 show, in numbers."""

import itertools
from collections.abc import Sequence

from experiments.page import results
from experiments.page.elements import State


def state(name: str, models: Sequence[str]) -> tuple[State, str]:
    """Do cells grow from panel to panel; in S2, is the defended model right at the other's adversarial example?

    Args:
        name: of the figure: "1", "S1" or "S2".
        models: of its panels, in order.
    """
    facts = results.read(f"figure1/figure{name}")
    if facts is None:
        return "not run", ""
    maps = results.arrays(results.RESULTS / "figure1" / f"figure{name}.npz")
    holds, notes = zip(*(shown(name, models, maps, row, facts) for row in range(len(facts["samples"]))), strict=True)
    settled = "reproduced" if facts["config"]["seeds"] > 1 else "unsettled"
    return settled if all(holds) else "outside", "; ".join(notes)


def shown(name: str, models: Sequence[str], maps: dict, row: int, facts: dict) -> tuple[bool, str]:
    """Whether a row of panels shows it, and its numbers."""
    radii = [float(maps[f"{row}/{model}/radius"]) for model in models]
    grows = all(low < high for low, high in itertools.pairwise(radii))
    note = f"radii {', '.join(f'{r:.2f}' for r in radii)}"
    if name != "S2":
        return grows, note
    sample = facts["samples"][row]
    size, extent = facts["config"]["resolution"], facts["config"]["extent"]
    a, b = (round((x + extent) / (2 * extent) * (size - 1)) for x in sample["dots"][0])
    stands = int(maps[f"{row}/both/classes"][b, a]) == sample["label"]
    return stands, note + ", not fooled" * stands
