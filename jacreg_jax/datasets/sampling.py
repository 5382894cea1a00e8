"""Which samples, and in what order: few-shot subsets and epoch permutations, on the host, reproducible from a seed."""

from typing import Any

import numpy as np

from jacreg_jax import checks


def few_shot(labels: Any, samples_per_class: int, seed: int) -> np.ndarray:
    """Indices of a random subset that holds the same number of samples of every class.

    The subsets of one seed are nested: the one with 3 samples per class lies inside the one with 10.

    Args:
        labels: integer array [N].
        samples_per_class: k, at least 1.
        seed: non-negative integer, or a sequence of them.

    Returns:
        int64 array [k * number of classes], sorted.

    Raises:
        ValueError: labels is not a non-empty vector, k is below 1, or a class has fewer than k samples.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must be a non-empty vector [N], got shape {labels.shape}")
    checks.count("samples_per_class", samples_per_class)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < samples_per_class:
        raise ValueError(
            f"samples_per_class is {samples_per_class}, but class {classes[counts.argmin()]} has only "
            f"{counts.min()} samples"
        )
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:samples_per_class] for c in classes]
    return np.sort(np.concatenate(chosen))


def epoch_permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Order in which epoch number `epoch` visits n samples: a function of (seed, epoch), so that a run can resume.

    Args:
        seed: non-negative integer of the run.
        epoch: non-negative integer.
        n: number of samples.

    Returns:
        int64 array [n], a permutation of 0 ... n-1.

    Raises:
        ValueError: seed or epoch is negative.
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f"seed and epoch must not be negative, got seed={seed}, epoch={epoch}")
    return np.random.default_rng((seed, epoch)).permutation(n)
