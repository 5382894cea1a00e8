"""What counts as a success, as one small value that every attack takes: `criterion=`.

A criterion has a margin (z, y) -> [B] of the outputs z = f(x'), above 0 where the attack has reached its goal. Outputs
that hold NaN never count. `misclassified` is the default; `target=` of the attacks makes another; a function
(z, y) -> [B] of your own is one as well.
"""

from typing import Any

from jacreg_jax import checks
from jacreg_jax.attacks.class_criteria import Misclassified, Targeted, TopK
from jacreg_jax.attacks.criterion import Criterion as Criterion
from jacreg_jax.attacks.output_criteria import Moved, OfMargin
from jacreg_jax.types import Function

misclassified = Misclassified()
"""f calls it something other than y; at any position, where there are such. What attacks seek by themselves."""


def wrong_share(share: float) -> Criterion:
    """More than a share of the positions of a sample are wrong; `misclassified` is share 0, one wrong token.

    Args:
        share: from 0 up to but not 1, of the positions of logits [B, ..., C], such as tokens.

    Returns:
        A criterion for `criterion=` of every attack; y are labels [B, ...].

    Raises:
        TypeError, ValueError: share outside [0, 1).

    Example:
        >>> import jax.numpy as jnp
        >>> wrong_share(0.5).reached(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.array([[0, 0]])).tolist()
        [False]
    """
    checks.fraction("share", share, zero=True)
    return Misclassified(float(share))


def top_k(k: int) -> Criterion:
    """The label is not among the k largest logits.

    Args:
        k: at least 1, less than C.

    Returns:
        A criterion for `criterion=` of every attack; y are labels [B].

    Raises:
        ValueError: k below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> top_k(2).reached(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([1])).tolist()
        [True]
    """
    return TopK(k=checks.count("k", k))


def moved(delta: float) -> Criterion:
    """The output has moved by more than delta, ||f(x') - f(x)||_2 > delta; for regression and for embeddings.

    Where it has not moved yet, its length has no gradient: the first step goes along the sum of the outputs. FAB tries
    both directions of a single output.

    Args:
        delta: above 0, in units of the output.

    Returns:
        A criterion for `criterion=` of every attack; y is not used and may be None.

    Raises:
        TypeError, ValueError: delta not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> moved(0.5).reached(jnp.array([[1.0], [0.2]]), jnp.array([[0.0], [0.0]])).tolist()
        [True, False]
    """
    checks.positive("delta", delta)
    return Moved(float(delta))


def error_above(delta: float) -> Criterion:
    """The output is further than delta from its target, ||f(x') - y||_2 > delta.

    Args:
        delta: above 0, in units of the output.

    Returns:
        A criterion for `criterion=` of every attack; y are targets of the shape of f(x).

    Raises:
        TypeError, ValueError: delta not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> error_above(0.5).reached(jnp.array([[1.0], [0.2]]), jnp.array([[0.0], [0.0]])).tolist()
        [True, False]
    """
    checks.positive("delta", delta)
    return Moved(float(delta), from_label=True)


def of_margin(function: Function) -> Criterion:
    """A success of your own: function(z, y) -> [B], differentiable, above 0 where the goal is reached.

    Args:
        function: of the outputs f(x') and of y as it came, row by row. Define it once: another function object is
            another compilation.

    Returns:
        A criterion for `criterion=` of every attack; a plain function given there is one of these.

    Raises:
        TypeError: it cannot be called with two arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> total = of_margin(lambda z, y: z.sum(1) - y)
        >>> total.reached(jnp.array([[1.0, 2.0]]), jnp.array([2.5])).tolist()
        [True]
    """
    checks.function("criterion", function, ("z", "y"))
    return OfMargin(function)


def chosen(criterion: Any, target: Any) -> Criterion:
    """The criterion that an attack was given, as a value."""
    if target is not None:
        if criterion != misclassified:
            raise ValueError(f"target must be None with a criterion of your own, got both, criterion {criterion}")
        return Targeted()
    if isinstance(criterion, Criterion):
        return criterion
    if isinstance(criterion, type) or criterion in (top_k, moved, error_above, wrong_share, of_margin):
        name = getattr(criterion, "__name__", criterion)
        raise TypeError(f"criterion must be a criterion, such as criteria.{name}(...), got {name} itself")
    return of_margin(criterion)
