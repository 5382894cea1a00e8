"""What goes in a loss: the Jacobian penalty beside the logits, from one shared forward pass (Algorithm 1, Eqs. 4-5)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from jacreg_jax import checks
from jacreg_jax.keys import part_keys, sample_keys
from jacreg_jax.mean_norm import mean_exact, mean_projected
from jacreg_jax.probes import Probe
from jacreg_jax.programs import once
from jacreg_jax.rows import at_least_float32, batch_size
from jacreg_jax.types import Array, Float, Function, PyTree

Reduce = Callable[..., Any]  # (z, vjp, x, key) -> (mean, norms), or another summary


@once
def value_and_penalty(
    f: Function,
    x: PyTree,
    key: jax.Array,
    *,
    num_projections: int = 1,
    probe: Probe = "sphere",
    sample_fraction: float = 1.0,
    chunk_size: int | None = None,
    has_aux: bool = False,
) -> tuple[Any, Float[Array, ""]]:
    """f(x) and the batch mean of the estimated ||J||_F^2, from one forward pass.

    Add (lambda_jr / 2) * penalty to the loss (Eq. 5). One training step costs 1 + n * sample_fraction plain ones.

    Call it under `jax.jit`: in an eager `jax.grad` its loops compile anew in every call.

    Under train-mode BatchNorm the rows of f(x) depend on each other and the estimate carries the cross-sample terms,
    O(1/B), as the paper's own ResNet runs do. `models.batch_statistics_mode` leaves them out.

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent. With has_aux it returns (z, aux).
        x: float array or pytree of arrays [B, ...].
        key: typed key, or B of them, one for each sample.
        num_projections: n, products per sample.
        probe: "sphere", "orthonormal", "rademacher" or "gaussian"; see `jacobian.projected_frobenius_sq`.
        sample_fraction: share of the batch that is penalised, in (0, 1]. The rows are drawn anew in each call.
            f is then called on both parts; with has_aux it is called on the whole batch, so that aux is the whole
            batch's, and once more on the part.
        chunk_size: projections at once; see `mean_norm.accumulated_mean`.
        has_aux: f returns (z, aux).

    Returns:
        (f(x), penalty), penalty a scalar; with has_aux ((z, aux), penalty).

    Raises:
        TypeError: x or f(x) is not real floating point; key is not a typed key.
        ValueError: num_projections, probe or sample_fraction out of range; batch sizes that differ.

    Example:
        >>> z, penalty = value_and_penalty(lambda x: 3 * x, jnp.ones((2, 4)), jax.random.key(0))
        >>> z.shape, round(float(penalty), 3)
        ((2, 4), 36.0)

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Algorithm 1.
    """
    checks.fraction("sample_fraction", sample_fraction, one=True)
    reduce = partial(mean_projected, num_projections=num_projections, probe=probe, chunk_size=chunk_size)
    if sample_fraction == 1:
        value, (mean, _) = value_and(reduce, f, x, key, has_aux=has_aux)
    else:
        penalise = lambda x, keys: value_and(reduce, f, x, keys, has_aux=has_aux)
        value, (mean, _) = on_random_rows(sample_fraction, penalise, f, x, key, needs_whole=has_aux)
    return value, mean


@once
def value_and_exact_penalty(
    f: Function, x: PyTree, *, chunk_size: int | None = None, has_aux: bool = False
) -> tuple[Any, Float[Array, ""]]:
    """f(x) and the batch mean of the exact ||J||_F^2, from one forward pass and C products.

    One training step costs about 1 + C plain ones. Do not use it on train-mode BatchNorm: the same basis vector on
    every row makes the cross-sample terms cancel coherently, and the norm comes out several times too small.

    Args:
        f: batched function, [B, ...] -> [B, ...], rows independent. With has_aux it returns (z, aux).
        x: float array or pytree of arrays [B, ...].
        chunk_size: basis vectors at once; see `mean_norm.accumulated_mean`.
        has_aux: f returns (z, aux).

    Returns:
        (f(x), penalty), penalty a scalar; with has_aux ((z, aux), penalty).

    Raises:
        TypeError: x or f(x) is not real floating point.
        ValueError: chunk_size below 1, or batch sizes that differ.

    Example:
        >>> z, penalty = value_and_exact_penalty(lambda x: 3 * x, jnp.ones((2, 4)))
        >>> penalty
        Array(36., dtype=float32)
    """
    value, (mean, _) = value_and(partial(mean_exact, chunk_size=chunk_size), f, x, None, has_aux=has_aux)
    return value, mean


def joint_loss(
    supervised: Any, penalty: Any, params: PyTree = None, *, lambda_jr: Any, lambda_wd: Any = 0.0
) -> Float[Array, ""]:
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
        TypeError: a coefficient is not a real number.
        ValueError: a coefficient is negative or not finite; lambda_wd without params.

    Example:
        >>> joint_loss(1.0, jnp.float32(4.0), lambda_jr=0.5)
        Array(2., dtype=float32)
    """
    checks.non_negative("lambda_jr", lambda_jr)
    checks.non_negative("lambda_wd", lambda_wd)
    loss = supervised + 0.5 * lambda_jr * penalty
    if params is None:
        if not isinstance(lambda_wd, (int, float)) or lambda_wd != 0:
            raise ValueError(f"params must be given where lambda_wd is not 0, got None with lambda_wd={lambda_wd}")
        return loss
    return loss + 0.5 * lambda_wd * sum(map(_size_sq, jax.tree.leaves(params)))


