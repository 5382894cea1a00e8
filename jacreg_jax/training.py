"""Training with the joint loss (Eq. 5): a state, an optimizer, one compiled step or many in one dispatch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jacreg_jax import sharding
from jacreg_jax.accumulation import every, in_parts
from jacreg_jax.jacobian import Probe
from jacreg_jax.penalty import joint_loss, standard_error, value_and_mean_frobenius_sq


class TrainState(NamedTuple):
    """All that training changes, and the key it draws from."""

    params: Any
    opt_state: Any
    model_state: Any  # mutable collections of the model, such as BatchNorm's statistics; {} where there are none
    step: jax.Array  # int32, steps done
    key: jax.Array  # typed key, constant; step t draws from fold_in(key, t)


class NonFiniteError(FloatingPointError):
    """Loss, penalty or gradient stopped being finite; the message names the step, `step` holds it."""

    def __init__(self, step: int, metrics: dict):
        self.step = step
        super().__init__(
            f"training stopped at step {step}: loss {metrics['loss']:.4g}, "
            f"penalty {metrics.get('penalty', float('nan')):.4g}, gradient norm {metrics['grad_norm']:.4g}; "
            "the state before this step is kept. Try a smaller learning rate or a smaller lambda_jr"
        )


def init_state(params, optimizer: optax.GradientTransformation, key: jax.Array, model_state=None) -> TrainState:
    """State before the first step."""
    return TrainState(params, optimizer.init(params), model_state or {}, jnp.zeros((), jnp.int32), key)


def quench(initial: float, boundaries: Sequence[int], factor: float = 0.1) -> optax.Schedule:
    """Learning rate `initial`, multiplied by `factor` at each of the given steps (paper: tenfold at 50k and 100k)."""
    return optax.piecewise_constant_schedule(initial, dict.fromkeys(boundaries, factor))


def sgd(learning_rate, *, momentum: float = 0.9, weight_decay: float | jax.Array = 0.0) -> optax.GradientTransformation:
    """SGD as in the paper: u <- rho u + g + lambda_WD theta, theta <- theta - eta u.

    The decay is coupled, the gradient of (lambda_WD / 2) ||theta||^2, and acts on all parameters, as in torch. It may
    be traced, such as one of several under vmap.
    """
    step = optax.sgd(learning_rate, momentum=momentum or None)
    if isinstance(weight_decay, (int, float)) and weight_decay == 0:
        return step
    return optax.chain(optax.add_decayed_weights(weight_decay), step)


def classification_loss(
    apply: Callable,
    *,
    lambda_jr: float | Callable = 0.0,
    num_projections: int | Literal["exact"] = 1,
    probe: Probe = "sphere",
    sample_fraction: float = 1.0,
    chunk_size: int | None = None,
    lazy: int = 1,
    part_size: int | None = None,
    preprocess: Callable = lambda image: image,
    perturb: Callable | None = None,
    penalty_apply: Callable | None = None,
    relative: Callable | None = None,
) -> Callable:
    """Cross-entropy with one-hot targets plus (lambda_jr / 2) * mean ||J||_F^2 (Eq. 5), as a loss for the train step.

    Args:
        apply: (params, model_state, x, key) -> (logits [B, C], model_state) in train mode, as `models.train_mode`
            makes it. It is called once: supervised and penalty branch share the dropout mask.
        lambda_jr: coefficient, or a schedule of the step such as `schedules.lambda_ramp`; 0 leaves the penalty out of
            the program.
        num_projections: n, or "exact" for the sum over all C basis vectors.
        probe: see `value_and_penalty`.
        sample_fraction: share of the batch that is penalised.
        chunk_size: products at once; see `jacobian.mean_from_vjp`.
        lazy: penalise every lazy-th step, with lambda_jr multiplied by it, at 1 + n / lazy plain steps. The mean over
            steps of the gradient is the same, its variance is larger, and lr * lambda_jr * lazy * curvature must stay
            below 2. The loss is then differentiable in params alone.
        part_size: samples differentiated at once, in the memory and the cache of as many: the loss is the mean over
            parts of the batch, each with a dropout mask of its own; a batch that part_size does not divide is one
            part. None: the whole batch. The loss is then differentiable in params alone.
        preprocess: raw batch["image"] -> the space of the network's input, where the Jacobian is taken.
        perturb: (f, image, label, keys) -> image in raw pixels, f: raw image -> logits with the same parameters and
            dropout mask; adversarial training. No gradient flows through it.
        penalty_apply: as apply, for the penalty alone, at the cost of one more forward pass. With BatchNorm,
            `models.eval_mode` leaves the cross-sample terms of batch statistics out of the penalty.
        relative: (f, x, label, keys) -> [B], penalised in place of ||J||_F^2, such as
            lambda f, x, label, keys: relatives.noise_consistency(f, x, keys, sigma=0.1). The options of the Jacobian
            norm (num_projections, probe, sample_fraction, chunk_size) then do nothing.

    Returns:
        loss(params, state, batch, keys) -> (loss, (model_state, metrics)) for `make_train_step`; batch a dict of
        image [B, ...] and label, integers [B] or distributions [B, C]. Metrics: cross_entropy, accuracy, and with a
        penalty penalty (estimate of mean ||J||_F^2) and penalty_error (its standard error), NaN on the steps that lazy
        leaves out.

    Raises:
        ValueError: lazy or part_size below 1; num_projections neither an integer nor "exact".
    """
    if lazy < 1:
        raise ValueError(f"lazy must be at least 1, got {lazy}")
    if part_size is not None and part_size < 1:
        raise ValueError(f"part_size must be at least 1 or None, got {part_size}")
    if num_projections != "exact" and not isinstance(num_projections, int):
        raise ValueError(f"num_projections must be an integer or 'exact', got {num_projections!r}")

    value_and_mean = partial(
        value_and_mean_frobenius_sq,
        num_projections=num_projections,
        probe=probe,
        sample_fraction=sample_fraction,
        chunk_size=chunk_size,
    )

    def value_and_norms(model, x, label, state, keys, params):
        """((z, model_state), penalty, norms)."""
        if relative is not None:
            norms = relative(lambda x: model(x)[0], x, label, keys)  # XLA merges the two forward passes
            return model(x), jnp.mean(norms), norms
        if penalty_apply is not None:
            penalised = lambda x: penalty_apply(params, state.model_state, x, keys[0])[0]
            return model(x), *value_and_mean(penalised, x, keys)[1:]
        if jax.tree.leaves(state.model_state):
            return value_and_mean(model, x, keys, has_aux=True)
        z, *penalty = value_and_mean(lambda x: model(x)[0], x, keys)
        return (z, state.model_state), *penalty

    def weighted(weight):
        def loss(params, state, batch, keys):
            image, label = batch["image"], batch["label"]
            model = lambda x: apply(params, state.model_state, x, keys[0])
            if perturb is not None:
                raw_model = lambda image: model(preprocess(image))[0]
                image = jax.lax.stop_gradient(perturb(raw_model, image, label, keys))
            x = preprocess(image)
            if is_plain:
                (z, model_state), penalty, metrics = model(x), 0.0, {}
            elif weight:
                (z, model_state), penalty, norms = value_and_norms(model, x, label, state, keys, params)
                metrics = {"penalty": penalty, "penalty_error": standard_error(norms)}
            else:
                (z, model_state), penalty = model(x), 0.0
                metrics = dict.fromkeys(("penalty", "penalty_error"), jnp.full_like(jnp.max(z), jnp.nan))
            cross_entropy, hits = _cross_entropy(z, label)
            metrics |= {"cross_entropy": cross_entropy, "accuracy": jnp.mean(hits)}
            coefficient = lambda_jr(state.step) if callable(lambda_jr) else lambda_jr
            return joint_loss(cross_entropy, weight * penalty, lambda_jr=coefficient), (model_state, metrics)

        return loss if part_size is None else in_parts(part_size, loss)

    is_plain = isinstance(lambda_jr, (int, float)) and lambda_jr == 0
    if lazy == 1 or is_plain:
        return weighted(1)
    return every(lazy, weighted(lazy), weighted(0))


def _cross_entropy(z, label):
    """Batch mean, and whether each prediction hits; integer labels [B] or distributions [B, C]."""
    if label.ndim == 2:
        return jnp.mean(optax.softmax_cross_entropy(z, label)), jnp.argmax(z, -1) == jnp.argmax(label, -1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, label)), jnp.argmax(z, -1) == label


def make_train_step(
    loss: Callable,
    optimizer: optax.GradientTransformation,
    *,
    mesh: jax.sharding.Mesh | None = None,
    backend: sharding.Backend = "jit",
    donate: bool = True,
) -> Callable:
    """One compiled training step, step(state, batch) -> (state, metrics), on one device or sharded over a mesh.

    A step whose loss or gradient is not finite leaves the state as it was; `check_finite` then raises on the host.

    Args:
        loss: (params, state, batch, keys) -> (loss, (model_state, metrics)), the mean over the batch; keys holds one
            typed key for each row, the same on any number of devices. See `classification_loss`.
        optimizer: an optax transformation.
        mesh: from `sharding.data_mesh`; None for one device.
        backend: "jit", "shard_map" or "pmap".
        donate: reuse the buffers of the old state.

    Returns:
        The step; metrics are scalars, loss and grad_norm among them.

    Raises:
        ValueError: unknown backend, or no mesh where one is needed.
    """
    return sharding.map_over_devices(partial(_update, loss, optimizer), mesh, backend, donate=donate)


def make_train_steps(
    loss: Callable, optimizer: optax.GradientTransformation, *, donate: bool = True, together: bool = False
) -> Callable:
    """Many training steps in one dispatch: steps(state, data, indices) -> (state, metrics [T]).

    The data set lives on the device and every batch is gathered there, so that the host is idle between logs. From
    the first step on that is not finite the state stays as it was.

    Args:
        loss: as for `make_train_step`.
        optimizer: an optax transformation.
        donate: reuse the buffers of the old state.
        together: train M models in one program; every leaf of the state, the indices and the metrics then has a
            leading axis [M], and each model comes out as it would alone.

    Returns:
        Compiled function of the state, the data (pytree of [N, ...]) and integer indices [T, B].
    """

    def steps(state, data, indices):
        first = state.step

        def body(state, indexed):
            i, index = indexed
            batch = jax.tree.map(lambda leaf: leaf[index], data)
            return _update(loss, optimizer, state, batch, None, alive=state.step == first + i)

        return jax.lax.scan(body, state, (jnp.arange(indices.shape[0]), indices))

    if together:
        steps = jax.vmap(steps, in_axes=(0, None, 0))
    return jax.jit(steps, donate_argnums=(0,) if donate else ())


def check_finite(metrics: dict, last_step: int) -> None:
    """Raise NonFiniteError for the first step in the metrics, [T] or scalars, that was not finite.

    Args:
        metrics: of the steps last_step - T + 1 ... last_step, counted from 1.
        last_step: number of the last of them.
    """
    finite = np.atleast_1d(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
    if not finite.all():
        i = int(np.argmin(finite))
        at = {name: float(np.atleast_1d(value)[i]) for name, value in metrics.items()}
        raise NonFiniteError(last_step - len(finite) + 1 + i, at)


def _update(loss, optimizer, state: TrainState, batch, axis_name: str | None, alive=True):
    rows = jax.tree.leaves(batch)[0].shape[0]
    keys = sharding.row_keys(jax.random.fold_in(state.key, state.step), rows, axis_name)
    params = sharding.varying(state.params, axis_name)
    (value, (model_state, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params, state, batch, keys)
    grads, model_state, metrics, value = sharding.mean_over_devices((grads, model_state, metrics, value), axis_name)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(params, opt_state, model_state, state.step + 1, state.key)
    ok = alive & jnp.isfinite(value) & jnp.isfinite(grad_norm)
    kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new[:4], state[:4])
    return TrainState(*kept, state.key), {"loss": value, "grad_norm": grad_norm, **metrics}
