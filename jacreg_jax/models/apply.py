"""A flax.linen module as the pure functions that training and evaluation take."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze

from jacreg_jax import checks, modes, shares
from jacreg_jax.functional import CallsOfNorms, Output, at_batch_statistics, reads_running_statistics
from jacreg_jax.keys import check_key
from jacreg_jax.types import Apply, PyTree


def initialize(module: nn.Module, key: jax.Array, x: Any) -> tuple[PyTree, PyTree]:
    """(params, model_state) of the module for inputs like x; model_state holds BatchNorm's statistics, or is {}.

    Args:
        module: a `flax.linen.Module`.
        key: typed key.
        x: an input, [B, ...].

    Returns:
        (params, model_state), pytrees.

    Raises:
        TypeError: module is no linen module, key no key, x no array.

    Example:
        >>> from jacreg_jax.models import MLP
        >>> params, model_state = initialize(MLP((8, 3)), jax.random.key(0), jax.numpy.ones((1, 4)))
        >>> sorted(params), model_state
        (['Dense_0', 'Dense_1'], {})
    """
    _require(module)
    is_raw = getattr(key, "dtype", None) == jnp.uint32 and jnp.shape(key) == (2,)  # of jax.random.PRNGKey
    if not is_raw:
        check_key(key)
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x)) or not jax.tree.leaves(x):
        raise TypeError(f"x must be an array [B, ...], or a pytree of such, got {type(x).__name__}")
    variables = dict(jax.jit(module.init)(key, x))
    return variables.pop("params"), variables


def train_mode(module: nn.Module, **options: Any) -> Apply:
    """(params, model_state, x, key) -> (logits, model_state): dropout drawn from key, batch statistics updated.

    Other streams of random numbers, as in make_rng("noise"), are drawn from the key too, and are not those of dropout.

    Args:
        module: a `flax.linen.Module` whose call takes train, or other arguments of `modes.MODES`.
        **options: other arguments of its call.

    Returns:
        A function for the losses of `training`.

    Raises:
        TypeError: module is no linen module.

    Example:
        >>> from jacreg_jax.models import MLP
        >>> module, x = MLP((8, 3)), jnp.ones((2, 4))
        >>> logits, state = train_mode(module)(*initialize(module, jax.random.key(0), x), x, jax.random.key(1))
        >>> logits.shape
        (2, 3)
    """
    _require(module)
    modes.warn_of_unknown_mode(type(module).__call__, options)
    return functools.partial(_applied, module, _mode(module, True, options))


def called_with(module: nn.Module, **options: Any) -> Apply:
    """(params, model_state, x, key) -> (logits, model_state): the module as these arguments of its call make it.

    Args:
        module: a `flax.linen.Module`.
        **options: arguments of its call.

    Returns:
        A function for the losses of `training`.

    Raises:
        TypeError: module is no linen module.

    Example:
        >>> from jacreg_jax.models import MLP
        >>> module, x = MLP((8, 3)), jnp.ones((2, 4))
        >>> called_with(module, train=False)(*initialize(module, jax.random.key(0), x), x)[0].shape
        (2, 3)
    """
    _require(module)
    return functools.partial(_applied, module, options)


def eval_mode(module: nn.Module, **options: Any) -> Apply:
    """(params, model_state, x, key) -> (logits, model_state): no dropout, running statistics, nothing updated.

    Args:
        module: as for `train_mode`.
        **options: other arguments of its call.

    Returns:
        A function for `penalties.of_model`, and of (params, model_state, x).

    Raises:
        TypeError: module is no linen module.

    Example:
        >>> from jacreg_jax.models import MLP
        >>> module, x = MLP((8, 3)), jnp.ones((2, 4))
        >>> eval_mode(module)(*initialize(module, jax.random.key(0), x), x)[0].shape
        (2, 3)
    """
    _require(module)
    modes.warn_of_unknown_mode(type(module).__call__, options)
    return reads_running_statistics(functools.partial(_applied, module, _mode(module, False, options), is_frozen=True))


def batch_statistics_mode(module: nn.Module, **options: Any) -> Apply:
    """(params, model_state, x, key) -> (logits, model_state): eval mode at the statistics of x itself.

    What to penalise where there is BatchNorm: `penalties.of_model(batch_statistics_mode(module))`. The statistics come
    from stop_gradient(x) and are differentiable in the parameters; see `functional.at_batch_statistics`. They are those
    of modules that keep running averages with a `momentum`, as flax's BatchNorm does.

    Args:
        module: as for `train_mode`.
        **options: other arguments of its call.

    Returns:
        A function for `penalties.of_model`.

    Raises:
        TypeError: module is no linen module.

    Example:
        >>> from jacreg_jax import penalties
        >>> from jacreg_jax.models import ResNet18
        >>> penalty = penalties.of_model(batch_statistics_mode(ResNet18()))
    """
    train = train_mode(module, **options)

    def statistics(params: PyTree, model_state: PyTree, x: Any, key: Any) -> PyTree:
        calls = CallsOfNorms()
        with nn.intercept_methods(partial(_without_momentum, calls)):
            new = train(params, model_state, x, key)[1]
        calls.tell()
        return new

    return at_batch_statistics(statistics, eval_mode(module, **options))


def predictor(
    module: nn.Module,
    params: PyTree,
    model_state: PyTree = None,
    *,
    preprocess: Callable[[Any], Any] | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """f(x) -> logits in eval mode, as attacks and evaluation take it.

    The function is a pytree of its parameters (`jax.tree_util.Partial`): pass it through jit as an argument and new
    parameters do not recompile. With preprocess, such as `datasets.MNIST.normalize`, it takes raw pixels.

    Args:
        module: as for `train_mode`.
        params: parameters.
        model_state: such as BatchNorm's statistics; None: {}.
        preprocess: raw pixels -> the input of the network.
        **options: other arguments of its call.

    Returns:
        f: [B, ...] -> logits [B, C].

    Raises:
        TypeError: module is no linen module; preprocess cannot be called.

    Example:
        >>> from jacreg_jax.models import MLP
        >>> module, x = MLP((8, 3)), jnp.ones((2, 4))
        >>> predictor(module, *initialize(module, jax.random.key(0), x))(x).shape
        (2, 3)
    """
    _require(module)
    if preprocess is not None:
        checks.function("preprocess", preprocess, ("raw",))
    modes.warn_of_unknown_mode(type(module).__call__, options)
    evaluate = _Evaluate(module, tuple(sorted(options.items())))
    return jax.tree_util.Partial(Output(evaluate, preprocess), params, model_state or {}, None)


def _without_momentum(calls: CallsOfNorms, method: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Running averages forget what was before: train mode then leaves the batch's own statistics in the state."""
    if modes.keeps_average(context.module):
        calls[context.module.path] += context.method_name == "__call__"
        object.__setattr__(context.module, "momentum", 0.0)  # of this call's own copy of the module
    return method(*args, **kwargs)


