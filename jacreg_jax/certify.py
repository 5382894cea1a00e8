"""Certified radii: randomized smoothing, and interval bounds by running a function on boxes instead of points."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal


class Certificate(NamedTuple):
    """What `certify_smoothed` says of every sample."""

    prediction: np.ndarray  # [N] int, -1 where it abstains
    radius: np.ndarray  # [N] L2, raw pixels; 0 where it abstains
    probability: np.ndarray  # [N] lower confidence bound of the probability of the prediction


# randomized smoothing


def noisy_counts(f: Callable, x, key: jax.Array, *, sigma: float, num_samples: int, chunk_size: int = 100) -> jax.Array:
    """How often f gives each class on x + N(0, sigma^2), not clipped; [B, C] int32.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C].
        x: raw pixels [B, ...].
        key: typed key, or B of them.
        sigma: standard deviation in raw pixels.
        num_samples: draws for each sample; rounded up to whole chunks.
        chunk_size: draws at once.
    """
    keys = key if key.shape else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    classes = jax.eval_shape(f, x).shape[-1]

    def draw(counts, chunk):
        noise = lambda k, x: jax.random.normal(jax.random.fold_in(k, chunk), (chunk_size, *x.shape), x.dtype)
        noisy = x[:, None] + sigma * jax.vmap(noise)(keys, x)
        predicted = jnp.argmax(f(noisy.reshape(-1, *x.shape[1:])), axis=-1).reshape(len(x), chunk_size)
        return counts + jnp.sum(jax.nn.one_hot(predicted, classes, dtype=jnp.int32), axis=1), None

    start = jnp.zeros((len(x), classes), jnp.int32)
    return jax.lax.scan(draw, start, jnp.arange(-(-num_samples // chunk_size)))[0]


def certify_smoothed(
    f: Callable,
    x,
    key: jax.Array,
    *,
    sigma: float,
    num_selection: int = 100,
    num_samples: int = 10_000,
    alpha: float = 0.001,
    batch_size: int = 100,
    progress: Callable = lambda batches: batches,
) -> Certificate:
    """L2 radii within which g(x) = argmax_c P(f(x + N(0, sigma^2)) = c) cannot change: R = sigma Phi^-1(p), p >= 1/2.

    p is the lower Clopper-Pearson bound, at level 1 - alpha for each sample, of the probability of the class that a
    first, separate draw selects. It certifies the smoothed classifier g, not f.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C]; a `jax.tree_util.Partial` compiles once.
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
        ValueError: sigma or alpha out of range, no draws.

    Reference: Cohen, Rosenfeld, Kolter (2019), https://arxiv.org/abs/1902.02918.
    """
    from scipy.stats import beta, norm

    if not (sigma > 0 and 0 < alpha < 1):
        raise ValueError(f"sigma must be above 0 and alpha in (0, 1), got sigma={sigma}, alpha={alpha}")
    if min(num_selection, num_samples) < 1:
        raise ValueError(f"num_selection and num_samples must be at least 1, got {num_selection}, {num_samples}")
    f = f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)
    counts = jax.jit(noisy_counts, static_argnames=("num_samples", "chunk_size"))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x)))
    keys = jax.vmap(jax.random.split)(keys)
    predictions, hits, draws = [], [], 0
    batch_size = min(batch_size, len(x))
    for start in progress(range(0, len(x), batch_size)):
        rows = np.minimum(np.arange(start, start + batch_size), len(x) - 1)
        drawn = [
            np.asarray(counts(f, x[rows], keys[rows, i], sigma=sigma, num_samples=n, chunk_size=min(n, 100)))
            for i, n in enumerate((num_selection, num_samples))
        ]
        predictions.append(drawn[0].argmax(1))
        hits.append(np.take_along_axis(drawn[1], drawn[0].argmax(1)[:, None], 1)[:, 0])
        draws = drawn[1][0].sum()
    prediction, hit = (np.concatenate(parts)[: len(x)] for parts in (predictions, hits))
    probability = np.where(hit > 0, beta.ppf(alpha, np.maximum(hit, 1), draws - hit + 1), 0.0)
    certain = probability > 0.5
    radius = np.where(certain, sigma * norm.ppf(np.where(certain, probability, 0.5)), 0.0)
    return Certificate(np.where(certain, prediction, -1), radius, probability)


# interval bounds


class Interval(NamedTuple):
    """All arrays between two."""

    low: jax.Array
    high: jax.Array


def interval_bounds(f: Callable, low: jax.Array, high: jax.Array) -> Interval:
    """Bounds of f over the box [low, high], by interval arithmetic on every operation of f.

    Sound up to rounding for functions of the operations that networks at rest are made of: affine ones (matmuls,
    convolutions, sums, averages, padding, reshaping) of the box with constants, monotone ones (tanh, relu, softplus,
    sigmoid, exp), maxima, squares, and differences of boxes. Loose in networks that were not trained for it.

    Args:
        f: function of one array.
        low: lower corner.
        high: upper corner.

    Returns:
        Interval of the shape of f's result.

    Raises:
        TypeError: an operation without a rule; the message names it.
        ValueError: low above high somewhere, where both are concrete.

    Reference: Gowal et al. (2018), https://arxiv.org/abs/1810.12715.
    """
    if not isinstance(low, jax.core.Tracer) and not isinstance(high, jax.core.Tracer) and bool(jnp.any(low > high)):
        raise ValueError("low must not lie above high")
    closed = jax.make_jaxpr(f)(low)
    return _interpret(closed.jaxpr, closed.consts, [Interval(low, high)])[0]


def interval_radius(
    f: Callable, x, y, *, num_bisections: int = 20, largest: float = 1.0, bounds=(0.0, 1.0)
) -> jax.Array:
    """L-infinity radius within which interval arithmetic proves argmax f = y, found by bisection; [B].

    A ball in L2 lies within the L-infinity ball of the same radius, so it bounds both distances from below. 0 where the
    sample is wrong or nothing can be proved.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C], rows independent.
        x: raw pixels [B, ...] within bounds.
        y: integer labels [B].
        num_bisections: halvings of (0, largest).
        largest: upper end.
        bounds: (low, high) of a pixel.
    """
    from jacreg_jax.attacks.losses import others, true_logit
    from jacreg_jax.attacks.result import spread

    def is_proved(radius):
        radius = spread(radius, x)
        z = interval_bounds(f, jnp.maximum(x - radius, bounds[0]), jnp.minimum(x + radius, bounds[1]))
        slack = 1e-5 * (1 + jnp.abs(z.high).max(-1))  # rounding
        return true_logit(z.low, y) > jnp.max(others(z.high, y), axis=-1) + slack

    def halve(_, ends):
        good, bad = ends
        middle = (good + bad) / 2
        proved = is_proved(middle)
        return jnp.where(proved, middle, good), jnp.where(proved, bad, middle)

    start = jnp.zeros(len(x), x.dtype), jnp.full(len(x), largest, x.dtype)
    return jax.lax.fori_loop(0, num_bisections, halve, start)[0]


_SHAPES = {"reshape", "transpose", "broadcast_in_dim", "squeeze", "slice", "rev", "convert_element_type", "copy"}
_SHAPES |= {"jacreg_patches"}
_RISING = {"tanh", "logistic", "exp", "log", "log1p", "expm1", "sqrt", "erf", "reduce_max", "reduce_window_max", "max"}
_RISING |= {"reduce_sum", "cumsum", "concatenate", "pad", "min", "reduce_min", "stop_gradient", "expand_dims", "add"}
_RISING_CALLS = {"softplus", "relu", "relu6", "elu", "selu", "leaky_relu", "sigmoid", "hard_tanh"}
_CALLS = {"pjit", "jit", "custom_jvp_call", "custom_vjp_call", "closed_call", "remat", "checkpoint"}
_BILINEAR = {"dot_general", "conv_general_dilated", "jacreg_convolution", "mul"}


def _interpret(jaxpr, constants, arguments) -> list:
    """Evaluate a jaxpr whose values are arrays or intervals."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else values[v]
    for equation in jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        outputs = _apply(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _apply(equation, inputs) -> list:
    name = equation.primitive.name

    def run(*inputs):
        out = equation.primitive.bind(*inputs, **equation.params)
        return out if equation.primitive.multiple_results else [out]

    boxes = [isinstance(i, Interval) for i in inputs]
    if not any(boxes) and name not in _CALLS:
        return run(*inputs)
    if name in _SHAPES | _RISING or (name in _CALLS and equation.params.get("name") in _RISING_CALLS):
        ends = [[i[end] if isinstance(i, Interval) else i for i in inputs] for end in (0, 1)]
        return [Interval(*pair) for pair in zip(run(*ends[0]), run(*ends[1]), strict=True)]
    if name in _CALLS:
        inner = next(equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params)
        if hasattr(inner, "consts"):
            return _interpret(inner.jaxpr, inner.consts, inputs)
        return _interpret(inner, [], inputs)
    if name == "neg":
        return [Interval(-inputs[0].high, -inputs[0].low)]
    if name == "sub":
        a, b = (i if isinstance(i, Interval) else Interval(i, i) for i in inputs)
        return [Interval(a.low - b.high, a.high - b.low)]
    if name in ("square", "integer_pow") and equation.params.get("y", 2) == 2:
        low, high = inputs[0]
        ends = jnp.maximum(low**2, high**2)
        return [Interval(jnp.where((low <= 0) & (high >= 0), 0, jnp.minimum(low**2, high**2)), ends)]
    if name == "div" and boxes == [True, False]:
        return [_affine(lambda x, d: x / d, *inputs, position=0)]
    if name in _BILINEAR and sum(boxes) == 1:
        return [_affine(lambda *inputs: run(*inputs)[0], *inputs, position=boxes.index(True))]
    raise TypeError(
        f"interval_bounds has no rule for {name!r} of {sum(boxes)} intervals and {boxes.count(False)} arrays"
    )


def _affine(op: Callable, a, b, *, position: int) -> Interval:
    """A bilinear operation of an interval and an array: centre and radius, the radius with the array's magnitude."""
    box, other = (a, b) if position == 0 else (b, a)
    call = lambda box, other: op(box, other) if position == 0 else op(other, box)
    centre = call((box.low + box.high) / 2, other)
    radius = call((box.high - box.low) / 2, jnp.abs(other))
    return Interval(centre - radius, centre + radius)
