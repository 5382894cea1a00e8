"""cyclopropagation.py: equal to automatic differentiation to 1e-12, finite where the printed form is 0/0."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr
from jacreg_jax import cyclopropagation as cyclo
from tests.conftest import mlp_params

ACTIVATIONS = {
    "tanh": cyclo.TANH,
    "relu": cyclo.RELU,
    "softplus": cyclo.SOFTPLUS,
    "gelu": cyclo.activation_from(jax.nn.gelu),
}
SIZES = {1: (5, 4), 2: (5, 6, 4), 3: (5, 6, 7, 4), 4: (5, 6, 7, 3, 4)}


def by_autodiff(params, x, activation, last, key=None, **options):
    def penalty(params):
        f = lambda x: cyclo.perceptron(params, x, activation, last=last)
        if key is None:
            return jr.value_and_exact_penalty(f, x)[1]
        return jr.value_and_penalty(f, x, key, **options)[1]

    return jax.jit(jax.value_and_grad(penalty))(params)


def assert_equal(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, theirs)


# of all combinations the half in which any two parts meet is in the fast tests
COMBINATIONS = [
    pytest.param(name, depth, is_activated, marks=[pytest.mark.slow] * ((i + depth + is_activated) % 2))
    for (i, name), depth, is_activated in itertools.product(enumerate(ACTIVATIONS), SIZES, (False, True))
]


@pytest.mark.parametrize(("name", "depth", "is_activated"), COMBINATIONS)
def test_equals_autodiff(x64, key, name, depth, is_activated):
    """Exact and per probe, with logits or an activated last layer."""
    params = mlp_params(key, SIZES[depth], jnp.float64)
    x = jax.random.normal(key, (3, 5), jnp.float64)
    activation = ACTIVATIONS[name]
    last = activation if is_activated else cyclo.IDENTITY
    options = {"activation": activation, "last": last}
    exact = jax.jit(partial(cyclo.penalty_and_grad, **options))(params, x)
    assert_equal(exact, by_autodiff(params, x, activation, last))
    probes = {"num_projections": 2, "probe": "rademacher"}
    ours = jax.jit(partial(cyclo.penalty_and_grad, **options, **probes))(params, x, key)
    assert_equal(ours, by_autodiff(params, x, activation, last, key, **probes))


def test_finite_where_the_printed_form_divides_by_zero(key):
    """Units that are off, and tanh saturated beyond float32: sigma' is exactly 0."""
    params = [(100 * w, b - 50) for w, b in mlp_params(key, (5, 6, 4))]
    x = jax.random.normal(key, (3, 5))
    for activation in (cyclo.RELU, cyclo.TANH):
        hidden = x @ params[0][0].T + params[0][1][None]
        assert (activation.first(hidden) == 0).any()
        ours = cyclo.penalty_and_grad(params, x, activation=activation)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours))
        expected = by_autodiff(params, x, activation, cyclo.IDENTITY)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2), ours, expected)


def test_grad_of_a_loss_uses_it(x64, key):
    params = mlp_params(key, (5, 6, 4), jnp.float64)
    x = jax.random.normal(key, (3, 5), jnp.float64)

    def loss(penalty):
        return lambda params: jnp.sum(cyclo.perceptron(params, x) ** 2) + 0.005 * penalty(params)

    ours = jax.jit(jax.grad(loss(lambda params: cyclo.cyclopropagated_penalty(params, x))))(params)
    theirs = jax.grad(loss(lambda p: jr.value_and_exact_penalty(lambda x: cyclo.perceptron(p, x), x)[1]))(params)
    assert_equal(ours, theirs)


def test_errors(key):
    params = mlp_params(key, (5, 6, 4))
    x = jnp.ones((3, 5))
    for call, message in (
        (lambda: cyclo.activation_from(lambda x: jnp.stack([x, x])), r"scalar to a scalar, got shape \(2,\)"),
        (lambda: cyclo.penalty_and_grad(params[::-1], x), r"layer 1 must have a weight \[n_out, 5\]"),
        (lambda: cyclo.penalty_and_grad(params, x[:, :4]), r"layer 1 must have a weight \[n_out, 4\]"),
        (lambda: cyclo.penalty_and_grad(params, x[0]), r"x must have shape \[B, n_0\], got \(5,\)"),
        (lambda: cyclo.penalty_and_grad([], x), "at least one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_activations_are_checked(key):
    params, x = mlp_params(key, (4, 3)), jnp.ones((2, 4))
    for name in ("activation", "last"):
        with pytest.raises(ValueError, match=f"{name} must be an Activation, such as TANH .*got 'tanh'"):
            cyclo.penalty_and_grad(params, x, **{name: "tanh"})


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 9])
def test_chunks_change_nothing(chunk_size, x64, key):
    params, x = mlp_params(key, (5, 6, 4), jnp.float64), jax.random.normal(key, (3, 5), jnp.float64)
    whole, parts = (cyclo.penalty_and_grad(params, x, chunk_size=size) for size in (None, chunk_size))
    assert_equal(whole, parts)
    with pytest.raises(ValueError, match="chunk_size must be None or an integer of at least 1, got 0"):
        cyclo.penalty_and_grad(params, x, chunk_size=0)
