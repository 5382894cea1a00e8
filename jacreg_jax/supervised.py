"""Losses for a train step: a supervised objective plus (lambda_jr / 2) mean ||J||_F^2 (Eq. 5), any model, any penalty.

    loss = classification_loss(train_mode(module), penalty=penalties.projected(), lambda_jr=0.01)
    value, (model_state, metrics) = loss(params, state, batch, keys)

`accumulation.lazily` and `accumulation.in_parts` wrap such a loss from outside. An objective is a function
(z, batch) -> (losses [B], metrics {name: [B]}): write one, and `supervised_loss` trains it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jacreg_jax import checks, deprecation, keys as streams
from jacreg_jax.objectives import (
    Batch,
    Objective,
    binary_cross_entropy as binary_cross_entropy,
    cross_entropy as cross_entropy,
    log_cross_entropy,
    marked,
    squared_error as squared_error,
)
from jacreg_jax.penalties import APPLY_ARGUMENTS, APPLY_HINT, BoundModel, Penalty, checked, projected
from jacreg_jax.penalty import joint_loss, standard_error
from jacreg_jax.schedules import TargetNorm
from jacreg_jax.types import Apply, Array, PyTree

# metrics that a step gives by itself
OWN = ("loss", "grad_norm", "penalty", "penalty_error", "penalty_count", "lambda_jr", "held_out_penalty")


@dataclasses.dataclass(frozen=True)
class JointLoss:
    """mean of the objective + (lambda_jr / 2) penalty: a loss for `training.make_train_step`.

    Made by `classification_loss` and its siblings, which say what the fields are.

    Example:
        >>> loss = classification_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01)
        >>> loss.lambda_jr, loss.penalty
        (0.01, projected(1, 'sphere'))
    """

    apply: Apply
    objective: Objective
    penalty: Penalty
    lambda_jr: Any
    preprocess: Callable[[Any], Any]
    perturb: Callable[..., Any] | None
    input_name: str
    climbed: Callable[[Any, Batch], Array] | None = None  # by perturb, in place of the objective's losses
    penalty_times: float = 1.0  # by `lazily`

    def __call__(self, params: PyTree, state: Any, batch: Batch, keys: Array) -> tuple[Array, tuple[Any, Any]]:
        """(loss, (model_state, metrics))."""
        model = BoundModel(self.apply, params, state.model_state, streams.model_key(keys))
        x = self.preprocess(self._raw_input(model, batch, keys))
        y = self._label(batch)
        z, model_state, penalty, norms = self._forward(model, x, y, keys)
        losses, values = self._losses(z, batch, x)
        checks.free_names("objective", values, OWN)
        metrics = {name: jnp.mean(value) for name, value in values.items()} | _statistics(penalty, norms)
        supervised = jnp.mean(losses * _weight(batch, losses) if "weight" in batch else losses)
        coefficient = self.lambda_jr(state.step) if callable(self.lambda_jr) else self.lambda_jr
        if isinstance(coefficient, TargetNorm):
            coefficient = coefficient.lambda_jr(state).astype(metrics["penalty"].dtype)
            metrics |= self._held_out(model, batch, keys, metrics["penalty"])
        value = joint_loss(supervised, self.penalty_times * penalty, lambda_jr=coefficient)
        if not self._is_constant:
            metrics["lambda_jr"] = jnp.asarray(coefficient, metrics["penalty"].dtype)
        return value, (model_state, metrics)

    def with_penalty_times(self, times: float) -> "JointLoss":
        """The same with another weight of the penalty; itself where there is none."""
        return self if self._is_plain else dataclasses.replace(self, penalty_times=times)

    @property
    def _is_plain(self) -> bool:
        return isinstance(self.lambda_jr, (int, float)) and self.lambda_jr == 0

    @property
    def _is_constant(self) -> bool:
        return not (callable(self.lambda_jr) or isinstance(self.lambda_jr, TargetNorm))

    def _losses(self, z: Any, batch: Batch, x: Any) -> tuple[Array, dict[str, Array]]:
        """What the objective gives, looked at."""
        losses, values = checks.pair("objective", self.objective(z, batch), "(losses [B], metrics {name: [B]})")
        rows = jnp.shape(jax.tree.leaves(x)[0])[:1]
        if jnp.shape(losses)[:1] != rows:
            wanted = f"losses [B, ...] of {rows[0]} samples, and no mean or sum of them"
            raise ValueError(f"objective must give {wanted}, got shape {jnp.shape(losses)}")
        return losses, values

    def _label(self, batch: Batch, prefix: str = "") -> Any:
        """For perturb and penalty; what "mask" means to an objective of one's own is not known."""
        return batch.get(f"{prefix}label") if self.climbed is None else marked(batch, prefix)

    def _raw_input(self, model: BoundModel, batch: Batch, keys: Array) -> Any:
        if not isinstance(batch, Mapping) or self.input_name not in batch:
            got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise ValueError(f"batch must be a dict with {self.input_name!r} (input_name= says another), got {got}")
        raw = batch[self.input_name]
        if self.perturb is None:
            return raw
        raw_model = lambda raw: model.output(self.preprocess(raw))
        climbed = self.climbed or (lambda z, batch: self._losses(z, batch, raw)[0])
        own = {"losses": lambda z: climbed(z, batch)} if checks.takes(self.perturb, "losses") else {}
        return jax.lax.stop_gradient(self.perturb(raw_model, raw, self._label(batch), keys, **own))

    def _forward(self, model: BoundModel, x: Any, y: Any, keys: Array) -> tuple[Any, Any, Any, Array | None]:
        """(z, model_state, penalty, norms); norms are None without a penalty, NaN on the steps that leave it out."""
        if self._is_plain:
            return *model(x), 0.0, None
        if self.penalty_times:
            (z, model_state), penalty, norms = self.penalty(model, x, y, keys)
            return z, model_state, penalty, norms
        norms, (z, model_state) = jax.eval_shape(lambda: self.penalty(model, x, y, keys)[2]), model(x)
        nan = jnp.full_like(jnp.max(jax.tree.leaves(z)[0]), jnp.nan, dtype=norms.dtype)  # varying as z in shard_map
        return z, model_state, 0.0, jnp.broadcast_to(nan, norms.shape)

    def _held_out(self, model: BoundModel, batch: Batch, keys: Array, penalty: Array) -> dict[str, Array]:
        """The penalty of batch["held_out"], where it is there, for `TargetNorm`; NaN on the steps that leave it out."""
        if "held_out" not in batch:
            return {}
        if not self.penalty_times:
            return {"held_out_penalty": jnp.full_like(penalty, jnp.nan)}
        fixed = dataclasses.replace(model, params=jax.lax.stop_gradient(model.params))
        x, y = self.preprocess(batch["held_out"]), self._label(batch, "held_out_")
        return {"held_out_penalty": self.penalty(fixed.for_rows(x), x, y, keys)[1]}


