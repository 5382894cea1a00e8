"""The standard ensemble: APGD on cross-entropy, targeted APGD, targeted FAB and Square, point-wise worst case."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.apgd import apgd, apgd_targeted
from jacreg_jax.attacks.fab import fab
from jacreg_jax.attacks.result import AttackResult, Norm, sample_keys, spread
from jacreg_jax.attacks.square import square


def standard_ensemble(*, norm: Norm = "linf", num_queries: int = 5000, bounds=(0.0, 1.0)) -> dict[str, Callable]:
    """The four attacks by name, each (f, x, y, key, epsilon) -> AttackResult, for `evaluation.worst_case`.

    FAB finds distances; what lies beyond epsilon counts as not fooled.
    """
    options = {"norm": norm, "bounds": bounds}
    return {
        "apgd-ce": partial(_at, apgd, options),
        "apgd-t": partial(_at, apgd_targeted, options),
        "fab-t": partial(_fab_within, options),
        "square": partial(_at, square, options | {"num_queries": num_queries}),
    }


def auto_attack(
    f: Callable,
    x,
    y,
    key: jax.Array,
    *,
    epsilon,
    norm: Norm = "linf",
    num_queries: int = 5000,
    bounds=(0.0, 1.0),
) -> AttackResult:
    """The standard ensemble in a ball of radius epsilon: a sample is robust if none of the four attacks fools it.

    One compiled function; each attack ends early where nothing is left to do. For many samples
    `evaluation.worst_case(standard_ensemble(...), ...)` is faster: it hands on to the next attack only what is left.

    Args:
        f: batched function, raw pixels [B, H, W, C] -> logits [B, C], at least 4 classes.
        x: raw pixels [B, H, W, C] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf" or "l2".
        num_queries: of Square.
        bounds: (low, high) of a pixel.

    Returns:
        AttackResult of the first attack that fools each sample, distances in `norm`.

    Raises:
        TypeError, ValueError: as the single attacks.

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    keys = sample_keys(key, len(x))
    result = None
    for i, attack in enumerate(standard_ensemble(norm=norm, num_queries=num_queries, bounds=bounds).values()):
        new = attack(f, x, y, jax.vmap(jax.random.fold_in, (0, None))(keys, i), epsilon)
        result = new if result is None else _first(result, new)
    return result


def _at(attack, options, f, x, y, key, epsilon):
    return attack(f, x, y, key, epsilon=epsilon, **options)


def _fab_within(options, f, x, y, key, epsilon):
    result = fab(f, x, y, key, **options)
    inside = result.success & (result.distance <= jnp.asarray(epsilon))
    x_adv = jnp.where(spread(inside, x) > 0, result.x_adv, x)
    return result._replace(x_adv=x_adv, success=inside, distance=jnp.where(inside, result.distance, jnp.inf))


def _first(old: AttackResult, new: AttackResult) -> AttackResult:
    return jax.tree.map(lambda o, n: jnp.where(spread(old.success, o.astype(jnp.float32)) > 0, o, n), old, new)
