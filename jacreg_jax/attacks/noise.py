"""White noise, Eq. 9 of the paper."""

from jax.typing import ArrayLike

from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.result import AttackResult, spread
from jacreg_jax.attacks.start import Goal, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.explicit_axes import entry
from jacreg_jax.keys import check_key, normal_like
from jacreg_jax.types import Array, Function, PyTree


@entry
def white_noise(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    sigma: ArrayLike,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """X + N(0, sigma^2) in every pixel, clipped to bounds; one draw for each sample.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        sigma: standard deviation in raw pixels (the paper's text says variance); as epsilon of `fgsm`.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

    Returns:
        AttackResult with L2 distances. No gradient is taken: grad_zero is False, steps is 0.

    Raises:
        TypeError, ValueError: see `start.begin`; key is not a typed key.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.array([[0.7], [0.9]]), jnp.array([0, 0])
        >>> white_noise(f, x, y, jax.random.key(0), sigma=1e-3).success.tolist()
        [False, False]

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Eq. 9.
    """
    check_key(key)
    start = begin(f, x, y, bounds, key=key, goal=Goal(criterion, target), per_entry=True, sigma=sigma)
    x_adv = start.clip(start.x + spread(sigma, start.x) * normal_like(start.keys, start.x))
    return finish(start, x_adv, norm="l2", steps=start.none(), grad_zero=start.none())
