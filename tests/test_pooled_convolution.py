"""pooled_convolution.py: values, ties and derivatives of two orders against XLA's own, under every transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from jacreg_jax.models.layers import ConvMaxPool
from jacreg_jax.pooled_convolution import (
    conv_max_pool,
    lax_conv_max_pool,
    max_of_places,
    overlap_add_p,
    patches_p,
)

CASES = [  # x without the batch, kernel, padding, window
    ((1, 28, 28), (5, 5, 1, 6), ((2, 2), (2, 2)), 2),
    ((6, 14, 14), (5, 5, 6, 16), "VALID", 2),
    ((3, 9, 7), (3, 2, 3, 4), "SAME", 2),
    ((2, 11, 10), (2, 4, 2, 3), ((0, 3), (1, 0)), 3),
    ((2, 6, 5), (3, 3, 2, 2), "VALID", 1),
]


def arrays(key, x, w, batch=3, dtype=float):
    keys = jax.random.split(key)
    return jax.random.normal(keys[0], (*x, batch), dtype), jax.random.normal(keys[1], w, dtype)


def both(padding, window):
    return [partial(f, padding=padding, window=window) for f in (conv_max_pool, lax_conv_max_pool)]


def gradient_of_places(z):
    return jax.grad(lambda z: max_of_places(z, abs(z).max())[0, 0])(z[None, :, None])[0, :, 0]


@pytest.mark.parametrize(("x", "w", "padding", "window"), CASES)
def test_equals_lax(x, w, padding, window, key, x64):
    """Values, gradients in x and w, and the gradient of a gradient's norm, to 1e-12 of the largest in float64."""
    x, w = arrays(key, x, w)
    ours, theirs = both(padding, window)
    energy = lambda f, x, w: jnp.sum(jnp.sin(f(x, w)))
    norm = lambda f, x, w: jnp.sum(jax.grad(energy, 1)(f, x, w) ** 2)

    @partial(jax.jit, static_argnums=0)
    def everything(f, x, w):
        return f(x, w), jax.grad(energy, (1, 2))(f, x, w), jax.grad(norm, (1, 2))(f, x, w)

    for a, b in zip(jax.tree.leaves(everything(ours, x, w)), jax.tree.leaves(everything(theirs, x, w)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * jnp.abs(b).max())


def test_forward_mode_equals_reverse(key, x64):
    x, w = arrays(key, (2, 8, 8), (3, 3, 2, 3))
    z, (u, v) = conv_max_pool(x, w), arrays(jax.random.fold_in(key, 1), (2, 8, 8), (3, 3, 2, 3))
    g = jax.random.normal(key, z.shape)
    _, tangent = jax.jvp(conv_max_pool, (x, w), (u, v))
    dx, dw = jax.vjp(conv_max_pool, x, w)[1](g)
    np.testing.assert_allclose(jnp.vdot(g, tangent), jnp.vdot(dx, u) + jnp.vdot(dw, v), rtol=1e-12)
    hessian = lambda jac: jac(jax.grad(lambda w: jnp.sum(conv_max_pool(x, w) ** 2)))(w)
    np.testing.assert_allclose(hessian(jax.jacfwd), hessian(jax.jacrev), atol=1e-9)


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0), (0, 0), (4, 2)])
def test_vmap_equals_a_loop(in_axes, key, x64):
    """Values and gradients of each member, whichever operand is mapped and along whichever axis."""
    x, w = arrays(key, (2, 8, 7), (3, 3, 2, 3))
    more = lambda a, axis: a if axis is None else jnp.stack([a, 2 * a[::-1], a - 1], axis)
    x, w = more(x, in_axes[0]), more(w, in_axes[1])

    def f(x, w):
        value = lambda x, w: jnp.sum(jnp.tanh(conv_max_pool(x, w)))
        return conv_max_pool(x, w), jax.grad(value, (0, 1))(x, w)

    one = lambda a, axis, i: a if axis is None else jnp.take(a, i, axis)
    mapped = jax.jit(jax.vmap(f, in_axes))(x, w)
    for i in range(3):
        alone = f(one(x, in_axes[0], i), one(w, in_axes[1], i))
        for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-12, atol=1e-12)


