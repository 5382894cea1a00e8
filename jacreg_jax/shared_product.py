"""A matrix times an array [K, h, w, B] as one matmul, and as one that the compiler can share where it places the rows.

Merged into columns of h w B, the rows of a batch that is spread over devices cannot be told apart any more: the
compiler gathers them, and every device does the whole product. Left apart they stay where they are, at half the speed
on CPU. Which of the two it is shows when a program is compiled: inside of `jax.shard_map`, and on one device, merged.
"""

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jacreg_jax.convolution.form import vary_alike
from jacreg_jax.types import Array

Role: TypeAlias = Literal["matrix", "factor", "product"]  # a [M, K], p [K, ..., B], z [M, ..., B]: sum a p z
ROLES: tuple[Role, ...] = ("matrix", "factor", "product")
product_p = Primitive("jacreg_product")


def shared_product(matrix: Array, factor: Array, precision: Any = None) -> Array:
    """z[m, ..., b] = sum_k a[m, k] p[k, ..., b].

    Args:
        matrix: a, [M, K].
        factor: p, [K, ..., B].
        precision: as in lax.

    Returns:
        [M, ..., B].

    Example:
        >>> shared_product(jnp.ones((3, 2)), jnp.ones((2, 4, 4, 5))).shape
        (3, 4, 4, 5)
    """
    product: Array = product_p.bind(*vary_alike(matrix, factor), result="product", precision=precision)
    return product


def _operands(result: Role) -> list[Role]:
    return [role for role in ROLES if role != result]


def _apart(x: Array, y: Array, *, result: Role, precision: Any) -> Array:
    """One contraction, its axes as they are."""
    rest = tuple(range(1, y.ndim))
    contracted = {"product": ((1,), (0,)), "factor": ((0,), (0,)), "matrix": (rest, rest)}[result]
    if result == "matrix":  # of (p, z): z p^T
        x, y = y, x
    return lax.dot_general(x, y, (contracted, ((), ())), precision=precision)


def _merged(x: Array, y: Array, *, result: Role, precision: Any) -> Array:
    """One product of two matrices."""
    flat = y.reshape(len(y), -1)
    if result == "matrix":
        return jnp.dot(flat, x.reshape(len(x), -1).T, precision=precision)
    z: Array = jnp.dot(x if result == "product" else x.T, flat, precision=precision)
    return z.reshape(-1, *y.shape[1:])


def _transpose(operand: int, ct: Any, x: Any, y: Any, *, result: Role, precision: Any) -> Any:
    roles = _operands(result)
    factors = {result: ct, roles[1 - operand]: (x, y)[1 - operand]}
    wanted = roles[operand]
    return product_p.bind(*(factors[role] for role in _operands(wanted)), result=wanted, precision=precision)


def _batch(args: Any, dims: Any, *, result: Role, precision: Any) -> tuple[Array, int]:
    """An axis mapped over the second array alone joins its batch; of others it is JAX's own."""
    (x, y), (of_x, of_y) = args, dims
    if of_x is not None or result == "matrix":
        return jax.vmap(partial(_merged, result=result, precision=precision), dims)(x, y), 0
    y = jnp.moveaxis(y, of_y, -1)
    z = product_p.bind(x, y.reshape(*y.shape[:-2], -1), result=result, precision=precision)
    return z.reshape(len(z), *y.shape[1:]), y.ndim - 1


def _lowered(context: Any, *args: Any, **params: Any) -> Any:
    """Several devices in its context: those that the compiler places on."""
    is_placed = getattr(context.module_context.axis_context, "num_devices", 1) > 1
    return mlir.lower_fun(_apart if is_placed else _merged, multiple_results=False)(context, *args, **params)


def _abstract_eval(x: Any, y: Any, **params: Any) -> Any:
    shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, y))
    return y.update(shape=jax.eval_shape(partial(_merged, **params), *shapes).shape, weak_type=False)


_compiled = jax.jit(product_p.bind, static_argnames=("result", "precision"))


def _impl(x: Array, y: Array, **form: Any) -> Array:
    """Compiled by itself, or as it stands where jit is disabled."""
    is_eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    return (_merged if is_eager else _compiled)(x, y, **form)


product_p.def_impl(_impl)
product_p.def_abstract_eval(_abstract_eval)
ad.defbilinear(product_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[product_p] = _batch
mlir.register_lowering(product_p, _lowered)
