"""Tables from the committed results: `make report` rebuilds every number shown, and trains nothing.

A page holds `<!-- results:NAME -->` ... `<!-- /results:NAME -->`; what stands between is replaced.
"""

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt

from experiments import cost_tables, figure_tables, figures, plots, record, tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/performance.md", "docs/results.md", "docs/choosing.md")
FIGURES = ROOT / "docs" / "figures"


def demo_table(result: dict) -> str:
    """The two models of the demo side by side, as a markdown table."""
    models = result["models"]
    percent = lambda values: [f"{100 * v:.1f} %" for v in values]
    rows = [
        ["clean accuracy", *percent(m["accuracy"] for m in models.values())],
        ["mean norm of the Jacobian", *(f"{m['jacobian_norm']['mean']:.2f}" for m in models.values())],
    ]
    for kind, label in (("noise", "accuracy, white noise sigma = "), ("pgd", "accuracy, PGD epsilon = ")):
        for size in models["plain"][kind]:
            rows.append([label + size, *percent(m[kind][size] for m in models.values())])
    return plots.table([f"LeNet', {result['config']['dataset']}", *models], rows)


def demo() -> str:
    """Both data sets of the demo, each with the command that made it."""
    parts = []
    for name in ("digits", "mnist"):
        path = record.RESULTS / f"demo_{name}.json"
        if not path.exists():
            parts.append(f"{name}: not run")
            continue
        result = json.loads(path.read_text())
        config = result["config"]
        parts.append(
            f"`make demo DATASET={name}`: {config['num_steps']:,} steps of {config['batch_size']}, "
            f"lambda_jr = {config['lambda_jr']:g}, one seed; noise and PGD on {config['num_attacked']} test images.\n\n"
            + demo_table(result)
            + f"\n\n![Decision cells of both models around a test digit](experiments/results/demo_{name}.png)"
        )
    return "\n\n".join(parts)


BLOCKS = {
    "demo": demo,
    "bars": cost_tables.bars,
    "benchmark": cost_tables.benchmark,
    "table1": tables.table1,
    "norms_two_ways": tables.norms_two_ways,
    "table2": tables.table2,
    "deviations": tables.deviations,
    "initializations": tables.initializations,
    "data_order": tables.data_order,
    "retrained": tables.retrained,
    "dropout_in_penalty": tables.dropout_in_penalty,
    "figure1": lambda: "\n\n".join(picture(name) for name in ("figure1", "figure_s1", "figure_s2")),
    "figure2": lambda: figure_tables.figure2() + "\n\n" + picture("figure2"),
    "figure3": lambda: figure_tables.figure3() + "\n\n" + picture("figure3"),
    "figure_s5": lambda: figure_tables.figure_s5() + "\n\n" + picture("figure_s5"),
    "figure_s6": lambda: figure_tables.figure_s6() + "\n\n" + picture("figure_s6"),
    "beyond_attacks": figure_tables.beyond_attacks,
    "beyond_probes": figure_tables.beyond_probes,
    "relu_study": figure_tables.relu_study,
    "cyclopropagation": cost_tables.cyclopropagation,
}


def picture(name: str) -> str:
    """The line that shows a figure of docs/figures."""
    title = name.replace("figure_s", "Figure S").replace("figure", "Figure ")
    return f"![{title}](figures/{name}.png)" if (FIGURES / f"{name}.png").exists() else f"{title}: not run."


def rebuild(text: str) -> str:
    """The page with every block made anew."""
    for name, make in BLOCKS.items():
        if f"<!-- results:{name} -->" not in text:
            continue
        pattern = re.compile(f"(<!-- results:{name} -->\n).*?(<!-- /results:{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", text)
    return text


def main():
    """Draw the figures, then write the pages."""
    for name, draw in figures.FIGURES.items():
        figure = draw()
        if figure is not None:
            record.save_figure(figure, FIGURES / f"{name}.png")
            plt.close(figure)
            print(f"wrote docs/figures/{name}.png")
    for page in PAGES:
        path = ROOT / page
        path.write_text(rebuild(path.read_text()))
        print(f"wrote {page}")


if __name__ == "__main__":
    main()
