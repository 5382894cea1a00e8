"""accumulation.py: a batch in parts is the whole batch in the memory of a part; a choice of losses by the step."""

import copy

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import sharding, training
from jacreg_jax.accumulation import every, in_parts, lazily
from jacreg_jax.models import MLP, LeNet, initialize, train_mode
from jacreg_jax.penalties import exact, projected

MODULE = MLP((8, 4))


@pytest.fixture
def problem(key):
    """(state, batch): a small perceptron and 12 labelled samples."""
    image = jax.random.normal(key, (12, 6))
    params, _ = initialize(MODULE, key, image)
    state = training.init_state(params, training.sgd(0.1), key)
    return state, {"image": image, "label": jnp.arange(12) % 4}


def gradient(loss, state, batch, key):
    keys = sharding.row_keys(key, len(batch["label"]), None)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params, state, batch, keys)


@pytest.mark.parametrize("options", [{"penalty": exact()}, {"penalty": projected(2)}, {"lambda_jr": 0.0}])
def test_parts_are_the_whole(problem, key, options):
    state, batch = problem
    options = {"lambda_jr": 0.3} | options
    loss = training.classification_loss(train_mode(MODULE), **options)
    whole = gradient(loss, state, batch, key)
    for part_size in (1, 3, 5, 12, 100):  # 5 does not divide 12
        parts = gradient(in_parts(part_size, loss), state, batch, key)
        chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    fewer = jax.tree.map(lambda leaf: leaf[:11], batch)  # parts of 6 and 5, and of 3, 3, 3 and 2
    whole = gradient(loss, state, fewer, key)
    for part_size in (6, 3):
        parts = gradient(in_parts(part_size, loss), state, fewer, key)
        chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_standard_errors_combine(problem, key):
    """Of P parts, sqrt(sum e_p^2) / P."""
    state, batch = problem
    keys = sharding.row_keys(key, 12, None)
    errors = jnp.arange(12.0).reshape(3, 4)[:, 0]

    def loss(params, state, batch, keys):
        return jnp.mean(params["Dense_0"]["bias"]), (state.model_state, {"penalty_error": batch["error"][0]})

    _, (_, metrics) = in_parts(4, loss)(state.params, state, batch | {"error": jnp.repeat(errors, 4)}, keys)
    np.testing.assert_allclose(metrics["penalty_error"], np.sqrt(0 + 16 + 64) / 3)


def test_parts_under_lazy_and_over_devices(problem, key):
    state, batch = problem
    batch = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:4]]), batch)
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.3, penalty=exact())
    losses = {"whole": lazily(2, loss), "parts": lazily(2, in_parts(2, loss)), "inside": in_parts(2, lazily(2, loss))}
    found = {}
    for name, mesh in (*dict.fromkeys(losses).items(), ("parts", sharding.data_mesh(jax.devices()[:2]))):
        backend = "shard_map" if mesh else "jit"
        options = {"mesh": mesh, "backend": backend, "donate": False}
        step = training.make_train_step(losses[name], training.sgd(0.1), **options)
        after = state
        for _ in range(3):
            after, _ = step(after, batch)
        found[name, backend] = after.params
    first, *others = found.values()
    for other in others:
        chex.assert_trees_all_close(other, first, rtol=1e-5, atol=1e-6)


def test_parts_take_the_memory_of_one(key):
    """Temporary memory of LeNet's gradient at 256 samples, in parts of 16: less than a quarter."""
    module, image = LeNet(), jnp.zeros((256, 28, 28, 1))
    params, _ = initialize(module, key, image[:1])
    state = training.init_state(params, training.sgd(0.1), key)
    batch, keys = {"image": image, "label": jnp.zeros(256, int)}, sharding.row_keys(key, 256, None)

    def temporaries(part_size):
        loss = training.classification_loss(train_mode(module), lambda_jr=0.01)
        loss = in_parts(part_size, loss) if part_size else loss
        compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(params, state, batch, keys).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(16) < temporaries(None) / 4


def test_a_choice_by_the_step(problem, key):
    state, batch = problem
    square = lambda scale: (
        lambda params, state, batch, keys: (
            scale * jnp.sum(params["Dense_0"]["bias"] ** 2),
            (state.model_state, {}),
        )
    )
    loss = every(3, square(5.0), square(1.0))
    params = jax.tree.map(jnp.ones_like, state.params)
    scales = []
    for step in range(6):
        at = state._replace(params=params, step=jnp.int32(step))
        (value, _), grads = gradient(loss, at, batch, key)
        np.testing.assert_allclose(grads["Dense_0"]["bias"], 2 * value / 8)
        scales.append(float(value) / 8)
    assert scales == [5, 1, 1, 5, 1, 1]


def test_part_size_is_checked():
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    with pytest.raises(ValueError, match="part_size must be an integer of at least 1, got 0"):
        in_parts(0, loss)
    with pytest.raises(ValueError, match="period must be an integer of at least 1, got 1.5"):
        lazily(1.5, loss)
    with pytest.raises(TypeError, match="loss must come from `supervised` or `in_parts`, got function"):
        lazily(2, lambda *arguments: None)


def test_losses_are_copied(problem, key):
    """The same values and gradients; a bare custom_vjp cannot be copied."""
    state, batch = problem
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.3)
    for made in (lazily(2, loss), in_parts(5, loss), lazily(2, in_parts(5, loss)), every(3, loss, loss)):
        expected = gradient(made, state, batch, key)
        for again in (copy.copy(made), copy.deepcopy(made)):
            chex.assert_trees_all_close(gradient(again, state, batch, key), expected)
