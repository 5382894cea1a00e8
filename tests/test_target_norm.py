"""schedules.target_norm: the norm that was asked for is the norm that is trained, and lambda_jr is found on the way."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import jacreg_jax as jr
from jacreg_jax import datasets, models, penalties, schedules, sharding, training

WANTED = 2.0
TARGET = schedules.target_norm(WANTED)
PERCEPTRON = models.MLP((32, 10))
APPLY = models.train_mode(PERCEPTRON)


class Normed(nn.Module):
    """A perceptron with BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(32)(x.reshape(len(x), -1)))
        return nn.Dense(10)(nn.tanh(x))


NORMED = Normed()


@pytest.fixture(scope="module")
def digits():
    image, label = datasets.load("digits", "train")
    return {"image": jnp.asarray(image[:1024].reshape(-1, 64) / 255, jnp.float32), "label": jnp.asarray(label[:1024])}


def indices(steps, seed=0):
    return jax.random.randint(jax.random.key(seed), (steps, 64), 0, 1024)


def start_of(module, optimizer, digits, seed=0):
    params, model_state = models.initialize(module, jax.random.key(seed), digits["image"][:2])
    return training.init_state(params, optimizer, jax.random.key(100 + seed), model_state)


def dense_norm(params, x):
    """The root of the mean of ||J||_F^2, from the Jacobian of every sample."""
    f = lambda x: PERCEPTRON.apply({"params": params}, x[None])[0]
    return float(jnp.sqrt(jnp.mean(jnp.sum(jax.vmap(jax.jacrev(f))(x) ** 2, axis=(1, 2)))))


def test_three_seeds_reach_the_norm(digits):
    """Within 5 %, in one program of three models, whose coefficients are their own."""
    wanted, target = 1.0, schedules.target_norm(1.0)
    optimizer = target.optimizer(optax.adam(3e-3))
    loss = training.classification_loss(APPLY, lambda_jr=target)
    states = [start_of(PERCEPTRON, optimizer, digits, seed) for seed in range(3)]
    plain = [dense_norm(state.params, digits["image"]) for state in states]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    steps = training.make_train_steps(loss, optimizer, together=True)
    states, metrics = steps(states, digits, jnp.stack([indices(600, seed) for seed in range(3)]))
    found = [dense_norm(jax.tree.map(lambda leaf: leaf[i], states.params), digits["image"]) for i in range(3)]
    np.testing.assert_allclose(found, wanted, rtol=0.05)
    assert not np.allclose(plain, wanted, rtol=0.05)
    final = metrics["lambda_jr"][:, -1]
    assert (final > 0.02).all()
    assert len(set(final.tolist())) == 3
    assert metrics["accuracy"][:, -50:].mean() > 0.7


def test_batch_norm_on_two_devices(digits):
    """Penalised at the batch's statistics; two devices find what one finds."""
    assert len(jax.devices()) > 1
    optimizer = TARGET.optimizer(training.sgd(0.02))
    penalty = penalties.of_model(models.held_statistics_mode(NORMED))
    loss = training.classification_loss(models.train_mode(NORMED), penalty=penalty, lambda_jr=TARGET)
    found = {}
    for devices in (1, 2):
        mesh = sharding.data_mesh(jax.devices()[:devices])
        steps = training.make_train_steps(loss, optimizer, mesh=mesh)
        state = sharding.replicate(start_of(NORMED, optimizer, digits), mesh)
        state, early = steps(state, sharding.replicate(digits, mesh), indices(5))
        found[devices] = jax.device_get((state.params, state.opt_state.dual, early))
    chex.assert_trees_all_close(found[2], found[1], rtol=2e-4, atol=2e-5)
    state, _ = steps(state, sharding.replicate(digits, mesh), indices(600))
    norms = []
    f = models.batch_statistics_mode(NORMED)
    for row in indices(10, seed=1):
        logits = lambda x: f(state.params, state.model_state, x, jax.random.key(0))[0]
        norms.append(float(jnp.mean(jr.exact_frobenius_sq(logits, digits["image"][row]))))
    assert np.sqrt(np.mean(norms)) == pytest.approx(WANTED, rel=0.05)


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_the_coefficient_sees_the_whole_batch(digits, backend):
    """Each device holds half of the norms."""
    optimizer = TARGET.optimizer(optax.sgd(0.1))
    loss = training.classification_loss(APPLY, lambda_jr=TARGET, penalty=penalties.exact())
    batch = jax.tree.map(lambda leaf: leaf[:16], digits)
    step = training.make_train_step(loss, optimizer)
    (state, metrics), mesh = step(start_of(PERCEPTRON, optimizer, digits), batch), sharding.data_mesh(jax.devices()[:2])
    sharded = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend)
    start = sharding.replicate(start_of(PERCEPTRON, optimizer, digits), mesh)
    other, other_metrics = sharded(start, sharding.shard_batch(batch, mesh))
    chex.assert_trees_all_close(jax.device_get(other.opt_state.dual), jax.device_get(state.opt_state.dual), rtol=1e-6)
    chex.assert_trees_all_close(jax.device_get(other_metrics), jax.device_get(metrics), rtol=1e-5)


