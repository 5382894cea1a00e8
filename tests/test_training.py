"""training.py: the joint loss in a compiled step; SGD as in the paper; what happens when a number is not finite."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen as nn

import jacreg_jax as jr
from jacreg_jax import penalties, training
from jacreg_jax.models import MLP, ResNet18, eval_mode, initialize, train_mode
from tests.reference import frobenius_sq

MODULE = MLP((8, 4))


@pytest.fixture
def problem(key):
    """(params, batch): a small perceptron and 12 labelled samples."""
    image = jax.random.normal(key, (12, 6))
    params, _ = initialize(MODULE, key, image)
    return params, {"image": image, "label": jnp.arange(12) % 4}


def state_of(params, optimizer, key, model_state=None):
    return training.init_state(jax.tree.map(jnp.copy, params), optimizer, jax.random.clone(key), model_state)


def test_weight_decay_takes_a_schedule():
    """lambda_WD(t) = 0.1 (t + 1), by hand."""
    optimizer = training.sgd(0.5, momentum=0.0, weight_decay=lambda step: 0.1 * (step + 1))
    theta, state = jnp.float32(1.0), optimizer.init(jnp.float32(1.0))
    for step in range(3):
        updates, state = optimizer.update(jnp.float32(0.0), state, theta)
        np.testing.assert_allclose(updates, -0.5 * 0.1 * (step + 1) * theta, rtol=1e-6)
        theta = theta + updates


def test_an_optimizer_that_names_its_extra_arguments(problem, key):
    """optax.contrib.sam takes grad_fn alone and refused the value, the gradient and the function of the loss."""
    params, batch = problem
    optimizer = optax.contrib.sam(
        optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), sync_period=2
    )
    step = training.make_train_step(training.classification_loss(train_mode(MODULE)), optimizer)

    def mean(params):
        logits = MODULE.apply({"params": params}, batch["image"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    state, theta, opt_state = state_of(params, optimizer, key), params, optimizer.init(params)
    for _ in range(4):
        state, _ = step(state, batch)
        updates, opt_state = optimizer.update(jax.grad(mean)(theta), opt_state, theta)
        theta = optax.apply_updates(theta, updates)
    chex.assert_trees_all_close(state.params, theta, rtol=1e-5, atol=1e-6)


def test_sgd_is_the_papers(problem, key):
    """Coupled decay, trace momentum: u <- rho u + g + lambda theta; theta <- theta - eta u."""
    params, _ = problem
    optimizer = training.sgd(training.quench(0.1, [2, 3]), momentum=0.9, weight_decay=0.01)
    gradients = [jax.tree.map(lambda p, i=i: jnp.sin(p + i), params) for i in range(4)]
    opt_state, theta = optimizer.init(params), params
    velocity = jax.tree.map(jnp.zeros_like, params)
    expected = params
    for gradient, rate in zip(gradients, (0.1, 0.1, 0.01, 0.001), strict=True):
        updates, opt_state = optimizer.update(gradient, opt_state, theta)
        theta = optax.apply_updates(theta, updates)
        velocity = jax.tree.map(lambda u, g, t: 0.9 * u + g + 0.01 * t, velocity, gradient, expected)
        expected = jax.tree.map(lambda t, u, rate=rate: t - rate * u, expected, velocity)
    chex.assert_trees_all_close(theta, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": penalties.exact()},
        {"penalty": penalties.exact(chunk_size=2)},
        {"penalty": penalties.projected(4, "orthonormal")},
    ],
)
def test_step_follows_the_joint_loss(problem, key, options):
    """One step equals plain SGD on equation 5 written out with the whole Jacobian matrix."""
    params, batch = problem
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.3, **options)
    step = training.make_train_step(loss, training.sgd(0.1))
    state, metrics = step(state_of(params, training.sgd(0.1), key), batch)

    def equation_5(params):
        f = lambda x: MODULE.apply({"params": params}, x)
        cross_entropy = -jnp.mean(jax.nn.log_softmax(f(batch["image"]))[jnp.arange(12), batch["label"]])
        return cross_entropy + 0.15 * frobenius_sq(f, batch["image"]).mean()

    value, gradient = jax.value_and_grad(equation_5)(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert int(state.step) == 1


def test_metrics(problem, key):
    params, batch = problem
    step = training.make_train_step(training.classification_loss(train_mode(MODULE), lambda_jr=0.1), training.sgd(0.1))
    _, metrics = step(state_of(params, training.sgd(0.1), key), batch)
    assert set(metrics) == {"loss", "grad_norm", "cross_entropy", "accuracy", "penalty", "penalty_error"}
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"] + 0.05 * metrics["penalty"], rtol=1e-6)
    f = lambda x: MODULE.apply({"params": params}, x)
    accuracy = np.mean(np.argmax(f(batch["image"]), 1) == np.asarray(batch["label"]))
    np.testing.assert_allclose(metrics["accuracy"], accuracy)
    assert abs(metrics["penalty"] - frobenius_sq(f, batch["image"]).mean()) < 5 * metrics["penalty_error"]


def test_plain_loss_has_no_penalty_in_the_program(problem, key):
    params, batch = problem
    flops = []
    for lambda_jr in (0.0, 0.1):
        loss = training.classification_loss(train_mode(MODULE), lambda_jr=lambda_jr)
        step = training.make_train_step(loss, training.sgd(0.1))
        compiled = step.lower(state_of(params, training.sgd(0.1), key), batch).compile()
        flops.append(compiled.cost_analysis()["flops"])
    assert flops[1] > 1.5 * flops[0]


def test_many_steps_equal_single_steps(problem, key):
    params, data = problem
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, penalty=penalties.on_part(0.5))
    optimizer = training.sgd(0.1, weight_decay=1e-3)
    indices = jax.random.randint(key, (7, 5), 0, 12)
    many, metrics = training.make_train_steps(loss, optimizer)(state_of(params, optimizer, key), data, indices)
    single = state_of(params, optimizer, key)
    step = training.make_train_step(loss, optimizer)
    losses = []
    for index in indices:
        single, m = step(single, jax.tree.map(lambda leaf, i=index: leaf[i], data))
        losses.append(m["loss"])
    chex.assert_trees_all_close(many.params, single.params, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert int(many.step) == 7


def test_training_reduces_the_jacobian(problem, key):
    params, data = problem
    norms = []
    for lambda_jr in (0.0, 0.1):
        loss = training.classification_loss(train_mode(MODULE), lambda_jr=lambda_jr)
        steps = training.make_train_steps(loss, training.sgd(0.1))
        indices = jnp.broadcast_to(jnp.arange(12), (300, 12))  # full batch, as in few-shot learning
        state, _ = steps(state_of(params, training.sgd(0.1), key), data, indices)
        f = lambda x, p=state.params: MODULE.apply({"params": p}, x)
        norms.append(jr.exact_frobenius_sq(f, data["image"]).mean())
    assert norms[1] < 0.3 * norms[0]


def test_traces_once(problem, key):
    params, batch = problem
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    step = training.make_train_step(chex.assert_max_traces(loss.__call__, n=1), training.sgd(training.quench(0.1, [2])))
    state = state_of(params, training.sgd(training.quench(0.1, [2])), key)
    for _ in range(4):
        state, _ = step(state, batch)


def test_lazy_penalty(problem, key):
    """Every third step carries three times the weight, the others none; so does the loss that is reported."""
    params, batch = problem
    optimizer = training.sgd(0.0, momentum=0.0)  # the parameters stay, so that steps can be compared
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, penalty=penalties.exact())
    indices = jnp.broadcast_to(jnp.arange(12), (6, 12))
    _, full = training.make_train_steps(loss, optimizer)(state_of(params, optimizer, key), batch, indices)
    steps = training.make_train_steps(training.lazily(3, loss), optimizer)
    _, lazy = steps(state_of(params, optimizer, key), batch, indices)
    np.testing.assert_array_equal(np.isnan(lazy["penalty"]), [False, True, True] * 2)
    np.testing.assert_allclose(lazy["loss"].mean(), full["loss"].mean(), rtol=1e-6)
    assert np.isfinite(lazy["loss"]).all()


def test_dropout_mask_is_shared_and_fresh(key):
    """Supervised and penalty branch see one mask; another step draws another."""
    module = MLP((8, 4), dropout_rate=0.5)
    x = jax.random.normal(key, (5, 6))
    params, _ = initialize(module, key, x)
    calls = []

    def apply(params, model_state, x, key):
        calls.append(key)
        return train_mode(module)(params, model_state, x, key)

    loss = training.classification_loss(apply, lambda_jr=0.1)
    optimizer = training.sgd(0.0, momentum=0.0)
    step = training.make_train_step(loss, optimizer)
    state, first = step(state_of(params, optimizer, key), {"image": x, "label": jnp.zeros(5, int)})
    _, second = step(state, {"image": x, "label": jnp.zeros(5, int)})
    assert len(calls) == 1
    assert first["cross_entropy"] != second["cross_entropy"]


class Normalized(nn.Module):
    """A small convolutional network with BatchNorm, called as the library's models are."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(nn.relu(x).reshape(x.shape[0], -1))


