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
    lhs, rhs = vary_alike(jnp.asarray(lhs), jnp.asarray(rhs))
    return convolution_p.bind(lhs, rhs, result="output", geometry=geometry, precision=precision)


def _is_nhwc(lhs_shape, rhs_shape, dimension_numbers) -> bool:
    if len(lhs_shape) != 4:
        return False
    numbers = lax.conv_dimension_numbers(lhs_shape, rhs_shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(lhs_shape, rhs_shape, NHWC)


def vary_alike(*arrays):
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
    """XLA's own convolution and its own transposes, over leading dimensions by vmap."""
    if a.ndim > 4:
        return jax.vmap(partial(_lax_form, result=result, geometry=geometry, precision=precision))(a, b)
    convolve = partial(
        lax.conv_general_dilated,
        window_strides=geometry.strides,
        padding=geometry.padding,
        dimension_numbers=NHWC,
        precision=precision,
    )
    if result == "output":
        return convolve(a, b)
    linear = (lambda x: convolve(x, a)) if result == "input" else (lambda w: convolve(a, w))
    return _transposed(linear, _shape(result, geometry, a.shape, b.shape), b)


def _transposed(linear, shape, ct):
    """The transpose of a linear function of an array of this shape, at ct."""
    like, _ = vary_alike(jnp.zeros(shape, ct.dtype), ct)
    return jax.linear_transpose(linear, like)(ct)[0]


def _matmul_form(a, b, *, result, geometry, precision):
    """Matmuls on the patches of a block of samples at a time: y = P(x) w, dx = P^T(g w^T), dw = P(x)^T g."""
    form = partial(_MATMUL_FORMS[result], geometry=geometry, precision=precision)
    for _ in range(a.ndim - 4):
        form = jax.vmap(form)
    return form(a, b)


def _matmul_output(x, w, *, geometry, precision):
    tiling = Tiling.of(geometry, *w.shape[2:])
    band = tiling.band(w)

    def block(x):
        return tiling.untile(jnp.dot(tiling.patches(x), band, precision=precision))

    return _map_blocks(block, tiling.block_size(x.dtype), x)


def _matmul_input(w, g, *, geometry, precision):
    tiling = Tiling.of(geometry, *w.shape[2:])
    band = tiling.band(w)

    def block(g):
        patches = jnp.dot(tiling.tile(g), band.T, precision=precision)
        return _transposed(tiling.patches, (g.shape[0], *geometry.input, w.shape[2]), patches)

    return _map_blocks(block, tiling.block_size(w.dtype), g)


def _matmul_kernel(x, g, *, geometry, precision):
    tiling = Tiling.of(geometry, x.shape[-1], g.shape[-1])
    wide = jnp.promote_types(x.dtype, jnp.float32)  # sum over blocks without rounding in between

    def block(x, g):  # (g^T P)^T, the faster order
        return jnp.dot(tiling.tile(g).T, tiling.patches(x), precision=precision, preferred_element_type=wide)

    band = _sum_blocks(block, tiling.block_size(x.dtype), x, g).T
    return _transposed(tiling.band, (*geometry.kernel, *tiling.channels), band).astype(x.dtype)


_MATMUL_FORMS = {"output": _matmul_output, "input": _matmul_input, "kernel": _matmul_kernel}


class Tiling(NamedTuple):
    """Row-tiled Toeplitz form of a convolution: t output columns at once from the k rows of columns that they see.

    patches(x) [rows, K] @ band(w) [K, t O], K = k_h ((t - 1) s + k_w) C. Against im2col, which is t = 1, the band costs
    ((t - 1) s + k_w) / k_w times the arithmetic and moves that over t of the patch bytes: it pays for few channels,
    whose matmuls would be too thin to be bound by arithmetic.
    """

    geometry: Geometry
    channels: tuple[int, int]
    columns: int

    @classmethod
    def of(cls, geometry: Geometry, *channels: int) -> "Tiling":
        """The tiling for C input and O output channels.

        t O of 24 or more fills the vector registers, t of k_w - 1 keeps the band below twice the arithmetic, and a
        divisor of the output's width leaves no column unused.
        """
        width = geometry.output[1]
        columns = 1
        if _is_narrow(*channels):
            least = max(2, geometry.kernel[1] - 1, -(-24 // channels[1]))
            columns = next((t for t in range(least, 2 * least) if width % t == 0), least)
        return cls(geometry, channels, min(width, columns))

    @property
    def tiles(self) -> int:
        """Of t columns in a row of the output."""
        return -(-self.geometry.output[1] // self.columns)

    @property
    def width(self) -> int:
        """Input columns that a tile sees."""
        return (self.columns - 1) * self.geometry.strides[1] + self.geometry.kernel[1]

    def block_size(self, dtype) -> int:
        """Samples whose patches stay in cache, and outweigh the kernel that every block reads again."""
        (kh, kw), (out_h, _) = self.geometry.kernel, self.geometry.output
        sample = out_h * self.tiles * kh * self.width * self.channels[0]
        kernel = kh * kw * self.channels[0] * self.channels[1]
        limit = 2**23 if _is_narrow(*self.channels) else 2**22
        return max(1, max(limit // dtype.itemsize, 2 * kernel) // sample)

    def patches(self, x):
        """[n, H, W, C] -> [n H' tiles, k_h width C]."""
        (kh, _), (sh, sw), (out_h, _) = self.geometry.kernel, self.geometry.strides, self.geometry.output
        step = self.columns * sw
        read = ((out_h - 1) * sh + kh, (self.tiles - 1) * step + self.width)
        sizes = zip(self.geometry.input, read, self.geometry.padding, strict=True)
        pads = [(low, n - size - low, 0) for size, n, (low, _) in sizes]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
        rows = [slice(u, u + (out_h - 1) * sh + 1, sh) for u in range(kh)]
        if self.columns == 1:
            across = [slice(v, v + (self.tiles - 1) * sw + 1, sw) for v in range(self.width)]
            x = jnp.concatenate([x[:, row, column] for row in rows for column in across], axis=-1)
            return x.reshape(-1, x.shape[-1])
        x = jnp.stack([x[:, :, j * step : j * step + self.width] for j in range(self.tiles)], axis=2)
        x = jnp.stack([x[:, row] for row in rows], axis=3)
        return x.reshape(-1, kh * self.width * x.shape[-1])

    def band(self, w):
        """[k_h, k_w, C, O] -> [k_h width C, t O]: the kernel at each of the t places it takes in the width."""
        kh, kw, channels, features = w.shape
        t, v, p = np.ogrid[: self.columns, :kw, : self.width]
        places = (p == t * self.geometry.strides[1] + v).astype(w.dtype)
        band = jnp.einsum("tvp,uvco->upcto", places, w, precision=lax.Precision.HIGHEST)
        return band.reshape(kh * self.width * channels, self.columns * features)

    def tile(self, y):
        """[n, H', W', O] -> [n H' tiles, t O], columns filled up with zeros."""
        fill = self.tiles * self.columns - self.geometry.output[1]
        return jnp.pad(y, ((0, 0), (0, 0), (0, fill), (0, 0))).reshape(-1, self.columns * y.shape[-1])

    def untile(self, y):
        """The inverse of tile."""
        out_h, out_w = self.geometry.output
        return y.reshape(-1, out_h, self.tiles * self.columns, self.channels[1])[:, :, :out_w]


def _is_narrow(channels: int, features: int) -> bool:
    return channels * features <= 256


def _map_blocks(f, size: int, x):
    """f, linear and row by row, on blocks of about this many samples."""
    (blocks,) = _blocks(size, x)
    y = f(blocks[0])[None] if len(blocks) == 1 else lax.map(f, blocks)
    return y.reshape(-1, *y.shape[2:])[: x.shape[0]]


def _sum_blocks(f, size: int, *arrays):
    """The sum of f over the blocks; f is zero on zeros."""
    blocks = _blocks(size, *arrays)
    total = f(*(a[0] for a in blocks))
    if len(blocks[0]) == 1:
        return total
    return lax.scan(lambda total, block: (total + f(*block), None), total, [a[1:] for a in blocks])[0]


def _blocks(size: int, *arrays):
    """Arrays [B, ...] as [blocks, n, ...], filled up with zeros where no near number of blocks divides B."""
    batch = arrays[0].shape[0]
    fewest = -(-batch // min(size, batch))
    blocks = next((k for k in range(fewest, min(2 * fewest, batch) + 1) if batch % k == 0), fewest)
    rows = -(-batch // blocks)
    fill = blocks * rows - batch
    if fill:
        arrays = [jnp.pad(a, ((0, fill),) + ((0, 0),) * (a.ndim - 1)) for a in arrays]
    return [a.reshape(blocks, rows, *a.shape[1:]) for a in arrays]


convolution_p.def_impl(jax.jit(convolution_p.bind, static_argnames=("result", "geometry", "precision")))
convolution_p.def_abstract_eval(_abstract_eval)
ad.defbilinear(convolution_p, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[convolution_p] = _batch
mlir.register_lowering(convolution_p, mlir.lower_fun(_lax_form, multiple_results=False))
mlir.register_lowering(convolution_p, mlir.lower_fun(_matmul_form, multiple_results=False), platform="cpu")


def max_pool(x, window_shape: Sequence[int], strides: Sequence[int] | None = None, padding="VALID"):
    """Maximum over windows, as `flax.linen.max_pool`, with a fast gradient where windows do not overlap.

    Windows that tile the input, [..., H, W, C] with window = stride and no padding, are a reshape and a maximum; its
    gradient goes to the first of the ties, as XLA's does. Anything else is XLA's own `reduce_window`.

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
    return _max_of_tiles(x.reshape(*x.shape[:lead], *split, x.shape[-1]), n)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_of_tiles(x, n):
    """Maximum over the window axes of [..., H', k, W', k, C]; n pairs of axes."""
    return jnp.max(x, axis=_window_axes(n))


@_max_of_tiles.defjvp
def _max_of_tiles_jvp(n, primals, tangents):
    """The tangent at the first maximum: a select, whose transpose is a select, and no gradient through the mask."""
    (x,), (t,) = primals, tangents
    y, axes = _max_of_tiles(x, n), _window_axes(n)
    sizes = [size if axis - x.ndim in axes else 1 for axis, size in enumerate(x.shape)]
    places = list(np.ndindex(*(x.shape[axis] for axis in axes)))
    at = lambda place: (..., *(i for k in place for i in (slice(None), k)), slice(None))
    small = jnp.int8 if len(places) < 128 else jnp.int32
    first = jnp.full(y.shape, len(places) - 1, small)
    for index in reversed(range(len(places) - 1)):
        first = jnp.where(x[at(places[index])] == y, jnp.asarray(index, small), first)
    chosen = jnp.expand_dims(first, axes) == jnp.arange(len(places), dtype=small).reshape(sizes)
    return y, jnp.sum(jnp.where(chosen, t, 0), axis=axes)


def _window_axes(n):
    """(-2 n, ..., -4, -2): the second of each pair of axes before the channels."""
    return tuple(range(-2 * n, 0, 2))
