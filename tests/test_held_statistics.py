"""BatchNorm held inside the penalty: the numbers of a second pass, without the second pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jacreg_jax as jr
from jacreg_jax import models, penalties, relatives, sharding, training
from jacreg_jax.functional import constant_inside
from tests.conftest import TRAIN_MODE


class Net(nn.Module):
    """Two convolutions, each with BatchNorm; options of the second one."""

    options: tuple = ()
    dropout_rate: float = 0.0
    width: int = 6

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3))(x)
        x = nn.Conv(6, (3, 3))(nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)))
        x = nn.BatchNorm(**dict(self.options))(x, use_running_average=not train)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(4)(nn.tanh(x).mean((1, 2)))


class OwnAverage(nn.Module):
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train: bool = False):
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[1:])
        return x - mean.value


X = np.random.default_rng(0).normal(size=(8, 6, 6, 3))
BATCH = {"image": X, "label": np.arange(8) % 4}


def loss_of(module, mode, penalty, lambda_jr=0.3):
    return training.classification_loss(
        models.train_mode(module), penalty=penalties.of_model(mode(module), penalty), lambda_jr=lambda_jr
    )


def value_and_gradients(module, mode, penalty, dtype=jnp.float64):
    cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
    params, model_state = cast(models.initialize(module, jax.random.key(0), jnp.asarray(X, dtype)))
    state = training.init_state(params, training.sgd(0.1), jax.random.key(1), model_state)
    batch, keys = (
        {"image": jnp.asarray(X, dtype), "label": jnp.asarray(BATCH["label"])},
        jax.random.split(jax.random.key(2), 8),
    )
    loss = loss_of(module, mode, penalty)
    return jax.jit(jax.value_and_grad(lambda p: loss(p, state, batch, keys), has_aux=True))(params)


OPTIONS = [(), (("momentum", 0.5), ("use_scale", False)), (("use_bias", False), ("axis", (2, 3)), ("epsilon", 0.1))]


PENALTIES = [penalties.projected(2), penalties.exact(2), penalties.on_part(0.5)]


@pytest.mark.parametrize(
    ("options", "penalty"), list(zip(OPTIONS, PENALTIES, strict=True)), ids=["n = 2", "exact", "part"]
)
def test_the_numbers_are_those_of_the_second_pass(x64, options, penalty):
    """Loss, metrics, new statistics and gradients."""
    module = Net(options)
    held = value_and_gradients(module, models.held_statistics_mode, penalty)
    twice = value_and_gradients(module, models.batch_statistics_mode, penalty)
    assert jax.tree.structure(held) == jax.tree.structure(twice)
    for found, expected in zip(jax.tree.leaves(held), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@TRAIN_MODE
def test_train_mode_alone_gives_others(x64):
    """What the test above compares does depend on the statistics' derivative."""
    held = value_and_gradients(Net(), models.held_statistics_mode, penalties.exact())
    through = value_and_gradients(Net(), models.train_mode, penalties.exact())
    assert abs(float(held[0][0] - through[0][0])) > 1e-3


def test_a_step_is_cheaper_by_a_forward_and_a_backward_pass():
    module, flops = Net(width=64), []
    params, model_state = models.initialize(module, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    state = training.init_state(params, training.sgd(0.1), jax.random.key(1), model_state)
    batch = {"image": jnp.zeros((8, 6, 6, 3)), "label": jnp.zeros(8, int)}
    for mode in (models.held_statistics_mode, models.batch_statistics_mode):
        step = training.make_train_step(loss_of(module, mode, penalties.projected()), training.sgd(0.1))
        cost = step.lower(state, batch).compile().cost_analysis()
        flops.append((cost[0] if isinstance(cost, list) else cost)["flops"])
    assert flops[0] < 0.8 * flops[1]


@pytest.mark.parametrize("backend", ["jit", "pmap"])
def test_over_devices_the_statistics_are_those_of_the_whole_batch(backend):
    module = Net()
    loss, optimizer = loss_of(module, models.held_statistics_mode, penalties.projected()), training.sgd(0.1)
    params, model_state = models.initialize(module, jax.random.key(0), jnp.asarray(X, jnp.float32))
    batch = {"image": jnp.asarray(X, jnp.float32), "label": jnp.asarray(BATCH["label"])}
    ends = []
    for mesh in (None, sharding.data_mesh(jax.devices()[:4])):
        options = {} if mesh is None else {"mesh": mesh, "backend": backend}
        step = training.make_train_step(loss, optimizer, donate=False, **options)
        state = training.init_state(params, optimizer, jax.random.key(1), model_state)
        for _ in range(3):
            state, metrics = step(state, batch)
        ends.append((state.params, state.model_state, metrics))
    for found, expected in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_rows_are_independent_for_the_penalty_alone():
    module = Net()
    params, model_state = models.initialize(module, jax.random.key(0), jnp.asarray(X, jnp.float32))
    x, key = jnp.asarray(X, jnp.float32), jax.random.key(1)
    held = models.held_statistics_mode(module)
    f_of = lambda apply: lambda x: apply(params, model_state, x, key)[0]
    assert jr.rows_are_independent(f_of(held.inside), x, key)
    assert not jr.rows_are_independent(f_of(held), x, key)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.5])
