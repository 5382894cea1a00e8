"""The training loop of every experiment: many steps a dispatch, a progress bar, a stop where a number is not finite."""

import jax
import numpy as np
from tqdm import tqdm

from jacreg_jax import datasets, training


def batch_indices(seed: int, first_step: int, num_steps: int, batch_size: int, num_samples: int) -> np.ndarray:
    """Rows of the batches of steps first_step ... first_step + num_steps - 1, [T, B].

    Every epoch is a new permutation, drawn from (seed, epoch), without its last incomplete batch; so a run that goes
    on at step t meets the batches it would have met.
    """
    if batch_size > num_samples:
        raise ValueError(f"batch_size must be at most the {num_samples} training samples, got {batch_size}")
    per_epoch = num_samples // batch_size
    steps = range(first_step, first_step + num_steps)
    orders = {e: datasets.epoch_permutation(seed, e, num_samples) for e in {t // per_epoch for t in steps}}
    rows = [orders[t // per_epoch][t % per_epoch * batch_size :][:batch_size] for t in steps]
    return np.asarray(rows, np.int32)


def train(steps, state, data, *, num_steps: int, batch_size: int, seed: int, dispatch: int = 50, label: str = ""):
    """Train to step num_steps and return (state, history): one row of mean metrics for each dispatch.

    Args:
        steps: from `training.make_train_steps`.
        state: a TrainState; training goes on from its step.
        data: {"image": [N, ...], "label": [N]}, on the device.
        num_steps: where to stop.
        batch_size: B; the whole data set where it equals N.
        seed: of the data order.
        dispatch: steps compiled into one call.
        label: shown in front of the progress bar.

    Raises:
        NonFiniteError: with the step; its `state` is the last good one.
    """
    num_samples = len(data["label"])
    history, step = [], int(state.step)
    with tqdm(total=num_steps, initial=step, desc=label, unit="step", dynamic_ncols=True, smoothing=0.1) as bar:
        while step < num_steps:
            count = min(dispatch, num_steps - step)
            indices = batch_indices(seed, step, count, batch_size, num_samples)
            state, metrics = steps(state, data, indices)
            metrics = jax.device_get(metrics)
            step += count
            try:
                training.check_finite(metrics, step)
            except training.NonFiniteError as error:
                error.state = state
                raise
            row = {name: float(np.nanmean(value)) for name, value in metrics.items() if not np.isnan(value).all()}
            history.append({"step": step, **row})
            bar.update(count)
            bar.set_postfix({k: f"{row[k]:.3g}" for k in ("loss", "accuracy", "penalty") if k in row})
    return state, history
