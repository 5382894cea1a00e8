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
    return jax.random.wrap_key_data(_kinds[spec].join(data, data, first.astype(jnp.uint32)), impl=spec)


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
    alone = lambda data: jnp.append(words.batch(data), words.first(data))
    of_row = lambda data: jnp.append(words.row(data), jnp.zeros_like(words.first(data)))
    of_each = functools.reduce(lambda f, _: jax.vmap(f), key.shape, words.chosen(alone, of_row))
    data = of_each(jax.random.key_data(key))
    is_share = words.rows == rows and not key.shape
    return words.key(data[..., :-1]), data[-1].astype(jnp.int32) if is_share else 0


class _Words:
    """Where in the data of such a key which word stands: two keys of another kind, the first row, and which of them.

    inner: that other kind; rows: of this device.
    """

    def __init__(self, inner: Any, rows: int):
        self.inner, self.rows = inner, rows
        self.size = int(jax.random.key_data(jax.random.key(0, impl=inner)).shape[0])

    def batch(self, data: Array) -> Array:
        """The key that draws for the whole batch."""
        return data[: self.size]

    def row(self, data: Array) -> Array:
        """The key of one row; the other one, where the key was never split into rows."""
        return data[self.size : -2]

    def first(self, data: Array) -> Array:
        return data[-2]

    def is_split(self, data: Array) -> Array:
        return data[-1] > 0

    def key(self, data: Array) -> Array:
        return jax.random.wrap_key_data(data, impl=self.inner)

    def join(self, batch: Array, row: Array, first: Array, is_split: Any = False) -> Array:
        """[..., 2 size + 2] the data of such keys."""
        one = lambda word: jnp.broadcast_to(jnp.asarray(word, jnp.uint32), (*batch.shape[:-1], 1))
        return jnp.concatenate([batch, row, one(first), one(is_split)], axis=-1)

    def chosen_row(self, key: Array) -> Array:
        """The data of a key that was one of a row's in its use: no batch is left in it, as it starts at row 0."""
        return self.join(key, key, jnp.uint32(0), True)

    def chosen(self, alone: Callable[..., Array], of_row: Callable[..., Array], depth: int = 0) -> Callable[..., Array]:
        """`alone`, and of_row where the keys are mapped over as many as there are rows.

        Both take the data of a key, and other arrays. depth: of the maps that are none over the rows and lie inside.
        """
        over = lambda f: functools.reduce(lambda g, _: jax.vmap(g), range(depth), f)
        found = jax.custom_batching.custom_vmap(over(alone))

        def mapped(size: int, is_batched: list[bool], data: Array, *more: Array) -> tuple[Array, bool]:
            spread = lambda a, has: a if has else jnp.broadcast_to(a, (size, *a.shape))
            arrays = [spread(a, has) for a, has in zip((data, *more), is_batched, strict=True)]
            is_rows = size == self.rows and is_batched[0]
            return (jax.vmap(over(of_row)) if is_rows else self.chosen(alone, of_row, depth + 1))(*arrays), True

        found.def_vmap(mapped)
        return found


@functools.lru_cache
def _implementation(inner: Any, rows: int, whole: int, is_counting: bool) -> Any:
    """Keys of another kind, for `rows` rows of a batch of `whole`.

    Any shape but [rows, ...] is drawn as ever, the same on all devices. is_counting: threefry's bits are functions of
    their place, JAX's default.
    """
    words = _Words(inner, rows)
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
        is_of_rows = bool(shape) and shape[0] == rows

        def bits(key: Array, shape: tuple[int, ...]) -> Array:
            return jax.random.bits(words.key(key), shape, UINT[bit_width])

        def alone(data: Array) -> Array:
            if not is_of_rows:
                return bits(words.batch(data), shape)
            if self.is_counting and self.whole * math.prod(shape[1:]) < 2**32:
                return _counted_bits(words.batch(data), words.first(data), bit_width, shape)
            return jax.lax.dynamic_slice_in_dim(
                bits(words.batch(data), (self.whole, *shape[1:])), words.first(data), rows
            )

        def of_row(data: Array) -> Array:
            drawn = bits(words.row(data), shape)  # without the rows in it, that of a key which was not split too
            return jnp.where(words.is_split(data), drawn, alone(data)) if is_of_rows else drawn

        return words.chosen(alone, of_row)(data)

    def split(self, data: Array, shape: tuple[int, ...]) -> Array:
        words = self.words
        into = lambda key, shape: jax.random.key_data(jax.random.split(words.key(key), shape))

        def alone(data: Array) -> Array:
            keys, first = into(words.batch(data), shape), words.first(data)
            if shape[0] != words.rows:
                return words.join(keys, keys, first)
            of_all = into(words.batch(data), (self.whole, *shape[1:]))
            return words.join(keys, jax.lax.dynamic_slice_in_dim(of_all, first, words.rows), first, True)

        def of_row(data: Array) -> Array:
            own = into(words.row(data), shape)
            return jnp.where(words.is_split(data), words.chosen_row(own), alone(data))

        return words.chosen(alone, of_row)(data)

    def fold_in(self, data: Array, folded: Array) -> Array:
        words = self.words
        into = lambda key, folded: jax.random.key_data(jax.random.fold_in(words.key(key), folded))

        def alone(data: Array, folded: Array) -> Array:
            key = into(words.batch(data), folded)
            return words.join(key, key, words.first(data))

        def of_row(data: Array, folded: Array) -> Array:
            own = into(words.row(data), folded)
            return jnp.where(words.is_split(data), words.chosen_row(own), alone(data, folded))

        return words.chosen(alone, of_row)(data, folded)


def _counted_bits(key: Array, first: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    """Threefry's bits count the places of the whole draw: those from the first row's on."""
    size = math.prod(shape)
    place = (first * jnp.uint32(math.prod(shape[1:])) + jax.lax.iota(jnp.uint32, size)).reshape(shape)
    high, low = jax.extend.random.threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(place), place)
    if bit_width == 64:
        return jax.lax.shift_left(high.astype(jnp.uint64), jnp.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(UINT[bit_width])
