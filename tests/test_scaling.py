"""Sharded steps do the work of their share, sum once, and give the numbers of one device."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

from experiments.benchmarks import sharded
from jacreg_jax import adversarial_training, interop, penalties, sharding, training
from jacreg_jax.models import batch_statistics_mode, held_statistics_mode, initialize, train_mode
from jacreg_jax.precision import computed_in
from tests.conftest import TRAIN_MODE

BACKENDS = ("jit", "shard_map", "pmap")


class Net(nn.Module):
    """Looks at the whole batch in two ways: BatchNorm, and the masks of dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(12)(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        return nn.Dense(4)(x)


class Plain(nn.Module):
    """BatchNorm alone."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(12)(x))
        return nn.Dense(4)(jnp.tanh(x))


MODULE, PLAIN = Net(), Plain()
NORM = penalties.of_model(batch_statistics_mode(MODULE))
LOSSES = {
    "n = 1": lambda: training.classification_loss(train_mode(MODULE), penalty=NORM, lambda_jr=0.1),
    "as trained": lambda: training.classification_loss(train_mode(MODULE), lambda_jr=0.1),
    "exact": lambda: training.classification_loss(
        train_mode(MODULE), penalty=penalties.of_model(batch_statistics_mode(MODULE), penalties.exact()), lambda_jr=0.1
    ),
    "a quarter": lambda: training.classification_loss(
        train_mode(MODULE), penalty=penalties.on_part(0.25, NORM), lambda_jr=0.1
    ),
    "lazy": lambda: training.lazily(2, LOSSES["n = 1"]()),
    "parts": lambda: training.in_parts(4, LOSSES["n = 1"]()),
    "adversarial": lambda: training.classification_loss(
        train_mode(MODULE), penalty=NORM, lambda_jr=0.1, perturb=adversarial_training.random_fgsm(0.1)
    ),
}


@pytest.fixture(scope="module")
def batch():
    image = jax.random.uniform(jax.random.key(0), (32, 6))
    return {"image": np.asarray(image), "label": np.arange(32) % 4}


def trained(loss, start, batch, devices, backend, steps=3, impl=None):
    """(params, model_state, metrics) after a few steps; devices None: no mesh."""
    mesh = devices and sharding.data_mesh(jax.devices()[:devices])
    optimizer = training.sgd(0.1)
    state = training.init_state(start[0], optimizer, jax.random.key(7, impl=impl), start[1])
    step = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend)
    if mesh:
        state, batch = sharding.replicate(state, mesh), sharding.shard_batch(batch, mesh)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return jax.device_get((state.params, state.model_state, metrics))


@TRAIN_MODE
@pytest.mark.parametrize("name", LOSSES)
def test_numbers_of_one_device(batch, name):
    """BatchNorm, dropout and every form of penalty: parameters, statistics and metrics."""
    start = initialize(MODULE, jax.random.key(1), batch["image"])
    alone = trained(LOSSES[name](), start, batch, None, "jit")
    for devices, backend in ((8, "jit"), (2, "pmap")) if name == "n = 1" else ((4, "jit"),):
        found = trained(LOSSES[name](), start, batch, devices, backend)
        chex.assert_trees_all_close(found, alone, rtol=2e-5, atol=2e-6)


def test_masks_of_threefry_that_does_not_count(batch):
    """Without jax_threefry_partitionable too, and after steps that had it."""
    start = initialize(MODULE, jax.random.key(1), batch["image"])
    loss = training.classification_loss(train_mode(MODULE))
    trained(loss, start, batch, 4, "jit")
    with jax.threefry_partitionable(False):
        alone, four = (trained(loss, start, batch, devices, "jit") for devices in (None, 4))
    chex.assert_trees_all_close(four, alone, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_masks_of_other_generators(batch, impl):
    start = initialize(MODULE, jax.random.key(1), batch["image"])
    loss = training.classification_loss(train_mode(MODULE))
    alone, four = (trained(loss, start, batch, devices, "jit", impl=impl) for devices in (None, 4))
    chex.assert_trees_all_close(four, alone, rtol=2e-5, atol=2e-6)


def of_nnx():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first, self.norm = nnx.Linear(6, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.drop, self.last = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))

    return interop.from_nnx(Model())


def of_equinox(mode="batch"):
    equinox = pytest.importorskip("equinox")

    class Model(equinox.Module):
        layers: list

        def __init__(self):
            keys = jax.random.split(jax.random.key(0))
            norm = equinox.nn.BatchNorm(8, axis_name="batch", mode=mode)
            first, last = equinox.nn.Linear(6, 8, key=keys[0]), equinox.nn.Linear(8, 4, key=keys[1])
            self.layers = [first, norm, equinox.nn.Dropout(0.3), last]

        def __call__(self, x, state, key=None):
            first, norm, drop, last = self.layers
            x, state = norm(first(x), state)
            return last(drop(jnp.tanh(x), key=key)), state

    return interop.from_equinox(*equinox.nn.make_with_state(Model)())


def of_haiku():
    haiku = pytest.importorskip("haiku")

    def model(x, is_training):
        x = haiku.BatchNorm(True, True, 0.9)(haiku.Linear(8)(x), is_training)
        x = haiku.dropout(haiku.next_rng_key(), 0.3, jnp.tanh(x)) if is_training else jnp.tanh(x)
        return haiku.Linear(4)(x)

    transformed = haiku.transform_with_state(model)
    start = transformed.init(jax.random.key(0), jnp.ones((2, 6)), is_training=True)
    return interop.from_haiku(transformed, *start, is_training=True)


@pytest.mark.parametrize(
    ("make", "wrap"),
    [(make, lambda loss: loss) for make in (of_nnx, of_equinox, partial(of_equinox, "ema"), of_haiku)]
    + [(of_equinox, partial(training.in_parts, 4))]
    + [pytest.param(of_haiku, partial(training.in_parts, 4), marks=pytest.mark.slow)],
)
def test_models_of_other_libraries(batch, make, wrap):
    """In parts, too, where a part normalizes by its own rows: equinox was an AssertionError there."""
    functional = make()
    penalty = penalties.of_model(functional.batch_statistics)
    loss = wrap(training.classification_loss(functional.train, penalty=penalty, lambda_jr=0.1))
    start = functional.params, functional.model_state
    alone, four = (trained(loss, start, batch, devices, "jit") for devices in (None, 4))
    chex.assert_trees_all_close(four, alone, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", sharded.VARIANTS)
def test_work_and_collectives(variant, backend):
    """The floating point operations of one device on its share, and one all-reduce of gradients and metrics."""
    if backend == "shard_map" and variant not in ("plain", "n = 1"):
        pytest.skip("the program of jit")
    (row,) = sharded.rows_of("MLP", (backend,), (variant,))
    assert row["flops"] <= 1.05 * row["flops_alone"]
    assert {kind: len(each) for kind, each in row["collectives"].items()} == {"all-reduce": 1}


@pytest.mark.parametrize(
    ("network", "variant"),
    [("LeNet'", "n = 1"), ("LeNet'", "a quarter")]
    + [pytest.param(n, v, marks=pytest.mark.slow) for n in ("LeNet'", "DDNet", "ResNet-18") for v in sharded.VARIANTS],
)
def test_work_and_collectives_of_the_paper_networks(network, variant):
    (row,) = sharded.rows_of(network, ("jit",), (variant,))
    assert row["flops"] <= 1.05 * row["flops_alone"]
    kinds = {kind: len(each) for kind, each in row["collectives"].items()}
    assert kinds.keys() == {"all-reduce"}  # no activation is gathered
    if network != "ResNet-18":
        assert kinds["all-reduce"] == 1


def test_part_is_drawn_from_every_group():
    """Every row is as likely as another, and as many come from each group."""
    from jacreg_jax.penalty import _random_part

    keys = jax.random.split(jax.random.key(0), 300 * 12).reshape(300, 12)
    part, others = jax.vmap(lambda keys: _random_part(keys, 8))(keys)  # groups of 3, two of each
    assert all(sorted([*p, *o]) == list(range(12)) for p, o in zip(part.tolist(), others.tolist(), strict=True))
    assert (np.sort(np.asarray(part) // 3, axis=1) == np.repeat(np.arange(4), 2)).all()
    share = np.bincount(np.asarray(part).ravel(), minlength=12) / 300
    np.testing.assert_allclose(share, 2 / 3, atol=4 * np.sqrt(2 / 9 / 300))


@pytest.mark.parametrize("mode", [batch_statistics_mode, held_statistics_mode])
def test_mixed_precision_keeps_what_a_mode_is(batch, mode):
    """In float32 "cast" changes nothing: the penalty is of the form that the mode asks for; in bfloat16 it is near."""
    start = initialize(PLAIN, jax.random.key(1), batch["image"])
    losses = {}
    for dtype in (None, jnp.float32, jnp.bfloat16):
        cast = (lambda apply: apply) if dtype is None else lambda apply, dtype=dtype: computed_in(dtype, apply)
        penalty = penalties.of_model(cast(mode(PLAIN)))
        loss = training.classification_loss(cast(train_mode(PLAIN)), penalty=penalty, lambda_jr=0.1)
        losses[dtype] = trained(loss, start, batch, None, "jit", steps=1)[2]["penalty"]
    np.testing.assert_allclose(losses[jnp.float32], losses[None], rtol=1e-6)
    np.testing.assert_allclose(losses[jnp.bfloat16], losses[None], rtol=0.05)


@pytest.mark.parametrize("mode", [batch_statistics_mode, held_statistics_mode])
def test_one_precision_for_the_loss_and_another_for_the_penalty(batch, mode):
    """A warning: the products of the penalty would stay in float32, and with held statistics those of the loss too."""
    half = partial(computed_in, jnp.bfloat16)
    start = initialize(PLAIN, jax.random.key(1), batch["image"])
    for apply, penalised in ((half(train_mode(PLAIN)), mode(PLAIN)), (train_mode(PLAIN), half(mode(PLAIN)))):
        penalty = penalties.of_model(penalised)
        loss = training.classification_loss(apply, penalty=penalty, lambda_jr=0.1)
        with pytest.warns(UserWarning, match="the model of the loss computes in .* and that of the penalty"):
            trained(loss, start, batch, None, "jit", steps=1)
