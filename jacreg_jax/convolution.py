"""Convolution and max pooling whose derivatives of every order run at matmul speed on CPU; XLA's own elsewhere.

A convolution is one trilinear form in input x, kernel w and output cotangent g,

    T(x, w, g) = sum_{b,i,j,o} g[b,i,j,o] sum_{u,v,c} x[b, s i + u, s j + v, c] w[u,v,c,o],

and its three partial gradients, "output" (x, w) -> y, "input" (w, g) -> dx and "kernel" (x, g) -> dw, are closed under
differentiation: the derivative of each, in either argument and to any order, is another of the three. So one primitive
with three realisations holds them all, and the platform picks the realisation when the program is lowered. On CPU,
XLA's own runs "input" and "kernel" of convolutions in loops, slower again inside `scan`; here they are matmuls.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

NHWC = ("NHWC", "HWIO", "NHWC")
ROLES = ("input", "kernel", "output")


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
        return tuple((n + sum(pad) - k) // s + 1 for n, k, s, pad in sizes)


def conv_general_dilated(
    lhs,
    rhs,
    window_strides: Sequence[int],
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
):
    """`jax.lax.conv_general_dilated` that differentiates any number of times at matmul speed on CPU.

    y[b,i,j,o] = sum_{u,v,c} x[b, s i + u, s j + v, c] w[u,v,c,o] for two spatial dimensions in NHWC / HWIO, with any
    strides and padding. Dilation, groups, other layouts and other ranks go to `jax.lax.conv_general_dilated`. In flax:
    `nn.Conv(features, (3, 3), conv_general_dilated=conv_general_dilated)`. Forward and reverse mode, `vmap`, `scan`,
    jit and shard_map; the platform is that of the compiled program, so a GPU or TPU gets the plain lax convolution.

    Args:
        lhs: x, [B, H, W, C].
        rhs: w, [kh, kw, C, O], of the dtype of x.
        window_strides: (s_h, s_w).
        padding: "SAME", "VALID" or ((low, high), (low, high)).
        lhs_dilation: as in lax.
        rhs_dilation: as in lax.
        dimension_numbers: as in lax; ("NHWC", "HWIO", "NHWC") is covered.
        feature_group_count: as in lax.
        batch_group_count: as in lax.
        precision: of the matmuls, as in lax.
        preferred_element_type: as in lax.

    Returns:
        [B, H', W', O].

    Raises:
        TypeError, ValueError: as lax does.
    """
    plain = partial(
        lax.conv_general_dilated,
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    out = jax.eval_shape(plain)  # lax's own checks and messages, covered or not
    is_undilated = all(d is None or set(d) <= {1} for d in (lhs_dilation, rhs_dilation))
    is_ungrouped = feature_group_count == batch_group_count == 1
    is_covered = is_undilated and is_ungrouped and preferred_element_type is None and jnp.issubdtype(out, jnp.floating)
    if not (is_covered and _is_nhwc(np.shape(lhs), np.shape(rhs), dimension_numbers) and out.size):
        return plain()
    (_, *size, _), (*kernel, _, _) = np.shape(lhs), np.shape(rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel, window_strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    geometry = Geometry(tuple(size), tuple(kernel), tuple(map(int, window_strides)), padding)
    lhs, rhs = _vary_alike(jnp.asarray(lhs), jnp.asarray(rhs))
    return convolution_p.bind(lhs, rhs, result="output", geometry=geometry, precision=precision)


def _is_nhwc(lhs_shape, rhs_shape, dimension_numbers) -> bool:
    if len(lhs_shape) != 4:
        return False
    numbers = lax.conv_dimension_numbers(lhs_shape, rhs_shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(lhs_shape, rhs_shape, NHWC)


def _vary_alike(*arrays):
    """Inside shard_map: every array varying over the same manual axes, as lax's own operations make them."""
    axes = [_manual_axes(a) for a in arrays]
    missing = [tuple(sorted(frozenset.union(*axes) - own)) for own in axes]
    return [lax.pcast(a, names, to="varying") if names else a for a, names in zip(arrays, missing, strict=True)]


