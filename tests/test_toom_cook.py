"""Toom-Cook tiles: exact matrices, transposes that are transposes, derivatives of every order against float64.

The twin is `jax.lax.conv_general_dilated` in float64; the tiles themselves run in float32 on CPU.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jacreg_jax import intervals, sharding
from jacreg_jax.convolution import conv_general_dilated, toom_cook_form
from jacreg_jax.convolution.form import NHWC, Geometry
from jacreg_jax.convolution.space_to_depth import unstrided
from jacreg_jax.convolution.tiles import Tiles
from jacreg_jax.convolution.toom_cook import transforms
from tests.reference import vjp_penalty as penalty

SAME, VALID = ((1, 1), (1, 1)), ((0, 0), (0, 0))
# (H, W), side of the kernel, padding; stride 1
GEOMETRIES = {
    "whole tiles": ((10, 6), 3, VALID),
    "one ragged tile": ((4, 4), 3, SAME),
    "ragged both ways": ((7, 9), 3, SAME),
    "smaller than a tile": ((3, 5), 3, ((2, 2), (0, 3))),
    "padded on one side": ((9, 6), 3, ((0, 2), (3, 0))),
    "negative padding": ((9, 10), 3, ((-1, 1), (2, -3))),
    "5x5": ((8, 7), 5, ((2, 2), (2, 2))),
}


def geometry_of(name):
    (size, k, padding) = GEOMETRIES[name]
    return Geometry(size, (k, k), (1, 1), padding)


@pytest.mark.parametrize(("n", "r"), [(6, 3), (7, 3), (6, 5)])
def test_matrices(n, r):
    """A^T ((G w) * (B^T d)) is the filter's output, in float64 to the last digits."""
    matrices = transforms(n, r)
    rng = np.random.default_rng(0)
    w, d = rng.normal(size=r), rng.normal(size=n)
    y = matrices.output @ ((matrices.kernel @ w) * (matrices.input @ d))
    np.testing.assert_allclose(y, [w @ d[i : i + r] for i in range(n - r + 1)], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_transposes(name, n, x64):
    """<X x, D> = <x, X^T D> for input, kernel and output, at random x and D."""
    geometry, rng = geometry_of(name), np.random.default_rng(0)
    tiles = Tiles(geometry, n)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    rows, columns = tiles.counts
    count = 2 * rows * columns
    for forth, back, x, spread in (
        (tiles.of_input, lambda d: tiles.to_input(d, 2), draw(2, *geometry.input, 3), draw(n * n, count, 3)),
        (tiles.of_output, lambda d: tiles.to_output(d, 2), draw(2, *geometry.output, 3), draw(n * n, count, 3)),
        (tiles.of_kernel, tiles.to_kernel, draw(*geometry.kernel, 3, 2), draw(n * n, 3, 2)),
    ):
        there, here = jax.jit(lambda x, d, forth=forth, back=back: (forth(x), back(d)))(x, spread)
        assert (there.shape, here.shape) == (spread.shape, x.shape)
        np.testing.assert_allclose(np.vdot(there, spread), np.vdot(x, here), rtol=1e-11)


STRIDED = {
    "5x5 of stride 2": Geometry((9, 12), (5, 5), (2, 2), ((2, 2), (2, 1))),
    "6x6 of stride 2": Geometry((13, 15), (6, 6), (2, 2), ((-1, 3), (0, 0))),
}


@pytest.fixture(params=[*GEOMETRIES, *STRIDED], ids=lambda name: name.replace(" ", "_"))
def case(request, x64):
    """(ours, lax's, x, w), the arrays float64; ours casts to float32."""
    geometry, rng = STRIDED.get(request.param) or geometry_of(request.param), np.random.default_rng(0)
    rows, columns = toom_cook_form.tiles_of(unstrided(geometry)).counts
    x = jnp.asarray(rng.normal(size=(-(-20 // (rows * columns)), *geometry.input, 32)))  # as few as run on tiles
    w = jnp.asarray(rng.normal(size=(*geometry.kernel, 32, 33)) / (6 * geometry.kernel[0]))
    call = lambda f: lambda x, w: f(x, w, geometry.strides, geometry.padding, dimension_numbers=NHWC)
    return call(conv_general_dilated), call(lax.conv_general_dilated), x, w


def relative_error(ours, true):
    """Root mean square of the error over that of the true value, the largest of a tree."""
    errors = jax.tree.map(lambda a, b: np.sqrt(np.mean(np.subtract(a, b) ** 2) / np.mean(np.square(b))), ours, true)
    return max(map(float, jax.tree.leaves(errors)))


def single(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float32), tree)


def runs_on_tiles(f, *args):
    """Whether the compiled program holds stages of tiles: calls that XLA may not inline."""
    return 'inlineable="false"' in jax.jit(f).lower(*args).compile().as_text()


def test_values_and_first_derivatives(case):
    ours, theirs, x, w = case
    assert runs_on_tiles(ours, *single((x, w)))
    ct = np.sin(jax.jit(theirs)(x, w))
    pull, push = lambda f, x, w, ct: jax.vjp(f, x, w)[1](ct), lambda f, x, w, ct: jax.jvp(f, (x, w), (x**2, w**2))[1]
    for derivative in (lambda f, x, w, ct: f(x, w), pull, push):
        mine, true = (jax.jit(partial(derivative, f)) for f in (ours, theirs))
        found = mine(*single((x, w, ct)))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
        assert relative_error(found, true(x, w, ct)) < 5e-6


@pytest.mark.parametrize("case", ["ragged both ways", "5x5", "5x5 of stride 2"], indirect=True)
def test_second_derivatives_and_a_third(case):
    ours, theirs, x, w = case
    second = jax.grad(penalty, (1, 2))
    curve = lambda f, x, w: jax.jvp(partial(second, f), (x, w), (jnp.sin(x), jnp.cos(w)))[1]
    for derivative, error in ((second, 1e-5), (curve, 2e-5)):
        mine, true = (jax.jit(partial(derivative, f)) for f in (ours, theirs))
        assert relative_error(mine(*single((x, w))), true(x, w)) < error


def convolve(x, w):
    return conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)


@pytest.fixture
def arrays(key):
    """x [6, 6, 6, 32] and w [3, 3, 32, 32]."""
    return jax.random.normal(key, (6, 6, 6, 32)), jax.random.normal(jax.random.fold_in(key, 1), (3, 3, 32, 32)) / 17


CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def test_vmap_over_each_operand_and_both(arrays):
    x, w = arrays
    xs, ws = jnp.stack([x, 2 * x + 1]), jnp.stack([w, w[::-1]])
    one_by_one = lambda f: jnp.stack([jnp.stack([f(x, w) for w in ws]) for x in xs])
    table = jax.vmap(jax.vmap(convolve, (None, 0)), (0, None))(xs, ws)
    np.testing.assert_allclose(table, one_by_one(convolve), **CLOSE)
    gradient = jax.grad(lambda w, x: penalty(convolve, x, w))
    both = jax.jit(jax.vmap(gradient))(ws, xs)
    scale = jnp.abs(both).max()
    for found, w, x in zip(both, ws, xs, strict=True):
        np.testing.assert_allclose(found / scale, gradient(w, x) / scale, **CLOSE)


def test_scan_remat_and_export(arrays):
    x, w = arrays
    gradient = jax.grad(lambda w: penalty(convolve, x, w))
    expected = gradient(w)
    scale = jnp.abs(expected).max()
    remat = jax.grad(lambda w: penalty(jax.checkpoint(convolve), x, w))
    scanned = jax.jit(lambda ws: lax.scan(lambda _, w: (None, gradient(w)), None, ws)[1])
    exported = jax.export.export(jax.jit(gradient))(w)
    for found in (remat(w), scanned(jnp.stack([w, w]))[1], exported.call(w)):
        np.testing.assert_allclose(found / scale, expected / scale, **CLOSE)


@pytest.mark.parametrize("backend", ["shard_map", "jit"])
def test_each_device_does_its_share(backend, arrays):
    """Over 8 devices: the numbers of one, an eighth of the arithmetic of the batch, and no gathering of images."""
    mesh = sharding.data_mesh(jax.devices())
    x, w = jnp.tile(arrays[0], (8, 1, 1, 1)), arrays[1]
    loss = lambda w, x: penalty(convolve, x, w) / len(x)
    alone = jax.jit(jax.grad(loss)).lower(w, x).compile()
    if backend == "jit":
        gradient, args = jax.jit(jax.grad(loss)), (sharding.replicate(w, mesh), sharding.shard_batch(x, mesh))
    else:
        spec, everywhere = jax.sharding.PartitionSpec(sharding.AXIS), jax.sharding.PartitionSpec()
        rule = lambda w, x: lax.pmean(jax.grad(loss)(sharding.varying(w, sharding.AXIS), x), sharding.AXIS)
        gradient = jax.jit(jax.shard_map(rule, mesh=mesh, in_specs=(everywhere, spec), out_specs=everywhere))
        args = w, x
    sharded = gradient.lower(*args).compile()
    assert "all-gather" not in sharded.as_text()
    assert sharded.cost_analysis()["flops"] < alone.cost_analysis()["flops"] / 4  # the kernel's transforms are whole
    expected = alone(w, x)
    scale = jnp.abs(expected).max()
    np.testing.assert_allclose(gradient(*args) / scale, expected / scale, **CLOSE)


def test_blocks(arrays, monkeypatch):
    """A batch whose tiles would outgrow the memory runs in blocks, with the numbers of XLA's own convolution."""
    x, w = arrays
    x = jnp.concatenate([x, x[:1] + 1])  # a batch that no other test has: what is compiled for those stands
    gradient = lambda conv: jax.jit(jax.grad(lambda w: penalty(conv, x, w)))(w)
    sample = 4 * 36 * 4 * 32
    monkeypatch.setattr(toom_cook_form, "_BLOCK_BYTES", 2 * sample)
    plain = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    ours, right = gradient(convolve), gradient(plain)
    np.testing.assert_allclose(ours / jnp.abs(right).max(), right / jnp.abs(right).max(), **CLOSE)
    assert "while" in jax.jit(convolve).lower(x, w).compile().as_text()


def test_what_runs_on_tiles(arrays):
    x, w = arrays
    assert runs_on_tiles(convolve, x, w)
    few = lambda a, axis: lax.slice_in_dim(a, 0, 31, axis=axis)
    assert not runs_on_tiles(convolve, few(x, 3), few(w, 2))
    assert not runs_on_tiles(convolve, x, few(w, 3))
    assert not runs_on_tiles(convolve, x[:, :3], w)
    assert not runs_on_tiles(convolve, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
    assert not runs_on_tiles(convolve, x, w[:1])
    assert not runs_on_tiles(convolve, x[:4], w)
    stride = lambda x, w: conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=NHWC)
    assert not runs_on_tiles(stride, x, w)


@pytest.mark.parametrize("ask", ["argument", "pair", "enum", "context", "flax"])
def test_exact_sums_on_request(ask, arrays):
    """A precision above the default leaves the tiles out: the value is that of plain sums, to a few units of 1e-7."""
    x, w = arrays
    precision = {"argument": "highest", "pair": ("highest", "highest"), "enum": lax.Precision.HIGH}.get(ask)
    run = lambda x, w: conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, precision=precision)
    if ask == "flax":
        module = nn.Conv(32, (3, 3), use_bias=False, conv_general_dilated=conv_general_dilated, precision="highest")
        run = lambda x, w: module.apply({"params": {"kernel": w}}, x)
    with jax.default_matmul_precision("highest" if ask == "context" else None):
        assert not runs_on_tiles(run, x, w)
        found = jax.jit(run)(x, w)
    assert runs_on_tiles(convolve, x, w)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (x, w)]
        true = lax.conv_general_dilated(*wide, (1, 1), "SAME", dimension_numbers=NHWC)
        assert relative_error(jnp.asarray(np.asarray(found), jnp.float64), true) < 5e-7


def test_bounds_sum_plain_products(arrays):
    """Interval bounds leave the tiles out, whose rounding could make a radius of zero negative."""
    x, w = arrays
    bounds = lambda x: intervals.interval_bounds(lambda x: convolve(x, w), x, x)
    assert not runs_on_tiles(bounds, x)
    box = bounds(x)
    assert bool(jnp.all(box.low <= box.high))


def test_transforms_are_shared(arrays):
    """A step transforms the input once for its value and gradient, the kernel and the cotangent once as well.

    Dots: the bands of input and cotangent, the kernel's transform and its transpose, and the three products.
    """
    x, w = arrays
    text = jax.jit(jax.grad(lambda w, x: jnp.sum(convolve(x, w) ** 3), (0, 1))).lower(w, x).compile().as_text()
    assert text.count(" dot(") == 7


def test_stages_stay_apart(arrays):
    """No fusion joins two stages of a transform: each call holds one loop."""
    x, w = arrays
    text = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(convolve(x, w))))).lower(x).compile().as_text()
    calls = [line for line in text.splitlines() if " call(" in line and 'inlineable="false"' in line]
    assert len(calls) == 6  # two to write the output, four to write the gradient of the input
