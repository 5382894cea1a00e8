"""Networks that people time besides those of the paper: a flax user's CNN, a small ViT, and the critic of WGAN-GP."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jacreg_jax.convolution import conv_general_dilated


class CNN(nn.Module):
    """The network of flax's first tutorial, on 28x28 images; `nn.Conv` takes the convolution as a field."""

    conv_general_dilated: Callable[..., Any] = conv_general_dilated

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, 28, 28, 1] -> logits [B, 10]."""
        for features in (32, 64):
            x = nn.Conv(features, (3, 3), conv_general_dilated=self.conv_general_dilated)(x)
            x = nn.avg_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class ViT(nn.Module):
    """A vision transformer for 32x32 images: patches of 4x4, 128 channels, 4 blocks, 4 heads, mean of the tokens."""

    channels: int = 128
    depth: int = 4
    heads: int = 4

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, 32, 32, 3] -> logits [B, 10]."""
        batch, side = x.shape[0], x.shape[1] // 4
        x = x.reshape(batch, side, 4, side, 4, -1).transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)
        x = nn.Dense(self.channels)(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), (side * side, self.channels))
        for _ in range(self.depth):
            x = x + self.attention(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(4 * self.channels)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.channels)(hidden)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))

    def attention(self, x):
        """Softmax attention of all heads, [B, T, D] -> [B, T, D]."""
        batch, tokens, channels = x.shape
        split = nn.Dense(3 * channels)(x).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = (split[:, :, i] for i in range(3))
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
        return nn.Dense(channels)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, channels))


class Critic(nn.Module):
    """The critic of DCGAN's shape that WGAN-GP trains: 5x5 convolutions of stride 2, leaky relu, no normalization."""

    conv_general_dilated: Callable[..., Any] = conv_general_dilated

    @nn.compact
    def __call__(self, x, train: bool = False):
        """[B, 32, 32, 3] -> [B, 1]."""
        for features in (64, 128, 256):
            x = nn.Conv(
                features, (5, 5), strides=2, padding=((2, 2), (2, 2)), conv_general_dilated=self.conv_general_dilated
            )(x)
            x = nn.leaky_relu(x, 0.2)
        return nn.Dense(1)(x.reshape(x.shape[0], -1))


def wgan_gp(apply, weight: float = 10.0):
    """The critic's loss E D(fake) - E D(real) + 10 E (||grad D(u real + (1 - u) fake)|| - 1)^2; Gulrajani et al., 2017.

    The fakes are the real images in another order at half the contrast: time does not depend on the pixels.
    """

    def loss(params, state, batch, keys):
        real, fake = batch["image"], 0.5 * batch["image"][::-1]
        critic = lambda x: apply(params, {}, x, None)[0][:, 0]
        u = jax.vmap(jax.random.uniform)(keys).reshape(-1, 1, 1, 1)
        slopes = jax.grad(lambda x: critic(x).sum())(u * real + (1 - u) * fake)
        norms = jnp.sqrt(jnp.sum(slopes**2, axis=(1, 2, 3)))
        value = jnp.mean(critic(fake)) - jnp.mean(critic(real)) + weight * jnp.mean((norms - 1) ** 2)
        return value, (state.model_state, {"loss": value})

    return loss
