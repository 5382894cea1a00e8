"""Models that draw: f(x, key), attacked in expectation over several draws at every point."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.criterion import Criterion, Pair
from jacreg_jax.types import Array, Function, PyTree

_JUDGE = 1 << 31  # draws of the last evaluation, which no search has seen


def over_draws(f: Function, keys: Array, samples: int) -> Function:
    """x -> outputs [B, samples, ...] of f(x, key).

    The draws of a row depend on its key and on where it is, so that another point is another draw, and the same point
    the same one: alone, in a batch, and in any loop. f is called on one row at a time, under vmap.
    """

    def row(x: PyTree, key: Array, salt: Array | int) -> PyTree:
        key = jax.random.fold_in(jax.random.fold_in(key, _digest(x)), salt)
        one = lambda i: jax.tree.map(lambda z: z[0], f(jax.tree.map(lambda a: a[None], x), jax.random.fold_in(key, i)))
        return jax.vmap(one)(jnp.arange(samples, dtype=jnp.uint32))

    def drawn(x: PyTree, *, judge: bool = False) -> PyTree:
        return jax.vmap(lambda x, key: row(x, key, jnp.uint32(_JUDGE if judge else 0)))(x, keys)

    return drawn


@dataclass(frozen=True)
class OverDraws(Criterion):
    """Another criterion in expectation: margins and losses are means over draws, reached where more than half are."""

    inner: Criterion

    def outputs(self, z: Any, batch: int) -> Any:
        """[B, draws, ...]: each draw as the inner criterion wants it."""
        rows = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), z)
        draws = jax.tree.leaves(z)[0].shape[1]
        found = self.inner.outputs(rows, batch * draws)
        return jax.tree.map(lambda a: a.reshape(batch, draws, *a.shape[1:]), found)

    def reference(self, z: Any, y: Any, target: Any) -> Any:
        """Of the mean outputs."""
        return self.inner.reference(_mean(z), y, target)

    def margin(self, z: Any, y: Any) -> Array:
        """The mean margin."""
        return _each(self.inner.margin, z, y).mean(0)

    def reached(self, z: Any, y: Any) -> Array:
        """In more than half of the draws."""
        hits = _each(self.inner.reached, z, y)
        return 2 * jnp.sum(hits, axis=0, dtype=jnp.int32) > len(hits)

    def loss(self, z: Any, y: Any) -> Array:
        """The mean loss."""
        return _each(self.inner.loss, z, y).mean(0)

    def ratio(self, z: Any, y: Any) -> Array:
        """The mean ratio."""
        return _each(self.inner.ratio, z, y).mean(0)

    def num_rivals(self, z: Any) -> int:
        """Of the mean outputs."""
        return self.inner.num_rivals(_mean(z))

    def rival(self, k: Any, z: Any) -> Array:
        """By the mean outputs."""
        return self.inner.rival(k, _mean(z))

    def num_leads(self, z: Any) -> int:
        """Of the mean outputs."""
        return self.inner.num_leads(_mean(z))

    def is_joint(self, z: Any) -> bool:
        """Of the mean outputs."""
        return self.inner.is_joint(_mean(z))

    def lead(self, k: Any, z: Any) -> Pair:
        """The mean lead."""
        return self.mean_of(self.inner.lead(k, _mean(z)))

    def mean_of(self, pair: Pair) -> Pair:
        """The mean of a function of one draw."""
        return lambda z, y: _each(pair, z, y).mean(0)


def _each(pair: Pair, z: Any, y: Any) -> Array:
    """[draws, B]."""
    found: Array = jax.vmap(pair, in_axes=(1, None))(z, y)
    return found


def _mean(z: Any) -> Any:
    return jax.tree.map(lambda a: a.mean(1), z)


def _digest(x: PyTree) -> Array:
    """A number that another point changes; no gradient flows through it."""
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(x):
        wide = jax.lax.stop_gradient(leaf).astype(jnp.float32).ravel()
        bits = jax.lax.bitcast_convert_type(wide, jnp.uint32)
        odd = 2 * jnp.arange(wide.size, dtype=jnp.uint32) + jnp.uint32(2654435761)
        total = total + jnp.sum(bits * odd, dtype=jnp.uint32)
    return total
