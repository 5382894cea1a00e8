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

from experiments import record, runner, zoo
from jacreg_jax import attacks, evaluation, exact_frobenius_sq, relatives, training
from jacreg_jax.models import MLP, initialize, predictor, train_mode

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "tanh": nn.tanh}


@dataclasses.dataclass(frozen=True)
class Config(zoo.Options):
    """Options of relu_study."""

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


QUICK = zoo.QUICK | {
    "activations": ("relu",),
    "penalties": ("noise",),
    "seeds": 1,
    "num_steps": 20,
    "num_attacked": 10,
    "norms": 50,
}


def train(config: Config, settings: dict, seed: int, data):
    """Parameters after num_steps, the learning rate quenched at two thirds; goes on from the last checkpoint."""
    module, penalty = network(settings), settings["penalty"]
    relative = None
    if penalty == "noise":
        relative = lambda f, x, label, keys: relatives.noise_consistency(f, x, keys, sigma=config.sigma)
    loss = training.classification_loss(
        train_mode(module),
        lambda_jr=0.0 if penalty == "none" else config.lambda_jr,
        preprocess=zoo.PREPROCESSING.normalize,
        relative=relative,
    )
    optimizer = training.sgd(training.quench(config.learning_rate, [2 * config.num_steps // 3]))
    params, model_state = initialize(module, jax.random.key(seed), data["image"][:1])
    state = training.init_state(params, optimizer, jax.random.key(seed + 1), model_state)
    rows = partial(runner.batch_indices, seed, batch_size=100, num_samples=len(data["label"]))
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


def ddn(f, x, y, keys):
    """DDN, 200 steps."""
    return attacks.ddn(f, x, y, keys, num_steps=200)


def noisy(f, x, y, keys, sigma):
    """White noise of standard deviation sigma, in raw pixels."""
    return attacks.white_noise(f, x, y, keys, sigma=sigma)


def measure(config: Config, settings: dict, params, seed: int, test) -> dict:
    """Accuracy, the norm by differentiation and by finite noise, accuracy under noise, median distance by DDN."""
    module = network(settings)
    f, raw = predictor(module, params), predictor(module, params, preprocess=zoo.PREPROCESSING.normalize)
    x, key = zoo.PREPROCESSING.normalize(test["image"][: config.norms]), jax.random.key(seed)
    few = test["image"][: config.num_attacked], test["label"][: config.num_attacked]
    return {
        "accuracy": evaluation.accuracy(raw, test["image"], test["label"]),
        "norm_sq": float(np.mean(evaluation.map_batches(exact_frobenius_sq, f, x))),
        "finite_sq": float(jnp.mean(relatives.noise_consistency(f, x, key, sigma=config.sigma))),
        "accuracy_noise_0.3": float(1 - evaluation.run_attack(noisy, raw, *few, key, 0.3).success.mean()),
        "ddn": float(np.median(evaluation.run_attack(ddn, raw, *few, key).distance)),
    }


def run(config: Config):
    """Train and measure what the results lack."""
    data, test = (zoo.images("mnist", split, config.data_dir) for split in ("train", "test"))
    names = ("widths", "lambda_jr", "sigma", "num_steps", "learning_rate", "num_attacked", "norms")
    for activation, penalty in itertools.product(config.activations, config.penalties):
        settings = {"activation": activation, "penalty": penalty} | {name: getattr(config, name) for name in names}

        def compute(seeds, settings=settings):
            for seed in seeds:
                yield seed, measure(config, settings, train(config, settings, seed, data), seed, test)

        path = config.out / "relu_study" / f"{activation}-{penalty}.json"
        models = record.fill(path, settings, range(config.seeds), compute)["models"].values()
        mean = {k: round(float(np.mean([m[k] for m in models])), 4) for k in next(iter(models))}
        print(f"{activation}, {penalty}: {mean}")
