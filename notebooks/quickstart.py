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
# # The penalty in ten minutes
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/jacreg-jax/jacreg-jax/blob/main/notebooks/quickstart.ipynb)
#
# A network whose input-output Jacobian is small does not change its mind when its input moves a little. Here: your own
# model, your own loop, the penalty added in one line; what it costs, what it buys against one attack, and what it does
# to the decision cells. Handwritten digits that ship inside scikit-learn, nothing to download; about a minute on a CPU.

# %%
import shutil
import sys

if "google.colab" in sys.modules:
    extras = "notebooks,cuda12" if shutil.which("nvidia-smi") else "notebooks"  # on a GPU: what JAX needs there
    # %pip install -q "jacreg-jax[{extras}] @ git+https://github.com/jacreg-jax/jacreg-jax"

import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from jacreg_jax import attacks, datasets, decision_cells, exact_frobenius_sq, value_and_penalty

# %% [markdown]
# ## Data: raw pixels in [0, 1]
# The attack works in raw pixels; the network sees them normalised. The two spaces have two names, `raw` and `x`.

# %%
images, labels = (jnp.asarray(a) for a in datasets.load("digits", "train"))
test_images, test_labels = (jnp.asarray(a) for a in datasets.load("digits", "test"))
raw, test_raw = datasets.from_uint8(images), datasets.from_uint8(test_images)
normalize = datasets.MNIST.normalize

# %% [markdown]
# ## Your model
# Any function from a batch to a batch will do; here a perceptron written by hand.


# %%
def init(key, sizes=(64, 128, 64, 10)):
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return [
        (jax.random.normal(k, (m, n)) / jnp.sqrt(m), jnp.zeros((1, n))) for k, (m, n) in zip(keys, pairs, strict=True)
    ]


def model(params, x):
    x = x.reshape(len(x), -1)
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


# %% [markdown]
# ## Your loop, with the penalty
# `value_and_penalty` returns the logits and an unbiased estimate of the mean squared Frobenius norm of the Jacobian, from
# one forward pass. The loss adds `lambda_jr / 2` times that.

# %%
optimizer = optax.sgd(0.1, momentum=0.9)


def loss(params, raw, label, key, lambda_jr):
    f = lambda x: model(params, x)
    logits, penalty = value_and_penalty(f, normalize(raw), key)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean() + 0.5 * lambda_jr * penalty


@jax.jit
def step(params, opt_state, raw, label, key, lambda_jr):
    gradient = jax.grad(loss)(params, raw, label, key, lambda_jr)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state


def train(lambda_jr, num_steps=1500, batch_size=100):
    key = jax.random.key(0)
    params = init(key)
    opt_state = optimizer.init(params)
    for t in range(num_steps):
        if t == 1:  # the first call compiles
            start = time.perf_counter()
        step_key = jax.random.fold_in(key, t)
        rows = jax.random.choice(step_key, len(raw), (batch_size,), replace=False)
        params, opt_state = step(params, opt_state, raw[rows], labels[rows], step_key, lambda_jr)
    jax.block_until_ready(params)
    return params, (time.perf_counter() - start) / (num_steps - 1)


models = {}
for name, lambda_jr in (("plain", 0.0), ("Jacobian", 0.1)):
    models[name], seconds = train(lambda_jr)
    print(f"{name:10s} {1e3 * seconds:.2f} ms a step")

# %% [markdown]
# ## What it cost
# Both runs above carry the penalty (with weight 0 in the plain one), so they cost the same. XLA's own count of the
# arithmetic, with and without it:


# %%
def plain_loss(params, raw, label):
    return optax.softmax_cross_entropy_with_integer_labels(model(params, normalize(raw)), label).mean()


def flops(f, *arguments):
    return jax.jit(jax.grad(f)).lower(*arguments).compile().cost_analysis()["flops"]


batch = (models["plain"], raw[:100], labels[:100])
ratio = flops(loss, *batch, jax.random.key(0), 0.05) / flops(plain_loss, *batch)
print(f"a step with the penalty does {ratio:.2f} times the arithmetic of one without")

# %% [markdown]
# ## What it bought
# The norm of the Jacobian on test digits, and accuracy under projected gradient descent in raw pixels. The attack is one
# compiled loop; the normalisation is inside the function it attacks.

# %%
for name, params in models.items():
    f = lambda x, params=params: model(params, x)
    norm = jnp.sqrt(exact_frobenius_sq(f, normalize(test_raw))).mean()
    raw_f = datasets.MNIST.wrap(f)
    clean = jnp.mean(jnp.argmax(raw_f(test_raw), 1) == test_labels)
    pgd = lambda epsilon, f=raw_f: attacks.pgd(
        f, test_raw, test_labels, epsilon=epsilon, step_size=epsilon / 8, num_steps=40
    )
    robust = [1 - jax.jit(pgd)(epsilon).success.mean() for epsilon in (0.05, 0.1, 0.15)]
    scores = ", ".join(f"{r:.1%}" for r in robust)
    print(f"{name:10s} mean ||J||_F {norm:6.2f}   clean {clean:.1%}   PGD at 0.05, 0.10, 0.15: {scores}")

# %% [markdown]
# ## What it looks like
# A random plane through one test digit: colours are predicted classes, the circle reaches to the nearest boundary.

# %%
plane = decision_cells.random_plane(test_raw[0], jax.random.key(4))
figure, axes = plt.subplots(1, 2, figsize=(9, 4))
for axis, (name, params) in zip(axes, models.items(), strict=True):
    raw_f = datasets.MNIST.wrap(lambda x, params=params: model(params, x))
    cells = decision_cells.decision_cells(raw_f, plane, extent=4.0)
    radius = decision_cells.boundary_distance(raw_f, plane, extent=4.0)
    axis.imshow(
        cells.classes, origin="lower", extent=(-4, 4, -4, 4), cmap="tab10", vmin=0, vmax=9, alpha=cells.confidence
    )
    axis.plot(0, 0, "ko")
    axis.add_patch(plt.Circle((0, 0), radius, fill=False))
    axis.set(title=f"{name}: nearest boundary at {radius:.2f}", xlabel="L2 distance in raw pixels")
plt.show()
