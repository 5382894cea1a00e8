"""Smallest fooling distance of noise, FGSM and PGD, by cranking the magnitude up to the first hit, as in the paper.

Success is not monotone in the magnitude, so the scan goes upwards and takes the first hit; a bisection over the whole
range would miss it. Distances are L2 in raw pixels between the image and the clipped, fooling image.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.fgsm import loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.pgd import project
from jacreg_jax.attacks.result import (
    AttackResult,
    check_count,
    check_inputs,
    finish,
    is_fooled,
    sample_keys,
    spread,
    zero_gradient,
)


def white_noise_distance(
    f: Callable, x, y, key: jax.Array, *, step_size: float = 0.01, num_steps: int = 400, bounds=(0.0, 1.0)
) -> AttackResult:
    """First fooling image along one random Gaussian direction: clip(x + k step_size N(0, 1)), k = 1 ... num_steps.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        step_size: of sigma, in raw pixels.
        num_steps: magnitudes that are tried; steps * step_size is the sigma of the hit.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L2 distances after clipping; steps is the k of the hit.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; num_steps below 1; key is not a typed key.
    """
    check_inputs(x, y, bounds, step_size=step_size)
    direction = jax.vmap(lambda k, x: jax.random.normal(k, x.shape, x.dtype))(sample_keys(key, len(x)), x)
    candidate = lambda k: jnp.clip(x + k * step_size * direction, *bounds)
    return _first_hit(f, x, y, candidate, num_steps, jnp.zeros(len(x), bool))


def fgsm_distance(
    f: Callable,
    x,
    y,
    key=None,
    *,
    step_size: float = 1 / 255,
    num_steps: int = 255,
    loss: Callable = log_odds,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """First fooling image along the gradient's sign at the clean image: clip(x + k step_size sign(g)).

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used.
        step_size: of epsilon, in raw pixels.
        num_steps: epsilons that are tried; steps * step_size is the epsilon of the hit.
        loss: as for `fgsm`.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L2 distances; steps is the k of the hit.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; num_steps below 1.
    """
    del key
    check_inputs(x, y, bounds, step_size=step_size)
    gradient = loss_gradient(f, x, y, loss)
    candidate = lambda k: jnp.clip(x + k * step_size * jnp.sign(gradient), *bounds)
    return _first_hit(f, x, y, candidate, num_steps, jnp.all(gradient.reshape(len(x), -1) == 0, axis=1))


def pgd_distance(
    f: Callable,
    x,
    y,
    key=None,
    *,
    epsilon=32 / 255,
    step_size: float = 1 / 255,
    num_steps: int = 300,
    loss: Callable = log_odds,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """First fooling iterate of PGD in L-infinity from the clean image; paper: steps of 1/255, epsilon 32/255 on MNIST.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used.
        epsilon: radius of the L-infinity ball; 16/255 in the paper on CIFAR-10 and ImageNet.
        step_size: in raw pixels.
        num_steps: at most; the paper does not say, and 32 are too few for a Jacobian-regularised model.
        loss: as for `pgd`.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult with L2 distances; steps is the iterate of the hit.

    Raises:
        TypeError, ValueError: see `result.check_inputs`; num_steps below 1.
    """
    del key
    check_inputs(x, y, bounds, epsilon=epsilon, step_size=step_size)
    check_count("num_steps", num_steps)

    def climb(x_adv):
        logits = f(x_adv)
        return jnp.sum(loss(logits, y)), is_fooled(logits, y)

    def step(carry):
        i, x_adv, steps, done = carry
        gradient, fooled = jax.grad(climb, has_aux=True)(x_adv)
        steps = jnp.where(fooled & ~done, i, steps)
        done = done | fooled
        moved = project(x_adv + step_size * jnp.sign(gradient), x, epsilon, "linf", bounds)
        return i + 1, jnp.where(spread(done, x) > 0, x_adv, moved), steps, done

    nothing = jnp.zeros(len(x), bool)
    start = jnp.zeros((), jnp.int32), x, jnp.full(len(x), num_steps, jnp.int32), nothing
    _, x_adv, steps, _ = jax.lax.while_loop(lambda c: (c[0] < num_steps) & ~jnp.all(c[-1]), step, start)
    return finish(f, x, y, x_adv, norm="l2", steps=steps, grad_zero=zero_gradient(f, x, y, loss))


def _first_hit(f, x, y, candidate, num_steps, grad_zero) -> AttackResult:
    """The first of candidate(1), ..., candidate(num_steps) that fools f, for every sample; ends when all are."""
    check_count("num_steps", num_steps)

    def step(carry):
        k, x_adv, steps, done = carry
        tried = candidate(k.astype(x.dtype))
        new = is_fooled(f(tried), y) & ~done
        x_adv = jnp.where(spread(new, x) > 0, tried, x_adv)
        return k + 1, x_adv, jnp.where(new, k, steps), done | new

    begin = jnp.ones((), jnp.int32), x, jnp.zeros(len(x), jnp.int32), is_fooled(f(x), y)
    _, x_adv, steps, _ = jax.lax.while_loop(lambda c: (c[0] <= num_steps) & ~jnp.all(c[-1]), step, begin)
    return finish(f, x, y, x_adv, norm="l2", steps=steps, grad_zero=grad_zero)
