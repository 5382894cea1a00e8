"""interop.py: models of five kinds, each with a penalty that matches jacrev; four architectures; training."""

import itertools
import warnings

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jacreg_jax import attacks, exact_frobenius_sq, interop, training, value_and_penalty
from tests import reference
from tests.conftest import TRAIN_MODE


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.tanh(linen.Dense(16)(x))
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.3, deterministic=not train)(x)
        return linen.Dense(3)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(self.norm(nnx.tanh(self.first(x)))))


def linen_model(train):
    module = LinenNet()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 8)))
    return interop.from_linen(module, variables, train=train)


def nnx_model(train):
    model = NnxNet(nnx.Rngs(0))
    (model.train if train else model.eval)()
    return interop.from_nnx(model)


def equinox_model(train):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: eqx.nn.Linear
        dropout: eqx.nn.Dropout
        last: eqx.nn.Linear

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.first, self.last = eqx.nn.Linear(8, 16, key=a), eqx.nn.Linear(16, 3, key=b)
            self.dropout = eqx.nn.Dropout(0.3, inference=not train)

        def __call__(self, x, key=None):
            return self.last(self.dropout(jnp.tanh(self.first(x)), key=key))

    return interop.from_equinox(Net(jax.random.key(0)))


def equinox_stateful(train):
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.BatchNorm
        last: eqx.nn.Linear

        def __init__(self, key):
            a, b = jax.random.split(key)
            self.first, self.last = eqx.nn.Linear(8, 16, key=a), eqx.nn.Linear(16, 3, key=b)
            self.norm = eqx.nn.BatchNorm(16, axis_name="batch", mode="batch", inference=not train)

        def __call__(self, x, state):
            x, state = self.norm(jnp.tanh(self.first(x)), state)
            return self.last(x), state

    return interop.from_equinox(*eqx.nn.make_with_state(Net)(jax.random.key(0)))


def haiku_model(train):
    hk = pytest.importorskip("haiku")

    def net(x, is_training):
        x = jnp.tanh(hk.Linear(16)(x))
        x = hk.BatchNorm(True, True, 0.9)(x, is_training)
        return hk.Linear(3)(hk.dropout(hk.next_rng_key(), 0.3, x) if is_training else x)

    transformed = hk.transform_with_state(net)
    params, state = transformed.init(jax.random.key(0), jnp.zeros((2, 8)), is_training=True)
    return interop.from_haiku(transformed, params, state, is_training=train)


def haiku_stateless(train):
    hk = pytest.importorskip("haiku")
    transformed = hk.transform(lambda x: hk.Linear(3)(jnp.tanh(hk.Linear(16)(x))))
    return interop.from_haiku(transformed, transformed.init(jax.random.key(0), jnp.zeros((1, 8))))


def bare(train):
    params = {"a": jax.random.normal(jax.random.key(0), (8, 16)), "b": jax.random.normal(jax.random.key(1), (16, 3))}
    return interop.from_function(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params)


KINDS = [linen_model, nnx_model, equinox_model, equinox_stateful, haiku_model, haiku_stateless, bare]


@pytest.fixture
def x(key):
    return jax.random.normal(key, (6, 8))


@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_penalty_matches_jacrev(make, x, key):
    apply, params, state = make(train=False)
    f = interop.bind(apply, params, state)
    exact, (z, _) = jax.jit(lambda x: (exact_frobenius_sq(f, x), value_and_penalty(f, x, key)))(x)
    np.testing.assert_allclose(exact, reference.frobenius_sq(f, x), rtol=1e-5)
    plain = f(x)
    np.testing.assert_allclose(z, plain, rtol=1e-5, atol=1e-7)
    y = jnp.argmax(plain, -1)
    assert attacks.fgsm(f, x, y, epsilon=0.1, bounds=(-5.0, 5.0)).x_adv.shape == x.shape


