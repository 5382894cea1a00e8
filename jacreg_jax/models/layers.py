"""Layers as flax modules."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from jacreg_jax.pooled_convolution import conv_max_pool
from jacreg_jax.types import Array


class ConvMaxPool(nn.Module):
    """max pool(x * w) + b, [C, H, W, B] -> [O, H', W', B]: `pooled_convolution.conv_max_pool` and a bias.

    Parameters as `nn.Conv`'s: kernel [kh, kw, C, O] and bias [O].

    Attributes:
        features: O.
        kernel_size: (kh, kw).
        padding: "SAME", "VALID" or ((low, high), (low, high)), of the convolution.
        window: side of the pooling windows.
        conv_max_pool: the operation.
        kernel_init: initializer.
        bias_init: initializer.

    Example:
        >>> layer, x = ConvMaxPool(4, (3, 3)), jnp.ones((1, 6, 6, 2))
        >>> layer.apply(layer.init(jax.random.key(0), x), x).shape
        (4, 2, 2, 2)
    """

    features: int
    kernel_size: tuple[int, int]
    padding: str | Sequence[tuple[int, int]] = "VALID"
    window: int = 2
    conv_max_pool: Callable[..., Any] = conv_max_pool
    kernel_init: Callable[..., Any] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Any] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[O, H', W', B] of x [C, H, W, B]."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[0], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        return self.conv_max_pool(x, kernel, self.padding, window=self.window) + bias[:, None, None, None]
