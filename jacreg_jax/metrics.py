"""Metrics of a batch from those of its shares: devices of a mesh, or parts done one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def merged(
    metrics: dict[str, jax.Array], mean: Callable[[jax.Array], jax.Array], shares: int, weight: Any = None
) -> dict[str, jax.Array]:
    """The metrics of the whole from those of its shares.

    Means are averaged. Where there are NAME, NAME_error and NAME_count, the second is the standard error of the first
    over as many samples of each share; with m of them in share d of D, M in all, means p_d and errors e_d,

        e^2 = sum_d (m (m - 1) e_d^2 + m (p_d - p)^2) / ((M - 1) M),

    which is the standard error over all M samples. Of penalty_error without a count, e^2 = sum_d (w_d e_d)^2 / D^2; any
    other NAME_error without one is a mean as others are.

    Args:
        metrics: of a share, or stacked over them.
        mean: over the shares, such as a `jax.lax.pmean`.
        shares: D.
        weight: w_d, the size of a share in units of the mean size, stacked as the metrics are; None: all are equal.

    Returns:
        Scalars by the same names.

    Raises:
        TypeError: a metric of integers or flags: a mean over the shares would not be that of the whole, in its dtype.

    Example:
        >>> halves = {"p": jnp.asarray([1.0, 3.0]), "p_error": jnp.zeros(2), "p_count": jnp.ones(2)}
        >>> whole = merged(halves, jnp.mean, 2)
        >>> float(whole["p"]), float(whole["p_error"])
        (2.0, 1.0)
    """
    triples = [name for name in metrics if {f"{name}_error", f"{name}_count"} <= metrics.keys()]
    _check_floating(metrics, {f"{name}_count" for name in triples})
    weigh = lambda value: value if weight is None else value * weight.astype(value.dtype)
    whole = {name: mean(weigh(value)).astype(value.dtype) for name, value in metrics.items()}
    if "penalty_error" in metrics:
        whole["penalty_error"] = jnp.sqrt(mean(weigh(metrics["penalty_error"]) ** 2) / shares)
    for of in triples:
        error, m = metrics[f"{of}_error"], metrics[f"{of}_count"]
        total = (shares * mean(m)).astype(m.dtype)
        squares = shares * mean(m * (m - 1) * error**2 + m * (metrics[of] - whole[of]) ** 2)
        whole[f"{of}_error"] = jnp.sqrt(squares / jnp.maximum(total - 1, 1) / total)
        whole[f"{of}_count"] = total
    return whole


def _check_floating(metrics: dict[str, jax.Array], counts: set[str]) -> None:
    for name, value in metrics.items():
        if name not in counts and not jnp.issubdtype(value.dtype, jnp.inexact):
            raise TypeError(
                f"metrics[{name!r}] must be a mean over the samples, in floating point, where a batch is done in shares"
                f" (devices, parts), got {value.dtype}: take the mean of the samples' values, no sum, count or flag"
            )