def test_vmap_of_cotangents(key, x64):
    """Only the cotangent is mapped: the index of the maxima is not."""
    x, w = arrays(key, (1, 8, 8), (3, 3, 1, 2))
    z, vjp = jax.vjp(conv_max_pool, x, w)
    g = jax.random.normal(key, (4, *z.shape))
    for mapped, alone in zip(jax.vmap(vjp)(g), zip(*map(vjp, g), strict=True), strict=True):
        np.testing.assert_allclose(mapped, jnp.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("shape", [(5, 5, 1, 6), (5, 5, 6, 16)])
def test_ties_go_to_the_first(value, shape, key):
    """On a blank image each window is a tie of all its places; the first in the order of rows wins."""
    x, w = jnp.full((shape[2], 14, 14, 20), value), jax.random.normal(key, shape)
    gradients = [jax.grad(lambda x, f=f: jnp.sum(f(x, w)))(x) for f in (conv_max_pool, lax_conv_max_pool)]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)
    for tie in ([1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1]):
        np.testing.assert_array_equal(gradient_of_places(jnp.array(tie, float)), jnp.eye(4)[tie.index(1)])


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 1e3])
def test_places_a_rounding_apart_tie(scale):
    """The last bits of a matmul depend on the program around it, the gradient does not; the value is the maximum."""
    z = jnp.float32(scale) * jnp.array([0.5, 1, 1, 1], jnp.float32)
    rounded = jnp.nextafter(z, jnp.array([0, 0, jnp.inf, jnp.inf], jnp.float32))
    np.testing.assert_array_equal(gradient_of_places(rounded), [0, 1, 0, 0])
    assert max_of_places(rounded[None, :, None], jnp.float32(scale))[0, 0] == rounded[2] > z[1]
    apart = z + scale * jnp.array([0, 0, 1e-5, 0], jnp.float32)
    np.testing.assert_array_equal(gradient_of_places(apart), [0, 0, 1, 0])


def test_patches_and_their_transpose(key):
    """<patches(x), g> = <x, overlap_add(g)>; a patch of ones adds up to how often each pixel is read."""
    options = {"window": 2, "taps": (3, 2)}
    x = jax.random.normal(key, (3, 10, 8, 4))
    patches = patches_p.bind(x, **options)
    assert patches.shape == (3 * 2 * 4 * 3, 3, 3, 4)
    g = jax.random.normal(jax.random.fold_in(key, 1), patches.shape)
    np.testing.assert_allclose(jnp.vdot(patches, g), jnp.vdot(x, overlap_add_p.bind(g, **options)), rtol=1e-4)
    counts = overlap_add_p.bind(jnp.ones(patches.shape), **options)
    np.testing.assert_array_equal(counts[0, :, 0, 0], [1, 1, 2, 2, 3, 3, 2, 2, 1, 1])


