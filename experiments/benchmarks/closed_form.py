"""Models whose nearest fooling point is known, for JAX and for torch: linear, quadratic, prototypes, piecewise linear.

Eight features in [0, 1]; no bound is met on the way to the nearest point, in any norm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FEATURES = 8
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}  # order of the norm that a plane's distance is divided by


class Model(NamedTuple):
    """Logits f(x, xp) with xp jax.numpy or torch, samples [N, 8] in float64, and their true distances by norm."""

    f: Callable[[Any, Any], Any]
    x: np.ndarray
    distance: dict[str, np.ndarray]


def linear(rng: np.random.Generator, samples: int) -> Model:
    """Two of three classes, the third far away: margin / ||w_0 - w_1||_dual."""
    w = 5 * rng.normal(size=(2, FEATURES))
    x = 0.5 + 0.03 * rng.normal(size=(samples, FEATURES))

    def f(x, xp):
        rise = (x - 0.5) @ _array(w.T, xp)
        return xp.stack([rise[:, 0], rise[:, 1], 0 * rise[:, 0] - 9], 1)

    lead = np.abs((x - 0.5) @ (w[0] - w[1]))
    return Model(f, x, {norm: lead / np.linalg.norm(w[0] - w[1], order) for norm, order in DUAL.items()})


def quadratic(rng: np.random.Generator, samples: int) -> Model:
    """Class 0 within a ball of radius 0.3 around 0.5; x lies off its centre, every entry above.

    In L2 the way out is radius - distance; in L1 it is along one axis and in L-infinity along the diagonal, each the
    root of a quadratic.
    """
    offset = 0.02 * np.abs(rng.normal(size=(samples, FEATURES)))
    radius, size, total = 0.3, np.sum(offset**2, axis=1), offset.sum(1)

    def f(x, xp):
        return 30 * xp.stack([0.09 - ((x - 0.5) ** 2).sum(1), 0 * x[:, 0]], 1)

    distance = {
        "l2": radius - np.sqrt(size),
        "l1": (-offset + np.sqrt(offset**2 + (radius**2 - size)[:, None])).min(1),
        "linf": (-total + np.sqrt(total**2 + FEATURES * (radius**2 - size))) / FEATURES,
    }
    return Model(f, 0.5 + offset, distance)


def prototypes(rng: np.random.Generator, samples: int) -> Model:
    """Logits -20 ||x - p_c||^2, the p_c equally far from each other: planes halfway between the label's and others."""
    p = 0.5 + 0.2 * np.linalg.qr(rng.normal(size=(FEATURES, FEATURES)))[0][:4]
    x = p[np.arange(samples) % 4] + 0.02 * rng.normal(size=(samples, FEATURES))

    def f(x, xp):
        return -20 * ((x[:, None] - _array(p, xp)[None]) ** 2).sum(2)

    away = np.sum((x[:, None] - p[None]) ** 2, -1)
    label = away.argmin(1)

    def to_plane(order):
        apart = np.linalg.norm(p[label][:, None] - p[None], order, axis=2)
        lead = (away - away.min(1, keepdims=True)) / np.where(apart > 0, 2 * apart, 1)
        return np.where(apart > 0, lead, np.inf).min(1)

    return Model(f, x, {norm: to_plane(order) for norm, order in DUAL.items()})


def piecewise_linear(rng: np.random.Generator, samples: int) -> Model:
    """Class 0 while the largest of three linear functions is below 0: the nearest of three planes of equal norms."""
    v = rng.normal(size=FEATURES)
    w = np.stack([rng.permutation(v) * rng.choice([-1, 1], FEATURES) for _ in range(3)])
    b, x = np.array([0.25, 0.3, 0.35]), 0.5 + 0.02 * rng.normal(size=(samples, FEATURES))

    def f(x, xp):
        rise = (x - 0.5) @ _array(w.T, xp) - _array(b, xp)[None]
        return 10 * xp.stack([0 * x[:, 0], xp.amax(rise, 1)], 1)

    lacking = b - (x - 0.5) @ w.T
    return Model(f, x, {norm: (lacking / np.linalg.norm(v, order)).min(1) for norm, order in DUAL.items()})


MODELS = {"linear": linear, "quadratic": quadratic, "prototypes": prototypes, "piecewise linear": piecewise_linear}


def _array(values: np.ndarray, xp: Any) -> Any:
    return xp.asarray(values, dtype=xp.float32)
