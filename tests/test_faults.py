"""What once gave wrong numbers in silence, against independent truth: jacrev, differences, closed forms, one device."""

import dataclasses
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx

import jacreg_jax as jr
from jacreg_jax import (
    accumulation,
    attacks,
    certify,
    cyclopropagation,
    decision_cells,
    evaluation,
    interop,
    models,
    penalties,
    relatives,
    sharding,
    supervised,
    training,
)
from tests.conftest import TRAIN_MODE, mlp, mlp_params
from tests.reference import frobenius_sq

# constants of the accumulated mean


@pytest.mark.parametrize("penalty", [penalties.exact(1), penalties.exact(3), penalties.exact(8)])
def test_complex_parameters_keep_their_gradient(x64, key, penalty):
    """A Fourier layer: real and imaginary parts of its filter, by central differences in float64."""
    x = jax.random.normal(key, (3, 8))
    w = jax.random.normal(key, (2, 5))

    def mean(w):
        f = lambda x: jnp.tanh(jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * (w[0] + 1j * w[1])[None], n=8, axis=1))
        return penalty(f, x, None, None)[1]

    gradient, mean, h = jax.jit(jax.grad(mean))(w), jax.jit(mean), 1e-6
    for place in ((0, 1), (1, 2), (1, 3)):
        step = jnp.zeros_like(w).at[place].set(h)
        numeric = (mean(w + step) - mean(w - step)) / (2 * h)
        np.testing.assert_allclose(gradient[place], numeric, rtol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.005)])
def test_gradients_of_chunks_are_summed_in_float32(key, dtype, tolerance):
    """C = 400 products one at a time: as good as all at once, against float32."""
    w = jax.random.normal(key, (400, 16)) / 4
    x = jax.random.normal(key, (8, 16))
    f = lambda w, x: jnp.tanh(x @ w.T)
    gradient = lambda dtype, chunk: jax.jit(
        jax.grad(lambda w: jr.value_and_exact_penalty(lambda x: f(w, x), x.astype(dtype), chunk_size=chunk)[1])
    )(w.astype(dtype))
    right = gradient("float32", 400)
    error = lambda g: float(jnp.linalg.norm(g.astype(jnp.float32) - right) / jnp.linalg.norm(right))
    assert error(gradient(dtype, 1)) < tolerance
    assert error(gradient(dtype, 1)) < 1.5 * error(gradient(dtype, 400)) + 1e-4


def test_small_gradients_in_float16_do_not_vanish(key):
    """With 4,096 samples 1 / B is below what float16 resolves beside a small Jacobian."""
    w = 0.003 * jax.random.normal(key, (16, 4))
    x = jax.random.normal(key, (4096, 16))

    def gradient(dtype):
        f = lambda w, x: jnp.tanh(x.astype(dtype) @ w.astype(dtype))
        loss = lambda w: 2.0**10 * jr.value_and_exact_penalty(lambda x: f(w, x), x, chunk_size=1)[1]
        return jax.jit(jax.grad(loss))(w)

    right = gradient(jnp.float32)
    assert jnp.linalg.norm(gradient(jnp.float16) - right) < 0.02 * jnp.linalg.norm(right)


# several devices


class Counting(nn.Module):
    """A model whose state holds an integer counter, a flag and a key."""

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
        flag = self.variable("state", "flag", lambda: jnp.zeros((), bool))
        self.variable("state", "key", lambda: jax.random.key(5))
        if train and not self.is_initializing():
            count.value = count.value + 1
            flag.value = jnp.ones((), bool)
        return nn.Dense(4)(x)


@pytest.mark.parametrize("backend", ["jit", "shard_map", "pmap"])
def test_state_keeps_its_types_on_a_mesh(key, backend):
    x = jax.random.normal(key, (8, 6))
    net = interop.from_linen(Counting(), Counting().init(key, x))
    mesh = sharding.data_mesh(jax.devices()[:2])
    loss = training.classification_loss(net.train, lambda_jr=0.1)
    optimizer = training.sgd(0.1)
    step = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend, donate=False)
    state = training.init_state(net.params, optimizer, key, net.model_state)
    before = jax.tree.map(lambda leaf: leaf.dtype, state)
    for _ in range(2):
        state, _ = step(state, {"image": x, "label": jnp.arange(8) % 4})
    assert jax.tree.map(lambda leaf: leaf.dtype, state) == before
    assert int(state.model_state["state"]["count"]) == 2
    assert bool(state.model_state["state"]["flag"])
    assert jax.random.key_data(state.model_state["state"]["key"]).tolist() == [0, 5]


