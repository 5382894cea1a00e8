"""Convolution and max pooling as one operation with the batch on the last axis: fast second derivatives on CPU.

The four outputs that a 2x2 window takes the maximum of, its phases, are four convolutions of stride 2, so that

    y[o,i,j,b] = max_{p,q<2} sum_{u,v,c} x[c, 2i + p + u, 2j + q + v, b] w[u,v,c,o]

is one matmul and a maximum over a major axis: the kernel at its four places [K, O, 4] times patches of the image
[K, H', W', B]. Read as a 2x2 grid of coarse pixels, a patch of a 5x5 kernel is 3x3 of them, and every loop (patches,
matmul, maximum, bias, nonlinearity) runs along the batch, contiguous in memory. The phases cost
((k + 1) / k)^2 times the arithmetic of the convolution (1.44 for k = 5), which the speed of one dense matmul repays
where channels are few.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jacreg_jax import checks
from jacreg_jax.convolution.form import vary_alike
from jacreg_jax.explicit_layers import over_rows
from jacreg_jax.rows import at_least_float32
from jacreg_jax.shared_product import shared_product
from jacreg_jax.types import Array

CHWN = ("CHWN", "HWIO", "CHWN")


@over_rows(-1)
@partial(jax.jit, static_argnames=("padding", "window", "precision"))
def conv_max_pool(
    x: Array, w: Array, padding: str | Sequence[tuple[int, int]] = "VALID", *, window: int = 2, precision: Any = None
) -> Array:
    """Maxima of a convolution of stride 1 over windows that tile its output; the batch is the last axis.

    y[o,i,j,b] = max_{p,q<n} sum_{u,v,c} x[c, n i + p + u, n j + q + v, b] w[u,v,c,o], n = window, x padded. Output rows
    and columns that fill no window are left out. The gradient goes to the first of the ties: places within
    4 eps sum |w| max |x| of the maximum, eps of float32 at least, in which they are summed. All derivatives in
    either mode, `vmap`, `scan`, jit and shard_map. A bias and a rising activation may follow instead of lie between:
    max tanh(z + b) = tanh(max z + b).

    Args:
        x: images, [C, H, W, B].
        w: kernel, [kh, kw, C, O].
        padding: "SAME", "VALID" or ((low, high), (low, high)), of the convolution.
        window: n, side of the windows and the step between them.
        precision: of the matmul, as in lax.

    Returns:
        [O, H', W', B], H' = (H + low + high - kh + 1) // n.

    Raises:
        ValueError: x or w not four-dimensional, channels that differ, window below 1, or no whole window.

    Example:
        >>> conv_max_pool(jnp.ones((1, 6, 6, 3)), jnp.ones((3, 3, 1, 4))).shape
        (4, 2, 2, 3)
    """
    padding = _checked_padding(x, w, padding, window)
    taps = tuple(-(-(k + window - 1) // window) for k in w.shape[:2])
    sizes = zip(x.shape[1:3], w.shape[:2], padding, strict=True)
    out = [(size + low + high - k + 1) // window for size, k, (low, high) in sizes]
    read = [window * (n + t - 1) for n, t in zip(out, taps, strict=True)]
    pads = [(low, n - size - low, 0) for size, n, (low, _) in zip(x.shape[1:3], read, padding, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    patches = patches_p.bind(x, window=window, taps=taps)
    phases = _phases(w, window, taps)
    z = shared_product(phases.reshape(len(phases), -1).T, patches, precision)
    size = jnp.sum(jnp.abs(w), axis=(0, 1, 2))[:, None, None, None] * jnp.max(jnp.abs(x), axis=(0, 1, 2), keepdims=True)
    return max_of_places(z.reshape(*phases.shape[1:], *patches.shape[1:]), lax.stop_gradient(size))


def lax_conv_max_pool(
    x: Array, w: Array, padding: str | Sequence[tuple[int, int]] = "VALID", *, window: int = 2, precision: Any = None
) -> Array:
    """`conv_max_pool` as XLA's own convolution and `reduce_window`.

    Args:
        x: [C, H, W, B].
        w: [kh, kw, C, O].
        padding: "SAME", "VALID" or ((low, high), (low, high)), of the convolution.
        window: side of the pooling windows.
        precision: of the convolution, as in lax.

    Returns:
        [O, H', W', B].

    Raises:
        TypeError, ValueError: as `conv_max_pool`.

    Example:
        >>> lax_conv_max_pool(jnp.ones((1, 6, 6, 2)), jnp.ones((3, 3, 1, 4))).shape
        (4, 2, 2, 2)
    """
    padding = _checked_padding(x, w, padding, window)
    z = lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=CHWN, precision=precision)
    tiles = (1, window, window, 1)
    return lax.reduce_window(z, -jnp.inf, lax.max, tiles, tiles, "VALID")


def _checked_padding(x: Array, w: Array, padding: Any, window: int) -> tuple[tuple[int, int], ...]:
    for name, value in (("x", x), ("w", w)):
        if not (hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)):
            raise TypeError(
                f"{name} must be a floating point array, got {getattr(value, 'dtype', type(value).__name__)}"
            )
    if x.ndim != 4 or w.ndim != 4 or x.shape[0] != w.shape[2]:
        raise ValueError(f"x must be [C, H, W, B] and w [kh, kw, C, O], got shapes {x.shape} and {w.shape}")
    checks.count("window", window)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (1, 1), padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    sizes = zip(x.shape[1:3], w.shape[:2], padding, strict=True)
    if any(size + low + high - k + 1 < window for size, k, (low, high) in sizes):
        raise ValueError(f"no window of {window} fits: x {x.shape}, w {w.shape}, padding {padding}")
    return padding


def _phases(w: Array, window: int, taps: tuple[int, ...]) -> Array:
    """The kernel at its window^2 places, [K, O, window^2]; rows in the order of patches.

    That order, columns and rows of the patch as they come, meets the weights of every phase in the same sequence, so
    that their sums round alike.
    """
    (kh, kw, _, features), n = w.shape, window
    room = [t * n - k for t, k in zip(taps, (kh, kw), strict=True)]
    places = [(p, q) for p in range(n) for q in range(n)]
    padded = [jnp.pad(w, ((p, room[0] - p), (q, room[1] - q), (0, 0), (0, 0))) for p, q in places]
    phases = jnp.stack(padded, axis=4).transpose(1, 0, 2, 3, 4)
    return phases.reshape(-1, features, n * n)


# patches and their transpose


def _patches(x: Array, *, window: int, taps: tuple[int, int]) -> Array:
    """[C, n h, n w, B] -> [K, H', W', B], K = (columns, rows, C) of the pixels that an output sees.

    Read by coarse pixels of n x n, whose slices are contiguous.
    """
    n, (down, across) = window, taps
    x = jnp.stack([jnp.stack([x[:, a::n, b::n] for a in range(n)]) for b in range(n)])  # [n, n, C, h, w, B]
    height, width = x.shape[3] - down + 1, x.shape[4] - across + 1
    x = jnp.stack([x[:, :, :, u : u + height] for u in range(down)], axis=1)
    x = jnp.stack([x[..., v : v + width, :] for v in range(across)])
    return x.reshape(-1, *x.shape[5:])


def _overlap_add(patches: Array, *, window: int, taps: tuple[int, int]) -> Array:
    """The transpose of _patches: every patch added where it was read."""
    n, (down, across) = window, taps
    patches = patches.reshape(across, n, down, n, -1, *patches.shape[1:])
    zero = jnp.zeros((), patches.dtype)
    places = [(v, u) for v in range(across) for u in range(down)]
    margins: Any = lambda v, u: [*[(0, 0, 0)] * 3, (u, down - 1 - u, 0), (v, across - 1 - v, 0), (0, 0, 0)]
    x: Any = sum(lax.pad(patches[v, :, u], zero, margins(v, u)) for v, u in places)  # [b, a, C, h, w, B]
    x = x.transpose(2, 3, 1, 4, 0, 5)
    channels, height, _, width, _, batch = x.shape
    return x.reshape(channels, n * height, n * width, batch)


# maximum over the places of a window


@jax.custom_jvp
def max_of_places(z: Array, size: Array) -> Array:
    """max_k z[:, k] of [O, n, ..., B]; the gradient goes to the first place within 4 eps size of the maximum.

    size, at least the sum of the terms' sizes in each z, and eps, of float32 at least, in which they are summed.
    """
    del size
    return functools.reduce(jnp.maximum, [z[:, k] for k in range(z.shape[1])])


@max_of_places.defjvp
def _max_of_places_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The tangent at the first maximum: a select, whose transpose is a select, and no gradient through the index.

    Places that see equal pixels, such as a blank background, tie, but not to the last bit: a matmul may sum in another
    order for each. What lies within rounding of the maximum counts as one, or the gradient would depend on the program
    that it is a part of.
    """
    (z, size), (t, _) = primals, tangents
    y = max_of_places(z, size)
    count, index = z.shape[1], jnp.int8 if z.shape[1] < 128 else jnp.int32
    least = y - 4 * jnp.finfo(at_least_float32(z.dtype)).eps * size
    first = jnp.full(y.shape, count - 1, index)
    for k in reversed(range(count - 1)):
        first = jnp.where(z[:, k] >= least, jnp.asarray(k, index), first)
    return y, pick_p.bind(*vary_alike(first, t), count=count)