@TRAIN_MODE
@pytest.mark.parametrize("make", KINDS, ids=lambda f: f.__name__)
def test_training_in_train_mode(make, x, key):
    """The train step with penalty: parameters move, statistics update, dropout follows the step's key."""
    apply, params, state = make(train=True)
    batch = {"image": x, "label": jnp.arange(6) % 3}
    optimizer = optax.adam(0.01)
    start = training.init_state(params, optimizer, key, state)
    step = training.make_train_step(training.classification_loss(apply, lambda_jr=0.1), optimizer, donate=False)
    one, metrics = step(start, batch)
    two, later = step(one, batch)
    assert np.isfinite(metrics["penalty"])
    assert later["loss"] != metrics["loss"]
    before, after = (jax.tree.leaves(s.model_state) for s in (start, two))
    assert not before or any(not np.array_equal(b, a) for b, a in zip(before, after, strict=True))
    again, _ = step(start, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again.params), jax.tree.leaves(one.params))


@pytest.mark.parametrize("make", [linen_model, nnx_model, equinox_model, haiku_model], ids=lambda f: f.__name__)
def test_dropout_draws_from_the_key(make, x):
    apply, params, state = make(train=True)
    first, again, other = (apply(params, state, x, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def assert_apart(masks):
    """Any two of masks [B, n, ...] are alike in half of their places."""
    for a, b in itertools.combinations(range(masks.shape[1]), 2):
        np.testing.assert_allclose(jnp.mean(masks[:, a] == masks[:, b]), 0.5, atol=0.05)


class Streams(nnx.Module):
    """Two masks and a draw of one's own, of streams of these names."""

    def __init__(self, *streams):
        self.drops = nnx.List([nnx.Dropout(0.5, rngs=rngs) for rngs in streams])
        self.last = streams[-1]

    def __call__(self, x):
        drawn = jax.random.bernoulli(self.last.noise(), shape=x.shape) if "noise" in self.last else x
        return jnp.stack([*(drop(x) > 0 for drop in self.drops), drawn > 0], axis=1)


@pytest.mark.parametrize(
    "streams",
    [
        lambda: [nnx.Rngs(0), nnx.Rngs(dropout=7)],
        lambda: [nnx.Rngs(0), nnx.Rngs(0)],
        lambda: [nnx.Rngs(dropout=1, noise=2)],
        lambda: [nnx.Rngs(3), nnx.Rngs(dropout=1, noise=1)],
    ],
)
def test_streams_of_nnx_are_drawn_apart(streams, key):
    """Streams of different names got the same key: masks were alike, or the opposite of the noise."""
    made = streams()
    functional = interop.from_nnx(Streams(*made))
    drawn, _ = functional.train(functional.params, functional.model_state, jnp.ones((40, 50)), key)
    assert_apart(drawn if "noise" in made[-1] else drawn[:, :-1])
    again, _ = functional.train(functional.params, functional.model_state, jnp.ones((40, 50)), jax.random.key(99))
    np.testing.assert_allclose(jnp.mean(drawn[:, 0] == again[:, 0]), 0.5, atol=0.05)


def test_a_stack_of_nnx_layers_drops_in_each(key):
    """Its stream holds a key for each layer, as flax's guide on transforms makes it: reseeding it was an error."""

    class Stack(nnx.Module):
        def __init__(self, rngs):
            make = nnx.vmap(lambda rngs: nnx.Dropout(0.5, rngs=rngs))
            self.layers = nnx.split_rngs(splits=3)(make)(rngs)

        def __call__(self, x):
            over = nnx.scan(lambda x, layer: (layer(x), layer(jnp.ones_like(x))), in_axes=(nnx.Carry, 0))
            return jnp.moveaxis(over(x, self.layers)[1], 0, 1)

    functional = interop.from_nnx(Stack(nnx.Rngs(0)))
    masks, _ = functional.train(functional.params, functional.model_state, jnp.ones((40, 50)), key)
    assert masks.shape == (40, 3, 50)
    assert_apart(masks > 0)


def test_any_stream_of_a_linen_module(key):
    """It had one called dropout alone; any other is drawn from the same key, and apart from it."""

    class Noisy(linen.Module):
        @linen.compact
        def __call__(self, x, *, train):
            mask = linen.Dropout(0.5, deterministic=not train)(x) > 0
            other = linen.Dropout(0.5, deterministic=not train, rng_collection="other")(x) > 0
            own = [jax.random.bernoulli(self.make_rng(name), shape=x.shape) for name in ("dropout", "noise")]
            return jnp.stack([mask, other, *own], axis=1)

    functional = interop.from_linen(Noisy(), {"params": {}})
    drawn, again = (functional.train({}, {}, jnp.ones((40, 50)), k)[0] for k in (key, jax.random.key(99)))
    assert_apart(drawn)
    np.testing.assert_allclose((drawn == again).mean((0, 2)), 0.5, atol=0.05)


def test_nnx_needs_the_copy(x, key):
    """The trap that from_nnx avoids: BatchNorm's update inside a vector-Jacobian product."""
    model = NnxNet(nnx.Rngs(0))
    model.train()
    with pytest.raises(TypeError, match="f must be a pure function of x") as caught:
        nnx.value_and_grad(lambda m: value_and_penalty(lambda x: m(x), x, key)[1])(model)
    assert isinstance(caught.value.__cause__, flax.errors.TraceContextError)
    apply, params, state = interop.from_nnx(model)

    def penalty(params):
        return value_and_penalty(lambda x: apply(params, state, x, key), x, key, has_aux=True)[1]

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(penalty)(params)))


