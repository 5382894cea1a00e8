"""How every attack begins and ends: arguments checked, clean logits computed once, the result judged once more."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.attacks.gradient import zero_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import NORMS, AttackResult, Norm, choose, distance, is_correct, is_fooled
from jacreg_jax.types import Array, Function


class Start(NamedTuple):
    """What every attack works on."""

    f: Function  # raw pixels [B, ...] -> logits [B, C]
    x: Array  # [B, ...] raw pixels
    y: Array  # [B] integer labels
    bounds: checks.Bounds  # (low, high), floats or arrays beside x
    logits: Array  # [B, C] of the clean images
    clean_correct: Array  # [B] bool

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[-1])

    def clip(self, x_adv: Array) -> Array:
        """The nearest images within bounds."""
        return jnp.clip(x_adv, *self.bounds)

    def none(self) -> Array:
        """[B] bool, False everywhere."""
        return jnp.zeros(len(self.x), bool)

    def zeros(self) -> Array:
        """[B] int32 zeros, where steps are counted."""
        return jnp.zeros(len(self.x), jnp.int32)


def begin(f: Function, x: Any, y: Any, bounds: checks.Bounds, *, norm: Any = "l2", **sizes: Any) -> Start:
    """Check what every attack takes, and call f on the clean images.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], C of at least 2.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B], each in [0, C).
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.
        norm: "linf" or "l2".
        **sizes: numbers of at least 0 by name, scalar or [B], such as epsilon.

    Raises:
        TypeError: x is not floating point, y not integer, bounds no pair, or a size no number.
        ValueError: an empty batch; y not [B] or not in [0, C); bounds not finite or reversed; pixels outside of bounds;
            logits not [B, C]; an unknown norm; a size that is negative, infinite or NaN.
    """
    x = checks.inputs(x)
    checks.one_of("norm", norm, NORMS)
    for name, value in sizes.items():
        checks.non_negative(name, value, batch=len(x))
    bounds = checks.bounds(bounds, x)
    logits = f(x)
    y = checks.labels(y, x.shape[:1], checks.num_classes(logits, len(x)))
    return Start(f, x, y, bounds, logits, is_correct(logits, y))


def finish(
    start: Start, x_adv: Array, *, norm: Norm, steps: Array, grad_zero: Array | None = None, loss: Function = log_odds
) -> AttackResult:
    """The result for candidates x_adv, judged by one more evaluation of f.

    Args:
        start: as `begin` gave it.
        x_adv: [B, ...].
        norm: of the distance.
        steps: [B].
        grad_zero: [B] bool where it is known already.
        loss: whose gradient at the clean images is looked at where grad_zero is not given.
    """
    f, x, y, _, _, clean_correct = start
    x_adv = choose(clean_correct, x_adv, x)
    success = ~clean_correct | is_fooled(f(x_adv), y)
    reached = jnp.where(success, distance(x_adv - x, norm), jnp.inf)
    return AttackResult(
        x_adv,
        success,
        jnp.where(clean_correct, reached, 0.0),
        clean_correct,
        jnp.where(clean_correct, steps, jnp.zeros_like(y)).astype(jnp.int32),
        zero_gradient(f, x, y, loss) if grad_zero is None else grad_zero,
    )
