"""Where randomness comes from: one typed key for each sample, and a stream of its own for everything that draws.

The key of a sample depends on its row alone, so that its noise is the same alone, in a batch, and on any number of
devices. In a training step the rows' own keys draw the probes or the noise of the penalty; the others fold them once
more, so that no two draws share a key.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks, generators, shares
from jacreg_jax.rows import at_least_float32
from jacreg_jax.share_keys import of_whole_batch

_PERTURBATION, _MODEL, _PART = 1, 2, 3


def sample_keys(key: jax.Array, batch: int) -> jax.Array:
    """One typed key for each of B samples: fold_in of its row, or the B keys given.

    Of the key that a training step hands to the model, a row's key is the same on any number of devices.

    They are of JAX's default kind, threefry. A `vmap` over keys of the kind rbg draws from the first key alone, so that
    a sample's noise would depend on its batch: keys of that kind are turned into threefry ones.

    Args:
        key: typed key, or B of them.
        batch: B.

    Returns:
        [B] typed keys.

    Raises:
        TypeError: key is not a typed key.
        ValueError: neither one key nor B; batch is no count.

    Example:
        >>> sample_keys(jax.random.key(0), 3).shape
        (3,)
    """
    check_key(key)
    batch = checks.count("batch", batch, least=0)
    key, first = of_whole_batch(key, batch)
    key = generators.threefry(key)
    if key.shape == ():
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key must be one key or {batch} keys, one for each sample; got shape {key.shape}")
    return key


def check_key(key: Any, name: str = "key") -> None:
    """TypeError unless key is a typed key, or an array of them."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"{name} must be a typed key, as jax.random.key(seed) makes it; got {got}")


def normal_like(key: jax.Array, x: jax.Array) -> jax.Array:
    """Standard normal noise of the shape and dtype of x [B, ...]; a row depends on its own key alone.

    It is drawn at least in float32 and then rounded: a draw in half precision never goes beyond 3 deviations.

    Args:
        key: typed key, or B of them.
        x: [B, ...].

    Returns:
        [B, ...].

    Raises:
        TypeError, ValueError: as `sample_keys`.

    Example:
        >>> normal_like(jax.random.key(0), jnp.zeros((2, 4))).shape
        (2, 4)
    """
    if not (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and x.ndim):
        raise TypeError(f"x must be a floating point array [B, ...], got {getattr(x, 'dtype', type(x).__name__)}")
    noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], at_least_float32(x.dtype)))(sample_keys(key, len(x)))
    return noise.astype(x.dtype)


def model_key(keys: jax.Array) -> jax.Array:
    """The key that the model of a training step draws from, such as its dropout mask; keys [B] of the rows.

    On a share of a batch, its draws of the shape [B, ...] are these rows of the draw for the whole.
    """
    return shares.whole_batch_key(keys[0], lambda key: jax.random.fold_in(key, _MODEL))


def part_keys(keys: jax.Array) -> jax.Array:
    """The keys that draw which rows are penalised.

    Args:
        keys: [G], of the first row of each group.

    Returns:
        [G] typed keys.

    Example:
        >>> part_keys(jax.random.split(jax.random.key(0), 2)).shape
        (2,)
    """
    return jax.vmap(lambda key: jax.random.fold_in(key, _PART))(keys)


def perturbation_keys(keys: jax.Array) -> jax.Array:
    """The keys [B] that the perturbation of adversarial training draws from; keys [B] of the rows."""
    return jax.vmap(lambda key: jax.random.fold_in(key, _PERTURBATION))(keys)
