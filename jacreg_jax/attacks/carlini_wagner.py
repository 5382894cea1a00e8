"""Carlini and Wagner's L2 attack: Adam in tanh space, a binary search on the constant for every sample."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jacreg_jax.attacks.losses import margin
from jacreg_jax.attacks.result import AttackResult, check_count, check_inputs, finish, is_fooled, spread, zero_gradient


class _Best(NamedTuple):
    """The nearest fooling image so far, over all steps of all searches."""

    x_adv: jax.Array
    squared: jax.Array  # [B], +inf where none was found
    step: jax.Array  # [B] int32, over all searches


class _Search(NamedTuple):
    """State of the binary search on the constant c of every sample."""

    const: jax.Array
    lower: jax.Array
    upper: jax.Array


def carlini_wagner(
    f: Callable,
    x,
    y,
    key=None,
    *,
    num_steps: int = 1000,
    num_searches: int = 10,
    learning_rate: float = 0.005,
    initial_const: float = 0.01,
    confidence: float = 0.0,
    smoother: float = 0.999999,
    adam_eps: float = 1e-8,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """The nearest image in L2 that f calls another class; the defaults are the paper's setting.

    Minimises ||x' - x||^2 + c max(0, z_y - max_{c' != y} z_c' + confidence) over w with x' = tanh(w) scaled to bounds,
    by Adam from zero in every search. c is multiplied by 10 until the sample is fooled, then bisected; with 10 or more
    searches the last repeats the smallest c that worked. The best of all steps counts, not the last.

    The paper's setting is far from converged on a Jacobian-regularised model: report `carlini_wagner_converged` or the
    best of several attacks (`best_of`) beside it.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used; here for the common order of arguments.
        num_steps: Adam steps in each search.
        num_searches: values of c that are tried.
        learning_rate: of Adam.
        initial_const: first c.
        confidence: margin by which the other class must lead.
        smoother: keeps arctanh of pixels at the bounds finite; pixels start 1 - smoother inside.
        adam_eps: of Adam; near saturated pixels gradients lie below the usual 1e-8, 1e-14 lets them move.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L2 distances.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; counts below 1; smoother outside (0, 1) in float32.

    Reference: Carlini, Wagner (2017), https://arxiv.org/abs/1608.04644, with loss f6.
    """
    del key
    check_inputs(x, y, bounds, confidence=confidence)
    check_count("num_steps", num_steps)
    check_count("num_searches", num_searches)
    if not 0 < np.float32(smoother) < 1:
        raise ValueError(f"smoother must lie between 0 and 1 in float32, got {smoother}")
    centre, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    start = jnp.arctanh(smoother * (x - centre) / half)
    optimizer = optax.adam(learning_rate, eps=adam_eps)

    def objective(delta, const):
        x_adv = centre + half * jnp.tanh(start + delta)
        logits = f(x_adv)
        squared = jnp.sum((x_adv - x).reshape(len(x), -1) ** 2, axis=1)
        lead = margin(logits, y)
        value = jnp.sum(squared + const * jnp.maximum(0, confidence - lead))
        return value, (x_adv, squared, is_fooled(logits, y) & (lead >= confidence))

    def step(i, carry, const, first):
        delta, moments, best, found = carry
        gradient, (x_adv, squared, fooled) = jax.grad(objective, has_aux=True)(delta, const)
        best = _keep(
            fooled & (squared < best.squared), best, _Best(x_adv, squared, jnp.full_like(best.step, first + i))
        )
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(delta, updates), moments, best, found | fooled

    def search(k, carry):
        best, (const, lower, upper) = carry
        if num_searches >= 10:
            const = jnp.where(k == num_searches - 1, jnp.minimum(upper, 1e10), const)
        delta = jnp.zeros_like(x)
        begin = delta, optimizer.init(delta), best, jnp.zeros(len(x), bool)
        one_step = partial(step, const=const, first=k * num_steps + 1)
        *_, best, found = jax.lax.fori_loop(0, num_steps, one_step, begin)
        upper = jnp.where(found, jnp.minimum(upper, const), upper)
        lower = jnp.where(found, lower, jnp.maximum(lower, const))
        const = jnp.where(jnp.isinf(upper), 10 * const, (lower + upper) / 2)
        return best, _Search(const, lower, upper)

    infinite = jnp.full(len(x), jnp.inf, x.dtype)
    best = _Best(x, infinite, jnp.zeros(len(x), jnp.int32))
    constants = _Search(jnp.full_like(infinite, initial_const), jnp.zeros_like(infinite), infinite)
    best, _ = jax.lax.fori_loop(0, num_searches, search, (best, constants))
    return finish(f, x, y, best.x_adv, norm="l2", steps=best.step, grad_zero=zero_gradient(f, x, y))


# Three times the steps, twice the rate, an Adam that moves saturated pixels
carlini_wagner_converged = partial(carlini_wagner, num_steps=3000, learning_rate=0.01, adam_eps=1e-14)


def _keep(better: jax.Array, old: Any, new: Any) -> Any:
    """New where better [B], leaf by leaf."""
    return jax.tree.map(lambda o, n: jnp.where(spread(better, n) > 0, n, o), old, new)
