"""Square attack: random search with squares, which needs no gradient."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

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
from jacreg_jax.keys import check_key
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function

_Sides: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"  # of the square of every query
_Begin: TypeAlias = Callable[[Array], Array]  # keys [B] -> first images
_Carry: TypeAlias = tuple[Array, Array, Array, Array, Array]  # query, images, best margin, done, steps
_Propose: TypeAlias = Callable[[Array, Array, Array], Array]  # images, number of the query, keys [B] -> images to try

# queries after which the share of pixels in a square is halved
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@once
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
    image. It calls f alone, never its gradient, so what it gains over gradient attacks shows masked gradients. What is
    no image, such as feature vectors [B, F], is searched as a row of features in L-infinity, and as a square in L2.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C]; it need not be differentiable.
        x: raw pixels within bounds: images [B, H, W, C] or [B, H, W], or any other [B, ...].
        y: integer labels [B].
        key: typed key, or B of them.
        epsilon: radius in raw pixels, scalar or [B].
        norm: "linf" or "l2".
        num_queries: calls of f.
        initial_share: of the pixels in the first squares.
        bounds: (low, high) of a pixel, each a scalar or an array that broadcasts to x.

    Returns:
        AttackResult with distances in `norm`; steps counts queries. grad_zero is False: no gradient is taken.

    Raises:
        TypeError, ValueError: see `start.begin`; num_queries below 1; initial_share outside (0, 1]; key is not a typed
            key.

    Example:
        >>> f = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)  # class 0 above 0.5
        >>> x, y = jnp.full((1, 6, 6, 1), 0.7), jnp.array([0])
        >>> square(f, x, y, jax.random.key(0), epsilon=0.3, num_queries=300).success.tolist()
        [True]

    Reference: Andriushchenko et al. (2019), https://arxiv.org/abs/1912.00049.
    """
    check_key(key)
    start = begin(f, x, y, bounds, key=key, norm=norm, epsilon=epsilon)
    num_queries = checks.count("num_queries", num_queries)
    checks.fraction("initial_share", initial_share, one=True)
    image, label, keys = start.x, start.y, start.keys
    search = _linf if norm == "linf" else _l2
    first, propose = search(start, spread(epsilon, image), num_queries, initial_share)

    def query(x_adv: Array) -> tuple[Array, Array]:
        logits = start.f(x_adv)
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
    return finish(start, x_adv, norm=norm, steps=steps, grad_zero=start.none())


class _Canvas(NamedTuple):
    """How samples lie on images: [H, W] and channels; what is no image is a row, or is filled up to a square."""

    sample: tuple[int, ...]  # shape of one
    image: tuple[int, int]
    channels: int

    @property
    def is_image(self) -> bool:
        """Whether neighbours in the sample are neighbours here, all of them its own."""
        return len(self.sample) in (2, 3) and self.image == self.sample[:2]

    @classmethod
    def of(cls, x: Array, norm: Norm) -> "_Canvas":
        """In L2 at least 5 x 5, the least that its grid of bumps needs."""
        sample = x.shape[1:]
        if len(sample) in (2, 3):
            image, channels = (sample[0], sample[1]), sample[2] if len(sample) == 3 else 1
        else:
            size = math.prod(sample)
            side = math.ceil(math.sqrt(size))
            image, channels = ((1, size) if norm == "linf" else (side, side)), 1
        if norm == "l2":
            image = (max(image[0], 5), max(image[1], 5))
        return cls(sample, image, channels)

    def paint(self, delta: Array) -> Array:
        """[B, ...] -> [B, H, W, C]."""
        if len(self.sample) in (2, 3):
            height, width = (n - m for n, m in zip(self.image, self.sample, strict=False))
            delta = delta.reshape(len(delta), *self.sample[:2], self.channels)
            return jnp.pad(delta, ((0, 0), (0, height), (0, width), (0, 0)))
        flat = delta.reshape(len(delta), -1)
        missing = math.prod(self.image) - flat.shape[1]
        return jnp.pad(flat, ((0, 0), (0, missing))).reshape(len(delta), *self.image, 1)

    def read(self, images: Array) -> Array:
        """The inverse of paint."""
        if len(self.sample) in (2, 3):
            return images[:, : self.sample[0], : self.sample[1]].reshape(len(images), *self.sample)
        return images.reshape(len(images), -1)[:, : math.prod(self.sample)].reshape(len(images), *self.sample)


def _sizes(num_queries: int, initial_share: float, image: tuple[int, int], norm: Norm) -> _Sides:
    """Side of the square of every query."""
    share = initial_share / 2.0 ** np.searchsorted(_HALVINGS, np.arange(num_queries), side="left")
    if min(image) == 1:  # a row: the window is a stretch of it
        return np.maximum(np.round(share * max(image)).astype(int), 1)
    sides = np.round(np.sqrt(share * image[0] * image[1])).astype(int)
    sides = np.maximum(sides, 1) if norm == "linf" else np.maximum(sides, 3) | 1  # odd ones in L2
    return np.asarray(np.minimum(sides, min(image)))