# keys


def test_the_model_and_the_probes_draw_from_different_keys(key):
    """A bare model with weights of its own noise: were they the probe's draw, the penalty would be biased."""
    x = jnp.ones((1, 6))

    def apply(params, state, x, key):
        noise = jax.random.normal(key, (4,))  # along the probe, if the keys were one
        return (x * params[None]).sum(1, keepdims=True) * (1 + noise)[None], state

    params = jnp.arange(1.0, 7.0)
    loss = training.classification_loss(apply, lambda_jr=1.0, penalty=penalties.projected(probe="gaussian"))

    def penalty(key):
        state = training.init_state(params, optax.sgd(0.0), key)
        keys = sharding.row_keys(key, 1, None)
        return loss(params, state, {"image": x, "label": jnp.zeros(1, int)}, keys)[1][1]["penalty"]

    found = jax.jit(jax.vmap(penalty))(jax.random.split(key, 40_000))
    right = (params**2).sum() * 8  # E sum_c (1 + n_c)^2 = 2 C
    error = found.std() / np.sqrt(len(found))
    assert abs(found.mean() - right) < 4 * error
    assert 4 * error < 0.05 * right


# training


def test_the_callers_parameters_and_key_survive_donation(key):
    params = {"w": jnp.ones((6, 3))}
    loss = training.classification_loss(lambda p, s, x, k: (x @ p["w"], s), lambda_jr=0.1)
    step = training.make_train_step(loss, training.sgd(0.1))
    batch = {"image": jnp.ones((4, 6)), "label": jnp.zeros(4, int)}
    results = [step(training.init_state(params, training.sgd(0.1), key), batch)[0].params["w"] for _ in range(2)]
    np.testing.assert_array_equal(*results)
    assert float(params["w"].sum()) == 18
    assert jax.random.normal(key).shape == ()


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        optax.polyak_sgd(),
        optax.lbfgs(0.1),
    ],
    ids=["reduce_on_plateau", "polyak_sgd", "lbfgs"],
)
def test_optimizers_that_want_the_loss(key, optimizer):
    params = 0.1 * jax.random.normal(key, (6, 3))
    batch = {"image": jax.random.normal(key, (30, 6)), "label": jnp.arange(30) % 3}
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s), lambda_jr=0.01, penalty=penalties.exact())
    step = training.make_train_step(loss, optimizer)
    state = training.init_state(params, optimizer, key)
    losses = []
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]


def test_sown_collections_do_not_grow(key):
    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "balance", jnp.sum(x))
            return nn.Dense(3)(x)

    x = jnp.ones((4, 6))
    net = interop.from_linen(Experts(), Experts().init(key, x))
    loss = training.classification_loss(net.train, lambda_jr=0.1)
    step = training.make_train_step(loss, training.sgd(0.1), donate=False)
    state = training.init_state(net.params, training.sgd(0.1), key, net.model_state)
    with pytest.warns(UserWarning, match="collection 'losses' of the module grows in every call"):
        new, _ = step(state, {"image": x, "label": jnp.zeros(4, int)})
    assert jax.tree.structure(new) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (np.array([[0], [1], [2], [0]]), ValueError, r"label must be integers of shape \(4,\).*got int.*\[4, 1\]"),
        (np.array([0, 1, 2, 3]), ValueError, "label must hold labels from 0 to 2.*got labels from 0 to 3"),
        (np.array([0, 1, 2, -1]), ValueError, "label must hold labels from 0 to 2.*got labels from -1 to 2"),
        (np.array([0.0, 1.0, 2.0, 0.0]), ValueError, "label must be integers"),
    ],
)
def test_labels_of_a_train_step(key, label, error, message):
    """In the first step and in a later one, directly and inside of many steps."""
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s), lambda_jr=0.1)
    image, optimizer = np.ones((4, 6), np.float32), training.sgd(0.1)
    good = np.array([0, 1, 2, 0], label.dtype)
    new = lambda: training.init_state(jnp.ones((6, 3)), optimizer, key)
    step = training.make_train_step(loss, optimizer)
    with pytest.raises(error, match=message):
        step(new(), {"image": image, "label": label})
    if label.dtype.kind == "i" and label.ndim == 1:
        state, _ = step(new(), {"image": image, "label": good})
        with pytest.raises(error, match=message):
            step(state, {"image": image, "label": label})
        steps = training.make_train_steps(loss, optimizer)
        with pytest.raises(error, match=message):
            steps(new(), {"image": image, "label": label}, np.zeros((2, 2), np.int32))


