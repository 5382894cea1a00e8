"""What devices and parts share: numbers that are those of one device, and what was not one of them once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jacreg_jax import keys, models, penalties, sharding, shares, training
from tests.conftest import TRAIN_MODE

pytestmark = TRAIN_MODE  # whatever is penalised, the numbers are those of one device
BACKENDS = ("jit", "shard_map", "pmap")


def four_devices():
    return sharding.data_mesh(jax.devices()[:4])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=True):
        return nn.Dense(3)(jnp.tanh(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x))))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=True):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(jnp.tanh(nn.Dense(8)(x))))


class Both(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=True):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(jnp.tanh(x)))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(16, 5)).astype(np.float32), "label": rng.integers(0, 3, 16).astype(np.int32)}


def stepped(module, wrap, penalty, batch, **how):
    """(new parameters and state, metrics) of one step."""
    params, model_state = models.initialize(module, jax.random.key(0), jnp.ones((2, 5)))
    loss = wrap(training.classification_loss(models.train_mode(module), penalty=penalty, lambda_jr=0.1))
    optimizer = optax.sgd(0.1)
    state = training.init_state(params, optimizer, jax.random.key(5), model_state)
    state, metrics = training.make_train_step(loss, optimizer, **how)(state, batch)
    return (state.params, state.model_state), metrics


def assert_alike(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_products_of_a_network_that_averages_over_the_mesh(batch, backend):
    penalty, plain = penalties.projected(3, chunk_size=1), lambda loss: loss
    one = stepped(Normed(), plain, penalty, batch)
    assert_alike(one, stepped(Normed(), plain, penalty, batch, mesh=four_devices(), backend=backend))


@pytest.mark.parametrize("module", [Normed(), Dropped()], ids=["statistics", "masks"])
@pytest.mark.parametrize(
    ("part_size", "backend"),
    [(2, "jit"), (4, "pmap"), *(pytest.param(4, b, marks=pytest.mark.slow) for b in ("jit", "shard_map"))],
)
def test_parts_as_long_as_the_share_of_a_device_are_batches_too(batch, module, backend, part_size):
    in_parts = lambda loss: training.in_parts(part_size, loss)
    one = stepped(module, in_parts, penalties.projected(), batch)
    mesh = stepped(module, in_parts, penalties.projected(), batch, mesh=four_devices(), backend=backend)
    assert_alike(one, mesh)


def test_a_part_that_holds_the_whole_batch_is_the_whole_batch(batch):
    plain, in_parts = lambda loss: loss, lambda loss: training.in_parts(16, loss)
    mesh = {"mesh": four_devices()}
    assert_alike(*(stepped(Dropped(), wrap, penalties.projected(), batch, **mesh) for wrap in (plain, in_parts)))


@pytest.mark.parametrize("how", ["in parts", "jit", "pmap"])
def test_errors_that_are_no_standard_errors_are_averaged(how):
    """squared_error is a mean; so is a name_error of the user's own beside which there is no name."""
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(16, k)).astype(np.float32) for k in (4, 2))
    w = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    loss = training.regression_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.1)
    loss = training.in_parts(6, loss) if how == "in parts" else loss
    mesh = {} if how == "in parts" else {"mesh": four_devices(), "backend": how}
    optimizer = optax.sgd(0.1)
    state = training.init_state(w, optimizer, jax.random.key(0))
    _, metrics = training.make_train_step(loss, optimizer, **mesh)(state, {"image": x, "label": y})
    wanted = np.mean(np.sum((x @ np.asarray(w) - y) ** 2, axis=1))
    np.testing.assert_allclose(metrics["squared_error"], wanted, rtol=1e-5)


def test_the_rows_beside_a_part_have_a_mask_of_their_own(batch):
    """Of a model that says which units it drops, no mask of the one half is the other's."""
    apply = lambda params, state, x, key: (x * jax.random.bernoulli(key, shape=(len(x), 40)), state)
    f = penalties.BoundModel(apply, {}, {}, jax.random.key(3))
    (z, _), _, _ = penalties.on_part(0.5)(f, jnp.ones((8, 40)), None, jax.random.split(jax.random.key(0), 8))
    assert len(np.unique(z, axis=0)) == 8


