"""One partial gradient of the trilinear form as a primitive: its derivatives are the other two."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jacreg_jax.convolution.form import Geometry, Role, operand_roles, shape_of
from jacreg_jax.convolution.lax_form import lax_form
from jacreg_jax.convolution.matmul_form import matmul_form
from jacreg_jax.convolution.toom_cook_form import covers, toom_cook_form
from jacreg_jax.types import Array

convolution_p = Primitive("jacreg_convolution")


def _abstract_eval(a: Any, b: Any, *, result: Role, geometry: Geometry, precision: Any) -> Any:
    del precision
    return a.update(shape=shape_of(result, geometry, a.shape, b.shape), weak_type=False)


def _transpose(operand: int, ct: Any, a: Any, b: Any, *, result: Role, geometry: Geometry, precision: Any) -> Any:
    """<ct, form(a, b)> = T: its gradient in one argument is the form of that argument's role."""
    roles = operand_roles(result)
    wanted, kept = roles[operand], roles[1 - operand]
    factors = {result: ct, kept: (a, b)[1 - operand]}
    first, second = (factors[role] for role in operand_roles(wanted))
    return convolution_p.bind(first, second, result=wanted, geometry=geometry, precision=precision)


# Axis of each operand that the result keeps, and where: rows of the batch, or channels
_KEPT_AXES: dict[Role, Any] = {
    "output": ((-4, -4), (-1, -1)),
    "input": ((-2, -1), (-4, -4)),
    "kernel": ((-1, -2), (-1, -1)),
}


def _batch(args: Any, dims: Any, *, result: Role, geometry: Geometry, precision: Any) -> tuple[Array, int]:
    """Under vmap over one operand the same form with a longer axis; over both, with one more leading dimension."""
    bind = partial(convolution_p.bind, result=result, geometry=geometry, precision=precision)
    if all(dim is not None for dim in dims):
        return bind(*(jnp.moveaxis(a, dim, 0) for a, dim in zip(args, dims, strict=True))), 0
    mapped = 0 if dims[1] is None else 1
    axis, out_axis = _KEPT_AXES[result][mapped]
    args = list(args)
    size = args[mapped].shape[dims[mapped]]
    args[mapped] = _merge(args[mapped], dims[mapped], axis)
    out = bind(*args)
    out_axis += out.ndim
    return out.reshape(*out.shape[:out_axis], size, -1, *out.shape[out_axis + 1 :]), out_axis


def _merge(a: Array, dim: int, axis: int) -> Array:
    """The dimension dim moved before `axis` (counted from the end, without dim) and merged with it."""
    a = jnp.moveaxis(a, dim, axis - 1)
    axis += a.ndim
    return a.reshape(*a.shape[: axis - 1], -1, *a.shape[axis + 1 :])


_compiled = jax.jit(convolution_p.bind, static_argnames=("result", "geometry", "precision"))


def _impl(a: Array, b: Array, **form: Any) -> Array:
    """Compiled by itself, or as XLA's own where jit is disabled."""
    is_eager = jax.config.jax_disable_jit  # type: ignore[attr-defined]
    return lax_form(a, b, **form) if is_eager else _compiled(a, b, **form)


def _cpu_form(a: Array, b: Array, *, result: Role, geometry: Geometry, precision: Any) -> Array:
    """The fastest realisation on CPU."""
    if covers(a.shape, b.shape, a.dtype, result=result, geometry=geometry, precision=precision):
        return toom_cook_form(a, b, result=result, geometry=geometry)
    return matmul_form(a, b, result=result, geometry=geometry, precision=precision)


convolution_p.def_impl(_impl)
convolution_p.def_abstract_eval(_abstract_eval)
ad.defbilinear(convolution_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(lax_form, multiple_results=False))
mlir.register_lowering(convolution_p, mlir.lower_fun(_cpu_form, multiple_results=False), platform="cpu")
