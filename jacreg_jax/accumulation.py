"""Losses made of losses that hold their own gradient: a choice by the step, and the mean over parts of a batch.

Differentiating a `cond` carries the residuals of both branches out of either, and differentiating a `map` those of all
parts; so the gradient is computed inside, on the way forward, and only handed on behind.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

Loss = Callable  # (params, state, batch, keys) -> (loss, (model_state, metrics)), as for training.make_train_step


def every(period: int, rare: Loss, usual: Loss) -> Loss:
    """The loss `rare` on every period-th step and `usual` on the others, differentiable in its first argument."""

    def choose(transform, params, state, *arguments):
        branches = [lambda *arguments, loss=loss: transform(loss)(*arguments) for loss in (rare, usual)]
        return jax.lax.cond(state.step % period == 0, *branches, params, state, *arguments)

    return _holding_its_gradient(choose)


def in_parts(part_size: int, loss: Loss) -> Loss:
    """The mean of a loss over parts of the batch, L = (1/P) sum_p L(part p), one after the other, in the memory of one.

    Every sample keeps its row and its key. Metrics are means over the parts, and those that end on "_error", standard
    errors of means, sqrt(sum_p e_p^2) / P. The result is differentiable in its first argument.

    Args:
        part_size: samples in a part; a batch that they do not divide is one part.
        loss: the mean over its batch.
    """

    def mean(transform, params, state, batch, keys):
        rows = keys.shape[0]
        if rows <= part_size or rows % part_size:
            return transform(loss)(params, state, batch, keys)
        parts = jax.tree.map(lambda leaf: leaf.reshape(-1, part_size, *leaf.shape[1:]), (batch, keys))
        found = jax.lax.map(lambda part: transform(loss)(params, state, *part), parts)
        return jax.tree_util.tree_map_with_path(_mean_over_parts, found)

    return _holding_its_gradient(mean)


def _mean_over_parts(path, leaf):
    if str(getattr(path[-1], "key", "")).endswith("_error"):
        return jnp.sqrt(jnp.sum(leaf**2, axis=0)) / leaf.shape[0]
    return jnp.mean(leaf, axis=0).astype(leaf.dtype)


def _holding_its_gradient(evaluate: Callable) -> Loss:
    """The loss evaluate(identity, ...), whose derivative is evaluate(value_and_grad, ...), computed with the value."""

    @jax.custom_vjp
    def loss(*arguments):
        return evaluate(lambda loss: loss, *arguments)

    def forward(*arguments):
        return evaluate(partial(jax.value_and_grad, has_aux=True), *arguments)

    def backward(grads, cotangents):
        grads = jax.tree.map(lambda g: (cotangents[0] * g).astype(g.dtype), grads)
        return grads, *[None] * 3  # state, batch, keys

    loss.defvjp(forward, backward)
    return loss
