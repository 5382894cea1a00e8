"""Does the missing kink term matter? ReLU, GELU and tanh; Jacobian penalty against noise consistency at equal cost.

Command:    python -m experiments relu_study
Asks:       the gradient of ||J||_F^2 by automatic differentiation is blind to the motion of kinks, that of noise
            consistency is not; both cost two plain steps. Does a ReLU network lose by the first?
Time:       2 CPU cores: about 10 minutes; can be killed.
Leaves:     experiments/results/relu_study/ACTIVATION-PENALTY.json, by seed.
"""

import dataclasses
import itertools
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.lab import options, record, runner
from experiments.lab.batches import reshuffled
from experiments.lab.cells import fill_file
from experiments.lab.problems import MNIST_LENET, images
from experiments.page import results
from jacreg_jax import attacks, evaluation, exact_frobenius_sq, penalties, relatives, training
from jacreg_jax.models import MLP, initialize, predictor, train_mode

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "tanh": nn.tanh}


@dataclasses.dataclass(frozen=True)
class Config(options.Options):
    """A perceptron, its penalty, and how it is trained and measured."""

    activations: tuple[Literal["relu", "gelu", "tanh"], ...] = tuple(ACTIVATIONS)
    penalties: tuple[Literal["none", "Jacobian", "noise"], ...] = ("none", "Jacobian", "noise")
    widths: tuple[int, ...] = (200, 200, 10)
    lambda_jr: float = 0.01
    sigma: float = 0.3
    """Of noise consistency, in preprocessed units; 0.3 are 0.09 of the pixel range."""
    num_steps: int = 5000
    learning_rate: float = 0.05
    seeds: int = 3
    num_attacked: int = 500
    norms: int = 2000
    """Test samples that norms are averaged over."""


QUICK = options.QUICK | {
    "activations": ("relu",),
    "penalties": ("noise",),
    "num_attacked": 10,
    "norms": 50,
}


def train(config: Config, settings: dict, seed: int, data):
    """Parameters after num_steps, the learning rate quenched at two thirds; goes on from the last checkpoint."""
    module, penalty = network(settings), settings["penalty"]
    quiet = penalties.of(relatives.noise_consistency, sigma=config.sigma)
    loss = training.classification_loss(
        train_mode(module),
        penalty=quiet if penalty == "noise" else penalties.projected(),
        lambda_jr=0.0 if penalty == "none" else config.lambda_jr,
        preprocess=MNIST_LENET.preprocessing.normalize,
    )
    optimizer = training.sgd(training.quench(config.learning_rate, [2 * config.num_steps // 3]))
    params, model_state = initialize(module, jax.random.key(seed), data["image"][:1])
    state = training.init_state(params, optimizer, jax.random.key(seed + 1), model_state)
    rows = partial(reshuffled, seed, batch_size=100, num_samples=len(data["label"]))
    folder = config.runs / "relu_study" / f"{record.digest(settings)}-{seed}"
    with record.run_folder(folder, settings):
        state, _ = runner.train(
            training.make_train_steps(loss, optimizer),
            state,
            data,
            rows,
            num_steps=config.num_steps,
            dispatch=config.dispatch,
            label=f"{settings['activation']}, {penalty}, seed {seed}",
            folder=folder,
            checkpoint_every=config.checkpoint_every,
        )
    return state.params


def network(settings: dict) -> MLP:
    """The untrained network."""
    return MLP(tuple(settings["widths"]), activation=ACTIVATIONS[settings["activation"]])


DDN = partial(attacks.ddn, num_steps=200)


def measure(config: Config, settings: dict, params, seed: int, test) -> dict:
    """Accuracy, the norm by differentiation and by finite noise, accuracy under noise, median distance by DDN."""
    module = network(settings)
    f, raw = predictor(module, params), predictor(module, params, preprocess=MNIST_LENET.preprocessing.normalize)
    x, key = MNIST_LENET.preprocessing.normalize(test["image"][: config.norms]), jax.random.key(seed)
    few = test["image"][: config.num_attacked], test["label"][: config.num_attacked]
    attack = lambda attack, **size: evaluation.run_attack(attack, raw, *few, key, **size)
    return {
        "accuracy": evaluation.accuracy(raw, test["image"], test["label"]),
        "norm_sq": float(np.mean(evaluation.map_batches(exact_frobenius_sq, f, x))),
        "finite_sq": float(jnp.mean(relatives.noise_consistency(f, x, key, sigma=config.sigma))),
        "accuracy_noise_0.3": float(1 - attack(attacks.white_noise, sigma=0.3).success.mean()),
        "ddn": float(np.median(attack(DDN).distance)),
    }


def files(config: Config) -> dict[str, dict]:
    """What the numbers of each result file depend on."""
    names = ("widths", "lambda_jr", "sigma", "num_steps", "learning_rate", "num_attacked", "norms")
    fixed = {name: getattr(config, name) for name in names}
    pairs = itertools.product(config.activations, config.penalties)
    return {f"relu_study/{a}-{p}": {"activation": a, "penalty": p} | fixed for a, p in pairs}


def run(config: Config):
    """Train and measure what the results lack."""
    for name, settings in files(config).items():

        def compute(seeds, settings=settings):
            data, test = (images(MNIST_LENET, split, config.data_dir) for split in ("train", "test"))
            for seed in seeds:
                yield seed, measure(config, settings, train(config, settings, seed, data), seed, test)

        fill_file(config.results / f"{name}.json", settings, range(config.seeds), compute)


def table() -> str:
    """What each penalty does to each activation."""
    rows = []
    for activation in ACTIVATIONS:
        for penalty, label in (("none", "none"), ("Jacobian", "Jacobian, n = 1"), ("noise", "noise consistency")):
            found = results.models(f"relu_study/{activation}-{penalty}")
            values = [
                results.spread(list(map(results.percent, found)), 2),
                *(results.spread([m[k] ** 0.5 for m in found], 2) for k in ("norm_sq", "finite_sq")),
                results.spread([100 * m["accuracy_noise_0.3"] for m in found], 1),
                results.spread([m["ddn"] for m in found], 3),
            ]
            rows.append([activation, label, *values])
    header = ["activation", "penalty", "accuracy, %", "‖J‖_F", "by noise", "under noise 0.3, %", "DDN median L2"]
    return results.table(header, rows)


TABLES = {"relu_study": table}
