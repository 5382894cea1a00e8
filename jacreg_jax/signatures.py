"""What sets functions apart beside the program that they run: derivative rules, and the values that they read.

A program as text shows neither what a `custom_jvp` or `custom_vjp` gives as a derivative, nor that a function read
another number from its surroundings than when it was traced.
"""

import dataclasses
import functools
import hashlib
import types
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

SETTLED = "/jax/_src/nn/", f"{Path(__file__).parent}/"  # whose rules depend on nothing but the program
LARGE = 2**20  # entries that are not read through at every call
DERIVATIVES = "custom_jvp", "custom_vjp", "linear_call"  # primitives with a derivative of their own
TOLD = "remat", "checkpoint", "reduce"  # whose functions are memory's alone, or are written out as programs too
ORDERS = 2  # of derivatives that are written out: attacks take one, penalties two
# primitives that run the program within them once, on their own arguments
CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat2"}


def directly_inner(equation: Any) -> list[ClosedJaxpr | Jaxpr]:
    """The programs that an equation runs, such as the body of a loop."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr))
    return [value for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]


def inner(jaxpr: Jaxpr) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs within a program, at all depths."""
    for equation in jaxpr.eqns:
        for program in directly_inner(equation):
            yield program
            yield from inner(program.jaxpr if isinstance(program, ClosedJaxpr) else program)


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """Those of a program, and of the programs within it."""
    yield from jaxpr.eqns
    for program in inner(jaxpr):
        yield from (program.jaxpr if isinstance(program, ClosedJaxpr) else program).eqns


def of_rules(closed: ClosedJaxpr, shapes: tuple[Any, ...]) -> tuple[Hashable, ...]:
    """The derivatives of a program as text, where it has rules of its own; empty where it has none.

    The program's own constants are arguments here. What is a constant of a derivative all the same is one that a rule
    holds: other values of it make another program.

    Args:
        closed: the program of f.
        shapes: of its arguments.

    Raises:
        Exception: whatever differentiating f raises.
    """

    def f(constants: list[Any], *args: Any) -> Any:
        return jaxpr_as_fun(ClosedJaxpr(program, constants))(*jax.tree.leaves(args))

    program = closed.jaxpr
    constants = [jax.ShapeDtypeStruct(c.shape, c.dtype) for c in closed.consts]
    known, found = {id(c) for c in inner_constants(program)}, list[Hashable]()
    derivative, args = f, shapes
    while _has_rules(closed.jaxpr) and len(found) < ORDERS:
        derivative, args = _transposed(derivative), (args, jax.eval_shape(derivative, constants, *args))
        closed = jax.make_jaxpr(derivative)(constants, *args)
        held = (c for c in [*closed.consts, *inner_constants(closed.jaxpr)] if id(c) not in known)
        found.append((str(closed.jaxpr), *map(constant_key, held)))
    return tuple(found)


