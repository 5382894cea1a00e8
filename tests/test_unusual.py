"""What few models do and few callers ask: right answers, or an error that names the argument."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.core import freeze

from jacreg_jax import (
    adversarial_training,
    attacks,
    certify,
    cyclopropagation,
    evaluation,
    exact_frobenius_sq,
    interop,
    intervals,
    objectives,
    penalties,
    relatives,
    training,
    value_and_exact_penalty,
    value_and_penalty,
)
from jacreg_jax.keys import sample_keys


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))


def test_frozen_variables_are_updated_as_others_are(key):
    """A FrozenDict as flax once gave it: the same statistics after three steps, in the container that came."""
    x, y = 5 + jax.random.normal(key, (16, 8)), jnp.arange(16) % 3
    variables, found = Normalized().init(key, x), []
    for given in (variables, freeze(variables)):
        net = interop.from_linen(Normalized(), given)
        step = training.make_train_step(training.classification_loss(net.train, lambda_jr=0.0), optax.sgd(0.01))
        state = training.init_state(net.params, optax.sgd(0.01), key, net.model_state)
        structure = jax.tree.structure(state.model_state)
        for _ in range(3):
            state, _ = step(state, {"image": x, "label": y})
        assert jax.tree.structure(state.model_state) == structure
        found.append(jax.tree.leaves(state.model_state))
    assert float(jnp.abs(found[0][0]).max()) > 0.01
    jax.tree.map(np.testing.assert_array_equal, *found)


TREES = {
    "features of every leaf": (
        {"a": jnp.full((1, 2), 0.5), "b": jnp.full((1, 2), 0.5)},
        (jnp.array([0.0, -9.0]), jnp.array([1.0, 9.0])),
    ),
    "one leaf": ({"a": jnp.full((1, 3), 0.5)}, (jnp.zeros(3), jnp.ones(3))),
    "a tuple": ((jnp.full((1, 2), 0.5), jnp.full((1, 3), 0.5)), ((jnp.zeros(2), jnp.zeros(3)), (1.0, jnp.ones(3)))),
}


@pytest.mark.parametrize("kind", TREES)
def test_bounds_of_a_pytree_are_what_they_are_under_jit(kind):
    x, bounds = TREES[kind]
    f = lambda x: jnp.stack([leaf.sum(1) for leaf in jax.tree.leaves(x)] * 2, 1)[:, :2] * jnp.array([[1.0, -1.0]])
    y, sizes = jnp.zeros(1, int), {"epsilon": 3.0, "step_size": 3.0, "num_steps": 1}
    attack = lambda x: attacks.pgd(f, x, y, **sizes, bounds=bounds).x_adv
    jax.tree.map(np.testing.assert_array_equal, attack(x), jax.jit(attack)(x))


def low_bits(n):
    return n & 3


WHOLE = {  # functions of integers, and how far x may reach
    "and": (low_bits, 16),
    "or": (lambda n: n | 4, 16),
    "narrower": (lambda n: n.astype(jnp.uint8).astype(jnp.int32), 400),
    "product": (lambda n: (n.astype(jnp.int8) * jnp.int8(50)).astype(jnp.int32), 8),
    "sum": (lambda n: (n.astype(jnp.uint8) + jnp.uint8(200)).astype(jnp.int32), 100),
    "negative": (lambda n: (-n.astype(jnp.uint8)).astype(jnp.int32), 100),
    "rising": (lambda n: 2 * n + 1, 16),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_bounds_hold_for_integers_that_wrap(kind):
    """Every value within the box lies within its bounds, or the operation has no rule."""
    of, reach = WHOLE[kind]
    f = lambda x: of((reach * x).astype(jnp.int32)).astype(jnp.float32)
    low, high = jnp.array([0.1]), jnp.array([0.9])
    if kind in ("and", "or"):
        with pytest.raises(TypeError, match=f"no rule for '{kind}'"):
            intervals.interval_bounds(f, low, high)
        return
    box = intervals.interval_bounds(f, low, high)
    values = jax.vmap(f)(jnp.linspace(low, high, 1001))
    assert box.low <= values.min()
    assert values.max() <= box.high
    if kind == "rising":
        assert (box.low, box.high) == (values.min(), values.max()), "as tight as before"


def test_a_certificate_of_integers_that_wrap_proves_nothing_false():
    f = lambda x: (lambda n: jnp.stack([n, 128 + 0 * n], 1))((400 * x[:, 0]).astype(jnp.uint8).astype(jnp.float32))
    x = jnp.array([[0.6]])
    radius = certify.interval_radius(f, x, jnp.argmax(f(x), 1))
    points = jnp.clip(x + radius[:, None] * jnp.linspace(-1, 1, 4001)[:, None], 0, 1)
    assert bool((jnp.argmax(f(points), 1) == jnp.argmax(f(x), 1)).all())


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_soft_labels_of_one_logit_are_those_of_two_classes(shape):
    z = jnp.array([0.0, 2.0, -1.0])
    found = adversarial_training.soft_labels(lambda x: x.reshape(shape), z, temperature=1.0)
    np.testing.assert_allclose(found, jnp.stack([jax.nn.sigmoid(-z), jax.nn.sigmoid(z)], 1), rtol=1e-6)


def test_soft_labels_may_hold_anything_where_they_are_masked(key):
    z, mask = jax.random.normal(key, (2, 2, 3)), jnp.array([[1, 1], [1, 0]])
    hard = jnp.array([[0, 1], [2, -1]])
    right, _ = objectives.cross_entropy(z, {"label": hard, "mask": mask})
    for filled in (jax.nn.one_hot(hard, 3), jax.nn.one_hot(hard, 3).at[1, 1].set(jnp.nan)):
        np.testing.assert_allclose(objectives.cross_entropy(z, {"label": filled, "mask": mask})[0], right, rtol=1e-6)
    with pytest.raises(ValueError, match="label must be distributions that sum to 1"):
        objectives.cross_entropy(z, {"label": jax.nn.one_hot(hard, 3).at[0, 0].set(0.0), "mask": mask})


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_a_row_depends_on_its_own_key_for_every_kind_of_key(impl):
    """What README promises for keys: the same alone, in a batch, in batches of another size."""
    x, key = jnp.ones((4, 6)), jax.random.key(3, impl=impl)
    draw = lambda keys, x: jax.vmap(lambda k: jax.random.normal(k, (6,)))(sample_keys(keys, len(x)))
    whole, keys = draw(key, x), sample_keys(key, 4)
    for row in range(4):
        np.testing.assert_array_equal(draw(keys[row : row + 1], x[:1])[0], whole[row])
    own = jax.random.split(key, 4)
    np.testing.assert_array_equal(draw(own[2:], x[:2]), draw(own, x)[2:])
    assert [len({tuple(row.tolist()) for row in rows}) for rows in (whole, draw(own, x))] == [4, 4], "all apart"
    noise = functools.partial(attacks.white_noise, sigma=0.1)
    f, y = lambda x: x[:, :2], jnp.zeros(4, int)
    runs = [evaluation.run_attack(noise, f, x, y, key, batch_size=size).x_adv for size in (4, 2)]
    np.testing.assert_array_equal(*runs)


def test_a_numpy_x_is_penalised_in_part_under_jit(key):
    x = np.ones((4, 3), np.float32)
    on_part = jax.jit(lambda p, key: penalties.on_part(0.5)(lambda x: x @ p, x, None, key)[1])
    np.testing.assert_allclose(on_part(jnp.eye(3), key), 3, rtol=1e-5)
    by_name = jax.jit(lambda p, key: value_and_penalty(lambda x: x @ p, x, key, sample_fraction=0.5)[1])
    np.testing.assert_allclose(by_name(jnp.eye(3), key), 3, rtol=1e-5)


def test_a_rule_for_reverse_mode_alone_is_taken_in_reverse():
    doubled = jax.custom_vjp(lambda x: jnp.concatenate([x, 2 * x], 1))
    doubled.defvjp(lambda x: (doubled(x), None), lambda _, cotangent: (cotangent[:, :3] + 2 * cotangent[:, 3:],))
    x = jnp.ones((4, 3))
    assert exact_frobenius_sq(doubled, x).tolist() == [15] * 4
    assert exact_frobenius_sq(jax.jit(doubled), x).tolist() == [15] * 4
    np.testing.assert_allclose(evaluation.jacobian_norms(doubled, np.ones((4, 3), np.float32)) ** 2, 15, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")
def test_an_nnx_module_that_sows_trains(key):
    nnx = pytest.importorskip("flax.nnx")

    class Sown(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            h = self.layer(x)
            self.sow(nnx.Intermediate, "h", h)
            return h

    module = Sown(nnx.Rngs(0))
    module(jnp.ones((1, 3)))
    for times in range(2):  # the second has sown before
        net = interop.from_nnx(module)
        step = training.make_train_step(training.classification_loss(net.train), optax.sgd(0.1))
        state = training.init_state(net.params, optax.sgd(0.1), key, net.model_state)
        with pytest.warns(UserWarning, match="the module sows"):
            state, metrics = step(state, {"image": jnp.ones((4, 3)), "label": jnp.array([0, 1, 0, 1])})
        assert np.isfinite(metrics["loss"]), times
        assert hasattr(module, "h"), "the user's module is as it was"


def test_equinox_modules_of_a_dictionary_take_keys(key):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layer: eqx.nn.Linear
        dropout: eqx.nn.Dropout

        def __call__(self, x, key=None):
            return self.dropout(self.layer(x["a"]), key=key)

    net = interop.from_equinox(Net(eqx.nn.Linear(3, 2, key=key), eqx.nn.Dropout(0.2)))
    assert net.train(net.params, net.model_state, {"a": jnp.ones((4, 3))}, key)[0].shape == (4, 2)


def test_a_mask_and_a_projection_that_share_a_key_draw_apart(key):
    """Dropout on the output of an equinox module: the estimate of ||J||^2 stays unbiased."""
    eqx = pytest.importorskip("equinox")
    net = interop.from_equinox(eqx.nn.Dropout(0.8))  # a Sequential would split the key again
    x = jnp.ones((2000, 10))

    def one(key):
        f = lambda x: net.train(net.params, net.model_state, x, key)[0]
        return value_and_penalty(f, x, key)[1], value_and_exact_penalty(f, x)[1]

    estimates, exact = map(np.asarray, jax.vmap(one)(jax.random.split(key, 10)))
    error = estimates.std(ddof=1) / np.sqrt(10)
    assert abs(estimates.mean() - exact.mean()) < 5 * error
    assert abs(estimates.mean() / exact.mean() - 1) < 0.1


def test_a_target_of_any_output_shape(key):
    x = jax.random.normal(key, (4, 3))
    for f, shape in ((lambda x: x[:, 0], (3,)), (lambda x: 2 * x[:, :, None], (3, 1, 3))):
        target = jax.random.normal(key, shape)
        matrix = jax.vmap(jax.jacrev(lambda row, f=f: f(row[None])[0]))(x)
        right = ((matrix - target[None]) ** 2).reshape(4, -1).sum(1)
        np.testing.assert_allclose(relatives.target_jacobian_sq(f, x, target), right, rtol=1e-5)
    with pytest.raises(TypeError, match=r"f\(x\) must be one array \[B, ...\], got dict"):
        relatives.target_jacobian_sq(lambda x: {"a": x}, x, jnp.eye(3))


LOSSES = ("classification_loss", "regression_loss", "multi_label_loss")


@pytest.mark.parametrize("name", LOSSES)
def test_outputs_that_are_no_array_are_named(name, key):
    loss = getattr(training, name)(lambda params, state, x, key: ({"z": x @ params}, state))
    step, label = training.make_train_step(loss, optax.sgd(0.1)), jnp.zeros((4,) if "class" in name else (4, 2), int)
    state = training.init_state(jnp.ones((3, 2)), optax.sgd(0.1), key)
    with pytest.raises(TypeError, match=r"f\(x\) must be one array \[B, ...\], got dict"):
        step(state, {"image": jnp.ones((4, 3)), "label": label})


def test_parameters_that_cannot_be_trained_are_named(key):
    with pytest.raises(TypeError, match=r"params must hold floating point arrays, got int32 at \['perm'\]"):
        training.init_state({"w": jnp.ones(3), "perm": jnp.arange(3)}, optax.sgd(0.1), key)


def test_one_class_for_all_may_be_an_array(key):
    attack = functools.partial(attacks.fgsm, epsilon=0.1)
    for target in (2, np.int64(2), jnp.int32(2)):
        found = evaluation.run_attack(attack, lambda x: x, jnp.ones((4, 3)) / 2, jnp.zeros(4, int), key, target=target)
        assert found.success.all()


def test_an_activation_of_scalars_that_branches(key):
    leaky = lambda x: jax.lax.cond(x > 0, lambda x: x, lambda x: 0.1 * x, x)
    layers = [(jax.random.normal(k, (3, 3)), jnp.zeros(3)) for k in jax.random.split(key)]
    x = jax.random.normal(key, (4, 3))
    activation = cyclopropagation.activation_from(leaky)
    value, _ = cyclopropagation.penalty_and_grad(layers, x, activation=activation)
    model = lambda x: cyclopropagation.perceptron(layers, x, activation)
    np.testing.assert_allclose(value, exact_frobenius_sq(model, x).mean(), rtol=1e-5)


def test_intervals_of_several_outputs_are_refused():
    with pytest.raises(TypeError, match="f must give one array, got dict"):
        intervals.interval_bounds(lambda x: {"a": x}, jnp.zeros(2), jnp.ones(2))


@pytest.mark.parametrize("shape", [(4, 1), (4, 5, 1)])
def test_input_gradients_of_one_class_are_refused(shape):
    f = lambda x: jnp.broadcast_to(x[:, :1].reshape(4, *(1,) * (len(shape) - 1)), shape)
    with pytest.raises(ValueError, match="of at least 2 classes"):
        relatives.input_gradient_penalty(f, jnp.ones((4, 3)), jnp.zeros(shape[:-1], int))
