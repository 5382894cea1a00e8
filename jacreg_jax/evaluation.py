"""What a model is worth: accuracy, Jacobian norms, robust accuracy and fooling distances, over padded equal batches.

Functions take ``f`` first: [B, ...] -> [B, C], parameters closed over; new parameters do not recompile, unless
a derivative rule of f's own reads them from its closure. Random functions fold the key with the index of the sample, so
that no result depends on the batch size or on the padding. What an attack refuses when it is called directly is refused
here before anything runs.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks, deprecation
from jacreg_jax.attack_runs import run_attack as run_attack, worst_case as worst_case
from jacreg_jax.batches import Progress as Progress, map_batches as map_batches
from jacreg_jax.fooling import (
    fooled_within as fooled_within,
    fooling_curve as fooling_curve,
    median_distance as median_distance,
    robust_accuracy as robust_accuracy,
)
from jacreg_jax.jacobian import exact_frobenius_sq
from jacreg_jax.predictions import as_logits, predicted_class
from jacreg_jax.types import Array, Function


def accuracy(f: Function, x: Any, y: Any, *, batch_size: int = 500) -> float:
    """Share of samples with argmax f(x) = y; logits that are not finite are wrong.

    Args:
        f: [B, ...] -> logits [B, C], one logit [B] or [B, 1] (class 1 above 0), or [B, T, C] for labels [N, T].
        x: [N, ...].
        y: integer labels [N], each in [0, C).
        batch_size: B.

    Returns:
        A share from 0 to 1.

    Raises:
        TypeError: y is not integer.
        ValueError: y is not of the logits' leading shape, or holds other labels; see `map_batches`.

    Example:
        >>> accuracy(lambda x: x, np.eye(3), np.array([0, 1, 0]))
        0.6666666666666666
    """
    return float(map_batches(_correct, f, x, y, batch_size=batch_size).mean())


def jacobian_norms(
    f: Function, x: Any, *args: Any, frobenius_sq: Function = exact_frobenius_sq, batch_size: int = 100
) -> "np.ndarray":
    """||J||_F of every sample, [N].

    Args:
        f: [B, ...] -> [B, ...].
        x: [N, ...], in the space the Jacobian is wanted in.
        *args: none; (frobenius_sq, f, x) is the deprecated order.
        frobenius_sq: (f, x) -> [B].
        batch_size: B.

    Returns:
        [N], not squared.

    Raises:
        TypeError, ValueError: see `map_batches` and `exact_frobenius_sq`.

    Example:
        >>> jacobian_norms(lambda x: 3 * x, np.ones((2, 4), np.float32)).tolist()
        [6.0, 6.0]
    """
    if args:
        deprecation.warn("jacobian_norms(frobenius_sq, f, x)", "jacobian_norms(f, x, frobenius_sq=...)")
        frobenius_sq, f, x = f, x, *args
    norms: np.ndarray = np.sqrt(map_batches(frobenius_sq, f, x, batch_size=batch_size))
    return norms


def norm_summary(norms: Sequence[float] | ArrayLike) -> dict[str, float]:
    """Both readings of "the" ||J||_F, mean(||J||) and sqrt(mean ||J||^2): the paper does not say which.

    Args:
        norms: [N].

    Returns:
        {"mean": ..., "rms": ...}.

    Raises:
        ValueError: NaN or negative norms, or none.

    Example:
        >>> norm_summary(np.array([1.0, 7.0]))
        {'mean': 4.0, 'rms': 5.0}
    """
    found = checks.sample_values("norms", norms).astype(np.float64)
    return {"mean": float(np.mean(found)), "rms": float(np.sqrt(np.mean(np.square(found))))}


def report(f: Function, x: Any, y: Any, key: Array, **options: Any) -> Any:
    """All that tells how robust a model is, and whether to believe it, in one call: see `reporting.report`.

    Args:
        f: batched function, raw inputs [B, ...] -> what the criterion looks at, such as logits.
        x: raw inputs [N, ...].
        y: integer labels [N], or what the criterion compares with.
        key: typed key.
        **options: epsilon, by norm, and the others of `reporting.report`.

    Returns:
        `reporting.Report`.

    Raises:
        TypeError, ValueError: as `reporting.report`.

    Example:
        >>> from jacreg_jax import reporting
        >>> f, x, y = lambda x: 4 * x, np.array([[0.1, 0.2], [0.7, 0.6]], np.float32), np.array([1, 0])
        >>> options = {"epsilon": {"linf": 0.01}, "budget": reporting.quick, "progress": False}
        >>> report(f, x, y, jax.random.key(0), **options).sections["clean"]["accuracy"]
        1.0
    """
    from jacreg_jax import reporting

    return reporting.report(f, x, y, key, **options)


def _correct(f: Function, x: Array, y: Array) -> Array:
    logits = as_logits(f(x))
    return predicted_class(logits) == checks.labels(y, logits.shape[:-1], logits.shape[-1]).astype(jnp.int32)
