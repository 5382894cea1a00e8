"""Max pooling with a fast gradient where windows do not overlap."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jacreg_jax.explicit_layers import over_rows
from jacreg_jax.types import Array


def max_pool(
    x: Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Maximum over windows, as `flax.linen.max_pool`, with a fast gradient where windows do not overlap.

    Windows that tile the input, [..., H, W, C] with window = stride and no padding, are a reshape and a maximum; its
    gradient goes to the first of the ties, as XLA's does. Anything else is XLA's own `reduce_window`.

    Args:
        x: [..., spatial dimensions, C]; with or without a batch dimension.
        window_shape: one size for each spatial dimension.
        strides: steps between windows; None: 1 in each dimension, as in flax.
        padding: "VALID", "SAME" or (low, high) for each spatial dimension.

    Returns:
        [..., H', W', C].

    Raises:
        ValueError: sizes of window_shape, strides and x that do not fit together.

    Example:
        >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), (2, 2), (2, 2)).ravel()
        Array([3.], dtype=float32)
    """
    window, n = tuple(window_shape), len(window_shape)
    strides = (1,) * n if strides is None else tuple(strides)
    if len(strides) != n or x.ndim < n + 1:
        raise ValueError(
            f"strides and the spatial dimensions of x must be as many as window_shape, got window_shape={window}, "
            f"strides={strides} and x of shape {x.shape}"
        )
    lead = x.ndim - n - 1
    spatial = x.shape[lead:-1]
    pads: Any = padding if isinstance(padding, str) else ((0, 0),) * lead + tuple(map(tuple, padding)) + ((0, 0),)
    is_unpadded = pads == "VALID" or not np.any(pads if not isinstance(pads, str) else 1)
    fits = all(size >= k for size, k in zip(spatial, window, strict=True))
    if not (window == strides and is_unpadded and fits):
        ones = (1,) * lead
        return lax.reduce_window(x, -jnp.inf, lax.max, (*ones, *window, 1), (*ones, *strides, 1), pads)
    counts = [size // k for size, k in zip(spatial, window, strict=True)]
    x = x[(..., *(slice(c * k) for c, k in zip(counts, window, strict=True)), slice(None))]
    return (over_rows(0)(_max_over_windows) if lead else _max_over_windows)(x, counts, window)


def _max_over_windows(x: Array, counts: list[int], window: tuple[int, ...]) -> Array:
    """Maximum over windows that tile the spatial axes."""
    split = [n for pair in zip(counts, window, strict=True) for n in pair]
    return _max_of_tiles(x.reshape(*x.shape[: -len(window) - 1], *split, x.shape[-1]), len(window))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_of_tiles(x: Array, n: int) -> Array:
    """Maximum over the window axes of [..., H', k, W', k, C]; n pairs of axes."""
    return jnp.max(x, axis=_window_axes(n))


@_max_of_tiles.defjvp
def _max_of_tiles_jvp(n: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The tangent at the first maximum: a select, whose transpose is a select, and no gradient through the mask."""
    (x,), (t,) = primals, tangents
    y, axes = _max_of_tiles(x, n), _window_axes(n)
    sizes = [size if axis - x.ndim in axes else 1 for axis, size in enumerate(x.shape)]
    places = list(np.ndindex(*(x.shape[axis] for axis in axes)))
    at = lambda place: (..., *(i for k in place for i in (slice(None), k)), slice(None))
    small = jnp.int8 if len(places) < 128 else jnp.int32
    first = jnp.full(y.shape, len(places) - 1, small)
    for index in reversed(range(len(places) - 1)):
        first = jnp.where(x[at(places[index])] == y, jnp.asarray(index, small), first)
    chosen = jnp.expand_dims(first, axes) == jnp.arange(len(places), dtype=small).reshape(sizes)
    return y, jnp.sum(jnp.where(chosen, t, 0), axis=axes)


def _window_axes(n: int) -> tuple[int, ...]:
    """(-2 n, ..., -4, -2): the second of each pair of axes before the channels."""
    return tuple(range(-2 * n, 0, 2))
