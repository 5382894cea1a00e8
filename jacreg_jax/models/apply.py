"""A flax.linen module as the pure functions that training and evaluation take."""

import dataclasses
from collections.abc import Callable

import jax
from flax import linen as nn


def initialize(module: nn.Module, key: jax.Array, x) -> tuple[dict, dict]:
    """(params, model_state) of the module for inputs like x; model_state holds BatchNorm's statistics, or is {}."""
    variables = dict(jax.jit(module.init)(key, x))
    return variables.pop("params"), variables


def train_mode(module: nn.Module) -> Callable:
    """(params, model_state, x, key) -> (logits, model_state): dropout drawn from key, batch statistics updated."""

    def apply(params, model_state, x, key):
        variables, rngs = {"params": params, **model_state}, {"dropout": key}
        return module.apply(variables, x, train=True, rngs=rngs, mutable=list(model_state))

    return apply


def eval_mode(module: nn.Module) -> Callable:
    """(params, model_state, x, key) -> (logits, model_state): no dropout, running statistics, nothing updated."""

    def apply(params, model_state, x, key=None):
        del key
        return module.apply({"params": params, **model_state}, x, train=False), model_state

    return apply


def predictor(module: nn.Module, params, model_state=None, *, preprocess: Callable | None = None) -> Callable:
    """f(x) -> logits in eval mode, as attacks and evaluation take it.

    The function is a pytree of its parameters (`jax.tree_util.Partial`): pass it through jit as an argument and new
    parameters do not recompile. With preprocess, such as `datasets.MNIST.normalize`, it takes raw pixels.
    """
    return jax.tree_util.Partial(_Predict(module, preprocess), params, model_state or {})


@dataclasses.dataclass(frozen=True)
class _Predict:
    """Equal for equal modules, so that predictors of one module share a compiled program."""

    module: nn.Module
    preprocess: Callable | None

    def __call__(self, params, model_state, x):
        x = self.preprocess(x) if self.preprocess else x
        return self.module.apply({"params": params, **model_state}, x, train=False)