def _size_sq(leaf: Any) -> Array:
    """Sum of |entry|^2, in float32 at least: thousands of half-precision weights overflow."""
    parts = (leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,)
    wide = [jnp.asarray(part, at_least_float32(part.dtype)) for part in map(jnp.asarray, parts)]
    return sum((jnp.sum(part**2) for part in wide), jnp.zeros((), wide[0].dtype))


def standard_error(frobenius_sq: Float[Array, " m"]) -> Float[Array, ""]:
    """Standard error of the mean of m estimates, s / sqrt(m): probe noise and sample spread together; 0 at m = 1.

    Args:
        frobenius_sq: [m] values of ||J||_F^2 or estimates of it, one for each sample.

    Returns:
        Scalar, in the unit of the estimates.

    Raises:
        TypeError: no floating point array.
        ValueError: not [m], or none.

    Example:
        >>> standard_error(jnp.asarray([1.0, 3.0]))
        Array(1., dtype=float32)
    """
    if not (hasattr(frobenius_sq, "dtype") and jnp.issubdtype(frobenius_sq.dtype, jnp.floating)):
        raise TypeError(f"frobenius_sq must be a floating point array [m], got {type(frobenius_sq).__name__}")
    if frobenius_sq.ndim != 1 or not len(frobenius_sq):
        raise ValueError(f"frobenius_sq must be [m], at least one estimate, got shape {frobenius_sq.shape}")
    m = frobenius_sq.shape[0]
    deviation = frobenius_sq - jnp.mean(frobenius_sq)
    return jnp.sqrt(jnp.sum(deviation**2) / max(m - 1, 1) / m)


@checks.pure
def value_and(reduce: Reduce, f: Function, x: PyTree, key: Any, *, has_aux: bool = False) -> tuple[Any, Any]:
    """(f(x), reduce(z, vjp, x, key)) from one forward pass; with has_aux f(x) is (z, aux)."""
    checks.function("f", f)
    if batch_size(x) == 0:
        raise ValueError("x must hold at least one sample: an empty batch has no mean")
    if has_aux:
        both = lambda x: checks.pair("f", f(x), "(z, aux), as has_aux=True says")
        z, vjp, aux = jax.vjp(both, x, has_aux=True)
    else:
        z, vjp = jax.vjp(f, x)
    if not depends_on_argument(vjp, z):
        checks.warn(
            "f(x) has a derivative of exactly zero in x everywhere, as where x is cast to integers: the penalty is 0"
        )
    with jax.named_scope("jacobian_penalty"):  # so that a profile tells its products from the rest of a step
        reduced = reduce(z, vjp, x, key)
    return (z, aux) if has_aux else z, reduced


def depends_on_argument(function: Function, argument: PyTree) -> bool:
    """Whether any result of the function is computed from its argument, seen from its program."""
    jaxpr = jax.make_jaxpr(function)(argument).jaxpr
    reached = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(isinstance(v, Var) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
    return any(isinstance(v, Var) and v in reached for v in jaxpr.outvars)


def on_random_rows(
    fraction: float,
    penalise: Callable[..., tuple[Any, Any]],
    f: Function,
    x: PyTree,
    key: Any,
    *rest: PyTree,
    needs_whole: bool = False,
) -> tuple[Any, Any]:
    """(f(x), what penalise(x', keys', *rest') finds) with the primed ones on max(1, round(fraction B)) random rows.

    Of m rows among B, m / g come from each of g = gcd(m, B) groups of consecutive rows, drawn by the key of the group's
    first row: every row is as likely as another, and devices whose number divides g draw the rows that one device
    draws. f is called on the rows that are left; with needs_whole on all of them, as its result is not made of rows.

    Raises:
        ValueError: fraction outside (0, 1].
    """
    checks.fraction("sample_fraction", fraction, one=True)
    batch = batch_size(x)
    size = max(1, round(fraction * batch))
    if size == batch:
        return penalise(x, key, *rest)
    keys = sample_keys(key, batch)
    part, others = _random_part(keys, size)
    rows = lambda tree, index: jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tree)
    if needs_whole:
        value = f(x)
        _, found = penalise(rows(x, part), keys[part], *rows(rest, part))
        return value, found
    value_part, found = penalise(rows(x, part), keys[part], *rows(rest, part))
    back = jnp.argsort(jnp.concatenate([part, others]))
    value = jax.tree.map(lambda a, b: jnp.concatenate([a, b])[back], value_part, f(rows(x, others)))
    return value, found


def _random_part(keys: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Indices [size] of random rows, as many from each group of rows, and those of the others."""
    batch = keys.shape[0]
    groups = math.gcd(size, batch)
    length = batch // groups
    order = jax.vmap(lambda key: jax.random.permutation(key, length))(part_keys(keys[::length]))
    order = order + length * jnp.arange(groups, dtype=order.dtype)[:, None]
    drawn = size // groups
    return order[:, :drawn].reshape(-1), order[:, drawn:].reshape(-1)
