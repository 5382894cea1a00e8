"""Initial parameters as the paper names them: Xavier, and the defaults of PyTorch."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from jacreg_jax import checks

xavier = nn.initializers.xavier_uniform()  # Glorot and Bengio (2010); biases start at zero
xavier_normal = nn.initializers.xavier_normal()  # the same variance
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))
torch_resnet_kernel = nn.initializers.variance_scaling(2.0, "fan_out", "normal")  # torchvision's ResNet convolutions


def torch_bias(fan_in: int) -> Callable[..., Any]:
    """PyTorch's default bias, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
        fan_in: of the kernel.

    Returns:
        An initializer (key, shape, dtype) -> array.

    Raises:
        ValueError: fan_in is no count.

    Example:
        >>> bool(abs(torch_bias(4)(jax.random.key(0), (100,))).max() <= 0.5)
        True
    """
    checks.count("fan_in", fan_in)

    def init(key: Any, shape: Any, dtype: Any = float) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def kernel_and_bias(name: str, fan_in: int) -> dict[str, Any]:
    """Keyword arguments of a flax layer for "xavier", "xavier_normal" or "torch".

    Args:
        name: one of those.
        fan_in: of the kernel.

    Returns:
        {"kernel_init": ..., "bias_init": ...}.

    Raises:
        ValueError: another name.

    Example:
        >>> sorted(kernel_and_bias("torch", 25))
        ['bias_init', 'kernel_init']
    """
    checks.one_of("initialization", name, ("xavier", "xavier_normal", "torch"))
    if name in ("xavier", "xavier_normal"):
        kernel = xavier if name == "xavier" else xavier_normal
        return {"kernel_init": kernel, "bias_init": nn.initializers.zeros}
    return {"kernel_init": torch_kernel, "bias_init": torch_bias(fan_in)}
