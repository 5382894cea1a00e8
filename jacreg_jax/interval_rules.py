"""Interval rules: what an operation of boxes can give, from the ends of the boxes."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jacreg_jax.types import Array


class Interval(NamedTuple):
    """All arrays between two; of booleans, (certainly true, possibly true).

    Example:
        >>> Interval(jnp.zeros(2), jnp.ones(2)).high
        Array([1., 1.], dtype=float32)
    """

    low: Array
    high: Array


RISING = {
    "tanh",
    "logistic",
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "sqrt",
    "cbrt",
    "erf",
    "erf_inv",
    "asinh",
    "atan",
}
RISING |= {
    "sinh",
    "asin",
    "sign",
    "floor",
    "ceil",
    "round",
    "reduce_precision",
    "reduce_max",
    "reduce_min",
    "max",
    "min",
}
RISING |= {"reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_sum", "cumsum", "cummax", "cummin"}
RISING |= {"add", "add_any", "clamp", "concatenate", "stack", "pad"}
LOGICAL = {"and", "or", "reduce_and", "reduce_or"}  # rising where they are of booleans, and of nothing else
RISING |= LOGICAL
SAFE = {"max", "min", "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax", "cummin", "clamp"}
SAFE |= {"concatenate", "stack", "pad", "sort", "sign", "not", "select_n"}  # give no integer that was not there
SHAPES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "slice", "rev", "copy", "copy_p"}
SHAPES |= {"jacreg_patches", "gather", "dynamic_slice", "stop_gradient", "split", "real", "device_put", "pvary"}
SHAPES |= {"tile", "unstack"}
FALLING = {"neg", "erfc", "acos", "not"}
COMPARISONS = {"gt", "ge", "lt", "le"}
BILINEAR = {"dot_general", "conv_general_dilated", "jacreg_convolution"}
ELEMENTWISE = RISING - {
    "reduce_max",
    "reduce_min",
    "reduce_sum",
    "cumsum",
    "cummax",
    "cummin",
    "concatenate",
    "stack",
    "pad",
}
ELEMENTWISE -= {"reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_and", "reduce_or"}
ELEMENTWISE |= {
    "neg",
    "erfc",
    "acos",
    "not",
    "sub",
    "mul",
    "div",
    "abs",
    "square",
    "integer_pow",
    "pow",
    "rsqrt",
    "copy",
}
ELEMENTWISE |= COMPARISONS | {"eq", "ne", "select_n", "convert_element_type", "broadcast_in_dim", "is_finite"}

Run: TypeAlias = Callable[..., list[Any]]  # the operation itself, of arrays
Rule: TypeAlias = Callable[[Run, list[Any], list[bool]], list[Any]]  # (run, inputs, which are boxes) -> outputs


def rule_of(name: str, equation: Any, boxes: list[bool]) -> Rule | None:
    """The rule of a primitive for these inputs, if it has one."""
    if name in LOGICAL and not _of(equation.invars, jnp.bool_):
        return None
    if _of(equation.outvars, jnp.integer) and not _of(equation.invars, jnp.bool_):
        return _whole_numbers(name, equation, boxes)
    return _rule_of(name, equation, boxes)


def _of(variables: Any, kind: Any) -> bool:
    return all(jnp.issubdtype(v.aval.dtype, kind) for v in variables)


def _whole_numbers(name: str, equation: Any, boxes: list[bool]) -> Rule | None:
    """Integers wrap: where an end leaves their type, the box is the whole of it."""
    if name in BILINEAR:
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
    if name in RISING or (name == "sort" and len(boxes) == 1):
        return _ends
    if name == "convert_element_type" and not jnp.issubdtype(equation.params["new_dtype"], jnp.bool_):
        return _ends
    if name in SHAPES and boxes.index(True) == 0 and sum(boxes) == 1:
        return _ends
    if name in FALLING:
        return lambda run, inputs, boxes: [Interval(o.high, o.low) for o in _ends(run, inputs, boxes)]
    if name in COMPARISONS:
        return _compare(name)
    if name in ("eq", "ne") and twice:  # the test for NaN; a box holds none
        return lambda run, inputs, boxes: [jnp.full(inputs[0].low.shape, name == "eq")]
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
        return [Interval(run(*certain)[0], run(*possible)[0])]

    return rule


def _is_finite(box: Interval) -> Interval:
    certain = jnp.isfinite(box.low) & jnp.isfinite(box.high)
    return Interval(certain, jnp.ones_like(certain))


def _difference(run: Run, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    a, b = map(_box, inputs)
    return [Interval(a.low - b.high, a.high - b.low)]


def _product(a: Interval, b: Interval) -> Interval:
    """The extremes are among the four products of ends; 0 times infinity is 0 here."""
    products = [jnp.where((p == 0) | (q == 0), 0, p * q).astype(a.low.dtype) for p in a for q in b]
    return Interval(_extreme(jnp.minimum, products), _extreme(jnp.maximum, products))


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
    least = jnp.where(high > 0, jax.lax.rsqrt(jnp.where(high > 0, high, 1)), -jnp.inf)
    return [Interval(least, jnp.where(low > 0, jax.lax.rsqrt(jnp.where(low > 0, low, 1)), jnp.inf))]


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
    """x^c for x above 0: exp(c log x); everything where x may be negative."""
    base, exponent = map(_box, inputs)
    ends = [run(b, e)[0] for b in base for e in exponent]
    low, high = _extreme(jnp.minimum, ends), _extreme(jnp.maximum, ends)
    known = base.low > 0
    return [Interval(jnp.where(known, low, -jnp.inf), jnp.where(known, high, jnp.inf))]


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
