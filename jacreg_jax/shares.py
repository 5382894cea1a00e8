"""One device's share of a batch: what a model needs so that it acts on a share as it would on the whole batch.

A train step over a mesh runs the model on each device's rows alone. Two things in a model look at all rows: dropout,
which draws one mask for the batch, and BatchNorm, which averages over it. Inside `on_share` the model's key draws the
rows of this share from the mask of the whole batch, and the adapters of models tell every BatchNorm to average over the
axis of the mesh. So the numbers are those of one device.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.extend.random
import jax.numpy as jnp

from jacreg_jax.generators import UINT
from jacreg_jax.manual_axes import varying
from jacreg_jax.types import Array


class Share(NamedTuple):
    """Which rows of the batch are here."""

    axis_name: str  # of the mesh
    rows: int  # of this device
    first_key: Array  # the key of row 0 of the whole batch, the same on every device


_current: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def on_share(share: Share | None) -> Iterator[None]:
    """What is traced inside sees this share; None: a batch that is whole.

    Args:
        share: see `Share`.

    Returns:
        A context manager.

    Example:
        >>> with on_share(Share("data", 4, jax.random.key(0))):
        ...     batch_axis()
        'data'
    """
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def batch_axis() -> str | None:
    """The axis of the mesh over which the batch of this train step is split; None where the batch is whole.

    For a model that averages over the batch by hand:

        mean = x.mean(0)
        if (axis := shares.batch_axis()) is not None:
            mean = jax.lax.pmean(mean, axis)

    Returns:
        Its name, or None.

    Example:
        >>> batch_axis() is None
        True
    """
    share = _current.get()
    return None if share is None else share.axis_name


def whole_batch(rows: int) -> int:
    """Rows of the batch that is shared among devices; `rows` where none is.

    Args:
        rows: of the batch at hand.

    Returns:
        A count.

    Example:
        >>> whole_batch(4)
        4
    """
    share = _current.get()
    return rows if share is None else share.rows * int(jax.lax.axis_size(share.axis_name))


def whole_batch_key(first_key: Array, derive: Callable[[Array], Array]) -> Array:
    """derive(key of the first row of the whole batch), whose draws [rows, ...] are this share's rows of the whole draw.

    Args:
        first_key: key of the first row that is here.
        derive: key -> key.

    Returns:
        Typed key.

    Example:
        >>> key = whole_batch_key(jax.random.key(0), lambda key: jax.random.fold_in(key, 1))
        >>> key == jax.random.fold_in(jax.random.key(0), 1)
        Array(True, dtype=bool)
    """
    share = _current.get()
    return derive(first_key) if share is None else _on_rows(derive(share.first_key), share.axis_name, share.rows)


def key_for_rows(key: Array, rows: int) -> Array:
    """The key of a share, for a part of the batch of which `rows` rows are on each device, in the devices' order.

    Args:
        key: as `whole_batch_key` made it, or folded from such a one.
        rows: of the part.

    Returns:
        Typed key whose draws [rows, ...] are these rows of the draw for the whole part; any other key as it is.

    Example:
        >>> key_for_rows(jax.random.key(0), 2) == jax.random.key(0)
        Array(True, dtype=bool)
    """
    share = _current.get()
    if share is None or rows == share.rows:
        return key
    whole, _ = of_whole_batch(key, share.rows)
    return key if whole is key else _on_rows(whole, share.axis_name, rows)


def _on_rows(key: Array, axis_name: str, rows: int) -> Array:
    """The key whose draws [rows, ...] are one device's rows of what `key` draws for those of all devices."""
    first, devices = jax.lax.axis_index(axis_name) * rows, int(jax.lax.axis_size(axis_name))
    is_counting = bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
    spec = _rows_of_whole(jax.random.key_impl(key), rows, rows * devices, is_counting)
    data = jnp.concatenate([varying(jax.random.key_data(key), first), first.astype(jnp.uint32)[None]])
    return jax.random.wrap_key_data(data, impl=spec)


def of_whole_batch(key: Array, rows: int) -> tuple[Array, Any]:
    """The key of the whole batch that a share's key was made from, and the place of the first of its rows there.

    Args:
        key: typed key.
        rows: that something is drawn for.

    Returns:
        (key, first row); the key as it is and 0 where it is none of a share of so many rows.

    Example:
        >>> of_whole_batch(jax.random.key(0), 4)[1]
        0
    """
    inner, of = _inner.get(jax.random.key_impl(key), (None, 0))
    if of != rows or key.shape:
        return key, 0
    data = jax.random.key_data(key)
    return jax.random.wrap_key_data(data[:-1], impl=inner), data[-1].astype(jnp.int32)


_inner: dict[Any, tuple[Any, int]] = {}  # of every kind of key made below: the kind of the whole batch's key, and rows


@functools.lru_cache
def _rows_of_whole(inner: Any, rows: int, whole: int, is_counting: bool) -> Any:
    """Keys of another implementation with one word more, the first of `rows` rows of a batch of `whole`.

    What is drawn in the shape [rows, ...], and what is split into as many keys, is these rows of the draw [whole, ...].
    Any other shape is drawn as ever, the same on all devices. A key that was split off for one row holds row 0: its
    draws are its own. is_counting: threefry's bits are functions of their place, JAX's default.
    """
    words = jax.random.key_data(jax.random.key(0, impl=inner)).shape[0]
    unwrap = lambda data: jax.random.wrap_key_data(data[:words], impl=inner)
    is_counting = is_counting and str(inner) == "threefry2x32"

    def random_bits(data: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
        if not shape or shape[0] != rows:
            return jax.random.bits(unwrap(data), shape, UINT[bit_width])
        if is_counting and whole * math.prod(shape[1:]) < 2**32:
            return _counted_bits(data, bit_width, shape)
        drawn = jax.random.bits(unwrap(data), (whole, *shape[1:]), UINT[bit_width])
        return jax.lax.dynamic_slice_in_dim(drawn, data[words], rows)

    def split(data: Array, shape: tuple[int, ...]) -> Array:
        if shape[0] != rows:
            keys = jax.random.key_data(jax.random.split(unwrap(data), shape))
            return _append(keys, data[words])
        keys = jax.random.key_data(jax.random.split(unwrap(data), (whole, *shape[1:])))
        return _append(jax.lax.dynamic_slice_in_dim(keys, data[words], rows), jnp.zeros_like(data[words]))

    def fold_in(data: Array, folded: Array) -> Array:
        return _append(jax.random.key_data(jax.random.fold_in(unwrap(data), folded)), data[words])

    def seed(_: Array) -> Array:
        raise NotImplementedError("the key of a share is made from another key")

    spec = jax.extend.random.define_prng_impl(
        key_shape=(words + 1,),
        seed=seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,  # type: ignore[arg-type]  # an array
        name=f"{inner}, {rows} rows of {whole}",
        tag="share",
    )
    _inner[spec] = inner, rows
    return spec


def _append(keys: Array, row: Array) -> Array:
    return jnp.concatenate([keys, jnp.broadcast_to(row, (*keys.shape[:-1], 1))], axis=-1)


def _counted_bits(data: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    """Threefry's bits count the places of the whole draw: those from the first row's on."""
    size = math.prod(shape)
    first = data[2] * jnp.uint32(math.prod(shape[1:]))
    place = (first + jax.lax.iota(jnp.uint32, size)).reshape(shape)
    high, low = jax.extend.random.threefry2x32_p.bind(data[0], data[1], jnp.zeros_like(place), place)
    if bit_width == 64:
        return jax.lax.shift_left(high.astype(jnp.uint64), jnp.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(UINT[bit_width])
