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
# # Decision cells
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jacreg-jax/jacreg-jax/blob/main/notebooks/decision_cells.ipynb)
#
# A decision cell is the set of images that a network gives one class. The Jacobian penalty makes cells larger around the
# data: a digit has farther to go to its nearest boundary. Here cells are drawn in a plane through a digit, without and with
# the penalty: a random plane, and the plane of two adversarial images. A minute on a CPU.

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

from jacreg_jax import attacks, datasets, decision_cells, models, training

# %% [markdown]
# ## Two networks

# %%
images, labels = datasets.load("digits", "train")
train = {"image": datasets.from_uint8(jnp.asarray(images)), "label": jnp.asarray(labels)}
test_images, test_labels = datasets.load("digits", "test")
x, y = datasets.from_uint8(jnp.asarray(test_images)), jnp.asarray(test_labels)
module = models.MLP((128, 64, 10))
params, model_state = models.initialize(module, jax.random.key(0), x[:1])


def trained(lambda_jr, num_steps=800):
    optimizer = optax.adam(2e-3)
    loss = training.classification_loss(models.train_mode(module), lambda_jr=lambda_jr)
    state = training.init_state(params, optimizer, jax.random.key(1), model_state)
    rows = jax.random.randint(jax.random.key(2), (num_steps, 100), 0, len(images))
    state, _ = training.make_train_steps(loss, optimizer)(state, train, rows)
    return models.predictor(module, state.params)


networks = {"plain": trained(0.0), "Jacobian": trained(0.1)}
right = np.all([np.argmax(f(x), 1) == y for f in networks.values()], axis=0)
digit = x[np.flatnonzero(right)[0]]

# %% [markdown]
# ## A random plane
# `random_plane` takes two orthonormal directions at random. `decision_cells` evaluates the network on a grid of the plane;
# `boundary_distance` follows rays to the nearest boundary in the plane, which is an upper bound of the distance.


# %%
def draw(axis, f, plane, title, extent=4.0):
    cells = decision_cells.decision_cells(f, plane, extent=extent)
    radius = decision_cells.boundary_distance(f, plane, extent=extent)
    box = (-extent, extent, -extent, extent)
    axis.imshow(cells.classes, origin="lower", extent=box, cmap="tab10", vmin=0, vmax=9, alpha=cells.confidence)
    axis.plot(0, 0, "ko")
    if np.isfinite(radius):
        axis.add_patch(plt.Circle((0, 0), radius, fill=False))
    axis.set(title=f"{title}\nboundary at {radius:.2f}", xlabel="L2 distance, raw pixels")


figure, axes = plt.subplots(2, 3, figsize=(11, 7.5))
for row, (name, f) in zip(axes, networks.items(), strict=True):
    for axis, number in zip(row, range(3), strict=True):
        draw(axis, f, decision_cells.random_plane(digit, jax.random.key(number)), f"{name}, plane {number}")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## How far is the nearest boundary really?
# A random plane misses most boundaries of a space of 64 dimensions. An attack searches all of it.

# %%
for name, f in networks.items():
    found = attacks.ddn(f, x[right][:100], y[right][:100], jax.random.key(3))
    planes = [decision_cells.random_plane(image, jax.random.key(7)) for image in x[right][:5]]
    in_plane = np.median([decision_cells.boundary_distance(f, plane, extent=8.0) for plane in planes])
    print(f"{name:9s} median distance: {np.median(found.distance):.2f} by DDN, {in_plane:.2f} in random planes")

# %% [markdown]
# ## The plane of two adversarial images
# Through the digit and the images that fool each network: here the boundary is near by construction.

# %%
label = jnp.argmax(networks["plain"](digit[None]), 1)
fooling = [attacks.ddn(f, digit[None], label, jax.random.key(4)).x_adv[0] for f in networks.values()]
plane = decision_cells.adversarial_plane(digit, *fooling)
figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
for axis, (name, f) in zip(axes, networks.items(), strict=True):
    draw(axis, f, plane, name, extent=3.0)
plt.show()
