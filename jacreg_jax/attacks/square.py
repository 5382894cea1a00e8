"""Square attack: random search with squares, which needs no gradient."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.losses import margin
from jacreg_jax.attacks.result import AttackResult, Norm, choose, distance, is_fooled, spread
from jacreg_jax.attacks.start import Start, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import sample_keys
from jacreg_jax.types import Array, Function

_Sides: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"  # of the square of every query
_Begin: TypeAlias = Callable[[Array], Array]  # keys [B] -> first images
_Carry: TypeAlias = tuple[Array, Array, Array, Array, Array]  # query, images, best margin, done, steps
_Propose: TypeAlias = Callable[[Array, Array, Array], Array]  # images, number of the query, keys [B] -> images to try

# queries after which the share of pixels in a square is halved
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    f: Function,
    x: ArrayLike,
    y: ArrayLike,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    num_queries: int = 5000,
    initial_share: float = 0.8,
    bounds: Bounds = (0.0, 1.0),
) -> AttackResult:
    """Random search in the ball: a square of changed pixels is kept where it raises the margin of another class.

    Squares shrink as the queries are used up, from initial_share of the image. A sample stops at its first fooling
    image. It calls f alone, never its gradient, so what it gains over gradient attacks shows masked gradients.

    Args:
        f: batched function, raw pixels [B, H, W, C] -> logits.
        x: raw pixels [B, H, W, C] within bounds.
        y: integer labels [B].
        key: typed key, or B of them.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf" or "l2".
        num_queries: calls of f.
        initial_share: of the pixels in the first squares.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with distances in `norm`; steps counts queries.

    Raises:
        TypeError, ValueError: see `start.begin`; x is not [B, H, W, C]; num_queries below 1; share outside
            (0, 1]; L2 on images below 5 pixels.

    Example:
        >>> f = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.full((1, 6, 6, 1), 0.7), jnp.array([0])
        >>> square(f, x, y, jax.random.key(0), epsilon=0.3, num_queries=300).success.tolist()
        [True]

    Reference: Andriushchenko et al. (2019), https://arxiv.org/abs/1912.00049.
    """
    start = begin(f, x, y, bounds, norm=norm, epsilon=epsilon)
    num_queries = checks.count("num_queries", num_queries)
    image, label = start.x, start.y
    if image.ndim != 4 or (norm == "l2" and min(image.shape[1:3]) < 5):
        raise ValueError(f"x must be images [B, H, W, C], of at least 5 x 5 pixels for L2; got shape {image.shape}")
    if not 0 < initial_share <= 1:
        raise ValueError(f"initial_share must lie in (0, 1], got {initial_share}")
    keys = sample_keys(key, len(image))
    sides = _sizes(num_queries, initial_share, image.shape[1:3], norm)
    first, propose = (_linf if norm == "linf" else _l2)(start, spread(epsilon, image), sides)

    def query(x_adv: Array) -> tuple[Array, Array]:
        logits = f(x_adv)
        return margin(logits, label), is_fooled(logits, label)

    def step(carry: _Carry) -> _Carry:
        i, x_adv, best, done, steps = carry
        tried = propose(x_adv, i, jax.vmap(jax.random.fold_in, (0, None))(keys, i))
        value, fooled = query(tried)
        better = ((value > best) | fooled) & ~done
        steps = jnp.where(fooled & ~done, i + 1, steps)
        return i + 1, choose(better, tried, x_adv), jnp.where(better, value, best), done | fooled, steps

    x_adv = first(keys)
    value, fooled = query(x_adv)
    done = fooled | is_fooled(start.logits, label)
    begun = jnp.zeros((), jnp.int32), x_adv, value, done, start.zeros()
    going_on = lambda carry: (carry[0] < num_queries) & ~jnp.all(carry[3])
    _, x_adv, _, _, steps = jax.lax.while_loop(going_on, step, begun)
    return finish(start, x_adv, norm=norm, steps=steps)


def _sizes(num_queries: int, initial_share: float, image: tuple[int, ...], norm: Norm) -> _Sides:
    """Side of the square of every query."""
    share = initial_share / 2.0 ** np.searchsorted(_HALVINGS, np.arange(num_queries), side="left")
    sides = np.round(np.sqrt(share * image[0] * image[1])).astype(int)
    sides = np.maximum(sides, 1) if norm == "linf" else np.maximum(sides, 3) | 1  # odd ones in L2
    return np.asarray(np.minimum(sides, min(image)))


def _window(key: Array, side: Array, image: tuple[int, ...]) -> tuple[Array, Array]:
    """[H, W] bool: a square of this side at a random place; and its upper left corner."""
    places = jax.random.randint(key, (2,), 0, jnp.maximum(jnp.asarray(image) - side, 1))
    inside = [(jnp.arange(n) >= p) & (jnp.arange(n) < p + side) for n, p in zip(image, places, strict=True)]
    return inside[0][:, None] & inside[1][None, :], places


def _signs(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.rademacher(key, shape, jnp.float32)


def _linf(start: Start, radius: Array, sizes: _Sides) -> tuple[_Begin, _Propose]:
    """Vertical stripes of +-epsilon, then squares of them."""
    x = start.x
    image, channels = x.shape[1:3], x.shape[3]

    def within(x_adv: Array) -> Array:
        return start.clip(jnp.clip(x_adv, x - radius, x + radius))

    def begin(keys: Array) -> Array:
        stripes = jax.vmap(lambda k: _signs(k, (1, image[1], channels)))(keys)
        return within(x + radius * stripes)

    def propose(x_adv: Array, i: Array, keys: Array) -> Array:
        def change(key: Array) -> Array:
            where, which = jax.random.split(key)
            window, _ = _window(where, jnp.asarray(sizes)[i], image)
            return window[:, :, None] * _signs(which, (1, 1, channels))

        return within(x_adv + 2 * radius * jax.vmap(change)(keys))

    return begin, propose


def _l2(start: Start, radius: Array, sizes: _Sides) -> tuple[_Begin, _Propose]:
    """A grid of bumps, then one bump that takes over the norm of another window."""
    x = start.x
    image, channels = x.shape[1:3], x.shape[3]
    sides = sorted(set(sizes.tolist()))
    bumps = jnp.stack([_embed(_bump(side), image) for side in sides])  # [sides, 2, H, W] in the upper left corner
    index = np.searchsorted(sides, sizes)

    def on_sphere(delta: Array) -> Array:
        return start.clip(x + radius * ascent_direction(delta, "l2"))

    def begin(keys: Array) -> Array:
        side = image[0] // 5
        first = [(n - 5 * side) // 2 for n in image]
        tile = jnp.asarray(_bump(side), jnp.float32)

        def draw(key: Array) -> Array:
            delta = jnp.zeros((*image, channels))
            for row in range(image[0] // side):
                for column in range(image[1] // side):
                    k = jax.random.fold_in(key, row * image[1] + column)
                    turn, sign = jax.random.split(k)
                    at = [f + side * n for f, n in zip(first, (row, column), strict=True)]
                    if at[0] + side > image[0] or at[1] + side > image[1]:
                        continue
                    bump = tile[jax.random.randint(turn, (), 0, 2)][:, :, None] * _signs(sign, (1, 1, channels))
                    delta = delta.at[at[0] : at[0] + side, at[1] : at[1] + side].add(bump)
            return delta

        return on_sphere(jax.vmap(draw)(keys))

    def propose(x_adv: Array, i: Array, keys: Array) -> Array:
        delta = x_adv - x
        spare = jnp.maximum(radius**2 - spread(distance(delta, "l2"), x) ** 2, 0)

        def change(delta: Array, spare: Array, key: Array) -> Array:
            first, second, turn, sign = jax.random.split(key, 4)
            side = jnp.asarray(sizes)[i]
            window, place = _window(first, side, image)
            other, _ = _window(second, side, image)

            def norm(mask: Array) -> Array:
                return jnp.sqrt(jnp.sum((delta * mask[:, :, None]) ** 2, axis=(0, 1), keepdims=True))

            bump = jnp.roll(bumps[jnp.asarray(index)[i], jax.random.randint(turn, (), 0, 2)], place, (0, 1))
            new = bump[:, :, None] * _signs(sign, (1, 1, channels))
            new = new + delta * window[:, :, None] / (1e-12 + norm(window))
            new = new / (1e-12 + jnp.sqrt(jnp.sum(new**2, axis=(0, 1), keepdims=True)))
            new = new * jnp.sqrt(spare / channels + norm(window | other) ** 2)
            rest = jnp.where((window | other)[:, :, None], 0, delta)
            return rest + jnp.where(window[:, :, None], new, 0)

        return on_sphere(jax.vmap(change)(delta, spare, keys))

    return begin, propose


def _bump(side: int) -> Any:
    """[2, side, side]: a positive and a negative half of unit norm together, upright and lying."""
    upper, lower = side // 2, side - side // 2
    bump = np.concatenate([_pyramid(upper, side), -_pyramid(lower, side)])
    bump /= np.sqrt(np.sum(bump**2))
    return np.stack([bump, bump.T])


def _pyramid(height: int, width: int) -> Any:
    """Nested rectangles of weight 1 / k^2, [height, width], of unit norm."""
    pyramid = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(row - k, 0), min(row + k + 1, height))
        columns = slice(max(column - k, 0), min(column + k + 1, width))
        pyramid[rows, columns] += 1 / (k + 1) ** 2
    return pyramid / max(np.sqrt(np.sum(pyramid**2)), 1e-12)


def _embed(bump: Any, image: tuple[int, ...]) -> Array:
    side = bump.shape[-1]
    return jnp.asarray(np.pad(bump, ((0, 0), (0, image[0] - side), (0, image[1] - side))), jnp.float32)
