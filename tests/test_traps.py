"""What ordinary models and data do that attacks, certificates and adapters must not fall for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import attacks, certify, evaluation, interop, masking, penalties, reporting
from jacreg_jax.convolution import conv_general_dilated
from jacreg_jax.models import batch_statistics_mode, held_statistics_mode, train_mode

WEIGHTS = jax.random.normal(jax.random.key(3), (16, 5))
IMAGES = jax.random.uniform(jax.random.key(1), (40, 4, 4, 1))


def linear(x):
    return x.reshape(len(x), -1) @ WEIGHTS


IN_A_BALL = {
    "fgsm": attacks.fgsm,
    "pgd": partial(attacks.pgd, step_size=0.03, num_steps=8),
    "pgd_l2": partial(attacks.pgd, step_size=0.1, num_steps=8, norm="l2"),
    "apgd": partial(attacks.apgd, num_steps=8),
    "apgd_l1": partial(attacks.apgd, num_steps=8, norm="l1"),
    "square": partial(attacks.square, num_queries=30),
    "square_l2": partial(attacks.square, num_queries=30, norm="l2"),
}


@pytest.mark.parametrize("name", IN_A_BALL)
def test_who_is_fooled_in_a_ball_is_fooled_within_its_radius(name):
    """At radii that are no round numbers in base 2; rounding leads out of the ball by a unit in the last place."""
    y = linear(IMAGES).argmax(1)
    for epsilon in (0.1, 0.3, 8 / 255, np.float32(1 / 3), np.float64(0.7)):
        result = evaluation.run_attack(IN_A_BALL[name], linear, IMAGES, y, jax.random.key(0), epsilon=epsilon)
        robust = 1 - np.mean(result.success)
        assert evaluation.robust_accuracy(result.distance, epsilon) == pytest.approx(robust)
        assert evaluation.fooling_curve(result.distance, np.array([epsilon]))[0] == pytest.approx(1 - robust)
        assert evaluation.robust_accuracy(result.distance.tolist(), epsilon) == pytest.approx(robust)


def test_pixels_outside_of_bounds_do_not_leave_the_ball():
    """Under a caller's own jit nobody can look at them: normalised images with the default bounds."""
    x = 3 * (IMAGES - 0.5)
    y = linear(x).argmax(1)
    for attack in (IN_A_BALL["pgd"], IN_A_BALL["apgd"]):
        call = jax.jit(lambda x, key, attack=attack: attack(linear, x, y, key, epsilon=0.05))
        x_adv = call(x, jax.random.key(0)).x_adv
        assert 0.04 < np.abs(x_adv - x).max() < 0.05 + 1e-6
    inside = jax.jit(lambda x: IN_A_BALL["pgd"](linear, x, y, epsilon=0.9).x_adv)(IMAGES)
    assert inside.min() == 0
    assert inside.max() == 1


# gradients of NaN


def trap(x):
    """Finite, and with a gradient of NaN at black pixels."""
    return linear(jnp.where(x > 0, jnp.log(x), -3.0)) / 4


def twin(x):
    """The same numbers with a gradient that is finite."""
    return linear(jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -3.0)) / 4


WITH_BLACK = jnp.where(IMAGES < 0.3, 0, IMAGES).at[:, 0, 0].set(0)
NEAREST = {
    "ddn": partial(attacks.ddn, num_steps=20),
    "fab": partial(attacks.fab, num_steps=10),
    "cw": partial(attacks.carlini_wagner, num_steps=20, binary_search_steps=2, initial_const=1.0, learning_rate=0.1),
    "fgsm_distance": attacks.fgsm_distance,
    "pgd_distance": partial(attacks.pgd_distance, num_steps=20),
}


@pytest.mark.parametrize("name", ["pgd", "pgd_l2", "apgd", "apgd_l1", *NEAREST])
def test_an_infinite_gradient_is_no_defence(name):
    """Of a root at black pixels; the twin's is steep there."""
    attack = (IN_A_BALL | NEAREST)[name]
    root, steep = lambda x: linear(jnp.sqrt(x)), lambda x: linear(jnp.sqrt(x + 1e-6))
    options = {"epsilon": {"pgd_l2": 1.0, "apgd_l1": 3.0}.get(name, 0.3)} if name in IN_A_BALL else {}
    y = root(WITH_BLACK).argmax(1)
    found, expected = (
        evaluation.run_attack(attack, f, WITH_BLACK, y, jax.random.key(0), **options) for f in (root, steep)
    )
    assert np.isfinite(found.x_adv).all()
    assert found.success.mean() >= expected.success.mean() - 0.1 > 0.1


