"""Functions under study as arguments of compiled ones, so that equal programs compile once and none is ever stale.

`jax.jit` of something that closes over f keeps the arrays that f closed over when it was traced: a model whose
parameters have changed since gives its old answers. Here f is traced at every call, which is cheap, and the arrays
become arguments; only where the program differs is anything compiled.
"""

import dataclasses
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jacreg_jax import signatures
from jacreg_jax.concrete import Deferred, deferred
from jacreg_jax.explicit_axes import entry
from jacreg_jax.types import Array, Function, PyTree

Partial: Any = jax.tree_util.Partial
P = ParamSpec("P")
R = TypeVar("R")


class OtherShapeError(Exception):
    """A traced function was called with an argument of another shape than it was traced for."""


class _Program:
    """What f does to arguments of these shapes: (arrays that f closes over, x) -> f(x). Compared by identity."""

    def __init__(self, closed: ClosedJaxpr, shapes: Any, out_tree: Any) -> None:
        self.jaxpr, self.shapes, self.out_tree = closed.jaxpr, _kind(shapes), out_tree
        self.held = signatures.inner_constants(closed.jaxpr)  # alive, so that their ids stay theirs

    def __call__(self, constants: list[Array], *args: PyTree) -> PyTree:
        if _kind(args) != self.shapes:
            raise OtherShapeError
        return jax.tree.unflatten(
            self.out_tree, jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*jax.tree.leaves(args))
        )


def _kind(args: PyTree) -> tuple[Any, ...]:
    """Structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(args)
    return structure, *((tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves)


DEPTH = 8  # of wrappers that are looked through
_programs: WeakKeyDictionary[Any, dict[Any, _Program]] = WeakKeyDictionary()


def as_argument(f: Function, *args: Any) -> Function:
    """The function as a pytree that `jax.jit` takes: a `jax.tree_util.Partial` of the arrays that it closes over.

    A Partial stays as it is. So does what cannot be traced there, or closes over tracers: those compile at every call.

    Args:
        f: function of these arguments.
        *args: pytrees of arrays, or of the shapes of them.
    """
    program = _known(f, *args)
    return fresh(f) if program is None else program


def _known(f: Function, *args: Any) -> Function | None:
    """The function as an argument that equals that of an equal program, where there can be one."""
    if isinstance(f, jax.tree_util.Partial):
        return f
    if getattr(jax.config, "jax_disable_jit"):  # noqa: B009, no attribute to a type checker
        return None
    if getattr(jax.config, "jax_use_simplified_jaxpr_constants", False):  # arrays are no constants of a program then
        return None
    shapes = jax.eval_shape(lambda *args: args, *args)
    again = lambda *args: f(*args)  # f as another function: JAX keeps the trace of f, and the arrays of that time
    try:
        closed, out = jax.make_jaxpr(again, return_shape=True)(*shapes)
        closed = _unwrapped(closed)
        rules = signatures.of_rules(closed, shapes)
    except Exception:  # the real call says what is wrong
        return None
    text = str(closed.jaxpr)
    if "callback" in text or any(isinstance(c, jax.core.Tracer) for c in closed.consts):
        return None
    if " at 0x" in text and signatures.hides(closed.jaxpr):
        return None
    out_tree = jax.tree.structure(out)
    inner = tuple(_inner_key(c) for c in signatures.inner_constants(closed.jaxpr))
    signature = re.sub(r"0x[0-9a-f]+", "", text), _kind(shapes), out_tree, inner, rules
    try:
        known = _programs.setdefault(_code(f), {})
    except TypeError:  # no weak reference to it
        return None
    if signature not in known:
        known[signature] = _Program(closed, shapes, out_tree)
    return Partial(known[signature], closed.consts)


def fresh(f: Function) -> Function:
    """The function as a pytree that equals no other: compiled anew, and so never stale."""
    return f if isinstance(f, jax.tree_util.Partial) else Partial(lambda *args: f(*args))


def _inner_key(constant: Any) -> Any:
    """An array that calls within the program hold is known by the object, and by its content where that may change."""
    return id(constant), signatures.constant_key(constant) if signatures.changes(constant) else None


def _unwrapped(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program, or what it jits where it does nothing else: the arrays of a jitted function are constants then."""
    calls, jaxpr = closed.jaxpr.eqns, closed.jaxpr
    if len(calls) != 1 or str(calls[0].primitive) not in ("jit", "pjit") or jaxpr.constvars:
        return closed
    placed = (*calls[0].params["in_shardings"], *calls[0].params["out_shardings"])
    is_all = [*calls[0].invars] == [*jaxpr.invars] and [*calls[0].outvars] == [*jaxpr.outvars]
    return calls[0].params["jaxpr"] if is_all and all("Unspecified" in repr(p) for p in placed) else closed


