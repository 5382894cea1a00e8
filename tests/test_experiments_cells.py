"""Cells and distances: what is read is said to be read, and nothing is of other weights or options than it says."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as command_line, verify
from experiments.beyond import beyond_attacks
from experiments.lab import cells, distances, record, zoo
from experiments.lab.cells import Cell
from experiments.lab.options import Options
from experiments.lab.problems import CIFAR10_DDNET, MNIST_LENET
from experiments.lab.recipes import plain, regularizers
from experiments.page import results
from jacreg_jax import attacks

RECIPE = dataclasses.replace(regularizers(MNIST_LENET)["none"].few_shot(1), num_steps=10)


@pytest.fixture
def options(tfds_dir, tmp_path):
    folders = {"out": tmp_path / "out", "runs": tmp_path / "runs"}
    return Options(data_dir=str(tfds_dir), dispatch=10, checkpoint_every=10, **folders)


def test_what_is_only_read_is_said_to_be(capsys):
    """In a fresh clone the committed results are printed: those of the seeds asked for, and that nothing was run."""
    module, config = command_line.parse("table1", ["--columns", "all", "--regularizers", "none", "--seeds-all", "1"])
    found = command_line.run(module, dataclasses.replace(config, data_dir="/nowhere"))
    assert list(found["table1/all-none"]) == ["0"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("table1/all-none, seed 0: accuracy 0.989, jacobian_norm (mean 29.31, rms 31.87)")
    assert lines[1].startswith("read from ")
    assert lines[1].endswith("table1/all-none.json, nothing trained; --out FOLDER to run it")
    assert len(lines) == 2


def test_what_is_run_is_not(options, capsys):
    cell = Cell("mine/a", RECIPE, range(2), {"size": 3}, lambda model, seed: {"value": seed + 0.5})
    first = cells.fill([cell], options)["mine/a"]
    assert "nothing trained" not in capsys.readouterr().out
    assert [m["value"] for m in first.values()] == [0.5, 1.5]
    written = json.loads((options.out / "mine" / "a.json").read_text())
    assert written["config"] == {"recipe": RECIPE.config(), "size": 3}
    assert cells.fill([cell._replace(seeds=[1])], options)["mine/a"] == {"1": first["1"]}
    assert "seed 0" not in capsys.readouterr().out


def test_distances_of_wrong_and_of_unfooled_samples():
    """At 0 where it was wrong already, at infinity where nothing fooled it, else where it was moved."""
    x = np.zeros((3, 2, 2, 1), np.float32)
    found = types.SimpleNamespace(
        x_adv=x + np.array([0.5, 0.25, 1.0]).reshape(3, 1, 1, 1),
        clean_correct=np.array([True, False, True]),
        success=np.array([True, True, False]),
    )
    np.testing.assert_allclose(distances.l2_of(found, x), [1.0, 0.0, np.inf])


@pytest.mark.parametrize("together", [1, 3])
def test_a_model_that_diverges_leaves_its_step_and_the_others_go_on(options, together, capsys, caplog, monkeypatch):
    """Alone and among others; it is not trained again, and what reads results leaves it out."""
    start = zoo.initial_state

    def far_off(recipe, seed, optimizer):
        state = start(recipe, seed, optimizer)
        return state if seed != 1 else state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params))

    monkeypatch.setattr(zoo, "initial_state", far_off)
    options = dataclasses.replace(options, together=together)
    cell = Cell("mine/a", RECIPE, range(3), {}, lambda model, seed: {"value": 1.0})
    found = cells.fill([cell], options)["mine/a"]
    assert found["1"] == {"diverged_at": 1}
    assert found["0"]["value"] == found["2"]["value"] == 1.0
    assert "num_steps=10, seed 1: training stopped at step 1: loss nan" in caplog.text
    assert "seed 1: diverged_at 1" in capsys.readouterr().out
    monkeypatch.setattr(zoo, "_train_group", None)
    assert cells.fill([cell], options)["mine/a"] == found
    assert cells.fill([cell._replace(name="mine/b")], options)["mine/b"] == found, "another experiment knows it too"
    monkeypatch.setattr(results, "RESULTS", options.out)
    assert list(results.by_seed("mine/a")) == ["0", "2"]
    assert results.diverged("mine/a") == {"1": 1}
    with pytest.raises(ValueError, match="1 diverged at step 1"):
        verify.read(verify.Config("mine/a", 1, options.out))


def test_results_of_other_weights_are_refused(options):
    cell = Cell("mine/a", RECIPE, [0], {}, lambda model, seed: {"value": 1.0})
    cells.fill([cell], options)
    path = zoo.model_path(RECIPE, 0, options)
    arrays = record.read_arrays(path)
    record.write_arrays(path, {name: array * 1.01 for name, array in arrays.items()})
    with pytest.raises(ValueError, match=r"a.json holds seed 0 with the weights \w+, and .*seed-0.npz is a model with"):
        cells.fill([cell], options)
    record.write_arrays(path, arrays)
    assert cells.fill([cell], options)["mine/a"]["0"]["value"] == 1.0


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"accuracy": 0.5, "norm": {"rms": 2.0}}, "accuracy 0.5, norm (rms 2)"),
        ({"distance": [1.0, None, 3.0], "steps": [1, 2, 3]}, "median distance 3.000"),
        ({"curve": [{"step": 1, "accuracy": 0.5}, {"step": 2, "accuracy": 0.75}]},
         "curve step 1, accuracy 0.5 ... step 2, accuracy 0.75"),
        ({"accuracy": [0.9, 0.8, 0.7]}, "accuracy 0.9 ... 0.7"),
    ],
)  # fmt: skip
def test_one_line_of_metrics(metrics, line):
    assert cells.brief(metrics) == line


def test_distances_are_of_these_weights_and_options(options, caplog):
    runs = []

    def counted(f, x, y, key, *, epsilon=0.1):
        runs.append(epsilon)
        return attacks.fgsm(f, x, y, key, epsilon=epsilon)

    model = next(zoo.train(RECIPE, [0], options))[1]
    find = lambda model, **more: distances.find(model, 0, distances.Attack("mine", counted, more), 8, options)
    first = find(model)
    assert len(runs) == 1
    again = find(model)
    assert len(runs) == 1, "kept"
    np.testing.assert_array_equal(first["distance"], again["distance"])
    for path in (options.runs / "attacks").glob("*/*.json"):
        path.write_bytes(path.read_bytes()[:20])
    for path in (options.runs / "attacks").glob("*/*.npz"):
        path.write_bytes(path.read_bytes()[:200])
    np.testing.assert_array_equal(first["distance"], find(model)["distance"])
    told = [line for line in caplog.messages if line.endswith("it is made anew")]
    assert len(told) == 2, "what is damaged is a miss"
    assert len(runs) == 1, "and compiled once"
    find(model, epsilon=0.2)
    assert len(runs) == 2, "another option"
    moved = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf + 1e-6, model.params))
    find(moved)
    written = [json.loads(p.read_text())["config"] for p in (options.runs / "attacks").glob("*/config.json")]
    assert sorted((c["weights"], c["attack"]["epsilon"]) for c in written) == sorted(
        [(model.weights, 0.1), (model.weights, 0.2), (moved.weights, 0.1)]
    )
    config = next(c for c in written if c["attack"]["epsilon"] == 0.2)
    assert config == {"weights": model.weights, "problem": "mnist_lenet", "seed": 0,
                      "attack": {"function": "counted", "epsilon": 0.2}}  # fmt: skip


def test_an_attack_is_written_with_its_options_unless_they_are_the_committed_ones():
    usual = distances.by_name(MNIST_LENET)
    assert usual["PGD"].config() == {"attack": "PGD"}
    assert usual["CW"].resolved()["learning_rate"] == 0.005
    assert usual["PGD"].resolved()["epsilon"] == 32 / 255
    assert usual["DDN"].resolved()["num_steps"] == 1000
    cifar = distances.by_name(CIFAR10_DDNET)["PGD"].config()
    assert cifar["attack"] == "PGD"
    assert cifar["options"]["epsilon"] == 16 / 255
    other = dataclasses.replace(usual["CW"], options={"num_steps": 10})
    assert other.config()["options"]["num_steps"] == 10


def test_old_distances_are_not_used_and_it_is_said(options, capsys):
    block = options.runs / "attacks" / RECIPE.digest() / "seed-0" / "FGSM" / "0-4.npz"
    record.write_arrays(block, {"distance": np.full(4, 9.0), "steps": np.zeros(4)})
    distances._tell_of_old.cache_clear()
    model = next(zoo.train(RECIPE, [0], options))[1]
    found = distances.find(model, 0, distances.by_name(MNIST_LENET)["FGSM"], 4, options)
    assert not np.any(found["distance"] == 9)
    assert "distances of an older version, which did not note their weights; not used" in capsys.readouterr().out


def test_the_ensemble_sees_only_what_is_left(options, monkeypatch):
    chain = {
        "fgsm": attacks.fgsm,
        "noise": lambda f, x, y, key, epsilon: attacks.white_noise(f, x, y, key, sigma=epsilon),
    }
    monkeypatch.setattr(distances, "ensemble", lambda norm, num_queries: chain)
    model = next(zoo.train(RECIPE, [0], options))[1]
    every = {"norm": "l2", "num_queries": 5, "options": options}
    assert distances.robust_after(model, 0, epsilon=0.5, left=[], **every) == {"fgsm": 0, "noise": 0}
    counts = distances.robust_after(model, 0, epsilon=1e-4, left=[0, 3, 5], **every)
    assert 3 >= counts["fgsm"] >= counts["noise"] >= 0
    (kept,) = (options.runs / "attacks").glob("ensemble-*.json")
    config = json.loads(kept.read_text())["config"]
    assert (config["left"], config["weights"], config["epsilon"]) == ([0, 3, 5], model.weights, 1e-4)
    assert distances.robust_after(model, 0, epsilon=1e-4, left=[0, 3, 5], **every) == counts
    distances.robust_after(model, 0, epsilon=2e-4, left=[0, 3, 5], **every)
    assert len(list((options.runs / "attacks").glob("ensemble-*.json"))) == 2


def test_smallest_of_several_attacks_is_over_the_seeds_that_all_have():
    weak = {seed: {"distance": [1.0, None]} for seed in ("0", "1")}
    strong = {seed: {"distance": [2.0, 3.0]} for seed in ("1", "2")}
    found = beyond_attacks.smallest([weak, strong])
    assert list(found) == ["1"]
    np.testing.assert_array_equal(found["1"], [1, 3])


def test_ratio_is_of_the_seeds_that_both_models_have():
    found = {"none": {"0": 1.0, "1": 2.0}, "Jacobian": {"1": 6.0, "2": 9.0}}
    assert beyond_attacks.ratio("", found, lambda value: value) == ["", "2.000 (1)", "6.000 (1)", "3.00", "3.00"]


def test_a_recipe_of_another_problem_has_its_own_file():
    assert plain(CIFAR10_DDNET).digest() != plain(MNIST_LENET).digest()
