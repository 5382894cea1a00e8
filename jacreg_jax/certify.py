"""Certified radii: randomized smoothing, and interval bounds by running a function on boxes instead of points."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks, programs
from jacreg_jax.batches import Progress, shown
from jacreg_jax.explicit_axes import entry
from jacreg_jax.intervals import Interval as Interval, coarsest_precision, interval_bounds as interval_bounds
from jacreg_jax.keys import sample_keys
from jacreg_jax.manual_axes import varying
from jacreg_jax.predictions import as_logits, predicted_class
from jacreg_jax.rows import at_least_float32
from jacreg_jax.types import Array, Counter, Function


class Certificate(NamedTuple):
    """What `certify_smoothed` says of every sample.

    Example:
        >>> Certificate(np.array([3, -1]), np.array([0.5, 0.0]), np.array([0.98, 0.4]))
        Certificate of 2: 1 abstained; median radius 0.5
    """

    prediction: "np.ndarray"  # [N] int, -1 where it abstains
    radius: "np.ndarray"  # [N] L2, raw pixels; 0 where it abstains
    probability: "np.ndarray"  # [N] lower confidence bound of the probability of the prediction

    def rows(self) -> list[dict[str, Any]]:
        """One dict for each sample, as pandas.DataFrame takes it."""
        columns = (np.asarray(column).tolist() for column in self)
        return [dict(zip(self._fields, row, strict=True)) for row in zip(*columns, strict=True)]

    def __repr__(self) -> str:
        certified = np.asarray(self.radius)[np.asarray(self.prediction) >= 0]
        median = f"; median radius {np.median(certified):.4g}" if len(certified) else ""
        return f"Certificate of {len(self.radius)}: {len(self.radius) - len(certified)} abstained{median}"


@entry
def noisy_counts(
    f: Function, x: ArrayLike, key: Array, *, sigma: ArrayLike, num_samples: int, chunk_size: int = 100
) -> Array:
    """How often f gives each class on x + N(0, sigma^2), not clipped; [B, C] int32.

    Logits that are not finite count for no class.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B];
            called on B * chunk_size rows.
        x: raw pixels [B, ...].
        key: typed key, or B of them.
        sigma: standard deviation in raw pixels.
        num_samples: draws for each sample; rounded up to whole chunks.
        chunk_size: draws at once.

    Returns:
        [B, C] int32.

    Raises:
        TypeError: x is not floating point; key is not a typed key.
        ValueError: an empty batch; sigma not above 0; counts below 1; logits not [B, C].

    Example:
        >>> noisy_counts(lambda x: x, jnp.array([[5.0, 0.0]]), jax.random.key(0), sigma=0.1, num_samples=100).tolist()
        [[100, 0]]
    """
    checks.function("f", f)
    x = checks.inputs(x)
    checks.positive("sigma", sigma)
    num_samples, chunk_size = checks.count("num_samples", num_samples), checks.count("chunk_size", chunk_size)
    keys = sample_keys(key, len(x))
    shape = jax.ShapeDtypeStruct((len(x) * chunk_size, *x.shape[1:]), x.dtype)
    checks.num_classes(jax.eval_shape(lambda x: as_logits(f(x)), shape), shape.shape[0])
    sizes = {"num_samples": num_samples, "chunk_size": chunk_size}
    counts: Array = programs.called_once(_counts, f, shape, x, keys, sigma, **sizes)
    return counts


def _counts(f: Function, x: Array, keys: Array, sigma: ArrayLike, *, num_samples: int, chunk_size: int) -> Array:
    rows = len(x) * chunk_size
    shape = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
    classes = jax.eval_shape(lambda x: as_logits(f(x)), shape).shape[1]
    wide = at_least_float32(x.dtype)  # a draw in half precision has no tail, so that nothing would be proved

    def draw(counts: Array, chunk: Array) -> tuple[Array, None]:
        noise = lambda k: jax.random.normal(jax.random.fold_in(k, chunk), (chunk_size, *x.shape[1:]), wide)
        noisy = (x[:, None].astype(wide) + jnp.asarray(sigma, wide) * jax.vmap(noise)(keys)).astype(x.dtype)
        predicted = predicted_class(as_logits(f(noisy.reshape(rows, *x.shape[1:])))).reshape(len(x), chunk_size)
        return counts + jax.nn.one_hot(predicted, classes, dtype=jnp.int32).sum(1, dtype=jnp.int32), None

    start = varying(jnp.zeros((len(x), classes), jnp.int32), x, keys)
    return jax.lax.scan(draw, start, jnp.arange(-(-num_samples // chunk_size), dtype=jnp.int32))[0]


@entry
def certify_smoothed(
    f: Function,
    x: Any,
    key: Array,
    *,
    sigma: float,
    num_selection: int = 100,
    num_samples: int = 10_000,
    alpha: float = 0.001,
    batch_size: int = 100,
    progress: Progress | None = None,
) -> Certificate:
    """L2 radii within which g(x) = argmax_c P(f(x + N(0, sigma^2)) = c) cannot change: R = sigma Phi^-1(p), p >= 1/2.

    p is the lower Clopper-Pearson bound, at level 1 - alpha for each sample, of the probability of the class that a
    first, separate draw selects. It certifies the smoothed classifier g, not f.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes; new
            values of the arrays that it closes over do not compile again.
        x: raw pixels [N, ...].
        key: typed key.
        sigma: standard deviation of the noise in raw pixels.
        num_selection: draws that select the class.
        num_samples: draws that bound its probability.
        alpha: probability that a radius is too large.
        batch_size: samples at once.
        progress: wraps the batches, such as `tqdm.tqdm`.

    Returns:
        Certificate.

    Raises:
        TypeError: x is not floating point; key is not a typed key.
        ValueError: no samples, or NaN or infinite ones; sigma not above 0; alpha outside (0, 1); counts below 1.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> certify_smoothed(f, jnp.array([[9.0], [0.5]]), jax.random.key(0), sigma=0.1).prediction.tolist()
        [0, -1]

    Reference: Cohen, Rosenfeld, Kolter (2019), https://arxiv.org/abs/1902.02918.
    """
    from scipy.stats import beta, norm

    checks.function("f", f)
    checks.on_host(x=x, key=key, sigma=sigma)
    x = checks.inputs(x)
    if not np.isfinite(np.asarray(x, np.float64)).all():
        raise ValueError("x must be finite, got NaN or infinite pixels")
    checks.positive("sigma", sigma)
    checks.fraction("alpha", alpha)
    sizes = checks.count("num_selection", num_selection), checks.count("num_samples", num_samples)
    batch_size = min(checks.count("batch_size", batch_size), len(x))
    keys = jax.vmap(jax.random.split)(sample_keys(key, len(x)))
    starts, drawn = range(0, len(x), batch_size), []
    for start in shown(starts, progress):
        rows = np.minimum(np.arange(start, start + batch_size), len(x) - 1)
        part = lambda i, n: noisy_counts(f, x[rows], keys[rows, i], sigma=sigma, num_samples=n, chunk_size=min(n, 100))
        drawn.append([np.asarray(part(i, n)) for i, n in enumerate(sizes)])
    selected, bounding = (np.concatenate(parts)[: len(x)] for parts in zip(*drawn, strict=True))
    prediction = selected.argmax(1)
    hit = np.take_along_axis(bounding, prediction[:, None], 1)[:, 0]
    chunk = min(num_samples, 100)
    draws = -(-num_samples // chunk) * chunk  # those without a class count too
    probability = np.where(hit > 0, beta.ppf(alpha, np.maximum(hit, 1), draws - hit + 1), 0.0)
    certain = probability > 0.5
    radius = np.where(certain, sigma * norm.ppf(np.where(certain, probability, 0.5)), 0.0)
    return Certificate(np.where(certain, prediction, -1), radius, probability)


@programs.once
def interval_radius(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    *,
    num_bisections: int = 20,
    largest: ArrayLike = 1.0,
    bounds: checks.Bounds | None = (0.0, 1.0),
) -> Array:
    """L-infinity radius within which interval arithmetic proves argmax f = y, found by bisection; [B].

    A ball in L2 lies within the L-infinity ball of the same radius, so it bounds both distances from below. 0 where the
    sample is wrong or nothing can be proved. The bounds of the logits must be apart by more than rounding: by 1e-5 of
    1 + the largest logit, or by 16 times the relative spacing of the narrowest numbers in f, 12 % in bfloat16.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], or one logit [B] for two classes; rows independent.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        num_bisections: halvings of (0, largest).
        largest: upper end, a scalar; other values do not compile anew.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None.

    Returns:
        [B] radii in raw pixels, from 0 to largest.

    Raises:
        TypeError: an operation of f has no rule, see `interval_bounds`; x is not floating point, y not integer.
        ValueError: see `attacks.start.begin`; num_bisections below 1; largest not above 0.

    Example:
        >>> f = lambda x: jnp.concatenate([x, 1 - x], axis=1)  # class 0 above 0.5
        >>> interval_radius(f, jnp.array([[0.75], [0.25]]), jnp.array([0, 0])).round(3).tolist()
        [0.25, 0.0]

    Reference: Gowal et al. (2018), https://arxiv.org/abs/1810.12715.
    """
    from jacreg_jax.attacks.losses import others, true_logit
    from jacreg_jax.attacks.result import spread
    from jacreg_jax.attacks.start import begin

    num_bisections = checks.count("num_bisections", num_bisections)
    checks.positive("largest", largest)
    start = begin(f, x, y, bounds)
    if start.logits.ndim != 2:
        raise ValueError(f"f(x) must be logits [B, C], got shape {start.logits.shape}")
    image, label, (lowest, highest) = start.clip(start.x), start.y, start.bounds
    rounding = max(1e-5, 16 * coarsest_precision(start.f, image))

    def is_proved(radius: Array) -> Array:
        radius = spread(radius, image)
        z = interval_bounds(start.f, jnp.maximum(image - radius, lowest), jnp.minimum(image + radius, highest))
        slack = rounding * (1 + jnp.maximum(jnp.abs(z.low), jnp.abs(z.high)).max(-1))
        return true_logit(z.low, label) > jnp.max(others(z.high, label), axis=-1) + slack

    def halve(_: Counter, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        good, bad = ends
        middle = (good + bad) / 2
        proved = is_proved(middle)
        return jnp.where(proved, middle, good), jnp.where(proved, bad, middle)

    first = start.full(0, image.dtype), start.full(largest, image.dtype)
    good: Array = jax.lax.fori_loop(0, num_bisections, halve, first)[0]
    return jnp.where(start.clean_correct, good, 0)
