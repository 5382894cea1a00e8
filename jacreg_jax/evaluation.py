"""What a model is worth: accuracy, Jacobian norms, robust accuracy and fooling distances, over padded equal batches.

Functions take ``f`` first: [B, ...] -> [B, C], parameters closed over; new parameters do not recompile. Random
functions fold the key with the index of the sample, so that no result depends on the batch size or on the padding. What
an attack refuses when it is called directly is refused here before anything runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks, deprecation, programs
from jacreg_jax.batches import Progress as Progress, map_batches as map_batches
from jacreg_jax.fooling import (
    fooling_curve as fooling_curve,
    median_distance as median_distance,
    robust_accuracy as robust_accuracy,
)
from jacreg_jax.jacobian import exact_frobenius_sq
from jacreg_jax.keys import sample_keys
from jacreg_jax.predictions import as_logits, predicted_class, with_enough_classes
from jacreg_jax.types import Array, Function


def accuracy(f: Function, x: Any, y: Any, *, batch_size: int = 500) -> float:
    """Share of samples with argmax f(x) = y; logits that are not finite are wrong.

    Args:
        f: [B, ...] -> logits [B, C], one logit [B] or [B, 1] (class 1 above 0), or [B, T, C] for labels [N, T].
        x: [N, ...].
        y: integer labels [N], each in [0, C).
        batch_size: B.

    Returns:
        A share from 0 to 1.

    Raises:
        TypeError: y is not integer.
        ValueError: y is not of the logits' leading shape, or holds other labels; see `map_batches`.

    Example:
        >>> accuracy(lambda x: x, np.eye(3), np.array([0, 1, 0]))
        0.6666666666666666
    """
    return float(map_batches(_correct, f, x, y, batch_size=batch_size).mean())


def jacobian_norms(
    f: Function, x: Any, *args: Any, frobenius_sq: Function = exact_frobenius_sq, batch_size: int = 100
) -> "np.ndarray":
    """||J||_F of every sample, [N].

    Args:
        f: [B, ...] -> [B, ...].
        x: [N, ...], in the space the Jacobian is wanted in.
        *args: none; (frobenius_sq, f, x) is the deprecated order.
        frobenius_sq: (f, x) -> [B].
        batch_size: B.

    Returns:
        [N], not squared.

    Raises:
        TypeError, ValueError: see `map_batches` and `exact_frobenius_sq`.

    Example:
        >>> jacobian_norms(lambda x: 3 * x, np.ones((2, 4), np.float32)).tolist()
        [6.0, 6.0]
    """
    if args:
        deprecation.warn("jacobian_norms(frobenius_sq, f, x)", "jacobian_norms(f, x, frobenius_sq=...)")
        frobenius_sq, f, x = f, x, *args
    norms: np.ndarray = np.sqrt(map_batches(frobenius_sq, f, x, batch_size=batch_size))
    return norms


def norm_summary(norms: Sequence[float] | ArrayLike) -> dict[str, float]:
    """Both readings of "the" ||J||_F, mean(||J||) and sqrt(mean ||J||^2): the paper does not say which.

    Args:
        norms: [N].

    Returns:
        {"mean": ..., "rms": ...}.

    Raises:
        ValueError: NaN or negative norms, or none.

    Example:
        >>> norm_summary(np.array([1.0, 7.0]))
        {'mean': 4.0, 'rms': 5.0}
    """
    found = checks.sample_values("norms", norms).astype(np.float64)
    return {"mean": float(np.mean(found)), "rms": float(np.sqrt(np.mean(np.square(found))))}


def run_attack(
    attack: Function,
    f: Function,
    x: Any,
    y: Any,
    key: Array,
    *extra: Any,
    batch_size: int = 500,
    progress: Progress | None = None,
    **swept: Any,
) -> Any:
    """attack(f, x, y, keys, **swept) over N samples in padded batches, compiled once for all swept values.

    Args:
        attack: (f, x [B, ...], y [B], keys [B], **swept [B]) -> pytree of [B, ...] such as AttackResult; an attack of
            `attacks`, or a `functools.partial` of one with its fixed options. Define it once: another function object
            is another compilation.
        f: function under attack, raw pixels -> logits.
        x: raw pixels [N, ...], or a pytree.
        y: integer labels [N], or what the criterion of the attack looks at; None where it looks at none.
        key: typed key; sample i gets fold_in(key, i).
        *extra: deprecated; the same as swept, by position.
        batch_size: B.
        progress: wraps the batches, such as `tqdm.tqdm`.
        **swept: options of the attack that change from call to call: numbers or arrays [N, ...] or [1, ...], target=3.

    Returns:
        What the attack returns, with numpy leaves [N, ...].

    Raises:
        TypeError, ValueError: see `map_batches`; what the attack raises for such x, y, key and swept values.

    Example:
        >>> from jacreg_jax import attacks
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = np.array([[0.7], [0.9]], np.float32), np.array([0, 0])
        >>> run_attack(attacks.fgsm, f, x, y, jax.random.key(0), epsilon=0.3).success.tolist()
        [True, False]
    """
    checks.function("attack", attack, None)
    x, y, keys = _data(x, y, key)
    values, swept = _swept(extra, swept, len(keys))
    return map_batches(attack, f, x, y, keys, *values, batch_size=batch_size, progress=progress, **swept)


def worst_case(
    attacks: dict[str, Function],
    f: Function,
    x: Any,
    y: Any,
    key: Array,
    *extra: Any,
    batch_size: int = 500,
    progress: Progress | None = None,
    **swept: Any,
) -> tuple[Any, dict[str, float]]:
    """The point-wise worst case of several attacks over N samples: each gets only what is still robust.

    Args:
        attacks: by name, in order, each as for `run_attack`, such as `attacks.standard_ensemble()`. One with an
            attribute least_classes is left out, with a UserWarning, where f gives fewer.
        f: function under attack, raw pixels -> logits.
        x: raw pixels [N, ...].
        y: integer labels [N].
        key: typed key; attack j on sample i gets fold_in(fold_in(key, i), j).
        *extra: deprecated; the same as swept, by position.
        batch_size: B.
        progress: wraps the batches of each attack.
        **swept: as for `run_attack`.

    Returns:
        (result, robust): the result of the first attack that fools each sample, leaves [N, ...], and the share of
        samples still robust after each attack, by name; those that were left out are not in it.

    Raises:
        TypeError, ValueError: as `run_attack`; no attacks, or none for so few classes.

    Example:
        >>> from jacreg_jax import attacks
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, y = np.array([[0.7], [0.9]], np.float32), np.array([0, 0])
        >>> worst_case({"fgsm": attacks.fgsm}, f, x, y, jax.random.key(0), epsilon=0.3)[1]
        {'fgsm': 0.5}
    """
    x, y, keys = _data(x, y, key)
    n = len(keys)
    values, swept = _swept(extra, swept, n)
    attacks = _that_can_run(attacks, f, x)
    left, result, robust = np.arange(n), None, {}
    for j, (name, attack) in enumerate(attacks.items()):
        if len(left):
            fold = jax.vmap(jax.random.fold_in, (0, None))(keys, j)
            rows, sizes = jax.tree.map(lambda a: a[left], ([x, y, fold, *values], swept))
            new = map_batches(attack, f, *rows, batch_size=batch_size, progress=progress, **sizes)
            result = _with_rows(result, new, left)
            left = left[~new.success]
        robust[name] = len(left) / n
    return result, robust


def report(f: Function, x: Any, y: Any, key: Array, **options: Any) -> Any:
    """All that tells how robust a model is, and whether to believe it, in one call: see `reporting.report`.

    Args:
        f: batched function, raw inputs [B, ...] -> what the criterion looks at, such as logits.
        x: raw inputs [N, ...].
        y: integer labels [N], or what the criterion compares with.
        key: typed key.
        **options: epsilon, by norm, and the others of `reporting.report`.

    Returns:
        `reporting.Report`.

    Raises:
        TypeError, ValueError: as `reporting.report`.

    Example:
        >>> from jacreg_jax import reporting
        >>> f, x, y = lambda x: 4 * x, np.array([[0.1, 0.2], [0.7, 0.6]], np.float32), np.array([1, 0])
        >>> options = {"epsilon": {"linf": 0.01}, "budget": reporting.quick, "progress": False}
        >>> report(f, x, y, jax.random.key(0), **options).sections["clean"]["accuracy"]
        1.0
    """
    from jacreg_jax import reporting

    return reporting.report(f, x, y, key, **options)


def _with_rows(result: Any, new: Any, rows: Any) -> Any:
    """The result with these rows new; passes are counted on, trajectories of different attacks are left out."""
    new = new._replace(trajectory=None) if hasattr(new, "trajectory") else new
    if result is None:
        return jax.tree.map(np.array, new)
    counted = [getattr(result, name, None) for name in ("forward", "backward")]
    for whole, part in zip(jax.tree.leaves(result), jax.tree.leaves(new), strict=True):
        whole[rows] = whole[rows] + part if any(whole is c for c in counted) else part
    return result


def _that_can_run(attacks: Any, f: Function, x: Any) -> dict[str, Function]:
    """The attacks for as many classes as f has; of the others, a warning."""
    if not isinstance(attacks, Mapping):
        raise TypeError(f"attacks must be a dict of attacks by name, got {type(attacks).__name__}")
    for name, attack in attacks.items():
        checks.function(f"attacks[{name!r}]", attack, None)
    checks.function("f", f)
    is_choosy = any(hasattr(attack, "least_classes") for attack in attacks.values())
    row = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    z = jax.eval_shape(lambda x: as_logits(f(x)), jax.tree.map(row, x)) if is_choosy else None
    classes = checks.class_logits(z, 1) if is_choosy else 0
    names = with_enough_classes(attacks, classes if getattr(z, "ndim", 2) == 2 else 0)
    if not names:
        raise ValueError(f"attacks must hold at least one that can run on f, got {sorted(attacks)}")
    return {name: attacks[name] for name in names}


def _correct(f: Function, x: Array, y: Array) -> Array:
    logits = as_logits(f(x))
    return predicted_class(logits) == checks.labels(y, logits.shape[:-1], logits.shape[-1]).astype(jnp.int32)


def _data(x: Any, y: Any, key: Any) -> tuple[Any, Any, Array]:
    """Arrays x and y, and a key for each sample."""
    checks.on_host(x=x, y=y, key=key)
    n = checks.num_samples("x", x)
    y = np.full(n, -1, np.int32) if y is None else y  # for criteria that do not look at it
    lengths = [n, checks.num_samples("y", y)]
    if len(set(lengths)) > 1 or not n:
        raise ValueError(f"x and y must hold the same number of samples, at least one; got {lengths}")
    return x, y, sample_keys(key, n)


def _swept(extra: tuple[Any, ...], swept: dict[str, Any], n: int) -> tuple[list[Any], dict[str, Any]]:
    """Numbers as float32 [N], one class as int32 [N], arrays [N, ...] as they are, [1, ...] for every sample."""
    if extra:
        deprecation.warn("passing swept values by position", "their names, such as epsilon=0.1")

    def rows(name: str, value: Any) -> Any:
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if whole and name in programs.CLASSES:
            return np.full(n, value, np.int32)
        if whole and name not in programs.SWEPT:
            raise TypeError(
                f"{name} must be a real number to be swept, got {value}; give a fixed option by functools.partial, as "
                f"functools.partial(attack, {name}={value})"
            )
        array = value if hasattr(value, "shape") else np.asarray(value)
        if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
            raise TypeError(f"{name} must be a number or numbers [N] to be swept, got {value!r}; see functools.partial")
        if array.ndim == 0:
            return np.broadcast_to(np.asarray(array, np.float32), n)
        if array.ndim > 1 and len(array) == 1:
            return np.broadcast_to(array, (n, *array.shape[1:]))
        if len(array) != n:
            raise ValueError(
                f"{name} must be a number or hold one for each of the {n} samples; got shape {array.shape}"
            )
        return array

    return [rows(f"value {i}", v) for i, v in enumerate(extra)], {name: rows(name, v) for name, v in swept.items()}