def test_shard_map_and_scan(key):
    """Each device its part of the batch, the kernel on all of them; repeated in a scan."""
    x, w = arrays(key, (1, 8, 8), (3, 3, 1, 2), batch=8)
    mesh = jax.make_mesh((jax.device_count(),), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(x, w):
        return jax.lax.psum(jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(conv_max_pool(x, w))))(x) ** 2), "batch")

    specs = {"mesh": mesh, "in_specs": (P(None, None, None, "batch"), P()), "out_specs": P()}
    sharded = jax.jit(jax.shard_map(jax.value_and_grad(loss, 1), **specs))
    whole = lambda x, w: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(conv_max_pool(x, w))))(x) ** 2)
    for a, b in zip(sharded(x, w), jax.value_and_grad(whole, 1)(x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    step = lambda w, _: (w - 0.01 * jax.grad(whole, 1)(x, w), None)
    scanned, _ = jax.jit(lambda w: jax.lax.scan(step, w, length=2))(w)
    np.testing.assert_allclose(scanned, step(step(w, None)[0], None)[0], rtol=1e-5, atol=1e-6)


def test_half_precision(key):
    x, w = arrays(key, (2, 8, 8), (3, 3, 2, 3), dtype=jnp.bfloat16)
    ours = conv_max_pool(x, w)
    wide = lax_conv_max_pool(x.astype(jnp.float32), w.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), wide, rtol=0.05, atol=0.1)
    assert jax.grad(lambda w: jnp.sum(conv_max_pool(x, w)))(w).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("dtype", "scale", "error"),
    [
        (jnp.bfloat16, 1.0, 0.01),
        (jnp.float16, 1.0, 0.001),
        (jnp.float32, 1e-6, 1e-6),
        (jnp.float32, 1e6, 1e-6),
    ],
)
def test_gradients_are_those_of_float64(dtype, scale, error, key, x64):
    """In each precision, and at any scale: no place that is not the maximum takes its gradient."""
    x, w = arrays(key, (2, 16, 16), (3, 3, 2, 3), batch=8, dtype=jnp.float64)
    x, w = (scale * x).astype(dtype), w.astype(dtype)
    gradient = lambda f, *kinds: jax.grad(lambda x, w: jnp.sum(f(x, w)), (0, 1))(*kinds)
    found = gradient(conv_max_pool, x, w)
    expected = gradient(lax_conv_max_pool, x.astype(jnp.float64), w.astype(jnp.float64))
    for ours, truth in zip(found, expected, strict=True):
        assert jnp.linalg.norm(ours.astype(jnp.float64) - truth) < error * jnp.linalg.norm(truth)


def test_layer_equals_flax(key):
    """A rising activation and the bias after the pooling are the usual order, with nn.Conv's own parameters."""
    x = jax.random.normal(key, (3, 12, 10, 2))
    conv, layer = nn.Conv(4, (3, 3), padding="SAME"), ConvMaxPool(4, (3, 3), "SAME")
    variables = conv.init(key, x)
    variables["params"]["bias"] += jnp.arange(4.0)
    usual = nn.max_pool(nn.tanh(conv.apply(variables, x)), (2, 2), strides=(2, 2))
    ours = nn.tanh(layer.apply(variables, x.transpose(3, 1, 2, 0)))
    np.testing.assert_allclose(ours.transpose(3, 1, 2, 0), usual, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(layer.init(key, x.transpose(3, 1, 2, 0))) == jax.tree.structure(variables)


def test_errors():
    x, w = jnp.ones((2, 6, 6, 1)), jnp.ones((3, 3, 2, 4))
    for f in (conv_max_pool, lax_conv_max_pool):
        with pytest.raises(ValueError, match=r"x must be \[C, H, W, B\] and w \[kh, kw, C, O\], got"):
            f(x, jnp.ones((3, 3, 1, 4)))
        with pytest.raises(ValueError, match="window must be an integer of at least 1, got 0"):
            f(x, w, window=0)
        with pytest.raises(ValueError, match="no window of 5 fits"):
            f(x, w, window=5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA:CPU")
def test_gradient_in_the_image_is_not_fused_into_its_transposition(key):
    """The overlap-add of the first layer stays a conditional, the only reader of the patches' gradient."""
    x, w = arrays(key, *CASES[0][:2], batch=8, dtype=jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(conv_max_pool(x.transpose(3, 1, 2, 0), w, CASES[0][2])))
    program = jax.jit(gradient).lower(x.transpose(3, 1, 2, 0)).compile().as_text()
    written = [line for line in program.splitlines() if " conditional(" in line]
    assert any("f32[1,32,32,8]" in line for line in written), written