def supervised_loss(
    apply: Apply,
    objective: Objective,
    *,
    penalty: Penalty | None = None,
    lambda_jr: Any = 0.0,
    preprocess: Callable[[Any], Any] | None = None,
    perturb: Callable[..., Any] | None = None,
    input_name: str = "image",
) -> JointLoss:
    """L = (1/B) sum_b w_b l_b + (lambda_jr / 2) mean ||J||_F^2 (Eq. 5) for any objective l.

    Args:
        apply: (params, model_state, x, key) -> (z, model_state) in train mode, as `models.train_mode` makes it. It is
            called once: supervised and penalty branch share the dropout mask.
        objective: (z, batch) -> (losses [B], metrics {name: [B]}), by other names than those of OWN.
        penalty: from `penalties`; None: `projected()`, the paper's.
        lambda_jr: coefficient of at least 0, a schedule of the step such as `schedules.lambda_ramp`, or
            `schedules.target_norm(...)`, which finds it; 0 leaves the penalty out of the program.
        preprocess: raw batch[input_name] -> the space of the network's input, where the Jacobian is taken.
        perturb: (f, image, label, keys) -> image in raw units, f: raw image -> z with the same parameters and dropout
            mask; adversarial training. No gradient flows through it. One with `losses=None` gets z -> [B], the losses
            of the objective, as those of `adversarial_training` do. Labels that the mask of `classification_loss`
            leaves out are -1.
        input_name: of the input in the batch.

    Returns:
        loss(params, state, batch, keys) -> (loss, (model_state, metrics)) for `make_train_step`. batch is a dict of
        arrays [B, ...]; where it has "weight" [B], the loss of each sample is multiplied by it, and that alone: penalty
        and metrics are over all samples, so that a weight of 0 is no way to pad a batch. Metrics are scalars:
        means of the objective, and penalty with its standard error, penalty_error, over penalty_count samples; where
        lambda_jr is no constant, lambda_jr.

    Raises:
        TypeError: apply, objective, penalty, preprocess or perturb cannot be called.
        ValueError: lambda_jr negative or not finite. In a call: a metric of the objective by a name of OWN.

    Example:
        >>> huber = lambda z, batch: (optax.huber_loss(z[:, 0], batch["label"]), {})
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> loss = supervised_loss(apply, huber, lambda_jr=0.1)

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Eq. 5.
    """
    penalty = checked(projected() if penalty is None else penalty)
    checks.function("apply", apply, APPLY_ARGUMENTS, APPLY_HINT)
    checks.function("objective", objective, ("z", "batch"))
    preprocess = (lambda raw: raw) if preprocess is None else preprocess
    checks.function("preprocess", preprocess, ("raw",))
    if perturb is not None:
        checks.function("perturb", perturb, ("f", "image", "label", "keys"))
    if not isinstance(input_name, str):
        raise TypeError(f"input_name must be a string, got {type(input_name).__name__}")
    if not (callable(lambda_jr) or isinstance(lambda_jr, TargetNorm)):
        checks.non_negative("lambda_jr", lambda_jr)
    climbed = log_cross_entropy if getattr(objective, "func", objective) is cross_entropy else None
    return JointLoss(apply, objective, penalty, lambda_jr, preprocess, perturb, input_name, climbed)


