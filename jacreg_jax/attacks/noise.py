"""White noise, Eq. 9 of the paper."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.result import AttackResult, check_inputs, finish, sample_keys, spread


def white_noise(f: Callable, x, y, key: jax.Array, *, sigma, bounds=(0.0, 1.0)) -> AttackResult:
    """X + N(0, sigma^2) in every pixel, clipped to bounds; one draw for each sample.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        sigma: standard deviation in raw pixels (the paper's text says variance); scalar or [B].
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L2 distances.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; key is not a typed key.
    """
    check_inputs(x, y, bounds, sigma=sigma)
    noise = jax.vmap(lambda k, x: jax.random.normal(k, x.shape, x.dtype))(sample_keys(key, len(x)), x)
    x_adv = jnp.clip(x + spread(sigma, x) * noise, *bounds)
    nothing = jnp.zeros(len(x), bool)
    return finish(f, x, y, x_adv, norm="l2", steps=nothing, grad_zero=nothing)
