"""The backbone of the experiments: killed runs go on with the same numbers, nothing is overwritten, models together."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import figure_tables, record, runner, tables, zoo
from experiments.recipes import DEFENCES, REGULARIZERS, Recipe
from jacreg_jax import training

ROOT = Path(__file__).resolve().parents[1]


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
    rows = lambda first, count: runner.batch_indices(5, first, count, 4, 20)
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


def test_intervals_are_checked(problem):
    steps, make, data, rows = problem
    with pytest.raises(ValueError, match="multiples of dispatch, 50; got 70 and 5000"):
        runner.train(steps, make(), data, rows, num_steps=10, checkpoint_every=70)


def test_a_loss_that_is_not_finite_stops_the_run(problem):
    _, make, data, rows = problem
    optimizer = training.sgd(1e20)
    steps = training.make_train_steps(quadratic, optimizer)
    with pytest.raises(training.NonFiniteError, match="training stopped at step"):
        runner.train(steps, make(), data, rows, num_steps=100)


def test_models_trained_together_equal_those_trained_alone(tfds_dir, tmp_path):
    recipe = dataclasses.replace(REGULARIZERS["all"].few_shot(1), num_steps=20)
    options = {"data_dir": str(tfds_dir), "dispatch": 10, "checkpoint_every": 10}
    alone = dict(zoo.train(recipe, range(3), zoo.Options(runs=tmp_path / "a", together=1, **options)))
    together = dict(zoo.train(recipe, range(3), zoo.Options(runs=tmp_path / "b", together=3, **options)))
    for seed in range(3):
        for a, b in zip(jax.tree.leaves(alone[seed]), jax.tree.leaves(together[seed]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    distance = lambda a, b: max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    assert distance(alone[0], alone[1]) > 0.01
    again = zoo.train(recipe, [1], zoo.Options(runs=tmp_path / "a", data_dir="/nowhere"))
    assert distance(next(again)[1], alone[1]) == 0, "a trained model is read, not trained"


class Several(zoo.Options):
    """An experiment of four recipes; the first three are one program."""

    @property
    def recipes(self):
        few = {name: dataclasses.replace(r.few_shot(1), num_steps=20) for name, r in REGULARIZERS.items()}
        both = dataclasses.replace(few["Jacobian"], lambda_jr=0.3, weight_decay=0.1)
        return {
            "Jacobian": few["Jacobian"],
            "both": both,
            "all": dataclasses.replace(both, lambda_jr=0.01),
            "L2": few["L2"],
        }


def test_regularizers_trained_together_equal_those_trained_alone(tfds_dir, tmp_path):
    options = {"data_dir": str(tfds_dir), "dispatch": 10, "checkpoint_every": 10}
    together = Several(runs=tmp_path / "together", together=6, **options)
    first, *alike, other = together.recipes.values()
    models = {first: dict(zoo.train(first, range(2), together))}
    elsewhere = dataclasses.replace(together, data_dir="/nowhere")
    models |= {recipe: dict(zoo.train(recipe, range(2), elsewhere)) for recipe in alike}  # trained beside the first
    with pytest.raises(FileNotFoundError):
        next(zoo.train(other, [0], elsewhere))
    alone = zoo.Options(runs=tmp_path / "alone", **options)
    for recipe, found in models.items():
        for seed, params in zoo.train(recipe, range(2), alone):
            for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(found[seed]), strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5)
    (run,) = (tmp_path / "together" / "models").glob("together-*")
    zoo.model_path(alike[0], 1, together).unlink()
    missing = dataclasses.replace(together, together=2)
    again = next(zoo.train(alike[0], [1], missing))[1]
    chex.assert_trees_all_equal(again, models[alike[0]][1])  # from the group's last checkpoint, not trained anew
    assert [path.name for path in run.parent.glob("together-*")] == [run.name]


def test_a_lazy_recipe_trains_alone(tfds_dir, tmp_path, monkeypatch):
    groups = []
    monkeypatch.setattr(zoo, "_train_group", lambda members, *_: groups.append(members))
    monkeypatch.setattr(zoo, "_load", lambda path: None)
    options = zoo.Options(runs=tmp_path, together=4)
    for recipe in (Recipe(lambda_jr=0.1), Recipe(lambda_jr=0.1, lazy=4)):
        next(zoo.train(recipe, range(3), options))
    assert [len(members) for members in groups] == [3, 1]


def test_watched_models_are_kept_apart(tfds_dir, tmp_path):
    """A model that was trained unwatched has no curve; one that is watched otherwise has another."""
    recipe = dataclasses.replace(Recipe(), num_steps=20, quench_every=None)
    options = zoo.Options(data_dir=str(tfds_dir), runs=tmp_path, dispatch=10, checkpoint_every=10)
    next(zoo.train(recipe, [0], options))
    next(zoo.train(recipe, [0], options, lambda params: {"test": 1}, 10, "-watched"))
    rows = zoo.history(zoo.model_path(recipe, 0, options, "-watched"))
    assert [(row["step"], row.get("test")) for row in rows] == [(10, 1), (20, 1)]


def test_one_process_a_run(tmp_path):
    with (
        record.lock(tmp_path),
        pytest.raises(BlockingIOError, match="another process is at work in"),
        record.lock(tmp_path),
    ):
        pass
    with record.lock(tmp_path):
        pass


def test_one_model_of_several_that_is_not_finite_is_named(problem):
    _, make, data, rows = problem
    together = training.make_train_steps(quadratic, training.sgd(0.05), together=True)
    states = [make(), make()._replace(params={"w": jnp.float32(jnp.inf)})]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    both = lambda first, count: np.stack([rows(first, count)] * 2)
    with pytest.raises(training.NonFiniteError, match="model 1 of 2: training stopped at step 1.*--together 1"):
        runner.train(together, stacked, data, both, num_steps=10)


def test_what_differs_is_named_down_to_the_value():
    there, here = {"recipe": {"num_steps": 20, "seed": 1}, "norms": None}, {"recipe": {"num_steps": 30, "seed": 1}}
    assert record.difference(there, here) == {"recipe.num_steps": (20, 30)}
    assert record.difference(there | {"norms": 5}, here)["norms"] == (5, None)


def test_seeds_lie_in_order_whoever_wrote_first(tmp_path):
    path, compute = tmp_path / "cell.json", lambda seeds: ((seed, {"accuracy": seed}) for seed in seeds)
    record.fill(path, {}, [10, 2], compute)
    assert list(record.fill(path, {}, range(3), compute)["models"]) == ["0", "1", "2", "10"]


def test_smallest_of_several_attacks_is_over_the_seeds_that_all_have():
    weak = {seed: {"distance": [1.0, None]} for seed in ("0", "1")}
    strong = {seed: {"distance": [2.0, 3.0]} for seed in ("1", "2")}
    found = figure_tables._best([weak, strong])
    assert list(found) == ["1"]
    np.testing.assert_array_equal(found["1"], [1, 3])


def test_ratio_is_of_the_seeds_that_both_models_have():
    row = figure_tables._ratio(
        "", {"none": {"0": 1.0, "1": 2.0}, "Jacobian": {"1": 6.0, "2": 9.0}}, lambda value: value
    )
    assert row[-2:] == ["5.00", "3.00"]


def test_a_result_of_another_configuration_is_not_overwritten(tmp_path):
    path = tmp_path / "cell.json"
    compute = lambda seeds: ((seed, {"accuracy": 0.5 + seed}) for seed in seeds)
    assert set(record.fill(path, {"a": 1, "b": 2}, range(2), compute)["models"]) == {"0", "1"}
    before = path.read_text()
    computed = []
    more = record.fill(path, {"a": 1, "b": 2}, range(3), lambda seeds: computed.append(seeds) or compute(seeds))
    assert computed == [[2]]
    assert more["models"]["0"] == {"accuracy": 0.5}
    before = path.read_text()
    with pytest.raises(ValueError, match=r"cell.json is the result of another configuration.*'a': \(1, 7\)"):
        record.fill(path, {"a": 7, "b": 2}, range(2), compute)
    assert path.read_text() == before


def test_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="mnist"):
        next(zoo.train(Recipe(num_steps=1), [0], zoo.Options(data_dir=str(tmp_path), runs=tmp_path)))


def test_recipes():
    assert len({r.digest() for r in (*REGULARIZERS.values(), *DEFENCES.values())}) == 8  # "all" is a defence too
    short = Recipe().shortened(15_000)
    assert (short.num_steps, short.quench_every) == (15_000, 5_000)
    assert Recipe().shortened(None) == Recipe()
    few = REGULARIZERS["L2"].few_shot(3)
    assert (few.num_steps, few.learning_rate, few.quench_every, few.weight_decay) == (10_000, 0.01, None, 5e-4)


def test_tables_compare_with_the_paper():
    assert tables.compare([], (1.0, 0.1)) == "not run"
    assert tables.compare([1.0], (1.1, 0.1)) == "1.0 (1)"
    assert tables.compare([2.0], (1.1, 0.1)) == "2.0 (1) **!**"
    mean, half = tables.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)  # t of 0.975 with 2 degrees of freedom
    assert tables.compare([1.0, 2.0, 3.0], (4.0, 0.1)) == "2.0 ± 2.5 (3)"
    assert tables.spread([1.0, np.inf, np.inf], 2) == ["not reached by 2 of 3"]
    with pytest.raises(ValueError, match=r"table1/all-L2.json holds models of another recipe"):
        tables.models("table1/all-L2", REGULARIZERS["none"])


def test_distances_survive_json():
    values = np.array([0.0, 1.23456, np.inf])
    assert record.as_json(values) == [0.0, 1.2346, None]
    np.testing.assert_allclose(record.from_json(json.loads(json.dumps(record.as_json(values)))), values, atol=1e-4)


@pytest.mark.slow
def test_sigkill_at_random_moments(tfds_dir, tmp_path):
    """Five kills of a run of the command line, at random moments, and the numbers of one that was left alone."""
    arguments = ["--columns", "all", "--regularizers", "all", "--seeds-all", "1", "--num-steps", "200", "--norms", "50"]
    arguments += ["--dispatch", "5", "--checkpoint-every", "10", "--data-dir", str(tfds_dir)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def start(name):
        command = [sys.executable, "-m", "experiments", "table1", *arguments, "--out", f"{name}/out", "--runs", name]
        with (tmp_path / "stderr").open("a") as log:
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    def result(name):
        return json.loads((tmp_path / name / "out" / "table1" / "all-all.json").read_text())["models"]

    def lines():
        return sum(path.read_text().count("\n") for path in (tmp_path / "killed").rglob("metrics.jsonl"))

    assert start("whole").wait(600) == 0
    moments = random.Random(0)
    for _ in range(5):
        process, before, more = start("killed"), lines(), moments.randint(1, 6)
        while lines() < before + more and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait(600) == 0, (tmp_path / "stderr").read_text()
    assert result("killed") == result("whole")
