"""One process of several: trains networks for 20 steps, and writes what came out.

    python -m tests.hosts_worker OUT BACKENDS [COORDINATOR PROCESSES INDEX]

In float64, where rounding is too small to move a sample over a kink of ReLU or to another place of a pooling window; in
float32 a network without kinks.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.lab import world
from jacreg_jax import models, penalties, sharding, training
from jacreg_jax.models import LeNet

STEPS = 20


class Smooth(nn.Module):
    """BatchNorm and dropout, without kinks."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.3, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def batches(shape, dtype):
    """The same in every process."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {"image": rng.uniform(size=(16, *shape)).astype(dtype), "label": rng.integers(10, size=16)}


def trained(module, shape, dtype, mesh, backend):
    """(losses, gradient norms, parameters and state) after 20 steps with dropout or BatchNorm, and the penalty."""
    params, model_state = models.initialize(module, jax.random.key(0), np.zeros((1, *shape), dtype))
    params, model_state = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, model_state))
    penalty = penalties.of_model(models.batch_statistics_mode(module)) if model_state else None
    loss = training.classification_loss(models.train_mode(module), penalty=penalty, lambda_jr=0.01)
    optimizer = training.sgd(0.01)
    step = training.make_train_step(loss, optimizer, mesh=mesh, backend=backend)
    state = training.init_state(params, optimizer, jax.random.key(1), model_state)
    state = state if mesh is None else sharding.replicate(state, mesh)
    rows = []
    for batch in batches(shape, dtype):
        state, metrics = step(state, world.placed(batch, mesh, sharding.ON_ROWS))
        rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    leaves = jax.tree.leaves(world.here((state.params, state.model_state)))
    return {"rows": np.asarray(rows)} | {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}


def main():
    """OUT, the backends, and who this process is."""
    jax.config.update("jax_enable_x64", True)
    out, backends, *who = sys.argv[1:]
    world.join(world.Hosts(who[0], int(who[1]), int(who[2])) if who else world.Hosts())
    mesh = world.mesh_of(jax.device_count())
    networks = {
        "lenet": (LeNet(dropout_rate=0.5), (28, 28, 1), np.float64),
        "resnet": (models.ResNet18(width=4), (16, 16, 3), np.float64),
        "smooth": (Smooth(), (16, 16, 3), np.float32),
    }
    for name, network in networks.items():
        for backend in backends.split(","):
            found = trained(*network, mesh, backend)
            if world.is_first():
                np.savez(Path(out) / f"{name}-{backend}.npz", **found)
    if world.is_first():
        (Path(out) / "world.json").write_text(json.dumps([jax.process_count(), jax.device_count()]))


if __name__ == "__main__":
    main()
