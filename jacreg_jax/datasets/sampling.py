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
        TypeError: labels are no integers.
        ValueError: labels is not a non-empty vector, k is below 1, a class has fewer than k samples, or seed is
            negative.

    Example:
        >>> few_shot(np.asarray([0, 1, 0, 1, 1]), 1, seed=0).shape
        (2,)
    """
    checks.on_host(labels=labels)
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must be a non-empty vector [N], got shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be integers [N], got {labels.dtype}")
    checks.count("samples_per_class", samples_per_class)
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < samples_per_class:
        raise ValueError(
            f"samples_per_class is {samples_per_class}, but class {classes[counts.argmin()]} has only "
            f"{counts.min()} samples"
        )
    rng = checks.generator("seed", seed)
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
        ValueError: seed or epoch is negative or no integer, or n is below 1.

    Example:
        >>> sorted(epoch_permutation(0, 3, 4).tolist())
        [0, 1, 2, 3]
    """
    seed, epoch = checks.count("seed", seed, least=0), checks.count("epoch", epoch, least=0)
    return checks.generator("seed", seed, epoch).permutation(checks.count("n", n))
