"""What only a broken line shows: counts of steps and passes, the first and the last of something, other axes."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr
from jacreg_jax import attacks, certify, convolution, evaluation, guard, jacobian, rows, sharding, shares, training
from jacreg_jax.attacks import apgd_search, gradient, output_criteria, square_bumps, square_canvas, trace
from jacreg_jax.attacks.start import begin
from jacreg_jax.convolution import blocks

HALF = lambda x: jnp.concatenate([x[:, :1], 1 - x[:, :1]], axis=1)  # class 0 above 0.5, of the first feature alone


# ------------------------------------------------------------------------------------- Square's bumps, step by step


def rectangles(height, width, power):
    """Nested rectangles, after the reference code, with its own indices."""
    found, at = np.zeros((height, width)), [height // 2, width // 2]
    for k in range(max(height // 2, width // 2) + 1):
        up, left = max(at[0], 0), max(at[1], 0)
        found[up : min(at[0] + 2 * k + 1, height), left : min(at[1] + 2 * k + 1, width)] += 1 / (k + 1) ** power
        at = [at[0] - 1, at[1] - 1]
    return found / size(found, power)


def size(values, power, axes=None):
    return np.sqrt((values**2).sum(axes)) if power == 2 else np.abs(values).sum(axes)


def eta(side, power, lying):
    found = np.zeros((side, side))
    found[: side // 2] = rectangles(side // 2, side, power)
    found[side // 2 :] = -rectangles(side - side // 2, side, power)
    found /= size(found, power)
    return found.T if lying else found


def twin(delta, side, radius, power, key):
    """One proposal for one image [H, W, C], in plain NumPy; keys are split as the attack splits them."""
    first, second, turn, sign = jax.random.split(key, 4)
    height, width, channels = delta.shape
    places = [max(height - side, 1), max(width - side, 1)]
    corners = [np.asarray(jax.random.randint(k, (2,), 0, jnp.asarray(places), jnp.int32)) for k in (first, second)]
    window, other = (np.zeros((height, width, 1), bool) for _ in range(2))
    for mask, (row, column) in zip((window, other), corners, strict=True):
        mask[row : row + side, column : column + side] = True
    bump = np.zeros((height, width))
    row, column = corners[0]
    bump[row : row + side, column : column + side] = eta(side, power, bool(jax.random.randint(turn, (), 0, 2)))
    signs = np.asarray(square_canvas.signs(sign, (1, 1, channels), jnp.float32))
    of = lambda values: size(values, power, (0, 1))
    new = bump[:, :, None] * signs + delta * window / (1e-12 + of(delta * window))
    new /= 1e-12 + of(new)
    taken = of(delta * (window | other))
    if power == 2:
        spare = max(radius**2 - (delta**2).sum(), 0)
        new *= np.sqrt(spare / channels + taken**2)
    else:
        new *= max(radius - np.abs(delta).sum(), 0) + taken * channels
    return np.where(window | other, 0, delta) + np.where(window, new, 0)


def first_twin(shape, side, power, key):
    """The grid of bumps that Square starts from."""
    height, width, channels = shape
    found, top, left = np.zeros(shape), height % side // 2, width % side // 2
    for row in range(height // side):
        for column in range(width // side):
            turn, sign = jax.random.split(jax.random.fold_in(key, row * width + column))
            signs = np.asarray(square_canvas.signs(sign, (1, 1, channels), jnp.float32))
            tile = eta(side, power, bool(jax.random.randint(turn, (), 0, 2)))[:, :, None] * signs
            found[top + row * side : top + (row + 1) * side, left + column * side : left + (column + 1) * side] = tile
    return found


@pytest.mark.parametrize(("norm", "power", "channels"), [("l2", 2, 2), ("l1", 4, 1)])
def test_square_s_bumps_are_those_of_the_reference_code(norm, power, channels):
    """The grid of the start and ten proposals, of a large window and smaller ones; nothing meets the bounds."""
    shape, radius, queries = (10, 13, channels), 2.0, 400
    x = jnp.full((1, *shape), 5.0)
    f = lambda x: jnp.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], axis=1)
    start = begin(f, x, jnp.array([0]), (0.0, 10.0), norm=norm, epsilon=radius)
    bumps = square_bumps.bumps(start, jnp.full((1, 1, 1, 1), radius), queries, 0.5, norm)
    first, propose = map(jax.jit, bumps)
    sides = square_canvas.sizes_of(queries, 0.5, shape[:2], norm)

    def at_radius(delta):
        length = np.sqrt((delta**2).sum()) if norm == "l2" else np.abs(delta).sum()
        return delta * radius / length

    delta = np.asarray(0.01 * jax.random.normal(jax.random.key(9), shape))
    for number in range(10):
        i, key = 40 * number, jax.random.key(number)
        found = np.asarray(propose(x + delta[None], jnp.int32(i), key[None]))[0] - 5.0
        expected = twin(delta, int(sides[i]), radius, power, key)
        if norm == "l1":
            assert np.abs(expected).sum() == pytest.approx(radius, rel=1e-5), "the bump takes what the ball has left"
        np.testing.assert_allclose(found, at_radius(expected), atol=1e-4)
    for number in range(2):
        key = jax.random.key(number)
        begun = np.asarray(first(key[None]))[0] - 5.0
        whole = first_twin(shape, min(shape[:2]) // 5, power, key)
        if norm == "l2":
            np.testing.assert_allclose(begun, at_radius(whole), atol=1e-5)
        else:  # the projection thins it out
            assert np.abs(begun).sum() == pytest.approx(radius, rel=1e-3)
            assert ((begun == 0) | (np.sign(begun) == np.sign(whole))).all()


def test_the_sides_of_square_s_windows():
    sides = square_canvas.sizes_of(10_000, 0.1, (28, 28), "l2")
    assert sides.min() == 3, "odd, and not below three"
    assert set(sides % 2) == {1}
    assert square_canvas.sizes_of(10_000, 0.1, (28, 28), "linf").min() == 1


# ------------------------------------------------------------------------------------------------- steps and passes


def test_square_makes_the_queries_that_it_counts():
    """Seen by the model: one a step, as many as asked where nothing fools, and no more once something does."""

    def calls(threshold, num_queries):
        asked = []

        def f(x):
            jax.debug.callback(lambda: asked.append(1))
            mean = x.mean((1, 2, 3))
            return jnp.stack([mean - threshold, jnp.zeros_like(mean)], axis=1)

        x = jnp.full((1, 6, 6, 1), 0.7)
        found = attacks.square(f, x, jnp.array([0]), jax.random.key(0), epsilon=0.1, num_queries=num_queries)
        jax.block_until_ready(found.x_adv)
        jax.effects_barrier()
        return len(asked), found

    few, _ = calls(0.0, 5)
    many, never = calls(0.0, 12)
    assert not never.success.any()
    assert many - few == 7
    made, late = calls(0.65, 300)
    assert late.success.all()
    assert int(late.steps[0]) > 1
    assert made - few == int(late.steps[0]) - 5
    assert int(late.forward[0]) - int(never.forward[0]) == int(late.steps[0]) - 12


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_counts_its_passes(norm):
    """A sample that is never fooled is evaluated at the start, at every step, and where the result is made."""
    never = lambda x: HALF(0.0 * x + 0.9)
    few, many = (
        attacks.apgd(never, jnp.array([[0.9]]), jnp.array([0]), jax.random.key(0), epsilon=0.1, norm=norm, num_steps=n)
        for n in (5, 12)
    )
    assert int(many.forward[0] - few.forward[0]) == 7
    assert int(many.backward[0] - few.backward[0]) == 7
    assert int(few.backward[0]) >= 5


def test_a_pixel_without_gradient_does_not_move():
    x = jnp.array([[0.6, 0.3]])
    found = attacks.pgd_distance(HALF, x, jnp.array([0]), step_size=0.02, epsilon=0.5)
    assert found.success.all()
    assert float(found.x_adv[0, 1]) == pytest.approx(0.3)
    assert int(found.backward[0]) == int(found.steps[0]) + 2, "a step, the look at its end, and that at the start"
    ends = attacks.pgd_distance(lambda x: HALF(0 * x + 0.9), x, jnp.array([0]), step_size=0.02, num_steps=3)
    assert int(ends.backward[0]) == 4


def test_a_trajectory_keeps_the_steps_that_were_made():
    """One column of one row, where a sample is done no more of it."""
    blank = trace.Trajectory(*(jnp.full((2, 3), jnp.nan),) * 2)
    going = jnp.array([True, False])
    found = trace.record(blank, jnp.int32(1), jnp.array([4.0, 5.0]), jnp.array([[3.0, 4.0], [1.0, 0.0]]), "l2", going)
    np.testing.assert_array_equal(found.loss, [[np.nan, 4, np.nan], [np.nan] * 3])
    np.testing.assert_array_equal(found.distance, [[np.nan, 5, np.nan], [np.nan] * 3])


def test_tiny_gradients_keep_their_direction():
    direction = gradient.ascent_direction(1e-30 * jnp.array([[3.0, 4.0]]), "l2")
    np.testing.assert_allclose(direction, [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(gradient.ascent_direction(1e30 * jnp.array([[3.0, 4.0]]), "l2"), [[0.6, 0.8]], rtol=1e-6)


def test_a_length_leaves_zero_along_the_diagonal():
    slope = jax.grad(lambda d: output_criteria._length(d).sum())(jnp.zeros((1, 4)))
    np.testing.assert_allclose(slope, 0.5 * np.ones((1, 4)))


# ---------------------------------------------------------------------------------------------------- the last axis


def test_labels_of_tokens_may_exceed_their_number():
    """[B, T, V] with V > T: a label is one of V."""
    f = lambda x: jnp.eye(5)[None, 3:5] * 1.0 + 0 * x[:, :2, None]  # tokens 3 and 4
    x, y = jnp.ones((1, 2)), jnp.array([[3, 4]])
    assert evaluation.accuracy(f, x, y) == 1.0
    to = attacks.pgd(f, x, y, epsilon=0.1, step_size=0.1, num_steps=1, target=jnp.array([[4, 4]]))
    assert to.success.tolist() == [False]


def test_the_variance_of_stacked_gram_matrices():
    gram = jnp.stack([k * jnp.diag(jnp.arange(1.0, 4.0)) for k in range(1, 7)]).reshape(2, 3, 3, 3)[:, :2]
    found = jr.projection_variance(gram, num_projections=1, probe="sphere")
    alone = [[float(jr.projection_variance(g, num_projections=1, probe="sphere")) for g in row] for row in gram]
    np.testing.assert_allclose(found, alone, rtol=1e-6)
    with pytest.raises(ValueError, match="num_projections"):
        jr.projection_variance(gram, num_projections=4, probe="orthonormal")
    frames = jnp.broadcast_to(jnp.eye(3), (2, 1, 3, 3))  # one row in front: a count of 2 is above it, and below C
    np.testing.assert_allclose(jr.projection_variance(frames, num_projections=2, probe="orthonormal"), 0, atol=1e-5)


def test_indices_of_models_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"B rows for each step, got shape \(2, 3, 0\)"):
        guard.check_rows(jnp.zeros((2, 3, 0), int), 5, "[M, T, B]")


def test_what_is_no_array_is_named():
    with pytest.raises(TypeError, match="x must be an array or a pytree of arrays, got str$"):
        rows.Rows("word", "x")
    with pytest.raises(TypeError, match="x must be an array or a pytree of arrays, got a dict of str$"):
        rows.Rows({"a": "word"}, "x")


def test_a_class_that_is_never_hit_has_probability_zero():
    """f changes its mind with the number of draws: what the selection saw, the bound does not."""
    nothing = lambda x: jnp.full((len(x), 2), jnp.nan)
    found = certify.certify_smoothed(nothing, jnp.zeros((1, 2)), jax.random.key(0), sigma=1.0, num_samples=100)
    assert found.probability.tolist() == [0.0]
    assert found.prediction.tolist() == [-1]


def test_sphere_probes_have_the_length_of_the_frame():
    v = jr.probes.sample_probes(jax.random.key(0), 4, 7, 3, "sphere")
    np.testing.assert_allclose(jnp.sum(v**2, -1), 7 * np.ones((4, 3)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_draws_of_any_width_are_those_of_the_whole_batch(dtype):
    key, mesh = jax.random.key(3), sharding.data_mesh(jax.devices()[:2])

    def share(x):
        with shares.on_share(shares.Share("data", len(x), key)):
            return jax.random.bits(shares.whole_batch_key(key, lambda key: key), (len(x), 5), dtype)

    with jax.enable_x64(True):
        split = jax.shard_map(share, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
        found = jax.jit(split)(jnp.zeros(6))
        np.testing.assert_array_equal(found, jax.random.bits(key, (6, 5), dtype))
        assert found.dtype == dtype


# --------------------------------------------------------------------------------------------- how work is cut up


def test_fewer_samples_than_a_batch_are_padded_to_a_power_of_two():
    seen = []

    def f(x):
        seen.append(x.shape[0])
        return jnp.concatenate([x, 1 - x], axis=1)

    for number, rows_seen in ((1, 1), (3, 4), (5, 8), (8, 8)):
        seen.clear()
        assert evaluation.accuracy(f, np.full((number, 1), 0.9, np.float32), np.zeros(number, int)) == 1.0
        assert set(seen) == {rows_seen}, number


def test_directions_one_at_a_time_are_one_at_a_time():
    assert rows.chunked(jnp.ones((3, 2)), 1).shape == (3, 1, 2)
    assert rows.chunked(jnp.ones((3, 2)), 2).shape == (2, 2, 2)
    assert rows.chunked(jnp.ones((3, 2)), 9).shape == (1, 3, 2)


def test_blocks_divide_the_batch_where_a_near_number_does():
    """Fifteen rows in blocks of at most four: five of three, and nothing is padded."""
    assert [part.shape for part in blocks._blocks(4, jnp.ones((15, 2)))] == [(5, 3, 2)]
    assert [part.shape for part in blocks._blocks(6, jnp.ones((14, 2)))] == [(3, 5, 2)]


def test_sixteen_rows_have_sixteen_weights():
    for seed in range(3):
        weights = jacobian._distinct_weights(jax.random.key(seed), 16)
        assert len(set(weights.tolist())) == 16
        assert sum(weights.tolist()) == 0


def test_windows_side_by_side_take_the_fast_way():
    """Without XLA's own reduction; padding or overlap takes that."""
    of = lambda **options: str(
        jax.make_jaxpr(lambda x: convolution.max_pool(x, (2, 2), **options))(jnp.ones((1, 4, 4, 1)))
    )
    assert "reduce_window" not in of(strides=(2, 2), padding=((0, 0), (0, 0)))
    assert "reduce_window" not in of(strides=(2, 2), padding="VALID")
    assert "reduce_window" in of(strides=(1, 1), padding="VALID")
    assert "reduce_window" in of(strides=(2, 2), padding=((1, 1), (0, 0)))


