"""Layers on explicit axes of a mesh: each device does its rows, which the compiler would gather."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P, reshard, use_abstract_mesh

from jacreg_jax.explicit_axes import is_explicit
from jacreg_jax.types import Function


def over_rows(axis: int) -> Callable[[Function], Function]:
    """Decorator of a layer (x, *weights, **options): rows on explicit axes stay where they are, a share on each device.

    The compiler would gather them, as the layer moves the batch between other axes.

    Args:
        axis: of x and of the result, along which rows are independent.

    Returns:
        The decorator.

    Example:
        >>> over_rows(0)(lambda x, w: x @ w)(jnp.ones((2, 3)), jnp.ones((3, 1))).shape
        (2, 1)
    """

    def decorated(layer: Function) -> Function:
        takes = inspect.signature(layer)

        @functools.wraps(layer)
        def call(*args: Any, **named: Any) -> Any:
            placed = next(filter(is_explicit, (*args, *named.values())), None)
            if placed is None:
                return layer(*args, **named)
            given = takes.bind(*args, **named).arguments
            arrays = {name: value for name, value in given.items() if isinstance(value, jax.Array)}
            x, *weights = arrays.values()
            names: list[Any] = [None] * x.ndim
            names[axis] = dict(enumerate(jax.typeof(x).sharding.spec)).get(axis % x.ndim)
            specs = P(*names), *(P() for _ in weights)
            each = lambda *values: layer(**given | dict(zip(arrays, values, strict=True)))
            explicit = jax.typeof(placed).sharding.mesh
            mesh = explicit if isinstance(placed, jax.core.Tracer) else placed.sharding.mesh
            mapped = jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P(*names))
            with use_abstract_mesh(explicit):
                return mapped(*map(reshard, arrays.values(), specs))

        return call

    return decorated
