"""LeNet', the paper's MNIST network (Appendix D)."""

from collections.abc import Callable

from flax import linen as nn

from jacreg_jax.convolution import conv_general_dilated, max_pool
from jacreg_jax.models.initializers import kernel_and_bias


class LeNet(nn.Module):
    """LeNet', [B, 28, 28, 1] -> logits [B, 10]; tanh after every layer but the last; 61,706 parameters.

    Convolution [5, 1 -> 6, pad 2], pool 2, convolution [5, 6 -> 16], pool 2, dense 400 -> 120 -> 84 -> 10. The
    paper prints 2100 -> 120, which no 28x28 image gives: 5 * 5 * 16 = 400.

    Attributes:
        num_classes: C.
        dropout_rate: after the two hidden dense layers, in train mode.
        initialization: "xavier" (uniform, biases zero; the paper), "xavier_normal" or "torch" (PyTorch's default).
        conv_general_dilated: the convolution; `jax.lax.conv_general_dilated` gives XLA's own everywhere.
        max_pool: the pooling; `flax.linen.max_pool` gives XLA's own.
    """

    num_classes: int = 10
    dropout_rate: float = 0.0
    initialization: str = "xavier"
    conv_general_dilated: Callable = conv_general_dilated
    max_pool: Callable = max_pool

    @nn.compact
    def __call__(self, x, train: bool = False):
        """Logits [B, C] of preprocessed images [B, 28, 28, 1]."""

        def conv(features, fan_in, padding):
            init = kernel_and_bias(self.initialization, fan_in)
            return nn.Conv(features, (5, 5), padding=padding, conv_general_dilated=self.conv_general_dilated, **init)

        def dense(features, fan_in):
            return nn.Dense(features, **kernel_and_bias(self.initialization, fan_in))

        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        x = self.max_pool(nn.tanh(conv(6, 25, padding=2)(x)), (2, 2), strides=(2, 2))
        x = self.max_pool(nn.tanh(conv(16, 150, padding=0)(x)), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = dropout(nn.tanh(dense(120, 400)(x)))
        x = dropout(nn.tanh(dense(84, 120)(x)))
        return dense(self.num_classes, 84)(x)