def _pick(first: Array, t: Array, *, count: int) -> Array:
    """t[o, first[o, ...], ...]: [O, ...] of indices and [O, n, ...] -> [O, ...]."""
    picked = t[:, count - 1]
    for k in reversed(range(count - 1)):
        picked = jnp.where(first == jnp.asarray(k, first.dtype), t[:, k], picked)
    return picked


def _place(first: Array, g: Array, *, count: int) -> Array:
    """The transpose of _pick: g at first, zero elsewhere; [O, ...] -> [O, n, ...]."""
    places = jnp.arange(count, dtype=first.dtype).reshape(1, count, *(1,) * (g.ndim - 1))
    return jnp.where(first[:, None] == places, g[:, None], jnp.zeros((), g.dtype))


# linear operations whose transposes are given


def _linear_pair(
    names: tuple[str, str], functions: tuple[Callable[..., Array], ...], alone: Callable[..., Array] | None = None
) -> tuple[Primitive, Primitive]:
    """Two primitives, each the other's transpose in its last argument; the last axis of every array is the batch.

    What JAX derives for a stack of slices is a sum of pads, one kernel each; a rule by hand is several times as fast.
    The result of the function `alone` is written to memory on CPU before anything reads it, see `_written`.
    """
    pair = Primitive(names[0]), Primitive(names[1])
    for primitive, function, transpose in zip(pair, functions, reversed(pair), strict=True):
        primitive.def_impl(partial(_impl, function))
        primitive.def_abstract_eval(partial(_abstract_eval, function))
        ad.primitive_jvps[primitive] = partial(_jvp, primitive)
        ad.primitive_transposes[primitive] = partial(_transpose, transpose)
        batching.primitive_batchers[primitive] = partial(_batch, primitive)
        mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
        if function is alone:
            mlir.register_lowering(primitive, mlir.lower_fun(_written(function), multiple_results=False), "cpu")
    return pair


