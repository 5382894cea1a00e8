"""LeNet', the paper's MNIST network (Appendix D)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jacreg_jax import checks
from jacreg_jax.models.initializers import kernel_and_bias
from jacreg_jax.models.layers import ConvMaxPool
from jacreg_jax.pooled_convolution import conv_max_pool
from jacreg_jax.types import Array


class LeNet(nn.Module):
    """LeNet', [B, 28, 28, 1] -> logits [B, 10]; tanh after every layer but the last; 61,706 parameters.

    Convolution [5, 1 -> 6, pad 2], pool 2, convolution [5, 6 -> 16], pool 2, dense 400 -> 120 -> 84 -> 10. The
    paper prints 2100 -> 120, which no 28x28 image gives: 5 * 5 * 16 = 400. tanh rises, so that it and the bias follow
    the pooling, on a quarter of the values, and the function is the same.

    Attributes:
        num_classes: C.
        dropout_rate: after the two hidden dense layers, in train mode.
        initialization: "xavier" (uniform, biases zero; the paper), "xavier_normal" or "torch" (PyTorch's default).
        conv_max_pool: convolution and pooling; `pooled_convolution.lax_conv_max_pool` gives XLA's own.

    Example:
        >>> jax.eval_shape(LeNet().init, jax.random.key(0), jnp.ones((1, 28, 28, 1)))["params"]["Dense_2"]["bias"].shape
        (10,)
    """

    num_classes: int = 10
    dropout_rate: float = 0.0
    initialization: str = "xavier"
    conv_max_pool: Callable[..., Any] = conv_max_pool

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits [B, C] of preprocessed images [B, 28, 28, 1]."""
        checks.images(x, 12, dropout_rate=self.dropout_rate, num_classes=self.num_classes)

        def conv(features: int, fan_in: int, pad: int, index: int) -> nn.Module:
            init = kernel_and_bias(self.initialization, fan_in)
            padding, name = ((pad, pad),) * 2, f"Conv_{index}"
            return ConvMaxPool(features, (5, 5), padding, conv_max_pool=self.conv_max_pool, name=name, **init)

        def dense(features: int, fan_in: int) -> nn.Module:
            return nn.Dense(features, **kernel_and_bias(self.initialization, fan_in))

        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        x = x.transpose(3, 1, 2, 0)  # [C, H, W, B]
        x = nn.tanh(conv(6, 25, 2, 0)(x))
        x = nn.tanh(conv(16, 150, 0, 1)(x))
        x = x.transpose(3, 1, 2, 0).reshape(x.shape[-1], -1)
        x = dropout(nn.tanh(dense(120, 400)(x)))
        x = dropout(nn.tanh(dense(84, 120)(x)))
        return dense(self.num_classes, 84)(x)
