"""Random directions to project a Jacobian on, and the variance of what they estimate."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.keys import sample_keys
from jacreg_jax.types import Array, Float

Probe: TypeAlias = Literal["sphere", "orthonormal", "rademacher", "gaussian"]
PROBES = ("sphere", "orthonormal", "rademacher", "gaussian")


def sample_probes(
    key: jax.Array, batch: int, dimension: int, num_projections: int, probe: Probe
) -> Float[Array, "B n C"]:
    """Random directions v with E[v v^T] = I for every sample, in float32 (float64 under x64).

    The direction of a sample depends on the key and on its row alone, not on how many rows there are. The signs of
    the orthonormal frame are those of LAPACK's QR and not Haar; ||J^T v||^2 does not see them.

    Args:
        key: typed key, or B of them.
        batch: B.
        dimension: C.
        num_projections: n.
        probe: as in `projected_frobenius_sq`.

    Returns:
        [B, n, C].

    Raises:
        TypeError: key is not a typed key.
        ValueError: num_projections below 1, or above C for "orthonormal"; unknown probe.

    Example:
        >>> sample_probes(jax.random.key(0), 2, 5, 3, "sphere").shape
        (2, 3, 5)
    """
    _check(num_projections, probe, dimension)
    keys = sample_keys(key, batch)
    shape, dtype = (num_projections, dimension), jnp.zeros(()).dtype
    if probe == "rademacher":
        return jax.vmap(lambda k: jax.random.rademacher(k, shape, dtype))(keys)
    v = jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)
    if probe == "gaussian":
        return v
    if probe == "orthonormal":
        return jnp.sqrt(dimension) * jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(v, 1, 2)).Q, 1, 2)
    return jnp.sqrt(dimension) * v / jnp.linalg.norm(v, axis=-1, keepdims=True)


def projection_variance(
    gram: Float[Array, "... C C"], *, num_projections: int = 1, probe: Probe = "sphere"
) -> Float[Array, "..."]:
    """Variance of `projected_frobenius_sq` for A = J J^T (Eq. 15 and its relatives).

    With T = tr A and S = tr A^2:  sphere (2C S - 2 T^2) / ((C+2) n);  orthonormal: that times (C-n)/(C-1);
    gaussian 2 S / n;  rademacher 2 (S - sum_i A_ii^2) / n.

    Args:
        gram: A = J J^T, [..., C, C].
        num_projections: n.
        probe: as in `projected_frobenius_sq`.

    Returns:
        [...] array.

    Raises:
        TypeError: gram is no array.
        ValueError: gram is not square, n out of range, unknown probe.

    Example:
        >>> float(projection_variance(jnp.diag(jnp.asarray([2.0, 0.0])), probe="gaussian"))
        8.0

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Eq. 15.
    """
    if not hasattr(gram, "ndim"):
        raise TypeError(f"gram must be an array [..., C, C], got {type(gram).__name__}")
    if gram.ndim < 2 or gram.shape[-1] != gram.shape[-2]:
        raise ValueError(f"gram must have shape [..., C, C], got {gram.shape}")
    c, n = gram.shape[-1], num_projections
    _check(num_projections, probe, c)
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    trace_sq = jnp.sum(gram**2, axis=(-2, -1))
    if probe == "gaussian":
        return 2 * trace_sq / n
    if probe == "rademacher":
        return 2 * (trace_sq - jnp.sum(jnp.diagonal(gram, axis1=-2, axis2=-1) ** 2, axis=-1)) / n
    sphere = (2 * c * trace_sq - 2 * trace**2) / ((c + 2) * n)
    return sphere if probe == "sphere" else sphere * (c - n) / max(c - 1, 1)


def _check(num_projections: int, probe: Probe, dimension: int) -> None:
    checks.one_of("probe", probe, PROBES)
    checks.count("num_projections", num_projections)
    if probe == "orthonormal" and num_projections > dimension:
        raise ValueError(
            f"num_projections must be at most C = {dimension} for the orthonormal probe, got {num_projections}"
        )
