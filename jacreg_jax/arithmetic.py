"""How much arithmetic a function is, counted from its program without compiling it."""

from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jacreg_jax.convolution.form import operand_roles
from jacreg_jax.signatures import CALLS, directly_inner
from jacreg_jax.types import Function

REPEATED = CALLS | {"scan", "while", "cond", "shard_map"}  # what runs a program; others have one for two numbers


def operations(f: Function, *args: Any) -> int:
    """Two for every product of a matrix product or a convolution, one for every entry that other operations give.

    Args:
        f: function of these arguments.
        *args: pytrees of arrays, or of the shapes of them.

    Raises:
        Exception: whatever f raises for them.

    Example:
        >>> operations(lambda x: jax.nn.relu(x @ x), jax.ShapeDtypeStruct((10, 10), float))
        2100
    """
    return _count(jax.make_jaxpr(lambda *args: f(*args))(*jax.eval_shape(lambda *args: args, *args)).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> int:
    name, params = str(equation.primitive), equation.params
    if name in REPEATED:
        programs = [p.jaxpr if isinstance(p, ClosedJaxpr) else p for p in directly_inner(equation)]
        times = params["mesh"].size if name == "shard_map" else params.get("length", 1)
        return int(times) * sum(map(_count, programs))
    result, *_ = shapes = [out.aval.shape for out in equation.outvars] or [()]
    operands = [variable.aval.shape for variable in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * prod(result) * prod(operands[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        features = operands[1][params["dimension_numbers"].rhs_spec[0]]
        return 2 * prod(result) * prod(operands[1]) // features
    if name == "jacreg_convolution":
        roles = dict(zip(operand_roles(params["result"]), operands, strict=True)) | {params["result"]: result}
        return 2 * prod(roles["output"]) * prod(roles["kernel"][-4:-1])
    if name == "jacreg_product":
        matrix = result if params["result"] == "matrix" else operands[0]
        return 2 * prod(matrix) * prod(operands[1][1:])
    return sum(map(prod, shapes))
