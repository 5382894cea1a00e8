"""Tables 1 and 3: accuracy by samples per class and regularizer, and ||J||_F of the models of all samples."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Literal

from experiments.lab import measure, options
from experiments.lab.cells import Cell
from experiments.lab.problems import Problem
from experiments.lab.recipes import Recipe, regularizers
from experiments.page import elements, results
from experiments.page.results import NAMES

Column = Literal["1", "3", "10", "30", "all"]
Regularizer = Literal["none", "L2", "dropout", "Jacobian", "all"]


@dataclasses.dataclass(frozen=True)
class Config(options.Measured):
    """The defaults are the paper's."""

    columns: tuple[Column, ...] = ("1", "3", "10", "30", "all")
    """Samples per class."""
    regularizers: tuple[Regularizer, ...] = ("none", "L2", "dropout", "Jacobian", "all")
    seeds: int = 15
    """Models of each few-shot cell; seed 0, 1, ..."""
    seeds_all: int = 5
    """Models of each cell of the column "all"."""
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it; None: 10,000, and 150,000 for "all"."""


QUICK = options.QUICK | {
    "columns": ("1", "all"),
    "regularizers": ("none", "all"),
    "seeds": 2,
    "seeds_all": 1,
    "norms": 100,
    "together": 2,
}


def recipe(problem: Problem, column: str, regularizer: str) -> Recipe:
    """How the models of a cell are trained."""
    whole = regularizers(problem)[regularizer]
    return whole if column == "all" else whole.few_shot(int(column))


def cells(folder: str, problem: Problem, config: Config) -> list[Cell]:
    """Column by column."""
    clean = partial(measure.clean, norms=config.norms, data_dir=config.data_dir)
    seeds = {column: range(config.seeds_all if column == "all" else config.seeds) for column in config.columns}
    return [
        Cell(
            f"{folder}/{c}-{r}",
            recipe(problem, c, r).shortened(config.num_steps),
            seeds[c],
            {"norms": config.norms},
            clean,
        )
        for c in config.columns
        for r in config.regularizers
    ]


VALUES = results.percent, results.norm  # of a model


class Study:
    """The committed results of one of the tables, beside the paper's numbers."""

    def __init__(self, folder: str, problem: Problem, accuracies: dict, norms: dict):
        self.folder, self.problem, self.accuracies, self.norms = folder, problem, accuracies, norms

    def cell(self, column: str, regularizer: str) -> dict[str, dict]:
        """The models of a cell by seed."""
        config = recipe(self.problem, column, regularizer).config()
        return results.by_seed(f"{self.folder}/{column}-{regularizer}", config)

    def column(self, column: str) -> dict[str, dict[str, dict]]:
        """The cells of a column; few-shot ones over the seeds that all of them have: rows are then of equal subsets."""
        found = {name: self.cell(column, name) for name in NAMES}
        if column == "all":
            return found
        shared = set.intersection(*(set(models) for models in found.values()))
        return {name: {s: m for s, m in models.items() if s in shared} for name, models in found.items()}

    def table(self) -> str:
        """Paper and ours, row by row."""
        columns = next(iter(self.accuracies.values()))
        found, rows = {column: self.column(column) for column in columns}, []
        for name, label in NAMES.items():
            printed = [*self.accuracies[name].values(), self.norms[name]]
            ours = [_cell(found[c][name], results.percent) for c in columns]
            ours.append(_cell(found["all"][name], results.norm))
            rows.append([label, "paper", *(f"{mean} ± {half}" for mean, half, _ in printed)])
            every = zip(ours, printed, strict=True)
            rows.append(["", "ours", *(results.compare(values, paper, error) for (values, error), paper in every)])
        header = ["regularizer", "", *(f"{c} per class" for c in [*columns][:-1]), "all", "‖J‖_F"]
        return results.table(header, rows) + self.diverged()

    def diverged(self) -> str:
        """Which models are left out, and why; empty where all stayed finite."""
        every = [(c, n) for c in next(iter(self.accuracies.values())) for n in NAMES]
        found = {(c, n): results.diverged(f"{self.folder}/{c}-{n}") for c, n in every}
        said = [f"{c}, {NAMES[n]}, seed {s} at step {step:,}" for (c, n), m in found.items() for s, step in m.items()]
        few = any(steps for (column, _), steps in found.items() if column != "all")
        rows = " A few-shot seed is left out of its whole column, so that rows are of equal subsets." * few
        return f"\n\nTraining diverged: {'; '.join(said)}.{rows}" if said else ""

    def paired(self) -> str:
        """Differences to no regularization by seed, and the paper's."""
        columns, rows = next(iter(self.accuracies.values())), []
        for name in [*NAMES][1:]:
            printed = [self.accuracies[name][c][0] - self.accuracies["none"][c][0] for c in columns]
            pairs = [results.paired(self.cell(c, "none"), self.cell(c, name), results.percent) for c in columns]
            rows.append([NAMES[name], "paper", *(f"{difference:+.1f}" for difference in printed)])
            rows.append(["", "ours", *(_signed(results.spread(pair, 1)) for pair in pairs)])
        header = ["minus no regularization", "", *(f"{c} per class" for c in [*columns][:-1]), "all"]
        return results.table(header, rows)

    def compared(self) -> list[tuple[str, list[float], tuple, float]]:
        """(label, ours, paper, standard error of the test images) of every cell."""
        lines = []
        for column in next(iter(self.accuracies.values())):
            for name, models in self.column(column).items():
                values, error = _cell(models, results.percent)
                lines.append((f"{column}, {NAMES[name]}", values, self.accuracies[name][column], error))
        for name, models in self.column("all").items():
            values, error = _cell(models, results.norm)
            lines.append((f"‖J‖_F, {NAMES[name]}", values, self.norms[name], error))
        return lines

    def files(self) -> list[str]:
        """Of the results."""
        return results.names(f"{self.folder}/*")

    def state(self) -> tuple[elements.State, str]:
        """For the list of elements."""
        return elements.of_cells(cell for _, *cell in self.compared())

    def shortened(self) -> str:
        """The column "all" of shorter trainings, beside the paper's full length and ours where it was run."""
        folder, rows = results.shorter(self.folder), []
        for name, label in NAMES.items():
            short, whole = (results.models(f"{where}/all-{name}") for where in (folder, self.folder))
            short = short if folder != self.folder else []
            every = [(f"{results.num_steps(folder):,}", short)] if short else []
            every += [(f"{self.problem.num_steps:,}", whole)] if whole else []
            mean, half, _ = self.accuracies[name]["all"]
            printed = f"{mean} ± {half}", f"{self.norms[name][0]} ± {self.norms[name][1]}"
            for steps, models in every:
                values = (results.spread(list(map(v, models)), 1, results.sampling_error(models, v)) for v in VALUES)
                rows.append([label, steps, *values, *printed])
        header = [
            "all samples",
            "steps",
            "test accuracy, %",
            "‖J‖_F",
            f"paper, {self.problem.num_steps:,} steps",
            "‖J‖_F",
        ]
        return results.table(header, rows) if rows else "not run"


def _cell(models: dict[str, dict], value: Callable[[dict], float]) -> tuple[list[float], float]:
    """The values of a cell's models, and the standard error that its test images add."""
    return list(map(value, models.values())), results.sampling_error(models.values(), value)


def _signed(text: str) -> str:
    return text if text[0] in "-n" else f"+{text}"
