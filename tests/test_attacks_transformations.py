"""Every attack under every transformation and setting of JAX: the same distances as under a plain jit.

In a batch, padded, over a mesh and in half precision: `test_attacks_alike`.
"""

import contextlib
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

from jacreg_jax import attacks

ATTACKS = {
    "white_noise": partial(attacks.white_noise, sigma=0.5),
    "fgsm": partial(attacks.fgsm, epsilon=0.1),
    "pgd": partial(attacks.pgd, epsilon=0.1, step_size=0.05, num_steps=3),
    "pgd_random": partial(attacks.pgd, epsilon=0.5, step_size=0.1, num_steps=3, norm="l2", random_start=True),
    "cw": partial(attacks.carlini_wagner, num_steps=20, binary_search_steps=2, initial_const=1.0, learning_rate=0.05),
    "ddn": partial(attacks.ddn, num_steps=10),
    "fab": partial(attacks.fab, num_steps=5),
    "apgd": partial(attacks.apgd, epsilon=0.6, num_steps=5, norm="l2", loss="dlr", num_restarts=2),
    "apgd_targeted": partial(attacks.apgd, epsilon=0.15, num_steps=5, loss="targeted"),
    "square": partial(attacks.square, epsilon=0.3, num_queries=10),
    "auto_attack": partial(attacks.auto_attack, epsilon=0.2, num_queries=4),
    "square_l2": partial(attacks.square, epsilon=1.3, num_queries=10, norm="l2"),
    "apgd_l1": partial(attacks.apgd, epsilon=1.0, num_steps=10, norm="l1"),
    "fab_l1": partial(attacks.fab, num_steps=5, norm="l1"),
    "fgsm_distance": partial(attacks.fgsm_distance, num_steps=20, step_size=0.05),
    "pgd_distance": partial(attacks.pgd_distance, num_steps=10, step_size=0.02),
    "white_noise_distance": partial(attacks.white_noise_distance, num_steps=10, step_size=0.1),
}
N = 8


@pytest.fixture(scope="module")
def problem():
    """(f, x, y, keys): 8 images 5x5, five classes, y the labels given."""
    w, v = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(25, 12), (12, 5)]))
    f = lambda x: jnp.tanh(x.reshape(len(x), -1) @ w.astype(x.dtype) / 5) @ v.astype(x.dtype)
    x = jnp.clip(jax.random.uniform(jax.random.key(3), (N, 5, 5, 1), minval=-0.2, maxval=1.2), 0, 1)
    return f, x, jnp.argmax(f(x), 1).astype(jnp.int32), jax.random.split(jax.random.key(9), N)


