"""BatchNorm and the penalty: what a user is after is held-out accuracy and norm after training, in every library."""

import contextlib
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jacreg_jax import (
    datasets,
    evaluation,
    exact_frobenius_sq,
    interop,
    penalties,
    rows_are_independent,
    training,
)
from jacreg_jax.models import ResNet18
from jacreg_jax.relatives import noise_consistency
from tests.conftest import TRAIN_MODE, optimized

pytestmark = TRAIN_MODE  # what it does to a network is measured here


@pytest.fixture(scope="module")
def digits():
    """(train, test) of {"image": [N, 8, 8, 1], "label": [N]}."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    parts = train_test_split(x, y.astype(np.int32), test_size=0.3, random_state=0, stratify=y)
    return [{"image": jnp.asarray(parts[i]), "label": jnp.asarray(parts[i + 2])} for i in (0, 1)]


class LinenNet(linen.Module):
    """Convolution, BatchNorm, tanh, pooling, dense."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Conv(16, (3, 3))(x))
        x = linen.max_pool(linen.tanh(x), (2, 2), (2, 2))
        return linen.Dense(10)(x.reshape(len(x), -1))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dense = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.max_pool(nnx.tanh(self.norm(self.conv(x))), (2, 2), (2, 2))
        return self.dense(x.reshape(len(x), -1))


def linen_net():
    module = LinenNet()
    return interop.from_linen(module, module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))


def nnx_net():
    return interop.from_nnx(NnxNet(nnx.Rngs(0)))


def equinox_net(mode):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        dense: eqx.nn.Linear

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 16, 3, padding=1, key=a)
            self.norm = eqx.nn.BatchNorm(16, axis_name="batch", mode=mode, momentum=0.9)
            self.dense = eqx.nn.Linear(256, 10, key=b)

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x.transpose(2, 0, 1)), state)
            x = jnp.tanh(x).reshape(16, 4, 2, 4, 2).max((2, 4))
            return self.dense(x.ravel()), state

    return interop.from_equinox(*eqx.nn.make_with_state(Net)(jax.random.key(0)))


def haiku_net():
    hk = pytest.importorskip("haiku")

    def net(x, is_training):
        x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(16, 3)(x), is_training)
        x = hk.max_pool(jnp.tanh(x), (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(10)(x.reshape(len(x), -1))

    transformed = hk.transform_with_state(net)
    params, state = transformed.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), is_training=True)
    return interop.from_haiku(transformed, params, state, is_training=True)


NETS = {
    "linen": linen_net,
    "nnx": nnx_net,
    "equinox, batch": lambda: equinox_net("batch"),
    "equinox, ema": lambda: equinox_net("ema"),
    "haiku": haiku_net,
}


def trained(net, way, data, *, lambda_jr=0.01, num_steps=1000, learning_rate=0.05):
    """(accuracy, root of the mean ||J||_F^2) on held-out data in eval mode."""
    train, test = data
    penalty = {
        "batch statistics": lambda: penalties.of_model(net.batch_statistics),
        "running statistics": lambda: penalties.of_model(net.eval),
    }.get(way, penalties.projected)()
    loss = training.classification_loss(net.train, penalty=penalty, lambda_jr=0.0 if way == "no penalty" else lambda_jr)
    optimizer = training.sgd(learning_rate)
    state = training.init_state(net.params, optimizer, jax.random.key(1), net.model_state)
    rows = np.random.default_rng(0).integers(0, len(train["label"]), (num_steps, 64)).astype(np.int32)
    with optimized():
        state, _ = training.make_train_steps(loss, optimizer)(state, train, rows)
    f = net.predictor(state.params, state.model_state)
    norms = evaluation.map_batches(exact_frobenius_sq, f, test["image"], batch_size=270)
    return evaluation.accuracy(f, test["image"], test["label"]), float(np.sqrt(norms.mean()))


def shown(name, **ways):
    print(f"\n{name}: " + "; ".join(f"{way} {100 * a:.1f} %, ||J|| {norm:.2f}" for way, (a, norm) in ways.items()))


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [("linen", 400), *(pytest.param(name, 1000, marks=pytest.mark.slow) for name in NETS if name != "equinox, ema")],
)
def test_penalised_at_batch_statistics(name, num_steps, digits):
    """Accuracy within 4 points of no penalty, a held-out norm of at most a third; long before the end, too."""
    ways = ("no penalty", "batch statistics")
    plain, (accuracy, norm) = (trained(NETS[name](), way, digits, num_steps=num_steps) for way in ways)
    shown(name, plain=plain, batch=(accuracy, norm))
    assert accuracy > plain[0] - 0.04
    assert norm < plain[1] / 3


@pytest.mark.slow
def test_equinox_averages_in_training_too(digits):
    """equinox' mode "ema" normalizes with the running average in training: the penalty sees what training sees."""
    net = NETS["equinox, ema"]
    plain, (accuracy, norm) = (trained(net(), way, digits) for way in ("no penalty", "batch statistics"))
    shown("equinox, ema", plain=plain, batch=(accuracy, norm))
    assert accuracy > plain[0] - 0.04
    assert norm < plain[1] / 3


