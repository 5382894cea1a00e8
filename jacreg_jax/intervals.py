"""Interval arithmetic: what a function can give anywhere in a box, by running its program on boxes instead of points.

Every operation of the program has a rule, or the whole is refused. Calls are looked into; their names mean nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jacreg_jax import checks
from jacreg_jax.interval_operations import BILINEAR, ELEMENTWISE, RISING, SHAPES
from jacreg_jax.interval_rules import Interval as Interval, everything_where, rule_of
from jacreg_jax.signatures import CALLS
from jacreg_jax.types import Array, Function


def interval_bounds(f: Function, low: Array, high: Array) -> Interval:
    """Bounds of f over the box [low, high], by interval arithmetic on every operation of f.

    Sound up to rounding for functions of the operations that networks at rest are made of: affine ones (matmuls,
    convolutions, sums, averages, pooling, padding, reshaping), monotone ones (tanh, relu, softplus, sigmoid, exp, ...),
    comparisons and selections, powers, products and quotients of boxes, so that gelu, silu, softmax and LayerNorm have
    bounds. Loose in networks that were not trained for it. Infinite where nothing can be said, as of 1 / [-1, 1].

    Args:
        f: function of one floating point array.
        low: lower corner.
        high: upper corner, of the same shape and dtype.

    Returns:
        Interval of the shape of f's result.

    Raises:
        TypeError: an operation without a rule; the message names it. low or high is not floating point; f gives
            something else than one array.
        ValueError: shapes that differ; low above high somewhere or NaN, where both are concrete.

    Example:
        >>> box = interval_bounds(lambda x: 2 - x**2, jnp.array([-1.0, 1.0]), jnp.array([1.0, 3.0]))
        >>> box.low.tolist(), box.high.tolist()
        ([1.0, -7.0], [2.0, 1.0])

    Reference: Gowal et al. (2018), https://arxiv.org/abs/1810.12715.
    """
    checks.function("f", f)
    for name, corner in (("low", low), ("high", high)):
        if not hasattr(corner, "dtype") or not jnp.issubdtype(corner.dtype, jnp.floating):
            raise TypeError(f"{name} must be a floating point array, got {getattr(corner, 'dtype', type(corner))}")
    if low.shape != high.shape or low.dtype != high.dtype:
        raise ValueError(f"low and high must be alike, got {low.dtype}{low.shape} and {high.dtype}{high.shape}")
    if (
        not isinstance(low, jax.core.Tracer)
        and not isinstance(high, jax.core.Tracer)
        and not bool(jnp.all(low <= high))
    ):
        raise ValueError("low must not lie above high, nor be NaN")
    closed, out = jax.make_jaxpr(f, return_shape=True)(low)
    if not hasattr(out, "shape"):
        raise TypeError(f"f must give one array, got {type(out).__name__}")
    (box,) = _interpret(closed.jaxpr, closed.consts, [Interval(low, high)])
    box = box if isinstance(box, Interval) else Interval(box, box)
    if not jnp.issubdtype(box.low.dtype, jnp.floating):
        return box
    return Interval(*(jnp.where(jnp.isnan(end), inf, end) for end, inf in zip(box, (-jnp.inf, jnp.inf), strict=True)))


def coarsest_precision(f: Function, x: Array) -> float:
    """The relative spacing of the narrowest floating point numbers in the program of f: 1.2e-7 of float32.

    Args:
        f: function of one floating point array.
        x: that array.

    Returns:
        A share of one.

    Example:
        >>> coarsest_precision(lambda x: (x.astype(jnp.bfloat16) ** 2).astype(jnp.float32), jnp.ones(2))
        0.0078125
    """
    closed = jax.make_jaxpr(f)(x)
    return max(_spacings(closed.jaxpr), default=0.0)


def _spacings(jaxpr: Jaxpr) -> list[float]:
    values: list[Any] = [*jaxpr.invars, *(v for equation in jaxpr.eqns for v in equation.outvars)]
    found = [float(jnp.finfo(v.aval.dtype).eps) for v in values if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    within = [inner[0] for equation in jaxpr.eqns if (inner := _body(equation)) is not None]
    return found + [spacing for inner in within for spacing in _spacings(inner)]


_PIECES = 16


def _interpret(jaxpr: Jaxpr, constants: Any, arguments: list[Any], *, split: bool = True) -> list[Any]:
    """Evaluate a program whose values are arrays or intervals."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    for equation in jaxpr.eqns:
        inputs = [v.val if isinstance(v, Literal) else values[v] for v in equation.invars]
        with equation.ctx.manager:  # on the axes of a mesh, explicit or automatic, that it was traced on
            values.update(zip(equation.outvars, _apply(equation, inputs, split), strict=True))
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any], split: bool) -> list[Any]:
    name, boxes, params = equation.primitive.name, [isinstance(i, Interval) for i in inputs], equation.params
    if name in BILINEAR:  # plain sums of products in full precision: a bound may not be rounded down
        params = params | {"precision": (jax.lax.Precision.HIGHEST,) * 2}

    def run(*inputs: Any) -> list[Any]:
        out = equation.primitive.bind(*inputs, **params)
        return list(out) if equation.primitive.multiple_results else [out]

    if not any(boxes):
        return run(*inputs)
    inner = _body(equation)
    if inner is not None:
        return _call(*inner, inputs, boxes) if split else _interpret(*inner, inputs, split=False)
    rule = rule_of(name, equation, boxes)
    if rule is None:
        raise TypeError(
            f"interval_bounds has no rule for {name!r} of {sum(boxes)} intervals and {boxes.count(False)} arrays"
        )
    try:
        outputs = rule(run, inputs, boxes)
    except (ValueError, AttributeError) as error:  # of the operation itself
        raise TypeError(f"interval_bounds has no rule for {name!r} of such values: {error}") from error
    return [_everything_for_nan(output) for output in outputs]


