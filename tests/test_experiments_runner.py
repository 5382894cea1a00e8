"""The training loop: a run that was killed goes on with the same numbers, what is not finite stops it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab import programs, runner, world
from experiments.lab.batches import reshuffled
from jacreg_jax import training


def quadratic(params, state, batch, keys):
    """Noise in every step, so that a wrong key or a wrong batch would show."""
    noise = jax.vmap(lambda k: jax.random.normal(k))(keys)
    loss = jnp.mean((params["w"] - batch["image"][:, 0] + 0.1 * noise) ** 2)
    return loss, (state.model_state, {"accuracy": loss})


@pytest.fixture
def problem():
    optimizer = training.sgd(0.05)
    make = lambda: training.init_state({"w": jnp.zeros(())}, optimizer, jax.random.key(3))
    data = {"image": jnp.arange(20.0).reshape(20, 1) / 20, "label": jnp.zeros(20, int)}
    rows = lambda first, count: reshuffled(5, first, count, 4, 20)
    return training.make_train_steps(quadratic, optimizer), make, data, rows


class Stop(Exception):
    """What a kill is to a run."""


def test_a_stopped_run_goes_on_with_the_same_numbers(problem, tmp_path):
    steps, make, data, rows = problem
    options = {"num_steps": 60, "dispatch": 5, "checkpoint_every": 10, "observe_every": 20}
    observe = lambda state: {"w": float(state.params["w"])}
    whole, history = runner.train(steps, make(), data, rows, folder=tmp_path / "whole", observe=observe, **options)
    folder, calls = tmp_path / "stopped", []

    def stopping(state, data, indices):
        calls.append(1)
        if len(calls) in (3, 7, 8):
            raise Stop
        return steps(state, data, indices)

    for _ in range(3):
        with pytest.raises(Stop):
            runner.train(stopping, make(), data, rows, folder=folder, observe=observe, **options)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 55, "lo')  # a line that was cut off
    state, again = runner.train(stopping, make(), data, rows, folder=folder, observe=observe, **options)
    np.testing.assert_array_equal(state.params["w"], whole.params["w"])
    without_time = lambda rows: [{k: v for k, v in row.items() if k != "ms_per_step"} for row in rows]
    assert without_time(again) == without_time(history)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert without_time(logged) == without_time(history)
    assert [row["step"] for row in logged if "w" in row] == [20, 40, 60]


def test_batch_by_batch_on_several_devices_is_the_same(problem):
    steps, make, data, rows = problem
    one, metrics = steps(make(), data, rows(0, 5))
    assert jax.device_count() > 1
    for devices in (1, 2):
        mesh = world.mesh_of(devices)
        other = programs.batch_by_batch(training.make_train_step(quadratic, training.sgd(0.05), mesh=mesh), mesh)
        state, again = other(make(), {name: np.asarray(array) for name, array in data.items()}, rows(0, 5))
        np.testing.assert_allclose(state.params["w"], one.params["w"], rtol=1e-6)
        np.testing.assert_allclose(again["loss"], metrics["loss"], rtol=1e-6)
    with pytest.raises(ValueError, match="devices must be from 1 to 8, which are here; got 9"):
        world.mesh_of(9)


def test_intervals_are_checked(problem):
    steps, make, data, rows = problem
    with pytest.raises(ValueError, match="multiples of dispatch, 50; got 70 and 5000"):
        runner.train(steps, make(), data, rows, num_steps=10, checkpoint_every=70)


def test_a_loss_that_is_not_finite_stops_the_run(problem):
    _, make, data, rows = problem
    steps = training.make_train_steps(quadratic, training.sgd(1e20))
    with pytest.raises(training.NonFiniteError, match="training stopped at step"):
        runner.train(steps, make(), data, rows, num_steps=100)


def test_of_several_the_others_go_on_where_one_diverges(problem, tmp_path):
    _, make, data, rows = problem
    together = training.make_train_steps(quadratic, training.sgd(0.05), together=True)
    stack = lambda states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    bad = make()._replace(params={"w": jnp.float32(jnp.inf)})
    both = lambda first, count: np.stack([rows(first, count)] * 2)
    options = {"num_steps": 20, "dispatch": 5, "checkpoint_every": 10, "folder": tmp_path}
    wanted = "model 1 of 2: training stopped at step 1: loss inf"
    with pytest.raises(training.NonFiniteError, match=wanted) as error:
        runner.train(together, stack([make(), bad]), data, both, **options)
    alone, _ = runner.train(problem[0], make(), data, rows, num_steps=20, dispatch=5)
    np.testing.assert_allclose(error.value.state.params["w"][0], alone.params["w"], rtol=1e-6)
    assert error.value.last["step"] == 20
    assert [found and found["step"] for found in error.value.last["diverged"]] == [None, 1]
    with pytest.raises(training.NonFiniteError, match=wanted):  # and again, from its checkpoint
        runner.train(together, stack([make(), bad]), data, both, **options)
    with pytest.raises(training.NonFiniteError, match="model 0 of 2: .*; and 1 more of 2") as error:
        runner.train(together, stack([bad, bad]), data, both, num_steps=20, dispatch=5)
    assert error.value.last["step"] == 5, "nobody is left"
