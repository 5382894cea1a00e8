"""The trajectory of an attack: loss and distance at every step, kept where it is asked for."""

import jax.numpy as jnp

from jacreg_jax import checks
from jacreg_jax.attacks.result import Norm, Trajectory, distance
from jacreg_jax.attacks.start import Start, varying
from jacreg_jax.types import Array, Counter


def blank(start: Start, num_steps: int, trace: bool) -> Trajectory | None:
    """[B, steps] of NaN, or None, which costs nothing."""
    checks.one_of("trace", trace, (True, False))
    if not trace:
        return None
    nothing = varying(jnp.full((len(start.x), num_steps), jnp.nan, start.x.dtype), start.clean_correct)
    return Trajectory(nothing, nothing)


def record(
    trajectory: Trajectory | None, i: Counter, loss: Array, delta: Array, norm: Norm, going: Array | None = None
) -> Trajectory | None:
    """The trajectory with step i: its loss [B], and the length of delta [B, ...]; of those samples that are `going`."""
    if trajectory is None:
        return None
    column = jnp.arange(trajectory.loss.shape[1], dtype=jnp.int32)[None] == i
    here = column if going is None else column & going[:, None]
    put = lambda old, new: jnp.where(here, new.astype(old.dtype)[:, None], old)
    return Trajectory(put(trajectory.loss, loss), put(trajectory.distance, distance(delta, norm)))
