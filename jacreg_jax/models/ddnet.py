"""DDNet, the network of the defensive-distillation paper that is used for CIFAR-10 (Appendix D)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jacreg_jax import checks
from jacreg_jax.convolution import conv_general_dilated, max_pool
from jacreg_jax.models.initializers import kernel_and_bias
from jacreg_jax.types import Array


class DDNet(nn.Module):
    """DDNet, [B, 32, 32, 3] -> logits [B, 10]; 1,147,978 parameters.

    Convolutions 3x3 without padding 3 -> 64 -> 64, pool 2, 64 -> 128 -> 128, pool 2, dense 3200 -> 256 -> 256 -> 10.

    Attributes:
        num_classes: C.
        dropout_rate: after the two hidden dense layers, in train mode.
        initialization: "xavier" (uniform, biases zero; the paper), "xavier_normal" or "torch" (PyTorch's default).
        conv_general_dilated: the convolution; `jax.lax.conv_general_dilated` gives XLA's own everywhere.
        max_pool: the pooling; `flax.linen.max_pool` gives XLA's own.
        activation: after every layer but the last; the paper's is ReLU.

    Example:
        >>> jax.eval_shape(DDNet().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))["params"]["Dense_2"]["bias"].shape
        (10,)

    Reference: Papernot et al., "Distillation as a defense to adversarial perturbations" (2016).
    """

    num_classes: int = 10
    dropout_rate: float = 0.0
    initialization: str = "xavier"
    conv_general_dilated: Callable[..., Any] = conv_general_dilated
    max_pool: Callable[..., Any] = max_pool
    activation: Callable[..., Any] = nn.relu

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits [B, C] of preprocessed images [B, 32, 32, 3]."""
        checks.images(x, 16, dropout_rate=self.dropout_rate, num_classes=self.num_classes)
        checks.function("activation", self.activation)

        def conv(features: int, fan_in: int) -> nn.Module:
            init = kernel_and_bias(self.initialization, fan_in)
            return nn.Conv(features, (3, 3), padding="VALID", conv_general_dilated=self.conv_general_dilated, **init)

        def dense(features: int, fan_in: int) -> nn.Module:
            return nn.Dense(features, **kernel_and_bias(self.initialization, fan_in))

        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        for features, fan_in in ((64, 27), (128, 576)):
            x = self.activation(conv(features, fan_in)(x))
            x = self.activation(conv(features, 9 * features)(x))
            x = self.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = dropout(self.activation(dense(256, 3200)(x)))
        x = dropout(self.activation(dense(256, 256)(x)))
        return dense(self.num_classes, 256)(x)
