"""Arrays on explicit axes of a mesh, as `jax.make_mesh` makes them: the loops here run on automatic axes, f on its own.

On explicit axes the sharding is part of an array's type, and a loop that starts from zeros, or takes random rows, has
another type than the batch. So the compiler places what is within, as on a mesh of `sharding.data_mesh`; the function
under study is called as its user wrote it, and what comes out lies as the rows came.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec as P,
    get_abstract_mesh,
    reshard,
    use_abstract_mesh,
)

from jacreg_jax import checks
from jacreg_jax.types import Function, PyTree

Arguments = ParamSpec("Arguments")
R = TypeVar("R")


def automatic(function: Callable[Arguments, R]) -> Callable[Arguments, R]:
    """Decorator: rows on explicit axes are on automatic ones within, but for f; results lie as the rows did.

    Args:
        function: (..., f, x, ...), or without an f.

    Returns:
        The same function; called on other arrays it does nothing more.

    Example:
        >>> automatic(lambda x: x + 1)(1)
        2
    """
    names = list(inspect.signature(function).parameters)
    places_of_f = (names.index("f"), "f") if "f" in names else ()

    @functools.wraps(function)
    def call(*args: Arguments.args, **named: Arguments.kwargs) -> R:
        given: dict[Any, Any] = dict(enumerate(args)) | named
        at = next((place for place in places_of_f if place in given), None)
        f = given.pop(at, None)
        rows = next(filter(is_explicit, jax.tree.leaves(list(given.values()))), None)
        if rows is None:
            return function(*args, **named)
        with _entered(rows) as explicit:
            with use_abstract_mesh(_automatic(explicit)):
                given = dict(zip(given, _cast(list(given.values())), strict=True))
                given[at] = _as_written(f, explicit, rows) if callable(f) else f
                positional: Any = map(given.get, range(len(args)))
                result: Any = function(*positional, **{name: given[name] for name in named})
            with use_abstract_mesh(explicit):
                return _laid(result, rows, equal=True)

    return call


def entry(function: Callable[Arguments, R]) -> Callable[Arguments, R]:
    """Decorator of a public function of (f, x, ...): `checks.pure` within `automatic`.

    Args:
        function: (f, x, ...) -> result.

    Returns:
        The same function.

    Example:
        >>> entry(lambda f, x: f(x))(abs, -1)
        1
    """
    return automatic(checks.pure(function))


def automatic_step(step: Function) -> Function:
    """A step (state, *batches) -> (state, metrics), to be compiled, on automatic axes; the state lies as it came.

    Args:
        step: such a function.

    Returns:
        The same function.

    Example:
        >>> jax.jit(automatic_step(lambda state, batch: (state + batch, {})))(1, 2)[0].item()
        3
    """

    def call(state: PyTree, *batches: PyTree) -> Any:
        placed = next(filter(is_explicit, jax.tree.leaves((state, batches))), None)
        if placed is None:
            return step(state, *batches)
        explicit = jax.typeof(placed).sharding.mesh
        with use_abstract_mesh(_automatic(explicit)):
            new, metrics = step(*_cast((state, *batches)))
        as_it_came = lambda leaf, old: reshard(leaf, jax.typeof(old).sharding.spec)
        with use_abstract_mesh(explicit):
            return jax.tree.map(as_it_came, new, state), jax.tree.map(lambda leaf: reshard(leaf, P()), metrics)

    return call


def within(step: Function, mesh: Mesh) -> Function:
    """A step, to be compiled, that is mapped over this mesh of automatic axes, whichever mesh is set around it.

    Args:
        step: function of arrays, such as one of `jax.shard_map`.
        mesh: from `sharding.check_mesh`.

    Returns:
        The same function.

    Example:
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> jax.jit(within(lambda x: x + 1, mesh))(1).item()
        2
    """

    def call(*args: PyTree) -> Any:
        with use_abstract_mesh(mesh.abstract_mesh):
            return step(*_cast(args))

    return call


def here(function: Function) -> Function:
    """The function on the axes that are set where this is called: a rule for derivatives may run after they are left.

    Args:
        function: of arrays.

    Returns:
        The same function.

    Example:
        >>> here(lambda x: x + 1)(1)
        2
    """
    mesh = get_abstract_mesh()

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with nullcontext() if mesh.empty else use_abstract_mesh(mesh):
            return function(*args)

    return call


class Brought(NamedTuple):
    """Arrays of a function under study, brought from explicit axes to those that are set.

    Attributes:
        arrays: those that lay on no explicit axes as they are.
        shardings: where they lay; None: on no explicit axes.
    """

    arrays: list[Any]
    shardings: list[Any]

    def back(self, arrays: list[Any]) -> list[Any]:
        """Others like them where they lay."""
        return [_onto(array, sharding) for array, sharding in zip(arrays, self.shardings, strict=True)]

    def gradients(self, gradients: list[Any], shardings: list[Any]) -> list[Any]:
        """Gradients of arrays that lay there: of one on no mesh, as of what JAX differentiates, on explicit axes."""
        mesh = next((s.mesh for s in self.shardings if s is not None), None)
        anywhere = None if mesh is None else NamedSharding(mesh, P())
        return [g if s is not None else _onto(g, anywhere) for g, s in zip(gradients, shardings, strict=True)]


def brought(arrays: list[Any]) -> Brought:
    """Arrays on explicit axes brought to those that are set.

    Args:
        arrays: such as those that a function under study closes over.

    Returns:
        `Brought`.

    Example:
        >>> found = brought([jnp.ones(2)])
        >>> found.back(found.arrays)[0].shape
        (2,)
    """
    return Brought(_cast(arrays), [jax.typeof(a).sharding if is_explicit(a) else None for a in arrays])


def _onto(array: Any, sharding: Any) -> Any:
    if sharding is None:
        return array
    with use_abstract_mesh(sharding.mesh):
        return reshard(array, sharding.spec)


def _as_written(f: Function, explicit: AbstractMesh, rows: jax.Array) -> Function:
    """The function under study, called on explicit axes; what their devices divide evenly lies as the rows do."""

    @functools.wraps(f)
    def call(*args: PyTree) -> PyTree:
        args = _on_all(args)  # an array on no mesh would get its derivative on explicit axes
        with use_abstract_mesh(explicit):
            result = f(*_laid(args, rows, equal=False))
        return _cast(result)

    return call


def _laid(tree: PyTree, rows: jax.Array, equal: bool) -> PyTree:
    """The arrays on explicit axes, laid as the rows are along each axis of as many entries, or that divides evenly."""
    kind = jax.typeof(rows)

    def fits(size: int, name: Any, of_rows: int) -> bool:
        shares = math.prod(kind.sharding.mesh.shape[n] for n in (name if isinstance(name, tuple) else (name,)))
        return size == of_rows if equal else size % shares == 0

    def spec(leaf: jax.Array) -> P:
        axes = zip(leaf.shape, kind.sharding.spec, kind.shape, strict=False)
        return P(*(name if name is not None and fits(size, name, of_rows) else None for size, name, of_rows in axes))

    return _resharded(tree, spec)


def _on_all(tree: PyTree) -> PyTree:
    """The arrays on the axes of the mesh around."""
    return _resharded(tree, lambda leaf: P())


def _resharded(tree: PyTree, spec: Callable[[jax.Array], P]) -> PyTree:
    return jax.tree.map(lambda leaf: reshard(leaf, spec(leaf)) if isinstance(leaf, jax.Array) else leaf, tree)


def _cast(tree: PyTree) -> PyTree:
    """The arrays on the axes of the mesh around, where they lie; those on no mesh as they are."""
    return jax.tree.map(lambda leaf: reshard(leaf, P()) if is_explicit(leaf) else leaf, tree)


def is_explicit(leaf: Any) -> bool:
    """An array on explicit axes of a mesh.

    Example:
        >>> is_explicit(1)
        False
    """
    return isinstance(leaf, jax.Array) and AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types


def _automatic(mesh: AbstractMesh) -> AbstractMesh:
    """The mesh with automatic axes in place of explicit ones."""
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh.update_axis_types({name: AxisType.Auto for name, kind in types if kind == AxisType.Explicit})


@contextmanager
def _entered(rows: jax.Array) -> Iterator[AbstractMesh]:
    """The mesh that the rows lie on; outside of `jax.jit` its devices are those of the calls within."""
    lies: Any = rows
    try:
        devices: Any = nullcontext() if isinstance(rows, jax.core.Tracer) else jax.set_mesh(lies.sharding.mesh)
    except ValueError:  # a concrete array inside of a caller's jit
        devices = nullcontext()
    with devices:
        yield jax.typeof(rows).sharding.mesh
