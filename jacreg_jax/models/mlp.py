"""Multilayer perceptron (Appendix C)."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from jacreg_jax import checks
from jacreg_jax.models.initializers import kernel_and_bias
from jacreg_jax.types import Array


class MLP(nn.Module):
    """Dense layers of the given widths on the flattened input, [B, ...] -> logits [B, features[-1]].

    Attributes:
        features: width of every layer, the number of classes last.
        activation: after every layer but the last.
        dropout_rate: after every hidden layer, in train mode.
        initialization: "xavier" (uniform, biases zero), "xavier_normal" or "torch" (PyTorch's default).

    Example:
        >>> module = MLP((16, 3))
        >>> module.apply(module.init(jax.random.key(0), jnp.ones((2, 5))), jnp.ones((2, 5))).shape
        (2, 3)
    """

    features: Sequence[int] = (200, 200, 10)
    activation: Callable[..., Any] = nn.tanh
    dropout_rate: float = 0.0
    initialization: str = "xavier"

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits [B, features[-1]]."""
        x = checks.inputs(x, what="floating point")
        checks.fraction("dropout_rate", self.dropout_rate, zero=True, one=True)
        checks.function("activation", self.activation)
        if not isinstance(self.features, Sequence) or isinstance(self.features, str) or not self.features:
            raise ValueError(f"features must be widths, at least one, got {self.features!r}")
        for width in self.features:
            checks.count("features", width)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.features):
            x = nn.Dense(width, **kernel_and_bias(self.initialization, x.shape[-1]))(x)
            if i < len(self.features) - 1:
                x = nn.Dropout(self.dropout_rate, deterministic=not train)(self.activation(x))
        return x
