"""Criteria of models that give classes: logits [B, C], one logit [B] or [B, 1], or positions [B, ..., C]."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax import checks
from jacreg_jax.attacks.criterion import Criterion, Pair
from jacreg_jax.attacks.losses import dlr, log_odds, margin, others, true_logit
from jacreg_jax.predictions import as_logits
from jacreg_jax.types import Array


@dataclass(frozen=True)
class Misclassified(Criterion):
    """Argmax is a class other than y; of positions, in more than a share of them."""

    share: float = 0.0

    def outputs(self, z: Any, batch: int) -> Array:
        """Logits [B, ..., C] of at least two classes."""
        if hasattr(z, "ndim") and z.ndim and z.shape[0] == batch:
            z = as_logits(z)
        checks.class_logits(z, batch)
        return jnp.asarray(z)

    def reference(self, z: Array, y: Any, target: Any) -> Array:
        """Labels of the shape of z without its classes."""
        del target
        return checks.labels(y, z.shape[:-1], z.shape[-1]).astype(jnp.int32)

    def margin(self, z: Array, y: Array) -> Array:
        """max_{c != y} z_c - z_y; of positions that of the last one that it takes."""
        return self._over_positions(margin(z, y))

    def reached(self, z: Array, y: Array) -> Array:
        """As argmax says, the first among equals."""
        wrong = jax.lax.argmax(z, z.ndim - 1, jnp.int32) != y
        if wrong.ndim > 1:
            wrong = wrong.reshape(len(wrong), -1)
            wrong = jnp.sum(wrong, axis=1, dtype=jnp.int32) > self._allowed(wrong.shape[1])
        return wrong & ~jnp.isnan(z.reshape(len(z), -1)).any(-1)

    def loss(self, z: Array, y: Array) -> Array:
        """The log odds against y; of positions the largest, or their mean where more than one must be wrong."""
        odds = log_odds(z, y)
        if odds.ndim == 1:
            return odds
        odds = odds.reshape(len(odds), -1)
        return odds.mean(1) if self.share else odds.max(1)

    def ratio(self, z: Array, y: Array) -> Array:
        """The difference-of-logits ratio."""
        if z.ndim != 2:
            raise ValueError(f"loss 'dlr' is for logits [B, C], f gives shape {z.shape}")
        return dlr(z, y)

    def num_rivals(self, z: Array) -> int:
        """C - 1, the likeliest first; of positions none."""
        return int(z.shape[-1]) - 1 if z.ndim == 2 else 0

    def rival(self, k: Any, z: Array) -> Array:
        """By the clean logits, beside their largest."""
        return jnp.take(jnp.argsort(z, axis=1), z.shape[1] - 2 - k, axis=1)

    def is_joint(self, z: Array) -> bool:
        """Where a share of the positions must be wrong."""
        return z.ndim != 2 and self.share > 0

    def lead(self, k: Any, z: Array) -> Pair:
        """z_c - z_y of one other class c; of positions what those that must be wrong still lack."""
        if z.ndim != 2:
            return self.margin if not self.share else self._lacking
        rival = self.rival(k, z)
        return lambda z, y: true_logit(z, rival) - true_logit(z, y)

    def _allowed(self, positions: int) -> int:
        """How many may be wrong."""
        return min(int(self.share * positions + 1e-6), positions - 1)  # 0.29 of 100 is 29

    def _over_positions(self, values: Array) -> Array:
        if values.ndim == 1:
            return values
        values = values.reshape(len(values), -1)
        allowed = self._allowed(values.shape[1])
        return values.max(1) if not allowed else jnp.sort(values, axis=1)[:, -1 - allowed]

    def _lacking(self, z: Array, y: Array) -> Array:
        """The sum of the negative margins among as many positions as must be wrong, the nearest ones."""
        values = margin(z, y).reshape(len(z), -1)
        nearest = jnp.sort(values, axis=1)[:, -1 - self._allowed(values.shape[1]) :]
        return jnp.minimum(nearest, 0).sum(1)


@dataclass(frozen=True)
class Targeted(Misclassified):
    """Argmax is the target, at every position; y is not looked at."""

    def reference(self, z: Array, y: Any, target: Any) -> Array:
        """Targets of the shape of z without its classes."""
        if y is not None:
            checks.labels(y, z.shape[:-1], z.shape[-1])
        target = np.asarray(target, np.int32) if isinstance(target, int) and not isinstance(target, bool) else target
        shape = () if getattr(target, "shape", None) == () else z.shape[:-1]
        classes = checks.labels(target, shape, z.shape[-1], "target").astype(jnp.int32)
        return jnp.broadcast_to(classes, z.shape[:-1])

    def margin(self, z: Array, y: Array) -> Array:
        """z_t - max_{c != t} z_c, the smallest of positions."""
        values = -margin(z, y)
        return values if values.ndim == 1 else values.reshape(len(values), -1).min(1)

    def reached(self, z: Array, y: Array) -> Array:
        """As argmax says, the first among equals."""
        hit = jax.lax.argmax(z, z.ndim - 1, jnp.int32) == y
        return hit.reshape(len(hit), -1).all(1) & ~jnp.isnan(z.reshape(len(z), -1)).any(-1)

    def loss(self, z: Array, y: Array) -> Array:
        """The log odds of the target; of positions their mean."""
        odds = -log_odds(z, y)
        return odds if odds.ndim == 1 else odds.reshape(len(odds), -1).mean(1)

    def ratio(self, z: Array, y: Array) -> Array:
        """Minus the difference-of-logits ratio of the target."""
        return -super().ratio(z, y)

    def num_rivals(self, z: Array) -> int:
        """The target alone."""
        return 0

    def lead(self, k: Any, z: Array) -> Pair:
        """The margin."""
        del k, z
        return self.margin


@dataclass(frozen=True)
class TopK(Misclassified):
    """y is not among the k largest logits."""

    k: int = 1

    def outputs(self, z: Any, batch: int) -> Array:
        """Logits [B, C] of more than k classes."""
        z = super().outputs(z, batch)
        if z.ndim != 2 or z.shape[1] <= self.k:
            raise ValueError(f"f(x) must be logits [B, C] of more than k = {self.k} classes, got shape {z.shape}")
        return z

    def margin(self, z: Array, y: Array) -> Array:
        """The k-th largest of the other logits minus z_y."""
        return jnp.sort(others(z, y), axis=-1)[:, -self.k] - true_logit(z, y)

    def reached(self, z: Array, y: Array) -> Array:
        """k others are larger."""
        return self.margin(z, y) > 0

    def loss(self, z: Array, y: Array) -> Array:
        """The margin."""
        return self.margin(z, y)

    def num_rivals(self, z: Array) -> int:
        """None: k classes must pass y together."""
        return 0

    def lead(self, k: Any, z: Array) -> Pair:
        """The margin."""
        del k, z
        return self.margin
