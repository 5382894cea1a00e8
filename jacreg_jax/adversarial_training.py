"""Adversarial training as in the paper, as the `perturb` of `training.classification_loss`; defensive distillation."""

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.attacks.gradient import loss_gradient
from jacreg_jax.attacks.losses import log_odds
from jacreg_jax.attacks.result import spread
from jacreg_jax.keys import perturbation_keys
from jacreg_jax.types import Apply, Array, Function, PyTree


def random_fgsm(max_epsilon: float = 0.01, *, bounds: checks.Bounds = (0.0, 1.0)) -> Function:
    """FGSM with epsilon ~ U[0, max_epsilon], drawn for every sample, against the parameters of this very step.

    The perturbed image replaces the clean one; no gradient flows through the perturbation, and the dropout mask is the
    step's own. The Jacobian penalty, where there is one, is taken at the perturbed image.

    Args:
        max_epsilon: in raw pixels; the paper's is 0.01 on MNIST and CIFAR-10.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to the images.

    Returns:
        perturb(f, image, label, keys) -> image for `training.classification_loss(..., perturb=...)`.

    Raises:
        TypeError: max_epsilon is not a number; when called, image not floating point or label not integer.
        ValueError: max_epsilon negative, infinite or NaN; when called, as the attacks.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, keys = jnp.array([[0.7]]), jax.random.split(jax.random.key(0), 1)
        >>> moved = random_fgsm(0.1)(f, x, jnp.array([0]), keys)
        >>> 0.6 <= float(moved[0, 0]) <= 0.7
        True

    Reference: Goodfellow, Shlens, Szegedy (2014), https://arxiv.org/abs/1412.6572.
    """
    checks.non_negative("max_epsilon", max_epsilon)

    def perturb(f: Function, image: Array, label: Array, keys: Array) -> Array:
        checks.function("f", f)
        image = checks.inputs(image, "image")
        within = checks.bounds(bounds, image)
        classes = checks.num_classes(jax.eval_shape(f, image), len(image))
        label = checks.labels(label, image.shape[:1], classes, "label")
        epsilon = jax.vmap(lambda key: jax.random.uniform(key, maxval=max_epsilon))(perturbation_keys(keys))
        step = spread(epsilon, image) * jnp.sign(loss_gradient(f, image, label, log_odds))
        return jnp.clip(image + step, *within)

    return perturb


def at_temperature(apply: Apply, temperature: float) -> Apply:
    """The train-mode model with its logits divided by a temperature: both trainings of defensive distillation.

    Args:
        apply: (params, model_state, x, key) -> (logits, model_state).
        temperature: T; 100 in footnote 5 of the paper.

    Returns:
        A function of the same kind.

    Raises:
        TypeError: temperature is not a number.
        ValueError: temperature not above 0, infinite or NaN.

    Example:
        >>> cooled = at_temperature(lambda params, state, x, key: (params * x, state), 4.0)
        >>> cooled(2.0, {}, jnp.array([6.0]), None)[0].tolist()
        [3.0]

    Reference: Papernot et al. (2016), https://arxiv.org/abs/1511.04508.
    """
    checks.function("apply", apply, ("params", "model_state", "x", "key"))
    checks.positive("temperature", temperature)

    def cooled(params: PyTree, model_state: PyTree, x: Array, key: Array | None) -> tuple[Array, PyTree]:
        logits, model_state = apply(params, model_state, x, key)
        return logits / temperature, model_state

    return cooled


def soft_labels(f: Function, x: Array, *, temperature: float) -> Array:
    """softmax(f(x) / T), [B, C]: what the distilled network is trained on, as batch["label"] of the train step.

    Trained and taught at T, the network runs at T = 1: its logits are T times larger than need be, and the usual
    cross-entropy has no gradient left in float32. That is masking, not robustness: the log odds, the margin, or the
    logits divided by T again find the adversarial images.

    Args:
        f: the teacher, [B, ...] -> logits [B, C].
        x: [B, ...].
        temperature: T.

    Returns:
        [B, C], rows that sum to 1.

    Raises:
        TypeError: temperature is not a number.
        ValueError: temperature not above 0, infinite or NaN.

    Example:
        >>> soft_labels(lambda x: x, jnp.array([[0.0, 0.0]]), temperature=10.0).tolist()
        [[0.5, 0.5]]

    Reference: Papernot et al. (2016), https://arxiv.org/abs/1511.04508; Carlini, Wagner (2017).
    """
    checks.function("f", f)
    checks.positive("temperature", temperature)
    return jax.nn.softmax(f(x) / temperature)
