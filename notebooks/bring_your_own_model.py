# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own model (flax.nnx)
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jacreg-jax/jacreg-jax/blob/main/notebooks/bring_your_own_model.ipynb)
#
# You have an nnx model with BatchNorm and dropout, and a training loop. What changes: one line makes the model a pure
# function, and the loss is one of the library's. Then: what it cost, what it bought. A minute on a CPU.

# %%
import shutil
import sys

if "google.colab" in sys.modules:
    extras = "notebooks,cuda12" if shutil.which("nvidia-smi") else "notebooks"  # on a GPU: what JAX needs there
    # %pip install -q "jacreg-jax[{extras}] @ git+https://github.com/jacreg-jax/jacreg-jax"

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from jacreg_jax import datasets, evaluation, interop, penalties, training

# %% [markdown]
# ## Your model


# %%
class Net(nnx.Module):
    """A perceptron with BatchNorm and dropout."""

    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(64, 128, rngs=rngs), nnx.BatchNorm(128, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.2, rngs=rngs), nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.first(x.reshape(len(x), -1))))
        return self.last(self.dropout(x))


images, labels = datasets.load("digits", "train")
test_images, test_labels = datasets.load("digits", "test")
train = {"image": datasets.from_uint8(jnp.asarray(images)), "label": jnp.asarray(labels)}
x, y = np.asarray(datasets.from_uint8(test_images)), test_labels

# %% [markdown]
# ## The library's view of it
# `interop.from_nnx` splits the model into parameters and state, and gives pure functions of both. The penalty
# is taken of the network at the statistics of its batch: see
# [BatchNorm](https://github.com/jacreg-jax/jacreg-jax/blob/main/docs/howto/batch_norm.md) for why.

# %%
NUM_STEPS, optimizer = 800, optax.adam(2e-3)


def trained(lambda_jr):
    model = interop.from_nnx(Net(nnx.Rngs(0)))
    penalty = penalties.of_model(model.batch_statistics)
    loss = training.classification_loss(model.train, penalty=penalty, lambda_jr=lambda_jr)
    state = training.init_state(model.params, optimizer, jax.random.key(1), model.model_state)
    rows = jax.random.randint(jax.random.key(2), (NUM_STEPS, 100), 0, len(images))
    state, metrics = training.make_train_steps(loss, optimizer)(state, train, rows)
    return model.predictor(state.params, state.model_state), metrics


results = {"plain": trained(0.0), "Jacobian": trained(0.1)}

# %% [markdown]
# ## What it bought
# Held-out accuracy, the norm of the Jacobian after training, and accuracy under noise, at the running statistics.

# %%
sigmas = (0.0, 0.1, 0.2, 0.3, 0.4)
figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
for name, (f, metrics) in results.items():
    norm = evaluation.norm_summary(evaluation.jacobian_norms(f, x))["rms"]
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    shares = [evaluation.accuracy(f, x + sigma * noise, y) for sigma in sigmas]
    print(f"{name:9s} accuracy {shares[0]:.1%}, with noise of 0.4 {shares[-1]:.1%}, ||J||_F {norm:.2f}")
    axes[0].plot(metrics["cross_entropy"], label=name, linewidth=0.7)
    axes[1].plot(sigmas, shares, "o-", label=f"{name}, ||J|| = {norm:.1f}")
axes[0].set(xlabel="step", ylabel="cross-entropy, training")
axes[1].set(xlabel="deviation of the noise, raw pixels", ylabel="test accuracy")
axes[1].legend()
plt.show()