def _manual_axes(array) -> frozenset:
    aval = jax.typeof(array)
    return aval.vma if hasattr(aval, "vma") else aval.mat.varying


# the primitive: one partial gradient of the trilinear form


convolution_p = Primitive("jacreg_convolution")


def operand_roles(result: str) -> tuple[str, str]:
    """The two arguments of the form, in the order of ROLES."""
    return tuple(role for role in ROLES if role != result)


def _shape(result, geometry, a, b):
    """Of the result, from the operands' shapes; leading dimensions are those of vmap over both operands."""
    if result == "output":
        return (*a[:-3], *geometry.output, b[-1])
    if result == "input":
        return (*b[:-3], *geometry.input, a[-2])
    return (*a[:-4], *geometry.kernel, a[-1], b[-1])


def _abstract_eval(a, b, *, result, geometry, precision):
    del precision
    return a.update(shape=_shape(result, geometry, a.shape, b.shape), weak_type=False)


def _transpose(operand: int, ct, a, b, *, result, geometry, precision):
    """<ct, form(a, b)> = T: its gradient in one argument is the form of that argument's role."""
    roles = operand_roles(result)
    wanted, kept = roles[operand], roles[1 - operand]
    factors = {result: ct, kept: (a, b)[1 - operand]}
    first, second = (factors[role] for role in operand_roles(wanted))
    return convolution_p.bind(first, second, result=wanted, geometry=geometry, precision=precision)


# Axis of each operand that the result keeps, and where: rows of the batch, or channels
_KEPT_AXES = {
    "output": ((-4, -4), (-1, -1)),
    "input": ((-2, -1), (-4, -4)),
    "kernel": ((-1, -2), (-1, -1)),
}


def _batch(args, dims, *, result, geometry, precision):
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


def _merge(a, dim, axis):
    """The dimension dim moved before `axis` (counted from the end, without dim) and merged with it."""
    a = jnp.moveaxis(a, dim, axis - 1)
    axis += a.ndim
    return a.reshape(*a.shape[: axis - 1], -1, *a.shape[axis + 1 :])


# realisations


def _lax_form(a, b, *, result, geometry, precision):
    """XLA's own convolution, and its own transposes."""
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=geometry.strides,
        padding=geometry.padding,
        dimension_numbers=NHWC,
        precision=precision,
    )
    return _realise(convolve, a, b, result, geometry)


def _matmul_form(a, b, *, result, geometry, precision):
    """Matmuls."""
    return _realise(partial(_toeplitz, geometry=geometry, precision=precision), a, b, result, geometry)


def _realise(convolve, a, b, result, geometry):
    """The form, from a function (x, w) -> y: itself or one of its transposes, over leading dimensions by vmap."""
    if a.ndim > 4:
        return jax.vmap(partial(_realise, convolve, result=result, geometry=geometry))(a, b)
    if result == "output":
        return convolve(a, b)
    wanted, _ = _vary_alike(jnp.zeros(_shape(result, geometry, a.shape, b.shape), a.dtype), a)
    linear = partial(lambda w, x: convolve(x, w), a) if result == "input" else partial(convolve, a)
    return jax.linear_transpose(linear, wanted)(b)[0]


