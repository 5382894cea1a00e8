"""Committed results to numbers and tables: by seed, with intervals, beside the paper's."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy import stats

from experiments import RESULTS

NAMES = {"none": "no regularization", "L2": "L2", "dropout": "dropout", "Jacobian": "Jacobian", "all": "all combined"}
DEFENCE_NAMES = {
    "none": "no defence",
    "adversarial": "adversarial training",
    "Jacobian": "Jacobian",
    "both": "both",
}
Paper = tuple[float, float, int]  # mean, half of the 95 % interval as printed, number of models


def read(name: str) -> dict | None:
    """A result file; None where it was not run.

    Raises:
        ValueError: it is damaged.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); check it out again, or run its experiment") from None


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file) as found:
            return dict(found)
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for single bits
        raise ValueError(f"{path} is damaged ({error}); check it out again, or run its experiment") from None


def names(pattern: str) -> list[str]:
    """Result files that ran, in order, such as those of "table1/*"."""
    return sorted(str(path.relative_to(RESULTS).with_suffix("")) for path in RESULTS.glob(f"{pattern}.json"))


def shorter(folder: str) -> str:
    """The folder of the longest trainings that are shorter than the paper's; `folder` itself where there are none."""
    steps = lambda path: int(path.parent.name.removesuffix("-steps"))
    found = sorted(RESULTS.glob(f"*-steps/{folder}"), key=steps)
    return str(found[-1].relative_to(RESULTS)) if found else folder


def longest(folder: str) -> str:
    """A folder of results of full length, or where there is none, that of the longest shorter training."""
    return folder if (RESULTS / folder).exists() else shorter(folder)


def config(name: str) -> dict:
    """The configuration of a result file; empty where it was not run."""
    return (read(name) or {"config": {}})["config"]


def by_seed(name: str, recipe: dict | None = None) -> dict[str, dict]:
    """The models of a result file by seed, without those that diverged; empty where it was not run.

    Raises:
        ValueError: they were not trained by the recipe.
    """
    found = read(name)
    if found is None:
        return {}
    if recipe and found["config"]["recipe"] != recipe:
        raise ValueError(f"{name} holds models of another recipe than the paper's: {found['config']['recipe']}")
    return {seed: model for seed, model in found["models"].items() if "diverged_at" not in model}


def diverged(name: str) -> dict[str, int]:
    """{seed: step} of the models of a result file whose training stopped being finite."""
    found = (read(name) or {"models": {}})["models"]
    return {seed: model["diverged_at"] for seed, model in found.items() if "diverged_at" in model}


def models(name: str, recipe: dict | None = None) -> list[dict]:
    """The same without their seeds."""
    return list(by_seed(name, recipe).values())


def distances(model: dict) -> np.ndarray:
    """Fooling distances [N] of a model: 0 where wrong from the start, +inf where never fooled."""
    return np.array([np.inf if v is None else v for v in model["distance"]])


def median(model: dict, first: int | None = None) -> float:
    """Median fooling distance over all samples, or the first of them; wrong ones at 0."""
    return float(np.median(distances(model)[:first]))


def fewer(names: Iterable[str], whole: int = 1000) -> str:
    """Says of result files which were measured on fewer than the whole of the images; empty where none was."""
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(config(name).get("num_samples", whole), []).append(name.rsplit("/", 1)[1])
    said = [f"{', '.join(found[count])} on the first {count}" for count in sorted(found) if count < whole]
    return f"\n\nOf {whole:,} images: {'; '.join(said)}." if said else ""


def norm(model: dict) -> float:
    """||J||_F: the root of the mean square over the test samples, here and everywhere."""
    return model["jacobian_norm"]["rms"]


def interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval by Student's t; None for one value."""
    values = np.asarray(list(values), float)
    if len(values) < 2:
        return float(values.mean()), None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def sampling_error(models: Iterable[dict], value: Callable[[dict], float]) -> float:
    """Standard error of the mean of accuracies (%) or norms that stems from the test images; 0 where all were at hand.

    Models are tested on the same images, so more models do not lessen it. Of n out of N images, drawn without
    replacement: sqrt(p (1 - p) / n (1 - n / N)) for a share p, and sd(||J||) / sqrt(n) sqrt(1 - n / N) for the norm.
    """
    models = [m for m in models if "test_images" in m]
    if not models:
        return 0.0
    used, whole = models[0]["test_images"], models[0]["of_test_images"]
    left = np.sqrt((1 - used / whole) / used)
    if value is percent:
        share = np.mean([m["accuracy"] for m in models])
        return float(100 * np.sqrt(share * (1 - share)) * left)
    norms = [m["jacobian_norm"] for m in models]
    return float(np.sqrt(np.mean([max(n["rms"] ** 2 - n["mean"] ** 2, 0) for n in norms])) * left)


def spread(values: list[float], digits: int, sampling: float = 0.0) -> str:
    """Mean, half of the 95 % interval, of the test images too where only some were at hand, and number of seeds."""
    if not values:
        return "not run"
    if np.isinf(values).any():
        return f"not reached by {np.isinf(values).sum()} of {len(values)}"
    mean, half = interval(values)
    half = None if half is None else np.hypot(half, stats.norm.ppf(0.975) * sampling)
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}") + f" ({len(values)})"


def differs(values: list[float], paper: Paper, sampling: float = 0.0) -> bool:
    """Whether the means differ at the 5 % level, by Welch's t; one model alone: whether it is none of the paper's.

    sampling, the standard error of `sampling_error`, widens both.

    The paper's standard deviation follows from its interval, taken as Student's t over its models; its rounding to one
    decimal widens both.
    """
    mean, half, count = paper
    error = max(half, 0.05) / stats.t.ppf(0.975, count - 1)  # standard error of the paper's mean
    square, rounding = error**2, 0.05**2 / 3
    if len(values) == 1:
        square, freedom = square * (count + 1), count - 1  # of one more model about the paper's mean
    else:
        own = np.var(values, ddof=1) / len(values)
        freedom = (square + own) ** 2 / (square**2 / (count - 1) + own**2 / (len(values) - 1))
        square += own
    return bool(abs(np.mean(values) - mean) > stats.t.ppf(0.975, freedom) * np.sqrt(square + rounding + sampling**2))


def compare(values: list[float], paper: Paper, sampling: float = 0.0) -> str:
    """Ours (seeds), with a mark where it differs from the paper's."""
    return spread(values, 1, sampling) + " **!**" * (bool(values) and differs(values, paper, sampling))


def paired(first: dict[str, dict], second: dict[str, dict], value: Callable[[dict], float]) -> list[float]:
    """Differences second - first by seed, over the seeds that both have."""
    return [value(second[seed]) - value(first[seed]) for seed in first if seed in second]


def percent(model: dict) -> float:
    """Accuracy in %."""
    return 100 * model["accuracy"]


def num_steps(folder: str) -> int:
    """Of the training of the models of a folder of results."""
    return config(names(f"{folder}/*")[0])["recipe"]["num_steps"]


def steps(recipe: dict) -> str:
    """Of the training, "15,000"."""
    return f"{recipe['num_steps']:,}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    line = lambda cells: "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
    return "\n".join([line(header), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])