@pytest.mark.parametrize("module", [Normalized(), pytest.param(ResNet18(), marks=pytest.mark.slow)])
def test_batch_norm_state_and_penalty(module, key):
    """Statistics move in training; of_model(eval_mode) gives the norm of the eval-mode model, and warns."""
    x = jax.random.normal(key, (2, 8, 8, 3))
    params, model_state = initialize(module, key, x)
    batch = {"image": x, "label": jnp.zeros(2, int)}
    optimizer = training.sgd(0.01)
    penalty = penalties.of_model(eval_mode(module), penalties.projected(10, "orthonormal"))
    loss = training.classification_loss(train_mode(module), lambda_jr=0.01, penalty=penalty)
    step = training.make_train_step(loss, optimizer, donate=False)
    state = state_of(params, optimizer, key, model_state)
    with pytest.warns(UserWarning, match="running statistics, which lag behind"):
        new, metrics = step(state, batch)
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), new.model_state, model_state)
    assert any(jax.tree.leaves(moved))
    f = lambda x: eval_mode(module)(params, model_state, x)[0]
    expected = jax.jit(lambda x: jr.exact_frobenius_sq(f, x).mean())(x)
    np.testing.assert_allclose(metrics["penalty"], expected, rtol=1e-3)


def test_perturbed_training_images(problem, key):
    """The perturbation sees the raw model, moves the images, and no gradient runs through it."""
    params, batch = problem
    seen = {}

    def perturb(f, image, label, keys):
        seen["gap"] = f(image) - MODULE.apply({"params": params}, 2 * image)
        return image + 0.1 * jnp.sign(jax.grad(lambda i: f(i).sum())(image))

    loss = training.classification_loss(train_mode(MODULE), preprocess=lambda x: 2 * x, perturb=perturb)
    state = state_of(params, training.sgd(0.1), key)
    value, _ = loss(params, state, batch, jax.random.split(key, 12))
    clean, _ = training.classification_loss(train_mode(MODULE), preprocess=lambda x: 2 * x)(
        params, state, batch, jax.random.split(key, 12)
    )
    np.testing.assert_allclose(seen["gap"], 0, atol=1e-6)
    assert value != clean


