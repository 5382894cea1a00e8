"""A model at the parameters of a step: the f that a train step hands to its penalty."""

import dataclasses
from typing import Any

from jacreg_jax import checks
from jacreg_jax.rows import batch_size
from jacreg_jax.shares import key_for_rows
from jacreg_jax.types import Apply, PyTree


@dataclasses.dataclass(frozen=True)
class BoundModel:
    """A model at the parameters of this step, model(x) -> (output, model_state): the f that a train step penalises.

    Attributes:
        apply: (params, model_state, x, key) -> (output, model_state).
        params: of this step.
        model_state: such as BatchNorm's statistics; {} where there is none.
        key: of this step, for dropout and the like.
        is_chosen: by `penalties.of_model`, for the penalty alone.
    """

    apply: Apply
    params: PyTree
    model_state: PyTree
    key: Any
    is_chosen: bool = False

    def __call__(self, x: PyTree) -> tuple[Any, Any]:
        """(output, new model_state)."""
        return checks.pair(
            "apply",
            self.apply(self.params, self.model_state, x, self.key),
            "(output, model_state), the second {} where the model has none",
        )

    def differentiated(self) -> "BoundModel":
        """The form that a penalty differentiates with respect to x; another one for `models.held_statistics_mode`."""
        return dataclasses.replace(self, apply=getattr(self.apply, "inside", self.apply))

    def for_rows(self, x: PyTree) -> "BoundModel":
        """The model for other rows than those of the batch, as many on each device: its masks are of these rows."""
        return self if self.key is None else dataclasses.replace(self, key=key_for_rows(self.key, batch_size(x)))

    def output(self, x: PyTree) -> Any:
        """The output alone: a function of x as penalties by hand, relatives and attacks take it."""
        return self(x)[0]
