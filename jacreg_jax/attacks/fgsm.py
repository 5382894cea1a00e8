"""Fast gradient sign method, Eq. 10 of the paper."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.gradient import is_zero
from jacreg_jax.attacks.result import AttackResult, spread
from jacreg_jax.attacks.start import Goal, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.explicit_axes import entry
from jacreg_jax.types import Array, Function, PyTree


@entry
def fgsm(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array | None = None,
    *,
    epsilon: ArrayLike,
    loss: Function | None = None,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """clip(x + epsilon * sign(d loss / d x)): one step of the gradient's sign.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them; for `samples` alone.
        epsilon: size of the step in raw pixels: scalar, [B], or with all axes of x, such as [1, F] for every feature.
        loss: per-sample loss of (logits, y); None: the criterion's own, of classes `losses.log_odds`.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

    Returns:
        AttackResult with L-infinity distances.

    Raises:
        TypeError, ValueError: see `start.begin`.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> fgsm(f, x, y, epsilon=0.3).success.tolist()
        [True, False]

    Reference: Goodfellow, Shlens, Szegedy (2014), https://arxiv.org/abs/1412.6572.
    """
    goal = Goal(criterion, target, samples)
    start = begin(f, x, y, bounds, key=key if samples else None, norm="linf", epsilon=epsilon, goal=goal)
    gradient = start.gradient(start.x, loss)
    x_adv = start.clip(start.x + spread(epsilon, start.x) * jnp.sign(gradient))
    steps = start.full(1, jnp.int32)
    return finish(start, x_adv, norm="linf", steps=steps, within=epsilon, grad_zero=is_zero(gradient), backward=1)
