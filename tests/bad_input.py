"""Wrong calls of every public function: a right call, and for each argument values that it must refuse.

The tests make each of them; `python -m tests.bad_input` writes what the library answers into docs/errors.md.
"""

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jacreg_jax as jr
from jacreg_jax import (
    accumulation,
    adversarial_training,
    attacks,
    certify,
    convolution,
    corruptions,
    cyclopropagation,
    datasets,
    decision_cells,
    evaluation,
    host_memory,
    interop,
    keys,
    masking,
    models,
    penalties,
    pooled_convolution,
    precision,
    probes,
    relatives,
    reporting,
    schedules,
    sharding,
    supervised,
    training,
)

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # as in the tests

NAN, INF = float("nan"), float("inf")
KEY = jax.random.key(0)
W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).uniform(size=(5, 6)), jnp.float32)
IMAGES = jnp.asarray(np.random.default_rng(2).uniform(size=(5, 6, 6, 1)), jnp.float32)


def f(x):
    """4 classes of 6 inputs, or of an image of 6 x 6."""
    return jnp.tanh(x.reshape(len(x), -1)[:, :6] @ W.astype(x.dtype))


Y = jnp.argmax(f(X), axis=1).astype(jnp.int32)
YI = jnp.argmax(f(IMAGES), axis=1).astype(jnp.int32)
APPLY = lambda params, state, x, key: (x @ params, state)
LAYERS = [(jnp.ones((4, 6)), jnp.ones(4))]
MODULE = models.MLP((4,))
SGD = optax.sgd(0.1)
KEYS = jax.random.split(KEY, 5)

# what each kind of argument must refuse: name -> value
COUNT = {"0": 0, "-1": -1, "1.5": 1.5, "True": True, "'2'": "2", "NaN": NAN}
KINDS: dict[str, dict[str, Any]] = {
    "count": COUNT | {"None": None},
    "optional count": COUNT,
    "not below 0": {"-1": -1.0, "NaN": NAN, "infinity": INF, "'1'": "1", "None": None},
    "above 0": {"0": 0.0, "-1": -1.0, "NaN": NAN, "infinity": INF, "'1'": "1", "None": None},
    "optional size": {"0": 0.0, "-1": -1.0, "NaN": NAN, "infinity": INF, "'1'": "1"},
    "optional radius": {"-1": -1.0, "NaN": NAN, "infinity": INF, "'1'": "1"},
    "part of 1": {"-0.1": -0.1, "1.5": 1.5, "NaN": NAN, "infinity": INF, "'1'": "1"},
    "choice": {"'nothing'": "nothing", "None": None, "3": 3, "''": ""},
    "key": {
        "None": None,
        "0": 0,
        "two raw words": np.zeros(2, np.uint32),
        "2 keys for 5 rows": jax.random.split(KEY, 2),
    },
    "one key": {"None": None, "0": 0, "two raw words": np.zeros(2, np.uint32), "a float": 1.0},
    "x": {
        "a list": [[1.0, 2.0]],
        "a word": "image",
        "None": None,
        "integers": np.ones((5, 6), np.int32),
        "bools": np.ones((5, 6), bool),
        "complex": np.ones((5, 6), np.complex64),
        "a scalar": np.float32(1.0),
    },
    "labels": {
        "a column": Y[:, None],
        "one too few": Y[:4],
        "floats": Y.astype(jnp.float32),
        "-1": Y.at[0].set(-1),
        "C": Y.at[0].set(4),
        "None": None,
    },
    "bounds": {"reversed": (1.0, 0.0), "NaN": (0.0, NAN), "one number": 0.5, "three": (0, 1, 2), "words": ("a", "b")},
    "function": {"None": None, "3": 3, "a word": "tanh", "a list": [], "an array": np.ones(3)},
}


