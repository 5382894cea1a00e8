"""Square attack: random search with squares, which needs no gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jacreg_jax import checks
from jacreg_jax.attacks.criteria import Criterion, misclassified
from jacreg_jax.attacks.parts import Held, go_on, in_parts
from jacreg_jax.attacks.result import AttackResult, Norm, choose, spread
from jacreg_jax.attacks.square_bumps import Begin, Propose, bumps
from jacreg_jax.attacks.square_canvas import Canvas, signs, sizes_of, window_at
from jacreg_jax.attacks.start import Goal, Start, begin, finish
from jacreg_jax.checks import Bounds
from jacreg_jax.keys import check_key
from jacreg_jax.programs import once
from jacreg_jax.types import Array, Counter, Function, PyTree


@once
def square(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    *,
    epsilon: ArrayLike,
    norm: Norm = "linf",
    num_queries: int = 5000,
    initial_share: float = 0.8,
    criterion: Criterion | Function = misclassified,
    target: ArrayLike | None = None,
    samples: int | None = None,
    bounds: Bounds | None = (0.0, 1.0),
) -> AttackResult:
    """Random search in the ball: a square of changed pixels is kept where it raises the margin of another class.

    Squares shrink as the queries are used up, from initial_share of the image. A sample stops at its first fooling
    image. It calls f alone, never its gradient, so what it gains over gradient attacks shows masked gradients. What is
    no image, such as feature vectors [B, F], is searched as a row of features in L-infinity, and as a square in
    L2 and L1. For many samples `evaluation.run_attack` is faster: those that are done leave the batch.

    Args:
        f: batched function, raw pixels [B, ...] -> logits [B, C]; it need not be differentiable.
        x: raw pixels within bounds: images [B, H, W, C] or [B, H, W], or any other [B, ...].
        y: integer labels [B].
        key: typed key, or B of them.
        epsilon: radius in raw pixels, scalar or [B]; in L-infinity also with all axes of x, such as [1, F].
        norm: "linf", "l2" or "l1".
        num_queries: calls of f.
        initial_share: of the pixels in the first squares.
        criterion: what counts as a success, see `criteria`.
        target: classes [B], or one for all, that f shall say; success then means that it does. None: any other class.
        samples: draws of a random f(x, key) that margins are averaged over; None: f(x) is not random.
        bounds: (low, high) of a pixel, each a scalar, an array that broadcasts to x, or None; None for no bounds.

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
    return _search(
        f, x, y, key, epsilon=epsilon, norm=norm, num_queries=num_queries, initial_share=initial_share,
        criterion=criterion, target=target, samples=samples, bounds=bounds,
    )[0]  # fmt: skip


def _search(
    f: Function,
    x: PyTree,
    y: PyTree,
    key: Array,
    held: Held | None = None,
    *,
    until: Array | None = None,
    epsilon: ArrayLike,
    norm: Norm,
    num_queries: int,
    initial_share: float,
    criterion: Criterion | Function,
    target: ArrayLike | None,
    samples: int | None,
    bounds: Bounds | None,
) -> tuple[AttackResult, Held]:
    check_key(key)
    start = begin(f, x, y, bounds, key=key, norm=norm, goal=Goal(criterion, target, samples), epsilon=epsilon)
    num_queries = checks.count("num_queries", num_queries)
    checks.fraction("initial_share", initial_share, one=True)
    image, keys = start.x, start.keys
    search = _stripes if norm == "linf" else partial(bumps, norm=norm)
    first, propose = search(start, spread(epsilon, image), num_queries, initial_share)

    def query(x_adv: Array) -> tuple[Array, Array]:
        z = start.f(x_adv)
        return start.margin(z), start.reached(z)

    def step(i: Array, held: Held) -> Held:
        tried = propose(held.x_adv, i, jax.vmap(jax.random.fold_in, (0, None))(keys, i))
        value, fooled = query(tried)
        better = ((value > held.best) | fooled) & ~held.done
        steps = jnp.where(fooled & ~held.done, i + 1, held.steps)
        kept, best = choose(better, tried, held.x_adv), jnp.where(better, value, held.best)
        return held._replace(x_adv=kept, done=held.done | fooled, steps=steps, best=best)

    def begun() -> Held:
        x_adv = first(keys)
        value, fooled = query(x_adv)
        return Held(start.zeros(), x_adv, fooled | ~start.clean_correct, start.zeros(), value)

    held = go_on(start, step, begun, held, num_queries, until)
    calls = 1 + jnp.where(held.done, held.steps, held.made)
    told: dict[str, Any] = {"grad_zero": start.none(), "within": epsilon, "forward": calls}
    return finish(start, held.x_adv, norm=norm, steps=held.steps, **told), held


in_parts(square, _search, length="num_queries", stops=(100, 1000), calls=1)


def _stripes(start: Start, radius: Array, num_queries: int, initial_share: float) -> tuple[Begin, Propose]:
    """Vertical stripes of +-epsilon, then squares of them."""
    x, canvas = start.x, Canvas.of(start.x, "linf")
    image, channels = canvas.image, canvas.channels
    sizes = sizes_of(num_queries, initial_share, image, "linf")

    def within(x_adv: Array) -> Array:
        return start.clip(jnp.clip(x_adv, x - radius, x + radius))

    def begin(keys: Array) -> Array:
        stripes = jax.vmap(lambda k: signs(k, (1, image[1], channels), x.dtype))(keys)
        return within(x + radius * canvas.read(jnp.broadcast_to(stripes, (len(x), *image, channels))))

    def propose(x_adv: Array, i: Counter, keys: Array) -> Array:
        def change(key: Array) -> Array:
            where, which = jax.random.split(key)
            window, _ = window_at(where, jnp.asarray(sizes, jnp.int32)[i], canvas)
            return jnp.where(window[:, :, None], signs(which, (1, 1, channels), x.dtype), 0)

        return within(x_adv + 2 * radius * canvas.read(jax.vmap(change)(keys)))

    return begin, propose
