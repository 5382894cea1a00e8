"""The trilinear form of a convolution: its geometry, and the shapes of its three partial gradients."""

from typing import Literal, NamedTuple, TypeAlias

from jacreg_jax.manual_axes import varying
from jacreg_jax.types import Array

NHWC = ("NHWC", "HWIO", "NHWC")
Role: TypeAlias = Literal["input", "kernel", "output"]
ROLES: tuple[Role, ...] = ("input", "kernel", "output")
Shape: TypeAlias = tuple[int, ...]


class Geometry(NamedTuple):
    """What the three forms share: spatial sizes, strides, and padding ((low, high), (low, high))."""

    input: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def output(self) -> tuple[int, int]:
        """(H', W')."""
        sizes = zip(self.input, self.kernel, self.strides, self.padding, strict=True)
        rows, columns = ((n + sum(pad) - k) // s + 1 for n, k, s, pad in sizes)
        return rows, columns


def operand_roles(result: Role) -> tuple[Role, Role]:
    """The two arguments of the form, in the order of ROLES."""
    first, second = (role for role in ROLES if role != result)
    return first, second


def channels_of(result: Role, a: Shape, b: Shape) -> tuple[int, int]:
    """(C, O), from the operands' shapes."""
    kernel = {"output": b[-2:], "input": a[-2:], "kernel": (a[-1], b[-1])}[result]
    return kernel[0], kernel[1]


def shape_of(result: Role, geometry: Geometry, a: Shape, b: Shape) -> Shape:
    """Of the result, from the operands' shapes; leading dimensions are those of vmap over both operands."""
    if result == "output":
        return (*a[:-3], *geometry.output, b[-1])
    if result == "input":
        return (*b[:-3], *geometry.input, a[-2])
    return (*a[:-4], *geometry.kernel, a[-1], b[-1])


def vary_alike(*arrays: Array) -> list[Array]:
    """Inside shard_map: every array varying over the same manual axes, as lax's own operations make them."""
    return [varying(array, *arrays) for array in arrays]