def _toeplitz(x, w, *, geometry, precision):
    """Row-tiled Toeplitz matmul: t output columns at a time, from the k rows of (t - 1) s + k columns they see."""
    (kh, kw), (sh, sw), (out_h, out_w) = geometry.kernel, geometry.strides, geometry.output
    batch, channels, features = x.shape[0], x.shape[3], w.shape[3]
    tile = _tile(out_w, channels)
    tiles = -(-out_w // tile)
    width = (tile - 1) * sw + kw
    needed = ((out_h - 1) * sh + kh, (tiles - 1) * tile * sw + width)  # input rows and columns that are read
    pads = [
        (low, n - size - low, 0) for size, n, (low, _) in zip(geometry.input, needed, geometry.padding, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    columns = [x[:, :, j * tile * sw : j * tile * sw + width] for j in range(tiles)]
    x = columns[0][:, :, None] if tiles == 1 else jnp.stack(columns, axis=2)  # [B, H, tiles, width, C]
    rows = [x[:, u : u + (out_h - 1) * sh + 1 : sh] for u in range(kh)]
    x = rows[0][:, :, :, None] if kh == 1 else jnp.stack(rows, axis=3)  # [B, H', tiles, kh, width, C]
    banded = jnp.einsum("tvp,uvco->upcto", _shifts(tile, kw, sw, x.dtype), w, precision=lax.Precision.HIGHEST)
    y = jnp.dot(
        x.reshape(batch * out_h * tiles, kh * width * channels),
        banded.reshape(kh * width * channels, tile * features),
        precision=precision,
    )
    return y.reshape(batch, out_h, tiles * tile, features)[:, :, :out_w]


def _shifts(tile: int, kernel: int, stride: int, dtype):
    """[tile, kernel, width] of 0 and 1: output column t sees through kernel column v the input column s t + v."""
    t, v, p = np.ogrid[:tile, :kernel, : (tile - 1) * stride + kernel]
    return (p == stride * t + v).astype(dtype)


def _tile(out_w: int, channels: int) -> int:
    """Columns at once: the band costs (t + k - 1) / k times the arithmetic and saves as much of the patch traffic."""
    return min(out_w, 5 if channels <= 8 else 1)


convolution_p.def_impl(jax.jit(convolution_p.bind, static_argnames=("result", "geometry", "precision")))
convolution_p.def_abstract_eval(_abstract_eval)
ad.defbilinear(convolution_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(_lax_form, multiple_results=False))
mlir.register_lowering(convolution_p, mlir.lower_fun(_matmul_form, multiple_results=False), platform="cpu")


def max_pool(x, window_shape: Sequence[int], strides: Sequence[int] | None = None, padding="VALID"):
    """Maximum over windows, as `flax.linen.max_pool`, with a fast gradient where windows do not overlap.

    Windows that tile the input, [..., H, W, C] with window = stride and no padding, are a reshape and a maximum; its
    gradient splits evenly among ties, where XLA's goes to the first. Anything else is XLA's own `reduce_window`.

    Args:
        x: [..., spatial dimensions, C]; with or without a batch dimension.
        window_shape: one size for each spatial dimension.
        strides: steps between windows; None: 1 in each dimension, as in flax.
        padding: "VALID", "SAME" or (low, high) for each spatial dimension.

    Returns:
        [..., H', W', C].

    Raises:
        ValueError: sizes of window_shape, strides and x that do not fit together.
    """
    window, n = tuple(window_shape), len(window_shape)
    strides = (1,) * n if strides is None else tuple(strides)
    if len(strides) != n or x.ndim < n + 1:
        raise ValueError(
            f"strides and the spatial dimensions of x must be as many as window_shape, got window_shape={window}, "
            f"strides={strides} and x of shape {x.shape}"
        )
    lead = x.ndim - n - 1
    spatial = x.shape[lead:-1]
    if not isinstance(padding, str):
        padding = ((0, 0),) * lead + tuple(map(tuple, padding)) + ((0, 0),)
    is_unpadded = padding == "VALID" or not np.any(padding if not isinstance(padding, str) else 1)
    fits = all(size >= k for size, k in zip(spatial, window, strict=True))
    if not (window == strides and is_unpadded and fits):
        ones = (1,) * lead
        return lax.reduce_window(x, -jnp.inf, lax.max, (*ones, *window, 1), (*ones, *strides, 1), padding)
    counts = [size // k for size, k in zip(spatial, window, strict=True)]
    x = x[(..., *(slice(c * k) for c, k in zip(counts, window, strict=True)), slice(None))]
    split = [n for pair in zip(counts, window, strict=True) for n in pair]
    x = x.reshape(*x.shape[:lead], *split, x.shape[-1])
    return jnp.max(x, axis=tuple(range(lead + 1, lead + 2 * n, 2)))