def _everything_for_nan(output: Any) -> Any:
    """Where one end is NaN, such as that of a root, both are: the box holds everything."""
    if not isinstance(output, Interval):
        return output
    return everything_where(jnp.isnan(output.low) | jnp.isnan(output.high), output)


def _body(equation: Any) -> tuple[Jaxpr, Any] | None:
    """The program within a call, and its constants; other programs within are no calls, such as that of a window."""
    if equation.primitive.name not in CALLS:
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(name)
        if isinstance(inner, ClosedJaxpr):
            return inner.jaxpr, inner.consts
        if isinstance(inner, Jaxpr):
            return inner, []
    return None


def _call(jaxpr: Jaxpr, constants: Any, inputs: list[Any], boxes: list[bool]) -> list[Any]:
    """What is within; a function of each entry of one box alone piece by piece, so that x sigmoid(x) is not loose."""
    if sum(boxes) > 1 or _is_made_of(jaxpr, RISING | SHAPES) or not _is_made_of(jaxpr, ELEMENTWISE):
        return _interpret(jaxpr, constants, inputs)
    where = boxes.index(True)
    low, high = inputs[where]
    if low.dtype == bool:
        return _interpret(jaxpr, constants, inputs)
    is_finite = jnp.isfinite(low) & jnp.isfinite(high)
    edges = [low + (high - low) * (i / _PIECES) for i in range(1, _PIECES)]
    lows = jnp.stack([low, *(jnp.where(is_finite, edge, low) for edge in edges)])
    highs = jnp.stack([*(jnp.where(is_finite, edge, high) for edge in edges), high])

    def piece(low: Array, high: Array) -> list[Any]:
        outputs = _interpret(
            jaxpr, constants, [*inputs[:where], Interval(low, high), *inputs[where + 1 :]], split=False
        )
        return [o if isinstance(o, Interval) else Interval(o, o) for o in outputs]

    outputs = jax.vmap(piece)(lows, highs)
    return [Interval(o.low.min(0), o.high.max(0)) for o in outputs]


def _is_made_of(jaxpr: Jaxpr, names: set[str]) -> bool:
    """Whether every operation is one of these; ELEMENTWISE ones see each entry of the arguments alone, and scalars."""
    for equation in jaxpr.eqns:
        inner = _body(equation)
        if inner is not None:
            if not _is_made_of(inner[0], names):
                return False
        elif equation.primitive.name not in names or (names is ELEMENTWISE and _spreads_an_axis(equation)):
            return False
    return True


def _spreads_an_axis(equation: Any) -> bool:
    return equation.primitive.name == "broadcast_in_dim" and equation.invars[0].aval.shape != ()