def _written(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same function, whose result XLA fuses into nothing that reads it.

    XLA:CPU would fuse the nine terms of an overlap-add into the transposition behind it, which then reads every term
    column by column, or into each place of a window, which computes them as often: the gradient of LeNet' in its image
    takes more than twice as long. It drops optimization barriers before it fuses, but not a branch whose condition it
    cannot see through.
    """

    def branch(*args: Array, **params: Any) -> Array:
        run = partial(function, **params)
        return lax.cond(lax.optimization_barrier(True), run, lambda *args: -run(*args), *args)

    return branch


def _impl(function: Callable[..., Array], *args: Array, **params: Any) -> Array:
    return _compiled(function, tuple(sorted(params.items())))(*args)


@functools.cache
def _compiled(function: Callable[..., Array], params: tuple[tuple[str, Any], ...]) -> Callable[..., Array]:
    """One program for each function and its parameters, so that eager calls compile once."""
    return jax.jit(partial(function, **dict(params)))


def _abstract_eval(function: Callable[..., Array], *avals: Any, **params: Any) -> Any:
    shape = jax.eval_shape(partial(function, **params), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)).shape
    return avals[-1].update(shape=shape, weak_type=False)


def _jvp(primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    out = primitive.bind(*primals, **params)
    if type(tangents[-1]) is ad.Zero:
        return out, ad.Zero.from_primal_value(out)  # type: ignore[attr-defined]
    return out, primitive.bind(*primals[:-1], tangents[-1], **params)


def _transpose(transpose: Primitive, ct: Any, *args: Any, **params: Any) -> list[Any]:
    fixed: list[Any] = [None] * (len(args) - 1)
    if type(ct) is ad.Zero:
        return [*fixed, ad.Zero(args[-1].aval)]
    return [*fixed, transpose.bind(*vary_alike(*args[:-1], ct), **params)]


def _batch(primitive: Primitive, args: Any, dims: Any, **params: Any) -> tuple[Array, int]:
    """A mapped axis joins the batch."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)

    def join(a: Array, dim: int | None) -> Array:
        a = jnp.broadcast_to(a[..., None], (*a.shape, size)) if dim is None else jnp.moveaxis(a, dim, -1)
        return a.reshape(*a.shape[:-2], -1)

    out = primitive.bind(*(join(a, d) for a, d in zip(args, dims, strict=True)), **params)
    return out.reshape(*out.shape[:-1], -1, size), out.ndim


patches_p, overlap_add_p = _linear_pair(
    ("jacreg_patches", "jacreg_overlap_add"), (_patches, _overlap_add), _overlap_add
)
pick_p, place_p = _linear_pair(("jacreg_pick", "jacreg_place"), (_pick, _place), _pick)
