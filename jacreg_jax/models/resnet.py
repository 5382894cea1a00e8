"""ResNet-18 for 32x32 (CIFAR-10) and for 224x224 images (ImageNet), with PyTorch's initial parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from flax import linen as nn

from jacreg_jax import checks
from jacreg_jax.convolution import conv_general_dilated, max_pool
from jacreg_jax.models.initializers import torch_bias, torch_kernel, torch_resnet_kernel
from jacreg_jax.types import Array


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut, projected where the shape changes."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, D] -> [B, H / stride, W / stride, features]."""
        y = self.conv(self.features, (3, 3), strides=self.stride, padding=1)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm()(self.conv(self.features, (3, 3), padding=1)(y))
        if x.shape != y.shape:
            x = self.conv(self.features, (1, 1), strides=self.stride, padding=0)(x)
            x = self.norm()(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """ResNet-18, [B, H, W, 3] -> logits [B, num_classes].

    "cifar": 3x3 stem without pooling for 32x32 images, 11,173,962 parameters at 10 classes. "imagenet": 7x7 stem of
    stride 2 and 3x3 pooling for 224x224 images, 11,689,512 parameters at 1,000 classes.

    Train mode uses batch statistics, so the rows of the output depend on each other: see `value_and_penalty`.

    Attributes:
        num_classes: C.
        variant: "cifar" or "imagenet".
        width: channels of the first stage; 64 is ResNet-18, less is a narrow one.
        axis_name: mesh axis over which train-mode BatchNorm averages under shard_map and pmap ("data"); not for jit.
        conv_general_dilated: the convolution; `jax.lax.conv_general_dilated` gives XLA's own everywhere.
        max_pool: the pooling; `flax.linen.max_pool` gives XLA's own.

    Example:
        >>> shapes = jax.eval_shape(ResNet18().init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
        11173962

    Reference: He et al., "Deep Residual Learning for Image Recognition" (2016).
    """

    num_classes: int = 10
    variant: Literal["cifar", "imagenet"] = "cifar"
    width: int = 64
    axis_name: str | None = None
    conv_general_dilated: Callable[..., Any] = conv_general_dilated
    max_pool: Callable[..., Any] = max_pool

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits [B, C] of preprocessed images [B, H, W, 3]."""
        checks.images(x, 1, dropout_rate=0.0, num_classes=self.num_classes)
        checks.count("width", self.width)
        checks.one_of("variant", self.variant, ("cifar", "imagenet"))
        cifar = self.variant == "cifar"
        conv = partial(
            nn.Conv,
            use_bias=False,
            kernel_init=torch_kernel if cifar else torch_resnet_kernel,
            conv_general_dilated=self.conv_general_dilated,
        )
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
        if cifar:
            x = nn.relu(norm()(conv(self.width, (3, 3), padding=1)(x)))
        else:
            x = nn.relu(norm()(conv(self.width, (7, 7), strides=2, padding=3)(x)))
            x = self.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, features in enumerate(self.width * 2**i for i in range(4)):
            for block in range(2):
                x = BasicBlock(features, 2 if stage > 0 and block == 0 else 1, conv, norm)(x)
        x = x.mean(axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=torch_kernel, bias_init=torch_bias(8 * self.width))(x)
