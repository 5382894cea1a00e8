"""What a report says, and how much was tried for it."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is tried; more finds more. `quick` is for a first look, `standard` for a claim.

    Attributes:
        gradient_steps: of the attacks that seek the nearest fooling sample; DDN takes 150 at least, FAB 100 at most.
        searches: of Carlini and Wagner's constant.
        pgd_steps: of the checks of masking, rising.
        queries: of Square.
        draws: of randomized smoothing, a sample.
        norms: samples whose exact ||J||_F is measured.
        certified: samples that smoothing and interval arithmetic look at.

    Example:
        >>> Budget(pgd_steps=(10, 1000)).queries
        5000
    """

    gradient_steps: int = 300
    searches: int = 9
    pgd_steps: tuple[int, ...] = (10, 40, 100)
    queries: int = 5000
    draws: int = 10_000
    norms: int = 1000
    certified: int = 200


quick = Budget(gradient_steps=50, searches=3, pgd_steps=(10, 40), queries=200, draws=1000, norms=100, certified=20)
"""A first look."""
standard = Budget()
"""A claim."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` found: numbers by section and name, and what they mean.

    Attributes:
        sections: {section: {name: number, word, or list}}.
        notes: what was left out, and why; warnings of the checks.

    Example:
        >>> print(Report({"clean": {"accuracy": 0.975}}, ["no norms"]))
        clean
          accuracy  0.975
        ! no norms
    """

    sections: dict[str, dict[str, Any]]
    notes: list[str]

    def __repr__(self) -> str:
        width, text = max((len(row["name"]) for row in self.rows()), default=0) + 2, []
        for section, found in self.sections.items():
            text += [section, *(f"  {name:{width}}{_shown(value)}" for name, value in found.items())]
        return "\n".join([*text, *(f"! {note}" for note in self.notes)])

    def rows(self) -> list[dict[str, Any]]:
        """One dict of section, name and value for each finding, as pandas.DataFrame takes it."""
        every = [(section, *item) for section, found in self.sections.items() for item in found.items()]
        return [dict(zip(("section", "name", "value"), finding, strict=True)) for finding in every]

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write all to a file, whole or not at all; what is infinite is written as null."""
        file = Path(path)
        partial_file = file.with_name(f".{file.name}.{os.getpid()}.partial")
        content = {"sections": _plain(self.sections), "notes": self.notes}
        partial_file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        partial_file.replace(file)

    def figure(self) -> Any:
        """A matplotlib figure: accuracy under noise and corruptions, and the curve of fooling distances."""
        from jacreg_jax.reporting_figure import draw

        return draw(self.sections)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(_shown(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
