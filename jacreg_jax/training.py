"""Training with a joint loss (Eq. 5): a state, an optimizer, one compiled step or many in one dispatch.

One step, from here to the vector-Jacobian product: `make_train_step` compiles `_update`, which differentiates
the loss (`supervised.JointLoss`), which calls the penalty (`penalties.projected`), which calls `jax.vjp` once
(`penalty.value_and`) and sums ||J^T v||^2 (`mean_norm`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jacreg_jax import checks, generators, sharding, shares
from jacreg_jax.accumulation import ARGUMENTS, Loss, in_parts as in_parts, lazily as lazily
from jacreg_jax.concrete import Deferred, deferred
from jacreg_jax.guard import Guarded, by_name, check_batch, check_is_state, check_optimizer, check_rows, check_state
from jacreg_jax.keys import check_key
from jacreg_jax.metrics import merged
from jacreg_jax.optimizers import quench as quench, sgd as sgd, updated
from jacreg_jax.rows import at_least_float32
from jacreg_jax.schedules import Dual, Optimizer
from jacreg_jax.supervised import (
    classification_loss as classification_loss,
    multi_label_loss as multi_label_loss,
    regression_loss as regression_loss,
    supervised_loss as supervised_loss,
)
from jacreg_jax.types import Array, PyTree


class TrainState(NamedTuple):
    """All that training changes, and the key it draws from."""

    params: PyTree
    opt_state: PyTree
    model_state: PyTree  # mutable collections of the model, such as BatchNorm's statistics; {} where there are none
    step: Array  # int32, steps done
    key: Array  # typed key, constant; step t draws from fold_in(key, t)


class NonFiniteError(FloatingPointError):
    """Loss, penalty or gradient stopped being finite; the message names the step, `step` holds it."""

    def __init__(self, step: int, metrics: dict[str, float]):
        self.step = step
        super().__init__(
            f"training stopped at step {step}: loss {metrics['loss']:.4g}, "
            f"penalty {metrics.get('penalty', float('nan')):.4g}, gradient norm {metrics['grad_norm']:.4g}; "
            "the state before this step is kept. Try a smaller learning rate or a smaller lambda_jr"
        )


def init_state(params: PyTree, optimizer: Optimizer, key: jax.Array, model_state: PyTree = None) -> TrainState:
    """State before the first step; a copy, so that a step that donates it leaves the caller's params and key alone.

    Args:
        params: pytree of parameters.
        optimizer: an optax transformation, or `optax.MultiSteps`.
        key: typed key.
        model_state: such as BatchNorm's statistics; None: {}.

    Returns:
        TrainState.

    Raises:
        TypeError: key is not a typed key, optimizer no optax transformation; params or model_state of other leaves.

    Example:
        >>> state = init_state({"w": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """
    check_key(key)
    check_optimizer(optimizer)
    checks.trainable(params, model_state)
    params, model_state = jax.tree.map(_copy, (params, {} if model_state is None else model_state))
    opt_state = jax.tree.map(_copy, optimizer.init(params))  # may hold params themselves
    return TrainState(params, opt_state, model_state, jnp.zeros((), jnp.int32), _copy(key))


def make_train_step(
    loss: Loss,
    optimizer: Optimizer,
    *,
    mesh: jax.sharding.Mesh | None = None,
    backend: sharding.Backend = "jit",
    donate: bool = True,
) -> sharding.Step:
    """One compiled training step, step(state, batch) -> (state, metrics), on one device or sharded over a mesh.

    A step whose loss or gradient is not finite leaves the state as it was; `check_finite` then raises on the host.

    Args:
        loss: (params, state, batch, keys) -> (loss, (model_state, metrics)), the mean over the batch; keys holds one
            typed key for each row, the same on any number of devices. See `classification_loss`. The metrics, scalars
            of other names than loss and grad_norm, of several devices are put together by `metrics.merged`.
        optimizer: an optax transformation, or `optax.MultiSteps`; one that wants value, grad or value_fn gets them.
        mesh: from `sharding.data_mesh`, or any with an axis "data"; None for one device.
        backend: "jit", "shard_map" or "pmap".
        donate: reuse the buffers of the old state.

    Returns:
        The step; metrics are scalars, loss and grad_norm among them.

    Raises:
        TypeError: loss cannot be called, or optimizer is no optax transformation; in a call, a batch of anything but
            arrays.
        ValueError: unknown backend, or no mesh where one is needed. In a call, an empty batch, one that does not split
            over the mesh, the state of another optimizer, a metric called loss or grad_norm, or a label out of range
            that lies on the host.

    Example:
        >>> loss = classification_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01)
        >>> step = make_train_step(loss, optax.adam(1e-3))
        >>> state = init_state(jnp.ones((4, 3)), optax.adam(1e-3), jax.random.key(0))
        >>> state, metrics = step(state, {"image": jnp.ones((2, 4)), "label": jnp.zeros(2, int)})
        >>> sorted(metrics)
        ['accuracy', 'cross_entropy', 'grad_norm', 'loss', 'penalty', 'penalty_error']
    """
    _check(loss, optimizer)
    tests: list[Deferred] = []
    body = partial(_update, loss, optimizer, tests)
    compiled = sharding.map_over_devices(body, mesh, backend, donate=donate)
    devices = sharding.num_shares(mesh, backend)

    def data_of(state: TrainState, batch: PyTree) -> PyTree:
        check_batch(batch, shares=devices)
        return batch

    return Guarded(compiled, data_of, tests)


def make_train_steps(
    loss: Loss,
    optimizer: Optimizer,
    *,
    mesh: jax.sharding.Mesh | None = None,
    backend: sharding.Backend = "jit",
    donate: bool = True,
    together: bool = False,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """Many training steps in one dispatch: steps(state, data, indices) -> (state, metrics [T]).

    The data set lives on the device and every batch is gathered there, so that the host is idle between logs. From
    the first step on that is not finite the state stays as it was. Over a mesh the data set lies on every device, and
    each gathers its share of every batch.

    Args:
        loss: as for `make_train_step`.
        optimizer: an optax transformation, or `optax.MultiSteps`.
        mesh: from `sharding.data_mesh`; None for one device.
        backend: "jit", "shard_map" or "pmap".
        donate: reuse the buffers of the old state.
        together: train M models in one program; every leaf of the state, the indices and the metrics then has a
            leading axis [M], and each model comes out as it would alone. Over a mesh, which jit alone then takes, each
            device trains its share of the models, on whole batches.

    Returns:
        Compiled function of the state, the data (pytree of [N, ...]) and integer indices [T, B].

    Raises:
        TypeError, ValueError: as `make_train_step`; in a call, indices of another form, or a row or a label out of
            range that lies on the host.

    Example:
        >>> loss = classification_loss(lambda params, state, x, key: (x @ params, state), lambda_jr=0.01)
        >>> steps = make_train_steps(loss, sgd(0.1))
        >>> state = init_state(jnp.ones((4, 3)), sgd(0.1), jax.random.key(0))
        >>> data = {"image": jnp.ones((10, 4)), "label": jnp.zeros(10, int)}
        >>> state, metrics = steps(state, data, jnp.asarray([[0, 1], [2, 3], [4, 5]]))
        >>> int(state.step), metrics["loss"].shape
        (3, (3,))
    """
    _check(loss, optimizer)
    tests: list[Deferred] = []

    def steps(state: TrainState, data: PyTree, indices: Array, axis_name: str | None = None) -> Any:
        first = state.step

        def body(state: TrainState, indexed: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
            i, index = indexed
            batch = jax.tree.map(lambda leaf: leaf[index], data)
            return _update(loss, optimizer, tests, state, batch, axis_name, alive=state.step == first + i)

        return jax.lax.scan(body, state, (jnp.arange(indices.shape[0]), indices))

    if together:

        def each(state: TrainState, data: PyTree, indices: Array) -> Any:
            own = state._replace(key=generators.one_by_one(state.key))
            new, metrics = jax.vmap(steps, in_axes=(0, None, 0))(own, data, indices)
            return new._replace(key=state.key), metrics

        compiled = sharding.map_over_members(each, mesh, backend, donate=donate)
    else:
        specs = PartitionSpec(), PartitionSpec(None, sharding.AXIS)
        compiled = sharding.map_over_devices(steps, mesh, backend, donate=donate, batch_specs=specs)
    devices = sharding.num_shares(mesh, backend)

    def data_of(state: TrainState, data: PyTree, indices: Any) -> PyTree:
        check_is_state(state)
        check_batch(data, "data")
        check_rows(indices, len(jax.tree.leaves(data)[0]), "[M, T, B]" if together else "[T, B]", shares=devices)
        if jnp.ndim(state.step) != together:
            wanted = "[M] in front of every leaf where together=True" if together else "that of one model"
            raise ValueError(f"state must be {wanted}, got step of shape {jnp.shape(state.step)}")
        return data

    return Guarded(compiled, data_of, tests)


def check_finite(metrics: dict[str, Any], last_step: int) -> None:
    """Raise NonFiniteError for the first step in the metrics, [T] or scalars, that was not finite.

    Args:
        metrics: of the steps last_step - T + 1 ... last_step, counted from 1.
        last_step: number of the last of them.

    Raises:
        ValueError: metrics without loss and grad_norm; last_step is no count.
        NonFiniteError: loss or gradient norm of a step is NaN or infinite.

    Example:
        >>> check_finite({"loss": np.asarray([1.0, 0.5]), "grad_norm": np.asarray([1.0, 1.0])}, 2)
    """
    if not isinstance(metrics, Mapping) or not {"loss", "grad_norm"} <= metrics.keys():
        got = sorted(metrics) if isinstance(metrics, Mapping) else type(metrics).__name__
        raise ValueError(f"metrics must be those of a train step, loss and grad_norm among them, got {got}")
    checks.on_host(metrics=metrics)
    last_step = checks.count("last_step", last_step, least=0)
    finite = np.atleast_1d(np.isfinite(metrics["loss"]) & np.isfinite(metrics["grad_norm"]))
    if not finite.all():
        i = int(np.argmin(finite))
        at = {name: float(np.atleast_1d(value)[i]) for name, value in metrics.items()}
        raise NonFiniteError(last_step - len(finite) + 1 + i, at)


@checks.pure
def _update(
    loss: Loss,
    optimizer: Optimizer,
    tests: list[Deferred],
    state: TrainState,
    batch: PyTree,
    axis_name: str | None,
    alive: Any = True,
) -> tuple[TrainState, dict[str, Array]]:
    """The step itself, on this device's share of the batch."""
    check_state(state, optimizer)
    rows = jax.tree.leaves(batch)[0].shape[0]
    key = jax.random.fold_in(state.key, state.step)
    keys = sharding.row_keys(key, rows, axis_name)
    params = sharding.varying(state.params, axis_name)
    share = None if axis_name is None else shares.Share(axis_name, rows, sharding.row_keys(key, 1, None)[0])
    with deferred(by_name(batch)) as left, shares.on_share(share):
        part = sharding.share_of_mean(checks.of_form(loss), axis_name)  # its gradients are summed, not averaged
        (value, (model_state, metrics)), grads = jax.value_and_grad(part, has_aux=True)(params, state, batch, keys)
    tests[:] = left
    checks.free_names("loss", metrics, ("loss", "grad_norm"))
    grads, value = sharding.sum_over_devices((grads, value), axis_name)
    grads = jax.tree.map(jnp.conj, grads)  # of complex parameters, the way up: jax.grad gives its conjugate
    model_state = sharding.mean_over_devices(model_state, axis_name)
    if axis_name is not None:
        each = sharding.stacked_over_devices(metrics, axis_name)
        metrics = merged(each, partial(jnp.mean, axis=0), jax.lax.axis_size(axis_name))
    grad_norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(at_least_float32(g.dtype)), grads))

    def value_of(params: PyTree) -> Any:  # for line searches
        with shares.on_share(share):
            return loss(params, state, batch, keys)[0]

    extra = {"value": value, "grad": grads, "value_fn": sharding.mean_loss(value_of, axis_name)}
    if Dual.all_in(state.opt_state):  # of a `target_norm`; optax's line searches refuse what they do not know
        extra["metrics"] = metrics
        if not isinstance(optimizer, optax.GradientTransformationExtraArgs):
            must = "optimizer must be target.optimizer(...) outside of all else, of optax.MultiSteps too"
            raise ValueError(f"{must}, got {type(optimizer).__name__}")
    updates, opt_state = updated(optimizer, grads, state.opt_state, state.params, extra)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(params, opt_state, model_state, state.step + 1, state.key)
    ok = alive & jnp.isfinite(value) & jnp.isfinite(grad_norm)
    kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, state)
    metrics.pop("penalty_count", None)
    return kept, {"loss": value, "grad_norm": grad_norm, **metrics}


def _check(loss: Any, optimizer: Any) -> None:
    checks.function("loss", loss, ARGUMENTS)
    check_optimizer(optimizer)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.clone(leaf)
    return jnp.array(leaf, jnp.asarray(leaf).dtype)  # named, the dtype is strong: a weak one would compile step by step
