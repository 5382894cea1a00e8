"""Adversarial training: FGSM as in the paper and PGD as the `perturb` of a loss, TRADES as a penalty; distillation."""

from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.attacks.ball import project
from jacreg_jax.attacks.criteria import misclassified, of_margin
from jacreg_jax.attacks.losses import log_odds, true_logit
from jacreg_jax.attacks.pgd import Ball, ascend
from jacreg_jax.attacks.result import NORMS, Norm, spread
from jacreg_jax.attacks.start import Goal, Start, begin
from jacreg_jax.explicit_axes import automatic
from jacreg_jax.keys import normal_like, perturbation_keys, sample_keys
from jacreg_jax.objectives import log_cross_entropy, mean_of_sample
from jacreg_jax.predictions import as_logits
from jacreg_jax.types import Apply, Array, Function, PyTree


def random_fgsm(max_epsilon: float = 0.01, *, bounds: checks.Bounds | None = (0.0, 1.0)) -> Function:
    """FGSM with epsilon ~ U[0, max_epsilon], drawn for every sample, against the parameters of this very step.

    The perturbed image replaces the clean one; no gradient flows through the perturbation, and the dropout mask is the
    step's own. The Jacobian penalty, where there is one, is taken at the perturbed image. What is climbed is the loss
    that is trained, of any objective, without label_smoothing: of tokens or pixels the mean over those that the mask
    marks.

    Args:
        max_epsilon: in raw pixels; the paper's is 0.01 on MNIST and CIFAR-10.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to the images, or None.

    Returns:
        perturb(f, image, label, keys, losses=None) -> image, for `perturb=` of the losses of `training`, which give
        `losses`, z -> [B]. None: the cross-entropy of integer labels, of positions without those of label -1.

    Raises:
        TypeError: max_epsilon is not a number; when called, image not floating point, or no losses and label not
            integer.
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

    @automatic
    def perturb(f: Function, image: Array, label: Array, keys: Array, losses: Function | None = None) -> Array:
        start = _begin(f, image, label, losses, bounds)
        epsilon = jax.vmap(lambda key: jax.random.uniform(key, maxval=max_epsilon))(perturbation_keys(keys))
        return start.clip(start.x + spread(epsilon, start.x) * jnp.sign(start.gradient(start.x))).astype(image.dtype)

    return perturb


def pgd(
    epsilon: float,
    *,
    step_size: float | None = None,
    num_steps: int = 10,
    norm: Norm = "linf",
    random_start: bool = True,
    random_epsilon: bool = False,
    bounds: checks.Bounds | None = (0.0, 1.0),
) -> Function:
    """PGD against the parameters of this very step, Madry et al.'s adversarial training.

    The perturbed image replaces the clean one, of every sample, also of those that are wrong already; no gradient flows
    through the perturbation, and the dropout mask is the step's own. What is climbed is the loss that is trained, as by
    `random_fgsm`. A training step costs 1 + num_steps.

    Args:
        epsilon: radius in raw pixels.
        step_size: in raw pixels; None: 2.5 epsilon / num_steps.
        num_steps: gradient steps.
        norm: "linf", "l2" or "l1".
        random_start: from a uniform point of the ball.
        random_epsilon: each sample's radius, and its steps with it, is drawn from U[0, epsilon] in every step. A small
            network that learns nothing at a large radius from the start learns it so.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to the images, or None.

    Returns:
        perturb(f, image, label, keys, losses=None) -> image, as `random_fgsm`.

    Raises:
        TypeError: epsilon or step_size is not a number; when called, as the attacks.
        ValueError: epsilon negative; step_size not above 0; num_steps below 1; unknown norm; random_start or
            random_epsilon not a bool; when called, as the attacks.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> x, keys = jnp.array([[0.7]]), jax.random.split(jax.random.key(0), 1)
        >>> pgd(0.1)(f, x, jnp.array([0]), keys).round(3).tolist()
        [[0.6000000238418579]]

    Reference: Madry et al. (2017), https://arxiv.org/abs/1706.06083.
    """
    ball, num_steps = _ball(epsilon, step_size, num_steps, norm)
    checks.one_of("random_start", random_start, (True, False))
    checks.one_of("random_epsilon", random_epsilon, (True, False))

    @automatic
    def perturb(f: Function, image: Array, label: Array, keys: Array, losses: Function | None = None) -> Array:
        keys = perturbation_keys(keys)
        start, own = _begin(f, image, label, losses, bounds, keys), ball
        if random_epsilon:
            share = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
            own = Ball(share * ball.epsilon, share * ball.step_size, ball.norm)
        first = own.random_start(start) if random_start else start.x
        moved, _ = ascend(start.f, start.objective(None), start.x, first, own, start.bounds, num_steps)
        return moved.astype(image.dtype)

    return perturb


@automatic
def trades(
    f: Function,
    x: Array,
    key: Array,
    *,
    epsilon: float,
    step_size: float | None = None,
    num_steps: int = 10,
    norm: Norm = "linf",
    bounds: checks.Bounds | None = (0.0, 1.0),
    y: Any = None,
) -> Array:
    """KL(softmax f(x) || softmax f(x')) at the x' in the ball that PGD finds it largest at; TRADES' second term.

    As a penalty: `classification_loss(apply, penalty=penalties.of(trades, epsilon=8 / 255), lambda_jr=2 * beta)` is
    TRADES with its beta, since penalties count half; 6 in the paper. Both f(x) and f(x') are differentiated, x' is
    held. x is what the network gets: where the loss preprocesses, give epsilon and bounds in its units. A training step
    costs 2 + num_steps.

    Args:
        f: batched function, [B, ...] -> logits [B, C], or one logit [B] for two classes; of positions [B, ..., C] the
            mean over them.
        x: [B, ...].
        key: typed key, or B of them; x' starts at x + 0.001 N(0, 1).
        epsilon: radius, in the units of x.
        step_size: in the units of x; None: 2.5 epsilon / num_steps.
        num_steps: gradient steps.
        norm: "linf", "l2" or "l1".
        bounds: (low, high) of an entry, each a scalar, an array that broadcasts to x, or None.
        y: labels, which `penalties.of` gives; a position of label -1, as where batch["mask"] leaves it out, counts
            nothing. A mask of fractions is one of marks here.

    Returns:
        [B], at least 0.

    Raises:
        TypeError, ValueError: as `pgd` when it makes a perturbation and when that is called; y is no array, or integers
            of another shape than the positions.

    Example:
        >>> f = lambda x: 5 * jnp.concatenate([x, 1 - x], axis=1)
        >>> apart = trades(f, jnp.array([[0.7]]), jax.random.key(0), epsilon=0.1)
        >>> 0 < float(apart[0]) < 1
        True

    Reference: Zhang et al. (2019), https://arxiv.org/abs/1901.08573.
    """
    ball, num_steps = _ball(epsilon, step_size, num_steps, norm)
    checks.function("f", f)
    x = checks.inputs(x)
    goal = Goal(of_margin(lambda z, y: z.reshape(len(z), -1)[:, 0]))  # of logits alone: no labels are needed
    start = begin(
        lambda x: as_logits(f(x)), x, None, bounds, key=perturbation_keys(sample_keys(key, len(x))), goal=goal
    )
    first = project(start.x + 0.001 * normal_like(start.keys, start.x), start.x, epsilon, norm, start.bounds)
    held, counts = jax.lax.stop_gradient(start.logits), _counted(y, start.logits)
    climbed = lambda z: mean_of_sample(_divergence(held, z), counts)
    found, _ = ascend(start.f, climbed, start.x, first, ball, start.bounds, num_steps)
    apart = _divergence(start.logits, start.f(jax.lax.stop_gradient(found)))
    return mean_of_sample(jnp.maximum(apart, 0), counts)


def _divergence(z: Array, z_adv: Array) -> Array:
    """KL(p || p') of p = softmax z, [B, ...], by leads over the likeliest class: nothing cancels where its p is 1."""
    t = jnp.argmax(z, axis=-1)
    leads = lambda z: z - true_logit(z, t)[..., None]
    less = jax.nn.softplus(log_odds(z_adv, t)) - jax.nn.softplus(log_odds(z, t))
    return jnp.sum(jax.nn.softmax(z) * (leads(z) - leads(z_adv)), axis=-1) + less


def _counted(y: Any, z: Array) -> Array | None:
    """Where the labels of positions, or distributions, are none of -1."""
    if y is not None and not (hasattr(y, "shape") and hasattr(y, "dtype")):
        raise TypeError(f"y must be an array of labels, got {type(y).__name__}")
    if y is None or z.ndim == 2:
        return None
    if not jnp.issubdtype(y.dtype, jnp.integer):
        return (jnp.asarray(y) >= 0).all(-1) if y.shape == z.shape else None
    counts: Array = checks.labels(y, z.shape[:-1], z.shape[-1], masked=True) >= 0
    return counts


def _ball(epsilon: Any, step_size: Any, num_steps: Any, norm: Any) -> tuple[Ball, int]:
    checks.non_negative("epsilon", epsilon)
    num_steps = checks.count("num_steps", num_steps)
    if step_size is not None:
        checks.positive("step_size", step_size)
    checks.one_of("norm", norm, NORMS)
    return Ball(epsilon, 2.5 * epsilon / num_steps if step_size is None else step_size, norm), num_steps


def _begin(f: Function, image: Any, label: Any, losses: Function | None, bounds: Any, keys: Any = None) -> Start:
    """As attacks begin, but what is climbed is the loss of each sample: of labels where no other is given."""
    checks.function("f", f)
    checks.inputs(image, "image")
    if losses is None:
        z = jax.eval_shape(lambda x: misclassified.outputs(f(x), len(x)), image)
        losses = _of_labels(label, z)
    checks.function("losses", losses, ("z",))

    def per_sample(z: Any, _: Any) -> Array:
        found = losses(z)
        if jnp.shape(found)[:1] != image.shape[:1]:
            raise ValueError(f"losses must give [B, ...] of {len(image)} samples, got shape {jnp.shape(found)}")
        return found.reshape(len(image), -1).mean(1)

    return begin(f, image, None, bounds, key=keys, goal=Goal(of_margin(per_sample)))


def _of_labels(label: Any, z: Any) -> Function:
    """z -> [B], the cross-entropy of integer labels; of positions without those of label -1."""
    label = checks.labels(label, z.shape[:-1], z.shape[-1], "label", masked=True)
    batch = {"label": label} | ({"mask": label >= 0} if z.ndim > 2 else {})
    return lambda z: log_cross_entropy(as_logits(z), batch)


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
        f: the teacher, [B, ...] -> logits [B, C], or one logit, [B] or [B, 1], of two classes.
        x: [B, ...].
        temperature: T.

    Returns:
        [B, C], rows that sum to 1.

    Raises:
        TypeError: temperature is not a number; f(x) is no array.
        ValueError: temperature not above 0, infinite or NaN.

    Example:
        >>> soft_labels(lambda x: x, jnp.array([[0.0, 0.0]]), temperature=10.0).tolist()
        [[0.5, 0.5]]

    Reference: Papernot et al. (2016), https://arxiv.org/abs/1511.04508; Carlini, Wagner (2017).
    """
    checks.function("f", f)
    checks.positive("temperature", temperature)
    return jax.nn.softmax(as_logits(f(x)) / temperature)
