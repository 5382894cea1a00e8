"""A model of any library taken apart: pure functions of (params, model_state, x, key), in the modes that it has."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jacreg_jax import checks
from jacreg_jax.manual_axes import varying
from jacreg_jax.types import Apply, PyTree

State = Callable[[PyTree, PyTree, PyTree, Any], PyTree]  # (params, model_state, x, key) -> model_state


@dataclasses.dataclass(frozen=True)
class Functional:
    """What `interop.from_LIBRARY` makes of a model; it unpacks as ``apply, params, model_state = functional``.

    Each mode is a function (params, model_state, x, key) -> (output, model_state). A mode that the model does not have,
    or that could not be found out, is None.

    Attributes:
        apply: the model in the mode in which it was given.
        params: what is trained.
        model_state: what else changes, such as running statistics; {} where there is none.
        train: train mode.
        eval: eval mode.
        batch_statistics: eval mode at the statistics of this very batch; see `at_batch_statistics`.
        rebuild: (params, model_state) -> the model in its library's own form.

    Example:
        >>> from jacreg_jax import interop
        >>> apply, params, model_state = interop.from_function(lambda params, x: x @ params, jnp.ones((3, 2)))
        >>> apply(params, model_state, jnp.ones((4, 3)), jax.random.key(0))[0].shape
        (4, 2)
    """

    apply: Apply
    params: PyTree
    model_state: PyTree
    train: Apply | None = None
    eval: Apply | None = None
    batch_statistics: Apply | None = None
    rebuild: Callable[[PyTree, PyTree], Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        yield from (self.apply, self.params, self.model_state)

    def predictor(
        self, params: PyTree = None, model_state: PyTree = None, *, preprocess: Any = None
    ) -> Callable[..., Any]:
        """f(x) -> output in eval mode, or as given where there is none; for attacks, evaluation and penalties.

        Args:
            params: trained ones; None: those of the model.
            model_state: likewise.
            preprocess: raw -> the input of the network; None: no preprocessing.

        Returns:
            f, a pytree of its parameters: new ones do not recompile.
        """
        params = self.params if params is None else params
        model_state = self.model_state if model_state is None else model_state
        return jax.tree_util.Partial(Output(self.eval or self.apply, preprocess), params, model_state, None)


@dataclasses.dataclass(frozen=True)
class Output:
    """The first of what apply returns; equal for equal functions, so that compiled programs are found again."""

    apply: Apply
    preprocess: Callable[[Any], Any] | None = None

    def __call__(self, params: PyTree, model_state: PyTree, key: Any, x: Any) -> Any:
        """The output for raw x."""
        x = self.preprocess(x) if self.preprocess else x
        return self.apply(params, model_state, x, key)[0]


def at_batch_statistics(statistics: State, evaluate: Apply) -> Apply:
    """Eval mode at the statistics of this very batch: what to penalise in a network with BatchNorm.

    The statistics come from stop_gradient(x), so that the rows of the output are independent and no term of the penalty
    runs from one sample to another; they are differentiable in the parameters, so that the penalty sees what the
    cross-entropy sees. Penalised at the lagging running statistics instead, the scales in front of a BatchNorm move for
    ever, and training ends at chance.

    Args:
        statistics: (params, model_state, x, key) -> model_state with this batch's statistics in place of the running
            ones.
        evaluate: eval mode.

    Returns:
        (params, model_state, x, key) -> (output, model_state as it was).
    """

    def apply(params: PyTree, model_state: PyTree, x: Any, key: Any = None) -> tuple[Any, PyTree]:
        of_batch = statistics(params, model_state, jax.lax.stop_gradient(x), key)
        return evaluate(params, of_batch, x, key)[0], model_state

    return apply


class CallsOfNorms(Counter[Any]):
    """How often each BatchNorm of a pass was called: its statistics are those of its last call."""

    def tell(self) -> None:
        """A warning where one was called more than once."""
        if max(self.values(), default=0) > 1:
            checks.warn(
                "a BatchNorm is called more than once in one pass, and batch_statistics takes the statistics of its "
                "last call for all of them: the penalty is that of another function. Give each call a BatchNorm of its "
                "own, or penalise models.held_statistics_mode(module)"
            )


@jax.custom_jvp
def constant_inside(tree: PyTree) -> PyTree:
    """The tree itself; constant for the innermost derivative taken through it, and for no other.

    Args:
        tree: pytree of float arrays.

    Returns:
        The same.

    Example:
        >>> slope = jax.grad(lambda x: x * constant_inside(x))  # of x^2, but for the second factor: x
        >>> float(slope(3.0)), float(jax.grad(slope)(3.0))
        (3.0, 1.0)
    """
    return tree


@constant_inside.defjvp
def _constant_inside(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[PyTree, PyTree]:
    """The value is handed on as it came, so that the derivatives around this one see it."""
    (tree,) = primals
    return tree, jax.tree.map(lambda leaf: varying(jax.numpy.zeros_like(leaf), leaf), tree)


def reads_running_statistics(apply: Apply) -> Apply:
    """The same function, marked: `penalties.of_model` warns where it is penalised in training."""
    apply.reads_running_statistics = True  # type: ignore[attr-defined]
    return apply