def _code(f: Any) -> Any:
    """Whose life a program shares: the code of f, of what it wraps, or of what calling it runs; else f."""
    for _ in range(DEPTH):
        f = f.func if isinstance(f, functools.partial) else getattr(f, "__wrapped__", f)
    call = getattr(type(f), "__call__", None)  # noqa: B004, its code is asked for
    return getattr(f, "__code__", None) or getattr(call, "__code__", f)


# compiled calls that check what they could not while they were traced


@jax.tree_util.register_static
class _Tests:
    """Tests of concrete values, as a result of a compiled function."""

    def __init__(self, tests: list[Deferred]) -> None:
        self.tests = tests

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tests)

    def __hash__(self) -> int:
        return 0


ROWS = ("x", "y", "key")  # the arguments after f, in the one order


@functools.lru_cache(maxsize=64)
def compiled(function: Function, static: tuple[tuple[str, Any, Any], ...] = (), read: Hashable = None) -> Any:
    """jit of (f, x, y, key, **named) -> (what the function gives, the tests left to whoever holds the values).

    The function object is the name of the program, together with the values that it has read: define it once.
    """

    def traced(f: Function, *rows: Any, **named: Any) -> tuple[PyTree, _Tests]:
        with deferred(dict(zip(ROWS, rows, strict=False)) | named) as tests:
            result = function(f, *rows, **named, **{name: _plain(value) for name, value, _ in static})
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
    for test in left.tests:
        test(whole)


@functools.lru_cache(maxsize=64)
def _jitted(function: Function, static: tuple[str, ...]) -> Any:
    return jax.jit(function, static_argnames=static)


def called_once(function: Function, f: Function, shape: Any, *args: Any, **static: Any) -> Any:
    """function(f, *args, **static), compiled once for equal programs f where every value is concrete.

    Args:
        function: defined once; its checks of values are made before.
        f: function under study.
        shape: `jax.ShapeDtypeStruct` of the one argument that f is called with.
        *args: pytrees of arrays.
        **static: hashable options.
    """
    program = _known(f, shape) if _is_concrete(args) else None
    if program is not None:
        try:
            return _jitted(function, tuple(sorted(static)))(program, *args, **static)
        except OtherShapeError:
            pass
    return function(f, *args, **static)


# numbers that may change without compiling
SWEPT = {"epsilon", "sigma", "severity", "step_size", "init_epsilon", "initial_const", "largest"}
CLASSES = {"target"}  # integers that may


def example(rows: Sequence[Any], options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an attack calls f with: the inputs, or with `samples` one row of them and a key of its own."""
    if options.get("samples") is None:
        return (rows[0],)
    key = rows[2]
    return jax.tree.map(lambda a: a[:1], rows[0]), key if key.ndim == 0 else key[0]


def once(attack: Callable[P, R]) -> Callable[P, R]:
    """Decorator of (f, x, y, key, *, ...): a call on concrete arrays compiles once for equal programs and options.

    Without it the loops of every call outside of `jax.jit` would compile anew, and their programs would stay in memory.
    """
    places = inspect.signature(attack).parameters.values()
    names = [place.name for place in places if place.kind is place.POSITIONAL_OR_KEYWORD]

    @entry
    @functools.wraps(attack)
    def call(*args: P.args, **options: P.kwargs) -> R:
        named = dict(options)
        f, *rows = cast(Any, [*args, *(named.pop(name) for name in _given_next(names[len(args) :], named))] or (None,))
        swept = {name: named.pop(name) for name in (SWEPT | CLASSES) & named.keys() if _is_number(named[name])}
        try:
            program = _known(f, *example(rows, named)) if _is_concrete(args, named, swept) else None
            if "bounds" in named and program is not None:
                named["bounds"] = signatures.Named(named["bounds"])
            static = tuple((name, value, _kinds(value)) for name, value in sorted(named.items()))
            hash(static)
        except (TypeError, IndexError, AttributeError, signatures.Unknown):  # the attack says what is wrong
            program = None
        if program is None:
            return attack(*args, **options)
        compiled_call = compiled(attack, static)
        try:
            test_values(compiled_call, program, *rows, whole=dict(zip(ROWS, rows, strict=False)) | swept, **swept)
        except OtherShapeError:
            return attack(*args, **options)
        result: R = compiled_call(program, *rows, **swept)[0]
        return result

    return call


def _given_next(names: Sequence[str], named: Mapping[str, Any]) -> list[str]:
    """Those names, up to the first that is not there."""
    return list(itertools.takewhile(named.__contains__, names))


def _is_concrete(*trees: Any) -> bool:
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int | np.number | np.ndarray | jax.Array) and not isinstance(value, bool)


def _kinds(value: Any) -> Any:
    """Types, as 1, 1.0 and True are equal but not all of them are counts; of a function what it reads."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # a criterion
        return type(value), *map(_kinds, vars(value).values())
    if callable(value) and not isinstance(value, type):
        return signatures.of_surroundings(value)
    return tuple(map(_kinds, value)) if isinstance(value, tuple) else type(value)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, signatures.Named) else value