@pytest.mark.parametrize("rows", [np.array([[0, 4]]), np.array([[-1, 0]])])
def test_rows_outside_of_the_data(key, rows):
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s))
    steps = training.make_train_steps(loss, training.sgd(0.1))
    data = {"image": jnp.ones((4, 6)), "label": jnp.zeros(4, int)}
    state = training.init_state(jnp.ones((6, 3)), training.sgd(0.1), key)
    with pytest.raises(ValueError, match="indices must be rows 0 to 3 of the data, got"):
        steps(state, data, rows)


@pytest.mark.parametrize(("first", "second"), [(3, 6), (6, 3)])
def test_labels_of_a_step_that_serves_two_models(key, first, second):
    """Their classes are the model's own: of the first too, once more after the second."""
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s), lambda_jr=0.1)
    step = training.make_train_step(loss, training.sgd(0.1))
    image = np.ones((4, 6), np.float32)
    for classes in (first, second, first):
        new = lambda classes=classes: training.init_state(jnp.ones((6, classes)), training.sgd(0.1), key)
        labels = jnp.arange(4) % classes  # the same array in the wrong call of the next
        assert np.isfinite(step(new(), {"image": image, "label": labels})[1]["loss"])
        with pytest.raises(ValueError, match=f"label must hold labels from 0 to {classes - 1}"):
            step(new(), {"image": image, "label": labels.at[0].set(classes)})


def test_the_same_arrays_are_looked_at_again_for_another_model(key):
    """They passed with six classes; with three they are wrong, in a step that has run with three before."""
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s), lambda_jr=0.1)
    step = training.make_train_step(loss, training.sgd(0.1))
    new = lambda classes: training.init_state(jnp.ones((6, classes)), training.sgd(0.1), key)
    batch = {"image": jnp.ones((4, 6)), "label": jnp.arange(4)}
    step(new(3), batch | {"label": jnp.zeros(4, int)})
    step(new(6), batch)
    with pytest.raises(ValueError, match="label must hold labels from 0 to 2"):
        step(new(3), batch)


def with_metric(value):
    return lambda params, state, batch, keys: (jnp.mean(batch["x"] @ params), ({}, {"hits": value(batch["x"])}))


@pytest.mark.parametrize(
    ("value", "backends"), [(lambda x: (x > 0.3).any(), ["jit", "pmap"]), (lambda x: (x > 0.3).sum(), ["shard_map"])]
)
def test_flags_and_counts_of_shares_are_refused(key, value, backends):
    """Their mean over shares would be cut to a whole number; one device has the number itself."""
    batch, optimizer = {"x": jnp.linspace(0, 1, 8)[:, None]}, training.sgd(0.1)
    loss = with_metric(value)
    state = lambda: training.init_state(jnp.ones(1), optimizer, key)
    assert training.make_train_step(loss, optimizer)(state(), batch)[1]["hits"] == value(batch["x"])
    on_two = sharding.data_mesh(jax.devices()[:2])
    steps = [training.make_train_step(loss, optimizer, mesh=on_two, backend=b) for b in backends]
    for step in (*steps, training.make_train_step(training.in_parts(4, loss), optimizer)):
        with pytest.raises(TypeError, match="'hits'.* must be a mean over the samples, in floating point"):
            step(state(), batch)


# what a user's function gives


STEP = {"image": jnp.ones((2, 3)), "label": jnp.zeros(2, int)}
AN_APPLY = lambda params, state, x, key: (x @ params, state)


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        # two rows, which two names would take for an output and a state
        (training.classification_loss(lambda p, s, x, k: x @ p), TypeError, r"apply must give \(output, model_state\)"),
        (training.supervised_loss(AN_APPLY, lambda z, b: z.sum(1)), TypeError, "objective must give .losses"),
        (training.supervised_loss(AN_APPLY, lambda z, b: (z.sum(), {})), ValueError, r"losses \[B, ...\] of [12] "),
        (lambda p, s, b, k: p.sum(), TypeError, "loss must give .loss, .model_state, metrics"),
        (lambda p, s, b, k: (p.sum(), {}), TypeError, "loss must give .loss, .model_state, metrics"),
        (lambda p, s, b, k: (p.sum(), ({}, None)), TypeError, "metrics of type NoneType"),
    ],
)
def test_what_a_users_function_gives(key, loss, error, message):
    """In a step, and in parts of one."""
    new = lambda: training.init_state(jnp.ones((3, 4)), training.sgd(0.1), key)
    for whole in (loss, training.in_parts(1, loss)):
        with pytest.raises(error, match=message):
            training.make_train_step(whole, training.sgd(0.1))(new(), STEP)


