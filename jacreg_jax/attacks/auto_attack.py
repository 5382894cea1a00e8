"""The standard ensemble: APGD on cross-entropy, targeted APGD, targeted FAB and Square, point-wise worst case."""

from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.apgd import apgd
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.fab import fab
from jacreg_jax.attacks.inputs import Inputs, batch_size, inputs
from jacreg_jax.attacks.result import NEVER, NORMS, AttackResult, Norm, choose, distance, first_of, spread
from jacreg_jax.attacks.square import square
from jacreg_jax.checks import Bounds
from jacreg_jax.explicit_axes import entry
from jacreg_jax.keys import sample_keys
from jacreg_jax.predictions import with_enough_classes
from jacreg_jax.signatures import Named
from jacreg_jax.types import Array, Function, PyTree


def standard_ensemble(
    *,
    norm: Norm = "linf",
    num_queries: int = 5000,
    criterion: Criterion | Function = misclassified,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> dict[str, Function]:
    """The four attacks by name, each (f, x, y, key, epsilon, target) -> AttackResult, for `evaluation.worst_case`.

    FAB finds distances; what lies beyond epsilon counts as not fooled. The targeted ratio of apgd-t needs 4 classes:
    with 2 or 3 `evaluation.worst_case` and `auto_attack` leave it out and say so, with a UserWarning; called by itself
    it raises. It is not there for a criterion other than of classes. In L1 apgd-ce restarts five times, and apgd-t
    tries five classes.

    Args:
        norm: "linf", "l2" or "l1".
        num_queries: of Square.
        criterion: what counts as a success, see `criteria`.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

    Returns:
        {"apgd-ce": ..., "apgd-t": ..., "fab-t": ..., "square": ...}.

    Raises:
        ValueError: unknown norm; num_queries or samples below 1.

    Example:
        >>> list(standard_ensemble(norm="l2"))
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']

    Reference: Croce, Hein (2020), https://arxiv.org/abs/2003.01690.
    """
    checks.one_of("norm", norm, NORMS)
    checks.count("num_queries", num_queries)
    checks.optional_count("samples", samples)
    try:
        return dict(_known(norm, num_queries, criterion, samples, Named(bounds)))
    except TypeError:  # a criterion without a hash, bounds that are traced
        return _ensemble(norm, num_queries, criterion, samples, bounds)


@lru_cache
def _known(norm: Norm, num_queries: int, criterion: Any, samples: int | None, bounds: Named) -> dict[str, Function]:
    """The same functions for equal arguments, so that what was compiled for them serves again."""
    return _ensemble(norm, num_queries, criterion, samples, bounds.value)


def _ensemble(
    norm: Norm, num_queries: int, criterion: Any, samples: int | None, bounds: Bounds | None
) -> dict[str, Function]:
    options: dict[str, Any] = {"norm": norm, "bounds": bounds, "criterion": criterion}
    draws: dict[str, Any] = {} if samples is None else {"samples": samples}
    restarts, classes = ({"num_restarts": 5}, {"num_targets": 5}) if norm == "l1" else ({}, {})
    of_square = options | draws | {"num_queries": num_queries}
    targeted: Any = partial(_at, apgd, options | {"loss": "targeted"} | classes, **draws)
    targeted.least_classes = 4
    queries: Any = partial(_at, square, options | {"num_queries": num_queries}, **draws)
    queries.in_parts = cast(Any, square).in_parts.given(of_square)
    ensemble: dict[str, Function] = {
        "apgd-ce": partial(_at, apgd, options | restarts, **draws),
        "apgd-t": targeted,
        "fab-t": partial(_fab_within, options, **draws),
        "square": queries,
    }
    return ensemble if criterion == misclassified else {k: v for k, v in ensemble.items() if k != "apgd-t"}


@entry
def auto_attack(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    num_queries: int = 5000,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """The standard ensemble in a ball of radius epsilon: a sample is robust if none of its attacks fools it.

    With 2 or 3 classes there are three of them, and a UserWarning says so; with 4 or more there are four.

    One compiled function; each attack ends early where nothing is left to do. For many samples
    `evaluation.worst_case(standard_ensemble(...), ...)` is faster: it hands on to the next attack only what is left.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes.
        x: raw pixels [B, ...] within bounds; images [B, H, W, C] are what Square is made for.
        y: integer labels [B].
        key: typed key, or B of them.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf", "l2" or "l1".
        num_queries: of Square.
        criterion: what counts as a success, see `criteria`; other than of classes there are three attacks.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that losses and gradients are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    checks.function("f", f, ("x",) if samples is None else ("x", "key"))
    size = batch_size(x)
    keys = sample_keys(key, size)
    result: AttackResult | None = None
    ensemble = standard_ensemble(
        norm=norm, num_queries=num_queries, criterion=criterion, samples=samples, bounds=bounds
    )
    one = f if samples is None else lambda x: f(x, keys[0])
    can_run = with_enough_classes(ensemble, _classes(one, x, size)) if criterion == misclassified else list(ensemble)
    aim = {} if target is None else {"target": target}
    for i, (name, attack) in enumerate(ensemble.items()):
        if name not in can_run:
            continue
        new = attack(f, x, y, jax.vmap(jax.random.fold_in, (0, None))(keys, i), epsilon, **aim)
        result = new if result is None else first_of(result, new)
    assert result is not None
    return result


def _classes(f: Function, x: Any, batch: int) -> int:
    """C, or 0 of positions."""
    z = jax.eval_shape(lambda x: misclassified.outputs(f(x), batch), x)
    return int(z.shape[-1]) if z.ndim == 2 else 0


def _at(
    attack: Function,
    options: dict[str, Any],
    f: Function,
    x: Array,
    y: Array,
    key: Array,
    epsilon: ArrayLike,
    target: ArrayLike | None = None,
    samples: int | None = None,
) -> AttackResult:
    result: AttackResult = attack(f, x, y, key, epsilon=epsilon, target=target, samples=samples, **options)
    return result


def _fab_within(
    options: dict[str, Any],
    f: Function,
    x: Array,
    y: Array,
    key: Array,
    epsilon: ArrayLike,
    target: ArrayLike | None = None,
    samples: int | None = None,
) -> AttackResult:
    """FAB with what lies beyond epsilon not fooled; with an epsilon of every entry, distances in units of it."""
    given, bounds = inputs(x, options["bounds"]), options["bounds"]
    image = given.x
    beside = image.shape if options["norm"] == "linf" else ()
    checks.non_negative("epsilon", epsilon, batch=len(image), beside=beside)
    is_scaled = jnp.ndim(epsilon) > 1 and hasattr(x, "shape") and samples is None  # else f sees rows of its own
    units = _Units(spread(epsilon, image), given) if is_scaled else None
    g, start, bounds = (f, x, bounds) if units is None else (units.of(f), units.there(image), units.bounds)
    result = fab(g, start, y, key, target=target, samples=samples, **options | {"bounds": bounds})
    if units is not None:
        result = result._replace(x_adv=units.back(result.x_adv))
    found = given.pack(result.x_adv)
    reached = distance(found - image, options["norm"])
    if jnp.ndim(epsilon) > 1:
        near = jnp.all((jnp.abs(found - image) <= spread(epsilon, image)).reshape(len(image), -1), axis=1)
    else:
        near = reached <= jnp.asarray(epsilon, image.dtype)
    inside = result.success & near
    x_adv = jax.tree.map(partial(choose, inside), result.x_adv, x)
    outcome = jnp.where(result.clean_correct & ~inside, NEVER, jnp.asarray(result.outcome))
    reached = jnp.where(inside, jnp.where(result.clean_correct, reached, 0), jnp.inf)
    return result._replace(x_adv=x_adv, success=inside, distance=reached, outcome=outcome)


class _Units:
    """Inputs in units of epsilon, entry by entry, so that the ball is a box of one radius; 0 holds an entry still."""

    def __init__(self, epsilon: Array, given: Inputs) -> None:
        self.moves, self.given = epsilon > 0, given
        self.size = jnp.where(self.moves, epsilon, 1)
        low, high = given.bounds
        self.bounds = low / self.size, high / self.size

    def there(self, image: Array) -> Array:
        return image / self.size

    def back(self, u: Array) -> Any:
        return self.given.unpack(jnp.where(self.moves, jnp.clip(u * self.size, *self.given.bounds), self.given.x))

    def of(self, f: Function) -> Function:
        return lambda u: f(self.back(u))
