"""Tables and figures from the committed results: `make report` rebuilds all that is shown, and trains nothing.

A page holds `<!-- results:NAME -->` ... `<!-- /results:NAME -->`; what stands between is replaced by the table and the
picture of that name, which some experiment owns (TABLES, FIGURES).

    python -m experiments.report [PAGE ...]      # README.md and docs/*.md without one
"""

import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from experiments import ROOT, catalogue
from experiments.lab import record
from experiments.page import elements, plots

FIGURES = ROOT / "docs" / "figures"
BLOCK = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results:\2 -->)", re.DOTALL)


def pages() -> list[Path]:
    """README and docs, those with a block."""
    return [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(p.read_text())]


def block(name: str) -> str:
    """What is shown under a name.

    Raises:
        ValueError: no experiment owns it.
    """
    tables, figures = catalogue.owned("TABLES"), catalogue.owned("FIGURES")
    tables["elements"] = lambda: elements.render(catalogue.owned("ELEMENTS"))
    if name not in tables and name not in figures:
        raise ValueError(f"no experiment owns {name!r}; there are {', '.join(sorted(tables.keys() | figures.keys()))}")
    parts = [tables[name]()] if name in tables else []
    if name in figures and (FIGURES / f"{name}.svg").exists():
        title = name.replace("figure_s", "Figure S").replace("figure", "Figure ")
        parts.append(f"![{title}](figures/{name}.svg)")
    return "\n\n".join(parts) or "not run"


def rebuild(text: str) -> str:
    """The page with every block made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}\n{match[3]}", text)


def main(paths: list[Path]):
    """Draw the figures, then write the pages."""
    for name, draw in catalogue.owned("FIGURES").items():
        figure = draw()
        if figure is not None:
            plots.save(figure, FIGURES / f"{name}.svg")
            plt.close(figure)
            print(f"wrote {FIGURES / name}.svg")
    for path in paths or pages():
        record.write_text(path, rebuild(path.read_text()))
        print(f"wrote {path}")


if __name__ == "__main__":
    main([Path(page) for page in sys.argv[1:]])