@pytest.mark.parametrize("f", [lambda x: x, lambda x: (x, x, x)])
def test_an_aux_that_is_not_there(key, f):
    with pytest.raises(TypeError, match=r"f must give \(z, aux\), as has_aux=True says"):
        jr.value_and_penalty(f, jnp.ones((2, 3)), key, has_aux=True)


def test_iterators_are_sequences(key):
    x, layers = jnp.ones((2, 3)), [jnp.tanh, jnp.sin]
    right = relatives.layerwise_frobenius_sq(layers, x, key)
    np.testing.assert_array_equal(relatives.layerwise_frobenius_sq(iter(layers), x, key), right)
    found = [training.quench(0.1, steps)(3) for steps in ([2], iter([2]), range(2, 3))]
    np.testing.assert_allclose(found, 0.01, rtol=1e-6)


# any supervised loss


def state_of(params, key):
    return training.init_state(params, training.sgd(0.1), key)


def test_token_labels_with_a_mask(key):
    """Logits [B, T, V]: the mean over the marked tokens of each sample, then over the samples."""
    w = jax.random.normal(key, (5, 7))
    x = jax.random.normal(key, (3, 4, 5))
    label = jnp.arange(12).reshape(3, 4) % 7
    mask = jnp.asarray([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    loss = supervised.classification_loss(lambda p, s, x, k: (x @ p, s))
    batch = {"image": x, "label": jnp.where(mask > 0, label, -1), "mask": mask}
    value, (_, metrics) = loss(w, state_of(w, key), batch, jax.random.split(key, 3))
    log_p = jax.nn.log_softmax(x @ w)
    per_token = -np.take_along_axis(np.asarray(log_p), np.asarray(label)[..., None], -1)[..., 0]
    by_hand = [per_token[0, :2].mean(), per_token[1, :1].mean(), per_token[2].mean()]
    np.testing.assert_allclose(value, np.mean(by_hand), rtol=1e-5)
    hits = np.argmax(log_p, -1) == label
    np.testing.assert_allclose(metrics["accuracy"], np.mean([hits[0, :2].mean(), hits[1, :1].mean(), hits[2].mean()]))


def test_weights_and_smoothing(key):
    w, x = jax.random.normal(key, (5, 3)), jax.random.normal(key, (4, 5))
    label, weight = jnp.asarray([0, 1, 2, 0]), jnp.asarray([0.5, 2.0, 0.0, 1.0])
    loss = supervised.classification_loss(lambda p, s, x, k: (x @ p, s), label_smoothing=0.1)
    value, _ = loss(w, state_of(w, key), {"image": x, "label": label, "weight": weight}, jax.random.split(key, 4))
    targets = 0.9 * np.eye(3)[np.asarray(label)] + 0.1 / 3
    by_hand = -(targets * np.asarray(jax.nn.log_softmax(x @ w))).sum(1) * np.asarray(weight)
    np.testing.assert_allclose(value, by_hand.mean(), rtol=1e-5)


def test_regression_and_multi_label(key):
    w, x = jax.random.normal(key, (5, 3)), jax.random.normal(key, (4, 5))
    apply = lambda p, s, x, k: (x @ p, s)
    keys, state = jax.random.split(key, 4), state_of(w, key)
    target = jax.random.normal(key, (4, 3))
    loss = supervised.regression_loss(apply, lambda_jr=0.2, penalty=penalties.exact(), input_name="x")
    value, (_, metrics) = loss(w, state, {"x": x, "label": target}, keys)
    squares = ((np.asarray(x @ w) - np.asarray(target)) ** 2).sum(1).mean()
    np.testing.assert_allclose(value, squares + 0.1 * np.sum(np.asarray(w) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["squared_error"], squares, rtol=1e-5)
    label = (target > 0).astype(jnp.int32)
    value, (_, metrics) = supervised.multi_label_loss(apply)(w, state, {"image": x, "label": label}, keys)
    p = 1 / (1 + np.exp(-np.asarray(x @ w, np.float64)))
    by_hand = -(np.asarray(label) * np.log(p) + (1 - np.asarray(label)) * np.log(1 - p)).sum(1).mean()
    np.testing.assert_allclose(value, by_hand, rtol=1e-5)
    with pytest.raises(ValueError, match=r"label must have the shape of the output, \(4, 3\), got \(4,\)"):
        supervised.multi_label_loss(apply)(w, state, {"image": x, "label": label[:, 0]}, keys)


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (supervised.classification_loss, {"weight": jnp.ones((4, 1))}, r"weight must have shape \(4,\)"),
        (supervised.classification_loss, {"weight": jnp.ones(3)}, r"weight must have shape \(4,\)|'weight'.*: 3"),
        (supervised.classification_loss, {"weight": -jnp.ones(4)}, "weight must be at least 0"),
        (supervised.classification_loss, {"mask": jnp.ones(4)}, "mask marks tokens"),
        (supervised.classification_loss, {"mask": jnp.ones((4, 3))}, r"mask must have shape \(4,\)"),
        (supervised.classification_loss, {"label": 5 * jnp.ones((4, 3))}, "label must hold values from 0 to 1"),
        (supervised.classification_loss, {"label": jnp.ones((4, 3))}, "label must be distributions that sum to 1"),
        (supervised.regression_loss, {"label": jnp.ones((4, 3)), "mask": jnp.ones(4)}, "mask marks tokens"),
        (supervised.multi_label_loss, {"label": 2 * jnp.ones((4, 3))}, "label must hold values from 0 to 1"),
        (supervised.multi_label_loss, {"label": jnp.ones((4, 3)), "mask": jnp.ones(4)}, "mask marks tokens"),
    ],
)
def test_weights_masks_and_soft_labels_are_looked_at(key, make, more, message):
    """Directly, and in the train step."""
    loss, w = make(lambda p, s, x, k: (x @ p, s), lambda_jr=0.1), jnp.ones((6, 3))
    batch = {"image": jnp.ones((4, 6)), "label": jnp.zeros(4, int)} | more
    with pytest.raises(ValueError, match=message):
        loss(w, state_of(w, key), batch, jax.random.split(key, 4))
    with pytest.raises(ValueError, match=message):
        training.make_train_step(loss, training.sgd(0.1))(state_of(w, key), batch)


def test_a_batch_without_its_input(key):
    loss = supervised.regression_loss(lambda p, s, x, k: (x @ p, s), input_name="x")
    with pytest.raises(ValueError, match=r"a dict with 'x' .input_name= says another., got \['image', 'label'\]"):
        loss(jnp.ones((6, 3)), state_of(jnp.ones((6, 3)), key), {"image": 1, "label": 2}, jax.random.split(key, 4))


def test_a_penalty_gives_one_value_for_each_sample(key):
    total = penalties.of(lambda f, x: jnp.sum(f(x)))
    with pytest.raises(ValueError, match=r"function must give one value for each sample, \(4,\), got shape \(\)"):
        total(jnp.tanh, jnp.ones((4, 6)), None, key)


def test_a_loss_is_a_value():
    apply = lambda p, s, x, k: (x @ p, s)
    loss = supervised.classification_loss(apply, lambda_jr=0.1)
    assert dataclasses.replace(loss, penalty_times=0.0) != loss
    assert loss.with_penalty_times(0).penalty_times == 0
    plain = supervised.classification_loss(apply)
    assert plain.with_penalty_times(3) is plain


@TRAIN_MODE
@pytest.mark.parametrize("part_size", [5, 4, 3])
def test_parts_of_a_batch_that_they_do_not_divide(key, part_size):
    """11 samples in parts of nearly one size: loss, gradient, metrics and standard error are those of the whole."""
    w, x = jax.random.normal(key, (6, 3)), jax.random.normal(key, (11, 6))
    batch = {"image": x, "label": jnp.arange(11) % 3, "weight": jnp.linspace(0.5, 2, 11)}
    apply = lambda p, s, x, k: (jnp.tanh(x @ p), {"mean": x.mean(0), "calls": s["calls"] + 1})
    loss = training.classification_loss(apply, lambda_jr=0.3, penalty=penalties.exact())
    state = state_of(w, key)._replace(model_state={"mean": jnp.zeros(6), "calls": jnp.zeros((), jnp.int32)})
    keys = jax.random.split(key, 11)
    found, right = (
        jax.jit(jax.value_and_grad(loss, has_aux=True))(w, state, batch, keys)
        for loss in (accumulation.in_parts(part_size, loss), loss)
    )
    assert jax.tree.structure(found) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_soft_labels_and_hard_ones_in_turn(key):
    """The tests of one kind of batch are not those of another."""
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s))
    step, x = training.make_train_step(loss, training.sgd(0.1), donate=False), np.ones((3, 6), np.float32)
    hard, soft = np.array([0, 1, 2]), np.full((3, 3), 1 / 3, np.float32)
    for label in (soft, hard, soft, hard):
        step(state_of(jnp.ones((6, 3)), key), {"image": x, "label": label})
    for label, words in ((2 * soft, "must be distributions"), (hard + 1, "got labels from 1 to 3")):
        with pytest.raises(ValueError, match=words):
            step(state_of(jnp.ones((6, 3)), key), {"image": x, "label": label})