def test_a_step_that_is_not_finite_keeps_the_state(problem, key):
    params, batch = problem
    loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    optimizer = training.sgd(0.1)
    data = {"image": batch["image"].at[3].set(jnp.nan), "label": batch["label"]}
    indices = jnp.array([[0, 1], [1, 2], [2, 3], [4, 5]])  # the third step meets the NaN
    state, metrics = training.make_train_steps(loss, optimizer)(state_of(params, optimizer, key), data, indices)
    good, _ = training.make_train_steps(loss, optimizer)(state_of(params, optimizer, key), data, indices[:2])
    chex.assert_trees_all_equal(state.params, good.params)
    chex.assert_trees_all_equal(state.opt_state, good.opt_state)
    assert int(state.step) == 2
    with pytest.raises(training.NonFiniteError, match="stopped at step 3: loss nan, penalty nan") as error:
        training.check_finite(jax.device_get(metrics), 4)
    assert error.value.step == 3
    training.check_finite(jax.device_get(jax.tree.map(lambda m: m[:2], metrics)), 2)


def test_bad_options():
    with pytest.raises(ValueError, match="num_projections must be an integer of at least 1, got 'all'"):
        penalties.projected("all")
    with pytest.raises(ValueError, match="backend must be 'jit', 'shard_map' or 'pmap', got 'xmap'"):
        training.make_train_step(lambda *a: None, training.sgd(0.1), backend="xmap")
    with pytest.raises(ValueError, match="mesh must be given for backend 'pmap'"):
        training.make_train_step(lambda *a: None, training.sgd(0.1), backend="pmap")