def _transposed(f: Callable[..., Any]) -> Callable[..., Any]:
    """(constants, arguments, cotangents) -> cotangents of the floating point arguments."""

    def product(constants: list[Any], args: tuple[Any, ...], cotangent: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

        def of_floats(floats: list[Any]) -> Any:
            merged = dict(enumerate(leaves)) | dict(zip(places, floats, strict=True))
            out = jax.tree.leaves(f(constants, *jax.tree.unflatten(structure, list(merged.values()))))
            return [leaf for leaf in out if jnp.issubdtype(leaf.dtype, jnp.inexact)]

        _, vjp = jax.vjp(of_floats, [leaves[i] for i in places])
        wanted = [leaf for leaf in jax.tree.leaves(cotangent) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return vjp(wanted)[0]

    return product


def inner_constants(jaxpr: Jaxpr) -> list[Any]:
    """The arrays that calls within the program hold."""
    return [c for program in inner(jaxpr) if isinstance(program, ClosedJaxpr) for c in program.consts]


def constant_key(constant: Any) -> Hashable:
    """An array that a program holds: by its content, and where that may change in place, by the object too."""
    return _content(constant), id(constant) if changes(constant) else None


def changes(constant: Any) -> bool:
    """Whether an array that a program holds may change in place."""
    return not isinstance(constant, jax.Array) and bool(np.asarray(constant).flags.writeable)


def hides(jaxpr: Jaxpr) -> bool:
    """Whether Python decides what it does that is neither text nor derivative, as the rule of a custom_vmap."""
    return any(map(_hides, equations(jaxpr)))


def _hides(equation: Any) -> bool:
    if str(equation.primitive).startswith((*DERIVATIVES, *TOLD)):
        return False
    programs = ClosedJaxpr | Jaxpr
    return any(" at 0x" in repr(v) for v in equation.params.values() if not isinstance(v, programs))


def _has_rules(jaxpr: Jaxpr) -> bool:
    """Whether some derivative is given by a function that is not `SETTLED`."""
    return any(map(_is_open, equations(jaxpr)))


def _is_open(equation: Any) -> bool:
    if not str(equation.primitive).startswith(DERIVATIVES):
        return False
    debug = [getattr(getattr(v, "jaxpr", v), "debug_info", None) for v in equation.params.values()]
    sources = [str(getattr(info, "func_src_info", "")) for info in debug if info is not None]
    sources = [source for source in sources if "custom_derivatives.py" not in source]  # rules by `defjvps`
    return not sources or not all(any(place in source for place in SETTLED) for source in sources)


def _content(constant: Any) -> Hashable:
    if jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    array = np.asarray(constant)
    return array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).hexdigest()


class Same:
    """An object as a key: equal to itself alone, and alive as long as the key."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


class Named:
    """Bounds as the name of a compiled program: equal where all numbers in them are; `value` is what came.

    Args:
        value: numbers, arrays, None, or pytrees of them, such as ({"age": 0.0, "kind": None}, None).

    Raises:
        TypeError: it holds something else.

    Example:
        >>> Named((np.zeros(2), None)) == Named((jnp.zeros(2), None))
        True
    """

    def __init__(self, value: Any) -> None:
        leaves, structure = jax.tree.flatten(value)
        for leaf in leaves:
            if not isinstance(leaf, int | float) and not hasattr(leaf, "shape"):
                raise TypeError(f"bounds must be numbers, arrays or None here, got {type(leaf).__name__}")
        self.value = tuple(value) if isinstance(value, list) else value
        self.name = str(structure), *(_content(np.asarray(leaf, np.float64)) for leaf in leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class Unknown(Exception):
    """A function reads what may change without a trace."""


def of_surroundings(function: Callable[..., Any], depth: int = 4) -> Hashable:
    """The values that a function reads from closures, defaults and globals, as a key.

    Raises:
        Unknown: one of them could change in place, or it is no function.
    """
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args, *sorted(function.keywords.items()))
        return tuple(_settled(part, depth) for part in parts)
    if not isinstance(function, types.FunctionType) or not depth:
        raise Unknown
    own = function.__module__.startswith("jacreg_jax.")
    if own and "<locals>" not in function.__qualname__:  # what it reads never changes
        return ()
    try:
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # one that is not filled yet
        raise Unknown from None
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    names = () if own else (name for code in _codes(function.__code__) for name in code.co_names)
    read = [function.__globals__[name] for name in names if name in function.__globals__]
    return tuple(_settled(value, depth - 1) for value in [*cells, *read, *defaults])


def read_by(function: Callable[..., Any]) -> Hashable:
    """The same, or None where it cannot be told: the function object alone then has to say what it does."""
    try:
        return of_surroundings(function)
    except Unknown:
        return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _settled(value: Any, depth: int) -> Hashable:
    """A value that cannot change in place."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), value
    if isinstance(value, tuple):
        return tuple(_settled(part, depth) for part in value)
    if isinstance(value, jax.Array | types.ModuleType | type | types.BuiltinFunctionType):
        return Same(value)
    if isinstance(value, np.ndarray) and value.size <= LARGE:
        return _content(value)
    if (getattr(value, "__module__", None) or "").startswith(("jax.", "numpy")):  # jitted functions, ufuncs
        return Same(value)
    if dataclasses.is_dataclass(value) and getattr(value, "__dataclass_params__").frozen:  # noqa: B009, mypy
        return type(value), *(_settled(part, depth) for part in vars(value).values())  # a criterion
    if not callable(value):
        raise Unknown
    return Same(value), of_surroundings(value, depth)
