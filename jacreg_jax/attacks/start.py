"""How every attack begins and ends: arguments checked, clean logits computed once, the result judged once more."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.attacks.gradient import zero_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import (
    NORMS,
    AttackResult,
    Norm,
    choose,
    distance,
    is_correct,
    is_fooled,
)
from jacreg_jax.keys import sample_keys
from jacreg_jax.manual_axes import varying as varying
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, Function


class Start(NamedTuple):
    """What every attack works on; float16 and bfloat16 images are worked on in float32, as rounded ones."""

    f: Function  # raw pixels [B, ...] -> logits [B, C], at least in float32
    x: Array  # [B, ...] raw pixels, at least in float32
    y: Array  # [B] integer labels
    bounds: checks.Bounds  # (low, high), floats or arrays beside x
    keys: Any  # [B] typed keys, or None
    logits: Array  # [B, C] of the clean images
    clean_correct: Array  # [B] bool
    dtype: Any  # of the images that came

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[-1])

    def clip(self, x_adv: Array) -> Array:
        """The nearest images within bounds."""
        return jnp.clip(x_adv, *self.bounds)

    def full(self, value: Any, dtype: Any) -> Array:
        """[B] of one value, or of B; inside shard_map it varies over the mesh as the samples do, so that loops may."""
        return varying(jnp.broadcast_to(jnp.asarray(value, dtype), (len(self.x),)), self.clean_correct)

    def none(self) -> Array:
        """[B] bool, False everywhere."""
        return self.full(False, bool)

    def zeros(self) -> Array:
        """[B] int32 zeros, where steps are counted."""
        return self.full(0, jnp.int32)


def begin(
    f: Function, x: Any, y: Any, bounds: checks.Bounds, *, key: Any = None, norm: Any = "l2", **sizes: Any
) -> Start:
    """Check what every attack takes, and call f on the clean images.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], C of at least 2.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B], each in [0, C).
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.
        key: typed key, or B of them; None where nothing is drawn.
        norm: "linf" or "l2".
        **sizes: numbers of at least 0 by name, scalar or [B], such as epsilon.

    Raises:
        TypeError: x is not floating point, y not integer, bounds no pair, a size no number, or key no typed key.
        ValueError: an empty batch; y not [B] or not in [0, C); bounds not finite or reversed; pixels outside of bounds;
            logits not [B, C]; an unknown norm; a size that is negative, infinite or NaN.
    """
    checks.function("f", f)
    image = checks.inputs(x)
    checks.one_of("norm", norm, NORMS)
    for name, value in sizes.items():
        checks.non_negative(name, value, batch=len(image))
    low, high = checks.bounds(bounds, image)
    keys = None if key is None else sample_keys(key, len(image))
    dtype, wide = image.dtype, at_least_float32(image.dtype)
    function = _wide(f, dtype)
    low, high = (b if isinstance(b, float) else b.astype(wide) for b in (low, high))
    image = varying(image.astype(wide), y, keys, sizes, (low, high))
    logits = function(image)
    y = checks.labels(y, image.shape[:1], checks.num_classes(logits, len(image))).astype(jnp.int32)
    image, y, keys = varying((image, y, keys), logits)
    return Start(function, image, y, (low, high), keys, logits, is_correct(logits, y), dtype)


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
    f, x, y, clean_correct = start.f, start.x, start.y, start.clean_correct
    x_adv = choose(clean_correct, x_adv, x).astype(start.dtype)
    seen = x_adv.astype(x.dtype)
    success = ~clean_correct | is_fooled(f(seen), y)
    reached = jnp.where(success, distance(seen - x, norm), jnp.inf)
    return AttackResult(
        x_adv,
        success,
        jnp.where(clean_correct, reached, 0.0),
        clean_correct,
        jnp.where(clean_correct, steps.astype(jnp.int32), 0),
        zero_gradient(f, x, y, loss) if grad_zero is None else grad_zero,
    )


def _wide(f: Function, dtype: Any) -> Function:
    """F of images rounded to this dtype, with logits at least in float32; f itself where it is that already."""

    def wide(x: Array) -> Any:
        z = f(x.astype(dtype))
        if not hasattr(z, "dtype") or not jnp.issubdtype(z.dtype, jnp.floating):
            return z  # the checks say so
        return z.astype(at_least_float32(z.dtype))

    return wide
