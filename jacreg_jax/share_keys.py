"""Keys of a share of a batch: what they draw in the shape [rows, ...] is these rows of the draw for the whole batch.

A key that is split into as many as there are rows may mean two things. `k1, k2 = split(key)` are two streams of the
model, and each of them draws for the whole batch; `vmap(draw)(split(key, rows), x)` is a key for each row. Only the use
tells them apart, so that such a key holds both, and what is done with it chooses: the row's own one inside of a `vmap`
over as many as there are rows, and else the other.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.random
import jax.numpy as jnp

from jacreg_jax.generators import UINT
from jacreg_jax.manual_axes import varying
from jacreg_jax.types import Array

_kinds: dict[Any, "_Words"] = {}  # of every kind of key made below


def rows_of_whole(key: Array, axis_name: str, rows: int) -> Array:
    """The key whose draws [rows, ...] are one device's rows of what `key` draws for those of all devices.

    Args:
        key: typed key, the same on all devices.
        axis_name: of the mesh.
        rows: of this device.

    Returns:
        Typed key.
    """
    first, devices = jax.lax.axis_index(axis_name) * rows, int(jax.lax.axis_size(axis_name))
    is_counting = bool(jax.config.jax_threefry_partitionable)  # type: ignore[attr-defined]
    spec = _implementation(jax.random.key_impl(key), rows, rows * devices, is_counting)
    data = varying(jax.random.key_data(key), first)
    return jax.random.wrap_key_data(_kinds[spec].join(data, data, first, _WHOLE), impl=spec)


def of_whole_batch(key: Array, rows: int) -> tuple[Array, Any]:
    """The key of the whole batch that a share's key was made from, and the place of the first of its rows there.

    Args:
        key: typed key, or an array of them.
        rows: that something is drawn for.

    Returns:
        (key, first row); 0 where the share has another number of rows; a key that is none of a share as it is, and 0.

    Example:
        >>> of_whole_batch(jax.random.key(0), 4)[1]
        0
    """
    words = _kinds.get(jax.random.key_impl(key))
    if words is None:
        return key, 0
    of_use = words.by_use(lambda data: jnp.append(words.batch(data), words.first(data)))
    data = functools.reduce(lambda f, _: jax.vmap(f), key.shape, of_use)(jax.random.key_data(key))
    is_share = words.rows == rows and not key.shape
    return words.key(data[..., :-1]), data[-1].astype(jnp.int32) if is_share else 0


class _Words(NamedTuple):
    """Where in the data of such a key which word stands: two keys of another kind, the first row, the state."""

    inner: Any  # that other kind
    size: int  # words of one of its keys
    rows: int  # of this device

    def batch(self, data: Array) -> Array:
        """The key that draws for the whole batch; that of one row, where the use has said so."""
        return data[: self.size]

    def row(self, data: Array) -> Array:
        """The key of one row; the other one, where the key was never split into rows."""
        return data[self.size : -2]

    def first(self, data: Array) -> Array:
        return data[-2]

    def state(self, data: Array) -> Array:
        """_WHOLE, _SPLIT or _OF_ROW."""
        return data[-1]

    def state_after(self, data: Array) -> Array:
        """That of what is made of the key: used for the batch, it is a stream of the batch."""
        return jnp.where(self.state(data) == _OF_ROW, _OF_ROW, _WHOLE)

    def key(self, data: Array) -> Array:
        return jax.random.wrap_key_data(data, impl=self.inner)

    def join(self, batch: Array, row: Array, first: Any, state: Any) -> Array:
        """[..., 2 size + 2] the data of such keys."""
        one = lambda word: jnp.broadcast_to(jnp.asarray(word, jnp.uint32), (*batch.shape[:-1], 1))
        return jnp.concatenate([batch, row, one(first), one(state)], axis=-1)

    def by_use(self, function: Callable[..., Array], depth: int = 0) -> Callable[..., Array]:
        """The function of a key's data, and of other arrays; mapped over the rows, it gets the row's own key.

        depth: of the maps that are none over the rows and lie inside.
        """
        over = lambda f: functools.reduce(lambda g, _: jax.vmap(g), range(depth), f)
        found = jax.custom_batching.custom_vmap(over(function))

        def of_row(data: Array, *more: Array) -> Array:
            own = self.join(self.row(data), self.row(data), 0, _OF_ROW)
            return function(jnp.where(self.state(data) == _SPLIT, own, data), *more)

        def mapped(size: int, is_batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
            spread = lambda a, has: a if has else jnp.broadcast_to(a, (size, *a.shape))
            is_rows = size == self.rows and is_batched[0]
            each = jax.vmap(over(of_row)) if is_rows else self.by_use(function, depth + 1)
            return each(*map(spread, arrays, is_batched)), True

        found.def_vmap(mapped)
        return found


_WHOLE, _SPLIT, _OF_ROW = range(3)  # what a key draws for: the batch, the batch or a row as its use says, or a row


@functools.lru_cache
def _implementation(inner: Any, rows: int, whole: int, is_counting: bool) -> Any:
    """Keys of another kind, for `rows` rows of a batch of `whole`.

    Any shape but [rows, ...] is drawn as ever, the same on all devices. is_counting: threefry's bits are functions of
    their place, JAX's default.
    """
    words = _Words(inner, int(jax.random.key_data(jax.random.key(0, impl=inner)).shape[0]), rows)
    draws = _Draws(words, whole, is_counting and str(inner) == "threefry2x32")
    spec = jax.extend.random.define_prng_impl(
        key_shape=(2 * words.size + 2,),
        seed=draws.seed,
        split=draws.split,
        random_bits=draws.random_bits,
        fold_in=draws.fold_in,  # type: ignore[arg-type]  # an array
        name=f"{inner}, {rows} rows of {whole}",
        tag=f"{inner}, {rows} rows of {whole}",  # what str gives, see `generators.kind`
    )
    _kinds[spec] = words
    return spec


class _Draws(NamedTuple):
    """What JAX asks of a kind of keys, of a key's data."""

    words: _Words
    whole: int  # rows of all devices
    is_counting: bool

    def seed(self, _: Array) -> Array:
        raise NotImplementedError("the key of a share is made from another key")

    def random_bits(self, data: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
        words, rows = self.words, self.words.rows

        def bits(data: Array) -> Array:
            draw = lambda shape: jax.random.bits(words.key(words.batch(data)), shape, UINT[bit_width])
            if not shape or shape[0] != rows:
                return draw(shape)
            if self.is_counting and self.whole * math.prod(shape[1:]) < 2**32:
                return _counted_bits(words.batch(data), words.first(data), bit_width, shape)
            of_rows = jax.lax.dynamic_slice_in_dim(draw((self.whole, *shape[1:])), words.first(data), rows)
            return jnp.where(words.state(data) == _OF_ROW, draw(shape), of_rows)

        return words.by_use(bits)(data)

    def split(self, data: Array, shape: tuple[int, ...]) -> Array:
        words = self.words

        def keys(data: Array) -> Array:
            into = lambda shape: jax.random.key_data(jax.random.split(words.key(words.batch(data)), shape))
            streams, first = into(shape), words.first(data)
            of_use = words.join(streams, streams, first, words.state_after(data))
            if shape[0] != words.rows:
                return of_use
            rows = jax.lax.dynamic_slice_in_dim(into((self.whole, *shape[1:])), first, words.rows)
            return jnp.where(words.state(data) == _OF_ROW, of_use, words.join(streams, rows, first, _SPLIT))

        return words.by_use(keys)(data)

    def fold_in(self, data: Array, folded: Array) -> Array:
        words = self.words

        def key(data: Array, folded: Array) -> Array:
            found = jax.random.key_data(jax.random.fold_in(words.key(words.batch(data)), folded))
            return words.join(found, found, words.first(data), words.state_after(data))

        return words.by_use(key)(data, folded)


def _counted_bits(key: Array, first: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    """Threefry's bits count the places of the whole draw: those from the first row's on."""
    size = math.prod(shape)
    place = (first * jnp.uint32(math.prod(shape[1:])) + jax.lax.iota(jnp.uint32, size)).reshape(shape)
    high, low = jax.extend.random.threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(place), place)
    if bit_width == 64:
        return jax.lax.shift_left(high.astype(jnp.uint64), jnp.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(UINT[bit_width])
