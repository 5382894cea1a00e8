"""What every criterion is: outputs and labels to a margin that is above 0 where the attack has reached its goal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from jacreg_jax import checks
from jacreg_jax.types import Array

Pair: TypeAlias = Callable[[Any, Any], Array]  # (z, y) -> [B]


@dataclass(frozen=True)
class Criterion:
    """The base: any outputs, any y; what is climbed is the margin itself.

    Example:
        >>> from jacreg_jax.attacks import criteria
        >>> isinstance(criteria.top_k(5), Criterion)
        True
    """

    def outputs(self, z: Any, batch: int) -> Any:
        """What the margin looks at: z, checked."""
        checks.outputs(z, batch)
        return z

    def reference(self, z: Any, y: Any, target: Any) -> Any:
        """What the margin compares z with, from the clean outputs, the caller's y and target; checked."""
        del z
        if target is not None:
            raise ValueError(f"target is for models that give classes, got one with criterion {self}")
        return y

    def margin(self, z: Any, y: Any) -> Array:
        """[B], above 0 where the goal is reached."""
        raise NotImplementedError

    def reached(self, z: Any, y: Any) -> Array:
        """[B] bool; NaN is no success."""
        return self.margin(z, y) > 0

    def loss(self, z: Any, y: Any) -> Array:
        """[B], what gradient attacks climb; here the margin."""
        return self.margin(z, y)

    def ratio(self, z: Any, y: Any) -> Array:
        """[B], the margin over a spread of logits."""
        raise ValueError(f"loss 'dlr' is for logits [B, C], not for criterion {self}")

    def num_rivals(self, z: Any) -> int:
        """How many classes can be aimed at one by one, z the clean outputs."""
        del z
        return 0

    def rival(self, k: Any, z: Any) -> Array:
        """The k-th likeliest of them, [B]."""
        raise NotImplementedError

    def num_leads(self, z: Any) -> int:
        """In how many parts the goal can be linearised, z the clean outputs."""
        return max(self.num_rivals(z), 1)

    def is_joint(self, z: Any) -> bool:
        """Whether the lead is a sum over parts, of which some are reached before others; z the clean outputs."""
        del z
        return False

    def lead(self, k: Any, z: Any) -> Pair:
        """(z, y) -> [B], smooth and above 0 where the goal is reached by the k-th part, z the clean outputs."""
        del k, z
        return self.margin

    def mean_of(self, pair: Pair) -> Pair:
        """The pair itself; its mean over draws where f draws."""
        return pair
