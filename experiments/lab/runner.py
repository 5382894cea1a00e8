"""The training loop of every experiment: many steps a dispatch, a progress bar, checkpoints, a stop at what is not
finite. A run that is stopped or killed goes on from its last checkpoint and ends with the numbers of one that was not.
"""

import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from experiments.lab import disk, record, stopping, world
from experiments.lab.checkpoints import Checkpoints
from jacreg_jax import training


def train(
    steps: Callable,
    state,
    data,
    indices: Callable,
    *,
    num_steps: int,
    dispatch: int = 50,
    label: str = "",
    names: Sequence[str] = (),
    folder: Path | None = None,
    checkpoint_every: int = 5000,
    observe: Callable | None = None,
    observe_every: int = 5000,
    watch: Callable | None = None,
):
    """Train to step num_steps and return (state, history): one row of mean metrics for each dispatch.

    Of several models that train together the others go on where one diverges; the error comes when they are done.

    Args:
        steps: from `training.make_train_steps`.
        state: a TrainState, or one of several models trained together, with a leading axis; training goes on from
            its step, or from the last checkpoint in folder.
        data: {"image": [N, ...], "label": [N]}, where steps takes them.
        indices: (first_step, count) -> rows [T, B], or [models, T, B].
        num_steps: where to stop.
        dispatch: steps compiled into one call.
        label: shown in front of the progress bar.
        names: of the models, for the error of one that diverges.
        folder: for checkpoints and metrics.jsonl; None keeps nothing.
        checkpoint_every: steps; a multiple of dispatch.
        observe: state -> metrics of the test set, every observe_every steps.
        observe_every: steps; a multiple of dispatch.
        watch: row -> what the progress bar shows of it; called after every dispatch, in every process.

    Raises:
        NonFiniteError: with the step; its `state` is the last good one, and of those that finished their last one. Its
            `last` is the last row, where "diverged" has of each model None, or the step and its metrics.
        ValueError: intervals that are no multiples of dispatch; no checkpoint in folder that is whole.
        OSError: folder cannot be written, or has no room for a checkpoint.
        Stopped: SIGINT or SIGTERM came; the dispatch in hand was finished, and its state saved.
    """
    if checkpoint_every % dispatch or (observe and observe_every % dispatch):
        raise ValueError(
            f"checkpoint_every and observe_every must be multiples of dispatch, {dispatch}; "
            f"got {checkpoint_every} and {observe_every}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    with Log(folder) as log, stopping.deferred() as signal:
        came, number = (lambda: world.greatest(signal.number or 0)), 0
        state, history = log.restore(state)
        step = int(np.max(state.step))
        if step < num_steps:
            log.check_room(state)
        with tqdm(
            total=num_steps, initial=step, desc=label, unit="step", dynamic_ncols=True, smoothing=0.1, disable=None
        ) as bar:
            while step < num_steps and not (number := came()):
                count = min(dispatch - step % dispatch, num_steps - step)
                rows, start = indices(step, count), time.perf_counter()
                state, metrics = steps(state, data, rows)
                metrics = jax.device_get(metrics)
                milliseconds = 1e3 * (time.perf_counter() - start) / count
                step += count
                row = {"step": step, **_means(metrics), "ms_per_step": round(milliseconds, 3)}
                row |= _diverged(metrics, step, history[-1] if history else {})
                if all(row.get("diverged", [None])):
                    raise _error(row, names, state)
                if observe and (step % observe_every == 0 or step == num_steps):
                    row |= observe(state)
                history.append(row)
                log.write(row)
                if step % checkpoint_every == 0 or step == num_steps:
                    log.save(step, state)
                bar.update(count)
                bar.set_postfix((watch or _shown)(row))
        if number := number or came():
            log.save(step, state)
            goes_on = "goes on" if folder else "starts anew"
            raise stopping.Stopped(number, f"stopped at step {step}; the same command {goes_on}")
    if "diverged" in history[-1]:
        raise _error(history[-1], names, state)
    return state, history


def _means(metrics: dict) -> dict:
    """Mean over the steps, without those that lazy penalties leave out; a list where models train together."""
    rows = {name: np.asarray(value) for name, value in metrics.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")  # of a model that diverged
        return {name: np.nanmean(v, axis=-1).tolist() for name, v in rows.items() if not np.isnan(v).all()}


def _shown(row: dict) -> dict:
    return {k: f"{np.mean(row[k]):.3g}" for k in ("loss", "accuracy", "penalty") if k in row}


def _diverged(metrics: dict, step: int, before: dict) -> dict:
    """{"diverged": of each model None, or the first step that was not finite, and its metrics}; {} where all are."""
    rows = {name: np.atleast_2d(value) for name, value in metrics.items()}
    found = before.get("diverged") or [None] * len(rows["loss"])
    for i, already in enumerate(found):
        try:
            training.check_finite({name: value[i] for name, value in rows.items()}, step)
        except training.NonFiniteError as error:
            here = {name: float(value[i, error.step - step - 1]) for name, value in rows.items()}
            found = [*found[:i], already or {"step": error.step} | here, *found[i + 1 :]]
    return {"diverged": found} if any(found) else {}


def _error(row: dict, names: Sequence[str], state) -> training.NonFiniteError:
    diverged = row["diverged"]
    which = [i for i, found in enumerate(diverged) if found]
    first = diverged[which[0]]
    error = training.NonFiniteError(first["step"], first)
    several = f"model {which[0]} of {len(diverged)}: " * (len(diverged) > 1)
    more = f"; and {len(which) - 1} more of {len(diverged)}" * (len(which) > 1)
    error.args = (f"{f'{names[which[0]]}: ' if names else several}{error}{more}",)
    error.state, error.last = state, row
    return error


def read_history(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl; a last line that was cut off while it was written is left out.

    Raises:
        ValueError: it is missing, or damaged before its end; with the path and the remedy.
    """
    remedy = "remove its folder, and the same command trains the model from the start"
    if not path.exists():
        raise ValueError(f"{path} is missing beside its checkpoints; {remedy}")
    rows, lines = [], path.read_text(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(f"{path} is damaged in line {number}; {remedy}")
    return rows


class Log:
    """metrics.jsonl and checkpoints in one folder; does nothing where folder is None."""

    def __init__(self, folder: Path | None):
        self.folder = folder and Path(folder).absolute()

    def __enter__(self):
        if self.folder:
            with disk.writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            self.checkpoints = Checkpoints(self.folder / "checkpoints")
            self.metrics = self.folder / "metrics.jsonl"
        return self

    def __exit__(self, *error):
        if self.folder:
            self.checkpoints.close()

    def check_room(self, state):
        """See `Checkpoints.check_room`."""
        if self.folder:
            self.checkpoints.check_room(state)

    def restore(self, state):
        """The state of the last checkpoint, and the metrics up to it; what was logged after it is dropped."""
        if not self.folder:
            return state, []
        rows = world.agreed(read_history(self.metrics) if self.checkpoints.steps() else [])
        state, last = self.checkpoints.restore(state, {row["step"] for row in rows})
        rows = [row for row in rows if row["step"] <= last]
        record.write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))
        return state, rows

    def write(self, row: dict):
        """Append one line."""
        if self.folder and world.is_first():
            with disk.writing(self.metrics), self.metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save(self, step: int, state):
        """A checkpoint of a step that was trained: whole, or not there."""
        if self.folder and step:
            self.checkpoints.save(step, state)