@pytest.mark.parametrize("name", ["fgsm", "pgd", "pgd_l2", "apgd", "apgd_l1", *NEAREST])
def test_a_gradient_of_nan_is_no_defence(name):
    attack, y = (IN_A_BALL | NEAREST)[name], trap(WITH_BLACK).argmax(1)
    options = {"epsilon": 0.2} if name in IN_A_BALL else {}
    found, expected = (
        evaluation.run_attack(attack, f, WITH_BLACK, y, jax.random.key(0), **options) for f in (trap, twin)
    )
    assert np.isfinite(found.x_adv).all()
    assert expected.success.any()
    np.testing.assert_array_equal(found.success, expected.success)
    np.testing.assert_allclose(found.distance, expected.distance, rtol=1e-4)


def test_a_gradient_of_nan_is_told():
    x, y = WITH_BLACK, trap(WITH_BLACK).argmax(1)
    options = {"epsilon": 0.1, "num_steps": (2,), "num_queries": 5}
    told = {f: masking.checks(f, x, y, jax.random.key(0), **options)["not finite"] for f in (trap, twin)}
    assert told[trap].value == 1
    assert not told[trap].passed
    assert told[twin].passed
    assert np.isnan(masking.linearised_margin(trap, x, y)).all()


@pytest.mark.slow
def test_a_report_tells_of_a_gradient_of_nan():
    x, y = WITH_BLACK, trap(WITH_BLACK).argmax(1)
    report = evaluation.report(
        trap, x, y, jax.random.key(0), epsilon={"l2": 0.3}, budget=reporting.quick, progress=False
    )
    assert any("||J|| of 40 of 40 samples is not finite" in note for note in report.notes)


@pytest.mark.parametrize("scale", [255.0, 1e-3, 1e4])
@pytest.mark.parametrize("name", ["ddn", "cw", "pgd_distance", "fgsm_distance", "white_noise"])
def test_default_sizes_follow_the_unit_of_the_pixels(name, scale):
    """The distances of f(x / s) on images in [0, s] are s times those of f."""
    defaults = {"white_noise": attacks.white_noise_distance, "ddn": attacks.ddn}
    attack = (NEAREST | defaults)[name]
    attack = partial(attack, initial_const=None) if name == "cw" else attack
    y, found = linear(IMAGES).argmax(1), []
    for s in (1.0, scale):
        f = lambda x, s=s: linear(x / s)
        run = partial(attack, bounds=(0.0, s))
        found.append(evaluation.run_attack(run, f, IMAGES * s, y, jax.random.key(0)))
    assert found[0].success.any()
    np.testing.assert_array_equal(found[0].success, found[1].success)
    np.testing.assert_allclose(found[0].distance, found[1].distance / scale, rtol=0.02)


@pytest.mark.parametrize("name", ["ddn", "cw", "pgd_distance", "fgsm_distance", "white_noise"])
def test_features_of_other_ranges(name):
    """An age in [0, 120] and an income in [0, 1e6]: ten years more are the nearest change of mind."""
    attack = (NEAREST | {"white_noise": attacks.white_noise_distance, "ddn": attacks.ddn})[name]
    if name == "cw":
        attack = partial(attacks.carlini_wagner, num_steps=200, learning_rate=0.05)
    bounds = (np.zeros(2, np.float32), np.array([120, 1e6], np.float32))
    f = lambda x: jnp.stack([jnp.full(len(x), 40.0), x[:, 0] + x[:, 1] / 1e4 - 4], 1)
    x = jnp.tile(jnp.array([[30.0, 4e4]]), (8, 1))
    found = evaluation.run_attack(partial(attack, bounds=bounds), f, x, jnp.zeros(8, int), jax.random.key(0))
    assert found.success.all() or name == "white_noise"
    assert found.success.any()
    if name in ("ddn", "cw"):
        assert (found.distance < 12).all()
    if name in ("pgd_distance", "fgsm_distance"):
        moved = np.asarray(found.x_adv - x) / bounds[1]
        assert (np.abs(moved) < 0.1).all()


