"""convolution.py: equal to lax in value and in derivatives of every order, strided, padded, mapped, sharded.

The twin is `jax.lax.conv_general_dilated` itself, in float64.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx
from jax import lax

from jacreg_jax import sharding
from jacreg_jax.convolution import conv_general_dilated, max_pool
from jacreg_jax.convolution.form import NHWC, Geometry
from jacreg_jax.convolution.lax_form import lax_form
from jacreg_jax.convolution.matmul_form import matmul_form
from jacreg_jax.convolution.tiling import Tiling
from jacreg_jax.models import DDNet
from tests.reference import vjp_penalty as penalty

# (H, W), channels, kernel, strides, padding
CASES = {
    "narrow": ((8, 9), (2, 3), (3, 3), (1, 1), "VALID"),
    "narrow strided": ((8, 9), (2, 3), (5, 3), (2, 2), "SAME"),
    "pointwise": ((8, 9), (9, 3), (1, 1), (2, 1), "VALID"),
    "even kernel": ((7, 7), (16, 4), (3, 2), (2, 3), ((1, 2), (0, 3))),
    "negative padding": ((7, 8), (3, 4), (3, 2), (1, 2), ((1, -1), (0, 3))),
    "wide": ((6, 5), (17, 16), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "wide strided": ((6, 7), (17, 16), (3, 3), (2, 2), "SAME"),
    "whole image": ((4, 4), (2, 30), (4, 4), (1, 1), "VALID"),
}


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "_"))
def case(request, x64, key):
    """(ours, lax's, x, w): both of (x, w), float64."""
    (h, w), (c, o), (kh, kw), strides, padding = CASES[request.param]
    x = jax.random.normal(key, (3, h, w, c), jnp.float64)
    kernel = jax.random.normal(jax.random.fold_in(key, 1), (kh, kw, c, o), jnp.float64)
    convolve = lambda f: lambda x, w: f(x, w, strides, padding, dimension_numbers=NHWC)
    return convolve(conv_general_dilated), convolve(lax.conv_general_dilated), x, kernel


def assert_equal(ours, theirs, atol=1e-11):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-10, atol=atol), ours, theirs)


def test_values_and_derivatives_of_both_modes(case):
    ours, theirs, x, w = case

    @jax.jit
    def both(x, w):
        y, tangents = theirs(x, w), (jnp.sin(x), jnp.cos(w))
        return [(f(x, w), jax.vjp(f, x, w)[1](y), jax.jvp(f, (x, w), tangents)) for f in (ours, theirs)]

    assert_equal(*both(x, w))


def test_second_and_third_derivatives(case):
    ours, theirs, x, w = case
    second = jax.grad(penalty, argnums=(1, 2))
    curve = lambda f, x, w: jax.jvp(lambda x, w: second(f, x, w), (x, w), (jnp.sin(x), jnp.cos(w)))
    (one, curved), (other, curved_too) = (jax.jit(partial(curve, f))(x, w) for f in (ours, theirs))
    assert_equal(one, other, atol=1e-9)
    assert_equal(curved, curved_too, atol=1e-8)


def test_vmap_over_each_operand_and_both(case):
    ours, theirs, x, w = case
    xs = jnp.stack([x, 2 * x + 1])
    ws = jnp.stack([w, w - 1, jnp.sin(w)])

    def mapped(f):
        one = jax.vmap(f, (0, None))(xs, w), jax.vmap(f, (None, 0), 2)(x, ws)
        return *one, jax.vmap(f)(xs, ws[:2]), jax.vmap(jax.vmap(f, (None, 0)), (0, None))(xs, ws)

    assert_equal(*(jax.jit(partial(mapped, f))() for f in (ours, theirs)))


def test_vmapped_gradients_of_models(case):
    """Members of a population, each with weights of its own, under the penalty."""
    ours, theirs, x, w = case
    ws = jnp.stack([w, jnp.sin(w)])
    gradient = lambda f: jax.jit(jax.vmap(jax.grad(lambda w: penalty(f, x, w))))(ws)
    assert_equal(gradient(ours), gradient(theirs), atol=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 150])
@pytest.mark.parametrize("channels", [(3, 4), (64, 32)])
def test_blocks_of_a_batch(batch, channels, key, monkeypatch):
    """Blocks that do and do not divide the batch; the last is filled up with zeros."""
    monkeypatch.setattr(Tiling, "block_size", lambda self, dtype: 6)
    x = jax.random.normal(key, (batch, 6, 6, channels[0]))
    w = jax.random.normal(key, (3, 3, *channels)) / 10
    f = lambda f: jax.jit(jax.value_and_grad(lambda x, w: penalty(partial(f, dimension_numbers=NHWC), x, w), (0, 1)))
    ours = f(lambda x, w, **k: conv_general_dilated(x, w, (1, 1), "SAME", **k))(x, w)
    theirs = f(lambda x, w, **k: lax.conv_general_dilated(x, w, (1, 1), "SAME", **k))(x, w)
    bounds = (2e-4, (2e-4, 2e-4 * max(1, batch / 50)))  # the gradient in w is a sum over the batch, and so its rounding
    jax.tree.map(lambda *leaves: np.testing.assert_allclose(*leaves[:2], 2e-3, leaves[2]), ours, theirs, bounds)