@pytest.mark.slow
def test_the_four_ways(digits):
    """Running statistics destroy the network, and warn; the batch's own do no worse than train mode."""
    found = {}
    for way in ("no penalty", "train mode", "running statistics", "batch statistics"):
        with contextlib.nullcontext() if way != "running statistics" else pytest.warns(UserWarning, match="lag behind"):
            found[way] = trained(linen_net(), way, digits)
    shown("linen", **found)
    assert found["running statistics"][0] < found["batch statistics"][0] - 0.2
    assert found["batch statistics"][0] > found["train mode"][0] - 0.02
    assert found["batch statistics"][1] < 1.05 * found["train mode"][1]


@pytest.mark.slow
def test_res_net_on_cifar(tfds_dir):
    """A narrow ResNet-18, 400 steps on 4,000 images of CIFAR-10: no worse than the penalty in train mode."""
    parts = [datasets.load("cifar10", split, data_dir=tfds_dir) for split in ("train[:4000]", "test[:1000]")]
    data = [
        {"image": jnp.asarray(datasets.CIFAR10.normalize(datasets.from_uint8(x))), "label": jnp.asarray(y)}
        for x, y in parts
    ]
    module = ResNet18(width=8)
    net = interop.from_linen(module, module.init(jax.random.key(0), data[0]["image"][:2]))
    ways = ("no penalty", "train mode", "batch statistics")
    found = {way: trained(net, way, data, num_steps=400, learning_rate=0.02) for way in ways}
    shown("ResNet-18", **found)
    assert found["batch statistics"][0] > found["train mode"][0] - 0.02
    assert found["batch statistics"][1] < 1.05 * found["train mode"][1]


@pytest.mark.parametrize("name", NETS)
def test_statistics_are_the_batches_own(name, key):
    """The same logits as train mode, rows independent, the same gradient in the parameters, the state as it was."""
    net, x = NETS[name](), jax.random.normal(key, (16, 8, 8, 1))
    at = lambda apply: jax.jit(lambda x: apply(net.params, net.model_state, x, key)[0])
    # equinox' "ema" has seen no batch yet: its first average is the batch's own
    np.testing.assert_allclose(at(net.batch_statistics)(x), at(net.train)(x), rtol=1e-4, atol=1e-5)
    assert rows_are_independent(at(net.batch_statistics), x, key)
    assert not rows_are_independent(at(net.train), x, key)
    gradients = [
        jax.jit(jax.grad(lambda p, apply=apply: jnp.sum(jnp.sin(apply(p, net.model_state, x, key)[0]))))(net.params)
        for apply in (net.batch_statistics, net.train)
    ]
    chex.assert_trees_all_close(*gradients, rtol=1e-3, atol=1e-4)
    state = jax.jit(net.batch_statistics)(net.params, net.model_state, x, key)[1]
    chex.assert_trees_all_equal(state, net.model_state)


@pytest.mark.parametrize("name", NETS)
def test_a_penalty_in_train_mode_is_told(name, digits):
    """A warning where `of_model` is forgotten, whatever the penalty; none with the batch's statistics or no penalty."""
    net, batch = NETS[name](), jax.tree.map(lambda leaf: leaf[:8], digits[0])
    optimizer, told = training.sgd(0.1), pytest.warns(UserWarning, match="through statistics of the batch")
    forgotten = [
        penalties.projected(),
        penalties.exact(),
        penalties.on_part(0.5),
        penalties.of(noise_consistency, sigma=0.1),
    ]
    for penalty in forgotten if name == "linen" else forgotten[:1]:
        loss = training.classification_loss(net.train, penalty=penalty, lambda_jr=0.01)
        with told:
            jax.eval_shape(loss, net.params, state_of(net, optimizer), batch, jax.random.split(jax.random.key(0), 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for loss in (
            training.classification_loss(net.train, penalty=penalties.of_model(net.batch_statistics), lambda_jr=0.01),
            training.classification_loss(net.train),
        ):
            jax.eval_shape(loss, net.params, state_of(net, optimizer), batch, jax.random.split(jax.random.key(0), 8))


def state_of(net, optimizer):
    return training.init_state(net.params, optimizer, jax.random.key(1), net.model_state)


def test_a_state_that_does_not_follow_the_batch_is_not_told():
    """A counter, and a power iteration on the weights: the rows stay independent."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool = False):
            return linen.SpectralNorm(linen.Dense(10))(x.reshape(len(x), -1), update_stats=train)

    net = Net()
    functional = interop.from_linen(net, net.init(jax.random.key(0), jnp.ones((2, 9)), train=True))
    loss = training.classification_loss(functional.train, lambda_jr=0.01)
    batch, keys = {"image": jnp.ones((3, 9)), "label": jnp.zeros(3, int)}, jax.random.split(jax.random.key(0), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(loss, functional.params, state_of(functional, training.sgd(0.1)), batch, keys)
