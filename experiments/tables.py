"""The paper's tables on the results page, its number beside ours, from the committed results alone."""

import dataclasses
import json

import numpy as np
from scipy import stats

from experiments import paper, plots, record
from experiments.recipes import REGULARIZERS, Recipe

NAMES = {"none": "no regularization", "L2": "L2", "dropout": "dropout", "Jacobian": "Jacobian", "all": "all combined"}
DEFENCE_NAMES = {
    "none": "no defence",
    "adversarial": "adversarial training",
    "Jacobian": "Jacobian",
    "both": "both",
}


def by_seed(name: str, recipe: Recipe | None = None) -> dict[str, dict]:
    """The models of a result file; empty where it was not run.

    Raises:
        ValueError: they were not trained by the recipe.
    """
    path = record.RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    result = json.loads(path.read_text())
    if recipe and result["config"]["recipe"] != dataclasses.asdict(recipe):
        raise ValueError(f"{path} holds models of another recipe than the paper's: {result['config']['recipe']}")
    return result["models"]


def models(name: str, recipe: Recipe | None = None) -> list[dict]:
    """The same without their seeds."""
    return list(by_seed(name, recipe).values())


def cell(column: str, regularizer: str) -> list[dict]:
    """The models of a cell of Table 1."""
    recipe = REGULARIZERS[regularizer]
    return models(f"table1/{column}-{regularizer}", recipe if column == "all" else recipe.few_shot(int(column)))


def usps(regularizer: str) -> list[dict]:
    """The models of a cell of Table 2."""
    return models(f"table2/{regularizer}", REGULARIZERS[regularizer])


def interval(values) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval by Student's t; None for one value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def compare(values, expected: tuple[float, float]) -> str:
    """Ours (seeds), with a mark where the paper's interval, widened by ours and by rounding, does not hold it."""
    if not len(values):
        return "not run"
    mean, half = interval(values)
    outside = abs(mean - expected[0]) > expected[1] + (half or 0) + 0.05
    spread = "" if half is None else f" ± {half:.1f}"
    return f"{mean:.1f}{spread} ({len(values)}){' **!**' * outside}"


def table1() -> str:
    """Test accuracy by samples per class, and ||J||_F of the models trained on all samples."""
    columns = ("1", "3", "10", "30", "all")
    rows = []
    for name, label in NAMES.items():
        found = {c: cell(c, name) for c in columns}
        ours = [compare([100 * m["accuracy"] for m in found[c]], paper.TABLE1[name][c]) for c in columns]
        norms = compare([m["jacobian_norm"]["rms"] for m in found["all"]], paper.JACOBIAN_NORM[name])
        expected = [*(paper.TABLE1[name][c] for c in columns), paper.JACOBIAN_NORM[name]]
        rows.append([label, "paper", *(f"{mean} ± {half}" for mean, half in expected)])
        rows.append(["", "ours", *ours, norms])
    return plots.table(["regularizer", "", *(f"{c} per class" for c in columns[:-1]), "all", "||J||_F"], rows)


def table2() -> str:
    """Accuracy on USPS."""
    expected = ["paper", *(f"{paper.TABLE2[name][0]} ± {paper.TABLE2[name][1]}" for name in NAMES)]
    ours = [compare([100 * m["accuracy"] for m in usps(n)], paper.TABLE2[n]) for n in NAMES]
    return plots.table(["USPS", *NAMES.values()], [expected, ["ours", *ours]])


def norms_two_ways() -> str:
    """Both readings of the mean of ||J||_F."""
    rows = []
    for name, label in NAMES.items():
        found = [m["jacobian_norm"] for m in cell("all", name)]
        both = [spread([m[k] for m in found], 2)[0] for k in ("mean", "rms")]
        rows.append([label, *both, str(paper.JACOBIAN_NORM[name][0])])
    return plots.table(["all samples", "mean of the norm", "root of the mean square", "paper"], rows)


