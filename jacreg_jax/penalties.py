"""Penalties as values: each is a function (f, x, y, keys) -> (f(x), mean, norms), to be made once and handed around.

    penalty = on_part(1 / 4, projected(num_projections=3, probe="orthonormal"))
    loss = training.classification_loss(apply, penalty=penalty, lambda_jr=0.01)

`mean` is the batch mean that a loss adds (lambda_jr / 2) times, `norms` [m] are the penalised samples' values without a
gradient, for statistics. Any function of these arguments is a penalty too.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.bound_model import BoundModel as BoundModel
from jacreg_jax.explicit_axes import automatic
from jacreg_jax.mean_norm import mean_exact, mean_projected
from jacreg_jax.penalty import depends_on_argument, on_random_rows, value_and
from jacreg_jax.probes import PROBES, Probe
from jacreg_jax.programs import once
from jacreg_jax.types import Apply, Function, PyTree

Penalty: TypeAlias = Callable[..., tuple[Any, jax.Array, jax.Array]]  # (f, x, y, keys) -> (f(x), mean, norms)

_LAGGING = (
    "the penalty is taken at running statistics, which lag behind the parameters: the scales in front of a BatchNorm "
    "then grow without end and accuracy on held-out data can fall to chance. Penalise batch_statistics_mode(module), "
    "or the batch_statistics of interop's adapters"
)
_COUPLED = (
    "the penalty is taken through statistics of the batch, as of a BatchNorm in train mode: where rows of f(x) depend "
    "on each other by them the norm is another one, with exact() several times smaller. Penalise "
    "penalties.of_model(models.held_statistics_mode(module)), or of_model(functional.batch_statistics) of interop"
)
_OTHER_PRECISION = (
    "the model of the loss computes in {}, and that of the penalty, of_model(...), in {}. They share their work only "
    "if both are wrapped: of_model(computed_in(jnp.bfloat16, held_statistics_mode(module)))"
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Made:
    """A penalty that prints as the call that made it."""

    penalise: Penalty
    call: str
    is_checked: bool = False

    def __call__(self, f: Function, x: PyTree, y: PyTree, keys: Any) -> tuple[Any, jax.Array, jax.Array]:
        return (self.penalise if isinstance(f, BoundModel) else automatic(self.penalise))(f, x, y, keys)

    def __repr__(self) -> str:
        return self.call


def projected(num_projections: int = 1, probe: Probe = "sphere", chunk_size: int | None = None) -> Penalty:
    """The mean of ||J||_F^2 estimated by n random projections, (1/n) sum_mu ||J^T v_mu||^2; a step costs 1 + n.

    Args:
        num_projections: n.
        probe: "sphere" (the paper), "orthonormal", "rademacher" or "gaussian"; see `projected_frobenius_sq`.
        chunk_size: projections at once; see `mean_norm.accumulated_mean`.

    Returns:
        A penalty.

    Raises:
        ValueError: num_projections or chunk_size below 1, or no integers; unknown probe.

    Example:
        >>> f, x = lambda x: 3 * x, jnp.ones((2, 4))
        >>> z, mean, norms = projected(2)(f, x, None, jax.random.key(0))
        >>> round(float(mean), 3), norms.shape
        (36.0, (2,))

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Algorithm 1.
    """
    checks.count("num_projections", num_projections)
    checks.optional_count("chunk_size", chunk_size)
    checks.one_of("probe", probe, PROBES)
    words = (num_projections, probe) if chunk_size is None else (num_projections, probe, chunk_size)
    options: Any = {"num_projections": num_projections, "probe": probe, "chunk_size": chunk_size}
    return _Made(partial(_of_reduction, reduce=mean_projected, **options), f"projected{words}")


def exact(chunk_size: int | None = None) -> Penalty:
    """The mean of the exact ||J||_F^2 = sum_c ||J^T e_c||^2 over all C basis vectors; a step costs about 1 + C.

    Args:
        chunk_size: basis vectors at once; see `mean_norm.accumulated_mean`.

    Returns:
        A penalty; it draws nothing from keys.

    Raises:
        ValueError: chunk_size below 1, or no integer.

    Example:
        >>> z, mean, norms = exact()(lambda x: 3 * x, jnp.ones((2, 4)), None, None)
        >>> float(mean)
        36.0
    """
    checks.optional_count("chunk_size", chunk_size)
    words = "" if chunk_size is None else chunk_size
    return _Made(partial(_of_reduction, reduce=mean_exact, chunk_size=chunk_size), f"exact({words})")


def of(function: Callable[..., jax.Array], **options: Any) -> Penalty:
    """A penalty from any per-sample function, such as one of `relatives`: its mean over the batch.

    Args:
        function: (f, x, ...) -> [B]; an argument named y gets the labels, one named key the keys of the rows.
        **options: its other arguments.

    Returns:
        A penalty.

    Raises:
        TypeError: function is not callable, or its arguments do not fit.
        ValueError: in a call, function does not give [B].

    Example:
        >>> from jacreg_jax import relatives
        >>> quiet = of(relatives.noise_consistency, sigma=0.1)
        >>> z, mean, norms = quiet(lambda x: 3 * x, jnp.ones((2, 4)), None, jax.random.key(0))
        >>> norms.shape
        (2,)
    """
    takes = checks.signature("function", function, "(f, x, ...) -> [B]")
    makers: tuple[Any, ...] = (projected, exact, of, on_part, of_model)
    if function in makers:
        raise TypeError(f"function must give one value for each sample, got {function.__name__}, which makes a penalty")
    names = [name for name in ("y", "key") if name in takes.parameters]
    takes.bind(None, None, **dict.fromkeys(names) | options)  # TypeError names what is missing

    def penalty(f: Function, x: PyTree, y: PyTree, keys: Any) -> tuple[Any, jax.Array, jax.Array]:
        if isinstance(f, BoundModel) and hasattr(f.apply, "inside"):
            raise TypeError(
                "function, in of(...), is not one that held_statistics_mode serves, as projected() and exact() are; "
                "take batch_statistics_mode"
            )
        given = {name: {"y": y, "key": keys}[name] for name in names if name not in options}
        _tell_of_batch_statistics(f, x)
        with jax.named_scope("jacobian_penalty"):
            norms = function(f.output if isinstance(f, BoundModel) else f, x, **given, **options)
        rows = jax.tree.leaves(x)[0].shape[:1]
        if jnp.shape(norms) != rows:
            raise ValueError(f"function must give one value for each sample, {rows}, got shape {jnp.shape(norms)}")
        return f(x), jnp.mean(norms), jax.lax.stop_gradient(norms)  # XLA merges the two forward passes

    words = [getattr(function, "__name__", repr(function)), *(f"{k}={v!r}" for k, v in options.items())]
    return _Made(penalty, f"of({', '.join(words)})")


def on_part(fraction: float, penalty: Penalty | None = None) -> Penalty:
    """A penalty on a random part of the batch, drawn anew in each step; a step costs 1 + n * fraction.

    Args:
        fraction: share of the batch, in (0, 1]; at least one sample is penalised.
        penalty: on that part; None: `projected()`.

    Returns:
        A penalty.

    Raises:
        TypeError: penalty is not one, such as `exact` without its call.
        ValueError: fraction outside (0, 1].

    Example:
        >>> z, mean, norms = on_part(0.5)(lambda x: 3 * x, jnp.ones((4, 4)), None, jax.random.key(0))
        >>> z.shape, norms.shape
        ((4, 4), (2,))
    """
    checks.fraction("fraction", fraction, one=True)
    inner = projected() if penalty is None else checked(penalty)

    def part(f: Function, x: PyTree, y: PyTree, keys: Any) -> tuple[Any, jax.Array, jax.Array]:
        if not isinstance(f, BoundModel):
            value, found = on_random_rows(fraction, lambda x, keys, y: _split(inner(f, x, y, keys)), f, x, keys, y)
            return value, *found
        if jax.tree.leaves(f.model_state):  # the whole batch's: the model is called on all rows, and then on the part
            penalise = lambda x, keys, y: _split(inner(f.for_rows(x), x, y, keys))
            value, found = on_random_rows(fraction, penalise, f, x, keys, y, needs_whole=True)
            return value, *found

        def of_output(x: PyTree, keys: Any, y: PyTree) -> tuple[Any, Any]:
            (z, _), mean, norms = inner(f.for_rows(x), x, y, keys)
            return z, (mean, norms)

        others = f if f.key is None else dataclasses.replace(f, key=jax.random.fold_in(f.key, 1))  # a mask of their own
        z, found = on_random_rows(fraction, of_output, lambda x: others.for_rows(x).output(x), x, keys, y)
        return (z, f.model_state), *found

    return _Made(part, f"on_part({fraction:g}, {inner!r})")


def of_model(apply: Apply, penalty: Penalty | None = None) -> Penalty:
    """A penalty of another form of the model at the same parameters, at the cost of one more forward pass.

    With BatchNorm, `of_model(models.held_statistics_mode(module))` leaves out the terms that train-mode statistics
    carry from one sample to another; it is a form of train mode itself and costs no pass. Its siblings for other
    libraries, and with dropout left out, are called batch_statistics.

    Args:
        apply: (params, model_state, x, key) -> (output, model_state), such as `models.held_statistics_mode(module)`.
        penalty: of that model; None: `projected()`.

    Returns:
        A penalty for the losses of `training`.

    Raises:
        TypeError: apply or penalty is of another kind; in a call, f is not the model of a train step.

    Example:
        >>> from jacreg_jax import models
        >>> penalty = of_model(models.batch_statistics_mode(models.ResNet18()), projected(2))
    """
    checks.function("apply", apply, APPLY_ARGUMENTS, APPLY_HINT)
    inner = projected() if penalty is None else checked(penalty)

    def other(f: Function, x: PyTree, y: PyTree, keys: Any) -> tuple[Any, jax.Array, jax.Array]:
        if not isinstance(f, BoundModel):
            raise TypeError(f"f must be the BoundModel of a train step for of_model(...), got {type(f).__name__}")
        if getattr(apply, "reads_running_statistics", False) and jax.tree.leaves(f.model_state):
            checks.warn(_LAGGING)
        of_loss, own = (getattr(model, "computed_in", None) for model in (f.apply, apply))
        if of_loss != own:
            checks.warn(_OTHER_PRECISION.format(of_loss or "its own precision", own or "its own"))
        output, mean, norms = inner(dataclasses.replace(f, apply=apply, is_chosen=True), x, y, keys)
        return output if getattr(apply, "is_train_mode", False) else f(x), mean, norms

    return _Made(other, f"of_model({getattr(apply, '__name__', repr(apply))}, {inner!r})")


APPLY_ARGUMENTS = ("params", "model_state", "x", "key")
APPLY_HINT = ", as models.train_mode(module) makes it"


def checked(penalty: Any) -> Penalty:
    """The penalty, whose results are looked at in every call.

    Example:
        >>> checked(exact())(lambda x: 3 * x, jnp.ones((2, 4)), None, None)[1]
        Array(36., dtype=float32)

    Raises:
        TypeError: it cannot be called as one; in a call, it gives something else than (f(x), mean, norms).
    """
    if getattr(penalty, "is_checked", False):
        return penalty
    hint = " -> (f(x), mean, norms), as penalties.exact(), with its call, is; see penalties.of"
    checks.function("penalty", penalty, ("f", "x", "y", "keys"), hint)

    def looked_at(f: Function, x: PyTree, y: PyTree, keys: Any) -> tuple[Any, jax.Array, jax.Array]:
        found = penalty(f, x, y, keys)
        if not isinstance(found, tuple) or len(found) != 3:
            raise TypeError(f"penalty must give (f(x), mean, norms), got {type(found).__name__}")
        value, mean, norms = found
        if jnp.shape(mean) != () or jnp.ndim(norms) != 1:
            got = jnp.shape(mean), jnp.shape(norms)
            raise TypeError(f"penalty must give (f(x), mean, norms), a scalar mean and norms [m], got shapes {got}")
        return value, mean, norms

    return _Made(looked_at, repr(penalty), is_checked=True)


def _of_reduction(f: Function, *rows: Any, **options: Any) -> tuple[Any, jax.Array, jax.Array]:
    """A penalty by a reduction; on a plain function and concrete arrays it compiles once."""
    return (_penalise if isinstance(f, BoundModel) else _penalise_once)(f, *rows, **options)


def _penalise(
    f: Function, x: PyTree, y: PyTree, keys: Any, *, reduce: Any, **options: Any
) -> tuple[Any, jax.Array, jax.Array]:
    """The penalty of a reduction of (z, vjp, x, keys) to (mean, norms); labels do not matter."""
    del y
    inside = f.differentiated() if isinstance(f, BoundModel) else f
    _tell_of_batch_statistics(f, x)
    value, (mean, norms) = value_and(partial(reduce, **options), inside, x, keys, has_aux=isinstance(f, BoundModel))
    return value, mean, norms


_penalise_once = once(_penalise)


def _tell_of_batch_statistics(f: Function, x: PyTree) -> None:
    """A warning where the loss's own model has a new state that follows from x, as of a BatchNorm in train mode."""
    if not isinstance(f, BoundModel) or f.is_chosen or not jax.tree.leaves(f.model_state):
        return
    floats = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if depends_on_argument(lambda x: floats(f(x)[1]), x):
        checks.warn(_COUPLED)


def _split(found: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    return found[0], (found[1], found[2])
