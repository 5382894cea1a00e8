"""sharding.py: one body, three backends, 1, 2 and 8 devices, the same numbers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import penalties, sharding, training
from jacreg_jax.models import MLP, initialize, train_mode

MODULE = MLP((8, 4))
BACKENDS = ("jit", "shard_map", "pmap")


@pytest.fixture(scope="module")
def problem():
    key = jax.random.key(0)
    image = jax.random.normal(key, (16, 6))
    params, _ = initialize(MODULE, key, image)
    return params, {"image": np.asarray(image), "label": np.arange(16) % 4}


def train(problem, devices, backend, steps=3, **options):
    params, batch = problem
    mesh = sharding.data_mesh(jax.devices()[:devices])
    optimizer = training.sgd(0.1, weight_decay=1e-3)
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, **options)
    state = training.init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(7))
    state = sharding.replicate(state, mesh)
    step = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend)
    for _ in range(steps):
        state, metrics = step(state, sharding.shard_batch(batch, mesh))
    return jax.device_get((state.params, metrics))


@pytest.fixture(scope="module")
def single(problem):
    """One device, no mesh: the sphere probe, and the exact norm in chunks."""
    params, batch = problem
    results = {}
    for name, options in {"sphere": {}, "exact": {"penalty": penalties.exact(chunk_size=3)}}.items():
        optimizer = training.sgd(0.1, weight_decay=1e-3)
        loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, **options)
        state = training.init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(7))
        step = training.make_train_step(loss, optimizer)
        for _ in range(3):
            state, metrics = step(state, batch)
        results[name] = jax.device_get((state.params, metrics))
    return results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_backends_agree_on_any_number_of_devices(problem, single, backend, devices):
    """With random probes: the draw of a sample follows the sample, not the shard."""
    assert len(jax.devices()) == 8
    params, metrics = train(problem, devices, backend)
    chex.assert_trees_all_close(params, single["sphere"][0], rtol=1e-5, atol=1e-6)
    for name in ("loss", "penalty", "penalty_error", "grad_norm", "accuracy"):
        np.testing.assert_allclose(metrics[name], single["sphere"][1][name], rtol=1e-5)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mesh_as_jax_makes_it(problem, single, backend, shape, placed):
    """`jax.make_mesh` has explicit axes by default; batches that lie on no device, and such that lie on this mesh."""
    params, batch = problem
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], devices=jax.devices()[:2])
    assert mesh.axis_types[0] == jax.sharding.AxisType.Explicit
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    optimizer = training.sgd(0.1, weight_decay=1e-3)
    state = training.init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.key(7))
    if placed:
        on = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        batch, state = jax.device_put(batch, on("data")), jax.device_put(state, on())
    step = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend)
    for _ in range(3):
        state, metrics = step(state, batch)
    chex.assert_trees_all_close(jax.device_get(state.params), single["sphere"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], single["sphere"][1]["loss"], rtol=1e-5)
    rows = sharding.shard_batch({"image": np.ones((16, 6))}, mesh)["image"]
    assert rows[np.random.default_rng(0).permutation(16)].shape == rows.shape, "automatic axes"


def test_many_steps_on_a_mesh_as_jax_makes_it(problem):
    params, batch = problem
    loss, losses = training.classification_loss(train_mode(MODULE), lambda_jr=0.1), []
    for mesh in (None, jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])):
        state = training.init_state(jax.tree.map(jnp.copy, params), training.sgd(0.1), jax.random.key(7))
        steps = training.make_train_steps(loss, training.sgd(0.1), mesh=mesh)
        losses.append(steps(state, batch, np.tile(np.arange(16), (3, 1)))[1]["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_chunked_exact_norm_inside_the_mapped_body(problem, single, backend):
    params, _ = train(problem, 2, backend, penalty=penalties.exact(chunk_size=3))
    chex.assert_trees_all_close(params, single["exact"][0], rtol=1e-5, atol=1e-6)


def test_without_the_varying_mark_gradients_are_too_large():
    """The trap that `varying` closes: in shard_map a mean over already summed gradients is N times too large."""
    mesh = sharding.data_mesh(jax.devices()[:4])
    spec = jax.sharding.PartitionSpec
    gradient = {}
    for name, mark in (("marked", sharding.varying), ("bare", lambda w, axis: w)):
        body = lambda w, x, mark=mark: sharding.mean_over_devices(
            jax.grad(lambda w: jnp.mean(x * w))(mark(w, "data")), "data"
        )
        mapped = jax.shard_map(body, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec())
        gradient[name] = float(jax.jit(mapped)(jnp.float32(1.0), jnp.ones(8)))
    assert gradient == {"marked": 1.0, "bare": 4.0}


def test_row_keys_do_not_depend_on_the_mesh(key):
    whole = jax.random.key_data(sharding.row_keys(key, 8, None))
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(
        lambda x: jax.random.key_data(sharding.row_keys(key, x.shape[0], "data")),
        mesh=sharding.data_mesh(jax.devices()[:4]),
        in_specs=spec("data"),
        out_specs=spec("data"),
    )
    np.testing.assert_array_equal(jax.jit(mapped)(jnp.zeros(8)), whole)


def test_uneven_batch():
    mesh = sharding.data_mesh(jax.devices()[:4])
    with pytest.raises(ValueError, match="batch must split evenly over 4 devices, got 6 rows"):
        sharding.shard_batch({"image": np.zeros((6, 2))}, mesh)


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_steps_on_a_mesh(problem, backend):
    """The data on every device, each batch spread: the numbers of one device."""
    params, batch = problem
    optimizer = training.sgd(0.1)
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    indices = np.random.default_rng(0).integers(16, size=(3, 8))
    found = []
    for options in ({}, {"mesh": sharding.data_mesh(jax.devices()[:4]), "backend": backend}):
        steps = training.make_train_steps(loss, optimizer, **options)
        state = training.init_state(params, optimizer, jax.random.key(7))
        if options:
            state = sharding.replicate(state, options["mesh"])
        found.append(jax.device_get(steps(state, jax.tree.map(jnp.asarray, batch), indices)))
    chex.assert_trees_all_close(found[1][0].params, found[0][0].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", [None, "jit", "shard_map"])
@pytest.mark.parametrize("many", [False, True])
def test_a_step_compiled_ahead_of_time_is_called_as_the_step(problem, backend, many):
    params, batch = problem
    optimizer = training.sgd(0.1)
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    options = {} if backend is None else {"mesh": sharding.data_mesh(jax.devices()[:4]), "backend": backend}
    make = training.make_train_steps if many else training.make_train_step
    step, data = make(loss, optimizer, **options), jax.tree.map(jnp.asarray, batch)
    arguments = (data, jnp.arange(24).reshape(3, 8) % 16) if many else (data,)
    if backend:
        spec = sharding.WHOLE if many else sharding.ON_ROWS
        placed = jax.NamedSharding(options["mesh"], spec)
        specs = (placed, jax.NamedSharding(options["mesh"], jax.P(None, sharding.AXIS))) if many else (placed,)
        arguments = tuple(map(jax.device_put, arguments, specs))
    found = []
    for run in (step, step.lower(training.init_state(params, optimizer, jax.random.key(7)), *arguments).compile()):
        state = training.init_state(params, optimizer, jax.random.key(7))
        state = sharding.replicate(state, options["mesh"]) if backend else state
        found.append(run(state, *arguments)[0].params)
    chex.assert_trees_all_equal(*found)


def test_models_spread_over_a_mesh(problem):
    """Four models on two devices, each as on one."""
    params, batch = problem
    optimizer = training.sgd(0.1)
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    indices = np.random.default_rng(0).integers(16, size=(4, 3, 8))
    states = [training.init_state(params, optimizer, jax.random.key(seed)) for seed in range(4)]
    found = []
    for mesh in (None, sharding.data_mesh(jax.devices()[:2])):
        steps = training.make_train_steps(loss, optimizer, mesh=mesh, together=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        found.append(jax.device_get(steps(stacked, jax.tree.map(jnp.asarray, batch), indices)[0].params))
    chex.assert_trees_all_close(found[1], found[0], rtol=1e-6, atol=1e-7)


def test_pmap_splits_over_every_device_of_a_mesh():
    axes = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    assert [sharding.num_shares(axes, backend) for backend in BACKENDS] == [2, 2, 4]
