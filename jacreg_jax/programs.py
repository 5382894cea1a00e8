"""Functions under study as arguments of compiled ones, so that equal programs compile once and none is ever stale.

`jax.jit` of something that closes over f keeps the arrays that f closed over when it was traced: a model whose
parameters have changed since gives its old answers. Here f is traced at every call, which is cheap, and the arrays
become arguments; only where the program differs is anything compiled.
"""

import functools
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from jacreg_jax import checks
from jacreg_jax.types import Array, Function, PyTree

Partial: Any = jax.tree_util.Partial


class OtherShapeError(Exception):
    """A traced function was called with an argument of another shape than it was traced for."""


class _Program:
    """What f does to one array of this shape: (arrays that f closes over, x) -> f(x). Compared by identity."""

    def __init__(self, closed: ClosedJaxpr, x: jax.ShapeDtypeStruct, out_tree: Any) -> None:
        self.jaxpr, self.x, self.out_tree = closed.jaxpr, x, out_tree
        self.held = list(_inner_constants(closed.jaxpr))  # alive, so that their ids stay theirs

    def __call__(self, constants: list[Array], x: Array) -> PyTree:
        if x.shape != self.x.shape or x.dtype != self.x.dtype:
            raise OtherShapeError
        return jax.tree.unflatten(self.out_tree, jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(x))


_programs: WeakKeyDictionary[Any, dict[Any, _Program]] = WeakKeyDictionary()


def as_argument(f: Function, x: Any) -> Function:
    """The function as a pytree that `jax.jit` takes: a `jax.tree_util.Partial` of the arrays that it closes over.

    A Partial stays as it is. So does what cannot be traced at x, or closes over tracers: those compile at every call.

    Args:
        f: function of one array.
        x: its argument, or the shape of it.
    """
    if isinstance(f, jax.tree_util.Partial):
        return f
    if getattr(jax.config, "jax_disable_jit"):  # noqa: B009, no attribute to a type checker
        return fresh(f)
    shape = jax.eval_shape(lambda x: x, x)
    try:
        closed, out = jax.make_jaxpr(f, return_shape=True)(shape)
    except Exception:  # the real call says what is wrong
        return fresh(f)
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))
    if "callback" in text or any(isinstance(c, jax.core.Tracer) for c in closed.consts):
        return fresh(f)
    out_tree = jax.tree.structure(out)
    inner = tuple(id(c) for c in _inner_constants(closed.jaxpr))
    signature = text, shape.shape, str(shape.dtype), out_tree, inner, _callables(f)
    try:
        known = _programs.setdefault(getattr(f, "__code__", f), {})
    except TypeError:  # no weak reference to it
        return fresh(f)
    if signature not in known:
        known[signature] = _Program(closed, shape, out_tree)
    return Partial(known[signature], closed.consts)


def fresh(f: Function) -> Function:
    """The function as a pytree that equals no other: compiled anew, and so never stale."""
    return f if isinstance(f, jax.tree_util.Partial) else Partial(lambda *args: f(*args))


def _inner_constants(jaxpr: Jaxpr) -> Iterator[Any]:
    """The arrays that calls within the program hold."""
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr)):
            if isinstance(value, ClosedJaxpr):
                yield from value.consts
                yield from _inner_constants(value.jaxpr)
            elif isinstance(value, Jaxpr):
                yield from _inner_constants(value)


def _callables(f: Function) -> tuple[Any, ...]:
    """The functions that f closes over; their derivative rules do not show in the program."""
    found = []
    for cell in getattr(f, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # empty
            continue
        if isinstance(content, types.FunctionType | functools.partial | jax.custom_jvp | jax.custom_vjp):
            found.append(content)
    return tuple(found)


# compiled calls that check what they could not while they were traced


@jax.tree_util.register_static
class _Tests:
    """Tests of concrete values, as a result of a compiled function."""

    def __init__(self, tests: list[tuple[str, checks.Test]]) -> None:
        self.tests = tests

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tests)

    def __hash__(self) -> int:
        return 0


ROWS = ("x", "y", "key")  # the arguments after f, in the one order


@functools.lru_cache(maxsize=256)
def compiled(function: Function, static: tuple[tuple[str, Any], ...] = ()) -> Any:
    """jit of (f, x, y, key, **named) -> (what the function gives, the tests left to whoever holds the values).

    The function object is the name of the program: define it once.
    """

    def traced(f: Function, *rows: Any, **named: Any) -> tuple[PyTree, _Tests]:
        with checks.deferred(dict(zip(ROWS, rows, strict=False)) | named) as tests:
            result = function(f, *rows, **named, **dict(static))
        return result, _Tests(tests)

    return jax.jit(traced)


def test_values(call: Any, f: Function, *rows: Any, whole: Mapping[str, Any], **named: Any) -> None:
    """Trace a call and make the tests that it left, on the concrete values of the whole data.

    Args:
        call: from `compiled`.
        f: first argument.
        *rows: x, y, key of one batch.
        whole: concrete values by name.
        **named: more arguments of the call.

    Raises:
        ValueError: as the function itself raises on concrete values.
    """
    _, left = call.eval_shape(f, *rows, **named)
    for name, test in left.tests:
        test(np.asarray(whole[name]))
