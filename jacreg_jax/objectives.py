"""Supervised objectives: (z, batch) -> (losses [B], metrics {name: [B]})."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jacreg_jax import checks
from jacreg_jax.attacks.losses import log_odds, true_logit
from jacreg_jax.concrete import look
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, Float

Batch: TypeAlias = Mapping[str, Any]
Objective: TypeAlias = Callable[[Any, Batch], tuple[Array, dict[str, Array]]]  # (z, batch) -> (losses [B], metrics)


def cross_entropy(
    z: Float[Array, "B *T C"], batch: Batch, *, label_smoothing: float = 0.0
) -> tuple[Float[Array, " B"], dict[str, Array]]:
    """-sum_c y_c log softmax(z)_c of every sample; see `classification_loss`.

    Args:
        z: logits [B, ..., C].
        batch: "label": integers [B, ...] or distributions [B, ..., C]; "mask" [B, ...] for tokens, where it is there.
        label_smoothing: a, the labels are (1 - a) one-hot + a / C.

    Returns:
        (losses [B], metrics by name, [B] each).

    Raises:
        TypeError: a label or mask that is no array of numbers.
        ValueError: a label or mask of another shape, or values that are none.

    Example:
        >>> losses, metrics = cross_entropy(jnp.zeros((2, 4)), {"label": jnp.asarray([0, 3])})
        >>> losses.round(3), metrics["accuracy"]
        (Array([1.386, 1.386], dtype=float32), Array([ True, False], dtype=bool))
    """
    z, mask = _wide(z), batch.get("mask")
    hard, soft = _classes(z, batch)
    if label_smoothing:
        soft = jax.nn.one_hot(hard, z.shape[-1], dtype=z.dtype) if soft is None else soft
        soft = optax.smooth_labels(soft, label_smoothing)
    if soft is None:
        losses = optax.softmax_cross_entropy_with_integer_labels(z, hard)
    else:
        losses = optax.softmax_cross_entropy(z, soft)
    hits = jnp.argmax(z, -1) == hard
    losses, hits = (mean_of_sample(values, mask) for values in (losses, hits))
    return losses, {"cross_entropy": losses, "accuracy": hits}


def log_cross_entropy(z: Float[Array, "B *T C"], batch: Batch) -> Float[Array, " B"]:
    """A rising function of the losses of `cross_entropy`, [B]: what adversarial training climbs.

    Of integer labels [B] it is log_odds against y, else the log of the sum over positions of softplus(log_odds against
    t) - sum_c y_c (z_c - z_t), t the likeliest class of the label. Gradients have the directions of the loss, and do
    not vanish or cancel however confident the model is. Labels are not smoothed: the smoothed loss rewards confidence.

    Args:
        z: logits [B, ..., C].
        batch: as for `cross_entropy`.

    Returns:
        [B].

    Raises:
        TypeError, ValueError: as `cross_entropy`.

    Example:
        >>> log_cross_entropy(jnp.array([[3.0, 1.0]]), {"label": jnp.asarray([0])}).tolist()
        [-2.0]
    """
    z, mask = _wide(z), batch.get("mask")
    hard, soft = _classes(z, batch)
    odds = log_odds(z, hard)
    if odds.ndim == 1 and soft is None:
        return odds
    lead = 0.0 if soft is None else jnp.sum(soft * (z - true_logit(z, hard)[..., None]), axis=-1)
    is_small = (odds < -15) & (lead == 0)  # log softplus(odds) is odds
    losses = jnp.where(is_small, odds, jnp.log(jnp.where(is_small, 1.0, jax.nn.softplus(odds) - lead)))
    if mask is not None:
        mask = jnp.asarray(mask)
        share = jnp.where(mask > 0, mask, 1).astype(losses.dtype)
        losses = jnp.where(mask > 0, losses + jnp.log(share), jnp.finfo(losses.dtype).min)
    return jax.nn.logsumexp(losses.reshape(len(losses), -1), axis=1)


def squared_error(z: Float[Array, "B *S"], batch: Batch) -> tuple[Float[Array, " B"], dict[str, Array]]:
    """||z - y||^2 of every sample; see `regression_loss`.

    Args:
        z: outputs [B, ...].
        batch: "label": of the shape of z.

    Returns:
        (losses [B], metrics by name, [B] each).

    Raises:
        TypeError: a label that is no array of numbers.
        ValueError: a label of another shape, or values that are none.

    Example:
        >>> squared_error(jnp.zeros((1, 2)), {"label": jnp.asarray([[3.0, 4.0]])})[0]
        Array([25.], dtype=float32)
    """
    z = _wide(z)
    label = _label(batch, z.shape)
    _refuse_mask(batch)
    checks.all_finite("label", label)
    losses = jnp.sum((z - label).reshape(len(z), -1) ** 2, axis=1)
    return losses, {"squared_error": losses}


def binary_cross_entropy(z: Float[Array, "B *C"], batch: Batch) -> tuple[Float[Array, " B"], dict[str, Array]]:
    """-sum_c (y_c log s(z_c) + (1 - y_c) log s(-z_c)) with the sigmoid s; see `multi_label_loss`.

    Args:
        z: logits [B, ...].
        batch: "label": of the shape of z, each entry in [0, 1].

    Returns:
        (losses [B], metrics by name, [B] each).

    Raises:
        TypeError: a label that is no array of numbers.
        ValueError: a label of another shape, or values that are none.

    Example:
        >>> binary_cross_entropy(jnp.zeros((1, 2)), {"label": jnp.asarray([[0, 1]])})[0].round(3)
        Array([1.386], dtype=float32)
    """
    z = _wide(z)
    label = _label(batch, z.shape)
    _refuse_mask(batch)
    checks.shares("label", label)
    losses = optax.sigmoid_binary_cross_entropy(z, label.astype(z.dtype)).reshape(len(z), -1).sum(1)
    hits = mean_of_sample((z > 0) == (label > 0.5), None)
    return losses, {"cross_entropy": losses, "accuracy": hits}


def _classes(z: Array, batch: Batch) -> tuple[Array, Array | None]:
    """Classes [B, ...], and the distributions [B, ..., C] where the labels are such; 0 where the mask leaves out."""
    label, mask = _label(batch), batch.get("mask")
    _check_mask(mask, z.shape[:-1])
    if z.ndim > 1 and z.shape[-1] == 1:
        raise ValueError(f"f(x) must be logits of two or more classes, got {z.shape}; multi_label_loss takes one logit")
    if jnp.issubdtype(label.dtype, jnp.floating) and label.shape == z.shape:
        if mask is not None:  # what is masked may hold anything
            label = jnp.where(jnp.asarray(mask)[..., None] > 0, label, 1 / z.shape[-1])
        checks.shares("label", label, of_one=True)
        return jnp.argmax(label, -1), label
    if jnp.issubdtype(label.dtype, jnp.integer) and label.shape == z.shape[:-1]:
        if mask is None:
            checks.labels(label, label.shape, z.shape[-1], "label")
            return label, None
        classes = z.shape[-1]

        def test(label: np.ndarray, mask: np.ndarray) -> None:  # what is masked may hold any label
            checks.labels(np.where(mask > 0, label, 0), label.shape, classes, "label")

        look(test, label, mask)
        return jnp.where(jnp.asarray(mask) > 0, label, 0), None
    raise ValueError(
        f"label must be integers of shape {z.shape[:-1]} or distributions of shape {z.shape}, for logits of shape "
        f"{z.shape}; got {label.dtype}{list(label.shape)}"
    )


def marked(batch: Batch, prefix: str = "") -> Any:
    """The labels for functions that know no mask: -1 where batch["mask"] leaves a position out.

    Args:
        batch: "label" and "mask", where they are there.
        prefix: of both names, such as "held_out_".

    Returns:
        The labels as they came, or with -1, of distributions in all classes; None where there are none.

    Example:
        >>> marked({"label": jnp.array([[3, 7]]), "mask": jnp.array([[1, 0]])}).tolist()
        [[3, -1]]
    """
    label: Any = batch.get(f"{prefix}label")
    mask: Any = batch.get(f"{prefix}mask")
    if not hasattr(label, "shape") or not hasattr(mask, "shape"):
        return label
    kept = jnp.asarray(mask) > 0
    if jnp.issubdtype(label.dtype, jnp.integer):
        return jnp.where(kept, jnp.asarray(label).astype(jnp.int32), -1) if label.shape == kept.shape else label
    return jnp.where(kept[..., None], label, -1) if label.shape[:-1] == kept.shape else label


def _label(batch: Batch, shape: tuple[int, ...] | None = None) -> Array:
    if "label" not in batch:
        raise ValueError(f"batch must hold 'label', got {sorted(batch)}")
    if not hasattr(batch["label"], "shape") or not hasattr(batch["label"], "dtype"):
        raise TypeError(f"label must be an array, got {type(batch['label']).__name__}")
    label = jnp.asarray(batch["label"])
    if shape is not None and label.shape != shape:
        raise ValueError(f"label must have the shape of the output, {shape}, got {label.shape}")
    return label


def _check_mask(mask: Any, shape: tuple[int, ...]) -> None:
    if mask is None:
        return
    checks.entries("mask", mask, shape, "one entry for each position", flags=True)
    if len(shape) == 1:
        raise ValueError("mask marks tokens [B, T]; for whole samples give batch['weight'] of shape [B]")


def _refuse_mask(batch: Batch) -> None:
    if "mask" in batch:
        raise ValueError("mask marks tokens of classification_loss; here it would do nothing. Give batch['weight'] [B]")


def _wide(z: Any) -> Array:
    if not hasattr(z, "astype"):
        raise TypeError(f"f(x) must be one array [B, ...], got {type(z).__name__}")
    return z.astype(at_least_float32(z.dtype))


def mean_of_sample(values: Array, mask: Any) -> Array:
    """[B, ...] -> [B]: the mean over the positions that the mask marks, or over all.

    Example:
        >>> mean_of_sample(jnp.array([[1.0, 5.0]]), jnp.array([[1, 0]])).tolist()
        [1.0]
    """
    if values.ndim == 1:
        return values
    values, axes = values if values.dtype != bool else values.astype(jnp.float32), tuple(range(1, values.ndim))
    if mask is None:
        return jnp.mean(values, axis=axes)
    mask = jnp.asarray(mask).astype(values.dtype)
    marked = jnp.sum(mask, axis=axes)
    return jnp.sum(jnp.where(mask > 0, values, 0) * mask, axis=axes) / jnp.where(marked > 0, marked, 1)