BATCH = {"image": X, "label": Y}
KINDS |= {
    "batch": {
        "a pair": (X, Y),
        "None": None,
        "no arrays": {},
        "no samples": {"image": X[:0], "label": Y[:0]},
        "one label too few": {"image": X, "label": Y[:4]},
        "a list in it": {"image": X.tolist(), "label": Y},
        "a word in it": BATCH | {"name": "digits"},
        "a scalar in it": BATCH | {"weight": jnp.float32(1)},
        "no image": {"x": X, "label": Y},
        "no label": {"image": X},
        "a label C": BATCH | {"label": np.full(5, 4)},
    },
    "indices": {
        "one axis": np.arange(4),
        "three axes": np.zeros((2, 2, 2), int),
        "no rows": np.zeros((2, 0), int),
        "floats": np.zeros((2, 2)),
        "a list": [[0, 1]],
        "-1": np.asarray([[0, -1]]),
        "N": np.asarray([[0, 5]]),
    },
    "corrupted images": {
        "None": None,
        "no batch": IMAGES[0],
        "integers": IMAGES.astype(int),
        "a list": [],
        "a number": 3,
        "of 0 to 255": 255 * IMAGES,
        "below 0": IMAGES - 1,
        "NaN": NAN * IMAGES,
    },
    "severity": {"0": 0, "6": 6, "1.5": 1.5, "None": None, "'1'": "1", "True": True, "two": np.array([1, 2])},
    "radii": {"a number": 0.1, "none": {}, "of l3": {"l3": 0.1}, "0": {"l2": 0.0}, "NaN": {"l2": NAN}, "None": None},
    "budget": {"None": None, "a word": "quick", "a number": 3, "a dict": {}, "its class": reporting.Budget},
    "float type": {"int32": jnp.int32, "bool": bool, "a word": "small", "a number": 3, "a list": [jnp.float32]},
    "optimizer": {"None": None, "a number": 0.1, "a word": "sgd", "its maker": optax.sgd, "a function": jnp.tanh},
    "state": {
        "parameters": W,
        "None": None,
        "of another optimizer": training.init_state(W, optax.adam(0.1), KEY),
        "of other parameters": training.init_state(W, SGD, KEY)._replace(opt_state=optax.adam(0.1).init(W[:5])),
    },
    "loss": {"None": None, "a word": "mse", "a number": 0.5, "of two arguments": lambda z, y: z, "a list": []},
    "penalty": {
        "exact": penalties.exact,
        "projected": penalties.projected,
        "on_part": penalties.on_part,
        "a relative": relatives.noise_consistency,
        "exact_frobenius_sq": jr.exact_frobenius_sq,
        "a number": 0.5,
        "a word": "exact",
    },
    "apply": {
        "None": None,
        "a number": 3,
        "a word": "apply",
        "a module": MODULE,
        "of (params, x)": lambda params, x: x @ params,
        "an array": np.ones(3),
    },
    "mesh": {
        "None": None,
        "a number": 2,
        "a word": "data",
        "devices": jax.devices()[:1],
        "of another axis": jax.make_mesh((1,), ("model",), devices=jax.devices()[:1]),
    },
    "devices": {"none": [], "a word": "cpu", "a number": 2, "numbers": [0, 1], "one twice": jax.devices()[:1] * 2},
    "weight": {
        "one column": np.ones((5, 1), np.float32),
        "one too few": np.ones(4, np.float32),
        "negative": -np.ones(5, np.float32),
        "NaN": np.full(5, NAN),
        "infinity": np.full(5, INF, np.float32),
        "bools": np.ones(5, bool),
        "a list": [1.0] * 5,
        "a word": "w",
    },
    "mask": {
        "of samples": np.ones(5),
        "of another shape": np.ones((5, 3)),
        "negative": -np.ones((5, 2)),
        "NaN": np.full((5, 2), NAN),
        "infinity": np.full((5, 2), INF),
        "a list": [[1.0, 1.0]] * 5,
        "a word": "m",
    },
    "no mask": {"given": np.ones((5, 2))},
    "soft labels": {
        "of another shape": np.ones((5, 3), np.float32) / 3,
        "a row too few": np.ones((4, 4), np.float32) / 4,
        "sums of 2": np.ones((5, 4), np.float32) / 2,
        "negative": np.full((5, 4), -0.25, np.float32),
        "NaN": np.full((5, 4), NAN),
        "one-hot integers": np.eye(5, 4, dtype=np.int32),
        "bools": np.eye(5, 4) > 0,
        "a list": [[0.25] * 4] * 5,
        "None": None,
    },
    "module": {"None": None, "a number": 3, "a word": "MLP", "its class": models.MLP, "a function": jnp.tanh},
    "rate": {"-0.1": -0.1, "1.5": 1.5, "NaN": NAN, "'1'": "1", "None": None},
    "pictures": {
        "vectors": X,
        "one image": IMAGES[0],
        "too small": IMAGES[:, :5, :5],
        "bytes": np.ones((2, 28, 28, 1), np.uint8),
        "a list": [1.0],
        "None": None,
    },
    "seed": {"-1": -1, "1.5": 1.5, "True": True, "'2'": "2", "NaN": NAN, "None": None},
    "sample": {
        "a list": [1.0, 2.0],
        "a word": "image",
        "None": None,
        "integers": np.ones((6, 6, 1), np.int32),
        "complex": np.ones((6, 6, 1), np.complex64),
        "no entries": jnp.ones((0, 3)),
    },
    "plane": {"None": None, "a word": "plane", "an array": IMAGES[0], "a triple": (1, 2, 3), "a number": 3},
    "layers": {
        "none": [],
        "None": None,
        "a word": "W",
        "of another width": [(jnp.ones((4, 5)), jnp.ones(4))],
        "a bias of another length": [(jnp.ones((4, 6)), jnp.ones(3))],
        "weights alone": [jnp.ones((4, 6))],
        "lists": [([[1.0] * 6], [1.0])],
    },
    "matrix": {
        "a vector": X[0],
        "of another width": X[:, :5],
        "integers": np.ones((5, 6), int),
        "a list": [1.0],
        "None": None,
    },
    "activation": {"None": None, "jnp.tanh": jnp.tanh, "a word": "tanh", "a number": 3, "a triple": (1, 2, 3)},
    "sigma": {"None": None, "3": 3, "a word": "tanh", "gives a vector": lambda x: jnp.stack([x, x]), "a list": []},
    "grid": {"NaN": [NAN], "negative": [-0.5], "none": [], "a word": "grid", "a matrix": np.ones((2, 2))},
    "estimates": {
        "a scalar": jnp.ones(()),
        "a matrix": jnp.ones((2, 2)),
        "none": jnp.ones(0),
        "a list": [1.0],
        "integers": jnp.ones(3, int),
        "None": None,
    },
    "metrics": {"None": None, "none": {}, "the loss alone": {"loss": 1.0}, "a number": 1.0, "a word": "loss"},
    "results": {"none": (), "None": (None,), "images": (IMAGES,), "a word": ("fgsm",), "of other samples": None},
    "attacks": {"none": {}, "a list": [attacks.fgsm], "None": None, "a word": "fgsm", "a name in it": {"fgsm": "fgsm"}},
    "vjp": {"None": None, "3": 3, "a word": "vjp", "a list": [], "an array": np.ones(3)},
    "criterion": {
        "None": None,
        "a number": 3,
        "a word": "top_k",
        "its maker": attacks.criteria.top_k,
        "of one argument": lambda z: z[:, 0],
        "gives [B, C]": lambda z, y: z,
        "more classes than there are": attacks.criteria.top_k(4),
    },
    "target": {
        "a column": Y[:, None],
        "one too few": Y[:4],
        "floats": Y.astype(jnp.float32),
        "-1": Y.at[0].set(-1),
        "C": Y.at[0].set(4),
        "one that is C": 4,
        "a word": "cat",
    },
    "entries": {
        "a list": [1.0],
        "a word": "x",
        "None": None,
        "integers": np.ones((5, 6), int),
        "a scalar": np.float32(1),
    },
}
VJP = jax.vjp(f, X)[1]
STATE = training.init_state(W, SGD, KEY)


