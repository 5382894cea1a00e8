"""Two loss transforms: a penalty on every k-th step, and the mean over parts of the batch.

Each computes its gradient during the forward pass. Differentiating a `cond` or a `map` would store the residuals of
every branch or part; here the gradient is all that is stored.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jacreg_jax import checks, shares
from jacreg_jax.metrics import merged

# (params, state, batch, keys) -> (loss, (model_state, metrics)), as for training.make_train_step
Loss: TypeAlias = Callable[..., tuple[Any, tuple[Any, dict[str, Any]]]]
ARGUMENTS = ("params", "state", "batch", "keys")


def every(period: int, rare: Loss, usual: Loss) -> Loss:
    """The loss `rare` on every period-th step and `usual` on the others, differentiable in its first argument.

    Args:
        period: k; steps 0, k, 2k, ... take `rare`.
        rare: (params, state, batch, keys) -> (loss, (model_state, metrics)).
        usual: likewise, with results of the same names, shapes and dtypes.

    Returns:
        Such a loss.

    Raises:
        TypeError: rare or usual cannot be called so.
        ValueError: period is not an integer of at least 1. In a call, the two give other results.

    Example:
        >>> constant = lambda value: lambda params, state, batch, keys: (value * params, ({}, {}))
        >>> from jacreg_jax import training
        >>> loss = every(2, constant(5.0), constant(1.0))
        >>> state = training.init_state(jnp.float32(1), training.sgd(0.1), jax.random.key(0))
        >>> [float(loss(state.params, state._replace(step=jnp.int32(t)), None, None)[0]) for t in range(3)]
        [5.0, 1.0, 5.0]
    """
    checks.count("period", period)
    for name, loss in (("rare", rare), ("usual", usual)):
        checks.function(name, loss, ARGUMENTS)

    return Every(period, rare, usual)


@dataclasses.dataclass(frozen=True)
class Every:
    """What `every` returns.

    Example:
        >>> constant = lambda params, state, batch, keys: (0.0, (state, {}))
        >>> every(4, constant, constant).period
        4
    """

    period: int
    rare: Loss
    usual: Loss

    def __call__(self, *arguments: Any) -> Any:
        """(loss, (model_state, metrics)) of (params, state, batch, keys)."""
        return _holding_its_gradient(self._choose)(*arguments)

    def _choose(self, transform: Any, params: Any, state: Any, *arguments: Any) -> Any:
        branches = [lambda *arguments, loss=loss: transform(loss)(*arguments) for loss in (self.rare, self.usual)]
        _check_alike(*(jax.eval_shape(branch, params, state, *arguments) for branch in branches))
        return jax.lax.cond(state.step % self.period == 0, *branches, params, state, *arguments)


def _check_alike(rare: Any, usual: Any) -> None:
    """The results of the two losses, of which one is taken in each step."""
    named = lambda found: {jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype)) for path, leaf in found}
    both = [named(jax.tree_util.tree_leaves_with_path(found)) for found in (rare, usual)]
    if both[0] != both[1]:
        apart = sorted(name for name in both[0] | both[1] if both[0].get(name) != both[1].get(name))
        raise ValueError(
            "rare and usual must give metrics of the same names, and results of the same shapes and dtypes; they "
            f"differ in {', '.join(apart)}. To leave out a penalty see lazily"
        )


def lazily(period: int, loss: Any) -> Loss:
    """The penalty on every k-th step alone, with lambda_jr multiplied by k: a step costs 1 + n / k plain ones.

    The mean over steps of the gradient is the same and its variance is larger; lr * lambda_jr * k * curvature must stay
    below 2. Models that train together, under `vmap`, save nothing: both branches of a step run there. On the other
    steps the metric `penalty` is NaN, so that `jax_debug_nans` stops there. The result is differentiable in its first
    argument.

    Args:
        period: k.
        loss: a loss of `supervised`, or `in_parts` of one.

    Returns:
        A loss for `make_train_step`.

    Raises:
        ValueError: period is not an integer of at least 1.
        TypeError: loss has no penalty that could be left out.

    Example:
        >>> from jacreg_jax import training
        >>> loss = training.classification_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01)
        >>> cheap = lazily(4, loss)

    Reference: Karras et al. (2019), https://arxiv.org/abs/1912.04958, lazy regularization.
    """
    checks.count("period", period)
    if not hasattr(loss, "with_penalty_times"):
        raise TypeError(f"loss must come from `supervised` or `in_parts`, got {type(loss).__name__}; see `every`")
    rare, usual = loss.with_penalty_times(period), loss.with_penalty_times(0)
    return loss if period == 1 or usual == loss else every(period, rare, usual)


def in_parts(part_size: int, loss: Loss) -> Loss:
    """The mean of a loss over parts of the batch, L = (1/P) sum_p L(part p), one after the other, in the memory of one.

    Every sample keeps its row and its key; each part draws a dropout mask of its own, and normalizes by its own
    statistics. The result is differentiable in its first argument. Where part_size does not divide the batch, the parts
    are as few as it allows, their sizes differ by one at most, and the mean is that over all samples.

    Args:
        part_size: samples in a part, at most.
        loss: (params, state, batch, keys) -> (loss, (model_state, metrics)), the mean over its batch; the metrics of
            the parts are put together by `metrics.merged`.

    Returns:
        Such a loss.

    Raises:
        TypeError: loss cannot be called so.
        ValueError: part_size is not an integer of at least 1.

    Example:
        >>> from jacreg_jax import training
        >>> loss = training.classification_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01)
        >>> small = in_parts(25, loss)
    """
    checks.function("loss", loss, ARGUMENTS)
    return InParts(checks.count("part_size", part_size), loss)


@dataclasses.dataclass(frozen=True)
class InParts:
    """What `in_parts` returns.

    Example:
        >>> in_parts(32, lambda params, state, batch, keys: (0.0, (state, {}))).part_size
        32
    """

    part_size: int
    loss: Any

    def __call__(self, *arguments: Any) -> Any:
        """(loss, (model_state, metrics)) of (params, state, batch, keys)."""
        return _holding_its_gradient(self._mean)(*arguments)

    def with_penalty_times(self, times: float) -> "InParts":
        """The same with another weight of the penalty."""
        return dataclasses.replace(self, loss=self.loss.with_penalty_times(times))

    def _mean(self, transform: Any, params: Any, state: Any, batch: Any, keys: Any) -> Any:
        rows = keys.shape[0]
        count = -(-rows // self.part_size)
        if count <= 1:
            with shares.on_share(None) if shares.whole_batch(rows) > self.part_size else contextlib.nullcontext():
                return transform(checks.of_form(self.loss))(params, state, batch, keys)
        size, longer = divmod(rows, count)  # the first `longer` parts hold one sample more

        def over(start: int, parts: int, size: int) -> Any:
            """The mean over equal parts, one after the other."""
            cut = lambda leaf: leaf[start : start + parts * size].reshape(parts, size, *leaf.shape[1:])

            def one(part: Any) -> Any:
                with shares.on_share(None):  # a part is a batch of its own, on any number of devices
                    return transform(checks.of_form(self.loss))(params, state, *part)

            return _joined(transform, jax.lax.map(one, jax.tree.map(cut, (batch, keys))), parts)

        rest = over(longer * (size + 1), count - longer, size)
        if not longer:
            return rest
        first, share = over(0, longer, size + 1), longer * (size + 1) / rows
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, rest)
        return _joined(transform, stacked, 2, 2 * jnp.asarray([share, 1 - share], jnp.float32))


def _joined(transform: Any, found: Any, shares: int, weight: Any = None) -> Any:
    """What transform(loss) gives for the whole, from what it gave for the shares, stacked; weight as for `merged`."""
    is_plain = transform is _identity
    (value, (model_state, metrics)), *gradient = (found,) if is_plain else found
    joined = merged(metrics, lambda values: jnp.mean(values, axis=0), shares, weight)
    mean = lambda leaf: _mean_of_shares(leaf, weight)
    outcome = mean(value), (jax.tree.map(mean, model_state), joined)
    return outcome if is_plain else (outcome, *jax.tree.map(mean, gradient))


def _mean_of_shares(leaf: jax.Array, weight: Any) -> jax.Array:
    """Mean of [P, ...]; of counters and keys the last."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return leaf[-1]
    if weight is not None:
        leaf = leaf * weight.astype(leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.mean(leaf, axis=0).astype(leaf.dtype)


def _identity(loss: Loss) -> Loss:
    return loss


def _holding_its_gradient(evaluate: Callable[..., Any]) -> Loss:
    """The loss evaluate(identity, ...), whose derivative is evaluate(value_and_grad, ...), computed with the value."""

    @jax.custom_vjp
    def loss(*arguments: Any) -> Any:
        return evaluate(_identity, *arguments)

    def forward(*arguments: Any) -> Any:
        return evaluate(partial(jax.value_and_grad, has_aux=True), *arguments)

    def backward(grads: Any, cotangents: Any) -> Any:
        grads = jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), grads)
        return grads, *[None] * 3  # state, batch, keys

    loss.defvjp(forward, backward)
    return loss
