"""What fooling distances say: robust accuracy, the curve of test error against distance, the median."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks


def robust_accuracy(distances: Sequence[float] | ArrayLike, epsilon: ArrayLike) -> float:
    """Share of samples whose smallest fooling distance is above epsilon; wrong samples have distance 0.

    Args:
        distances: [N]; 0 where wrong from the start, +inf where never fooled.
        epsilon: same unit.

    Returns:
        A share from 0 to 1.

    Raises:
        ValueError: NaN or negative distances, or none; epsilon negative.

    Example:
        >>> robust_accuracy([0.0, 0.3, np.inf], 0.2)
        0.6666666666666666
    """
    return float(np.mean(~fooled_within(distances, epsilon)))


def fooled_within(distances: Sequence[float] | ArrayLike, epsilon: ArrayLike) -> "np.ndarray":
    """Which samples are fooled within epsilon, [N] bool; both in float32, as attacks take epsilon.

    Args:
        distances: [N], as for `robust_accuracy`.
        epsilon: same unit.

    Returns:
        [N] bool.

    Raises:
        ValueError: as `robust_accuracy`.

    Example:
        >>> fooled_within(np.array([0.1, 0.2], np.float32), 0.1).tolist()  # 0.1 in float32 is above 0.1
        [True, False]
    """
    checks.non_negative("epsilon", epsilon)
    return np.less_equal(_distances(distances).astype(np.float32), np.float32(np.asarray(epsilon)))


def fooling_curve(distances: Sequence[float] | ArrayLike, grid: Sequence[float] | ArrayLike) -> "np.ndarray":
    """Test error against distance, error(d) = share of samples fooled within d; [len(grid)].

    Args:
        distances: [N] in any order; 0 where wrong from the start, +inf where never fooled.
        grid: distances [G], same unit.

    Returns:
        [G] shares.

    Raises:
        ValueError: NaN or negative distances, or none; likewise of the grid.

    Example:
        >>> fooling_curve([0.5, 0.0, np.inf, 0.2], [0.1, 0.3, 9.0]).tolist()
        [0.25, 0.5, 0.75]
    """
    found, grid = _distances(distances).astype(np.float32), checks.sample_values("grid", grid).astype(np.float32)
    return np.searchsorted(np.sort(found), grid, side="right") / len(found)


def median_distance(
    distances: Sequence[float] | ArrayLike, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, float]:
    """Median of the fooling distances with its percentile-bootstrap interval over samples; inf stays inf.

    Args:
        distances: [N].
        resamples: of the bootstrap.
        confidence: of the interval.
        seed: of the bootstrap.

    Returns:
        {"median": ..., "low": ..., "high": ...}.

    Raises:
        ValueError: NaN or negative distances, or none; resamples below 1; confidence outside (0, 1); seed
            negative.

    Example:
        >>> median_distance([0.1, 0.2, np.inf])["median"]
        0.2
    """
    found = _distances(distances)
    resamples = checks.count("resamples", resamples)
    checks.fraction("confidence", confidence)
    rows = checks.generator("seed", seed).integers(0, len(found), (resamples, len(found)))
    # the order statistics themselves: interpolation between two infinities would be NaN
    middle = lambda d: np.sort(d, axis=-1)[..., (len(found) - 1) // 2]
    medians = np.sort(middle(found[rows]))
    tail = round((1 - confidence) / 2 * (resamples - 1))
    return {"median": float(middle(found)), "low": float(medians[tail]), "high": float(medians[-1 - tail])}


def _distances(distances: Sequence[float] | ArrayLike) -> Any:
    return checks.sample_values("distances", distances, "0 or positive, +inf where never fooled")