def test_a_batch_of_one_part_is_no_loop():
    params, batch = {"w": jnp.ones((3, 2))}, {"image": jnp.ones((4, 3)), "label": jnp.zeros(4, int)}
    loss = training.classification_loss(lambda p, s, x, k: (x @ p["w"], s))
    state = training.init_state(params, training.sgd(0.1), jax.random.key(0))

    def program(part_size):
        step = training.make_train_step(training.in_parts(part_size, loss), training.sgd(0.1), donate=False)
        return str(jax.make_jaxpr(step)(state, batch))

    assert not re.search(r"\b(scan|while)\[", program(4))
    assert re.search(r"\b(scan|while)\[", program(2))


# ------------------------------------------------------------------------------------------------ where APGD begins


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_begins_as_the_reference_code(loss, monkeypatch):
    """Steps of twice epsilon (Croce and Hein, section 3.4); the loss before the first is 0, but for cross-entropy,
    whose first one is always a rise.
    """
    module, begun = importlib.import_module("jacreg_jax.attacks.apgd"), []
    first = apgd_search._first

    def seen(search, keys, found):
        begun.append((search.is_ce, first(search, keys, found)))
        return begun[-1][1]

    monkeypatch.setattr(apgd_search, "_first", seen)
    f = lambda x: jnp.concatenate([x, 0.5 - x, 0.3 + 0 * x, 0.1 + 0 * x], axis=1)
    with jax.disable_jit():
        run = module.apgd.__wrapped__ if hasattr(module.apgd, "__wrapped__") else module.apgd
        run(f, jnp.array([[0.9]]), jnp.array([0]), jax.random.key(0), epsilon=0.01, num_steps=1, loss=loss)
    is_ce, state = begun[0]
    assert is_ce is (loss == "ce")
    assert state.step_size.tolist() == [2.0]
    assert state.loss_last.tolist() == [-np.inf if is_ce else 0.0]
