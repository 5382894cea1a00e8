"""The standard ensemble: APGD on cross-entropy, targeted APGD, targeted FAB and Square, point-wise worst case."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.apgd import apgd
from jacreg_jax.attacks.fab import fab
from jacreg_jax.attacks.result import AttackResult, Norm, choose
from jacreg_jax.attacks.square import square
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import sample_keys
from jacreg_jax.predictions import with_enough_classes
from jacreg_jax.types import Array, Function


def standard_ensemble(
    *, norm: Norm = "linf", num_queries: int = 5000, bounds: Bounds = (0.0, 1.0)
) -> dict[str, Function]:
    """The four attacks by name, each (f, x, y, key, epsilon) -> AttackResult, for `evaluation.worst_case`.

    FAB finds distances; what lies beyond epsilon counts as not fooled. The targeted ratio of apgd-t needs 4 classes:
    with 2 or 3 `evaluation.worst_case` and `auto_attack` leave it out and say so, with a UserWarning; called by itself
    it raises.

    Args:
        norm: "linf" or "l2".
        num_queries: of Square.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        {"apgd-ce": ..., "apgd-t": ..., "fab-t": ..., "square": ...}.

    Raises:
        ValueError: unknown norm, or num_queries below 1.

    Example:
        >>> list(standard_ensemble(norm="l2"))
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    checks.one_of("norm", norm, ("linf", "l2"))
    checks.count("num_queries", num_queries)
    options: dict[str, Any] = {"norm": norm, "bounds": bounds}
    targeted: Any = partial(_at, apgd, options | {"loss": "targeted"})
    targeted.least_classes = 4
    return {
        "apgd-ce": partial(_at, apgd, options),
        "apgd-t": targeted,
        "fab-t": partial(_fab_within, options),
        "square": partial(_at, square, options | {"num_queries": num_queries}),
    }


@checks.pure
def auto_attack(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    num_queries: int = 5000,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """The standard ensemble in a ball of radius epsilon: a sample is robust if none of its attacks fools it.

    With 2 or 3 classes there are three of them, and a UserWarning says so; with 4 or more there are four.

    One compiled function; each attack ends early where nothing is left to do. For many samples
    `evaluation.worst_case(standard_ensemble(...), ...)` is faster: it hands on to the next attack only what is left.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...] within bounds; images [B, H, W, C] are what Square is made for.
        y: integer labels [B].
        key: typed key, or B of them.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf" or "l2".
        num_queries: of Square.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult of the first attack that fools each sample, distances in `norm`.

    Raises:
        TypeError, ValueError: as the single attacks.

    Example:
        >>> f, x = lambda x: 4 * x, jnp.array([[0.6, 0.5, 0.1, 0.1]])
        >>> auto_attack(f, x, jnp.array([0]), jax.random.key(0), epsilon=0.1, num_queries=10).success
        Array([ True], dtype=bool)

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    checks.function("f", f)
    image = checks.inputs(x)
    keys = sample_keys(key, len(image))
    result: AttackResult | None = None
    classes = checks.num_classes(jax.eval_shape(f, image), len(image))
    ensemble = standard_ensemble(norm=norm, num_queries=num_queries, bounds=bounds)
    can_run = with_enough_classes(ensemble, classes)
    for i, (name, attack) in enumerate(ensemble.items()):
        if name not in can_run:
            continue
        new: AttackResult = attack(f, image, y, jax.vmap(jax.random.fold_in, (0, None))(keys, i), epsilon)
        result = new if result is None else _first(result, new)
    assert result is not None
    return result


def _at(
    attack: Function, options: dict[str, Any], f: Function, x: Array, y: Array, key: Array, epsilon: ArrayLike
) -> AttackResult:
    result: AttackResult = attack(f, x, y, key, epsilon=epsilon, **options)
    return result


def _fab_within(
    options: dict[str, Any], f: Function, x: Array, y: Array, key: Array, epsilon: ArrayLike
) -> AttackResult:
    checks.non_negative("epsilon", epsilon, batch=len(x))
    result = fab(f, x, y, key, **options)
    inside = result.success & (result.distance <= jnp.asarray(epsilon, result.distance.dtype))
    reached = jnp.where(inside, result.distance, jnp.inf)
    return result._replace(x_adv=choose(inside, result.x_adv, x), success=inside, distance=reached)


def _first(old: AttackResult, new: AttackResult) -> AttackResult:
    """The old result where it fools, else the new one."""

    def keep(old_leaf: Array, new_leaf: Array) -> Array:
        rows = old.success.reshape(-1, *(1,) * (old_leaf.ndim - 1))
        return jnp.where(rows, old_leaf, new_leaf)

    return AttackResult(*map(keep, old, new))._replace(grad_zero=old.grad_zero | new.grad_zero)
