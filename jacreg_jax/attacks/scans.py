"""Smallest fooling distance of noise, FGSM and PGD, by cranking the magnitude up to the first hit, as in the paper.

Success is not monotone in the magnitude, so the scan goes upwards and takes the first hit; a bisection over the whole
range would miss it. Distances are L2 in raw pixels between the image and the clipped, fooling image.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.ball import project
from jacreg_jax.attacks.gradient import is_zero, loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import AttackResult, choose, is_fooled, spread
from jacreg_jax.attacks.start import Start, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import check_key, normal_like
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Function

_Scan: TypeAlias = tuple[Array, Array, Array, Array]  # magnitude or step, images, steps, done


@once
def white_noise_distance(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array,
    *,
    step_size: ArrayLike = 0.01,
    num_steps: int = 400,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """First fooling image along one random Gaussian direction: clip(x + k step_size N(0, 1)), k = 1 ... num_steps.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        step_size: of sigma, in raw pixels, scalar or [B].
        num_steps: magnitudes that are tried; steps * step_size is the sigma of the hit.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with L2 distances after clipping; steps is the k of the hit.

    Raises:
        TypeError, ValueError: see `start.begin`; num_steps below 1; step_size not above 0; key is not a typed key.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> found = white_noise_distance(f, jnp.array([[0.7]]), jnp.array([0]), jax.random.key(2), num_steps=2)
        >>> found.distance.tolist()
        [inf]

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Figure 3.
    """
    check_key(key)
    start = begin(f, x, y, bounds, key=key)
    direction = normal_like(start.keys, start.x)
    checks.positive("step_size", step_size, batch=len(start.x))
    candidate = lambda k: start.clip(start.x + k * spread(step_size, start.x) * direction)
    return _first_hit(start, candidate, num_steps, start.none())


@once
def fgsm_distance(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array | None = None,
    *,
    step_size: ArrayLike = 1 / 255,
    num_steps: int = 255,
    loss: Function = log_odds,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """First fooling image along the gradient's sign at the clean image: clip(x + k step_size sign(g)).

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used; here for the common order of arguments.
        step_size: of epsilon, in raw pixels, scalar or [B].
        num_steps: epsilons that are tried; steps * step_size is the epsilon of the hit.
        loss: as for `fgsm`.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with L2 distances; steps is the k of the hit.

    Raises:
        TypeError, ValueError: see `start.begin`; num_steps below 1; step_size not above 0.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> fgsm_distance(f, jnp.array([[0.7], [0.9]]), jnp.array([0, 0]), step_size=0.15).steps.tolist()
        [2, 3]

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Figure 3.
    """
    del key
    start = begin(f, x, y, bounds)
    gradient = loss_gradient(f, start.x, start.y, loss)
    checks.positive("step_size", step_size, batch=len(start.x))
    candidate = lambda k: start.clip(start.x + k * spread(step_size, start.x) * jnp.sign(gradient))
    return _first_hit(start, candidate, num_steps, is_zero(gradient))


@once
def pgd_distance(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array | None = None,
    *,
    epsilon: ArrayLike = 32 / 255,
    step_size: ArrayLike = 1 / 255,
    num_steps: int = 300,
    loss: Function = log_odds,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """First fooling iterate of PGD in L-infinity from the clean image; paper: steps of 1/255, epsilon 32/255 on MNIST.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: not used; here for the common order of arguments.
        epsilon: radius of the L-infinity ball, scalar or [B]; 16/255 in the paper on CIFAR-10 and ImageNet.
        step_size: in raw pixels, scalar or [B].
        num_steps: at most; the paper does not say, and 32 are too few for a Jacobian-regularised model.
        loss: as for `pgd`.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with L2 distances; steps is the iterate of the hit.

    Raises:
        TypeError, ValueError: see `start.begin`; num_steps below 1; step_size not above 0.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> pgd_distance(f, jnp.array([[0.6], [0.9]]), jnp.array([0, 0]), step_size=0.04).steps.tolist()[0]
        3

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Figure 3.
    """
    del key
    start = begin(f, x, y, bounds, epsilon=epsilon)
    checks.positive("step_size", step_size, batch=len(start.x))
    num_steps = checks.count("num_steps", num_steps)
    image, label = start.x, start.y

    def climb(x_adv: Array) -> tuple[Array, Array]:
        logits = f(x_adv)
        return jnp.sum(loss(logits, label)), is_fooled(logits, label)

    def step(carry: _Scan) -> _Scan:
        i, x_adv, steps, done = carry
        gradient, fooled = jax.grad(climb, has_aux=True)(x_adv)
        steps = jnp.where(fooled & ~done, i, steps)
        done = done | fooled
        moved = project(x_adv + spread(step_size, image) * jnp.sign(gradient), image, epsilon, "linf", start.bounds)
        return i + 1, choose(done, x_adv, moved), steps, done

    first = jnp.zeros((), jnp.int32), image, start.full(num_steps, jnp.int32), start.none()
    _, x_adv, steps, _ = jax.lax.while_loop(lambda c: (c[0] < num_steps) & ~jnp.all(c[-1]), step, first)
    return finish(start, x_adv, norm="l2", steps=steps, loss=loss)


def _first_hit(start: Start, candidate: Callable[[Array], Array], num_steps: int, grad_zero: Array) -> AttackResult:
    """The first of candidate(1), ..., candidate(num_steps) that fools f, for every sample; ends when all are."""
    num_steps = checks.count("num_steps", num_steps)

    def step(carry: _Scan) -> _Scan:
        k, x_adv, steps, done = carry
        tried = candidate(k.astype(start.x.dtype))
        new = is_fooled(start.f(tried), start.y) & ~done
        return k + 1, choose(new, tried, x_adv), jnp.where(new, k, steps), done | new

    first = jnp.ones((), jnp.int32), start.x, start.zeros(), is_fooled(start.logits, start.y)
    _, x_adv, steps, _ = jax.lax.while_loop(lambda c: (c[0] <= num_steps) & ~jnp.all(c[-1]), step, first)
    return finish(start, x_adv, norm="l2", steps=steps, grad_zero=grad_zero)
