"""Attacks over N samples: batches of one size, samples that are done leave, and the worst case of several attacks."""

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax import checks, deprecation, programs
from jacreg_jax.arithmetic import operations
from jacreg_jax.batches import Progress, map_batches
from jacreg_jax.explicit_axes import automatic
from jacreg_jax.keys import sample_keys
from jacreg_jax.predictions import as_logits, with_enough_classes
from jacreg_jax.types import Array, Function

LONG = {"cpu": 1e12, "gpu": 1e14}  # operations, from which on it pays to compile the search anew for fewer samples
LEAST = 16  # samples of the smallest batch


def run_attack(
    attack: Function,
    f: Function,
    x: Any,
    y: Any,
    key: Array,
    *extra: Any,
    batch_size: int = 500,
    whole_batches: bool = False,
    progress: Progress | None = None,
    **swept: Any,
) -> Any:
    """attack(f, x, y, keys, **swept) over N samples in padded batches, compiled once for all swept values.

    Samples that are fooled leave, where there is much to do: Square stops after 100 and 1,000 queries, a scan for the
    first fooling image after 30 (`pgd_distance`), 25 (`fgsm_distance`) or 40 steps (`white_noise_distance`). They go on
    with those that are left, in batches of a smaller power of two. Each sample's result is that of one run.

    Args:
        attack: (f, x [B, ...], y [B], keys [B], **swept [B]) -> pytree of [B, ...] such as AttackResult; an attack of
            `attacks`, or a `functools.partial` of one with its fixed options. Define it once: another function object
            is another compilation.
        f: function under attack, raw pixels -> logits.
        x: raw pixels [N, ...], or a pytree.
        y: integer labels [N], or what the criterion of the attack looks at; None where it looks at none.
        key: typed key; sample i gets fold_in(key, i).
        *extra: deprecated; the same as swept, by position.
        batch_size: B at most.
        whole_batches: run B samples at a time however few there are: one compiled program for every N. Else fewer
            samples are padded to a power of two, which compiles anew for each of them.
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
    options: dict[str, Any] = {"batch_size": batch_size, "whole_batches": whole_batches, "progress": progress}
    return _run(attack, f, [x, y, keys, *values], swept, options)


@automatic
def worst_case(
    attacks: dict[str, Function],
    f: Function,
    x: Any,
    y: Any,
    key: Array,
    *extra: Any,
    batch_size: int = 500,
    whole_batches: bool = False,
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
        batch_size: B at most; what an attack leaves goes on in batches of the next power of two, where that is less.
        whole_batches: as for `run_attack`: always B, so that every attack compiles once for every N.
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
    attacks = _that_can_run(attacks, f, x, keys)
    options: dict[str, Any] = {"batch_size": batch_size, "whole_batches": whole_batches, "progress": progress}
    left, result, robust = np.arange(n), None, {}
    for j, (name, attack) in enumerate(attacks.items()):
        if len(left):
            fold = jax.vmap(jax.random.fold_in, (0, None))(keys, j)
            rows, sizes = jax.tree.map(lambda a: a[left], ([x, y, fold, *values], swept))
            new = _run(attack, f, rows, sizes, options)
            result = _with_rows(result, new, left)
            left = left[~new.success]
        robust[name] = len(left) / n
    return result, robust


def _run(attack: Function, f: Function, rows: list[Any], sizes: dict[str, Any], options: dict[str, Any]) -> Any:
    """The attack on all rows, in one go or in parts."""
    n, (search, parts) = len(rows[2]), _in_parts(attack)
    if search is None or options["whole_batches"] or len(rows) > 3 or not _is_long(parts, f, *rows):
        return map_batches(attack, f, *rows, **options, **sizes)
    left, result, held = np.arange(n), None, cast(Any, None)
    for until in parts.ends:
        end = np.full(len(left), until, np.int32)
        mine, named = jax.tree.map(lambda a: a[left], (rows, sizes))
        more = () if held is None else (jax.tree.map(lambda a: a[~held.done], held),)
        new, held = map_batches(search, f, *mine, *more, until=end, least=LEAST, **options, **named)
        result = _with_rows(result, new, left, counted=())
        left = left[~held.done]
        if not len(left):
            break
    return result


@functools.lru_cache(maxsize=256)
def _in_parts(attack: Function) -> tuple[Function | None, Any]:
    """The attack as a search that stops and goes on, and its `Parts`; None for those that cannot."""
    options: dict[str, Any] = {}
    inner: Any = attack
    while isinstance(inner, functools.partial) and not inner.args and not hasattr(inner, "in_parts"):
        inner, options = inner.func, inner.keywords | options
    if not hasattr(inner, "in_parts"):
        return None, None
    parts = inner.in_parts.given(options)
    return (functools.partial(parts.search, **parts.options), parts) if parts.ends else (None, None)


def _is_long(parts: Any, f: Function, *rows: Any) -> bool:
    """Whether a search in which no sample is ever done is so much arithmetic that it pays to compile it for fewer."""
    first = jax.tree.map(lambda a: a[:1], rows)
    try:
        of_one = operations(f, *programs.example(first, parts.options)) * (parts.options.get("samples") or 1)
    except Exception:  # the real call says what is wrong
        return False
    least: float = LONG.get(jax.default_backend(), max(LONG.values()))
    return bool(len(rows[2]) * parts.ends[-1] * parts.calls * of_one >= least)


def _with_rows(result: Any, new: Any, rows: Any, counted: tuple[str, ...] = ("forward", "backward")) -> Any:
    """The result with these rows new; passes are counted on, trajectories of different attacks are left out."""
    new = new._replace(trajectory=None) if hasattr(new, "trajectory") else new
    if result is None:
        return jax.tree.map(np.array, new)
    sums = [getattr(result, name, None) for name in counted]
    for whole, part in zip(jax.tree.leaves(result), jax.tree.leaves(new), strict=True):
        whole[rows] = whole[rows] + part if any(whole is s for s in sums) else part
    return result


def _that_can_run(attacks: Any, f: Function, x: Any, keys: Array) -> dict[str, Function]:
    """The attacks for as many classes as f has; of the others, a warning."""
    if not isinstance(attacks, Mapping):
        raise TypeError(f"attacks must be a dict of attacks by name, got {type(attacks).__name__}")
    for name, attack in attacks.items():
        checks.function(f"attacks[{name!r}]", attack, None)
    draws = [getattr(attack, "keywords", {}).get("samples") is not None for attack in attacks.values()]
    args = (x, keys) if any(draws) else (x,)
    checks.function("f", f, ("x", "key")[: len(args)])
    is_choosy = any(hasattr(attack, "least_classes") for attack in attacks.values())
    row = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    first = [jax.tree.map(row, x), jax.eval_shape(lambda k: k[0], keys)][: len(args)]
    z = jax.eval_shape(lambda *args: as_logits(f(*args)), *first) if is_choosy else None
    classes = checks.class_logits(z, 1) if is_choosy else 0
    names = with_enough_classes(attacks, classes if getattr(z, "ndim", 2) == 2 else 0)
    if not names:
        raise ValueError(f"attacks must hold at least one that can run on f, got {sorted(attacks)}")
    return {name: attacks[name] for name in names}


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
    """Numbers as JAX's floats [N], one class as int32 [N], arrays [N, ...] as they are, [1, ...] for every sample."""
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
            is_class = name in programs.CLASSES and jnp.issubdtype(array.dtype, jnp.integer)
            return np.broadcast_to(np.asarray(array, np.int32 if is_class else jax.dtypes.canonicalize_dtype(float)), n)
        if array.ndim > 1 and len(array) == 1:
            return np.broadcast_to(array, (n, *array.shape[1:]))
        if len(array) != n:
            raise ValueError(
                f"{name} must be a number or hold one for each of the {n} samples; got shape {array.shape}"
            )
        return array

    return [rows(f"value {i}", v) for i, v in enumerate(extra)], {name: rows(name, v) for name, v in swept.items()}