def _window(key: Array, side: Array, canvas: _Canvas) -> tuple[Array, Array]:
    """[H, W] bool: a square of this side at a random place; and its upper left corner.

    On images the last place of each axis is left out, as in the reference code; a row of features has all of them.
    """
    size = jnp.asarray(canvas.image, jnp.int32)
    places = size - side + (0 if canvas.is_image else 1)
    corner = jax.random.randint(key, (2,), 0, jnp.maximum(places, 1), jnp.int32)
    at = [jnp.arange(n, dtype=jnp.int32) for n in canvas.image]
    inside = [(a >= c) & (a < c + side) for a, c in zip(at, corner, strict=True)]
    return inside[0][:, None] & inside[1][None, :], corner


def _signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, dtype)


def _linf(start: Start, radius: Array, num_queries: int, initial_share: float) -> tuple[_Begin, _Propose]:
    """Vertical stripes of +-epsilon, then squares of them."""
    x, canvas = start.x, _Canvas.of(start.x, "linf")
    image, channels = canvas.image, canvas.channels
    sizes = _sizes(num_queries, initial_share, image, "linf")

    def within(x_adv: Array) -> Array:
        return start.clip(jnp.clip(x_adv, x - radius, x + radius))

    def begin(keys: Array) -> Array:
        stripes = jax.vmap(lambda k: _signs(k, (1, image[1], channels), x.dtype))(keys)
        return within(x + radius * canvas.read(jnp.broadcast_to(stripes, (len(x), *image, channels))))

    def propose(x_adv: Array, i: Counter, keys: Array) -> Array:
        def change(key: Array) -> Array:
            where, which = jax.random.split(key)
            window, _ = _window(where, jnp.asarray(sizes, jnp.int32)[i], canvas)
            return jnp.where(window[:, :, None], _signs(which, (1, 1, channels), x.dtype), 0)

        return within(x_adv + 2 * radius * canvas.read(jax.vmap(change)(keys)))

    return begin, propose


def _l2(start: Start, radius: Array, num_queries: int, initial_share: float) -> tuple[_Begin, _Propose]:
    """A grid of bumps, then one bump that takes over the norm of another window."""
    x, canvas = start.x, _Canvas.of(start.x, "l2")
    image, channels = canvas.image, canvas.channels
    sizes = _sizes(num_queries, initial_share, image, "l2")
    sides = sorted(set(sizes.tolist()))
    # [sides, 2, H, W] in the upper left corner
    bumps = jnp.asarray(np.stack([_embed(_bump(side), image) for side in sides]), x.dtype)
    index = np.searchsorted(sides, sizes)

    def on_sphere(images: Array) -> Array:
        return start.clip(x + radius * ascent_direction(canvas.read(images), "l2"))

    def begin(keys: Array) -> Array:
        side = min(image) // 5
        rows, columns = (n // side for n in image)
        names = jnp.arange(rows, dtype=jnp.int32)[:, None] * image[1] + jnp.arange(columns, dtype=jnp.int32)[None]
        margins = [(n % side // 2, n % side - n % side // 2) for n in image]
        tile = jnp.asarray(_bump(side), x.dtype)

        def one_bump(key: Array) -> Array:
            turn, sign = jax.random.split(key)
            return tile[jax.random.randint(turn, (), 0, 2, jnp.int32)][:, :, None] * _signs(
                sign, (1, 1, channels), x.dtype
            )

        def draw(key: Array) -> Array:
            bumps = jax.vmap(lambda name: one_bump(jax.random.fold_in(key, name)))(names.ravel())
            grid = bumps.reshape(rows, columns, side, side, channels).swapaxes(1, 2)
            return jnp.pad(grid.reshape(rows * side, columns * side, channels), (*margins, (0, 0)))

        return on_sphere(jax.vmap(draw)(keys))

    def propose(x_adv: Array, i: Counter, keys: Array) -> Array:
        spare = jnp.maximum(radius**2 - spread(distance(x_adv - x, "l2"), x) ** 2, 0).reshape(-1, 1, 1, 1)

        def change(delta: Array, spare: Array, key: Array) -> Array:
            first, second, turn, sign = jax.random.split(key, 4)
            side = jnp.asarray(sizes, jnp.int32)[i]
            window, place = _window(first, side, canvas)
            other, _ = _window(second, side, canvas)

            def norm(mask: Array) -> Array:
                return jnp.sqrt(jnp.sum(jnp.where(mask[:, :, None], delta, 0) ** 2, axis=(0, 1), keepdims=True))

            bump = jnp.roll(bumps[jnp.asarray(index)[i], jax.random.randint(turn, (), 0, 2, jnp.int32)], place, (0, 1))
            new = bump[:, :, None] * _signs(sign, (1, 1, channels), x.dtype)
            new = new + jnp.where(window[:, :, None], delta, 0) / (1e-12 + norm(window))
            new = new / (1e-12 + jnp.sqrt(jnp.sum(new**2, axis=(0, 1), keepdims=True)))
            new = new * jnp.sqrt(spare / channels + norm(window | other) ** 2)
            rest = jnp.where((window | other)[:, :, None], 0, delta)
            return rest + jnp.where(window[:, :, None], new, 0)

        return on_sphere(jax.vmap(change)(canvas.paint(x_adv - x), spare, keys))

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


def _embed(bump: Any, image: tuple[int, ...]) -> Any:
    side = bump.shape[-1]
    return np.pad(bump, ((0, 0), (0, image[0] - side), (0, image[1] - side)))
