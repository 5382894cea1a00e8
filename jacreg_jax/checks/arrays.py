"""Arrays: inputs, labels, logits, bounds, and values of samples."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.checks.numbers import count, fraction
from jacreg_jax.checks.words import short, what as name_of
from jacreg_jax.concrete import look

Bounds = tuple[Any, Any]


def inputs(x: Any, name: str = "x", *, what: str = "floating point raw pixels") -> jax.Array:
    """Inputs as a JAX array: real floating point, [B, ...], at least one sample.

    Raises:
        TypeError: no array, or not real floating point.
        ValueError: no batch axis, or nothing in it.
    """
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(f"{name} must be an array, {what} [B, ...], got {name_of(x)}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        of_bytes = f"; {name} / 255 is in [0, 1]" if x.dtype == jnp.uint8 else ""
        raise TypeError(f"{name} must be {what}, got {x.dtype}{of_bytes}")
    if len(x.shape) == 0:
        raise ValueError(f"{name} must have a batch axis in front, [B, ...], got a scalar")
    if 0 in x.shape:
        raise ValueError(f"{name} must hold at least one sample and one entry in each, got shape {tuple(x.shape)}")
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def images(x: Any, least: int, *, dropout_rate: float, num_classes: int) -> None:
    """What a network of images takes: float images [B, H, W, C] of at least this side, and its own numbers.

    Raises:
        TypeError: x is no floating point array; dropout_rate no number.
        ValueError: another shape; dropout_rate outside [0, 1]; num_classes below 1.
    """
    fraction("dropout_rate", dropout_rate, zero=True, one=True)
    count("num_classes", num_classes)
    if inputs(x, what="floating point images").ndim != 4 or min(x.shape[1:3]) < least:
        raise ValueError(f"x must be images [B, H, W, C], sides of at least {least}, got shape {tuple(x.shape)}")


def labels(y: Any, shape: Sequence[int], num_classes: int, name: str = "y", *, masked: bool = False) -> jax.Array:
    """Labels as a JAX array: integer labels of this shape, usually [B], each from 0 to num_classes - 1.

    With `masked`, -1 is a position that does not count, where the shape has positions.

    Raises:
        TypeError: no array of integers.
        ValueError: another shape; a label outside of [0, num_classes).
    """
    if not (hasattr(y, "shape") and hasattr(y, "dtype")):
        raise TypeError(f"{name} must be an array of integer labels, got {name_of(y)}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"{name} must be integer labels, got {y.dtype}")
    if tuple(y.shape) != tuple(shape):
        raise ValueError(
            f"{name} must have shape {tuple(shape)}, one label for each sample or position, got {tuple(y.shape)}"
        )

    least = -1 if masked and len(shape) > 1 else 0

    def test(y: np.ndarray) -> None:
        if y.size and (y.min() < least or y.max() >= num_classes):
            raise ValueError(
                f"{name} must hold labels from {least} to {num_classes - 1}, f gives {num_classes} classes;"
                f" got labels from {y.min()} to {y.max()}"
            )

    look(test, y)
    return jnp.asarray(y)


def entries(name: str, value: Any, shape: Sequence[int], words: str, *, flags: bool = False) -> None:
    """An array of this shape of finite numbers of at least 0; with `flags` bools are welcome.

    Raises:
        TypeError: no array of real numbers.
        ValueError: another shape; an entry negative, NaN or infinite.
    """
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise TypeError(f"{name} must be an array of shape {tuple(shape)}, {words}, got {name_of(value)}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, {words}, got {tuple(value.shape)}")
    if flags and value.dtype == bool:
        return
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers, got {name_of(value)}")

    def test(value: np.ndarray) -> None:
        wide = np.asarray(value).astype(np.float64)
        if not np.all(wide >= 0):
            raise ValueError(f"{name} must be at least 0, got {short(value)}")
        if not np.all(np.isfinite(wide)):
            raise ValueError(f"{name} must be finite, got {short(value)}")

    look(test, value)


def all_finite(name: str, value: Any) -> None:
    """An array of finite real numbers.

    Raises:
        TypeError: no real numbers.
        ValueError: an entry that is NaN or infinite.
    """
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name} must hold real numbers, got {name_of(value)}")

    def test(value: np.ndarray) -> None:
        if not np.all(np.isfinite(np.asarray(value).astype(np.float64))):
            raise ValueError(f"{name} must be finite, got {short(value)}")

    look(test, value)


def on_host(**values: Any) -> None:
    """Concrete values, for what loops on the host; pytrees of them.

    Raises:
        TypeError: a traced one.
    """
    for name, value in values.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"{name} must be concrete, got a traced value: this runs on the host, outside of jit, vmap and grad"
            )


def num_samples(name: str, value: Any) -> int:
    """N of an array [N, ...], or of a pytree of them.

    Raises:
        TypeError: no array, or one without the axis.
        ValueError: leaves of different N.
    """
    leaves = jax.tree.leaves(value)
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        raise TypeError(f"{name} must be an array [N, ...], got {type(value).__name__}")
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1:
        raise ValueError(f"{name} must hold one number of samples in all leaves, got {lengths}")
    return lengths[0]


def sample_values(name: str, values: Any, meaning: str = "0 or positive") -> "np.ndarray":
    """Values of N samples as a numpy array: at least one, none negative or NaN; +inf is welcome.

    Raises:
        TypeError: no numbers.
        ValueError: another shape, none, or NaN or negative ones.
    """
    on_host(**{name: values})
    found = np.asarray(values)
    if found.dtype.kind not in "fiu" and found.size and not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(f"{name} must be real numbers [N], got {name_of(values)}")
    if found.ndim != 1 or not len(found):
        raise ValueError(f"{name} must be [N], of at least one sample; got shape {found.shape}")
    if np.isnan(found).any() or (found < 0).any():
        raise ValueError(f"{name} must be {meaning}; got NaN or negative ones")
    return found


def num_classes(z: Any, batch: int, name: str = "f(x)") -> int:
    """C of logits [B, C]: real floating point, at least two classes. z may be what `jax.eval_shape` gives.

    Raises:
        TypeError: not one array of floating point logits.
        ValueError: not [B, C]; a single logit.
    """
    if not (hasattr(z, "shape") and hasattr(z, "dtype")):
        raise TypeError(f"{name} must be one array of logits [B, C], got {name_of(z)}")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point logits, got {z.dtype}")
    shape = tuple(z.shape)
    if shape in ((batch,), (batch, 1)):
        raise ValueError(
            f"{name} must be logits [B, C] of at least 2 classes, got shape {shape}; stack a single logit z of class 1"
            " as jnp.stack([-z, z], -1) or jnp.stack([0 * z, z], -1), z of shape [B]"
        )
    if len(shape) != 2 or shape[0] != batch or shape[1] < 2:
        raise ValueError(f"{name} must be logits [B, C] with B = {batch} and at least 2 classes, got shape {shape}")
    return int(shape[1])


def class_logits(z: Any, batch: int, name: str = "f(x)") -> int:
    """C of logits [B, C], or [B, ..., C] of positions such as tokens: real floating point, at least two classes.

    Raises:
        TypeError: not one array of floating point logits.
        ValueError: not [B, ..., C]; fewer than two classes.
    """
    if getattr(z, "ndim", 2) < 3:
        return num_classes(z, batch, name)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point logits, got {z.dtype}")
    if z.shape[0] != batch or z.shape[-1] < 2 or 0 in z.shape:
        raise ValueError(f"{name} must be logits [{batch}, ..., C] of at least 2 classes, got shape {tuple(z.shape)}")
    return int(z.shape[-1])


def outputs(z: Any, batch: int, name: str = "f(x)") -> None:
    """An array [B, ...] of real floating point, or a pytree of them: what a criterion other than of classes looks at.

    Raises:
        TypeError: a leaf that is no array, or of another dtype.
        ValueError: no leaf, or one without the batch axis in front.
    """
    leaves = jax.tree.leaves(z)
    if not leaves:
        raise ValueError(f"{name} must hold an array [B, ...], got none")
    for leaf in leaves:
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise TypeError(f"{name} must be floating point arrays [B, ...], got {name_of(leaf)}")
        if leaf.shape[:1] != (batch,):
            raise ValueError(f"{name} must be arrays [B, ...] with B = {batch}, got shape {tuple(leaf.shape)}")


def bounds(bounds: Any, x: jax.Array) -> Bounds:
    """(low, high), each a float or an array that lies beside x [B, ...] with all its axes.

    Each may be a scalar or an array that broadcasts to x: per channel [C], per feature, per sample [B, 1, ...]. None is
    no bound, for both or on one side; so is an infinite entry of an array.

    Raises:
        TypeError: not a pair of real numbers.
        ValueError: NaN; low not below high somewhere; a shape that does not broadcast to x; x outside.
    """
    bounds = (None, None) if bounds is None else bounds
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair (low, high), or None, got {name_of(bounds)}")
    given = zip(bounds, (-np.inf, np.inf), strict=True)
    low, high = (_bound(infinite if b is None else b, x) for b, infinite in given)
    if not any(isinstance(b, jax.core.Tracer) for b in (low, high)):
        wide_low, wide_high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not np.all(wide_low < wide_high):
            raise ValueError(f"bounds must be numbers with low below high, got ({short(low)}, {short(high)})")
        look(lambda x: _inside(x, wide_low, wide_high), x)
    return low, high


def _bound(bound: Any, x: jax.Array) -> Any:
    dtype = bound.dtype if isinstance(bound, jax.Array) else np.asarray(bound).dtype
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"bounds must be real numbers, got {name_of(bound)}")
    shape = np.shape(bound)
    if shape == () and not isinstance(bound, jax.core.Tracer):
        return float(bound)
    try:
        fits = np.broadcast_shapes(shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"bounds must be scalars or broadcast to x of shape {x.shape}, got shape {shape}")
    beside = (1,) * (x.ndim - len(shape)) + shape
    if isinstance(bound, jax.core.Tracer):
        return bound.astype(x.dtype).reshape(beside)
    return np.asarray(bound).astype(x.dtype).reshape(beside)  # concrete also where x is traced


def _inside(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Rounding is let pass: 1e-6 of the range, and the precision of x's dtype."""
    size, span = np.maximum(np.abs(low), np.abs(high)), high - low
    relative = np.where(np.isfinite(size), size, np.minimum(np.abs(low), np.abs(high)))  # one side alone
    slack = 1e-6 * np.maximum(1, np.where(np.isfinite(span), span, 1))
    slack = slack + float(np.spacing(x.dtype.type(1))) * np.where(np.isfinite(relative), relative, 0)
    wide = np.asarray(x).astype(np.float64)
    if not (np.all(wide >= low - slack) and np.all(wide <= high + slack)):
        raise ValueError(
            f"x must lie in bounds ({short(low)}, {short(high)}), got values from {wide.min()} to {wide.max()}"
        )


def trainable(params: Any, model_state: Any = None) -> None:
    """Parameters that have a gradient, and a state of arrays beside them.

    Raises:
        TypeError: a leaf of params is not floating point, or one of model_state no array; it is named.
    """
    for path, leaf in jax.tree.leaves_with_path(model_state):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            where = jax.tree_util.keystr(path) or "the top"
            raise TypeError(f"model_state must hold arrays, got {type(leaf).__name__} at {where}")
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(dtype := getattr(leaf, "dtype", type(leaf)), jnp.inexact):
            where = jax.tree_util.keystr(path) or "the top"
            raise TypeError(
                f"params must hold floating point arrays, got {dtype} at {where}; what is not trained belongs in "
                "model_state"
            )