class Spec(NamedTuple):
    """A right call, function(**arguments), and the kind of each argument that is tried."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    kinds: dict[str, str]


def spec(function, arguments, /, **kinds):
    """A Spec by keywords."""
    return Spec(function, arguments, kinds)


FX, FXK, FXY = {"f": f, "x": X}, {"f": f, "x": X, "key": KEY}, {"f": f, "x": X, "y": Y}
FXYK = FXY | {"key": KEY}
GOAL = {"criterion": "criterion", "target": "target"}
XK = {"x": "x", "key": "key"}
XY = {"x": "x", "y": "labels", "bounds": "bounds", **GOAL}
XYK = XY | {"key": "key"}
IMAGE = {"f": f, "x": IMAGES, "y": YI, "key": KEY}
LOSS = {"penalty": "function", "lambda_jr": "not below 0", "preprocess": "function", "perturb": "function"}
_BASE_LOSS = {"apply": APPLY, "penalty": penalties.exact(), "lambda_jr": 0.1, "preprocess": jnp.tanh, "perturb": None}


@functools.cache
def steps(name, loss=None):
    """One compiled step for all wrong calls."""
    loss = loss or supervised.classification_loss(APPLY, lambda_jr=0.1, penalty=penalties.exact())
    return getattr(training, name)(loss, SGD, donate=False)


def step_of(batch, state=STATE):
    return steps("make_train_step")(state, batch)


def steps_of(data, indices, state=STATE):
    return steps("make_train_steps")(state, data, indices)


def report_of(epsilon, budget, x=X, y=Y, key=KEY, sigmas=(0.1,)):
    """A report of a linear model."""
    return evaluation.report(lambda x: x @ W, x, y, key, epsilon=epsilon, sigmas=sigmas, budget=budget, progress=False)


def divided(batch, backend="jit"):
    """A step over one device more than there are rows."""
    mesh = sharding.data_mesh(jax.devices()[: 2 if len(jax.devices()) > 1 else 1])
    loss = supervised.classification_loss(APPLY, lambda_jr=0.1)
    return training.make_train_step(loss, SGD, mesh=mesh, backend=backend, donate=False)(STATE, batch)


def loss_of(make, image=X):
    """(label, weight, mask) -> the value of a loss, called directly."""
    loss = make(APPLY)
    return lambda **given: loss(W, STATE, {"image": image} | given, KEYS)[0]


TOKENS = jnp.stack([X, X], axis=1)
PIXELS = np.zeros((4, 6, 3), np.uint8)
PNG = datasets.images.encoded(PIXELS)
RECORDS = [{"image": PNG, "label": i} for i in range(3)]
TRANSFORM = datasets.images.stored

SPECS: dict[str, Spec] = {
    "exact_frobenius_sq": spec(jr.exact_frobenius_sq, FX, x="x", mode="choice", chunk_size="optional count"),
    "projected_frobenius_sq": spec(jr.projected_frobenius_sq, FXK, **XK, num_projections="count", probe="choice"),
    "rows_are_independent": spec(jr.rows_are_independent, FXK, x="x", key="one key", tolerance="not below 0"),
    "projection_variance": spec(
        jr.projection_variance, {"gram": W.T @ W}, gram="square", num_projections="count", probe="choice"
    ),
    "value_and_penalty": spec(
        jr.value_and_penalty,
        FXK,
        **XK,
        num_projections="count",
        probe="choice",
        sample_fraction="part of 1",
        chunk_size="optional count",
    ),
    "value_and_exact_penalty": spec(jr.value_and_exact_penalty, FX, x="x", chunk_size="optional count"),
    "jacobian.exact_from_vjp": spec(
        lambda x, vjp=VJP, **o: jr.jacobian.exact_from_vjp(f(X), vjp, x, **o),
        {"x": X},
        vjp="vjp",
        x="x",
        chunk_size="optional count",
    ),
    "jacobian.projected_from_vjp": spec(
        lambda x, key, vjp=VJP, **o: jr.jacobian.projected_from_vjp(f(X), vjp, x, key, **o),
        {"x": X, "key": KEY},
        vjp="vjp",
        **XK,
        num_projections="count",
        probe="choice",
    ),
    "joint_loss": spec(
        jr.joint_loss, {"supervised": 1.0, "penalty": 1.0, "lambda_jr": 0.1}, lambda_jr="coefficient", lambda_wd="decay"
    ),
    "probes.sample_probes": spec(
        probes.sample_probes,
        {"key": KEY, "batch": 5, "dimension": 4, "num_projections": 1, "probe": "sphere"},
        key="key",
        num_projections="count",
        probe="choice",
    ),
    "penalties.projected": spec(
        penalties.projected, {}, num_projections="count", probe="choice", chunk_size="optional count"
    ),
    "penalties.exact": spec(penalties.exact, {}, chunk_size="optional count"),
    "penalties.of": spec(penalties.of, {"function": relatives.noise_consistency, "sigma": 0.1}, function="function"),
    "penalties.on_part": spec(penalties.on_part, {"fraction": 0.5}, fraction="part of 1", penalty="penalty"),
    "penalties.of_model": spec(penalties.of_model, {"apply": APPLY}, apply="apply", penalty="penalty"),
    "supervised_loss": spec(
        supervised.supervised_loss,
        _BASE_LOSS | {"objective": supervised.squared_error},
        apply="apply",
        penalty="penalty",
        perturb="optional function",
        objective="function",
        lambda_jr="not below 0",
        preprocess="optional function",
    ),
    "classification_loss": spec(
        supervised.classification_loss,
        _BASE_LOSS,
        apply="apply",
        penalty="penalty",
        lambda_jr="not below 0",
        label_smoothing="part of 1",
    ),
    "regression_loss": spec(
        supervised.regression_loss, _BASE_LOSS, apply="apply", penalty="penalty", lambda_jr="not below 0"
    ),
    "multi_label_loss": spec(
        supervised.multi_label_loss, _BASE_LOSS, apply="apply", penalty="penalty", lambda_jr="not below 0"
    ),
    "supervised.cross_entropy": spec(
        lambda label: supervised.cross_entropy(f(X), {"label": label}), {"label": Y}, label="labels"
    ),
    "supervised.squared_error": spec(
        lambda label: supervised.squared_error(f(X), {"label": label}), {"label": f(X)}, label="targets"
    ),
    "supervised.binary_cross_entropy": spec(
        lambda label: supervised.binary_cross_entropy(f(X), {"label": label}), {"label": f(X) > 0}, label="shares"
    ),
    "accumulation.every": spec(
        accumulation.every, {"period": 2, "rare": APPLY, "usual": APPLY}, period="count", rare="loss", usual="loss"
    ),
    "accumulation.lazily": spec(
        accumulation.lazily,
        {"period": 2, "loss": supervised.classification_loss(APPLY, lambda_jr=0.1)},
        period="count",
        loss="function",
    ),
    "accumulation.in_parts": spec(
        accumulation.in_parts, {"part_size": 2, "loss": APPLY}, part_size="count", loss="loss"
    ),
    "input_gradient_penalty": spec(relatives.input_gradient_penalty, FXY, x="x", y="labels", norm="choice"),
    "noise_consistency": spec(relatives.noise_consistency, FXK | {"sigma": 0.1}, **XK, sigma="above 0"),
    "first_order_frobenius_sq": spec(relatives.first_order_frobenius_sq, FXK, **XK, step="above 0"),
    "spectral_norm_sq": spec(relatives.spectral_norm_sq, FXK, **XK, num_iterations="count"),
    "target_jacobian_sq": spec(
        relatives.target_jacobian_sq,
        FXK | {"target": jnp.ones((4, 6)), "num_projections": 1},
        x="x",
        key="key",
        target="target",
        num_projections="optional count",
    ),
    "layerwise_frobenius_sq": spec(
        relatives.layerwise_frobenius_sq,
        {"layers": [f], "x": X, "key": KEY},
        **XK,
        num_projections="count",
        layers="functions",
    ),
    "equivalent_noise": spec(schedules.equivalent_noise, {"lambda_jr": 0.1}, lambda_jr="not below 0", std="above 0"),
    "suggest_lambda": spec(schedules.suggest_lambda, {"noise": 0.1}, noise="not below 0", std="above 0"),
    "lambda_ramp": spec(
        schedules.lambda_ramp, {"final": 0.1, "num_steps": 5}, final="not below 0", num_steps="count", start="start"
    ),
    "target_norm": spec(
        schedules.target_norm,
        {"norm": 2.0},
        norm="above 0",
        rate="part of 1",
        decay="part of 1",
        start="above 0",
    ),
    "training.init_state": spec(
        training.init_state, {"params": W, "optimizer": SGD, "key": KEY}, key="one key", optimizer="optimizer"
    ),
    "training.make_train_step": spec(
        training.make_train_step,
        {"loss": APPLY, "optimizer": SGD},
        loss="loss",
        optimizer="optimizer",
        backend="choice",
        mesh="no mesh at all",
    ),
    "training.quench": spec(
        training.quench, {"initial": 0.1, "boundaries": [5]}, initial="above 0", factor="above 0", boundaries="steps"
    ),
    "training.sgd": spec(
        training.sgd,
        {"learning_rate": 0.1},
        learning_rate="not below 0",
        momentum="momentum",
        weight_decay="not below 0",
    ),
    "sharding.map_over_devices": spec(
        sharding.map_over_devices,
        {"body": lambda state, batch, axis_name: (state, {}), "mesh": None},
        body="body",
        backend="choice",
        mesh="no mesh at all",
    ),
    "sharding.map_over_members": spec(
        sharding.map_over_members,
        {"train": lambda state, data, indices: (state, {}), "mesh": None},
        train="body",
        backend="choice",
        mesh="no mesh at all",
    ),
    "precision.computed_in": spec(
        precision.computed_in, {"dtype": jnp.bfloat16, "apply": APPLY}, dtype="float type", apply="apply"
    ),
    "corruptions.corrupted": spec(
        corruptions.corrupted,
        {"name": "fog", "image": IMAGES, "key": KEY, "severity": 3},
        name="choice",
        image="corrupted images",
        key="key",
        severity="severity",
    ),
    "corruptions.corruption": spec(corruptions.corruption, {"name": "fog"}, name="choice"),
    "evaluation.report": spec(
        report_of,
        {"epsilon": {"linf": 0.1}, "budget": reporting.quick},
        epsilon="radii",
        budget="budget",
        x="samples",
        y="samples",
        key="one key for all",
        sigmas="deviations",
    ),
    "keys.sample_keys": spec(keys.sample_keys, {"key": KEY, "batch": 5}, key="key", batch="count from 0"),
    "keys.normal_like": spec(keys.normal_like, {"key": KEY, "x": X}, key="key", x="entries"),
    "cyclopropagation.penalty_and_grad": spec(
        cyclopropagation.penalty_and_grad,
        {"params": LAYERS, "x": X, "key": KEY, "num_projections": 1},
        key="key",
        params="layers",
        x="matrix",
        num_projections="optional count",
        probe="choice",
        chunk_size="optional count",
        activation="activation",
        last="activation",
    ),
    "cyclopropagation.cyclopropagated_penalty": spec(
        cyclopropagation.cyclopropagated_penalty,
        {"params": LAYERS, "x": X, "key": KEY, "num_projections": 1},
        params="layers",
        x="matrix",
        num_projections="optional count",
        probe="choice",
        chunk_size="optional count",
        activation="activation",
    ),
    "host_memory.keep_freed_memory": spec(host_memory.keep_freed_memory, {}, limit="memory"),
    "interop.from_function": spec(interop.from_function, {"f": f, "params": {}}, f="function"),
    "interop.from_linen": spec(interop.from_linen, {"module": None, "variables": {}}, module="model"),
    "interop.from_nnx": spec(interop.from_nnx, {"model": None}, model="model"),
    "interop.from_equinox": spec(interop.from_equinox, {"model": None}, model="model"),
    "interop.from_haiku": spec(interop.from_haiku, {"transformed": None, "params": {}}, transformed="model"),
    **{
        name: spec(
            getattr(pooled_convolution, name),
            {"x": jnp.ones((1, 6, 6, 2)), "w": jnp.ones((3, 3, 1, 2))},
            x="entries",
            w="entries",
            window="window",
        )
        for name in ("conv_max_pool", "lax_conv_max_pool")
    },
    "max_pool": spec(convolution.max_pool, {"x": IMAGES, "window_shape": (2, 2), "strides": (2, 2)}, strides="strides"),
    "datasets.load": spec(datasets.load, {"name": "digits", "split": "test"}, name="choice", split="choice"),
    "datasets.from_uint8": spec(datasets.from_uint8, {"images": np.ones((2, 2), np.uint8)}, images="bytes"),
    "datasets.resize_bilinear": spec(
        datasets.resize_bilinear, {"images": IMAGES, "size": 8}, images="image stack", size="size"
    ),
    "datasets.few_shot": spec(
        datasets.few_shot,
        {"labels": np.asarray([0, 0, 1, 1]), "samples_per_class": 1, "seed": 0},
        labels="few labels",
        samples_per_class="shots",
        seed="seed",
    ),
    "datasets.streams.train_batches": spec(
        datasets.streams.train_batches,
        {"source": RECORDS, "transform": TRANSFORM, "batch_size": 2},
        source="source",
        transform="function",
        batch_size="batch size of 3",
        seed="count from 0",
        num_workers="count from 0",
        shard="shard",
    ),
    "datasets.streams.eval_batches": spec(
        datasets.streams.eval_batches,
        {"source": RECORDS, "transform": TRANSFORM, "batch_size": 2},
        source="source",
        transform="function",
        batch_size="count",
        num_workers="count from 0",
        shard="shard",
    ),
    "datasets.streams.to_devices": spec(
        datasets.streams.to_devices, {"batches": [X]}, batches="no iterable", ahead="count", convert="function or None"
    ),
    "datasets.images.crop_box": spec(
        datasets.images.crop_box,
        {"height": 8, "width": 9, "rng": np.random.default_rng(0)},
        height="count",
        width="count",
        scale="share range",
        ratio="range",
    ),
    "datasets.images.augmented": spec(
        datasets.images.augmented,
        {"data": PNG, "rng": np.random.default_rng(0)},
        size="count",
        scale="share range",
        ratio="range",
    ),
    "datasets.images.centered": spec(datasets.images.centered, {"data": PNG}, size="count", shorter_side="count"),
    "datasets.images.stored": spec(datasets.images.stored, {"data": PNG}, channels="channels"),
    "datasets.images.decode": spec(datasets.images.decode, {"data": PNG}, channels="channels"),
    "datasets.images.encoded": spec(datasets.images.encoded, {"pixels": PIXELS}, pixels="pixels"),
    "datasets.Preprocessing": spec(datasets.Preprocessing, {"mean": 0.5, "std": 0.5}, mean="mean", std="std"),
    # losses in their calls, and train steps
    "classification_loss in a call": spec(
        loss_of(supervised.classification_loss),
        {"label": np.full((5, 4), 0.25, np.float32), "weight": np.ones(5, np.float32)},
        label="soft labels",
        weight="weight",
        mask="no mask",
    ),
    "classification_loss of tokens": spec(
        loss_of(supervised.classification_loss, TOKENS),
        {"label": np.zeros((5, 2), int), "mask": np.ones((5, 2), np.float32)},
        mask="mask",
    ),
    "regression_loss in a call": spec(
        loss_of(supervised.regression_loss),
        {"label": X[:, :4], "weight": np.ones(5, np.float32)},
        label="targets",
        weight="weight",
        mask="no mask",
    ),
    "multi_label_loss in a call": spec(
        loss_of(supervised.multi_label_loss),
        {"label": np.ones((5, 4), np.float32), "weight": np.ones(5, np.float32)},
        label="shares",
        weight="weight",
        mask="no mask",
    ),
    "training.make_train_step in a call": spec(step_of, {"batch": BATCH}, batch="batch", state="state"),
    "training.make_train_step over devices": spec(
        divided, {"batch": jax.tree.map(lambda leaf: leaf[:4], BATCH)}, batch="odd", backend="odd backend"
    ),
    "training.make_train_steps": spec(
        training.make_train_steps, {"loss": APPLY, "optimizer": SGD}, loss="loss", optimizer="optimizer"
    ),
    "training.make_train_steps in a call": spec(
        steps_of, {"data": BATCH, "indices": np.asarray([[0, 1]])}, data="data", indices="indices", state="state"
    ),
    "training.check_finite": spec(
        training.check_finite,
        {"metrics": {"loss": 1.0, "grad_norm": 1.0}, "last_step": 1},
        metrics="metrics",
        last_step="count from 0",
    ),
    "sharding.data_mesh": spec(sharding.data_mesh, {}, devices="devices"),
    "sharding.shard_batch": spec(
        sharding.shard_batch,
        {"batch": BATCH, "mesh": sharding.data_mesh(jax.devices()[:1])},
        batch="shards",
        mesh="mesh",
    ),
    "sharding.replicate": spec(
        sharding.replicate, {"tree": BATCH, "mesh": sharding.data_mesh(jax.devices()[:1])}, tree="tree", mesh="mesh"
    ),
    "sharding.row_keys": spec(
        sharding.row_keys, {"key": KEY, "rows": 3, "axis_name": None}, key="one key", rows="count from 0"
    ),
    "standard_error": spec(jr.standard_error, {"frobenius_sq": jnp.ones(3)}, frobenius_sq="estimates"),
    "centred": spec(relatives.centred, {"f": f}),
    "interop.bind": spec(interop.bind, {"apply": APPLY, "params": W}, apply="apply"),
    # models
    "models.initialize": spec(
        models.initialize, {"module": MODULE, "key": KEY, "x": X}, module="module", key="model key", x="entries"
    ),
    "models.train_mode": spec(models.train_mode, {"module": MODULE}, module="module"),
    "models.eval_mode": spec(models.eval_mode, {"module": MODULE}, module="module"),
    "models.held_statistics_mode": spec(models.held_statistics_mode, {"module": MODULE}, module="module"),
    "models.batch_statistics_mode": spec(models.batch_statistics_mode, {"module": MODULE}, module="module"),
    "models.predictor": spec(
        models.predictor,
        {"module": MODULE, "params": {}},
        module="module",
        preprocess="optional function",
    ),
    "models.MLP": spec(
        lambda x=X, **fields: models.MLP(**fields).init(KEY, x),
        {"features": (3, 4)},
        x="x",
        features="widths",
        dropout_rate="rate",
        initialization="choice",
        activation="function",
    ),
    "models.LeNet": spec(
        lambda x, **fields: jax.eval_shape(models.LeNet(**fields).init, KEY, x),
        {"x": jnp.ones((1, 28, 28, 1))},
        x="pictures",
        dropout_rate="rate",
        initialization="choice",
        num_classes="count",
    ),
    "models.DDNet": spec(
        lambda x, **fields: jax.eval_shape(models.DDNet(**fields).init, KEY, x),
        {"x": jnp.ones((1, 32, 32, 3))},
        x="pictures",
        dropout_rate="rate",
        initialization="choice",
        num_classes="count",
        activation="function",
    ),
    "models.ResNet18": spec(
        lambda x, **fields: jax.eval_shape(models.ResNet18(**fields).init, KEY, x),
        {"x": jnp.ones((1, 8, 8, 3)), "width": 4},
        x="flat pictures",
        variant="choice",
        width="count",
        num_classes="count",
    ),
    # planes, perceptrons, data, batches
    "decision_cells.adversarial_plane": spec(
        decision_cells.adversarial_plane,
        {"x": IMAGES[0], "x_adv_1": IMAGES[1], "x_adv_2": IMAGES[2]},
        x="sample",
        x_adv_1="sample",
        x_adv_2="other sample",
    ),
    "cyclopropagation.perceptron": spec(
        cyclopropagation.perceptron,
        {"params": LAYERS, "x": X},
        params="layers",
        x="matrix",
        activation="activation",
        last="activation",
    ),
    "cyclopropagation.activation_from": spec(cyclopropagation.activation_from, {"sigma": jnp.tanh}, sigma="sigma"),
    "datasets.prepare": spec(datasets.prepare, {"name": None}, name="name"),
    "datasets.epoch_permutation": spec(
        datasets.epoch_permutation,
        {"seed": 0, "epoch": 0, "n": 3},
        seed="count from 0",
        epoch="count from 0",
        n="count",
    ),
    "evaluation.norm_summary": spec(evaluation.norm_summary, {"norms": [1.0, 2.0]}, norms="distances"),
    "evaluation.map_batches": spec(
        lambda fn, f, x, **options: evaluation.map_batches(fn, f, x, **options),
        {"fn": jr.exact_frobenius_sq, "f": f, "x": X},
        fn="function",
        x="entries of rows",
        batch_size="count",
        progress="progress",
    ),
    "criteria.wrong_share": spec(attacks.criteria.wrong_share, {"share": 0.5}, share="part of 1"),
    "criteria.top_k": spec(attacks.criteria.top_k, {"k": 2}, k="count"),
    "criteria.moved": spec(attacks.criteria.moved, {"delta": 0.1}, delta="above 0"),
    "criteria.error_above": spec(attacks.criteria.error_above, {"delta": 0.1}, delta="above 0"),
    "criteria.of_margin": spec(
        lambda criterion: attacks.criteria.of_margin(criterion),
        {"criterion": lambda z, y: z[:, 0]},
        criterion="function",
    ),
    "best_of": spec(lambda results: attacks.best_of(*results), {"results": ()}, results="results"),
    # attacks and what stands on them
    "white_noise": spec(attacks.white_noise, FXYK | {"sigma": 0.1}, **XYK, sigma="not below 0"),
    "fgsm": spec(attacks.fgsm, FXY | {"epsilon": 0.1}, **XY, epsilon="not below 0", samples="optional count"),
    "pgd": spec(
        attacks.pgd,
        FXYK | {"epsilon": 0.1, "step_size": 0.1, "num_steps": 2, "random_start": True},
        **XYK,
        epsilon="not below 0",
        step_size="not below 0",
        num_steps="count",
        norm="choice",
        samples="optional count",
        trace="choice",
    ),
    "apgd": spec(
        attacks.apgd,
        FXYK | {"epsilon": 0.1, "num_steps": 3},
        **XYK,
        epsilon="not below 0",
        num_steps="count",
        num_restarts="count",
        num_targets="targets of ce",
        rho="part of 1",
        norm="choice",
        loss="choice",
    ),
    "square": spec(
        attacks.square,
        IMAGE | {"epsilon": 0.1, "num_queries": 2},
        y="labels",
        key="key",
        **GOAL,
        bounds="bounds",
        epsilon="not below 0",
        num_queries="count",
        initial_share="part of 1",
        norm="choice",
    ),
    "auto_attack": spec(
        attacks.auto_attack,
        IMAGE | {"epsilon": 0.1, "num_queries": 2},
        y="labels",
        key="key",
        **GOAL,
        bounds="bounds",
        epsilon="not below 0",
        num_queries="count",
        norm="choice",
    ),
    "standard_ensemble": spec(attacks.standard_ensemble, {}, norm="choice", num_queries="count"),
    "white_noise_distance": spec(
        attacks.white_noise_distance, FXYK, **XYK, step_size="optional size", num_steps="count"
    ),
    "fgsm_distance": spec(attacks.fgsm_distance, FXY, **XY, step_size="optional size", num_steps="count"),
    "pgd_distance": spec(
        attacks.pgd_distance, FXY, **XY, epsilon="optional radius", step_size="optional size", num_steps="count"
    ),
    "carlini_wagner": spec(
        attacks.carlini_wagner,
        FXY | {"num_steps": 2, "binary_search_steps": 1},
        **XY,
        num_steps="count",
        binary_search_steps="count",
        learning_rate="above 0",
        initial_const="optional size",
        confidence="not below 0",
        smoother="part of 1",
        adam_eps="above 0",
    ),
    "ddn": spec(
        attacks.ddn, FXYK | {"num_steps": 2}, **XYK, num_steps="count", init_epsilon="optional size", gamma="part of 1"
    ),
    "fab": spec(
        attacks.fab,
        FXY | {"num_steps": 2},
        **XY,
        norm="choice",
        num_targets="count",
        num_steps="count",
        overshoot="at least 1",
        alpha_max="part of 1",
        beta="part of 1",
    ),
    "adversarial_training.pgd": spec(
        adversarial_training.pgd,
        {"epsilon": 0.1},
        epsilon="not below 0",
        step_size="step size",
        num_steps="count",
        norm="choice",
        random_start="choice",
        random_epsilon="choice",
    ),
    "adversarial_training.trades": spec(
        adversarial_training.trades,
        FXK | {"epsilon": 0.1},
        **XK,
        epsilon="not below 0",
        step_size="step size",
        num_steps="count",
        norm="choice",
        bounds="bounds",
    ),
    "random_fgsm": spec(adversarial_training.random_fgsm, {}, max_epsilon="not below 0"),
    "random_fgsm in a call": spec(
        lambda f, image, label, keys: adversarial_training.random_fgsm()(f, image, label, keys),
        {"f": f, "image": X, "label": Y, "keys": KEYS},
        image="x",
        label="labels",
    ),
    "at_temperature": spec(
        adversarial_training.at_temperature,
        {"apply": APPLY, "temperature": 2.0},
        apply="apply",
        temperature="above 0",
    ),
    "soft_labels": spec(adversarial_training.soft_labels, FX | {"temperature": 2.0}, temperature="above 0"),
    "evaluation.accuracy": spec(evaluation.accuracy, FXY, y="labels", batch_size="count"),
    "evaluation.jacobian_norms": spec(evaluation.jacobian_norms, FX, x="x", batch_size="count"),
    "evaluation.run_attack": spec(
        evaluation.run_attack,
        {"attack": attacks.fgsm, "f": f, "x": X, "y": Y, "key": KEY, "epsilon": 0.1},
        attack="function",
        x="x",
        y="labels",
        key="key",
        epsilon="not below 0",
        batch_size="count",
        progress="progress",
    ),
    "evaluation.worst_case": spec(
        evaluation.worst_case,
        {"attacks": {"fgsm": attacks.fgsm}, "f": f, "x": X, "y": Y, "key": KEY, "epsilon": 0.1},
        attacks="attacks",
        x="x",
        y="labels",
        key="key",
        epsilon="not below 0",
        batch_size="count",
        progress="progress",
    ),
    "evaluation.fooling_curve": spec(
        evaluation.fooling_curve, {"distances": [0.0, 1.0], "grid": [0.5]}, distances="distances", grid="grid"
    ),
    "evaluation.robust_accuracy": spec(
        evaluation.robust_accuracy,
        {"distances": [0.0, 1.0], "epsilon": 0.5},
        distances="distances",
        epsilon="not below 0",
    ),
    "evaluation.fooled_within": spec(
        evaluation.fooled_within,
        {"distances": [0.0, 1.0], "epsilon": 0.5},
        distances="distances",
        epsilon="not below 0",
    ),
    "evaluation.median_distance": spec(
        evaluation.median_distance,
        {"distances": [0.0, 1.0]},
        distances="distances",
        resamples="count",
        confidence="part of 1",
        seed="seed",
    ),
    "masking.linearised_margin": spec(masking.linearised_margin, FXY, x="x", y="labels", norm="choice"),
    "masking.zero_gradient_share": spec(masking.zero_gradient_share, FXY, x="x", y="labels", batch_size="count"),
    "masking.checks": spec(
        masking.checks,
        FXYK | {"epsilon": 0.1, "num_steps": (1, 2), "num_queries": 2},
        x="x",
        y="labels",
        key="key",
        epsilon="above 0",
        norm="choice",
        num_steps="rising counts",
        num_queries="count",
        tolerance="not below 0",
        **GOAL,
        bounds="bounds",
        batch_size="count",
    ),
    "certify.noisy_counts": spec(
        certify.noisy_counts,
        FXK | {"sigma": 0.1, "num_samples": 3},
        **XK,
        sigma="above 0",
        num_samples="count",
        chunk_size="count",
    ),
    "certify.certify_smoothed": spec(
        certify.certify_smoothed,
        FXK | {"sigma": 0.1, "num_samples": 3, "num_selection": 2},
        x="x",
        key="one key",
        sigma="above 0",
        num_selection="count",
        num_samples="count",
        alpha="part of 1",
        batch_size="count",
        progress="progress",
    ),
    "certify.interval_bounds": spec(
        certify.interval_bounds, {"f": f, "low": X, "high": X + 0.1}, low="corner", high="upper corner"
    ),
    "certify.interval_radius": spec(certify.interval_radius, FXY, **XY, num_bisections="count", largest="above 0"),
    "decision_cells.random_plane": spec(
        decision_cells.random_plane, {"x": IMAGES[0], "key": KEY}, x="sample", key="one key"
    ),
    "decision_cells.decision_cells": spec(
        decision_cells.decision_cells,
        {"f": f, "plane": decision_cells.random_plane(IMAGES[0], KEY), "extent": 1.0, "resolution": 3},
        plane="plane",
        extent="above 0",
        resolution="count",
        batch_size="count",
    ),
    "decision_cells.boundary_distance": spec(
        decision_cells.boundary_distance,
        {"f": f, "plane": decision_cells.random_plane(IMAGES[0], KEY), "extent": 1.0, "num_rays": 2, "num_radii": 2},
        plane="plane",
        extent="above 0",
        num_rays="count",
        num_radii="count",
        batch_size="count",
    ),
}

KINDS["step size"] = {name: value for name, value in KINDS["above 0"].items() if value is not None}
KINDS["other sample"] = KINDS["sample"] | {"of another shape": IMAGES[0, :5], "on a line": 2 * IMAGES[1] - IMAGES[0]}
KINDS["data"] = {name: value for name, value in KINDS["batch"].items() if name not in ("a label C", "a pair")}
KINDS["shards"] = {name: KINDS["batch"][name] for name in list(KINDS["batch"])[1:8]}
KINDS["flat pictures"] = {name: value for name, value in KINDS["pictures"].items() if name != "too small"}
KINDS["entries of rows"] = {
    name: KINDS["entries"][name] for name in ("a list", "a word", "None", "integers", "a scalar")
}
KINDS["results"]["of other samples"] = tuple(attacks.fgsm(f, x, y, epsilon=0.1) for x, y in ((X, Y), (X[:3], Y[:3])))
KINDS |= {
    "square": {
        "a list": [[1.0]],
        "a vector": jnp.ones(4),
        "not square": jnp.ones((3, 4)),
        "a stack of those": jnp.ones((2, 3, 4)),
    },
    "coefficient": {"-1": -1.0, "NaN": NAN, "infinity": INF, "'1'": "1", "None": None},
    "decay": {"-1": -1.0, "NaN": NAN, "'1'": "1", "0.1 without params": 0.1},
    "targets": {
        "of another shape": jnp.ones(5),
        "one column": jnp.ones((5, 1)),
        "a word": "y",
        "NaN": jnp.full((5, 4), NAN),
        "infinity": jnp.full((5, 4), INF),
        "complex": jnp.ones((5, 4), complex),
        "None": None,
    },
    "targets of ce": COUNT | {"2, with loss 'ce'": 2},
    "body": {
        "None": None,
        "a number": 3,
        "a word": "body",
        "of two arguments": lambda state, batch: state,
        "a list": [],
    },
    "no mesh at all": {"a number": 2, "a word": "data", "devices": jax.devices()[:1]},
    "source": {"none": [], "None": None, "an iterator": iter([]), "3": 3},
    "batch size of 3": COUNT | {"4": 4, "None": None},
    "shard": {
        "2": 2,
        "of one": (0,),
        "of three": (0, 1, 2),
        "(2, 2)": (2, 2),
        "(-1, 2)": (-1, 2),
        "of 3 for 2": (0, 3),
    },
    "no iterable": {"None": None, "3": 3},
    "function or None": {"3": 3, "a word": "tanh", "of two arguments": lambda a, b: a},
    "range": {"None": None, "a number": 0.5, "a list": [0.5, 1.0], "of three": (0.1, 0.2, 0.3), "reversed": (1.0, 0.5)}
    | {"from 0": (0.0, 1.0), "NaN": (NAN, 1.0), "to infinity": (0.5, INF), "words": ("a", "b")},
    "share range": {"above 1": (0.5, 1.5), "reversed": (1.0, 0.5), "from 0": (0.0, 1.0), "a number": 0.5},
    "channels": {"0": 0, "2": 2, "4": 4, "None": None, "'3'": "3"},
    "pixels": {
        "floats": np.zeros((4, 6, 3)),
        "without channels": np.zeros((4, 6), np.uint8),
        "of 2 channels": np.zeros((4, 6, 2), np.uint8),
        "a list": [1],
        "None": None,
    },
    "few labels": {"none": [], "a matrix": [[1]], "floats": [0.5, 1.5], "words": ["a", "b"], "None": None},
    "mean": {"NaN": NAN, "infinity": INF, "a word": "m", "two, for one std": (0.5, 0.5), "None": None},
    "corner": {"a list": [1.0], "None": None, "integers": np.ones((5, 6), int), "above the upper": X + 0.2},
    "odd": {"5 rows over 2": BATCH, "1 row over 2": jax.tree.map(lambda leaf: leaf[:1], BATCH)},
    "odd backend": {"'pmap2'": "pmap2", "None": None, "3": 3},
    "count from 0": {"-1": -1, "1.5": 1.5, "True": True, "'2'": "2", "NaN": NAN, "None": None},
    "model key": {"None": None, "0": 0, "a float": 1.0, "a word": "key", "three words": np.zeros(3, np.uint32)},
    "widths": {"none": (), "0": (0,), "-1": (3, -1), "1.5": (1.5,), "one number": 3, "a word": "ab"},
    "tree": {
        "a word": "state",
        "a word in it": {"w": "a"},
        "a function": {"f": jnp.tanh},
        "an object": object(),
        "a set": {1, 2},
    },
    "name": {"None": None, "'nothing'": "nothing", "''": "", "3": 3, "'digits'": "digits"},
    "shares": {
        "of another shape": jnp.ones(5),
        "a word": "y",
        "2": 2 * jnp.ones((5, 4)),
        "-1": -jnp.ones((5, 4)),
        "NaN": NAN * jnp.ones((5, 4)),
    },
    "target": {"of another shape": jnp.ones((6, 4)), "a vector": jnp.ones(6), "a scalar": jnp.ones(())},
    "functions": {"none": [], "one alone": f, "a number in it": [3], "a number": 3, "None": None, "an array": W},
    "steps": {"a number": 3, "None": None, "a dict": {2: 0.5}, "a word": "12", "-1": [-1], "1.5": [1.5]},
    "rising counts": {"a number": 2, "None": None, "none": (), "falling": (3, 1), "0": (0, 1), "a word": "12"},
    "deviations": {"a number": 0.1, "None": None, "a word": "ab", "-1": (0.1, -1.0), "NaN": (NAN,)},
    "one key for all": {"None": None, "0": 0, "two raw words": np.zeros(2, np.uint32), "5": jax.random.split(KEY, 5)},
    "samples": {"None": None, "a dict": {"a": X}, "a number": 3.0, "a word": "image"},
    "progress": {"True": True, "a word": "bar", "a number": 3, "without an argument": lambda: None},
    "optional function": {"3": 3, "a word": "tanh", "a list": []},
    "start": {"-1": -1, "1.5": 1.5, "True": True, "'2'": "2", "NaN": NAN},
    "momentum": {"-1": -1.0, "NaN": NAN, "2": 2.0, "'1'": "1"},
    "memory": {"0": 0, "-1": -1, "2 ** 31": 2**31, "1.5": 1.5, "NaN": NAN},
    "model": {"None": None, "3": 3, "a function": jnp.tanh, "a word": "model", "parameters": {"w": W}},
    "window": {"0": 0, "-1": -1, "1.5": 1.5, "too large": 9, "True": True},
    "strides": {"one": (2,), "three": (1, 1, 1)},
    "bytes": {
        "bools": np.ones((2, 2), bool),
        "floats": np.ones((2, 2), np.float32),
        "int64": np.ones((2, 2), np.int64),
        "a list": [1],
        "None": None,
    },
    "image stack": {"one image": IMAGES[0], "int32": np.ones((1, 2, 2, 1), np.int32), "a vector": jnp.ones(3)},
    "size": {"0": 0, "-1": -1, "(0, 3)": (0, 3), "1.5": 1.5},
    "shots": {"0": 0, "-1": -1, "3, of 2": 3, "1.5": 1.5},
    "std": {"0": 0.0, "-1": -1.0, "NaN": NAN, "two, for one mean": (0.5, 0.5)},
    "at least 1": {"0.9": 0.9, "-1": -1.0, "NaN": NAN, "infinity": INF, "'1'": "1"},
    "distances": {"NaN": [NAN], "negative": [-1.0], "none": [], "a word": "d", "a matrix": [[1.0]]},
    "upper corner": {"below the lower": X - 0.1, "NaN": X * NAN, "of another shape": X[:2]},
}


for _name, _spec in SPECS.items():  # every f is tried
    if "f" in _spec.arguments and "f" not in _spec.kinds:
        SPECS[_name] = _spec._replace(kinds={"f": "function"} | _spec.kinds)


# loops on the host: the argument that is traced, by the name of the section
HOST = {
    "evaluation.accuracy": "x",
    "evaluation.jacobian_norms": "x",
    "evaluation.run_attack": "x",
    "evaluation.worst_case": "x",
    "evaluation.map_batches": "x",
    "evaluation.fooling_curve": "distances",
    "evaluation.robust_accuracy": "distances",
    "evaluation.fooled_within": "distances",
    "evaluation.median_distance": "distances",
    "evaluation.norm_summary": "norms",
    "masking.zero_gradient_share": "x",
    "masking.checks": "x",
    "certify.certify_smoothed": "x",
    "training.check_finite": "metrics",
    "sharding.shard_batch": "batch",
    "datasets.few_shot": "labels",
}
TRACED = "traced, under jax.jit"


class Answer(NamedTuple):
    """What a wrong call met."""

    name: str
    argument: str
    value: str
    error: str  # type of the exception; "" where it was accepted
    message: str


def wrong_calls(name: str) -> Iterator[Answer]:
    """Every wrong call of one function, with the answer."""
    spec = SPECS[name]
    for argument, kind in spec.kinds.items():
        for label, value in KINDS[kind].items():
            yield answer(name, argument, label, value)
    if name in HOST:
        yield answer(name, HOST[name], TRACED, spec.arguments[HOST[name]])


def answer(name: str, argument: str, label: str, value: Any) -> Answer:
    """One wrong call."""
    spec = SPECS[name]
    with warnings.catch_warnings(), contextlib.suppress(StopIteration):
        warnings.simplefilter("ignore")
        try:
            if label == TRACED:
                value = jax.tree.map(jnp.asarray, value)
                jax.jit(lambda value: jnp.zeros(len(spec.function(**spec.arguments | {argument: value}))))(value)
            else:
                jax.block_until_ready(spec.function(**spec.arguments | {argument: value}))
        except Exception as error:
            return Answer(name, argument, label, type(error).__name__, str(error))
    return Answer(name, argument, label, "", "accepted")


def page() -> str:
    """docs/errors.md: what each function answers to wrong values, as the library gives it."""
    lines = [
        "# Wrong calls and what the library says",
        "",
        "Made by `python -m tests.bad_input` from the calls in that file; `tests/test_bad_input.py` makes them again.",
        "Each function below is called with values that it must refuse. Each answer names the argument, what",
        "came and what was expected. Functions that loop on the host refuse traced values; all others can be",
        "transformed by jit, vmap, grad, scan and shard_map. Values are looked at where they are concrete;",
        "`evaluation.run_attack`, `worst_case`, `masking.checks` and the train steps look before they compile, and",
        "say the same words.",
    ]
    for name in SPECS:
        lines += ["", f"## {name}", "", "| argument | value | answer |", "|---|---|---|"]
        lines += [f"| {a.argument} | {a.value} | {a.error}: {_short(a.message)} |" for a in wrong_calls(name)]
    return "\n".join(lines) + "\n"


def _short(message: str) -> str:
    message = re.sub(" at 0x[0-9a-f]+", "", " ".join(message.split()).replace("|", "\\|"))  # the same in each run
    return message if len(message) <= 160 else message[:157] + "..."


if __name__ == "__main__":
    from pathlib import Path

    (Path(__file__).resolve().parents[1] / "docs" / "errors.md").write_text(page())