def test_bfloat16(key):
    """Sums are in float32: as close to the float32 result as lax is."""
    x = jax.random.normal(key, (4, 8, 8, 3), jnp.bfloat16)
    w = jax.random.normal(key, (3, 3, 3, 8), jnp.bfloat16)
    run = lambda f, x, w: jax.grad(lambda w: jnp.sum(f(x, w, (1, 1), "SAME", dimension_numbers=NHWC) ** 2))(w)
    ours = run(conv_general_dilated, x, w)
    assert ours.dtype == jnp.bfloat16
    wide = run(lax.conv_general_dilated, x.astype(jnp.float32), w.astype(jnp.float32))
    scale = jnp.abs(wide).max()
    np.testing.assert_allclose(ours.astype(jnp.float32) / scale, wide / scale, atol=0.02)


def test_in_nnx(key):
    """nnx.Conv, which hands on a sharding of the output as well."""
    layers = [
        nnx.Conv(3, 4, (3, 3), conv_general_dilated=conv, rngs=nnx.Rngs(0))
        for conv in (conv_general_dilated, jax.lax.conv_general_dilated)
    ]
    x = jax.random.normal(key, (2, 8, 8, 3))
    loss = lambda layer, x: jnp.sum(jnp.sin(layer(x)))
    ours, theirs = (jax.grad(loss, 1)(layer, x) for layer in layers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_in_flax_and_in_scan(key):
    """nn.Conv with and without the batch dimension flax adds; the same numbers inside a scan."""
    ours = nn.Conv(4, (3, 3), strides=2, conv_general_dilated=conv_general_dilated)
    theirs = nn.Conv(4, (3, 3), strides=2)
    x = jax.random.normal(key, (5, 9, 9, 2))
    params = theirs.init(key, x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.apply(params, x[0]), theirs.apply(params, x[0]), rtol=1e-5, atol=1e-6)
    _, scanned = lax.scan(lambda _, x: (None, ours.apply(params, x[None])[0]), None, x)
    np.testing.assert_allclose(scanned, ours.apply(params, x), rtol=1e-5, atol=1e-6)


def test_what_is_not_covered_is_lax(key):
    """Dilation, groups, one and three dimensions, other layouts, integers: the very operation of lax."""
    x, w = jax.random.normal(key, (2, 8, 8, 4)), jax.random.normal(key, (3, 3, 4, 6))
    calls = [
        ((x, w, (1, 1), "SAME"), {"rhs_dilation": (2, 2), "dimension_numbers": NHWC}),
        ((x, w, (1, 1), ((1, 1), (0, 2))), {"lhs_dilation": (2, 1), "dimension_numbers": NHWC}),
        ((x, w[:, :, :2], (1, 1), "SAME"), {"feature_group_count": 2, "dimension_numbers": NHWC}),
        ((x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), (1, 1), "SAME"), {}),
        ((x[:, 0], w[0], (1,), "SAME"), {"dimension_numbers": ("NWC", "WIO", "NWC")}),
        ((x.astype(int), w.astype(int), (1, 1), "SAME"), {"dimension_numbers": NHWC}),
    ]
    for args, options in calls:
        run = lambda f, args=args, options=options: f(*args, **options)
        assert "jacreg_convolution" not in str(jax.make_jaxpr(lambda: run(conv_general_dilated))())
        np.testing.assert_array_equal(run(conv_general_dilated), run(lax.conv_general_dilated))


def test_lax_on_other_platforms(key):
    """Lowered for CUDA and TPU the program holds XLA's convolution, for CPU none."""
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    f = jax.jit(
        jax.grad(lambda w: jnp.sum(jnp.sin(conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC))))
    )
    for platform, is_lax in (("cuda", True), ("tpu", True), ("cpu", False)):
        text = f.trace(w).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == is_lax, platform


def test_lax_form_equals_the_matmuls(case):
    """The realisation of GPU and TPU, run here, in all three forms."""
    ours, _, x, w = case
    y = ours(x, w)
    for result, args in {"output": (x, w), "input": (w, y), "kernel": (x, y)}.items():
        jaxpr = jax.make_jaxpr(lambda x, w: jax.vjp(ours, x, w)[1](y))(x, w)
        equations = [e for e in jaxpr.eqns if e.primitive.name == "jacreg_convolution"]
        geometry = equations[0].params["geometry"]
        options = {"result": result, "geometry": geometry, "precision": None}
        one, other = (jax.jit(partial(form, **options)) for form in (lax_form, matmul_form))
        for operands in (args, [np.stack([a, 2 * a]) for a in args]):
            assert_equal(one(*operands), other(*operands))


