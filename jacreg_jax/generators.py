"""Keys of the kinds rbg and unsafe_rbg, which JAX's vmap does not treat one by one.

Under a vmap over such keys JAX draws for all of them from the first alone, and unsafe_rbg makes and splits keys by
drawing too. What a key gives would depend on what lies beside it in a batch.
"""

import functools
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp

from jacreg_jax.types import Array

UINT = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}
ONE_BY_ONE = "one by one"


def kind(key: Array) -> str:
    """What JAX calls the generator that the key is for.

    Args:
        key: typed key, or an array of them.

    Returns:
        Its name.

    Example:
        >>> "threefry2x32" in kind(jax.random.key(0, impl="threefry2x32"))
        True
    """
    return str(jax.random.key_impl(key))


def threefry(key: Array) -> Array:
    """Keys of that kind as they are; of another, made of their bits.

    Args:
        key: typed key, or an array of them.

    Returns:
        Typed keys of the same shape.

    Example:
        >>> threefry(jax.random.key(0, impl="rbg")).shape
        ()
    """
    if "threefry2x32" in kind(key):
        return key
    words = jnp.moveaxis(jax.random.key_data(key), -1, 0)
    found = jax.random.wrap_key_data(jnp.zeros((*key.shape, 2), jnp.uint32), impl="threefry2x32")
    fold = jax.random.fold_in
    for _ in key.shape:
        fold = jax.vmap(fold)
    for word in words:
        found = fold(found, word)
    return found


def folded_alike(key: Array) -> Array:
    """Keys whose fold_in does not depend on what else is folded in beside it: unsafe_rbg ones become rbg ones.

    Args:
        key: typed key.

    Returns:
        Typed key of the same words.

    Example:
        >>> folded_alike(jax.random.key(0, impl="unsafe_rbg")).dtype
        key<rbg>
    """
    if "unsafe_rbg" not in kind(key):
        return key
    return jax.random.wrap_key_data(
        jax.random.key_data(key), impl=_one_by_one("rbg") if ONE_BY_ONE in kind(key) else "rbg"
    )


def one_by_one(key: Array) -> Array:
    """Keys that under vmap give what each gives alone, one after the other; threefry's do so by themselves.

    Args:
        key: typed key, or an array of them.

    Returns:
        Typed keys of the same words.

    Example:
        >>> keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
        >>> together = jax.vmap(jax.random.bits)(one_by_one(keys))
        >>> together[1] == jax.random.bits(keys[1])
        Array(True, dtype=bool)
    """
    if "threefry2x32" in kind(key):
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_one_by_one(jax.random.key_impl(key)))


@functools.lru_cache
def _one_by_one(inner: Any) -> Any:
    """Keys of another implementation, of the same words."""
    words = jax.random.key_data(jax.random.key(0, impl=inner)).shape
    unwrap = lambda data: jax.random.wrap_key_data(data, impl=inner)

    def seed(value: Array) -> Array:
        return jax.random.key_data(jax.random.key(value, impl=inner))

    def split(data: Array, shape: tuple[int, ...]) -> Array:
        keys: Array = _sequential(lambda data: jax.random.key_data(jax.random.split(unwrap(data), shape)))(data)
        return keys

    def random_bits(data: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
        bits: Array = _sequential(lambda data: jax.random.bits(unwrap(data), shape, UINT[bit_width]))(data)
        return bits

    def fold_in(data: Array, folded: Array) -> Array:
        fold = lambda data, folded: jax.random.key_data(jax.random.fold_in(unwrap(data), folded))
        key: Array = _sequential(fold)(data, folded)
        return key

    return jax.extend.random.define_prng_impl(
        key_shape=words,
        seed=seed,
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,  # type: ignore[arg-type]  # an array
        name=f"{inner}, {ONE_BY_ONE}",
        tag=f"{inner}, {ONE_BY_ONE}",
    )


_sequential: Any = jax.custom_batching.sequential_vmap
