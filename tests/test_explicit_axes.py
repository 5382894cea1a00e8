"""Arrays on explicit axes, those of `jax.make_mesh`: right calls of public functions, and the work of each device."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from jacreg_jax import (
    attacks,
    convolution,
    evaluation,
    jacobian,
    models,
    penalties,
    pooled_convolution,
    relatives,
    training,
    value_and_exact_penalty,
    value_and_penalty,
)
from tests import bad_input
from tests.test_bad_input import RIGHT

OTHERS = {"sharding.replicate", "training.make_train_step over devices"}  # on meshes of their own
LONG = {
    "evaluation.report",
    "masking.checks",
    "auto_attack",
    "ddn",
    "fab",
    "certify.certify_smoothed",
    "carlini_wagner",
}


def has_rows(name):
    leaves = jax.tree.leaves(bad_input.SPECS[name].arguments)
    return any(isinstance(leaf, np.ndarray | jax.Array) and leaf.shape[:1] == (5,) for leaf in leaves)


def some_slow(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


SERVED = some_slow(name for name in RIGHT if has_rows(name) and name not in OTHERS)
WITHIN = ["pgd", "square", "layerwise_frobenius_sq", "certify.interval_radius", "training.make_train_steps in a call"]


def mesh_of(devices):
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])


def on(mesh, tree):
    """Rows over the axis, anything else on every device."""
    rows = mesh.size

    def put(leaf):
        if isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim and leaf.shape[0] % rows == 0:
            return jax.device_put(leaf, NamedSharding(mesh, P("data")))
        return jax.device_put(leaf, NamedSharding(mesh, P())) if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(put, tree)


def numbers(tree):
    """The arrays and numbers, keys as their words."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            yield np.asarray(jax.random.key_data(leaf))
        elif isinstance(leaf, jax.Array | np.ndarray | float | int):
            yield np.asarray(leaf)