def deviations() -> str:
    """Every cell of Tables 1 and 2 that is outside."""
    cells = [(f"Table 1, {c}, {NAMES[n]}", [100 * m["accuracy"] for m in cell(c, n)], paper.TABLE1[n][c])
             for c in ("1", "3", "10", "30", "all") for n in NAMES]  # fmt: skip
    for n, label in NAMES.items():
        norms = [m["jacobian_norm"]["rms"] for m in cell("all", n)]
        cells.append((f"Table 1, ||J||_F, {label}", norms, paper.JACOBIAN_NORM[n]))
        cells.append((f"Table 2, {label}", [100 * m["accuracy"] for m in usps(n)], paper.TABLE2[n]))
    found = [(label, compare(values, expected), expected) for label, values, expected in cells]
    lines = [
        f"- {label}: {mean} ± {half} in the paper, {ours} here" for label, ours, (mean, half) in found if "!" in ours
    ]
    ran = sum(ours != "not run" for _, ours, _ in found)
    return "\n".join([f"{len(lines)} of the {ran} cells that ran (of {len(found)}):", "", *lines])


def initializations() -> str:
    """Few-shot cells from other initial parameters, beside those of Table 1."""
    rows = []
    for path in sorted((record.RESULTS / "initializations").glob("*.json")):
        column, regularizer, name = path.stem.split("-")
        expected = paper.TABLE1[regularizer][column]
        ours = _same_seeds(f"table1/{column}-{regularizer}", f"initializations/{path.stem}", expected)
        rows.append([column, NAMES[regularizer], f"{expected[0]} ± {expected[1]}", ours[0], name, ours[1]])
    header = ["samples per class", "regularizer", "paper", "Table 1 (xavier)", "initialization", "ours"]
    return plots.table(header, rows) if rows else "not run"


def dropout_in_penalty() -> str:
    """Few-shot cells of the row "all combined", with and without dropout in the penalty."""
    rows = []
    for path in sorted((record.RESULTS / "dropout_in_penalty").glob("*.json"), key=lambda path: int(path.stem)):
        expected = paper.TABLE1["all"][path.stem]
        ours = _same_seeds(f"table1/{path.stem}-all", f"dropout_in_penalty/{path.stem}", expected)
        rows.append([path.stem, f"{expected[0]} ± {expected[1]}", *ours])
    header = ["samples per class", "paper", "Table 1 (one mask for both branches)", "penalty without dropout"]
    return plots.table(header, rows) if rows else "not run"


def data_order() -> str:
    """Models of all samples by the order of their batches, other things equal."""
    orders = ("reshuffled", "reshuffled otherwise", "same every epoch", "with replacement")
    rows = []
    for name, label in NAMES.items():
        for order in orders:
            path = record.RESULTS / "data_order" / f"{name}-{record.slug(order)}.json"
            if path.exists():
                result = json.loads(path.read_text())
                found = result["models"].values()
                shares = [spread([100 * m[k] for m in found], 2)[0] for k in ("accuracy", "usps")]
                norms = spread([m["jacobian_norm"]["rms"] for m in found], 2)
                rows.append([label, order, f"{result['config']['recipe']['num_steps']:,}", *shares, *norms])
    header = ["all samples", "order of the batches", "steps", "test accuracy, %", "USPS, %", "||J||_F"]
    return plots.table(header, rows) if rows else "not run"


def retrained() -> str:
    """Seed 0 in Table 1, and trained once more by a later program for the converged attacks."""
    rows = []
    for name in ("none", "Jacobian"):
        for again, found in enumerate((cell("all", name), models(f"beyond_attacks/clean-{name}", REGULARIZERS[name]))):
            values = [f"{100 * found[0]['accuracy']:.2f}", f"{found[0]['jacobian_norm']['rms']:.1f}"] if found else []
            rows.append([NAMES[name], ("Table 1", "once more")[again], *(values or ["not run"] * 2)])
    return plots.table(["all samples, seed 0", "", "test accuracy, %", "||J||_F"], rows)


def _same_seeds(first: str, second: str, expected: tuple[float, float]) -> list[str]:
    """Accuracies of two results over the seeds that both have."""
    both = [by_seed(name) for name in (first, second)]
    seeds = both[0].keys() & both[1].keys()
    return [compare([100 * found[seed]["accuracy"] for seed in seeds], expected) for found in both]


def spread(values: list, digits: int) -> list[str]:
    """One column: mean, 95 % interval and number of seeds."""
    if not values:
        return ["not run"]
    if np.isinf(values).any():
        return [f"not reached by {np.isinf(values).sum()} of {len(values)}"]
    mean, half = interval(values)
    return [f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}") + f" ({len(values)})"]
