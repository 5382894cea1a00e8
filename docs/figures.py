"""The site's own figures, as svg: `python docs/figures.py`. Half a minute; those of results come from `make report`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import jacreg_jax as jr
from jacreg_jax import datasets, models, schedules, training
from jacreg_jax.probes import PROBES

matplotlib.use("agg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parent / "figures"
plt.rcParams |= {"svg.hashsalt": "jacreg_jax", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
# on a light and on a dark page
plt.rcParams |= dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "text.color"), "#888")


def saved(figure: plt.Figure, name: str) -> None:
    """As an svg that is the same every time."""
    figure.tight_layout()
    figure.savefig(FOLDER / name, transparent=True, metadata={"Date": None})


def estimator(num_draws: int = 2000) -> None:
    """Relative standard deviation of one sample's estimate: by formula, and over draws."""
    a, b, c = jax.random.split(jax.random.key(0), 3)
    w, v, x = (
        jax.random.normal(a, (20, 40)) / 20**0.5,
        jax.random.normal(b, (40, 10)) / 40**0.5,
        jax.random.normal(c, (20,)),
    )
    f = lambda x: jnp.tanh(x @ w) @ v
    jacobian = jax.jacrev(f)(x)
    norm, gram = jnp.sum(jacobian**2), jacobian @ jacobian.T
    figure, axes = plt.subplots(figsize=(5, 3))
    counts = np.arange(1, 11)
    for colour, probe in enumerate(PROBES):
        formula = [jr.projection_variance(gram, num_projections=int(n), probe=probe) ** 0.5 / norm for n in counts]
        axes.plot(counts, formula, color=f"C{colour}", label=probe)
        same = jnp.broadcast_to(x, (num_draws, 20))
        draws = [
            jr.projected_frobenius_sq(f, same, jax.random.key(1), num_projections=n, probe=probe) for n in (1, 3, 10)
        ]
        axes.plot([1, 3, 10], [float(d.std() / norm) for d in draws], "o", color=f"C{colour}", markersize=4)
    axes.set(xlabel="projections n, of C = 10 outputs", ylabel="standard deviation / ‖J‖²", ylim=0)
    axes.legend(frameon=False)
    saved(figure, "estimator.svg")


def target_norm() -> None:
    """The norm and lambda_jr along a training on digits."""
    image, label = datasets.load("digits", "train")
    data = {"image": jnp.asarray(image.reshape(-1, 64) / 255, jnp.float32), "label": jnp.asarray(label)}
    module = models.MLP((64, 10))
    params, model_state = models.initialize(module, jax.random.key(0), data["image"][:1])
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(5, 4))
    for wanted in (1.0, 2.0, 4.0):
        target = schedules.target_norm(wanted)
        optimizer = target.optimizer(optax.adam(3e-3))
        loss = training.classification_loss(models.train_mode(module), lambda_jr=target)
        state = training.init_state(params, optimizer, jax.random.key(1), model_state)
        rows = jax.random.randint(jax.random.key(2), (1500, 100), 0, len(label))
        _, metrics = training.make_train_steps(loss, optimizer)(state, data, rows)
        smooth = np.sqrt(np.convolve(metrics["penalty"], np.ones(20) / 20, "valid"))
        (line,) = above.plot(smooth, label=f"asked for {wanted:g}")
        above.axhline(wanted, color=line.get_color(), linewidth=0.6, linestyle=":")
        below.plot(metrics["lambda_jr"], color=line.get_color())
    above.set(ylabel="‖J‖, mean of 20 steps", yscale="log", yticks=[1, 2, 4], yticklabels=["1", "2", "4"])
    above.minorticks_off()
    below.set(xlabel="step", ylabel="lambda_jr", yscale="log")
    above.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    saved(figure, "target_norm.svg")


if __name__ == "__main__":
    estimator()
    target_norm()
