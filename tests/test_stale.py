"""Eager calls compile once for equal programs, and never answer for a function that reads another value by now."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jacreg_jax import (
    attacks,
    decision_cells,
    evaluation,
    exact_frobenius_sq,
    penalties,
    relatives,
    signatures,
    value_and_penalty,
)
from jacreg_jax.attacks import criteria

SETTING = {"slope": 1.0}
LIMIT, SIGN = 0.1, 1.0  # globals of functions below
ONE_STEP = {"epsilon": 0.5, "step_size": 0.5, "num_steps": 1}


def by_jvp(slope):
    @jax.custom_jvp
    def act(x):
        return (x > 0).astype(x.dtype)

    act.defjvp(lambda primals, tangents: (act(*primals), slope * tangents[0]))
    return act


def by_jvps(slope):
    act = jax.custom_jvp(lambda x: (x > 0).astype(x.dtype))
    act.defjvps(lambda tangent, answer, x: slope * tangent)
    return act


def by_vjp(slope):
    act = jax.custom_vjp(lambda x: (x > 0).astype(x.dtype))
    act.defvjp(lambda x: (act(x), None), lambda _, cotangent: (slope * cotangent,))
    return act


def by_array(slope):
    held = jnp.full((2, 3), slope)
    act = jax.custom_vjp(lambda x: (x > 0).astype(x.dtype))
    act.defvjp(lambda x: (act(x), None), lambda _, cotangent: (held * cotangent,))
    return act


def in_a_jit(slope):
    return jax.jit(by_jvp(slope))


RULES = [by_jvp, by_jvps, by_vjp, by_array, in_a_jit]
HOLDERS = {
    "attribute": lambda act: functools.partial(
        lambda net, x: net.act(2 * x), type("Net", (), {"act": staticmethod(act)})
    ),
    "default": lambda act: lambda x, act=act: act(2 * x),
    "cell": lambda act: lambda x: act(2 * x),
    "loop": lambda act: lambda x: jax.lax.fori_loop(0, 1, lambda _, x: act(2 * x), x),
}


CASES = [(rule, holder) for rule in RULES for holder in HOLDERS if holder != "loop" or rule is by_jvp]


@pytest.mark.parametrize(("rule", "holder"), CASES, ids=lambda case: getattr(case, "__name__", case))
def test_models_that_differ_in_a_derivative_rule_alone(rule, holder):
    """||J||_F^2 of the surrogate gradient is 3 (2 slope)^2, whoever was asked before."""
    x, key = jnp.ones((2, 3)), jax.random.key(0)
    for slope in (1.0, 10.0, 1.0):
        f = HOLDERS[holder](rule(slope))
        right = 12 * slope**2
        np.testing.assert_allclose(exact_frobenius_sq(f, x), right, rtol=1e-5)
        np.testing.assert_allclose(value_and_penalty(f, x, key)[1], right, rtol=1e-5)
        np.testing.assert_allclose(evaluation.jacobian_norms(f, np.asarray(x)) ** 2, right, rtol=1e-5)


def vjp_that_reads(w):
    layer = jax.custom_vjp(lambda x: jnp.tanh(x @ w))
    layer.defvjp(lambda x: (jnp.tanh(x @ w), x), lambda x, g: ((g * (1 - jnp.tanh(x @ w) ** 2)) @ w.T,))
    return lambda x: layer(x)


def jvp_that_reads(w):
    layer = jax.custom_jvp(lambda x: jnp.tanh(x @ w))

    @layer.defjvp
    def rule(primals, tangents):
        z = jnp.tanh(primals[0] @ w)
        return z, (1 - z**2) * (tangents[0] @ w)

    return lambda x: layer(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def applied(function, x):
    return function(x)


applied.defjvp(lambda function, primals, tangents: jax.jvp(function, primals, tangents))


def norms_of_tanh(x, w):
    """||J||_F^2 of tanh(x w), [B]."""
    return ((1 - jnp.tanh(x @ w) ** 2) ** 2) @ jnp.sum(w**2, 0)


def loop_that_reads(w):
    return lambda x: jax.lax.scan(lambda z, _: (vjp_that_reads(w)(x), None), jnp.zeros((len(x), w.shape[1])), None, 1)[
        0
    ]


READERS = {
    "vjp": vjp_that_reads,
    "jvp": jvp_that_reads,
    "nondiff_argnums": lambda w: lambda x: applied(lambda x: jnp.tanh(x @ w), x),
    "scan": loop_that_reads,
    "a jitted function": lambda w: jax.jit(lambda x: jnp.tanh(x @ w)),
    "jit within": lambda w: lambda x: jax.jit(lambda x: jnp.tanh(x @ w))(x),
}


@pytest.mark.parametrize("array", [jnp.asarray, np.asarray])
@pytest.mark.parametrize("name", READERS)
def test_rules_that_read_the_weights(name, array):
    """Each model's own value and derivative, whichever was asked before."""
    x, key = jax.random.normal(jax.random.key(0), (5, 4)), jax.random.key(1)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for i in (1, 2, 3, 1):
        w = i * jax.random.normal(jax.random.key(i), (4, 3))
        f = READERS[name](array(w))
        near(exact_frobenius_sq(f, x), norms_of_tanh(x, w))
        near(evaluation.jacobian_norms(f, np.asarray(x)) ** 2, norms_of_tanh(x, w))
        near(value_and_penalty(f, x, key, num_projections=2)[0], jnp.tanh(x @ w))


