"""Steps, states and variables that are called or made in a wrong way say so in the library's words."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jacreg_jax import accumulation, interop, penalties, training


@dataclasses.dataclass
class Run:
    step: Any


def one_step(apply=lambda p, s, x, k: (x @ p["w"], s), **options):
    """(step, state, batch) of a linear classifier."""
    loss = training.classification_loss(apply, **options)
    state = training.init_state({"w": jnp.ones((3, 2))}, training.sgd(0.1), jax.random.key(0))
    batch = {"image": jnp.ones((4, 3)), "label": jnp.zeros(4, int)}
    return training.make_train_step(loss, training.sgd(0.1), donate=False), state, batch


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda step, state, batch: step(state), TypeError, r"a step takes \(state, batch\): missing .* 'batch'"),
        (lambda step, state, batch: step(state, batch, batch), TypeError, r"a step takes \(state, batch\): too many"),
        (lambda step, state, batch: step(state, batch, seed=1), TypeError, r"a step takes \(state, batch\): .* 'seed'"),
        (lambda step, state, batch: step(state, data=batch), TypeError, r"a step takes \(state, batch\): missing"),
    ],
    ids=["no batch", "two batches", "one more name", "another name"],
)
def test_a_step_says_what_it_takes(call, error, words):
    with pytest.raises(error, match=words):
        call(*one_step())


def test_a_step_takes_its_batch_by_name():
    step, state, batch = one_step()
    assert float(step(state=state, batch=batch)[1]["loss"]) == float(step(state, batch)[1]["loss"])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda step: dataclasses.asdict(Run(step))["step"]])
def test_a_step_can_be_copied(copied):
    step, state, batch = one_step()
    assert float(copied(step)(state, batch)[1]["loss"]) == float(step(state, batch)[1]["loss"])


@pytest.mark.parametrize("label", [jnp.zeros((4, 1)), jnp.ones((4, 1)), jnp.zeros(4, int)])
@pytest.mark.parametrize("compiled", [lambda step: step, jax.jit], ids=["step", "jit"])
def test_one_logit_is_no_classification(label, compiled):
    """It would train on nothing, at an accuracy of 1."""
    step, state, _ = one_step(apply=lambda p, s, x, k: (x @ p["w"][:, :1], s))
    with pytest.raises(ValueError, match=r"logits of two or more classes, got \(4, 1\); multi_label_loss takes one"):
        compiled(step)(state, {"image": jnp.ones((4, 3)), "label": label})


@pytest.mark.parametrize("value", [1.0, jnp.asarray(1.0)], ids=["number", "weak array"])
def test_weak_parameters_compile_once(value):
    loss = training.classification_loss(lambda p, s, x, k: (p["a"] * x, {"n": 0.5 * s["n"]}))
    state = training.init_state({"a": value}, optax.adam(0.1), jax.random.key(0), {"n": 4.0})
    step = training.make_train_step(loss, optax.adam(0.1), donate=False)
    for _ in range(3):
        state, _ = step(state, {"image": jnp.ones((4, 3)), "label": jnp.zeros(4, int)})
    assert step._cache_size() == 1


def test_losses_in_turn_that_give_other_metrics():
    plain, penalised = (
        training.classification_loss(lambda p, s, x, k: (x @ p["w"], s), lambda_jr=lambda_jr) for lambda_jr in (0, 1.0)
    )
    _, state, batch = one_step()
    step = training.make_train_step(accumulation.every(2, penalised, plain), training.sgd(0.1))
    with pytest.raises(ValueError, match=r"rare and usual must give .* differ in .*'penalty'.*see lazily"):
        step(state, batch)


@pytest.mark.parametrize("given", [{}, {"new": jnp.zeros(())}, {"new": jnp.zeros((3, 1))}], ids=str)
def test_a_model_state_of_other_shapes(given):
    """A state that grows would be broadcast, and compile anew in the next step."""
    step, state, batch = one_step(apply=lambda p, s, x, k: (x @ p["w"], {"new": jnp.zeros(3)}))
    with pytest.raises(
        ValueError, match=r"of the shapes of the one in state: .* came at \['new'\], and it gives \(3,\)"
    ):
        step(state._replace(model_state=given), batch)
    step(state._replace(model_state={"new": jnp.ones(3)}), batch)


@pytest.mark.parametrize("coefficient", [None, "a"])
def test_a_schedule_that_gives_no_number(coefficient):
    step, state, batch = one_step(lambda_jr=lambda step: coefficient)
    with pytest.raises(TypeError, match="lambda_jr must be a real number, got"):
        step(state, batch)


def test_states_and_variables_that_are_none():
    with pytest.raises(TypeError, match="model_state must hold arrays, got str at the top"):
        training.init_state({"w": jnp.ones(3)}, training.sgd(0.1), jax.random.key(0), "abc")
    with pytest.raises(ValueError, match="variables must hold 'params', got NoneType"):
        interop.from_linen(nn.Dense(2), None)
    with pytest.raises(TypeError, match=r"function must be callable as \(f, x, ...\) -> \[B\], got .*max"):
        penalties.of(max)


@pytest.mark.parametrize("penalty", [penalties.exact(), penalties.projected(2)], ids=repr)
def test_a_loss_outside_of_jit_is_the_one_inside(penalty, key):
    """A model with a state: its output is what is penalised, the state beside it is not."""
    apply = lambda p, s, x, k: (x @ p["w"], {"mean": 100 * x[0]})
    penalty = penalties.of_model(apply, penalty)
    loss = training.classification_loss(apply, penalty=penalty, lambda_jr=0.1)
    params, batch = {"w": jax.random.normal(key, (3, 2))}, {"image": jnp.ones((4, 3)), "label": jnp.zeros(4, int)}
    state = training.init_state(params, training.sgd(0.1), key, {"mean": jnp.zeros(3)})
    arguments = params, state, batch, jax.random.split(key, 4)
    (value, (_, metrics)), (expected, (_, found)) = loss(*arguments), jax.jit(loss)(*arguments)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["penalty"], found["penalty"], rtol=1e-6)
    if "exact" in repr(penalty):
        np.testing.assert_allclose(metrics["penalty"], jnp.sum(params["w"] ** 2), rtol=1e-5)
