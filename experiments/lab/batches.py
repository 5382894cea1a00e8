"""Which rows of the training set every step sees: a function of the seed and the step, so that a run can go on."""

from collections.abc import Callable

import numpy as np

from experiments.lab.recipes import Recipe
from jacreg_jax import datasets


def rows_of(recipe: Recipe, seed: int, labels: np.ndarray) -> Callable:
    """(first_step, count) -> rows of the training set, int32 [T, B]; the few-shot subset depends on the seed too."""
    if recipe.samples_per_class is not None:
        subset = datasets.few_shot(labels, recipe.samples_per_class, seed).astype(np.int32)
        return lambda first, count: np.broadcast_to(subset, (count, len(subset)))
    size, samples = recipe.batch_size, len(labels)
    if recipe.order == "reshuffled otherwise":
        return lambda first, count: reshuffled(seed + 1000, first, count, size, samples)
    if recipe.order == "same every epoch":
        epoch = reshuffled(seed, 0, samples // size, size, samples)
        return lambda first, count: epoch[np.arange(first, first + count) % len(epoch)]
    if recipe.order == "with replacement":
        return lambda first, count: with_replacement(seed, first, count, size, samples)
    return lambda first, count: reshuffled(seed, first, count, size, samples)


def reshuffled(seed: int, first_step: int, num_steps: int, batch_size: int, num_samples: int) -> np.ndarray:
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


def with_replacement(seed: int, first_step: int, num_steps: int, batch_size: int, num_samples: int) -> np.ndarray:
    """The same, every row drawn from all, [T, B]."""
    steps = range(first_step, first_step + num_steps)
    draws = [np.random.default_rng((seed, t)).integers(num_samples, size=batch_size) for t in steps]
    return np.asarray(draws, np.int32)