@pytest.mark.parametrize(
    "epsilon", [0.1, np.linspace(0.02, 0.3, 40, dtype=np.float32), np.full((1, 4, 4, 1), 0.1, np.float32)]
)
def test_half_precision_tells_how_far_it_went(epsilon):
    """x_adv goes back to bfloat16, which may lead out of the ball; the distance is the true one."""
    x, f = IMAGES.astype(jnp.bfloat16), lambda x: linear(x.astype(jnp.float32))
    result = attacks.fgsm(f, x, f(x).argmax(1), epsilon=epsilon)
    wide = lambda a: np.asarray(a, np.float32)
    moved = np.abs(wide(result.x_adv) - wide(x)).reshape(40, -1).max(1)
    fooled = np.asarray(result.success)
    np.testing.assert_allclose(wide(result.distance)[fooled], moved[fooled], atol=1e-6)


# certificates


def windows(x):
    return jax.lax.reduce_window(x, -jnp.inf, jnp.logaddexp, (1, 3), (1, 1), "SAME")


def over_shards(x):
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    return jax.shard_map(lambda x: x - jax.lax.pmean(x, "i"), mesh=mesh, in_specs=spec, out_specs=spec)(x)


@pytest.mark.parametrize("f", [windows, lambda x: jax.lax.reduce(x, -jnp.inf, jnp.logaddexp, (1,)), over_shards])
def test_a_program_within_a_program_is_not_always_a_call(f):
    """That of a window is of two numbers, that of a shard_map of one shard: on the whole it proves what is false."""
    low = jax.random.uniform(jax.random.key(0), (2, 6))
    with pytest.raises(TypeError, match="interval_bounds has no rule for '(reduce_window|reduce|shard_map)'"):
        certify.interval_bounds(f, low, low + 0.1)


@pytest.mark.parametrize("f", [lambda x: 1 - (x > 0.5), lambda x: (x * 16).astype(jnp.uint32)])
def test_bounds_of_whole_numbers(f):
    low = jax.random.uniform(jax.random.key(0), (3, 6))
    g = lambda x: f(x).astype(jnp.float32) * x
    box = certify.interval_bounds(g, low, low + 0.1)
    inside = low[None] + 0.1 * jax.random.uniform(jax.random.key(1), (200, *low.shape))
    z = jax.vmap(g)(inside)
    assert (z >= box.low[None] - 1e-6).all()
    assert (z <= box.high[None] + 1e-6).all()
    assert jnp.isfinite(box.high).all()


# modes of models


@pytest.mark.parametrize("name", ["train", "inference", "is_train", "eval"])
def test_modes_by_the_names_that_people_give(name):
    from flax import linen as nn

    is_off = name in ("inference", "eval")
    lines = f"def call(self, x, {name}: bool = {is_off}): return self.run(x, {name} if {is_off} else not {name})"
    space = {}
    exec(lines, space)  # a call whose argument has that name

    class Net(nn.Module):
        @nn.compact
        def run(self, x, off):
            x = nn.BatchNorm()(nn.Dense(16)(x), use_running_average=off)
            return nn.Dense(3)(nn.Dropout(0.5)(jnp.tanh(x), deterministic=off))

        __call__ = space["call"]

    x = 2 + jax.random.normal(jax.random.key(0), (8, 4))
    module = Net()
    functional = interop.from_linen(module, module.init(jax.random.key(0), x))
    assert_modes_differ(functional, x)


def test_every_mode_argument_is_set():
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False, deterministic=True):
            return nn.Dropout(0.5)(nn.Dense(64)(x), deterministic=deterministic)

    x = jnp.ones((8, 4))
    variables = Net().init(jax.random.key(0), x)
    z, _ = train_mode(Net())(variables["params"], {}, x, jax.random.key(1))
    assert 0.3 < np.mean(z == 0) < 0.7
    z, _ = train_mode(Net(), deterministic=True)(variables["params"], {}, x, jax.random.key(1))
    assert np.all(z != 0)


def test_a_mode_of_an_unknown_name_is_warned_of():
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, warm: bool = False):
            return nn.Dropout(0.5)(nn.Dense(3)(x), deterministic=not warm)

    with pytest.warns(UserWarning, match="takes 'warm', which no mode is known by"):
        train_mode(Net())
    train_mode(Net(), warm=True)