@pytest.mark.parametrize("how", [{}, {"backend": "jit"}, {"backend": "pmap"}], ids=["one device", "jit", "pmap"])
def test_complex_parameters_are_taken_down_the_loss(how):
    """|p|^2 falls by the factor that it does for a pair of real parameters."""
    apply = lambda params, state, x, key: (jnp.abs(params) ** 2 * x, state)
    loss, optimizer = training.regression_loss(apply), optax.sgd(0.05)
    params = jnp.asarray(0.4 + 0.3j, jnp.complex64)
    batch = {"image": np.ones((4, 1), np.float32), "label": np.zeros((4, 1), np.float32)}
    mesh = {"mesh": four_devices()} if how else {}
    step = training.make_train_step(loss, optimizer, **how, **mesh)
    state, losses, pair = training.init_state(params, optimizer, jax.random.key(0)), [], jnp.asarray([0.4, 0.3])
    for _ in range(5):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        pair = pair - 0.05 * jax.grad(lambda p: losses[0] * (jnp.sum(p**2) / 0.25) ** 2)(pair)
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_allclose([state.params.real, state.params.imag], pair, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_norm_of_half_precision_gradients_is_taken_in_float32(dtype):
    """Squares of a norm above 256 are beyond float16: the step was refused as not finite."""
    apply = lambda params, state, x, key: (x.astype(dtype) @ params, state)
    loss, optimizer = training.regression_loss(apply), optax.sgd(1e-4)
    x, y = np.full((4, 300), 8.0, np.float32), np.full((4, 2), 40.0, np.float32)
    state = training.init_state(jnp.zeros((300, 2), dtype), optimizer, jax.random.key(0))
    after, metrics = training.make_train_step(loss, optimizer)(state, {"image": x, "label": y})
    assert metrics["grad_norm"].dtype == jnp.float32
    gradient = jax.grad(lambda p: loss(p, state, {"image": x, "label": y}, jax.random.split(jax.random.key(0), 4))[0])
    wanted = np.linalg.norm(np.asarray(gradient(jnp.zeros((300, 2), dtype)), np.float64))
    assert wanted > 256
    np.testing.assert_allclose(metrics["grad_norm"], wanted, rtol=1e-4)
    assert int(after.step) == 1


def test_rows_of_the_whole_batch():
    mesh = four_devices()
    seen = []

    def on_device(x):
        with shares.on_share(shares.Share("data", 2, jax.random.key(0))):
            seen.append(shares.whole_batch(2))
        return x

    jax.shard_map(on_device, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))(jnp.ones(8))
    assert (seen[0], shares.whole_batch(2)) == (8, 2)


def by_value_fn():
    """An optimizer whose update is the gradient of value_fn, as line searches take it."""

    def update(grads, state, params=None, *, value_fn, **_):
        return jax.tree.map(lambda own, g: -own + 0 * g, jax.grad(value_fn)(params), grads), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


WHOLE, PARTS = (lambda loss: loss), (lambda loss: training.in_parts(2, loss))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("module", "wrap"), [(Normed(), WHOLE), (Dropped(), PARTS)], ids=["statistics", "masks, parts"]
)
def test_the_gradient_of_value_fn_is_that_of_the_whole_batch(batch, module, wrap, backend):
    """Under pmap it was each device's own: parameters that should be alike on all devices came apart."""
    params, model_state = models.initialize(module, jax.random.key(0), jnp.ones((2, 5)))
    loss, found = wrap(training.classification_loss(models.train_mode(module), lambda_jr=0.1)), []
    for optimizer, how in ((optax.sgd(1.0), {}), (by_value_fn(), {"mesh": four_devices(), "backend": backend})):
        state = training.init_state(params, optimizer, jax.random.key(5), model_state)
        mesh = how or {"mesh": four_devices()}  # parts are of a device's rows, so that both are on devices
        found.append(training.make_train_step(loss, optimizer, **mesh)(state, batch)[0].params)
    assert_alike(*found)
    for leaf in jax.tree.leaves(found[1]):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(np.array_equal(copy, copies[0]) for copy in copies)


@pytest.mark.parametrize("how", ["in parts", "jit", "pmap"])
def test_an_error_is_a_standard_error_where_there_is_a_count_alone(batch, how):
    """top3_error beside top3 is a share as every other metric is."""

    def objective(z, batch):
        hits = (jax.lax.top_k(z, 2)[1] == batch["label"][:, None]).any(1).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(z, batch["label"]), {
            "top2": hits,
            "top2_error": 1 - hits,
        }

    loss = training.supervised_loss(lambda params, state, x, key: (x @ params, state), objective, lambda_jr=0.1)
    loss = training.in_parts(4, loss) if how == "in parts" else loss
    mesh = {} if how == "in parts" else {"mesh": four_devices(), "backend": how}
    optimizer = optax.sgd(0.1)
    params = jax.random.normal(jax.random.key(1), (5, 3))
    state = training.init_state(params, optimizer, jax.random.key(0))
    z = batch["image"] @ np.asarray(params)
    _, metrics = training.make_train_step(loss, optimizer, **mesh)(state, batch)
    wanted = np.mean(np.argsort(z, axis=1)[:, 0] == batch["label"])
    assert 0 < wanted < 1
    np.testing.assert_allclose([metrics["top2"], metrics["top2_error"]], [1 - wanted, wanted], rtol=1e-6)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "penalty", "lambda_jr"])
