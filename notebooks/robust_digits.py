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
# # A robust digit classifier, attacked
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jacreg-jax/jacreg-jax/blob/main/notebooks/robust_digits.ipynb)
#
# A network is trained twice on handwritten digits, without and with the Jacobian penalty; then searched for
# the nearest image that fools it, attacked at fixed radii by several attacks, checked for masked gradients, and certified.
# Digits that ship inside scikit-learn, nothing to download; a minute or two on a CPU, seconds on a GPU.

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

from jacreg_jax import attacks, certify, datasets, evaluation, masking, models, schedules, training

# %% [markdown]
# ## Train: state the norm, lambda finds itself
# `schedules.target_norm(5.0)` asks for ||J||_F = 5 with respect to the pixels; lambda_jr moves until it is there.

# %%
images, labels = datasets.load("digits", "train")
test_images, test_labels = datasets.load("digits", "test")
train = {"image": datasets.from_uint8(jnp.asarray(images)), "label": jnp.asarray(labels)}
x, y = np.asarray(datasets.from_uint8(test_images))[:100], test_labels[:100]

module = models.MLP((128, 64, 10))  # flax.linen; any of yours will do
params, model_state = models.initialize(module, jax.random.key(0), train["image"][:1])


def trained(lambda_jr, optimizer, num_steps=800):
    loss = training.classification_loss(models.train_mode(module), lambda_jr=lambda_jr)
    state = training.init_state(params, optimizer, jax.random.key(1), model_state)
    rows = jax.random.randint(jax.random.key(2), (num_steps, 100), 0, len(images))
    state, metrics = training.make_train_steps(loss, optimizer)(state, train, rows)
    return models.predictor(module, state.params), metrics


target = schedules.target_norm(5.0, rate=0.05)
plain, _ = trained(0.0, optax.adam(2e-3))
stable, metrics = trained(target, target.optimizer(optax.adam(2e-3)))
networks = {"plain": plain, "stable": stable}
for name, f in networks.items():
    norm = evaluation.norm_summary(evaluation.jacobian_norms(f, x))["rms"]
    print(f"{name:8s} accuracy {evaluation.accuracy(f, x, y):.1%}   ||J||_F {norm:.2f}")

figure, axis = plt.subplots(figsize=(5, 2.5))
axis.semilogy(metrics["lambda_jr"])
axis.set(xlabel="step", ylabel="lambda_jr", title="lambda_jr on its way to the norm")
plt.show()

# %% [markdown]
# ## The nearest image that fools
# DDN looks for the smallest change, in L2, that makes the network err. A better attack can only find a smaller one.

# %%
nearest = {n: evaluation.run_attack(attacks.ddn, f, x, y, jax.random.key(3)) for n, f in networks.items()}
print(nearest["stable"])
figure, axes = plt.subplots(2, 6, figsize=(9, 3.4))
for row, (name, found) in zip(axes, nearest.items(), strict=True):
    for axis, number in zip(row, range(6), strict=True):
        axis.imshow(found.x_adv[number, ..., 0], cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[], title=f"{y[number]}, {found.distance[number]:.2f}")
    row[0].set_ylabel(f"{name}\nmedian {np.median(found.distance):.2f}")
plt.show()

# %% [markdown]
# ## Robust accuracy
# A sample counts where no attack fools it: here APGD by two losses and Square, which takes no gradient. For a claim take
# the whole `attacks.standard_ensemble`, or `evaluation.report`, which does all of this page and more.

# %%
from functools import partial

chain = {
    "apgd": partial(attacks.apgd, num_steps=20),
    "apgd, targeted": partial(attacks.apgd, num_steps=20, loss="targeted"),
    "square": partial(attacks.square, num_queries=150),
}
radii = (0.02, 0.05, 0.1)
for name, f in networks.items():
    left = [min(evaluation.worst_case(chain, f, x, y, jax.random.key(4), epsilon=e)[1].values()) for e in radii]
    print(f"{name:8s} " + "   ".join(f"{share:.1%} at {e}" for share, e in zip(left, radii, strict=True)))

# %% [markdown]
# ## Was the attack fooled, and what can be proved?
# Checks for gradients that are zero or useless; then radii inside which no image at all fools, by interval bounds.

# %%
for name, check in masking.checks(stable, x[:50], y[:50], jax.random.key(5), epsilon=0.05, num_queries=100).items():
    print(f"{name:20s} {check}")
for name, f in networks.items():
    proved = certify.interval_radius(f, x[:50], y[:50])
    print(f"{name:8s} proved radius, L-infinity, median {np.median(proved):.4f}")
