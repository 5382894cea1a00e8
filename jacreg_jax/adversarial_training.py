"""Adversarial training as in the paper, as the `perturb` of `training.classification_loss`; defensive distillation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.gradient import loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import spread


def random_fgsm(max_epsilon: float = 0.01, *, bounds=(0.0, 1.0)) -> Callable:
    """FGSM with epsilon ~ U[0, max_epsilon], drawn for every sample, against the parameters of this very step.

    The perturbed image replaces the clean one; no gradient flows through the perturbation, and the dropout mask is the
    step's own. The Jacobian penalty, where there is one, is taken at the perturbed image.

    Args:
        max_epsilon: in raw pixels; the paper's is 0.01 on MNIST and CIFAR-10.
        bounds: (low, high) of a pixel.

    Returns:
        perturb(f, image, label, keys) -> image for `training.classification_loss(..., perturb=...)`.

    Raises:
        ValueError: max_epsilon negative.
    """
    if max_epsilon < 0:
        raise ValueError(f"max_epsilon must be at least 0, got {max_epsilon}")

    def perturb(f, image, label, keys):
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, 1), maxval=max_epsilon)
        step = spread(jax.vmap(draw)(keys), image) * jnp.sign(loss_gradient(f, image, label, log_odds))
        return jnp.clip(image + step, *bounds)

    return perturb


def at_temperature(apply: Callable, temperature: float) -> Callable:
    """The train-mode model with its logits divided by a temperature: both trainings of defensive distillation.

    Args:
        apply: (params, model_state, x, key) -> (logits, model_state).
        temperature: T; 100 in footnote 5 of the paper.

    Returns:
        A function of the same kind.

    Raises:
        ValueError: temperature not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")

    def cooled(params, model_state, x, key):
        logits, model_state = apply(params, model_state, x, key)
        return logits / temperature, model_state

    return cooled


def soft_labels(f: Callable, x, *, temperature: float) -> jax.Array:
    """softmax(f(x) / T), [B, C]: what the distilled network is trained on, as batch["label"] of the train step.

    Trained and taught at T, the network runs at T = 1: its logits are T times larger than need be, and the usual
    cross-entropy has no gradient left in float32. That is masking, not robustness: the log odds, the margin, or the
    logits divided by T again find the adversarial images. Papernot et al. (2016), Carlini, Wagner (2017).
    """
    return jax.nn.softmax(f(x) / temperature)
