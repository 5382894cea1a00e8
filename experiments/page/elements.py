"""The list of all that the paper shows and claims, each with its state, recomputed from the results."""

import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from experiments.page import results

# unsettled: too few models, or cells, to say; in part: cells that a claim is about were not run
State = Literal["reproduced", "outside", "shortened", "unsettled", "in part", "not run"]


class Element(NamedTuple):
    """A table, a figure or a claim of the paper, and how to find out what became of it."""

    name: str  # "Table 1", "Figure S3", "Section 2"
    says: str  # the paper, in a line
    state: Callable[[], tuple[State, str]]  # and why, with the number of models
    files: Callable[[], Iterable[str]] = tuple  # results that it is read from


def missing(files: Iterable[str]) -> tuple[State, str]:
    """The state of a claim of which not all cells ran: those that did."""
    ran = [name.rsplit("/", 1)[1] for name in files]
    return ("in part", "ran: " + ", ".join(ran)) if ran else ("not run", "")


def of_cells(cells: Iterable[tuple]) -> tuple[State, str]:
    """The state of a table: outside where a cell differs, unsettled where one holds a single model or was not run.

    Args:
        cells: what `results.differs` is asked with, each.
    """
    cells = list(cells)
    ran = [cell for cell in cells if cell[0]]
    if not ran:
        return "not run", ""
    outside, seeds = sum(results.differs(*cell) for cell in ran), [len(values) for values, *_ in ran]
    note = f"{outside or 'none'} of {len(ran)} cells differ{'s' * (outside < 2)}"
    note += f", {' to '.join(map(str, sorted({min(seeds), max(seeds)})))} models each"
    note += f"; {len(cells) - len(ran)} not run" * (len(cells) > len(ran))
    if not outside and (min(seeds) < 2 or len(cells) > len(ran)):
        return "unsettled", note
    return "outside" if outside else "reproduced", note


def of_claim(
    name: str, gains: Callable[[], list[list[float]]], full: int | None, seeds: int, note: str = ""
) -> tuple[State, str]:
    """The state of what a result shows: does it hold, at which length, over how many of the paper's seeds?

    Args:
        name: of a result file.
        gains: asked where it is there: of each comparison, by seed, what is above 0 if it holds (`results.paired`).
        full: steps of the paper's training.
        seeds: of the paper.
        note: at the end.

    Returns:
        State and why: outside where a gain is below 0, its interval over the models too; unsettled where it includes 0.
    """
    ran = results.read(name)
    if ran is None:
        return "not run", note
    steps, count = ran["config"]["recipe"]["num_steps"], len(results.models(name))
    found = gains()
    ends = [results.interval(gain) for gain in found]
    if steps < full:
        verb = "holds" if all(mean > 0 for mean, _ in ends) else "does not hold"
        said = [f"{verb} at {steps:,} of {full:,} steps", f"{count} of {seeds} seeds" * (count < seeds)]
    else:
        held = [min(of_seed) > 0 for of_seed in zip(*found, strict=False)]
        said = [f"in {sum(held)} of {count} models" * (count > 1), f"the paper: {seeds}" * (count < seeds)]
    note = ", ".join(part for part in (*said, note) if part)
    if any(mean + (half or 0) <= 0 for mean, half in ends):
        return "outside", note
    if any(half is not None and mean - half <= 0 for mean, half in ends):
        return "unsettled", f"{note}; the interval of a difference includes 0"
    if steps < full:
        return "shortened", note
    return "unsettled" if count < 2 else "reproduced", note


def render(elements: Iterable[Element]) -> str:
    """The table, in the paper's order."""
    rows = []
    for e in sorted(elements, key=_order):
        state, note = e.state()
        rows.append([e.name, e.says, state, *provenance(e.files()), note])
    return results.table(["element", "the paper", "state", "seeds", "steps", "by", "here"], rows)


def provenance(files: Iterable[str]) -> list[str]:
    """Seeds, steps and experiments of result files, as their files say them; empty where there are none."""
    found = [file for name in files if (file := results.read(name))]
    seeds = {len(f["models"]) if "models" in f else f["config"]["seeds"] for f in found}
    recipes = [r for f in found for r in f["config"].get("recipes", {"": f["config"].get("recipe")}).values()]
    steps = sorted({recipe["num_steps"] for recipe in recipes})
    by = dict.fromkeys(f["environment"]["command"].split()[3] for f in found)
    between = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else "".join(map(str, seeds))
    return [between, ", ".join(f"{n:,}" for n in steps), ", ".join(f"`{name}`" for name in by)]


def _order(element: Element):
    kind, number = element.name.split(" ", 1)
    kinds = ("Table", "Figure", "Section", "Appendix")
    supplement, digits, rest = re.match(r"(S?)(\d*)(.*)", number).groups()
    return kinds.index(kind), bool(supplement), int(digits or 0), rest