def assert_modes_differ(functional, x):
    params, state, key = functional.params, functional.model_state, jax.random.key(1)
    trained, moved = functional.train(params, state, x, key)
    evaluated, still = functional.eval(params, state, x, key)
    at_batch, _ = functional.batch_statistics(params, state, x, key)
    assert not np.allclose(trained, evaluated)
    assert not np.allclose(at_batch, evaluated)
    differ = lambda a, b: any(
        not np.allclose(u, v) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    assert differ(moved, state)
    assert not differ(still, state)


def test_an_nnx_module_whose_call_says_the_mode():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.norm = nnx.Linear(4, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
            self.dropout, self.outer = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x, train: bool = False):
            h = jnp.tanh(self.norm(self.inner(x), use_running_average=not train))
            return self.outer(self.dropout(h, deterministic=not train))

    assert_modes_differ(interop.from_nnx(Net(nnx.Rngs(0))), 2 + jax.random.normal(jax.random.key(0), (8, 4)))


@pytest.mark.parametrize("call", ["lambda s, x, *, key=None, train=False: s.run(x, key, not train)",
                                  "lambda s, x, rng=None: s.run(x, rng, None)"])  # fmt: skip
def test_equinox_modules_whose_call_says_the_mode_or_names_its_key(call):
    import equinox

    class Net(equinox.Module):
        inner: equinox.nn.Linear
        dropout: equinox.nn.Dropout

        def run(self, x, key, off):
            return self.dropout(self.inner(x), key=key, inference=off)

        __call__ = eval(call)

    net = Net(equinox.nn.Linear(4, 64, key=jax.random.key(0)), equinox.nn.Dropout(0.5))
    functional, x = interop.from_equinox(net), jnp.ones((8, 4))
    zeros = lambda mode: np.mean(mode(functional.params, functional.model_state, x, jax.random.key(1))[0] == 0)
    assert 0.3 < zeros(functional.train) < 0.7
    assert zeros(functional.eval) == 0


def test_a_haiku_function_whose_mode_is_is_train():
    import haiku

    def net(x, is_train):
        return haiku.Linear(3)(jnp.tanh(haiku.BatchNorm(True, True, 0.9)(haiku.Linear(16)(x), is_train)))

    transformed, x = haiku.transform_with_state(net), 2 + jax.random.normal(jax.random.key(0), (8, 4))
    params, state = transformed.init(jax.random.key(0), 1 - x, True)
    assert_modes_differ(interop.from_haiku(transformed, params, state, is_train=True), x)


@pytest.mark.parametrize("momentum", [0.9, np.float32(0.9), np.float64(0.9), 0, 1])
def test_any_number_is_a_momentum(momentum):
    from flax import linen as nn, nnx

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(momentum=momentum)(nn.Dense(16)(x), use_running_average=not train)
            return nn.Dense(3)(jnp.tanh(x))

    x, key = 2 + jax.random.normal(jax.random.key(0), (8, 4)), jax.random.key(1)
    variables = Net().init(jax.random.key(0), x)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    trained, _ = train_mode(Net())(params, state, x)
    at_batch, _ = batch_statistics_mode(Net())(params, state, x, key)
    np.testing.assert_allclose(at_batch, trained, atol=1e-5)
    forms = [penalties.of_model(mode(Net())) for mode in (held_statistics_mode, batch_statistics_mode)]
    bound = penalties.BoundModel(train_mode(Net()), params, state, key)
    values = [form(bound, x, None, jax.random.split(key, len(x)))[1] for form in forms]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)

    class Norm(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, momentum=momentum, rngs=rngs)

        def __call__(self, x):
            return self.norm(x)

    functional = interop.from_nnx(Norm(nnx.Rngs(0)))
    modes = [
        mode(functional.params, functional.model_state, x, key)[0]
        for mode in (functional.batch_statistics, functional.train)
    ]
    np.testing.assert_allclose(*modes, atol=1e-5)


def test_bfloat16_convolutions_round_once():
    """The gradient in x adds overlapping patches: in float32, as XLA does."""
    x, w = jax.random.normal(jax.random.key(0), (2, 12, 12, 32)), jax.random.normal(jax.random.key(1), (5, 5, 32, 32))
    call = lambda conv: lambda x: conv(x, w.astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    of_x = lambda conv, x: jax.vjp(call(conv), x)[1](x[:, ::-1])[0].astype(jnp.float32)
    exact = of_x(jax.lax.conv_general_dilated, x)
    error = lambda conv: jnp.linalg.norm((of_x(conv, x.astype(jnp.bfloat16)) - exact).ravel())
    assert error(conv_general_dilated) < 1.2 * error(jax.lax.conv_general_dilated)
