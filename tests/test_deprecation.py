"""Old names work for one release, give what the new ones give, and say them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jacreg_jax as jr
from jacreg_jax import accumulation, attacks, cyclopropagation, evaluation, penalties, relatives, training
from jacreg_jax.models import MLP, eval_mode, initialize, train_mode
from tests.conftest import mlp_params

MODULE = MLP((8, 4))


@pytest.fixture
def problem(key):
    image = jax.random.normal(key, (12, 6))
    params, _ = initialize(MODULE, key, image)
    state = training.init_state(params, optax.sgd(0.1), key)
    return state, {"image": image, "label": jnp.arange(12) % 4}, jax.random.split(key, 12)


OLD_AND_NEW = {
    "num_projections": ({"num_projections": 3}, {"penalty": penalties.projected(3)}),
    "exact": ({"num_projections": "exact", "chunk_size": 2}, {"penalty": penalties.exact(2)}),
    "probe": ({"probe": "rademacher"}, {"penalty": penalties.projected(probe="rademacher")}),
    "sample_fraction": ({"sample_fraction": 0.5}, {"penalty": penalties.on_part(0.5)}),
    "penalty_apply": ({"penalty_apply": eval_mode(MODULE)}, {"penalty": penalties.of_model(eval_mode(MODULE))}),
    "relative": (
        {"relative": lambda f, x, label, keys: relatives.noise_consistency(f, x, keys, sigma=0.1)},
        {"penalty": penalties.of(relatives.noise_consistency, sigma=0.1)},
    ),
}


@pytest.mark.parametrize("name", OLD_AND_NEW)
def test_options_of_the_loss(problem, name):
    state, batch, keys = problem
    old, new = OLD_AND_NEW[name]
    with pytest.warns(DeprecationWarning, match=r"classification_loss\(.*=...\) is deprecated since 0.2, use penalty="):
        loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, **old)
    expected = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, **new)
    one, other = (jax.jit(loss)(state.params, state, batch, keys)[0] for loss in (loss, expected))
    assert one == other


def test_wrapping_options_of_the_loss(problem):
    state, batch, keys = problem
    with pytest.warns(DeprecationWarning, match=r"use (lazily\(k, loss\)|in_parts\(m, loss\))"):
        loss = training.classification_loss(train_mode(MODULE), lambda_jr=0.1, lazy=2, part_size=3)
    plain = training.classification_loss(train_mode(MODULE), lambda_jr=0.1)
    expected = accumulation.lazily(2, accumulation.in_parts(3, plain))
    np.testing.assert_allclose(
        loss(state.params, state, batch, keys)[0], expected(state.params, state, batch, keys)[0], rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_options_that_were_dropped_in_silence():
    for options in (
        {"relative": lambda *a: None, "num_projections": 3},
        {"relative": lambda *a: None, "penalty_apply": eval_mode(MODULE)},
        {"penalty": penalties.exact(), "sample_fraction": 0.5},
    ):
        with pytest.raises(ValueError, match="must not be given together"):
            training.classification_loss(train_mode(MODULE), lambda_jr=0.1, **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_projection'"):
        training.classification_loss(train_mode(MODULE), num_projection=3)


def test_functions_of_the_core(small_mlp, key):
    f, x = small_mlp
    with pytest.warns(DeprecationWarning, match="value_and_frobenius_sq is deprecated since 0.2"):
        z, norms = jr.value_and_frobenius_sq(f, x, key, num_projections=2)
    np.testing.assert_allclose(norms, jr.projected_frobenius_sq(f, x, key, num_projections=2), rtol=1e-6)
    with pytest.warns(DeprecationWarning, match="value_and_exact_frobenius_sq is deprecated since 0.2"):
        _, norms = jr.value_and_exact_frobenius_sq(f, x)
    np.testing.assert_allclose(norms, jr.exact_frobenius_sq(f, x), rtol=1e-6)
    with pytest.warns(DeprecationWarning, match=r"use penalties.projected\(...\) or penalties.exact\(...\)"):
        z, mean, norms = jr.value_and_mean_frobenius_sq(f, x, num_projections="exact")
    np.testing.assert_allclose(mean, jr.exact_frobenius_sq(f, x).mean(), rtol=1e-6)
    np.testing.assert_allclose(z, f(x), rtol=1e-6)


def test_names_of_attacks_and_evaluation(key):
    w = jax.random.normal(key, (6, 4))
    f = lambda x: x @ w
    x = jax.random.uniform(key, (4, 6))
    y = jnp.argmax(f(x), axis=1)
    with pytest.warns(DeprecationWarning, match="use binary_search_steps=..."):
        old = attacks.carlini_wagner(f, x, y, num_steps=5, num_searches=2)
    new = attacks.carlini_wagner(f, x, y, num_steps=5, binary_search_steps=2)
    np.testing.assert_array_equal(old.distance, new.distance)
    with pytest.warns(DeprecationWarning, match="use init_epsilon=..."):
        old = attacks.ddn(f, x, y, key, num_steps=5, initial_epsilon=0.5)
    np.testing.assert_array_equal(old.distance, attacks.ddn(f, x, y, key, num_steps=5, init_epsilon=0.5).distance)
    with pytest.warns(DeprecationWarning, match="targeted"):
        old = attacks.apgd_targeted(f, x, y, key, epsilon=0.1, num_steps=5)
    new = attacks.apgd(f, x, y, key, epsilon=0.1, num_steps=5, loss="targeted")
    np.testing.assert_array_equal(old.distance, new.distance)
    with pytest.warns(DeprecationWarning, match="deprecated since 0.2"):
        evaluation.jacobian_norms(jr.exact_frobenius_sq, f, x)


def test_cyclopropagation(key):
    params, x = mlp_params(key, (4, 3, 2)), jnp.ones((2, 4))
    with pytest.warns(DeprecationWarning, match="use penalty_and_grad"):
        penalty, _ = cyclopropagation.penalty_and_gradient(params, x)
    assert penalty == cyclopropagation.penalty_and_grad(params, x)[0]
