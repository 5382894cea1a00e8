"""Smallest fooling distance of noise, FGSM and PGD, by cranking the magnitude up to the first hit, as in the paper.

Success is not monotone in the magnitude, so the scan goes upwards and takes the first hit; a bisection over the whole
range would miss it. Distances are L2 in raw pixels between the image and the clipped, fooling image. For many samples
`evaluation.run_attack` is faster: those that are done leave the batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.ball import project
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.gradient import is_zero
from jacreg_jax.attacks.parts import Held, go_on, in_parts
from jacreg_jax.attacks.result import AttackResult, choose, spread
from jacreg_jax.attacks.start import Goal, Start, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import check_key, normal_like
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Function, PyTree


@once
def white_noise_distance(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    step_size: ArrayLike | None = None,
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
        step_size: of sigma, in raw pixels, as epsilon of `fgsm`; None: 0.01 of each pixel's range.
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
    return _white_noise(
        f, x, y, key, step_size=step_size, num_steps=num_steps, criterion=criterion, target=target, bounds=bounds
    )[0]


def _white_noise(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    held: Held | None = None,
    *,
    until: Array | None = None,
    step_size: ArrayLike | None,
    num_steps: int,
    criterion: Criterion | Function,
    target: ArrayLike | None,
    bounds: Bounds | None,
) -> tuple[AttackResult, Held]:
    check_key(key)
    start = begin(f, x, y, bounds, key=key, goal=Goal(criterion, target))
    direction = normal_like(start.keys, start.x)
    step_size = 0.01 * start.inputs.ranges if step_size is None else step_size
    checks.positive("step_size", step_size, batch=len(start.x), beside=start.x.shape)
    candidate = lambda k: start.clip(start.x + k * spread(step_size, start.x) * direction)
    held, tried = _first_hit(start, candidate, num_steps, held, until)
    found = finish(start, held.x_adv, norm="l2", steps=held.steps, grad_zero=start.none(), forward=tried)
    return found, held


@once
def fgsm_distance(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    step_size: ArrayLike | None = None,
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
        step_size: of epsilon, in raw pixels, as epsilon of `fgsm`; None: 1/255 of each pixel's range.
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
    return _fgsm(
        f, x, y, key, step_size=step_size, num_steps=num_steps, loss=loss,
        criterion=criterion, target=target, samples=samples, bounds=bounds,
    )[0]  # fmt: skip


def _fgsm(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None,
    held: Held | None = None,
    *,
    until: Array | None = None,
    step_size: ArrayLike | None,
    num_steps: int,
    loss: Function | None,
    criterion: Criterion | Function,
    target: ArrayLike | None,
    samples: int | None,
    bounds: Bounds | None,
) -> tuple[AttackResult, Held]:
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key if samples else None, goal=goal)
    gradient = start.gradient(start.x, loss)
    step_size = start.inputs.ranges / 255 if step_size is None else step_size
    checks.positive("step_size", step_size, batch=len(start.x), beside=start.x.shape)
    candidate = lambda k: start.clip(start.x + k * spread(step_size, start.x) * jnp.sign(gradient))
    held, tried = _first_hit(start, candidate, num_steps, held, until)
    is_flat = is_zero(gradient)
    found = finish(start, held.x_adv, norm="l2", steps=held.steps, grad_zero=is_flat, forward=tried, backward=1)
    return found, held


@once
def pgd_distance(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    epsilon: ArrayLike | None = None,
    step_size: ArrayLike | None = None,
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
        epsilon: radius of the L-infinity ball, as for `fgsm`; None: 32/255 of each pixel's range. It is 16/255 in the
            paper on CIFAR-10 and ImageNet.
        step_size: in raw pixels, as epsilon; None: 1/255 of each pixel's range.
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
    return _pgd(
        f, x, y, key, epsilon=epsilon, step_size=step_size, num_steps=num_steps, loss=loss,
        criterion=criterion, target=target, samples=samples, bounds=bounds,
    )[0]  # fmt: skip


def _pgd(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None,
    held: Held | None = None,
    *,
    until: Array | None = None,
    epsilon: ArrayLike | None,
    step_size: ArrayLike | None,
    num_steps: int,
    loss: Function | None,
    criterion: Criterion | Function,
    target: ArrayLike | None,
    samples: int | None,
    bounds: Bounds | None,
) -> tuple[AttackResult, Held]:
    goal = Goal(criterion, target, samples)
    sizes = {} if epsilon is None else {"epsilon": epsilon}
    start = begin(f, x, y, bounds, key=key if samples else None, per_entry=True, goal=goal, **sizes)
    epsilon = start.inputs.ranges * 32 / 255 if epsilon is None else epsilon
    step_size = start.inputs.ranges / 255 if step_size is None else step_size
    checks.positive("step_size", step_size, batch=len(start.x), beside=start.x.shape)
    num_steps = checks.count("num_steps", num_steps)
    image, objective = start.x, start.objective(loss)

    def climb(x_adv: Array) -> tuple[Array, Array]:
        z = start.f(x_adv)
        return jnp.sum(objective(z)), start.reached(z)

    def step(i: Array, held: Held) -> Held:
        gradient, fooled = jax.grad(climb, has_aux=True)(held.x_adv)
        steps, done = jnp.where(fooled & ~held.done, i, held.steps), held.done | fooled
        moved = held.x_adv + spread(step_size, image) * jnp.sign(gradient)
        moved = project(moved, image, epsilon, "linf", start.bounds)
        return held._replace(x_adv=choose(done, held.x_adv, moved), done=done, steps=steps)

    first = lambda: Held(start.zeros(), image, start.none(), start.full(num_steps, jnp.int32))
    held = go_on(start, step, first, held, num_steps, until)
    backward = jnp.minimum(held.steps + 1, num_steps)
    return finish(start, held.x_adv, norm="l2", steps=held.steps, loss=loss, backward=backward), held


def _first_hit(
    start: Start, candidate: Callable[[Array], Array], num_steps: int, held: Held | None, until: Array | None
) -> tuple[Held, Array]:
    """The first of candidate(1), ..., candidate(num_steps) that fools f, for every sample, and how many were tried."""
    num_steps = checks.count("num_steps", num_steps)

    def step(i: Array, held: Held) -> Held:
        k = i + 1
        tried = candidate(k.astype(start.x.dtype))
        new = start.reached(start.f(tried)) & ~held.done
        x_adv, steps = choose(new, tried, held.x_adv), jnp.where(new, k, held.steps)
        return held._replace(x_adv=x_adv, done=held.done | new, steps=steps)

    first = lambda: Held(start.zeros(), start.x, ~start.clean_correct, start.zeros())
    held = go_on(start, step, first, held, num_steps, until)
    return held, jnp.where(held.steps > 0, held.steps, num_steps)


in_parts(white_noise_distance, _white_noise, length="num_steps", stops=(40,), calls=1)
in_parts(fgsm_distance, _fgsm, length="num_steps", stops=(25,), calls=1)
in_parts(pgd_distance, _pgd, length="num_steps", stops=(30,), calls=3)