def assert_alike(spec, arguments):
    plain, found = spec.function(**spec.arguments), spec.function(**arguments)
    for one, other in zip(numbers(plain), numbers(found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_a_right_call_on_rows_of_explicit_axes(name):
    """The five rows of the right calls on five devices."""
    spec = bad_input.SPECS[name]
    assert_alike(spec, on(mesh_of(5), spec.arguments))


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("name", WITHIN)
def test_a_right_call_where_a_mesh_is_set(name, placed):
    spec, mesh = bad_input.SPECS[name], mesh_of(5)
    with jax.set_mesh(mesh):
        assert_alike(spec, on(mesh, spec.arguments) if placed else spec.arguments)


LENET, ROWS = models.LeNet(), 32
IMAGES = jax.random.uniform(jax.random.key(0), (ROWS, 28, 28, 1))
VARIABLES = LENET.init(jax.random.key(1), IMAGES)
KEYS = jax.random.split(jax.random.key(2), ROWS)
CALLS = {
    "pgd": lambda f, x, y, keys: attacks.pgd(f, x, y, keys, epsilon=0.1, step_size=0.02, num_steps=3).x_adv,
    "projected": lambda f, x, y, keys: jacobian.projected_frobenius_sq(f, x, keys, num_projections=2),
    "exact": lambda f, x, y, keys: jacobian.exact_frobenius_sq(f, x),
    "on_part": lambda f, x, y, keys: penalties.on_part(0.5)(f, x, y, keys)[1],
    "input gradients": lambda f, x, y, keys: relatives.input_gradient_penalty(f, x, y),
}


def flops(compiled):
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize("call", some_slow(CALLS))
def test_each_device_does_its_share(call):
    """In one's own loop, of the penalty's gradient in the parameters too; the numbers are those of one device."""
    mesh = mesh_of(4)

    def own(variables, x, y, keys):
        value = lambda v: jnp.mean(CALLS[call](lambda x: LENET.apply(v, x), x, y, keys))
        return (value if call == "pgd" else jax.value_and_grad(value))(variables)

    data = IMAGES, jnp.argmax(LENET.apply(VARIABLES, IMAGES), 1), KEYS
    one = jax.jit(own).lower(VARIABLES, *data).compile()
    rows = jax.device_put(data, NamedSharding(mesh, P("data")))
    variables = jax.device_put(VARIABLES, NamedSharding(mesh, P()))
    shared = jax.jit(own).lower(variables, *rows).compile()
    for a, b in zip(jax.tree.leaves(one(VARIABLES, *data)), jax.tree.leaves(shared(variables, *rows)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert flops(one) / flops(shared) > 3.8


@pytest.mark.parametrize("layer", ["conv_general_dilated", "max_pool", "conv_max_pool"])
def test_layers_keep_the_rows_where_they_are(layer):
    mesh, x = mesh_of(4), IMAGES[:, :12, :12].repeat(4, 3)
    options = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    weights = jax.random.normal(jax.random.key(3), (3, 3, 4, 5))
    calls = {
        "conv_general_dilated": lambda x, w: convolution.conv_general_dilated(x, w, **options),
        "max_pool": lambda x, w: convolution.max_pool(x, (2, 2), (2, 2)),
        "conv_max_pool": lambda x, w: pooled_convolution.conv_max_pool(x.transpose(3, 1, 2, 0), w),
    }
    place = lambda *spec: NamedSharding(mesh, P(*spec))
    expected = calls[layer](x, weights)
    found = calls[layer](jax.device_put(x, place("data")), jax.device_put(weights, place()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    rows = found.ndim - 1 if layer == "conv_max_pool" else 0
    assert found.sharding.spec[rows] == "data"


@pytest.mark.parametrize("is_set", [False, True])
def test_results_lie_as_the_rows_came(is_set):
    """So that they go on with other arrays of that mesh."""
    mesh = mesh_of(4)
    w = jax.random.normal(jax.random.key(0), (784, 10)) / 28
    w, x = jax.device_put(w, NamedSharding(mesh, P())), on(mesh, IMAGES)
    f = lambda x: x.reshape(len(x), -1) @ w
    y = f(x).argmax(1)
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        x_adv = attacks.fgsm(f, x, y, epsilon=0.1).x_adv
        assert jax.typeof(x_adv).sharding == jax.typeof(x).sharding
        assert float(jnp.abs(x_adv - x).max()) == pytest.approx(0.1, rel=1e-5)
        norms = jacobian.exact_frobenius_sq(f, x)
        assert norms.sharding.spec == P("data")
        np.testing.assert_allclose(norms, np.full(ROWS, float((w**2).sum())), rtol=1e-4)
        assert evaluation.accuracy(f, x, y) == pytest.approx(float((f(x).argmax(1) == y).mean()))


@pytest.mark.parametrize("own_mesh", [False, True])
def test_training_where_a_mesh_is_set(own_mesh):
    """A step without a mesh on rows that lie on one, and one over the mesh that is set: what one device trains."""
    mesh, optimizer = mesh_of(4), training.sgd(0.1)
    loss = training.classification_loss(models.train_mode(models.MLP((10,))), lambda_jr=0.1)
    params = models.MLP((10,)).init(jax.random.key(0), IMAGES[:1])["params"]
    batch, losses = {"image": IMAGES, "label": jnp.arange(ROWS) % 10}, []
    for is_set in (False, True):
        state = training.init_state(params, optimizer, jax.random.key(1))
        with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
            step = training.make_train_step(loss, optimizer, mesh=mesh if is_set and own_mesh else None)
            for _ in range(3):
                state, metrics = step(state, on(mesh, batch) if is_set else batch)
        losses.append(metrics["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("is_set", [False, True])
@pytest.mark.parametrize("chunked", [{"num_projections": 3}, {"num_projections": 1}, {}])
def test_gradients_of_parameters_that_lie_on_no_mesh(chunked, is_set):
    mesh, w = mesh_of(4), jax.random.normal(jax.random.key(0), (784, 3)) / 28
    x = IMAGES.reshape(ROWS, -1)

    def penalty(w, x):
        f = lambda x: jnp.tanh(x @ w)
        value = value_and_penalty(f, x, jax.random.key(1), **chunked) if chunked else value_and_exact_penalty(f, x)
        return value[1]

    gradient = jax.jit(jax.grad(penalty))
    expected = gradient(w, x)
    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        found = gradient(w, on(mesh, x))
        assert float(jnp.abs(found - expected).max()) < 1e-4 * float(jnp.abs(expected).max())


@pytest.mark.parametrize("call", ["pgd", "projected"])
def test_the_compiler_shares_lenet(call):
    """On automatic axes too, where nobody says which rows a product in the network is of."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    own = jax.jit(lambda v, x, y, keys: CALLS[call](lambda x: LENET.apply(v, x), x, y, keys))
    data = IMAGES, jnp.argmax(LENET.apply(VARIABLES, IMAGES), 1), KEYS
    one = own.lower(VARIABLES, *data).compile()
    rows = jax.device_put(data, NamedSharding(mesh, P("data")))
    shared = own.lower(jax.device_put(VARIABLES, NamedSharding(mesh, P())), *rows).compile()
    assert flops(one) / flops(shared) > 3.8
