"""The train script: goes on with the same numbers, on other devices too; input in workers; a problem of one's own."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import sweep, train
from experiments.lab import problems, runner


@pytest.fixture
def config(tfds_dir, tmp_path):
    quick = dataclasses.replace(
        train.Config(), **train.QUICK | {"data_dir": str(tfds_dir), "folder": tmp_path / "whole"}
    )
    quick = dataclasses.replace(quick, problem="tests.own_problem:SMALL")
    return dataclasses.replace(quick, num_steps=20, checkpoint_every=10, evaluate_every=10, batch_size=16, norms=2)


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    """Evaluation on 100 test images."""
    whole = problems.images
    few = lambda problem, split, *rest: {
        k: v[:100] if split == "test" else v for k, v in whole(problem, split, *rest).items()
    }
    monkeypatch.setattr("experiments.lab.measure.images", few)


def arrays(folder, name="last"):
    with np.load(folder / f"{name}.npz") as found:
        return dict(found)


class Stop(Exception):
    """What a kill is to a run."""


def test_goes_on_on_other_devices(config, tmp_path, monkeypatch):
    train.run(config)
    again = dataclasses.replace(config, folder=tmp_path / "again", devices=2)
    steps = runner.training.check_finite
    calls = []

    def stopping(metrics, step):
        calls.append(step)
        if step == 20 and len(calls) == 2:
            raise Stop
        return steps(metrics, step)

    monkeypatch.setattr(runner.training, "check_finite", stopping)
    with pytest.raises(Stop):
        train.run(again)
    train.run(dataclasses.replace(again, devices=4, backend="shard_map"))
    for name, array in arrays(config.folder).items():
        np.testing.assert_allclose(arrays(again.folder)[name], array, atol=2e-5)
    rows = [json.loads(line) for line in (again.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20]
    best = json.loads((config.folder / "best.json").read_text())["row"]
    assert best["test_accuracy"] == max(row["test_accuracy"] for row in rows if "test_accuracy" in row)
    with pytest.raises(ValueError, match="result of another configuration.*seed"):
        train.run(dataclasses.replace(again, seed=1))


def test_input_in_workers_and_a_problem_by_its_name(config, tmp_path, monkeypatch):
    """Read batch by batch; a run that was stopped meets the batches that it would have met."""
    streamed = dataclasses.replace(config, problem="tests.own_problem:STREAMED", workers=0, evaluate_every=20)
    monkeypatch.setattr(train.measure, "clean", lambda *arguments, **options: {"accuracy": 0.5})
    train.run(streamed)
    part = dataclasses.replace(streamed, folder=tmp_path / "part")
    original = runner.Log.save

    def save(log, step, state):
        original(log, step, state)
        if step == 10:
            raise Stop

    monkeypatch.setattr(runner.Log, "save", save)
    with pytest.raises(Stop):
        train.run(part)
    monkeypatch.setattr(runner.Log, "save", original)
    history = train.run(part)
    for name, array in arrays(config.folder).items():
        np.testing.assert_array_equal(arrays(part.folder)[name], array)
    assert 0 <= history[-1]["waiting"] <= 1


def test_mixed_precision(config, tmp_path):
    """The network in bfloat16 ends near the one in float32, and its parameters are float32."""
    half = dataclasses.replace(config, dtype="bfloat16", folder=tmp_path / "half", norms=0)
    rows = [train.run(c)[0] for c in (dataclasses.replace(config, norms=0), half)]
    assert {array.dtype for array in arrays(half.folder).values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(rows[1]["loss"], rows[0]["loss"], rtol=0.05)
    np.testing.assert_allclose(rows[1]["penalty"], rows[0]["penalty"], rtol=0.05)
    assert rows[1]["penalty"] != rows[0]["penalty"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar", "must be one of mnist_lenet, .*, or MODULE:NAME, got 'cifar'"),
        ("nowhere.at_all:MINE", "cannot be found: No module"),
        ("tests.own_problem:NOTHING", "cannot be found: .*NOTHING"),
        ("tests.own_problem:dataclasses", "must be a Problem .*, got module"),
    ],
)
def test_problem_is_looked_for(name, words):
    with pytest.raises(ValueError, match=words):
        train.problem_of(name)


def test_batch_norm_is_penalised_at_the_statistics_of_the_batch():
    assert train.recipe_of(train.Config(problem="cifar10_resnet18")).penalised == "batch statistics"
    assert train.recipe_of(train.Config(problem="cifar10_resnet18", lambda_jr=0)).penalised == "as trained"
    assert train.recipe_of(train.Config()).penalised == "as trained"


@pytest.mark.parametrize("cluster", ["none", pytest.param("local", marks=pytest.mark.slow)])
def test_sweep(config, tmp_path, cluster):
    """What is missing is trained, here or as jobs of submitit; what is there is read."""
    every = sweep.Config(
        dataclasses.replace(config, num_steps=10), (0.0, 0.1), cluster=cluster, folder=tmp_path / "sweep"
    )
    found = sweep.run(every)
    assert sorted(found) == ["lambda-0-seed-0", "lambda-0.1-seed-0"]
    assert found["lambda-0.1-seed-0"]["penalty"] > 0
    assert "penalty" not in found["lambda-0-seed-0"]
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text()) == found
    assert sweep.run(dataclasses.replace(every, train=dataclasses.replace(every.train, data_dir="/nowhere"))) == found


def test_scalars_for_tensorboard(config):
    tensorboardX = pytest.importorskip("tensorboardX")
    assert tensorboardX
    train.run(dataclasses.replace(config, num_steps=10))
    (events,) = (config.folder / "tensorboard").glob("events*")
    assert b"penalty" in events.read_bytes()