@pytest.mark.parametrize("name", [name for name in READERS if name != "a jitted function"])  # which is stale itself
def test_weights_that_change_in_place(name):
    x, w = jax.random.normal(jax.random.key(0), (5, 4)), np.zeros((4, 3), np.float32)
    f = READERS[name](w)
    for i in (1, 2, 1):
        w[...] = i * np.asarray(jax.random.normal(jax.random.key(i), (4, 3)))
        truth = READERS[name](jnp.array(w))
        right = jnp.sum(jax.vmap(jax.jacrev(lambda x: truth(x[None])[0]))(x) ** 2, (1, 2))
        np.testing.assert_allclose(exact_frobenius_sq(f, x), right, rtol=1e-4)


def test_a_rule_for_batches_that_reads_another_sign():
    plane = decision_cells.random_plane(jnp.array([0.3, -0.2, 0.1]), jax.random.key(0))

    def signed(sign):
        f = jax.custom_batching.custom_vmap(lambda x: sign * jnp.tanh(x))
        f.def_vmap(lambda size, batched, x: (sign * jnp.tanh(x), True))
        return lambda x: f(x)

    cells = lambda sign: decision_cells.decision_cells(signed(sign), plane, extent=1.0, resolution=3).classes
    found = [cells(jnp.float32(sign)) for sign in (1, -1)]
    assert not np.array_equal(*found)
    np.testing.assert_array_equal(found[1], jax.jit(lambda: cells(jnp.float32(-1)))())


class Layer:
    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return jnp.tanh(x @ self.w)


SORTS = {
    "partial": lambda w: functools.partial(lambda w, x: jnp.tanh(x @ w), w),
    "jit": lambda w: jax.jit(lambda x: jnp.tanh(x @ w)),
    "jit of a partial": lambda w: jax.jit(functools.partial(lambda w, x: jnp.tanh(x @ w), w)),
    "object": Layer,
    "method": lambda w: Layer(w).__call__,
    "remat": lambda w: jax.checkpoint(lambda x: jnp.tanh(x @ w), policy=jax.checkpoint_policies.dots_saveable),
    "wrapped": lambda w: functools.wraps(vjp_that_reads)(lambda x: jnp.tanh(x @ w)),
}


@pytest.mark.parametrize("sort", SORTS)
def test_a_function_made_anew_for_each_epoch_compiles_once(sort, compilations):
    x, counts = jax.random.normal(jax.random.key(0), (5, 4)), []
    for i in range(4):
        w = jax.random.normal(jax.random.key(i), (4, 3))
        f = SORTS[sort](w)
        found = exact_frobenius_sq(f, x, chunk_size=2), evaluation.jacobian_norms(f, np.asarray(x))
        counts.append(compilations[0])
        for norms in (found[0], found[1] ** 2):
            np.testing.assert_allclose(norms, norms_of_tanh(x, w), rtol=1e-4, atol=1e-6)
    assert counts[1] == counts[3]


def test_arguments_by_name_compile_once(compilations):
    x, y, key = jax.random.normal(jax.random.key(0), (5, 4)), jnp.arange(5) % 3, jax.random.key(1)
    w = jax.random.normal(key, (4, 3))
    f = lambda x: jnp.tanh(x @ w)
    by_name = {"f": f, "x": x}
    calls = (
        lambda key: value_and_penalty(f, x, key=key, num_projections=3),
        lambda key: value_and_penalty(**by_name, key=key, num_projections=3),
        lambda key: exact_frobenius_sq(**by_name, chunk_size=1),
        lambda key: relatives.spectral_norm_sq(f, x, key=key),
        lambda key: penalties.of(relatives.spectral_norm_sq)(f, x, None, key),
        lambda key: relatives.target_jacobian_sq(**by_name, target=jnp.ones((3, 4)), key=key, num_projections=2),
        lambda key: attacks.ddn(**by_name, y=y, key=key, num_steps=3, bounds=None).x_adv,
    )
    first = [call(key) for call in calls]
    before = compilations[0]
    again = [call(key) for call in calls]
    assert compilations[0] == before
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again[0][1], value_and_penalty(f, x, key, num_projections=3)[1])


def test_a_rule_that_reads_a_setting():
    turned = jax.custom_vjp(lambda x: x)
    turned.defvjp(lambda x: (x, None), lambda _, cotangent: (SETTING["slope"] * cotangent,))
    step = lambda: attacks.pgd(turned, jnp.array([[0.6, 0.4]]), jnp.array([0]), **ONE_STEP).x_adv[0, 0]
    first = float(step())
    try:
        SETTING["slope"] = -1.0
        assert (first, float(step())) == (pytest.approx(0.1), 1.0)
    finally:
        SETTING["slope"] = 1.0


