"""Is it robustness, or are the gradients masked? Checks that a claim should pass before it is made.

All take f: raw pixels [B, ...] -> logits [B, C], x raw pixels and integer labels y.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax import attacks, evaluation
from jacreg_jax.attacks.losses import others, true_logit
from jacreg_jax.attacks.gradient import zero_gradient
from jacreg_jax.attacks.result import Norm


class Check(NamedTuple):
    """One finding: what was measured, the limit it should keep, and whether it does."""

    value: float
    limit: float
    passed: bool


def linearised_margin(f: Callable, x, y, *, norm: Norm = "l2") -> jax.Array:
    """min_c (z_y - z_c) / ||grad (z_y - z_c)||_dual: the distance to the boundary if f were linear; [B].

    The dual of L2 is L2 and that of L-infinity L1. Not a bound: a ratio to found distances above 1 means that the
    linearisation promises more than there is. +inf where a gradient is zero.
    """
    z, vjp = jax.vjp(f, x)
    classes = z.shape[-1]

    def slope(c):
        direction = jax.nn.one_hot(y, classes, dtype=z.dtype) - jax.nn.one_hot(c, classes, dtype=z.dtype)[None]
        gradient = vjp(direction)[0].reshape(len(x), -1)
        return jnp.sqrt(jnp.sum(gradient**2, axis=1)) if norm == "l2" else jnp.sum(jnp.abs(gradient), axis=1)

    slopes = jax.lax.map(slope, jnp.arange(classes)).T  # [B, C]
    lead = true_logit(z, y)[:, None] - others(z, y)  # +inf at y itself
    return jnp.min(jnp.where(slopes > 0, lead / jnp.where(slopes > 0, slopes, 1), jnp.inf), axis=1)


def zero_gradient_share(f: Callable, x, y, *, batch_size: int = 500) -> float:
    """Share of samples whose loss has a gradient of exactly zero at the clean image; should be 0."""
    return float(evaluation.map_batches(zero_gradient, f, x, y, batch_size=batch_size).mean())


def checks(
    f: Callable,
    x,
    y,
    key: jax.Array,
    *,
    epsilon: float,
    norm: Norm = "linf",
    num_steps: Sequence[int] = (10, 40, 100),
    num_queries: int = 1000,
    tolerance: float = 0.002,
    bounds=(0.0, 1.0),
    batch_size: int = 500,
    progress: evaluation.Progress | None = None,
) -> dict[str, Check]:
    """The usual checks against gradient masking, by name, each with its value, limit and verdict.

    - zero gradient: share of samples without a gradient; 0.
    - square gains: share of samples that Square fools and APGD does not; at most tolerance.
    - more steps: largest rise of robust accuracy from fewer to more PGD steps; at most tolerance.
    - larger epsilon: the same from epsilon to twice that; at most tolerance.
    - unbounded: accuracy under PGD over the whole pixel range; 0.
    - noise: share fooled by uniform noise of size epsilon minus the share fooled by FGSM; at most tolerance.
    - single step: accuracy under iterated PGD minus accuracy under FGSM; at most tolerance.

    Args:
        f: raw pixels [B, H, W, C] -> logits.
        x: raw pixels [N, H, W, C].
        y: integer labels [N].
        key: typed key.
        epsilon: radius in raw pixels.
        norm: "linf" or "l2".
        num_steps: of PGD, rising.
        num_queries: of Square.
        tolerance: share of samples.
        bounds: (low, high) of a pixel.
        batch_size: B.
        progress: wraps the batches of each attack.

    Returns:
        name -> Check.
    """
    whole = (bounds[1] - bounds[0]) * (1 if norm == "linf" else np.sqrt(np.prod(x.shape[1:])))
    options = {"norm": norm, "bounds": bounds}

    def survivors(attack, size):
        run = lambda f, x, y, key, epsilon: attack(f, x, y, key, epsilon)
        result = evaluation.run_attack(run, f, x, y, key, size, batch_size=batch_size, progress=progress)
        return ~result.success

    def pgd(steps):
        return lambda f, x, y, key, epsilon: attacks.pgd(
            f, x, y, key, epsilon=epsilon, step_size=2.5 * epsilon / steps, num_steps=steps, **options
        )

    single = survivors(
        lambda f, x, y, k, e: attacks.pgd(f, x, y, k, epsilon=e, step_size=e, num_steps=1, **options), epsilon
    )
    by_steps = [survivors(pgd(n), epsilon) for n in num_steps]
    wider = survivors(pgd(num_steps[-1]), 2 * epsilon)
    everything = survivors(pgd(num_steps[-1]), whole)
    strong = survivors(lambda f, x, y, k, e: attacks.apgd(f, x, y, k, epsilon=e, **options), epsilon) & by_steps[-1]
    searched = survivors(
        lambda f, x, y, k, e: attacks.square(f, x, y, k, epsilon=e, num_queries=num_queries, **options), epsilon
    )
    noise = _noise_survivors(f, x, y, key, epsilon, norm, bounds, batch_size)
    shares = [float(s.mean()) for s in by_steps]
    findings = {
        "zero gradient": (zero_gradient_share(f, x, y, batch_size=batch_size), 0.0),
        "square gains": (float((strong & ~searched).mean()), tolerance),
        "more steps": (max(b - a for a, b in itertools.pairwise(shares)), tolerance),
        "larger epsilon": (float(wider.mean()) - shares[-1], tolerance),
        "unbounded": (float(everything.mean()), 0.0),
        "noise": (float(single.mean()) - float(noise.mean()), tolerance),
        "single step": (shares[-1] - float(single.mean()), tolerance),
    }
    return {name: Check(value, limit, value <= limit) for name, (value, limit) in findings.items()}


def _noise_survivors(f, x, y, key, epsilon, norm, bounds, batch_size):
    """Samples that one draw of noise of size epsilon in the norm does not fool."""

    def correct(f, x, y, key, epsilon):
        noise = jax.vmap(lambda k, x: jax.random.normal(k, x.shape, x.dtype))(key, x)
        size = epsilon.reshape(-1, *(1,) * (x.ndim - 1))
        length = jnp.sqrt(jnp.sum(noise**2, axis=tuple(range(1, x.ndim)), keepdims=True))
        noise = size * (jnp.sign(noise) if norm == "linf" else noise / length)
        return jnp.argmax(f(jnp.clip(x + noise, *bounds)), -1) == y

    return evaluation.run_attack(correct, f, x, y, key, epsilon, batch_size=batch_size)
