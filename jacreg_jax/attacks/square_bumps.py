"""What Square tries in L2 and L1: bumps of a positive and a negative half, on a grid and then one by one."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jacreg_jax.attacks.ball import project
from jacreg_jax.attacks.gradient import ascent_direction
from jacreg_jax.attacks.result import Norm, distance, spread
from jacreg_jax.attacks.square_canvas import Canvas, signs, sizes_of, window_at
from jacreg_jax.attacks.start import Start
from jacreg_jax.types import Array, Counter

Begin: TypeAlias = Callable[[Array], Array]  # keys [B] -> first images
Propose: TypeAlias = Callable[[Array, Array, Array], Array]  # images, number of the query, keys [B] -> images to try


class _Measure(NamedTuple):
    """A norm, and what of it a new bump may have: its two windows' own, and a share of what the ball has left."""

    size: Callable[[Array], Array]  # [H, W, C] -> [1, 1, C], of every channel
    left: Callable[[Array, Array], Array]  # radius and norm of the whole change -> what may be added
    allowed: Callable[[Array, Array, int], Array]  # what is left, size of the windows, channels -> size of the bump


_L2 = _Measure(
    lambda delta: jnp.sqrt(jnp.sum(delta**2, axis=(0, 1), keepdims=True)),
    lambda radius, length: jnp.maximum(radius**2 - length**2, 0),
    lambda spare, size, channels: jnp.sqrt(spare / channels + size**2),
)
_L1 = _Measure(
    lambda delta: jnp.sum(jnp.abs(delta), axis=(0, 1), keepdims=True),
    lambda radius, length: jnp.maximum(radius - length, 0),
    lambda spare, size, channels: spare + size * channels,
)


def bumps(start: Start, radius: Array, num_queries: int, initial_share: float, norm: Norm) -> tuple[Begin, Propose]:
    """A grid of bumps, then one bump that takes over the norm of another window."""
    x, canvas, measure = start.x, Canvas.of(start.x, norm), _L2 if norm == "l2" else _L1
    image, channels = canvas.image, canvas.channels
    sizes = sizes_of(num_queries, initial_share, image, norm)
    sides = sorted(set(sizes.tolist()))
    # [sides, 2, H, W] in the upper left corner
    shapes = jnp.asarray(np.stack([_embed(_bump(side, norm), image) for side in sides]), x.dtype)
    index = np.searchsorted(sides, sizes)

    def within(images: Array) -> Array:
        """On the sphere in L2, in ball and box in L1."""
        delta = canvas.read(images)
        if norm == "l1":
            return project(x + delta, x, (1 - 1e-6) * radius, "l1", start.bounds)
        return start.clip(x + radius * ascent_direction(delta, "l2"))

    def begin(keys: Array) -> Array:
        side = min(image) // 5
        rows, columns = (n // side for n in image)
        names = jnp.arange(rows, dtype=jnp.int32)[:, None] * image[1] + jnp.arange(columns, dtype=jnp.int32)[None]
        margins = [(n % side // 2, n % side - n % side // 2) for n in image]
        tile = jnp.asarray(_bump(side, norm), x.dtype)

        def one_bump(key: Array) -> Array:
            turn, sign = jax.random.split(key)
            return tile[jax.random.randint(turn, (), 0, 2, jnp.int32)][:, :, None] * signs(
                sign, (1, 1, channels), x.dtype
            )

        def draw(key: Array) -> Array:
            drawn = jax.vmap(lambda name: one_bump(jax.random.fold_in(key, name)))(names.ravel())
            grid = drawn.reshape(rows, columns, side, side, channels).swapaxes(1, 2)
            return jnp.pad(grid.reshape(rows * side, columns * side, channels), (*margins, (0, 0)))

        return within(jax.vmap(draw)(keys))

    def propose(x_adv: Array, i: Counter, keys: Array) -> Array:
        spare = measure.left(radius, spread(distance(x_adv - x, norm), x)).reshape(-1, 1, 1, 1)

        def change(delta: Array, spare: Array, key: Array) -> Array:
            first, second, turn, sign = jax.random.split(key, 4)
            side = jnp.asarray(sizes, jnp.int32)[i]
            window, place = window_at(first, side, canvas)
            other, _ = window_at(second, side, canvas)

            inside = lambda mask: jnp.where(mask[:, :, None], delta, 0)
            bump = jnp.roll(shapes[jnp.asarray(index)[i], jax.random.randint(turn, (), 0, 2, jnp.int32)], place, (0, 1))
            new = bump[:, :, None] * signs(sign, (1, 1, channels), x.dtype)
            new = new + inside(window) / (1e-12 + measure.size(inside(window)))
            new = new / (1e-12 + measure.size(new))
            new = new * measure.allowed(spare, measure.size(inside(window | other)), channels)
            rest = jnp.where((window | other)[:, :, None], 0, delta)
            return rest + jnp.where(window[:, :, None], new, 0)

        return within(jax.vmap(change)(canvas.paint(x_adv - x), spare, keys))

    return begin, propose


def _bump(side: int, norm: Norm = "l2") -> Any:
    """[2, side, side]: a positive and a negative half of unit norm together, upright and lying."""
    upper, lower = side // 2, side - side // 2
    bump = np.concatenate([_pyramid(upper, side, norm), -_pyramid(lower, side, norm)])
    bump /= _size(bump, norm)
    return np.stack([bump, bump.T])


def _pyramid(height: int, width: int, norm: Norm = "l2") -> Any:
    """Nested rectangles of weight 1 / k^2, in L1 1 / k^4; [height, width], of unit norm."""
    pyramid = np.zeros((height, width))
    row, column = height // 2, width // 2
    for k in range(max(height // 2 + 1, width // 2 + 1)):
        rows = slice(max(row - k, 0), min(row + k + 1, height))
        columns = slice(max(column - k, 0), min(column + k + 1, width))
        pyramid[rows, columns] += 1 / (k + 1) ** (2 if norm == "l2" else 4)
    return pyramid / max(_size(pyramid, norm), 1e-12)


def _size(values: Any, norm: Norm) -> float:
    return float(np.sqrt(np.sum(values**2)) if norm == "l2" else np.abs(values).sum())


def _embed(bump: Any, image: tuple[int, ...]) -> Any:
    side = bump.shape[-1]
    return np.pad(bump, ((0, 0), (0, image[0] - side), (0, image[1] - side)))
