"""What an attack returns, how it reads, and how the nearest of several is taken."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.types import Array

Norm = Literal["linf", "l2", "l1"]
NORMS = ("linf", "l2", "l1")
OUTCOMES = ("never fooled", "fooled", "from the start", "not finite")
NEVER, FOOLED, FROM_THE_START, NOT_FINITE = range(4)


class Trajectory(NamedTuple):
    """What every step of an attack saw, where it was asked for by `trace=True`."""

    loss: Array  # [B, steps] that is climbed; NaN where no step was made
    distance: Array  # [B, steps] from the input, in the attack's norm


class AttackResult(NamedTuple):
    """The outcome for every sample of a batch; `print` it, or pandas.DataFrame(result.rows()).

    A sample whose clean outputs are not all finite counts as wrong from the start; outputs that become NaN under attack
    never count as a success. "Fooled" is what the criterion of the attack says; under `target=` it is the target.

    Example:
        >>> from jacreg_jax import attacks
        >>> attacks.fgsm(lambda x: x, jnp.array([[0.6, 0.4], [0.9, 0.1]]), jnp.array([0, 0]), epsilon=0.2).outcomes()
        ['fooled', 'never fooled']
    """

    x_adv: Array  # [B, ...] raw pixels; the input itself where it was wrong from the start
    success: Array  # [B] bool: f calls x_adv something other than y, by a last evaluation
    distance: Array  # [B] in the attack's norm; 0 where wrong from the start, +inf where never fooled
    clean_correct: Array  # [B] bool: the goal is not reached at the clean sample
    steps: Array  # [B] int32: gradient steps to the point that was kept
    grad_zero: Array  # [B] bool: the gradient at the clean sample was exactly zero; a sign of masking
    outcome: Array | None = None  # [B] int32, the place in OUTCOMES
    forward: Array | None = None  # [B] int32: evaluations of f that were made for it, clean and last included
    backward: Array | None = None  # [B] int32: gradients
    trajectory: Trajectory | None = None

    def outcomes(self) -> list[str]:
        """Why every sample ended as it did, in words: one of OUTCOMES."""
        if self.outcome is not None:
            return [OUTCOMES[int(i)] for i in np.asarray(self.outcome)]
        wrong, found = ~np.asarray(self.clean_correct), np.asarray(self.success)
        return [OUTCOMES[FROM_THE_START if w else FOOLED if f else NEVER] for w, f in zip(wrong, found, strict=True)]

    def rows(self) -> list[dict[str, Any]]:
        """One dict of numbers and words for each sample, as pandas.DataFrame takes it; no images."""
        names = ("success", "distance", "clean_correct", "steps", "grad_zero", "forward", "backward")
        columns = {name: np.asarray(getattr(self, name)).tolist() for name in names if getattr(self, name) is not None}
        columns["outcome"] = self.outcomes()
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Counts, shares and medians over the batch, as numbers that json takes; inf where most were never fooled."""
        words, found = self.outcomes(), np.asarray(self.distance, np.float64)
        counts = {word: words.count(word) for word in OUTCOMES}
        number = lambda a: None if a is None else float(np.mean(np.asarray(a, np.float64)))
        return {"samples": len(words)} | counts | {
            "robust accuracy": counts["never fooled"] / len(words),
            "median distance": float(np.sort(found)[(len(found) - 1) // 2]),
            "zero gradients": int(np.sum(np.asarray(self.grad_zero))),
            "mean forward passes": number(self.forward),
            "mean backward passes": number(self.backward),
        }  # fmt: skip

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self[:6])
        if not all(isinstance(v, jax.Array | np.ndarray) and not isinstance(v, jax.core.Tracer) for v in leaves):
            return f"AttackResult({', '.join(f'{n}={v!r}' for n, v in zip(self._fields, self, strict=True))})"
        if np.ndim(self.success) != 1:
            return f"AttackResult of shape {np.shape(self.success)}"
        told = self.to_dict()
        counts = ", ".join(f"{told[word]} {word}" for word in OUTCOMES if told[word])
        passes = [told[f"mean {kind} passes"] for kind in ("forward", "backward")]
        spent = f"; {passes[0]:.4g} forward and {passes[1]:.4g} backward passes each" if None not in passes else ""
        zero = f"; {told['zero gradients']} zero gradients" if told["zero gradients"] else ""
        median = f"; median distance {told['median distance']:.4g}"
        return f"AttackResult of {told['samples']}: {counts}{median}{spent}{zero}"


def spread(values: Any, x: Array) -> Array:
    """[B] or scalar as [B, 1, ...] beside x [B, ...]; what has all axes of x as it is."""
    values = jnp.asarray(values, x.dtype)
    if values.ndim == x.ndim > 1:
        return values
    return jnp.broadcast_to(values, x.shape[:1]).reshape(-1, *(1,) * (x.ndim - 1))


def choose(condition: Array, new: Array, old: Array) -> Array:
    """New where the condition [B] holds, row by row; new and old [B, ...]."""
    return jnp.where(condition.reshape(-1, *(1,) * (new.ndim - 1)), new, old)


def distance(delta: Array, norm: Norm) -> Array:
    """Per-sample norm of delta [B, ...]; [B]."""
    flat = delta.reshape(delta.shape[0], -1)
    if norm == "l2":
        return jnp.sqrt(jnp.sum(flat**2, axis=1))
    return jnp.abs(flat).max(1) if norm == "linf" else jnp.abs(flat).sum(1)


def best_of(*results: AttackResult) -> AttackResult:
    """The nearest fooling image of several attacks for every sample, the point-wise worst case.

    The results must be in the same norm; where none succeeds the first one's image stays. The passes are those of all
    the attacks together; trajectories are left out.

    Args:
        *results: of attacks on the same samples, at least one.

    Returns:
        AttackResult; each row is that row of the result with the smallest distance.

    Raises:
        TypeError: what is no AttackResult.
        ValueError: no result, or results of different numbers of samples.

    Example:
        >>> import jax.numpy as jnp
        >>> from jacreg_jax import attacks
        >>> f = lambda x: x @ jnp.array([[1.0, -1.0], [0.0, 0.0]])
        >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
        >>> found = attacks.best_of(attacks.fgsm_distance(f, x - 0.5, y, bounds=(-1, 1)))
        >>> bool(found.success[0])
        True
    """
    for result in results:
        if not isinstance(result, AttackResult):
            raise TypeError(f"results must be AttackResults, got {type(result).__name__}")
    shapes = [jax.tree.map(jnp.shape, r.x_adv) for r in results]
    if not shapes or any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"results must be of one number of samples, got images {shapes}")
    nearest = jnp.argmin(jnp.stack([r.distance for r in results]), axis=0)

    def of_nearest(*leaves: Any) -> Array:  # of numpy too, from `evaluation.run_attack`
        index = nearest.reshape(1, -1, *(1,) * (leaves[0].ndim - 1))
        return jnp.take_along_axis(jnp.stack(leaves), index, axis=0)[0]

    best: AttackResult = jax.tree.map(of_nearest, *(r._replace(trajectory=None) for r in results))
    return best._replace(forward=_sum([r.forward for r in results]), backward=_sum([r.backward for r in results]))


def first_of(old: AttackResult, new: AttackResult) -> AttackResult:
    """The old result where it fools, else the new one, whose passes come on top."""
    keep = lambda a, b: jnp.where(old.success.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    kept: AttackResult = jax.tree.map(keep, old._replace(trajectory=None), new._replace(trajectory=None))
    more = lambda a, b: None if a is None or b is None else a + jnp.where(old.success, 0, b)
    return kept._replace(
        grad_zero=old.grad_zero | new.grad_zero,
        forward=more(old.forward, new.forward),
        backward=more(old.backward, new.backward),
    )


def _sum(passes: list[Array | None]) -> Array | None:
    known = [p for p in passes if p is not None]
    return sum(known[1:], known[0]) if len(known) == len(passes) else None