def test_bound_functions_share_a_program(x):
    traces = []

    def f(params, x):
        traces.append(1)
        return x @ params

    apply, params, state = interop.from_function(f, jnp.ones((8, 3)))
    run = jax.jit(lambda f, x: f(x))
    run(interop.bind(apply, params, state), x)
    run(interop.bind(apply, 2 * params, state), x)
    assert len(traces) == 1


def test_unsupported_models_are_named():
    with pytest.raises(ValueError, match=r"model must be a flax.nnx.Module, got .*LinenNet"):
        interop.from_nnx(LinenNet())
    with pytest.raises(ValueError, match=r"module must be a flax.linen.Module, got builtins.dict"):
        interop.from_linen({}, {})
    with pytest.raises(ValueError, match="variables must hold 'params', got \\['weights'\\]"):
        interop.from_linen(LinenNet(), {"weights": 1})
    with pytest.raises(ValueError, match="f must be a function of \\(params, x\\), got int"):
        interop.from_function(3, {})
    pytest.importorskip("equinox")
    pytest.importorskip("haiku")
    with pytest.raises(ValueError, match=r"model must be a callable equinox.Module, got builtins.int"):
        interop.from_equinox(3)
    with pytest.raises(ValueError, match=r"transformed must be a haiku.Transformed, got builtins.function"):
        interop.from_haiku(lambda x: x, {})


# architectures


class TransformerBlock(linen.Module):
    @linen.compact
    def __call__(self, x):  # [B, T, D]
        x = x + linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=8)(linen.LayerNorm()(x))
        x = x + linen.Dense(8)(linen.gelu(linen.Dense(16)(linen.LayerNorm()(x))))
        return linen.Dense(4)(x.mean(1))


class DensePrediction(linen.Module):
    @linen.compact
    def __call__(self, x):  # [B, H, W, C] -> [B, H, W, K]
        x = linen.softplus(linen.Conv(4, (3, 3))(x))
        return linen.Conv(2, (1, 1))(x)


class Recurrent(linen.Module):
    @linen.compact
    def __call__(self, x):  # [B, T, D]
        return linen.Dense(3)(linen.RNN(linen.GRUCell(6))(x)[:, -1])