def classification_loss(apply: Apply, *, label_smoothing: float = 0.0, **options: Any) -> Any:
    """Cross-entropy plus (lambda_jr / 2) mean ||J||_F^2 (Eq. 5), as a loss for the train step.

    Labels are integers of the logits' leading shape, [B] for logits [B, C] and [B, T] for token logits [B, T, V], or
    distributions of the logits' own shape. Of tokens, the loss of a sample is the mean over those that batch["mask"]
    [B, T] marks, or over all. One of which it marks none counts, with loss 0 and no hit: leave it out. A label that is
    masked may be anything; what the model sees there must be finite, or the gradient is not.

    Args:
        apply: as for `supervised_loss`.
        label_smoothing: a, the labels are (1 - a) one-hot + a / C.
        **options: penalty, lambda_jr, preprocess, perturb, input_name, as for `supervised_loss`.

    Returns:
        As `supervised_loss`; the metrics are cross_entropy, accuracy, and penalty.

    Raises:
        TypeError, ValueError: as `supervised_loss`; label_smoothing outside [0, 1). In a call: labels of another shape.

    Example:
        >>> apply = lambda params, state, x, key: (x @ params, state)
        >>> loss = classification_loss(apply, lambda_jr=0.01)

    Reference: Hoffman, Roberts, Yaida (2019), https://arxiv.org/abs/1908.02729, Eq. 5.
    """
    checks.fraction("label_smoothing", label_smoothing, zero=True)
    options, wrap = deprecation.loss_options(options)
    objective = partial(cross_entropy, label_smoothing=label_smoothing)
    return wrap(supervised_loss(apply, objective, **options))


def regression_loss(apply: Apply, **options: Any) -> JointLoss:
    """Squared error ||z - y||^2 of each sample plus (lambda_jr / 2) mean ||J||_F^2.

    Args:
        apply: as for `supervised_loss`; z may have any shape [B, ...].
        **options: as for `supervised_loss`. batch["label"] has the shape of z.

    Returns:
        As `supervised_loss`; the metrics are squared_error and penalty.

    Raises:
        TypeError, ValueError: as `supervised_loss`. In a call: labels of another shape.

    Example:
        >>> loss = regression_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01, input_name="x")
    """
    return supervised_loss(apply, squared_error, **options)


def multi_label_loss(apply: Apply, **options: Any) -> JointLoss:
    """Binary cross-entropy summed over C independent labels plus (lambda_jr / 2) mean ||J||_F^2.

    Args:
        apply: as for `supervised_loss`; logits [B, C], or one logit [B] or [B, 1] for two classes.
        **options: as for `supervised_loss`. batch["label"] has the shape of the logits, each entry in [0, 1].

    Returns:
        As `supervised_loss`; the metrics are cross_entropy, accuracy (share of labels that are right) and penalty.

    Raises:
        TypeError, ValueError: as `supervised_loss`. In a call: labels of another shape.

    Example:
        >>> loss = multi_label_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01)
    """
    return supervised_loss(apply, binary_cross_entropy, **options)


def _weight(batch: Batch, losses: Array) -> Array:
    """The weights of the samples, [B]."""
    checks.entries("weight", batch["weight"], losses.shape, "one for each sample")
    return jnp.asarray(batch["weight"]).astype(losses.dtype)


def _statistics(penalty: Any, norms: Array | None) -> dict[str, Array]:
    """The penalty, its standard error, and the samples it is a mean of, as `metrics.merged` takes them."""
    if norms is None:
        return {}
    error, m = standard_error(norms), jnp.full_like(jnp.sum(norms), norms.shape[0])
    mean = jnp.mean(norms) if isinstance(penalty, float) else jax.lax.stop_gradient(penalty)
    return {"penalty": mean, "penalty_error": error, "penalty_count": m}
