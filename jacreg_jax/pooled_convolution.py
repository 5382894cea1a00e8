"""Convolution and max pooling as one operation with the batch on the last axis: fast second derivatives on CPU.

The four outputs that a 2x2 window takes the maximum of, its phases, are four convolutions of stride 2, so that

    y[o,i,j,b] = max_{p,q<2} sum_{u,v,c} x[c, 2i + p + u, 2j + q + v, b] w[u,v,c,o]

is one matmul and a maximum over a leading axis: the kernel at its four places [K, 4, O] times patches of the image
[K, H', W', B]. Read as a 2x2 grid of coarse pixels, a patch of a 5x5 kernel is 3x3 of them, and every loop (patches,
matmul, maximum, bias, nonlinearity) runs along the batch, contiguous in memory. The phases cost
((k + 1) / k)^2 times the arithmetic of the convolution (1.44 for k = 5), which the speed of one dense matmul repays
where channels are few.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jacreg_jax.convolution import vary_alike

CHWN = ("CHWN", "HWIO", "CHWN")


def conv_max_pool(x, w, padding: str | Sequence[tuple[int, int]] = "VALID", *, window: int = 2, precision=None):
    """Maxima of a convolution of stride 1 over windows that tile its output; the batch is the last axis.

    y[o,i,j,b] = max_{p,q<n} sum_{u,v,c} x[c, n i + p + u, n j + q + v, b] w[u,v,c,o], n = window, x padded. Output rows
    and columns that fill no window are left out. The gradient goes to the first of the ties. Any number of derivatives
    in either mode, `vmap`, `scan`, jit and shard_map. A bias and a rising activation may follow instead of lie between:
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
    z = jnp.dot(phases.reshape(len(phases), -1).T, patches.reshape(len(phases), -1), precision=precision)
    return max_of_leading(z.reshape(*phases.shape[1:], *patches.shape[1:]))


def lax_conv_max_pool(x, w, padding="VALID", *, window: int = 2, precision=None):
    """`conv_max_pool` as XLA's own convolution and `reduce_window`."""
    padding = _checked_padding(x, w, padding, window)
    z = lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=CHWN, precision=precision)
    tiles = (1, window, window, 1)
    return lax.reduce_window(z, -jnp.inf, lax.max, tiles, tiles, "VALID")


