"""Searches that stop at a step and go on from it, so that over many samples those that are done leave the batch."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jacreg_jax.attacks.start import Start
from jacreg_jax.types import Array, Function


class Held(NamedTuple):
    """A search that may go on; rows of samples."""

    made: Array  # [B] int32, steps that were made; the same for all that go on
    x_adv: Array  # [B, ...], where it is
    done: Array  # [B] bool
    steps: Array  # [B] int32, as the result tells them
    best: Any = None  # what else it remembers of every sample


class Parts(NamedTuple):
    """How an attack is run in parts; see `attack_runs.run_attack`."""

    search: Function  # (f, x, y, key, held=None, *, until=None [B], **options) -> (AttackResult, Held)
    options: dict[str, Any]
    length: str  # the option that says how many steps there are at most
    stops: tuple[int, ...]  # steps after which those that are done leave
    calls: int  # of f that a step costs; a gradient costs as much as three

    def given(self, options: dict[str, Any]) -> "Parts":
        """The same with other options."""
        return self._replace(options=self.options | options)

    @property
    def ends(self) -> tuple[int, ...]:
        """Steps after which a part ends, the last of all too; none where the length is no number."""
        length = self.options.get(self.length)
        return (*(stop for stop in self.stops if stop < length), length) if isinstance(length, int) else ()


def in_parts(attack: Any, search: Function, *, length: str, stops: tuple[int, ...], calls: int) -> None:
    """Note at an attack how it is run in parts; its options are those of its own signature."""
    arguments = inspect.signature(attack).parameters.values()
    known = {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY and a.default is not a.empty}
    attack.in_parts = Parts(search, known, length, stops, calls)


def go_on(
    start: Start,
    step: Callable[[Array, Held], Held],
    first: Callable[[], Held],
    held: Held | None,
    num_steps: int,
    until: Array | None,
) -> Held:
    """Steps number 0, 1, ... from `first`, or from where `held` is, until all is done.

    Args:
        start: as `begin` gave it.
        step: (number of the step, held) -> held.
        first: the beginning.
        held: what an earlier part gave; None for none.
        num_steps: at most.
        until: [B] where this part ends; None: at num_steps.
    """
    begun = (jnp.zeros((), jnp.int32), first()) if held is None else (jnp.max(held.made), held)
    end = num_steps if until is None else jnp.max(until)
    going_on = lambda carry: (carry[0] < end) & ~jnp.all(carry[1].done)
    number, held = jax.lax.while_loop(going_on, lambda carry: (carry[0] + 1, step(*carry)), begun)
    return held._replace(made=start.full(number, jnp.int32))