def test_rules_of_equal_models_compile_once(compilations):
    x = jnp.ones((2, 3))
    exact_frobenius_sq(HOLDERS["cell"](by_jvp(2.0)), x)
    before = compilations[0]
    exact_frobenius_sq(HOLDERS["cell"](by_jvp(2.0)), x)
    assert compilations[0] == before


def test_the_rules_of_jax_itself_are_not_written_out():
    of = lambda f: signatures.of_rules(jax.make_jaxpr(f)(jnp.ones(3)), (jax.ShapeDtypeStruct((3,), jnp.float32),))
    assert of(lambda x: jax.nn.gelu(jax.nn.relu(x))) == ()
    assert len(of(by_jvp(1.0))) == 2, "two orders"
    assert of(by_jvp(1.0)) == of(by_jvp(1.0))
    assert of(by_jvp(1.0)) != of(by_jvp(2.0))


def test_rules_in_a_checkout_called_like_the_package_are_its_users_own():
    text = "import jax\nact = jax.custom_jvp(lambda x: x)\nact.defjvp(lambda p, t: (act(*p), SLOPE * t[0]))\n"
    found = []
    for slope in (1.0, 10.0):
        names = {"SLOPE": slope}
        exec(compile(text, "/home/anyone/jacreg_jax/mine.py", "exec"), names)
        found.append(exact_frobenius_sq(lambda x, act=names["act"]: act(x), jnp.ones((1, 3))).tolist())
    assert found == [[3.0], [300.0]]


def moved_up(z, y):
    return z[:, 0] - LIMIT


def signed(z, y):
    return SIGN * z[:, 0]


CRITERIA = {
    "function": lambda: moved_up,
    "of_margin": lambda: criteria.of_margin(moved_up),
    "partial": lambda: functools.partial(lambda scale, z, y: scale * moved_up(z, y), 1.0),
}


@pytest.mark.parametrize("kind", CRITERIA)
def test_a_criterion_that_reads_another_limit(kind, monkeypatch):
    x, criterion = np.zeros((1, 2), np.float32), CRITERIA[kind]()
    attack = functools.partial(attacks.pgd, criterion=criterion, num_steps=1)
    for limit, right in ((0.1, True), (100.0, False), (0.1, True)):
        monkeypatch.setitem(globals(), "LIMIT", limit)
        assert attacks.pgd(lambda x: x, x, None, criterion=criterion, **ONE_STEP).success.tolist() == [right]
        swept = {"epsilon": 0.5, "step_size": 0.5}
        assert evaluation.run_attack(attack, lambda x: x, x, None, jax.random.key(0), **swept).success.tolist() == [
            right
        ]


def test_a_loss_that_reads_another_sign(monkeypatch):
    x, y = jnp.zeros((1, 2)), jnp.array([0])
    for sign in (1.0, -1.0):
        monkeypatch.setitem(globals(), "SIGN", sign)
        found = attacks.pgd(lambda x: x, x, y, loss=signed, bounds=None, **ONE_STEP)
        assert float(found.x_adv[0, 0]) == sign * 0.5


def test_what_is_read_is_a_key():
    """Numbers by value, arrays by what they are, and nothing that could change in place."""
    limit = 1.0
    read = lambda z: z - limit
    first = signatures.of_surroundings(read)
    limit = 2.0
    assert signatures.of_surroundings(read) != first
    held = {"limit": 1.0}
    with pytest.raises(signatures.Unknown):
        signatures.of_surroundings(lambda z: z - held["limit"])
    assert signatures.read_by(lambda z: z - held["limit"]) is None
    array = np.ones(3)
    by_value = lambda z: z - array
    first = signatures.of_surroundings(by_value)
    assert signatures.of_surroundings(by_value) == first
    array[0] = 5
    assert signatures.of_surroundings(by_value) != first
    assert signatures.of_surroundings(attacks.losses.margin) == ()
    large = np.zeros(2**21, np.float32)
    assert signatures.read_by(lambda z: z - large) is None
    assert signatures.read_by(lambda z: later(z)) is None
    later = lambda z: later(z)
    assert signatures.read_by(later) is None, "it reads itself"


def test_arrays_that_are_no_constants_of_a_program():
    """JAX is to write closed-over arrays into its programs; calls compile anew then, and none is stale."""
    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    before = jax.config.jax_use_simplified_jaxpr_constants
    jax.config.update("jax_use_simplified_jaxpr_constants", True)
    try:
        found = [evaluation.accuracy(lambda x, w=w: x @ w, x, y) for w in (jnp.eye(3), jnp.roll(jnp.eye(3), 1, 1))]
    finally:
        jax.config.update("jax_use_simplified_jaxpr_constants", before)
    assert found == [1.0, 0.0]
