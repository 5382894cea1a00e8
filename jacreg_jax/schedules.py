"""The coefficient lambda_jr: what it means as noise, a first guess, a ramp, and a norm that finds it by itself."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jacreg_jax import checks
from jacreg_jax.types import Array, PyTree

Optimizer: TypeAlias = optax.GradientTransformation | optax.MultiSteps
LEAST, MOST = 1e-8, 1e4  # lambda_jr of `target_norm` stays between them


def equivalent_noise(lambda_jr: float, *, std: float = 1.0) -> float:
    """Standard deviation of input noise, in raw pixels, that a least-squares loss would see as this penalty.

    For small white noise of deviation s in the network's input, E loss(x + s u) = loss(x) + (s^2 / 2) ||J||_F^2 + ...
    for a loss of unit curvature in the logits: lambda_jr = s^2. Raw pixels are `std` times preprocessed ones.

    Args:
        lambda_jr: coefficient of (lambda_jr / 2) mean ||J||_F^2.
        std: by which the preprocessing divides; 0.3081 for MNIST.

    Returns:
        Standard deviation in raw pixels.

    Raises:
        ValueError: lambda_jr negative, std not above 0, or not finite.

    Example:
        >>> round(equivalent_noise(0.01, std=0.3081), 3)
        0.031
    """
    checks.non_negative("lambda_jr", lambda_jr)
    checks.positive("std", std)
    return std * lambda_jr**0.5


def suggest_lambda(noise: float, *, std: float = 1.0) -> float:
    """lambda_jr = (noise / std)^2 for noise, in raw pixels, that the network should not mind; inverse of the above.

    It assumes white noise, small against the distance over which f bends, and logits whose loss has a curvature of
    about 1. Cross-entropy's is p (1 - p), at most 1/4 and less for sure predictions: the guess is on the strong side;
    correlated noise and adversaries need more. Try a tenth and ten times of it.

    Args:
        noise: standard deviation in raw pixels.
        std: by which the preprocessing divides.

    Returns:
        lambda_jr.

    Raises:
        ValueError: noise negative, std not above 0, or not finite.

    Example:
        >>> round(suggest_lambda(0.1, std=0.3081), 3)
        0.105
    """
    checks.non_negative("noise", noise)
    checks.positive("std", std)
    return (noise / std) ** 2


def lambda_ramp(final: float, *, num_steps: int, start: int = 0) -> optax.Schedule:
    """0 until `start`, then linearly up to `final` over num_steps: lets the network learn before it is held still.

    A schedule of the step, as `training.classification_loss(lambda_jr=...)` takes it.

    Args:
        final: lambda_jr at the end.
        num_steps: length of the ramp.
        start: step at which it begins.

    Returns:
        Schedule of the step.

    Raises:
        ValueError: num_steps below 1, final or start negative, or not finite.

    Example:
        >>> ramp = lambda_ramp(0.1, num_steps=4, start=2)
        >>> [round(float(ramp(step)), 3) for step in (0, 2, 4, 6, 9)]
        [0.0, 0.0, 0.05, 0.1, 0.1]
    """
    checks.non_negative("final", final)
    checks.count("num_steps", num_steps)
    checks.count("start", start, least=0)
    ramp: optax.Schedule = optax.linear_schedule(0.0, final, num_steps, transition_begin=start)
    return ramp


class Dual(NamedTuple):
    """What `target_norm` carries from step to step.

    Example:
        >>> round(float(jnp.exp(target_norm(2.0, start=0.5).init().log_lambda)), 3)
        0.5
    """

    log_lambda: Array
    mean_square: Array  # running mean of the measured ||J||_F^2

    @staticmethod
    def all_in(tree: PyTree) -> "list[Dual]":
        """Those that the tree holds."""
        nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Dual))
        return [node for node in nodes if isinstance(node, Dual)]


class TargetNormState(NamedTuple):
    """State of an optimizer that `TargetNorm.optimizer` wraps.

    Example:
        >>> target_norm(2.0).optimizer(optax.sgd(0.1)).init(jnp.ones(3))._fields
        ('inner', 'dual')
    """

    inner: PyTree
    dual: Dual


@dataclasses.dataclass(frozen=True)
class TargetNorm:
    """What `target_norm` returns, which says what the fields are. Pure functions, to be jitted and vmapped.

    Example:
        >>> target = target_norm(2.0)
        >>> optimizer = target.optimizer(optax.sgd(0.1))
        >>> round(float(target.lambda_jr(optimizer.init(jnp.ones(3)))), 3)
        0.01
    """

    norm: float
    rate: float
    decay: float
    start: float

    def init(self) -> Dual:
        """The state before the first step."""
        return Dual(jnp.float32(math.log(self.start)), jnp.float32(self.norm**2))

    def update(self, dual: Dual, mean_square: Any) -> Dual:
        """The state after a measurement of the batch mean of ||J||_F^2, a scalar; NaN is no measurement."""
        measured = jnp.asarray(mean_square, jnp.float32)
        smooth = self.decay * dual.mean_square + (1 - self.decay) * measured
        error = jnp.clip(smooth / self.norm**2 - 1, -1, 1)
        moved = jnp.clip(dual.log_lambda + self.rate * error, math.log(LEAST), math.log(MOST))
        is_one = jnp.isfinite(measured)
        return Dual(jnp.where(is_one, moved, dual.log_lambda), jnp.where(is_one, smooth, dual.mean_square))

    def lambda_jr(self, state: Any) -> Array:
        """The coefficient of a Dual, or of a state that holds one, such as a TrainState.

        Raises:
            ValueError: there is none, or more than one.
        """
        found = Dual.all_in(state)
        if len(found) != 1:
            raise ValueError(
                f"state must hold one Dual, got {len(found)}: with lambda_jr=target, init_state and make_train_step "
                "take target.optimizer(...) as their optimizer"
            )
        return jnp.exp(found[0].log_lambda)

    def optimizer(self, inner: Optimizer) -> optax.GradientTransformationExtraArgs:
        """The optimizer, with a Dual in its state that every update with `metrics=` moves, as train steps give them.

        Raises:
            TypeError: inner is no optax transformation.
            ValueError: in a step whose loss has no penalty.
        """
        if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
            raise TypeError(f"inner must be an optax transformation, got {type(inner).__name__}")
        inside = optax.with_extra_args_support(inner)

        def update(
            grads: PyTree, state: TargetNormState, params: PyTree = None, *, metrics: Any = None, **extra: Any
        ) -> tuple[PyTree, TargetNormState]:
            dual = state.dual if metrics is None else self.update(state.dual, _measured(metrics))
            updates, inner_state = inside.update(grads, state.inner, params, **extra)
            return updates, TargetNormState(inner_state, dual)

        init = lambda params: TargetNormState(inside.init(params), self.init())
        return optax.GradientTransformationExtraArgs(init, update)


def _measured(metrics: Mapping[str, Any]) -> Any:
    """The mean of ||J||_F^2 in the metrics of a step."""
    if "penalty" not in metrics:
        raise ValueError(
            "loss must give metrics with a penalty to target.optimizer(...), as those of `training` do with "
            f"lambda_jr=target, got {sorted(metrics)}"
        )
    return metrics.get("held_out_penalty", metrics["penalty"])


def target_norm(norm: float, *, rate: float = 0.02, decay: float = 0.9, start: float = 0.01) -> TargetNorm:
    """State the norm, and lambda_jr finds itself: dual ascent on log lambda_jr, in the train step.

    The Lagrangian of "least loss with mean ||J||_F^2 <= norm^2" is loss + (lambda_jr / 2) (mean ||J||_F^2 - norm^2).
    While the optimizer goes down in the parameters, each step goes up in log lambda_jr, along the running mean m of the
    penalty that was measured:

        m <- decay m + (1 - decay) mean ||J||_F^2
        log lambda_jr <- log lambda_jr + rate clip(m / norm^2 - 1, -1, 1)

    A norm above that of the plain network sends lambda_jr to 0. A norm so small that the network cannot learn sends it
    up, until lr * lambda_jr * curvature passes 2 and training diverges: lower the learning rate, or ask for less.

        target = target_norm(2.0)
        loss = classification_loss(apply, lambda_jr=target)
        optimizer = target.optimizer(optax.adam(1e-3))  # for init_state and make_train_step
        ...
        target.lambda_jr(state)

    The optimizer that it gives stands outside of all others, of `optax.MultiSteps` too.

    Where the batch has "held_out", raw inputs of as many rows, the norm is measured on those, without a gradient, at
    the cost of one more penalty ("held_out_label" where the penalty wants labels, and "held_out_mask" for tokens). In a
    loop of your own, carry `dual = target.init()`, take `target.lambda_jr(dual)`, and `target.update(dual, penalty)`
    with what you measured.

    Args:
        norm: ||J||_F wanted, the root of the mean square over the batch, in the units of the network's input.
        rate: of the ascent; lambda_jr changes by this share in a step, at most.
        decay: of the running mean.
        start: first lambda_jr.

    Returns:
        A target for lambda_jr=; its methods are init, update, lambda_jr and optimizer.

    Raises:
        TypeError: not real numbers.
        ValueError: norm not above 0, rate not in (0, 1), decay not in [0, 1), start outside [1e-8, 1e4].

    Example:
        >>> target = target_norm(2.0, rate=0.1, decay=0.0, start=0.01)
        >>> dual = target.update(target.init(), 6.0)  # 1.5 times what is wanted
        >>> round(float(target.lambda_jr(dual)), 5)
        0.01051

    Reference: Platt, Barr (1987), Constrained differential optimization, NeurIPS.
    """
    checks.positive("norm", norm)
    checks.fraction("rate", rate)
    checks.fraction("decay", decay, zero=True)
    checks.positive("start", start)
    if not LEAST <= start <= MOST:
        raise ValueError(f"start must lie in [{LEAST}, {MOST}], got {start}")
    return TargetNorm(norm, rate, decay, start)