def test_shares_of_tokens(key):
    """A mask of shares weighs the tokens, whatever they sum to; a sample without any has no loss."""
    z, mask = jax.random.normal(key, (3, 2, 4)), np.array([[0.25, 0.25], [0.0, 0.125], [0.0, 0.0]])
    losses, _ = supervised.cross_entropy(z, {"label": np.zeros((3, 2), int), "mask": mask})
    each = -np.asarray(jax.nn.log_softmax(z))[..., 0]
    np.testing.assert_allclose(losses, [each[0].mean(), each[1, 1], 0], rtol=1e-6)


# penalties


class Normalized(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(6, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.norm(self.dense(x)))


def test_an_nnx_model_in_train_mode(key):
    """It cannot be differentiated as it is: the message says how, and that way gives the cross-sample Jacobian."""
    model, x = Normalized(nnx.Rngs(0)), jax.random.normal(key, (5, 6))
    calls = (
        lambda f: jr.value_and_penalty(f, x, key),
        lambda f: jr.value_and_exact_penalty(f, x),
        lambda f: jr.exact_frobenius_sq(f, x),
        lambda f: jr.projected_frobenius_sq(f, x, key),
        lambda f: jr.rows_are_independent(f, x, key),
        lambda f: relatives.spectral_norm_sq(f, x, key),
        lambda f: attacks.fgsm(f, x, jnp.zeros(5, int), epsilon=0.1, bounds=(-9, 9)),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"f must be a pure function of x.*interop.from_nnx\(model\)"):
            call(lambda x: model(x))
    functional = interop.from_nnx(model)
    train = lambda x: functional.train(functional.params, functional.model_state, x, key)
    (_, state), penalty = jr.value_and_exact_penalty(train, x, has_aux=True)
    whole = jax.jacrev(lambda x: train(x)[0].sum(0))(x)  # [C, B, I]: one basis vector in all rows
    np.testing.assert_allclose(penalty, np.sum(np.square(whole)) / 5, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(functional.model_state)
    assert not jr.rows_are_independent(lambda x: train(x)[0], x, key)
    at_batch = functional.batch_statistics
    assert jr.rows_are_independent(lambda x: at_batch(functional.params, functional.model_state, x, key)[0], x, key)


@pytest.mark.parametrize("penalty", [lambda f, x, y, keys: f(x), lambda f, x, y, keys: (f(x), f(x), f(x))])
def test_a_penalty_gives_three_things(key, penalty):
    with pytest.raises(TypeError, match=r"penalty must give \(f\(x\), mean, norms\)"):
        penalties.on_part(1.0, penalty)(jnp.tanh, jnp.ones((4, 6)), None, key)


def test_warnings_point_at_the_line_of_the_caller(key):
    """However deep in the library they come from."""
    x, w, y = jnp.ones((4, 6)), jnp.ones((6, 3)), jnp.zeros(4, int)
    tokens = lambda x: jnp.round(x).astype(jnp.int32).astype(jnp.float32)

    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "sum", jnp.sum(x))
            return nn.Dense(3)(x)

    net = interop.from_linen(Sowing(), Sowing().init(key, x))
    lagging = penalties.of_model(models.eval_mode(models.MLP((3,))), penalties.exact())
    params, _ = models.initialize(models.MLP((3,)), key, x)
    model = penalties.BoundModel(lambda p, s, x, k: (x @ w, s), params, {"batch_stats": {"a": x}}, key)
    f, few = lambda x: x @ w + jnp.arange(3.0)[None], {"num_queries": 2, "bounds": (0, 2)}
    ensemble = attacks.standard_ensemble(**few)
    calls = (
        lambda: jr.value_and_penalty(tokens, x, key),
        lambda: jax.jit(lambda x: jr.value_and_exact_penalty(tokens, x))(x),
        lambda: penalties.on_part(0.5)(tokens, x, None, key),
        lambda: net.train(net.params, net.model_state, x, key),
        lambda: lagging(model, x, None, key),
        lambda: attacks.auto_attack(f, x, y, key, epsilon=0.1, **few),
        lambda: evaluation.worst_case({"apgd-t": ensemble["apgd-t"], "fgsm": attacks.fgsm}, f, x, y, key, epsilon=0.1),
        lambda: supervised.classification_loss(net.train, lambda_jr=0.1, num_projections=2),
        lambda: evaluation.jacobian_norms(jr.exact_frobenius_sq, f, x),
        lambda: attacks.apgd_targeted(
            lambda x: x @ jnp.ones((6, 4)), x, y, key, epsilon=0.1, num_steps=1, bounds=(0, 2)
        ),
        lambda: cyclopropagation.penalty_and_gradient([(w.T, jnp.ones(3))], x),
        lambda: jr.value_and_frobenius_sq(f, x, key),
    )
    lines, start = inspect.getsourcelines(test_warnings_point_at_the_line_of_the_caller)
    here = [start + i for i, line in enumerate(lines) if line.startswith("        lambda: ")]
    for call, line in zip(calls, here, strict=True):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            call()
        assert {(w.filename, w.lineno) for w in found} == {(__file__, line)}, (line, [str(w.message) for w in found])


def test_integers_on_the_way_are_seen(key):
    x = jax.random.normal(key, (4, 6))
    tokens = lambda x: jnp.tanh(jnp.round(x).astype(jnp.int32).astype(jnp.float32))
    for call in (
        lambda: jr.value_and_penalty(tokens, x, key),
        lambda: jr.value_and_exact_penalty(tokens, x),
        lambda: penalties.on_part(0.5)(tokens, x, None, key),
    ):
        with pytest.warns(UserWarning, match="derivative of exactly zero in x everywhere"):
            call()


@pytest.mark.parametrize("shape", [(4, 2), ()])
def test_relatives_take_any_shape_of_output(key, shape):
    """Against the whole matrix: outputs [B, ...], and pytrees."""
    x = jax.random.normal(key, (3, 6))
    w = jax.random.normal(key, (6, int(np.prod(shape))))
    f = lambda x: jnp.tanh(x @ w).reshape(len(x), *shape)
    both = lambda x: {"a": f(x), "b": 2 * x["c"] if isinstance(x, dict) else 2 * x}
    right = frobenius_sq(f, x)
    np.testing.assert_allclose(jax.jit(lambda x: jr.exact_frobenius_sq(f, x))(x), right, rtol=1e-5, atol=1e-6)
    for g, add in ((f, 0.0), (both, 4 * 6.0)):
        keys = jax.random.split(key, 4000)
        for relative in (
            lambda k, g=g: relatives.first_order_frobenius_sq(g, x, k),
            lambda k, g=g: relatives.noise_consistency(g, x, k, sigma=1e-3),
        ):
            draws = jax.jit(jax.vmap(relative))(keys)
            error = draws.std(0) / np.sqrt(len(keys))
            np.testing.assert_array_less(np.abs(draws.mean(0) - right - add), 5 * error + 0.02)
    jacobians = jax.jit(lambda x: jax.lax.map(jax.jacrev(lambda s: f(s[None])[0].ravel()), x))(x)
    found = jax.jit(lambda x: relatives.spectral_norm_sq(f, x, key, num_iterations=100))(x)
    np.testing.assert_allclose(found, np.linalg.norm(jacobians, 2, axis=(1, 2)) ** 2, rtol=1e-3, atol=1e-6)


def test_relatives_of_pytrees(key):
    params = mlp_params(key, (6, 5, 4))
    x = {"a": jax.random.normal(key, (3, 4)), "b": jax.random.normal(key, (3, 2))}
    f = lambda x: mlp(params, jnp.concatenate([x["a"], x["b"]], axis=1))
    right = frobenius_sq(f, x)
    keys = jax.random.split(key, 4000)
    draws = jax.jit(jax.vmap(lambda k: relatives.noise_consistency(f, x, k, sigma=1e-3)))(keys)
    np.testing.assert_array_less(np.abs(draws.mean(0) - right), 5 * draws.std(0) / np.sqrt(4000) + 0.02)
    y = jnp.asarray([0, 1, 2])
    gradient = jax.grad(lambda x: -jnp.sum(jax.nn.log_softmax(f(x))[jnp.arange(3), y]))(x)
    rows = np.concatenate([gradient["a"], gradient["b"]], axis=1)
    np.testing.assert_allclose(relatives.input_gradient_penalty(f, x, y), (rows**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(relatives.input_gradient_penalty(f, x, y, norm="l1"), np.abs(rows).sum(1), rtol=1e-5)


def test_an_error_of_the_model_gets_advice(key):
    """What f itself raises is left as it is, with a note on what f is called with."""
    x, one_sample = jnp.ones((5, 8)), lambda x: jnp.ones((3, 8)) @ x
    foreign, with_state = (lambda x: np.tanh(x)), (lambda x: (x, 0.0))
    for call in (lambda f: jr.value_and_penalty(f, x, key), lambda f: jr.exact_frobenius_sq(f, x)):
        for f, note in ((one_sample, "jax.vmap(f)"), (foreign, "jax.pure_callback")):
            with pytest.raises(TypeError) as caught:
                call(f)
            assert any(note in line for line in caught.value.__notes__)
        with pytest.raises((TypeError, ValueError), match=r"; of an f that gives \(output, state\), .* has_aux=True"):
            call(with_state)


@pytest.mark.parametrize("x", [[1.0, 2.0], {"a": "image"}, "image"])
def test_no_array(x, key):
    for call in (lambda: jr.exact_frobenius_sq(jnp.tanh, x), lambda: jr.value_and_penalty(jnp.tanh, x, key)):
        with pytest.raises(TypeError, match="x must be an array or a pytree of arrays, got"):
            call()


# cost


def test_eager_calls_compile_once(key):
    """Calls with other inputs and other numbers, of penalties made anew: nothing compiles after the first."""
    w = jax.random.normal(key, (6, 4))
    f = lambda x: jnp.tanh(x @ w)
    compiled = []
    listener = lambda name, seconds, **facts: compiled.append(name) if "backend_compile" in name else None
    y, plane = jnp.arange(5) % 4, decision_cells.random_plane(jnp.zeros(6), key)
    at = lambda x: plane._replace(origin=x[0])
    other = lambda x: 1 + float(x[0, 0]) ** 2
    calls = (
        lambda x: jr.value_and_exact_penalty(f, x),
        lambda x: jr.value_and_penalty(f, x, key, num_projections=3),
        lambda x: jr.exact_frobenius_sq(f, x, chunk_size=2),
        lambda x: certify.noisy_counts(f, x, key, sigma=other(x), num_samples=4, chunk_size=2),
        lambda x: certify.interval_radius(f, x, y, num_bisections=2, largest=other(x), bounds=(-9, 9)),
        lambda x: decision_cells.decision_cells(f, at(x), extent=other(x), resolution=3),
        lambda x: decision_cells.boundary_distance(f, at(x), extent=other(x), num_rays=2, num_radii=2),
        lambda x: penalties.projected(2)(f, x, None, key),
        lambda x: penalties.exact(chunk_size=2)(f, x, None, None),
        lambda x: penalties.on_part(0.5, penalties.exact())(f, x, None, key),
        lambda x: relatives.spectral_norm_sq(f, x, key),
        lambda x: relatives.first_order_frobenius_sq(f, x, key),
        lambda x: relatives.noise_consistency(f, x, key, sigma=other(x)),
        lambda x: relatives.input_gradient_penalty(f, x, y),
        lambda x: relatives.target_jacobian_sq(f, x, jnp.ones((4, 6)), key, num_projections=2),
        lambda x: relatives.layerwise_frobenius_sq([f, jnp.tanh], x, key, num_projections=2),
    )
    for call in calls:
        call(jax.random.normal(key, (5, 6)))
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for seed in range(20):
            x = jax.random.normal(jax.random.key(seed), (5, 6))
            for call in calls:
                call(x)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not compiled
    np.testing.assert_allclose(calls[0](x)[1], frobenius_sq(f, x).mean(), rtol=1e-5)


def test_a_changed_closure_is_not_stale(key):
    """Eager programs are kept by what they do: other parameters, other values."""
    x = jax.random.normal(key, (5, 6))
    model = {"w": jax.random.normal(key, (6, 4))}
    f = lambda x: x @ model["w"]
    first = jr.value_and_exact_penalty(f, x)[1]
    model["w"] = 2 * model["w"]
    np.testing.assert_allclose(jr.value_and_exact_penalty(f, x)[1], 4 * first, rtol=1e-5)


def test_a_lone_pair_of_rows_that_depend(key):
    """Of 100 rows one sees another: two rows have the same weight in one draw of 16, hardly ever in three."""
    f = jax.jit(lambda x, key: jr.rows_are_independent(lambda x: x.at[0].add(3 * x[1]), x, key))
    x = jax.random.normal(key, (100, 5))
    assert not any(bool(f(x, jax.random.key(seed))) for seed in range(100))
    assert bool(jr.rows_are_independent(lambda x: 3 * x, x, key))
