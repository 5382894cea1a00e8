"""What a model is worth: accuracy, Jacobian norms, robust accuracy and fooling distances, over padded equal batches.

Functions take ``f`` first: [B, ...] -> [B, C], parameters closed over. Give ``jax.tree_util.Partial(apply, params)``,
as `models.predictor` makes it, and new parameters do not recompile. Random functions fold the key with the index of the
sample, so that no result depends on the batch size or on the padding.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

Progress = Callable[[Iterable], Iterable]


def map_batches(fn: Callable, f: Callable, *arrays, batch_size: int = 500, progress: Progress | None = None):
    """fn(f, *rows) over N samples in padded batches of one size, compiled once; the padding is dropped.

    Args:
        fn: (f, *rows [B, ...]) -> pytree of [B, ...], each row from its own row alone. Define it once: another
            function object is another compilation.
        f: function under study.
        *arrays: [N, ...] each; typed keys are welcome.
        batch_size: B, at most N is used.
        progress: wraps the batches, such as `tqdm.tqdm`.

    Returns:
        Pytree of numpy arrays [N, ...].

    Raises:
        ValueError: no samples, arrays of different lengths, or batch_size below 1.
    """
    lengths = [len(a) for a in arrays]
    if len(set(lengths)) != 1 or lengths[0] == 0:
        raise ValueError(f"arrays must hold the same number of samples, at least one; got {lengths}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    n = lengths[0]
    batch_size = min(batch_size, n)
    f = f if isinstance(f, jax.tree_util.Partial) else jax.tree_util.Partial(f)
    starts = range(0, n, batch_size)
    parts = []
    for start in progress(starts) if progress else starts:
        rows = np.minimum(np.arange(start, start + batch_size), n - 1)  # the last sample fills the last batch
        parts.append(jax.device_get(jax.jit(fn)(f, *(a[rows] for a in arrays))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:n], *parts)


def accuracy(f: Callable, x, y, *, batch_size: int = 500) -> float:
    """Share of samples with argmax f(x) = y; x [N, ...], y integer [N]."""
    return float(map_batches(_correct, f, x, y, batch_size=batch_size).mean())


def jacobian_norms(frobenius_sq: Callable, f: Callable, x, *, batch_size: int = 100) -> np.ndarray:
    """||J||_F of every sample, [N]; x in the space the Jacobian is wanted in, frobenius_sq(f, x) -> [B].

    Pass `jacreg_jax.exact_frobenius_sq`.
    """
    return np.sqrt(map_batches(frobenius_sq, f, x, batch_size=batch_size))


def norm_summary(norms: np.ndarray) -> dict[str, float]:
    """Both readings of "the" ||J||_F, mean(||J||) and sqrt(mean ||J||^2): the paper does not say which."""
    return {"mean": float(np.mean(norms)), "rms": float(np.sqrt(np.mean(np.square(norms))))}


def run_attack(
    attack: Callable, f: Callable, x, y, key: jax.Array, *extra, batch_size: int = 500, progress: Progress | None = None
):
    """attack(f, x, y, keys, *extra) over N samples in padded batches, compiled once; leaves [N, ...].

    Args:
        attack: (f, x [B, ...], y [B], keys [B], *extra [B, ...]) -> pytree of [B, ...] such as AttackResult. Define it
            once: another function object is another compilation.
        f: function under attack, raw pixels -> logits.
        x: raw pixels [N, ...].
        y: integer labels [N].
        key: typed key; sample i gets fold_in(key, i).
        *extra: more arrays [N, ...] or scalars, such as an epsilon that is swept.
        batch_size: B.
        progress: wraps the batches, such as `tqdm.tqdm`.
    """
    extra = [np.broadcast_to(np.asarray(e, np.float32), len(x)) if np.ndim(e) == 0 else e for e in extra]
    keys = sample_keys(key, len(x))
    return map_batches(attack, f, x, y, keys, *extra, batch_size=batch_size, progress=progress)


def worst_case(
    attacks: dict[str, Callable],
    f: Callable,
    x,
    y,
    key: jax.Array,
    *extra,
    batch_size: int = 500,
    progress: Progress | None = None,
):
    """The point-wise worst case of several attacks over N samples: each gets only what is still robust.

    Args:
        attacks: by name, in order, each as for `run_attack`, such as `attacks.standard_ensemble()`.
        f: function under attack, raw pixels -> logits.
        x: raw pixels [N, ...].
        y: integer labels [N].
        key: typed key; attack j on sample i gets fold_in(fold_in(key, i), j).
        *extra: as for `run_attack`.
        batch_size: B.
        progress: wraps the batches of each attack.

    Returns:
        (result, robust): the result of the first attack that fools each sample, leaves [N, ...], and the share of
        samples still robust after each attack, by name.
    """
    extra = [np.broadcast_to(np.asarray(e, np.float32), len(x)) if np.ndim(e) == 0 else np.asarray(e) for e in extra]
    keys = sample_keys(key, len(x))
    left, result, robust = np.arange(len(x)), None, {}
    for j, (name, attack) in enumerate(attacks.items()):
        if len(left):
            fold = jax.vmap(jax.random.fold_in, (0, None))(keys[left], j)
            rows = (x[left], y[left], fold, *(e[left] for e in extra))
            new = map_batches(attack, f, *rows, batch_size=batch_size, progress=progress)
            if result is None:
                result = jax.tree.map(np.array, new)
            for whole, part in zip(jax.tree.leaves(result), jax.tree.leaves(new), strict=True):
                whole[left] = part
            left = left[~new.success]
        robust[name] = len(left) / len(x)
    return result, robust


def robust_accuracy(distances, epsilon: float) -> float:
    """Share of samples whose smallest fooling distance is above epsilon; wrong samples have distance 0."""
    return float(np.mean(np.asarray(distances) > epsilon))


def fooling_curve(distances, grid) -> np.ndarray:
    """Test error against distance, error(d) = share of samples fooled within d; [len(grid)].

    Args:
        distances: [N]; 0 where wrong from the start, +inf where never fooled.
        grid: distances [G], same unit.

    Raises:
        ValueError: NaN or negative distances.
    """
    distances = np.asarray(distances)
    if np.isnan(distances).any() or (distances < 0).any():
        raise ValueError("distances must be 0 or positive, +inf where never fooled; got NaN or negative ones")
    return np.searchsorted(np.sort(distances), np.asarray(grid), side="right") / len(distances)


def median_distance(distances, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0) -> dict[str, float]:
    """Median of the fooling distances with its percentile-bootstrap interval over samples; inf stays inf."""
    distances = np.asarray(distances)
    rows = np.random.default_rng(seed).integers(0, len(distances), (resamples, len(distances)))
    # the order statistics themselves: interpolation between two infinities would be NaN
    middle = lambda d: np.sort(d, axis=-1)[..., (len(distances) - 1) // 2]
    medians = np.sort(middle(distances[rows]))
    tail = round((1 - confidence) / 2 * (resamples - 1))
    return {"median": float(middle(distances)), "low": float(medians[tail]), "high": float(medians[-1 - tail])}


def sample_keys(key: jax.Array, n: int) -> jax.Array:
    """One typed key for each of n samples, fold_in(key, i)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(n))


def _correct(f, x, y):
    return jnp.argmax(f(x), axis=-1) == y