class ModelWithCustomVjp(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(clipped(linen.Dense(8)(x)))


@jax.custom_vjp
def clipped(x):
    """The identity whose gradient is halved: the penalty sees the rule, as does jacrev."""
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (0.5 * jnp.cos(x) * ct,))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (TransformerBlock(), (3, 5, 8)),
        (DensePrediction(), (2, 5, 4, 3)),
        (Recurrent(), (3, 6, 4)),
        (ModelWithCustomVjp(), (4, 5)),
    ],
    ids=["transformer", "dense prediction", "recurrent", "custom_vjp"],
)
def test_architectures(module, shape, key):
    x = jax.random.normal(key, shape)
    apply, params, _ = interop.from_linen(module, jax.jit(module.init)(key, x))
    f = interop.bind(apply, params)
    norms = jax.jit(lambda x: exact_frobenius_sq(f, x, mode="reverse"))(x)
    np.testing.assert_allclose(norms, reference.frobenius_sq(jax.jit(f), x), rtol=2e-5)
    # the penalty differentiates in the parameters, and its mean over many probes is the exact one
    penalty = lambda params, key: value_and_penalty(interop.bind(apply, params), x, key, num_projections=64)[1]
    values = jax.jit(lambda keys: jax.lax.map(lambda key: penalty(params, key), keys))(jax.random.split(key, 8))
    exact, error = norms.mean(), values.std(ddof=1) / np.sqrt(8)
    assert abs(values.mean() - exact) < 6 * error + 1e-6
    gradient = jax.jit(jax.grad(penalty))(params, key)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_an_equinox_module_with_a_state_wants_it():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        norm: eqx.nn.BatchNorm

        def __init__(self):
            self.norm = eqx.nn.BatchNorm(3, axis_name="batch", mode="batch")

        def __call__(self, x, state):
            return self.norm(x, state)

    model, _ = eqx.nn.make_with_state(Net)()
    with pytest.raises(ValueError, match=r"state is None: from_equinox\(model, state\), both of equinox.nn.make_with"):
        interop.from_equinox(model)


def called(times, library):
    """A model that calls its one BatchNorm so often, as (batch_statistics, params, model_state)."""
    x = jnp.ones((4, 5))
    if library == "linen":

        class Linen(linen.Module):
            @linen.compact
            def __call__(self, x, train=False):
                norm = linen.remat(linen.BatchNorm, static_argnums=(2,))(name="norm")
                for _ in range(times):
                    x = norm(linen.Dense(5)(x), not train)
                return x

        module = Linen()
        return interop.from_linen(module, module.init(jax.random.key(0), x))
    if library == "nnx":

        class Nnx(nnx.Module):
            def __init__(self, rngs):
                self.norm = nnx.BatchNorm(5, rngs=rngs)

            def __call__(self, x):
                for _ in range(times):
                    x = self.norm(x)
                return x

        return interop.from_nnx(Nnx(nnx.Rngs(0)))

    haiku = pytest.importorskip("haiku")

    def network(x, is_training):
        norm = haiku.BatchNorm(True, True, 0.9)
        for _ in range(times):
            x = norm(x, is_training)
        return x

    transformed = haiku.transform_with_state(network)
    return interop.from_haiku(transformed, *transformed.init(jax.random.key(0), x, True), is_training=True)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("library", ["linen", "nnx", "haiku"])
def test_a_norm_that_is_called_twice_is_told(library, times):
    model = called(times, library)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jax.jit(model.batch_statistics)(model.params, model.model_state, jnp.ones((4, 5)), jax.random.key(0))
    assert sum("more than once" in str(warning.message) for warning in told) == (times > 1)


def test_a_norm_inside_of_nnx_remat_is_refused_in_words():
    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(5, rngs=rngs)

        @nnx.remat
        def __call__(self, x):
            return self.norm(x)

    model = interop.from_nnx(Inner(nnx.Rngs(0)))
    with pytest.raises(TypeError, match="inside of nnx.remat"):
        model.batch_statistics(model.params, model.model_state, jnp.ones((4, 5)))
