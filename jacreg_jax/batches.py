"""A function over N samples in padded batches of one size."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import jax
import numpy as np

from jacreg_jax import checks, programs, signatures
from jacreg_jax.explicit_axes import entry
from jacreg_jax.types import Function, PyTree

Progress: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]


def shown(batches: Iterable[Any], progress: Progress | None) -> Iterable[Any]:
    """The batches, behind the bar that progress puts around them.

    Raises:
        TypeError: progress cannot be called.
    """
    if not progress:
        return batches
    checks.function("progress", progress, ("batches",), ", such as tqdm.tqdm")
    return progress(batches)


@entry
def map_batches(
    fn: Function,
    f: Function,
    *arrays: Any,
    batch_size: int = 500,
    whole_batches: bool = False,
    least: int = 1,
    progress: Progress | None = None,
    **named: Any,
) -> PyTree:
    """fn(f, *rows, **named rows) over N samples in padded batches of one size, compiled once; the padding is dropped.

    Fewer samples than batch_size are padded to a power of two, so that another N compiles seldom; or to batch_size.

    Args:
        fn: (f, *rows [B, ...]) -> pytree of [B, ...], each row from its own row alone. Define it once: another
            function object is another compilation.
        f: function under study, of the first array. New values of the arrays that it closes over do not compile again.
        *arrays: [N, ...] each, or pytrees of them; typed keys are welcome.
        batch_size: B at most.
        whole_batches: always B, so that every N runs the same compiled program.
        least: the smallest power of two that fewer samples are padded to, where batch_size is not less.
        progress: wraps the batches, such as `tqdm.tqdm`.
        **named: more arrays [N, ...], given by name.

    Returns:
        Pytree of numpy arrays [N, ...].

    Raises:
        TypeError: what has no length, or is traced; fn or f cannot be called.
        ValueError: no samples, arrays of different lengths, batch_size or least below 1; what fn raises for them.

    Example:
        >>> map_batches(lambda f, x: f(x), lambda x: x + 1, np.arange(5), batch_size=2).tolist()
        [1, 2, 3, 4, 5]
    """
    checks.function("fn", fn, None)
    draws = getattr(fn, "keywords", {}).get("samples") is not None
    checks.function("f", f, ("x", "key") if draws else ("x",))
    every = dict(zip((*programs.ROWS, *map(str, range(len(arrays)))), arrays, strict=False)) | named
    lengths = [checks.num_samples(name, a) for name, a in every.items()]
    checks.on_host(**every)
    if len(set(lengths)) != 1 or lengths[0] == 0:
        *first, last = every
        names = f"{', '.join(first)} and {last}" if first else last
        raise ValueError(f"{names} must hold the same number of samples, at least one; got {lengths}")
    n = lengths[0]
    checks.one_of("whole_batches", whole_batches, (True, False))
    batch_size, least = checks.count("batch_size", batch_size), checks.count("least", least)
    if not whole_batches:
        batch_size = min(batch_size, 1 << (max(n, least) - 1).bit_length())

    def batch(start: int) -> Any:
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)  # the last sample fills the last batch
        return jax.tree.map(lambda a: a[rows], (list(arrays), named))

    call, (first, more) = programs.compiled(fn, read=signatures.read_by(fn)), batch(0)
    program = programs.as_argument(f, *programs.example(first, {"samples": draws or None}))
    try:
        programs.test_values(call, program, *first, whole=every, **more)
    except programs.OtherShapeError:  # fn calls f on more or other rows than those of the first array
        program = programs.fresh(f)
        programs.test_values(call, program, *first, whole=every, **more)
    starts, parts = range(0, n, batch_size), []
    for start in shown(starts, progress):
        rows, more = batch(start)
        parts.append(jax.device_get(call(program, *rows, **more)[0]))
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(parts[-1])]
        if any(shape[:1] != (batch_size,) for shape in shapes):
            raise ValueError(f"fn must give arrays [B, ...], a row for each of B = {batch_size}, got shapes {shapes}")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)