@pytest.mark.parametrize("backend", ["shard_map", "jit"])
def test_sharded(backend, key):
    """Over 8 devices, weights replicated: the same value and gradient as on one."""
    mesh = sharding.data_mesh(jax.devices())
    x, w = jax.random.normal(key, (16, 6, 6, 3)), jax.random.normal(key, (3, 3, 3, 4))
    convolve = lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    loss = lambda w, x: penalty(convolve, x, w) / len(x)
    expected = jax.grad(loss)(w, x)
    if backend == "jit":
        gradient = jax.jit(jax.grad(loss))(sharding.replicate(w, mesh), sharding.shard_batch(x, mesh))
    else:
        spec = jax.sharding.PartitionSpec(sharding.AXIS)
        rule = lambda w, x: lax.pmean(jax.grad(loss)(sharding.varying(w, sharding.AXIS), x), sharding.AXIS)
        everywhere = jax.sharding.PartitionSpec()
        gradient = jax.jit(jax.shard_map(rule, mesh=mesh, in_specs=(everywhere, spec), out_specs=everywhere))(w, x)
    np.testing.assert_allclose(gradient, expected, rtol=2e-3, atol=1e-3)


def test_errors_are_those_of_lax():
    x, w = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 5, 6))
    for args in ((x, w, (1, 1), "SAME"), (x, w[:, :, :4], (1,), "SAME"), (x, w[:, :, :4], (1, 1), "MIDDLE")):
        messages = []
        for f in (conv_general_dilated, lax.conv_general_dilated):
            with pytest.raises((TypeError, ValueError, RuntimeError)) as info:
                f(*args, dimension_numbers=NHWC)
            messages.append(str(info.value))
        assert messages[0] == messages[1]


def test_empty_results(key):
    """A batch of none, and a kernel larger than the image."""
    w = jax.random.normal(key, (3, 3, 2, 4))
    for x in (jnp.ones((0, 8, 8, 2)), jnp.ones((2, 2, 2, 2))):
        ours = conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC)
        theirs = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=NHWC)
        assert ours.shape == theirs.shape


def test_geometry_of_the_output():
    assert Geometry((28, 28), (5, 5), (1, 1), ((2, 2), (2, 2))).output == (28, 28)
    assert Geometry((7, 8), (3, 2), (2, 3), ((1, 2), (0, 3))).output == (4, 4)


# max pooling

POOLS = [((2, 2), (2, 2), "VALID"), ((3, 2), (3, 2), "VALID"), ((2, 2), None, "VALID"), ((3, 3), (2, 2), "SAME")]


@pytest.mark.parametrize(("window", "strides", "padding"), POOLS)
def test_max_pool_equals_flax(window, strides, padding, key):
    """Values and gradients bit for bit, ties (small integers) and odd sizes included, and the forward mode."""
    x = jnp.round(2 * jax.random.normal(key, (3, 7, 8, 5)))
    ours = lambda x: max_pool(x, window, strides=strides, padding=padding)
    theirs = lambda x: nn.max_pool(x, window, strides=strides, padding=padding)
    np.testing.assert_array_equal(jax.jit(ours)(x), jax.jit(theirs)(x))
    np.testing.assert_array_equal(jax.jit(ours)(x[0]), jax.jit(theirs)(x[0]))
    weigh = lambda f: lambda x: jnp.sum(jnp.sin(jnp.arange(f(x).size, dtype=x.dtype).reshape(f(x).shape)) * f(x) ** 2)
    np.testing.assert_array_equal(*(jax.jit(jax.grad(weigh(f)))(x) for f in (ours, theirs)))
    penalty = lambda f: jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(weigh(f))(jnp.sin(x)) ** 2)))(x)
    np.testing.assert_allclose(penalty(ours), penalty(theirs), rtol=1e-6)


def test_max_pool_modes(key):
    x = jnp.round(2 * jax.random.normal(key, (2, 6, 6, 3)))
    f = lambda x: max_pool(x, (2, 2), strides=(2, 2))
    np.testing.assert_array_equal(jax.jacfwd(f)(x), jax.jacrev(f)(x))
    xs = jnp.stack([x, -x])
    np.testing.assert_array_equal(jax.vmap(f)(xs), jnp.stack([f(x), f(-x)]))


def test_max_pool_errors():
    with pytest.raises(ValueError, match=r"as many as window_shape, got window_shape=\(2, 2\), strides=\(2,\)"):
        max_pool(jnp.ones((1, 4, 4, 1)), (2, 2), strides=(2,))


def test_models_take_either(key):
    """The built-in models with our operations and with those of lax and flax: the same logits."""
    x = jax.random.normal(key, (2, 32, 32, 3))
    params = DDNet().init(key, x)
    plain = DDNet(conv_general_dilated=lax.conv_general_dilated, max_pool=nn.max_pool)
    np.testing.assert_allclose(DDNet().apply(params, x), plain.apply(params, x), rtol=1e-4, atol=1e-5)