def test_metrics_of_the_step_are_not_overwritten(batch, name):
    """A metric called loss or grad_norm took the place of the true one, and a gradient of NaN was not seen."""
    objective = lambda z, batch: (jnp.sum(z**2, 1), {name: jnp.ones(len(z))})
    apply = lambda params, state, x, key: (x @ params, state)
    whole = training.supervised_loss(apply, objective, lambda_jr=0.1)
    own = lambda params, state, batch, keys: (jnp.sum(params), ({}, {name: jnp.float32(1)}))
    state = training.init_state(jnp.ones((5, 3)), optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(ValueError, match=f"objective must not call a metric '{name}'"):
        training.make_train_step(whole, optax.sgd(0.1))(state, batch)
    if name in ("loss", "grad_norm"):
        with pytest.raises(ValueError, match=f"loss must not call a metric '{name}'"):
            training.make_train_step(own, optax.sgd(0.1))(state, batch)


NOISES = {
    "normal_like": keys.normal_like,
    "split": lambda key, x: jax.vmap(lambda k: jax.random.uniform(k, (5,)))(jax.random.split(key, len(x))),
}


def of_layers(key, x):
    """A stack of as many layers as a device has rows, each with noise for the batch."""
    return jax.lax.scan(lambda h, k: (h + jax.random.uniform(k, x.shape), None), 0 * x, jax.random.split(key, 4))[0]


uniform = lambda key: jax.random.uniform(key, (5,))
by_row = lambda draw: lambda key, x: jax.vmap(draw)(jax.random.split(key, len(x)))
STREAMS = {  # four rows lie on each device: a split into four is of streams, or of rows
    "two streams": lambda key, x: jax.random.uniform(jax.random.split(key, 4)[1], x.shape),
    "a stream of a stream": lambda key, x: jax.random.uniform(
        jax.random.split(jax.random.split(key, 4)[2], 4)[1], x.shape
    ),
    "a stream and a fold": lambda key, x: jax.random.uniform(
        jax.random.fold_in(jax.random.split(key, 4)[3], 7), x.shape
    ),
    "a stream split into rows": lambda key, x: by_row(uniform)(jax.random.split(key, 4)[1], x),
    "layers": of_layers,
    "members": lambda key, x: jax.vmap(lambda k: jax.random.uniform(k, x.shape))(jax.random.split(key, 3)).sum(0),
    "rows and folds": by_row(lambda k: uniform(jax.random.fold_in(k, 3))),
    "rows and streams": by_row(lambda k: uniform(jax.random.split(k)[1])),
    "rows and four streams": by_row(lambda k: uniform(jax.random.split(k, 4)[1])),
    "rows and members": by_row(lambda k: jax.vmap(uniform)(jax.random.split(k, 3)).sum(0)),
    "rows and numbers": by_row(lambda k: jax.vmap(lambda i: uniform(jax.random.fold_in(k, i)))(jnp.arange(3)).sum(0)),
    "rows and as many draws": by_row(lambda k: jax.random.uniform(k, (4, 5)).sum(0)),
    "rows and their normal_like": by_row(lambda k: keys.normal_like(k, jnp.ones((1, 5)))[0]),
    "rows and gamma": by_row(lambda k: jax.random.gamma(k, 2.0, (5,))),
    "rows and a loop": by_row(
        lambda k: jax.lax.map(lambda k: jax.random.uniform(k, (4,)).sum(), jax.random.split(k, 5))
    ),
    "gamma by row": lambda key, x: jax.vmap(lambda k: jax.random.gamma(k, 2.0, (5,)))(keys.sample_keys(key, len(x))),
    "poisson by row": lambda key, x: jax.vmap(lambda k, x: 0.0 + jax.random.poisson(k, 2.0 + 0 * x))(
        keys.sample_keys(key, len(x)), x
    ),
    "sample_keys": lambda key, x: jax.vmap(uniform)(keys.sample_keys(key, len(x))),
    "noise after a fold": lambda key, x: keys.normal_like(jax.random.fold_in(key, 3), x),
    "noise of one row": lambda key, x: jax.vmap(keys.normal_like)(keys.sample_keys(key, len(x)), x[:, None])[:, 0],
    "noise of every row's key": lambda key, x: keys.normal_like(jax.random.split(key, len(x)), x),
    "noise of another number": lambda key, x: keys.normal_like(key, jnp.ones((3, 5))).sum(0, keepdims=True) + x,
    "noise of two streams": lambda key, x: sum(keys.normal_like(k, x) for k in jax.random.split(key, 4)),
}
BY_ROW = ("sample_keys", "noise after a fold", "noise of one row")  # in a train step, too
VMAP_OF_RBG = ("rows", "a stream split", "members")  # draws from the first key alone


@pytest.mark.parametrize("impl", ["threefry2x32", pytest.param("rbg", marks=pytest.mark.slow)])
def test_streams_and_rows_of_a_share_are_those_of_the_whole_batch(impl):
    """`k1, k2 = split(key)` was taken for a key for each of two rows, and dropout differed from one device's."""
    x, key = jnp.zeros((16, 5)), jax.random.key(3, impl=impl)

    def draws(key, x):
        skipped = VMAP_OF_RBG if impl == "rbg" else ()
        return {name: draw(key, x) for name, draw in STREAMS.items() if not name.startswith(skipped)}

    def share(x):
        with shares.on_share(shares.Share("data", len(x), key)):
            return draws(shares.whole_batch_key(key, lambda key: key), x)

    on_mesh = jax.shard_map(share, mesh=four_devices(), in_specs=jax.P("data"), out_specs=jax.P("data"))
    found, expected = jax.jit(on_mesh)(x), jax.jit(draws)(key, x)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("backend", ["jit", "pmap"])
@pytest.mark.parametrize(
    "noise",
    [*NOISES.values(), *(pytest.param(STREAMS[name], marks=pytest.mark.slow) for name in BY_ROW)],
    ids=[*NOISES, *BY_ROW],
)
def test_noise_that_a_model_draws_by_row_is_that_of_the_whole_batch(batch, noise, backend):
    apply = lambda params, state, x, key: (jnp.tanh((x + noise(key, x)) @ params), state)
    loss, optimizer, found = training.classification_loss(apply, lambda_jr=0.1), optax.sgd(0.1), []
    for how in ({}, {"mesh": four_devices(), "backend": backend}):
        state = training.init_state(jnp.eye(5, 3), optimizer, jax.random.key(5))
        state, metrics = training.make_train_step(loss, optimizer, **how)(state, batch)
        found.append((state.params, metrics))
    assert_alike(*found)


@pytest.mark.parametrize(
    ("backend", "fraction"),
    [("jit", 0.25), ("pmap", 0.5), *(pytest.param(*p, marks=pytest.mark.slow) for p in (("jit", 0.5), ("pmap", 0.25)))],
)
@pytest.mark.parametrize("module", [Dropped(), Both()], ids=["masks", "masks and statistics"])
def test_masks_of_a_part_and_of_the_rest_are_those_of_one_device(batch, module, backend, fraction):
    """On a mesh they were the same on all devices, so that the noise of dropout did not average over them."""
    penalty, plain = penalties.on_part(fraction), lambda loss: loss
    one = stepped(module, plain, penalty, batch)
    assert_alike(one, stepped(module, plain, penalty, batch, mesh=four_devices(), backend=backend))


def test_a_part_of_a_model_that_says_which_units_it_drops(batch):
    """Sixteen rows, all of them other masks, on four devices."""
    seen = []

    def apply(params, state, x, key):
        mask = jax.random.bernoulli(key, shape=(len(x), 40)).astype(jnp.float32)
        jax.debug.callback(lambda mask: seen.append(np.asarray(mask)), mask)
        return (mask @ params[1] + x @ params[0]) * 1.0, state

    loss = training.classification_loss(apply, penalty=penalties.on_part(0.5), lambda_jr=0.1)
    params = jnp.ones((5, 3)), jnp.ones((40, 3))
    state = training.init_state(params, optax.sgd(0.1), jax.random.key(0))
    step = training.make_train_step(loss, optax.sgd(0.1), mesh=four_devices())
    jax.block_until_ready(step(state, batch)[0].params)
    jax.effects_barrier()
    assert len(np.unique(np.concatenate(seen), axis=0)) == 16