def test_the_values_are_those_of_train_mode(dropout_rate):
    """Logits and state, and the mask of the dropout."""
    module = Net(dropout_rate=dropout_rate)
    params, model_state = models.initialize(module, jax.random.key(0), jnp.asarray(X, jnp.float32))
    arguments = params, model_state, jnp.asarray(X, jnp.float32), jax.random.key(1)
    trained, held = models.train_mode(module)(*arguments), models.held_statistics_mode(module)
    jax.tree.map(np.testing.assert_array_equal, held(*arguments), trained)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), held.inside(*arguments), trained)


def test_steps_without_the_penalty_see_the_statistics():
    """A lazy step that leaves the penalty out has the gradient of plain training."""
    module, keys = Net(), jax.random.split(jax.random.key(2), 8)
    params, model_state = models.initialize(module, jax.random.key(0), jnp.asarray(X, jnp.float32))
    state = training.init_state(params, training.sgd(0.1), jax.random.key(1), model_state)
    batch = {"image": jnp.asarray(X, jnp.float32), "label": jnp.asarray(BATCH["label"])}
    loss = loss_of(module, models.held_statistics_mode, penalties.projected())
    left_out = dataclasses.replace(loss, penalty_times=0.0)
    plain = training.classification_loss(models.train_mode(module))
    gradients = [jax.grad(lambda p, each=each: each(p, state, batch, keys)[0])(params) for each in (left_out, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *gradients)


def test_averages_of_other_modules_are_refused():
    module, x = OwnAverage(), jnp.ones((2, 3))
    params, model_state = {}, {"batch_stats": {"mean": jnp.zeros(3)}}
    with pytest.raises(TypeError, match="holds a OwnAverage"):
        models.held_statistics_mode(module).inside(params, model_state, x)


def test_functions_that_take_no_derivative_are_refused():
    penalty = penalties.of_model(
        models.held_statistics_mode(Net()), penalties.of(relatives.noise_consistency, sigma=0.1)
    )
    loss = training.classification_loss(models.train_mode(Net()), penalty=penalty, lambda_jr=0.1)
    params, model_state = models.initialize(Net(), jax.random.key(0), jnp.asarray(X, jnp.float32))
    state = training.init_state(params, training.sgd(0.1), jax.random.key(1), model_state)
    with pytest.raises(TypeError, match="take batch_statistics_mode"):
        loss(params, state, {"image": X, "label": BATCH["label"]}, jax.random.split(jax.random.key(2), 8))


def test_constant_for_the_innermost_derivative_alone():
    f = lambda x: jnp.sin(x) * constant_inside(x)
    first = jax.grad(f)
    assert first(0.7) == pytest.approx(0.7 * np.cos(0.7), rel=1e-6)
    assert jax.grad(first)(0.7) == pytest.approx(np.cos(0.7) - 0.7 * np.sin(0.7), rel=1e-6)
    assert jax.jvp(first, (0.7,), (1.0,))[1] == pytest.approx(np.cos(0.7) - 0.7 * np.sin(0.7), rel=1e-6)
    jitted = jax.grad(lambda x: jax.vjp(jax.jit(f), x)[1](1.0)[0])(0.7)
    assert jitted == pytest.approx(np.cos(0.7) - 0.7 * np.sin(0.7), rel=1e-6)


def test_a_norm_that_gets_x_by_name():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(use_running_average=not train)(x=nn.Dense(3)(x))

    module, x = Named(), jax.random.normal(jax.random.key(0), (8, 4))
    variables = module.init(jax.random.key(1), x)
    held = models.held_statistics_mode(module)
    state = {"batch_stats": variables["batch_stats"]}
    norms = [
        jr.exact_frobenius_sq(lambda x, apply=apply: apply(variables["params"], state, x, None)[0], x)
        for apply in (held.inside, models.batch_statistics_mode(module))
    ]
    np.testing.assert_allclose(*norms, rtol=1e-5)