@contextlib.contextmanager
def settings(**values):
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def halves(tree):
    return jax.tree.map(lambda a: a.reshape(2, N // 2, *a.shape[1:]), tree)


def whole(tree):
    return jax.tree.map(lambda a: a.reshape(N, *a.shape[2:]), tree)


def over_a_mesh(attack, f, x, y, keys):
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    each = jax.shard_map(partial(attack, f), mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    return jax.jit(each)(x, y, keys)


def under(**values):
    def run(attack, f, x, y, keys):
        with settings(**values):
            return attack(f, x, y, keys)

    return run


def under_jit(**values):
    def run(attack, f, x, y, keys):
        with settings(**values):
            return jax.jit(lambda x: attack(f, x, y, keys))(x)

    return run


MODES = {
    "called": lambda attack, *args: attack(*args),
    "shard_map": over_a_mesh,
    "vmap": lambda attack, f, *rows: whole(jax.vmap(partial(attack, f))(*halves(rows))),
    "scan": lambda attack, f, *rows: whole(jax.lax.scan(lambda c, r: (c, attack(f, *r)), 0, halves(rows))[1]),
    "remat": lambda attack, f, *rows: jax.checkpoint(partial(attack, f))(*rows),
    "strict promotion": under(jax_numpy_dtype_promotion="strict"),
    "tracer leaks": under_jit(jax_check_tracer_leaks=True),
    "tracer leaks, called": under(jax_check_tracer_leaks=True),
    "debug_nans": under(jax_debug_nans=True),
    "disable_jit": under(jax_disable_jit=True),
    "x64 off the data": under(jax_enable_x64=True, jax_numpy_dtype_promotion="strict"),
}
EVERYWHERE = ("apgd_targeted", "square")  # in the fast suite; the others in those modes that have broken them
BROKEN_ONCE = ("called", "strict promotion")
DRAWS_DIFFER = (
    "pgd_random",
    "square",
    "square_l2",
    "auto_attack",
)  # jax.random.ball and rademacher draw otherwise under x64


def is_fast(name, mode):
    if mode == "shard_map":  # the others in test_attacks_alike
        return name in ("auto_attack", "white_noise", *EVERYWHERE)
    return name != "auto_attack" and ((name in EVERYWHERE and mode != "disable_jit") or mode in BROKEN_ONCE)


CASES = [
    pytest.param(n, m, marks=[] if is_fast(n, m) else pytest.mark.slow)
    for n in ATTACKS
    for m in MODES
    if not (m == "disable_jit" and n in ("cw", "square_l2", "auto_attack"))  # minutes, op by op
    and not (m == "x64 off the data" and n in DRAWS_DIFFER)
]


@pytest.fixture(scope="module")
def jitted(problem):
    """name -> what a plain jit gives, once."""
    f, x, y, keys = problem
    return functools.cache(lambda name: jax.jit(lambda x: ATTACKS[name](f, x, y, keys))(x))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_same_under_every_transformation(name, mode, problem, jitted):
    f, x, y, keys = problem
    expected = jitted(name)
    result = MODES[mode](ATTACKS[name], f, x, y, keys)
    np.testing.assert_array_equal(result.success, expected.success)
    np.testing.assert_array_equal(result.clean_correct, expected.clean_correct)
    np.testing.assert_allclose(result.distance, expected.distance, rtol=2e-3, atol=1e-5)


LEFT_OUT = ("white_noise", "white_noise_distance", "auto_attack")  # draws alone; four of the others


HALF = [
    pytest.param(n, d, marks=[pytest.mark.slow] * (d == "float16" and n not in ("pgd", "cw", "square", "fab")))
    for n in ATTACKS
    for d in ("bfloat16", "float16")
    if n not in LEFT_OUT
]


def test_the_first_of_two_under_strict_promotion(problem):
    """All that the ensemble adds to its attacks."""
    f, x, y, _ = problem
    with settings(jax_numpy_dtype_promotion="strict"):
        old, new = (attacks.fgsm(f, x, y, epsilon=e) for e in (0.05, 0.3))
        result = attacks.result.first_of(old, new)
    np.testing.assert_array_equal(result.success, old.success | new.success)
    assert old.success.sum() < result.success.sum()


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_half_precision_images(name, dtype, problem):
    """As many fooled as in float32, on the same grey levels; the images come back in their own precision."""
    f, x, y, keys = problem
    x = x.astype(dtype)
    expected = ATTACKS[name](f, x.astype(jnp.float32), y, keys)
    result = ATTACKS[name](lambda u: f(u.astype(jnp.float32)), x, y, keys)
    assert result.x_adv.dtype == dtype
    assert abs(int(result.success.sum()) - int(expected.success.sum())) <= 1
    fooled = jnp.argmax(f(result.x_adv.astype(jnp.float32)), 1) != y
    np.testing.assert_array_equal(fooled, result.success)  # as rounded, not before


@pytest.mark.parametrize("name", ["cw", "ddn", "fab", "apgd", "square", "pgd"])
def test_double_precision(name, problem, x64):
    f, x, y, keys = problem
    result = ATTACKS[name](f, x.astype(jnp.float64), y, keys)
    assert result.x_adv.dtype == result.distance.dtype == jnp.float64
    assert result.success.any()


@pytest.mark.parametrize("name", ["ddn", "apgd", "square", "white_noise"])
def test_rbg_keys(name, problem):
    f, x, y, _ = problem
    result = ATTACKS[name](f, x, y, jax.random.key(0, impl="rbg"))
    assert result.success.shape == (N,)
