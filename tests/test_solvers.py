"""Penalties of what a solver gives: diffrax's adjoints, as docs/howto/implicit.md names them."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jacreg_jax as jr

X, KEY = jax.random.normal(jax.random.key(1), (4, 3)), jax.random.key(2)
PARAMS = 0.5 * jax.random.normal(jax.random.key(0), (2, 3, 3))


def field(t, x, params):
    """dx/dt."""
    return jnp.tanh(x @ params[0]) @ params[1]


def solved(params, adjoint):
    """x(0) -> x(1) of a batch, by eight steps of Heun's method."""
    term, solver = diffrax.ODETerm(field), diffrax.Heun()
    options = {"args": params, "adjoint": adjoint, "max_steps": 8}
    return jax.vmap(lambda x: diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.125, x, **options).ys[0])


def by_hand(params):
    """The same, written out."""

    def heun(x, _):
        first = field(0, x, params)
        return x + (first + field(0, x + first / 8, params)) / 16, None

    return lambda x: jax.lax.scan(heun, x, length=8)[0]


def test_the_direct_adjoint_gives_the_penalty_and_its_gradient():
    mean = lambda solve: lambda params: jr.exact_frobenius_sq(solve(params), X).mean()
    found = jax.jit(jax.value_and_grad(mean(lambda params: solved(params, diffrax.DirectAdjoint()))))(PARAMS)
    wanted = jax.value_and_grad(mean(by_hand))(PARAMS)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "adjoint", [diffrax.RecursiveCheckpointAdjoint(), pytest.param(diffrax.BacksolveAdjoint(), marks=pytest.mark.slow)]
)
def test_adjoints_without_a_second_derivative_are_loud(adjoint):
    with pytest.raises((ValueError, RuntimeError), match="differentiat"):
        jax.grad(lambda params: jr.value_and_penalty(solved(params, adjoint), X, KEY)[1])(PARAMS)
