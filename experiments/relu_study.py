"""Does the missing kink term matter? ReLU, GELU and tanh; Jacobian penalty against noise consistency at equal cost.

Command:    python -m experiments relu_study
Asks:       the gradient of ||J||_F^2 by automatic differentiation is blind to the motion of kinks, that of noise
            consistency is not; both cost two plain steps. Does a ReLU network lose by the first?
Time:       2 CPU cores: about 10 minutes.
Leaves:     experiments/results/relu_study/ACTIVATION-PENALTY.json, by seed.
"""

import dataclasses
from functools import partial
from pathlib import Path
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


QUICK = {
    "activations": ("relu",),
    "penalties": ("noise",),
    "seeds": 1,
    "num_steps": 20,
    "num_attacked": 10,
    "norms": 50,
    "out": Path("runs/quick"),
}


def train(config: Config, module, penalty: str, seed: int, data):
    """Parameters after num_steps, the learning rate quenched at two thirds."""
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
    steps = training.make_train_steps(loss, optimizer)
    return runner.train(steps, state, data, rows, num_steps=config.num_steps, label=f"{penalty}, seed {seed}")[0].params


def ddn(f, x, y, keys):
    """DDN, 200 steps."""
    return attacks.ddn(f, x, y, keys, num_steps=200)


def noisy(f, x, y, keys, sigma):
    """White noise of standard deviation sigma, in raw pixels."""
    return attacks.white_noise(f, x, y, keys, sigma=sigma)


def measure(config: Config, module, params, seed: int, test) -> dict:
    """Accuracy, the norm by differentiation and by finite noise, accuracy under noise, median distance by DDN."""
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
    for activation in config.activations:
        for penalty in config.penalties:
            module = MLP(config.widths, activation=ACTIVATIONS[activation])

            def compute(seeds, module=module, penalty=penalty):
                for seed in seeds:
                    yield seed, measure(config, module, train(config, module, penalty, seed, data), seed, test)

            names = ("widths", "lambda_jr", "sigma", "num_steps", "learning_rate", "num_attacked", "norms")
            settings = {"activation": activation, "penalty": penalty} | {name: getattr(config, name) for name in names}
            path = config.out / "relu_study" / f"{activation}-{penalty}.json"
            models = record.fill(path, settings, range(config.seeds), compute)["models"].values()
            mean = {k: round(float(np.mean([m[k] for m in models])), 4) for k in next(iter(models))}
            print(f"{activation}, {penalty}: {mean}")
