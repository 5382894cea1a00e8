"""What a report is made of: attacks by name, made once so that they compile once; misuse; what a failed check means."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jacreg_jax import attacks
from jacreg_jax.attacks.start import Goal, begin
from jacreg_jax.signatures import Named
from jacreg_jax.types import Array, Function

MEANINGS = {
    "not finite": "some clean outputs or their gradients are NaN or infinite: samples of such outputs count as wrong, "
    "and attacks take NaN in a gradient for 0. Usual causes are jnp.where over a branch that is not finite, "
    "and classes masked by -inf: take -1e30",
    "zero gradient": "some gradients are exactly zero: attacks that follow them see nothing. Attack the logits, before "
    "softmax, rounding or clipping",
    "square gains": "Square, which takes no gradient, fools samples that APGD does not: the gradients mislead",
    "more steps": "more steps of PGD fool fewer samples: the attack has not converged, or f is random",
    "larger epsilon": "a larger ball is harder to fool in: the gradients mislead far from the sample",
    "unbounded": "samples withstand any change within the bounds: gradients vanish on the way",
    "noise": "noise fools more samples than a gradient step of the same size",
    "single step": "one step fools more samples than many: gradients are useful only near the sample",
}


class Clean(NamedTuple):
    """Of every sample: does it fulfil the goal of the model, are its outputs finite."""

    right: Array
    finite: Array


def clean_outcome(criterion: Any, bounds: Any) -> Function:
    """(f, x, y, key) -> Clean."""
    return _made(_clean, criterion, Named(bounds))


@lru_cache
def _made(function: Function, criterion: Any, bounds: Named, **fixed: Any) -> Function:
    return partial(function, criterion=criterion, bounds=bounds.value, **fixed)


def _clean(f: Function, x: Any, y: Any, key: Any = None, *, criterion: Any, bounds: Any) -> Clean:
    del key
    start = begin(f, x, y, bounds, goal=Goal(criterion))
    return Clean(start.clean_correct, start.finite)


def noise(criterion: Any, bounds: Any) -> Function:
    """White noise as an attack that tries once."""
    return _made(attacks.white_noise, criterion, Named(bounds))


def nearest(norm: str, steps: int, searches: int, span: float, criterion: Any, bounds: Any) -> dict[str, Function]:
    """The attacks that seek the nearest fooling sample in a norm, by name; span: the shortest range of a pixel."""
    own = criterion, Named(bounds)
    found = {"FAB": _made(attacks.fab, *own, norm=norm, num_steps=min(steps, 100))}
    if norm != "l2":
        return found
    found["DDN"] = _made(attacks.ddn, *own, num_steps=max(steps, 150))  # 100 lead down to 0.006 of the span
    rate = max(0.01, 3 / steps)  # few steps must lead as far
    of_cw = {"num_steps": steps, "binary_search_steps": searches, "learning_rate": rate, "initial_const": span**2}
    return found | {"CW": _made(attacks.carlini_wagner, *own, **of_cw)}


def misuse(f: Function, x: Any, is_classes: bool) -> list[str]:
    """What AutoAttack warns of: a softmax in f, a random f, too few classes."""
    x = jnp.asarray(x)
    first, second = (np.asarray(f(x), np.float64) for _ in range(2))
    notes = []
    if not np.array_equal(first, second, equal_nan=True):
        notes.append("f is random: two calls differ. Attacks need the mean over draws, samples=, and a key")
    if not is_classes:
        return notes
    if first.ndim >= 2 and first.shape[-1] > 1:
        if (first >= 0).all() and np.allclose(first.sum(-1), 1, atol=1e-3):
            notes.append("f gives probabilities, not logits: gradients of sure samples vanish. Leave the softmax out")
        if first.shape[-1] < 4:
            notes.append(f"f has {first.shape[-1]} classes: the targeted ratio of APGD needs 4 and is left out")
    return notes