def _checked_padding(x, w, padding, window):
    if x.ndim != 4 or w.ndim != 4 or x.shape[0] != w.shape[2]:
        raise ValueError(f"x must be [C, H, W, B] and w [kh, kw, C, O], got shapes {x.shape} and {w.shape}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], (1, 1), padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    sizes = zip(x.shape[1:3], w.shape[:2], padding, strict=True)
    if any(size + low + high - k + 1 < window for size, k, (low, high) in sizes):
        raise ValueError(f"no window of {window} fits: x {x.shape}, w {w.shape}, padding {padding}")
    return padding


def _phases(w, window, taps):
    """The kernel at its window^2 places, [K, window^2, O]; rows in the order of patches."""
    (kh, kw, channels, features), n = w.shape, window
    room = [t * n - k for t, k in zip(taps, (kh, kw), strict=True)]
    places = [(p, q) for p in range(n) for q in range(n)]
    phases = jnp.stack([jnp.pad(w, ((p, room[0] - p), (q, room[1] - q), (0, 0), (0, 0))) for p, q in places])
    phases = phases.reshape(n * n, taps[0], n, taps[1], n, channels, features)
    return phases.transpose(3, 1, 2, 4, 5, 0, 6).reshape(-1, n * n, features)


# patches and their transpose


def _patches(x, *, window, taps):
    """[C, n h, n w, B] -> [K, H', W', B], K = (taps across, taps down, n, n, C): coarse pixels that an output sees."""
    n, (down, across) = window, taps
    x = jnp.stack([x[:, a::n, b::n] for a in range(n) for b in range(n)])
    x = x.reshape(-1, *x.shape[2:])
    height, width = x.shape[1] - down + 1, x.shape[2] - across + 1
    x = jnp.stack([x[:, u : u + height] for u in range(down)])
    x = jnp.stack([x[..., v : v + width, :] for v in range(across)])
    return x.reshape(-1, *x.shape[3:])


def _overlap_add(patches, *, window, taps):
    """The transpose of _patches: every patch added where it was read."""
    n, (down, across) = window, taps
    patches = patches.reshape(across, down, -1, *patches.shape[1:])
    zero = jnp.zeros((), patches.dtype)
    places = [(v, u) for v in range(across) for u in range(down)]
    margins = lambda v, u: [(0, 0, 0), (u, down - 1 - u, 0), (v, across - 1 - v, 0), (0, 0, 0)]
    x = sum(lax.pad(patches[v, u], zero, margins(v, u)) for v, u in places)
    x = x.reshape(n, n, -1, *x.shape[1:]).transpose(2, 3, 0, 4, 1, 5)
    channels, height, _, width, _, batch = x.shape
    return x.reshape(channels, n * height, n * width, batch)


# maximum over a leading axis


@jax.custom_jvp
def max_of_leading(z):
    """max_k z[k] of [n, ..., B]; the gradient goes to the first of the ties."""
    return functools.reduce(jnp.maximum, z)


@max_of_leading.defjvp
def _max_of_leading_jvp(primals, tangents):
    """The tangent at the first maximum: a select, whose transpose is a select, and no gradient through the index."""
    (z,), (t,) = primals, tangents
    y = max_of_leading(z)
    count, index = len(z), jnp.int8 if len(z) < 128 else jnp.int32
    first = jnp.full(y.shape, count - 1, index)
    for k in reversed(range(count - 1)):
        first = jnp.where(z[k] == y, jnp.asarray(k, index), first)
    return y, pick_p.bind(*vary_alike(first, t), count=count)


def _pick(first, t, *, count):
    """t[first[...], ...]: [...] of indices and [n, ...] -> [...]."""
    picked = t[count - 1]
    for k in reversed(range(count - 1)):
        picked = jnp.where(first == jnp.asarray(k, first.dtype), t[k], picked)
    return picked


def _place(first, g, *, count):
    """The transpose of _pick: g at first, zero elsewhere; [...] -> [n, ...]."""
    places = jnp.arange(count, dtype=first.dtype).reshape(count, *(1,) * g.ndim)
    return jnp.where(first[None] == places, g[None], jnp.zeros((), g.dtype))


# linear operations whose transposes are given


def _linear_pair(names: tuple[str, str], functions: tuple[Callable, Callable]):
    """Two primitives, each the other's transpose in its last argument; the last axis of every array is the batch.

    What JAX derives for a stack of slices is a sum of pads, one kernel each; a rule by hand is several times as fast.
    """
    pair = tuple(Primitive(name) for name in names)
    for primitive, function, transpose in zip(pair, functions, reversed(pair), strict=True):
        primitive.def_impl(partial(_impl, function))
        primitive.def_abstract_eval(partial(_abstract_eval, function))
        ad.primitive_jvps[primitive] = partial(_jvp, primitive)
        ad.primitive_transposes[primitive] = partial(_transpose, transpose)
        batching.primitive_batchers[primitive] = partial(_batch, primitive)
        mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    return pair


def _impl(function, *args, **params):
    return jax.jit(partial(function, **params))(*args)


def _abstract_eval(function, *avals, **params):
    shape = jax.eval_shape(partial(function, **params), *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals)).shape
    return avals[-1].update(shape=shape, weak_type=False)


def _jvp(primitive, primals, tangents, **params):
    out = primitive.bind(*primals, **params)
    if type(tangents[-1]) is ad.Zero:
        return out, ad.Zero.from_primal_value(out)
    return out, primitive.bind(*primals[:-1], tangents[-1], **params)


def _transpose(transpose, ct, *args, **params):
    fixed = [None] * (len(args) - 1)
    if type(ct) is ad.Zero:
        return [*fixed, ad.Zero(args[-1].aval)]
    return [*fixed, transpose.bind(*vary_alike(*args[:-1], ct), **params)]


def _batch(primitive, args, dims, **params):
    """A mapped axis joins the batch."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)

    def join(a, dim):
        a = jnp.broadcast_to(a[..., None], (*a.shape, size)) if dim is None else jnp.moveaxis(a, dim, -1)
        return a.reshape(*a.shape[:-2], -1)

    out = primitive.bind(*(join(a, d) for a, d in zip(args, dims, strict=True)), **params)
    return out.reshape(*out.shape[:-1], -1, size), out.ndim


patches_p, overlap_add_p = _linear_pair(("jacreg_patches", "jacreg_overlap_add"), (_patches, _overlap_add))
pick_p, place_p = _linear_pair(("jacreg_pick", "jacreg_place"), (_pick, _place))
