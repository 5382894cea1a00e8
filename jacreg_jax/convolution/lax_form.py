"""The three partial gradients by XLA's own convolution: on GPU and TPU, and with jit disabled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jacreg_jax.convolution.form import NHWC, Geometry, Role, shape_of, vary_alike
from jacreg_jax.types import Array


def lax_form(a: Array, b: Array, *, result: Role, geometry: Geometry, precision: Any) -> Array:
    """XLA's own convolution and its own transposes, over leading dimensions by vmap."""
    if a.ndim > 4:
        return jax.vmap(partial(lax_form, result=result, geometry=geometry, precision=precision))(a, b)
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=geometry.strides,
        padding=geometry.padding,
        dimension_numbers=NHWC,
        precision=precision,
    )
    if result == "output":
        return convolve(a, b)
    linear = (lambda x: convolve(x, a)) if result == "input" else (lambda w: convolve(a, w))
    return transposed(linear, shape_of(result, geometry, a.shape, b.shape), b)


def transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], ct: Array) -> Array:
    """The transpose of a linear function of an array of this shape, at ct."""
    like, _ = vary_alike(jnp.zeros(shape, ct.dtype), ct)
    return jax.linear_transpose(linear, like)(ct)[0]
