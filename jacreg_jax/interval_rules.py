"""Interval rules: what an operation of boxes can give, from the ends of the boxes.

A box whose ends are NaN holds everything, NaN too: sqrt of [-1, 1], infinity - infinity. It stays so through every
operation, which may ask for NaN, or take it for false in a comparison.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jacreg_jax.interval_operations import BILINEAR, COMPARISONS, FALLING, LOGICAL, RISING, SAFE, SHAPES, SUMS
from jacreg_jax.types import Array


class Interval(NamedTuple):
    """All arrays between two; of booleans, (certainly true, possibly true); with NaN for ends, all there are.

    Example:
        >>> Interval(jnp.zeros(2), jnp.ones(2)).high
        Array([1., 1.], dtype=float32)
    """

    low: Array
    high: Array


Run: TypeAlias = Callable[..., list[Any]]  # the operation itself, of arrays
Rule: TypeAlias = Callable[[Run, list[Any], list[bool]], list[Any]]  # (run, inputs, which are boxes) -> outputs


def rule_of(name: str, equation: Any, boxes: list[bool]) -> Rule | None:
    """The rule of a primitive for these inputs, if it has one; complex numbers have no order."""
    if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in [*equation.invars, *equation.outvars]):
        return None
    if name in LOGICAL and not _of(equation.invars, jnp.bool_):
        return None
    if _of(equation.outvars, jnp.integer) and not _of(equation.invars, jnp.bool_):
        return _whole_numbers(name, equation, boxes)
    return _rule_of(name, equation, boxes)


def _of(variables: Any, kind: Any) -> bool:
    return all(jnp.issubdtype(v.aval.dtype, kind) for v in variables)


def _whole_numbers(name: str, equation: Any, boxes: list[bool]) -> Rule | None:
    """Integers wrap: where an end leaves their type, the box is the whole of it."""
    if name in BILINEAR or name == "div":  # a quotient is cut off, not rounded
        return None
    rule, info = _rule_of(name, equation, boxes), jnp.iinfo(equation.outvars[0].aval.dtype)
    if rule is None or name in SAFE or name in SHAPES:
        return rule
    wide = lambda value: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), value)  # rounds no number below 2^k to it
    least, most = (jnp.asarray(end, info.dtype) for end in (info.min, info.max))

    def bounded(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
        of_floats = run if name != "convert_element_type" else lambda a: [a]
        approximate = rule(of_floats, [wide(i) for i in inputs], boxes)
        fits = lambda box: (box.low >= float(info.min)) & (box.high < float(info.max) + 1)
        return [
            Interval(jnp.where(fits(about), box.low, least), jnp.where(fits(about), box.high, most))
            for box, about in zip(rule(run, inputs, boxes), approximate, strict=True)
        ]

    return bounded


def _rule_of(name: str, equation: Any, boxes: list[bool]) -> Rule | None:
    twice = len(equation.invars) == 2 and equation.invars[0] is equation.invars[1]  # x * x is no product of two boxes
    if name in SUMS:
        return _sum
    if name == "sort" and len(boxes) == 1:
        return partial(_sorted, equation.params["dimension"])
    if name in RISING:
        return _ends
    if name == "convert_element_type" and not jnp.issubdtype(equation.params["new_dtype"], jnp.bool_):
        return _ends
    if name in SHAPES and boxes.index(True) == 0 and sum(boxes) == 1:
        return _ends
    if name in FALLING:
        return lambda run, inputs, boxes: [Interval(o.high, o.low) for o in _ends(run, inputs, boxes)]
    if name in COMPARISONS:
        return _compare(name)
    if name in ("eq", "ne") and twice:  # the test for NaN
        return lambda run, inputs, boxes: [_is_number(inputs[0]) if name == "eq" else _is_nan(inputs[0])]
    if name in BILINEAR:
        return _bilinear
    if (
        name in ("square", "abs")
        or (name == "mul" and twice)
        or (name == "integer_pow" and equation.params["y"] % 2 == 0)
    ):
        power = equation.params.get("y", 2)
        return lambda run, inputs, boxes: [_even(run, inputs, power)]
    rules: dict[str, Rule] = {
        "sub": _difference,
        "mul": lambda run, inputs, boxes: [_product(*map(_box, inputs))],
        "div": lambda run, inputs, boxes: [_product(_box(inputs[0]), _reciprocal(_box(inputs[1])))],
        "rsqrt": _reciprocal_root,
        "integer_pow": lambda run, inputs, boxes: [_odd(inputs[0], equation.params["y"])],
        "pow": _power,
        "select_n": _select,
        "is_finite": lambda run, inputs, boxes: [_is_finite(inputs[0])],
    }
    return rules.get(name)


def _box(value: Any) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, value)


def _ends(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    """A rising operation: the low ends give the low end."""
    ends = [run(*(_box(i)[end] for i in inputs)) for end in (0, 1)]
    return [Interval(*pair) for pair in zip(*ends, strict=True)]


def _compare(name: str) -> Rule:
    def rule(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
        a, b = map(_box, inputs)
        certain, possible = (
            ((a.low, b.high), (a.high, b.low)) if name in ("gt", "ge") else ((a.high, b.low), (a.low, b.high))
        )
        unknown = _is_nan(a).high | _is_nan(b).high
        return [Interval(run(*certain)[0], run(*possible)[0] | unknown)]

    return rule


def _is_nan(box: Interval) -> Interval:
    """What may be NaN; nothing is for certain."""
    possible = jnp.isnan(box.low) if jnp.issubdtype(box.low.dtype, jnp.floating) else jnp.zeros(box.low.shape, bool)
    return Interval(jnp.zeros_like(possible), possible)


def _is_number(box: Interval) -> Interval:
    possible = _is_nan(box).high
    return Interval(~possible, jnp.ones_like(possible))


def _is_finite(box: Interval) -> Interval:
    certain = jnp.isfinite(box.low) & jnp.isfinite(box.high)
    return Interval(certain, jnp.ones_like(certain))


def _sum(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    return [_added(box) for box in _ends(run, inputs, boxes)]


def _sorted(axis: int, run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    """The k-th of the low ends is the lowest k-th; what may be NaN may stand anywhere."""
    unknown = jnp.any(_is_nan(inputs[0]).high, axis=axis, keepdims=True)
    return [everything_where(unknown, box) for box in _ends(run, inputs, boxes)]


def _difference(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    a, b = map(_box, inputs)
    return [_added(Interval(a.low - b.high, a.high - b.low))]


def _product(a: Interval, b: Interval) -> Interval:
    """The extremes are among the four products of ends; 0 times infinity may be anything."""
    products = [jnp.where((p == 0) | (q == 0), 0, p * q).astype(a.low.dtype) for p in a for q in b]
    found = Interval(_extreme(jnp.minimum, products), _extreme(jnp.maximum, products))
    holds_zero, is_finite = (lambda box: (box.low <= 0) & (box.high >= 0)), lambda box: _is_finite(box).low
    unknown = (holds_zero(a) & ~is_finite(b)) | (holds_zero(b) & ~is_finite(a)) | _is_nan(a).high | _is_nan(b).high
    return everything_where(unknown, found)


def everything_where(unknown: Array, box: Interval) -> Interval:
    """The box with ends that are NaN there; integers are never unknown.

    Args:
        unknown: where.
        box: of numbers.

    Returns:
        Interval.

    Example:
        >>> everything_where(jnp.array([False, True]), Interval(jnp.zeros(2), jnp.ones(2))).high
        Array([ 1., nan], dtype=float32)
    """
    if not jnp.issubdtype(box.low.dtype, jnp.floating):
        return box
    return Interval(*(jnp.where(unknown, jnp.nan, end) for end in box))


def _added(box: Interval) -> Interval:
    """A sum or a difference: between two infinities may lie infinity - infinity."""
    return everything_where(jnp.isneginf(box.low) & jnp.isposinf(box.high), box)


def _extreme(pick: Callable[..., Array], arrays: list[Array]) -> Array:
    first, *rest = arrays
    for array in rest:
        first = pick(first, array)
    return first


def _reciprocal(box: Interval) -> Interval:
    """1 / box: everything where 0 is in it."""
    holds_zero = (box.low <= 0) & (box.high >= 0)
    safe = Interval(*(jnp.where(holds_zero, 1, end) for end in box))
    return Interval(jnp.where(holds_zero, -jnp.inf, 1 / safe.high), jnp.where(holds_zero, jnp.inf, 1 / safe.low))


def _reciprocal_root(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    low, high = inputs[0]
    found = Interval(*(jax.lax.rsqrt(jnp.maximum(end, 0)) for end in (high, low)))
    return [everything_where(~(low >= 0), found)]


def _even(run: Run, inputs: list[Any], power: int) -> Interval:
    """|x|, x^2, x^4, ...: falling below 0 and rising above; 1 / x^2 turned over."""
    low, high = inputs[0]
    same = len(inputs) == 2  # x * x
    of = lambda end: run(end, end)[0] if same else run(end)[0]
    if power < 0:
        even = _even(lambda *x: [x[0] ** -power], [inputs[0]], -power)
        return _reciprocal(even)
    ends = of(low), of(high)
    return Interval(
        jnp.where((low <= 0) & (high >= 0), 0, jnp.minimum(*ends)).astype(ends[0].dtype), jnp.maximum(*ends)
    )


def _odd(box: Interval, power: int) -> Interval:
    if power < 0:
        return _reciprocal(_odd(box, -power))
    return Interval(box.low**power, box.high**power)


def _power(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    """x^c for x above 0: exp(c log x); everything where x may be 0 or negative."""
    base, exponent = map(_box, inputs)
    ends = [run(b, e)[0] for b in base for e in exponent]
    low, high = _extreme(jnp.minimum, ends), _extreme(jnp.maximum, ends)
    return [everything_where(~(base.low > 0), Interval(low, high))]


def _select(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    """Both cases where the condition is not certain."""
    which, *cases = inputs
    cases = [_box(c) for c in cases]
    if isinstance(which, Interval) and which.low.dtype != jnp.bool_:
        raise TypeError("interval_bounds has no rule for 'select_n' by an interval of integers")
    if not isinstance(which, Interval):
        return [Interval(*(run(which, *(c[end] for c in cases))[0] for end in (0, 1)))]
    no, yes = cases
    both = Interval(jnp.minimum(no.low, yes.low), jnp.maximum(no.high, yes.high))
    pick = lambda end: jnp.where(which.low, yes[end], jnp.where(which.high, both[end], no[end]))
    return [Interval(pick(0), pick(1))]


def _bilinear(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    """Centres and radii: |A B - a b| <= |a| rB + rA |b| + rA rB."""
    (a, ra), (b, rb) = (
        ((i.low + i.high) / 2, (i.high - i.low) / 2) if isinstance(i, Interval) else (i, None) for i in inputs
    )
    radius = run(ra, jnp.abs(b))[0] if rb is None else run(jnp.abs(a), rb)[0]
    if ra is not None and rb is not None:
        radius = radius + run(ra, jnp.abs(b))[0] + run(ra, rb)[0]
    centre = run(a, b)[0]
    return [Interval(centre - radius, centre + radius)]
