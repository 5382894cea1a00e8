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
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.gradient import is_zero
from jacreg_jax.attacks.result import AttackResult, choose, spread
from jacreg_jax.attacks.start import Goal, Start, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import check_key, normal_like
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Function, PyTree

_Scan: TypeAlias = tuple[Array, Array, Array, Array]  # magnitude or step, images, steps, done


@once
def white_noise_distance(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    step_size: ArrayLike = 0.01,
    num_steps: int = 400,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """First fooling image along one random Gaussian direction: clip(x + k step_size N(0, 1)), k = 1 ... num_steps.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        step_size: of sigma, in raw pixels, as epsilon of `fgsm`.
        num_steps: magnitudes that are tried; steps * step_size is the sigma of the hit.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    start = begin(f, x, y, bounds, key=key, goal=Goal(criterion, target))
    direction = normal_like(start.keys, start.x)
    checks.positive("step_size", step_size, batch=len(start.x), beside=start.x.shape)
    candidate = lambda k: start.clip(start.x + k * spread(step_size, start.x) * direction)
    return _first_hit(start, candidate, num_steps, start.none(), backward=0)


@once
def fgsm_distance(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    step_size: ArrayLike = 1 / 255,
    num_steps: int = 255,
    loss: Function | None = None,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """First fooling image along the gradient's sign at the clean image: clip(x + k step_size sign(g)).

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; for `samples` alone.
        step_size: of epsilon, in raw pixels, as epsilon of `fgsm`.
        num_steps: epsilons that are tried; steps * step_size is the epsilon of the hit.
        loss: as for `fgsm`.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key if samples else None, goal=goal)
    gradient = start.gradient(start.x, loss)
    checks.positive("step_size", step_size, batch=len(start.x), beside=start.x.shape)
    candidate = lambda k: start.clip(start.x + k * spread(step_size, start.x) * jnp.sign(gradient))
    return _first_hit(start, candidate, num_steps, is_zero(gradient), backward=1)


@once
def pgd_distance(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    epsilon: ArrayLike = 32 / 255,
    step_size: ArrayLike = 1 / 255,
    num_steps: int = 300,
    loss: Function | None = None,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """First fooling iterate of PGD in L-infinity from the clean image; paper: steps of 1/255, epsilon 32/255 on MNIST.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; for `samples` alone.
        epsilon: radius of the L-infinity ball, as for `fgsm`; 16/255 in the paper on CIFAR-10 and ImageNet.
        step_size: in raw pixels, as epsilon.
        num_steps: at most; the paper does not say, and 32 are too few for a Jacobian-regularised model.
        loss: as for `pgd`.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key if samples else None, per_entry=True, epsilon=epsilon, goal=goal)
    checks.positive("step_size", step_size, batch=len(start.x), beside=start.x.shape)
    num_steps = checks.count("num_steps", num_steps)
    image, objective = start.x, start.objective(loss)

    def climb(x_adv: Array) -> tuple[Array, Array]:
        z = start.f(x_adv)
        return jnp.sum(objective(z)), start.reached(z)

    def step(carry: _Scan) -> _Scan:
        i, x_adv, steps, done = carry
        gradient, fooled = jax.grad(climb, has_aux=True)(x_adv)
        steps = jnp.where(fooled & ~done, i, steps)
        done = done | fooled
        moved = project(x_adv + spread(step_size, image) * jnp.sign(gradient), image, epsilon, "linf", start.bounds)
        return i + 1, choose(done, x_adv, moved), steps, done

    first = jnp.zeros((), jnp.int32), image, start.full(num_steps, jnp.int32), start.none()
    _, x_adv, steps, _ = jax.lax.while_loop(lambda c: (c[0] < num_steps) & ~jnp.all(c[-1]), step, first)
    return finish(start, x_adv, norm="l2", steps=steps, loss=loss, backward=jnp.minimum(steps + 1, num_steps))


def _first_hit(
    start: Start, candidate: Callable[[Array], Array], num_steps: int, grad_zero: Array, *, backward: int
) -> AttackResult:
    """The first of candidate(1), ..., candidate(num_steps) that fools f, for every sample; ends when all are."""
    num_steps = checks.count("num_steps", num_steps)

    def step(carry: _Scan) -> _Scan:
        k, x_adv, steps, done = carry
        tried = candidate(k.astype(start.x.dtype))
        new = start.reached(start.f(tried)) & ~done
        return k + 1, choose(new, tried, x_adv), jnp.where(new, k, steps), done | new

    first = jnp.ones((), jnp.int32), start.x, start.zeros(), ~start.clean_correct
    _, x_adv, steps, _ = jax.lax.while_loop(lambda c: (c[0] <= num_steps) & ~jnp.all(c[-1]), step, first)
    tried = jnp.where(steps > 0, steps, num_steps)
    return finish(start, x_adv, norm="l2", steps=steps, grad_zero=grad_zero, forward=tried, backward=backward)