def _over_whole_batch(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """On a share of a batch, BatchNorm averages over the axis of the mesh too."""
    axis, module = shares.batch_axis(), context.module
    if axis is not None and isinstance(module, nn.BatchNorm) and module.axis_name is None:
        object.__setattr__(module, "axis_name", axis)  # of this call's own copy of the module
    return method(*args, **kwargs)


class _Evaluate:
    """Eval mode; equal for equal modules, so that predictors of one module share a compiled program."""

    def __init__(self, module: nn.Module, options: tuple[tuple[str, Any], ...]):
        self.own = module, options

    def __call__(self, params: PyTree, model_state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        module, options = self.own
        return _applied(module, _mode(module, False, dict(options)), params, model_state, x, key, is_frozen=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Evaluate) and self.own == other.own

    def __hash__(self) -> int:
        return hash(self.own)


def _applied(
    module: nn.Module,
    options: dict[str, Any],
    params: PyTree,
    model_state: PyTree,
    x: Any,
    key: Any = None,
    *,
    is_frozen: bool = False,
) -> tuple[Any, PyTree]:
    """(output, model_state) of the module called with these options; frozen, the state is that given."""
    variables = {"params": params, **model_state}
    if is_frozen:
        return module.apply(variables, x, **options), model_state
    rngs = None if key is None else {"dropout": key, "params": jax.random.fold_in(key, 1)}  # flax: any other stream
    with nn.intercept_methods(_over_whole_batch):
        output, new = module.apply(variables, x, rngs=rngs, mutable=list(model_state), **options)
    return output, _without_sown(model_state, dict(new))


def _without_sown(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The new state. Collections that a call adds to, as `sow` does, are no state: they stay as they were.

    flax gives dictionaries for the FrozenDicts that it is called with; each comes back as it was.
    """
    state = dict(new)
    for name in old:
        before, after = (str(jax.tree.structure(unfreeze(state.get(name, {})))) for state in (old, new))
        if before == after:
            state[name] = jax.tree.unflatten(jax.tree.structure(old[name]), jax.tree.leaves(new[name]))
        else:
            state[name] = old[name]
            checks.warn(
                f"collection {name!r} of the module grows in every call, as `sow` makes it: it is kept out of the "
                "model's state, and no loss sees it"
            )
    return state


def _require(module: Any) -> None:
    if not isinstance(module, nn.Module):
        got = f"the class {module.__name__}, without its call" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"module must be a flax.linen.Module, got {got}; `interop` takes models of other libraries")


def _mode(module: nn.Module, is_train: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call in this mode: the first of them says it, the others may be given by the caller."""
    names = modes.mode_arguments(type(module).__call__)
    return modes.in_mode(names, is_train) | options | modes.in_mode(names[:1], is_train)
