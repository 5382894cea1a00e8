"""What the rounding of Toom-Cook tiles does to training: DDNet on CIFAR-10 images, with tiles and with plain sums.

Training multiplies any difference, so that the distance to plain sums is judged beside two runs of plain sums whose
initial weights differ by as much as tiles round, 1e-6 of each weight.

Command:    python -m experiments.benchmarks.rounded_training
Leaves:     experiments/results/benchmark_rounded_training_cpu.json
"""

import experiments.benchmarks.kept_memory  # noqa: F401, I001  first of all

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from experiments.lab.options import in_paragraphs
from tqdm import trange

from experiments.benchmarks import page
from experiments.benchmarks.rows import write
from experiments.lab import stopping
from jacreg_jax import datasets, penalties, training
from jacreg_jax.models import DDNet, initialize, predictor, train_mode


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained."""

    num_steps: int = 200
    batch_size: int = 100
    learning_rate: float = 0.01
    lambda_jr: float = 0.01
    held_out: int = 500  # test images on which the runs are compared
    perturbation: float = 1e-6
    seed: int = 0


def trained(form: str, config: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """(first weights, last weights, logits of held-out images, last loss) of a run."""
    exact = contextlib.nullcontext() if form == "tiles" else jax.default_matmul_precision("highest")
    images, labels = datasets.load("cifar10", f"train[:{config.num_steps * config.batch_size // 10}]")
    scale = lambda images: datasets.from_uint8(images) * 4 - 2
    module, key = DDNet(), jax.random.key(config.seed)
    params, _ = initialize(module, key, jnp.asarray(scale(images[:1])))
    if form == "plain sums, weights moved":
        noise = jax.random.normal(jax.random.key(1), (sum(p.size for p in jax.tree.leaves(params)),))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        params = unravel(flat * (1 + config.perturbation * noise))
    first = jax.flatten_util.ravel_pytree(params)[0]
    loss = training.classification_loss(train_mode(module), penalty=penalties.projected(), lambda_jr=config.lambda_jr)
    optimizer = training.sgd(config.learning_rate)
    state = training.init_state(params, optimizer, key)
    rng = np.random.default_rng(config.seed)
    with exact:
        step = training.make_train_step(loss, optimizer)
        for _ in trange(config.num_steps, desc=form, leave=False):
            rows = rng.integers(0, len(images), config.batch_size)
            batch = {"image": jnp.asarray(scale(images[rows])), "label": jnp.asarray(labels[rows], jnp.int32)}
            state, metrics = step(state, batch)
        test, _ = datasets.load("cifar10", f"test[:{config.held_out}]")
        logits = jax.jit(predictor(module, state.params))(jnp.asarray(scale(test)))
    last = jax.flatten_util.ravel_pytree(state.params)[0]
    return np.asarray(first), np.asarray(last), np.asarray(logits), float(metrics["loss"])


def main(config: Config):
    """Train three times, compare, write."""
    forms = ("plain sums", "tiles", "plain sums, weights moved")
    runs = {form: trained(form, config) for form in forms}
    first, last, logits, loss = runs["plain sums"]
    rows = []
    for form in forms[1:]:
        _, other, other_logits, other_loss = runs[form]
        way = np.linalg.norm(last - first)
        rows.append(
            {
                "run": form,
                "weights": float(np.linalg.norm(other - last) / way),
                "logits": float(np.sqrt(np.mean((other_logits - logits) ** 2) / np.mean(logits**2))),
                "predictions": float(np.mean(other_logits.argmax(1) != logits.argmax(1))),
                "loss": abs(other_loss - loss),
            }
        )
    write("rounded_training_cpu", rows, config)
    print(page.rounded_training())


if __name__ == "__main__":
    with stopping.in_one_line("stopped; nothing is written"):
        main(tyro.cli(Config, description=in_paragraphs(__doc__)))
