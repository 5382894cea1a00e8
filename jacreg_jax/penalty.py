"""What goes in a loss: the Jacobian penalty beside the logits, from one shared forward pass (Algorithm 1, Eqs. 4-5)."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jacreg_jax.jacobian import Probe, batch_size, exact_from_vjp, mean_from_vjp, projected_from_vjp, sample_keys


def value_and_penalty(
    f: Callable,
    x,
    key: jax.Array,
    *,
    num_projections: int = 1,
    probe: Probe = "sphere",
    sample_fraction: float = 1.0,
    chunk_size: int | None = None,
    has_aux: bool = False,
):
    """f(x) and the batch mean of the estimated ||J||_F^2, from one forward pass.

    Add (lambda_jr / 2) * penalty to the loss (Eq. 5). One training step costs 1 + n * sample_fraction plain ones.

    Under train-mode BatchNorm the rows of f(x) depend on each other and the estimate carries the cross-sample terms,
    O(1/B), as the paper's own ResNet runs do. To leave them out, penalise the eval-mode model.

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent. With has_aux it returns (z, aux).
        x: float array or pytree of arrays [B, ...].
        key: typed key, or B of them, one for each sample.
        num_projections: n, products per sample.
        probe: "sphere", "orthonormal", "rademacher" or "gaussian"; see `jacobian.projected_frobenius_sq`.
        sample_fraction: share of the batch that is penalised, in (0, 1]. The rows are drawn anew in each call.
            f is then called on both parts; with has_aux it is called on the whole batch, so that aux is the whole
            batch's, and once more on the part.
        chunk_size: projections at once; see `jacobian.mean_from_vjp`.
        has_aux: f returns (z, aux).

    Returns:
        (f(x), penalty), penalty a scalar; with has_aux ((z, aux), penalty).

    Raises:
        TypeError: x or f(x) is not real floating point; key is not a typed key.
        ValueError: num_projections, probe or sample_fraction out of range; batch sizes that differ.

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Algorithm 1.
    """
    value, mean, _ = value_and_mean_frobenius_sq(
        f,
        x,
        key,
        num_projections=num_projections,
        probe=probe,
        sample_fraction=sample_fraction,
        chunk_size=chunk_size,
        has_aux=has_aux,
    )
    return value, mean


def value_and_mean_frobenius_sq(
    f: Callable,
    x,
    key: jax.Array | None = None,
    *,
    num_projections: int | Literal["exact"] = 1,
    probe: Probe = "sphere",
    sample_fraction: float = 1.0,
    chunk_size: int | None = None,
    has_aux: bool = False,
):
    """(f(x), penalty, [m] norms without a gradient): for a loss that reports the standard error of its penalty.

    Arguments as for `value_and_penalty`; num_projections may also be "exact", which takes no key where the whole batch
    is penalised.
    """
    reduce = partial(mean_from_vjp, num_projections=num_projections, probe=probe, chunk_size=chunk_size)
    value, (mean, norms) = _value_and(reduce, f, x, key, sample_fraction, has_aux)
    return value, mean, norms


def value_and_frobenius_sq(
    f: Callable,
    x,
    key: jax.Array,
    *,
    num_projections: int = 1,
    probe: Probe = "sphere",
    sample_fraction: float = 1.0,
    has_aux: bool = False,
):
    """`value_and_penalty` before the mean: (f(x), [m]), an estimate for each of the m penalised samples.

    Every one of them can be differentiated, at the price of all products at once in memory.
    """
    reduce = partial(projected_from_vjp, num_projections=num_projections, probe=probe)
    return _value_and(reduce, f, x, key, sample_fraction, has_aux)


def value_and_exact_penalty(f: Callable, x, *, chunk_size: int | None = None, has_aux: bool = False):
    """f(x) and the batch mean of the exact ||J||_F^2, from one forward pass and C products.

    One training step costs about 1 + C plain ones. Do not use it on train-mode BatchNorm: the same basis vector on
    every row makes the cross-sample terms cancel coherently, and the norm comes out several times too small.

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent. With has_aux it returns (z, aux).
        x: float array or pytree of arrays [B, ...].
        chunk_size: basis vectors at once; see `jacobian.mean_from_vjp`.
        has_aux: f returns (z, aux).

    Returns:
        (f(x), penalty), penalty a scalar; with has_aux ((z, aux), penalty).

    Raises:
        TypeError: x or f(x) is not real floating point.
        ValueError: chunk_size below 1, or batch sizes that differ.
    """
    return value_and_mean_frobenius_sq(f, x, num_projections="exact", chunk_size=chunk_size, has_aux=has_aux)[:2]


def value_and_exact_frobenius_sq(f: Callable, x, *, chunk_size: int | None = None, has_aux: bool = False):
    """`value_and_exact_penalty` before the mean: (f(x), [B]), each of which can be differentiated."""
    reduce = lambda z, vjp, x, key: exact_from_vjp(z, vjp, x, chunk_size=chunk_size)
    return _value_and(reduce, f, x, None, 1.0, has_aux)


def joint_loss(supervised, penalty, params=None, *, lambda_jr: float, lambda_wd: float = 0.0):
    """Supervised loss + (lambda_wd / 2) ||params||^2 + (lambda_jr / 2) penalty (Eqs. 4-5).

    Args:
        supervised: scalar, the batch mean of the supervised loss.
        penalty: scalar, the batch mean of ||J||_F^2, without a factor 1/2.
        params: pytree of parameters; needed where lambda_wd is not 0. Leave both out where the optimizer decays.
        lambda_jr: coefficient of the Jacobian penalty.
        lambda_wd: coefficient of the L2 penalty.

    Returns:
        Scalar.

    Raises:
        ValueError: lambda_wd without params.
    """
    loss = supervised + 0.5 * lambda_jr * penalty
    if params is None:
        if not isinstance(lambda_wd, (int, float)) or lambda_wd != 0:
            raise ValueError(f"params must be given where lambda_wd is not 0, got None with lambda_wd={lambda_wd}")
        return loss
    return loss + 0.5 * lambda_wd * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


def standard_error(frobenius_sq: jax.Array) -> jax.Array:
    """Standard error of the mean of m estimates, s / sqrt(m): probe noise and sample spread together; 0 at m = 1."""
    m = frobenius_sq.shape[0]
    deviation = frobenius_sq - jnp.mean(frobenius_sq)
    return jnp.sqrt(jnp.sum(deviation**2) / max(m - 1, 1) / m)


def _value_and(reduce: Callable, f: Callable, x, key, sample_fraction: float, has_aux: bool):
    """(f(x), reduce(z, vjp, x, key)) from one forward pass, the second on a random part of the batch."""
    if not 0 < sample_fraction <= 1:
        raise ValueError(f"sample_fraction must lie in (0, 1], got {sample_fraction}")
    batch = batch_size(x)
    num_penalised = max(1, round(sample_fraction * batch))
    if num_penalised == batch:
        value, vjp = _vjp(f, x, has_aux)
        return value, reduce(value[0] if has_aux else value, vjp, x, key)

    keys = sample_keys(key, batch)
    order = jax.random.permutation(jax.random.fold_in(keys[0], batch), batch)
    rows = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
    part, rest = order[:num_penalised], order[num_penalised:]
    x_part = rows(x, part)
    if has_aux:
        value = f(x)
        (z_part, _), vjp = _vjp(f, x_part, has_aux)
    else:
        z_part, vjp = _vjp(f, x_part, has_aux)
        back = jnp.argsort(order)
        value = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[back], z_part, f(rows(x, rest)))
    return value, reduce(z_part, vjp, x_part, keys[part])


def _vjp(f: Callable, x, has_aux: bool):
    if not has_aux:
        return jax.vjp(f, x)
    z, vjp, aux = jax.vjp(f, x, has_aux=True)
    return (z, aux), vjp