def test_held_out_data(digits):
    """Measured where the user asks: images of twice the contrast, on which a tanh network has another norm."""
    optimizer = TARGET.optimizer(optax.adam(3e-3))
    data = digits | {"held_out": 1.5 * digits["image"][::-1]}
    loss = training.classification_loss(APPLY, lambda_jr=TARGET)
    steps = training.make_train_steps(loss, optimizer)
    state, metrics = steps(start_of(PERCEPTRON, optimizer, data), data, indices(600))
    assert dense_norm(state.params, data["held_out"]) == pytest.approx(WANTED, rel=0.05)
    assert abs(dense_norm(state.params, data["image"]) / WANTED - 1) > 0.1
    last = np.sqrt(metrics["held_out_penalty"][-100:].mean())
    assert last == pytest.approx(WANTED, rel=0.05)


def test_lazy_steps_measure_on_their_own_steps_alone(digits):
    optimizer = TARGET.optimizer(optax.sgd(0.1))
    loss = training.lazily(2, training.in_parts(8, training.classification_loss(APPLY, lambda_jr=TARGET)))
    data = digits | {"held_out": digits["image"][::-1]}
    steps = training.make_train_steps(loss, optimizer)
    _, metrics = steps(start_of(PERCEPTRON, optimizer, data), data, indices(6)[:, :16])
    changed = np.diff(np.asarray(metrics["lambda_jr"])) != 0
    assert changed.tolist() == [True, False, True, False, True]
    assert np.isnan(metrics["held_out_penalty"]).tolist() == [False, True] * 3


def searching(grads, state, params, *, value, grad, value_fn):
    """As optax's line searches: it refuses what it does not know."""
    return jax.tree.map(lambda g: -0.1 * g + 0.0 * (value_fn(params) - value), grad), state


SEARCH = optax.GradientTransformationExtraArgs(lambda params: (), searching)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda target: target.optimizer(optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
        lambda target: optax.chain(optax.clip_by_global_norm(1.0), target.optimizer(SEARCH)),
    ],
    ids=["MultiSteps", "chain and line search"],
)
def test_inside_of_other_transformations(digits, wrap):
    optimizer = wrap(TARGET)
    step = training.make_train_step(training.classification_loss(APPLY, lambda_jr=TARGET), optimizer)
    state, batch = start_of(PERCEPTRON, optimizer, digits), jax.tree.map(lambda leaf: leaf[:16], digits)
    before = float(TARGET.lambda_jr(state))
    for _ in range(2):
        state, metrics = step(state, batch)
    assert np.isfinite(metrics["loss"])
    assert float(TARGET.lambda_jr(state)) != before


def test_the_formula_by_hand():
    """In a loop of one's own: m <- d m + (1 - d) s, log lambda <- log lambda + r clip(m / c^2 - 1), and its limits."""
    target, log_lambda, mean = schedules.target_norm(2.0, rate=0.1, decay=0.5, start=0.1), np.log(0.1), 4.0
    dual = target.init()
    for measured in (100.0, 1.0, np.nan, 4.0):
        dual = jax.jit(target.update)(dual, measured)
        if np.isfinite(measured):
            mean = 0.5 * mean + 0.5 * measured
            log_lambda += 0.1 * np.clip(mean / 4 - 1, -1, 1)
        np.testing.assert_allclose(target.lambda_jr(dual), np.exp(log_lambda), rtol=1e-6)
    for measured, limit in ((1e9, schedules.MOST), (0.0, schedules.LEAST)):
        for _ in range(400):
            dual = target.update(dual, measured)
        np.testing.assert_allclose(target.lambda_jr(dual), limit, rtol=1e-5)


MULTI_STEPS = optax.MultiSteps(TARGET.optimizer(optax.sgd(0.1)), 2).gradient_transformation()


def test_errors(digits):
    step = lambda loss, optimizer: training.make_train_step(loss, optimizer)(
        start_of(PERCEPTRON, optimizer, digits), jax.tree.map(lambda leaf: leaf[:4], digits)
    )
    for call, error, message in (
        (lambda: schedules.target_norm(0), ValueError, "norm must be above 0, got 0"),
        (lambda: schedules.target_norm(1, rate=1.0), ValueError, "rate must lie in"),
        (lambda: schedules.target_norm(1, start=1e9), ValueError, "start must lie in"),
        (lambda: TARGET.optimizer(3), TypeError, "inner must be an optax transformation, got int"),
        (
            lambda: step(training.classification_loss(APPLY, lambda_jr=TARGET), optax.sgd(0.1)),
            ValueError,
            r"state must hold one Dual, got 0.*target.optimizer",
        ),
        (
            lambda: step(training.classification_loss(APPLY), TARGET.optimizer(optax.sgd(0.1))),
            ValueError,
            r"loss must give metrics with a penalty to target.optimizer.*got \['accuracy', 'cross_entropy'\]",
        ),
        (
            lambda: step(training.classification_loss(APPLY, lambda_jr=TARGET), MULTI_STEPS),
            ValueError,
            r"optimizer must be target.optimizer\(...\) outside of all else",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
