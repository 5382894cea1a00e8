"""Work on a block of samples at a time: patches or tiles of a whole batch would leave the cache, or fill the memory."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jacreg_jax.types import Array


def map_blocks(f: Callable[[Array], Array], size: int, x: Array) -> Array:
    """f, linear and row by row, on blocks of about this many samples."""
    (blocks,) = _blocks(size, x)
    y = f(blocks[0])[None] if len(blocks) == 1 else lax.map(f, blocks)
    return y.reshape(-1, *y.shape[2:])[: x.shape[0]]


def sum_blocks(f: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """The sum of f over the blocks; f is zero on zeros."""
    blocks = _blocks(size, *arrays)
    total = f(*(a[0] for a in blocks))
    if len(blocks[0]) == 1:
        return total
    total, _ = lax.scan(lambda total, block: (total + f(*block), None), total, [a[1:] for a in blocks])
    return total


def _blocks(size: int, *arrays: Array) -> list[Array]:
    """Arrays [B, ...] as [blocks, n, ...], filled up with zeros where no near number of blocks divides B."""
    batch = arrays[0].shape[0]
    fewest = -(-batch // min(size, batch))
    blocks = next((k for k in range(fewest, min(2 * fewest, batch) + 1) if batch % k == 0), fewest)
    rows = -(-batch // blocks)
    fill = blocks * rows - batch
    if fill:
        arrays = tuple(jnp.pad(a, ((0, fill),) + ((0, 0),) * (a.ndim - 1)) for a in arrays)
    return [a.reshape(blocks, rows, *a.shape[1:]) for a in arrays]
