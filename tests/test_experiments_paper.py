"""The paper's whole: shorter trainings, test images that are few, a model made once more, the run book, ImageNet."""

import dataclasses
import json
import re
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import __main__ as command_line, runbook, verify
from experiments.beyond import small_figure_s7
from experiments.lab import distances, measure, problems, small_imagenet, zoo
from experiments.lab.options import Options
from experiments.lab.problems import CIFAR10_DDNET, IMAGENET_RESNET18
from experiments.lab.recipes import defences, jacobian, plain, regularizers
from experiments.page import elements, results
from experiments.studies import generalization
from jacreg_jax.models import MLP
from tests.conftest import optimized

SMALL = dataclasses.replace(
    IMAGENET_RESNET18,
    shape=(16, 16, 3),
    network=lambda dropout_rate, initialization: MLP(features=(8, 1000)),
    batch_size=10,
    penalised="as trained",
)


def test_shorter_trainings_lie_apart(tmp_path, monkeypatch):
    """Results of a tenth of the length never meet those of the whole, and pages show the longest there are."""
    assert Options(out=tmp_path).results == tmp_path
    assert Options(out=tmp_path, num_steps=15).results == tmp_path / "15-steps"
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert results.longest("table9") == "table9"
    for steps in ("15-steps", "9-steps"):
        (tmp_path / steps / "table9").mkdir(parents=True)
    assert results.longest("table9") == "15-steps/table9"
    (tmp_path / "table9").mkdir()
    assert results.longest("table9") == "table9"
    assert results.shorter("table9") == "15-steps/table9"


def test_few_test_images_widen_the_interval():
    """By the error of a sample without replacement, which more models do not lessen; found by drawing."""
    rng = np.random.default_rng(0)
    right = rng.permutation(10_000) < 1300  # a model that gets 13 % of the whole test set right
    drawn = [100 * right[rng.choice(10_000, 1000, replace=False)].mean() for _ in range(4000)]
    model = {"accuracy": 0.13, "test_images": 1000, "of_test_images": 10_000}
    error = results.sampling_error([model] * 15, results.percent)
    assert error == pytest.approx(np.std(drawn), rel=0.05)
    assert results.sampling_error([{"accuracy": 0.13}], results.percent) == 0
    values, paper = [13.0, 13.1, 12.9], (14.5, 0.7, 15)
    assert results.differs(values, paper)
    assert not results.differs(values, paper, error)
    assert results.spread(values, 1, error) == f"13.0 ± {np.hypot(results.interval(values)[1], 1.96 * error):.1f} (3)"
    assert elements.of_cells([(values, paper, error)])[0] == "reproduced"
    assert elements.of_cells([(values, paper)])[0] == "outside"
    assert elements.of_cells([(values, paper, error), ([], paper, error)])[0] == "unsettled", "a cell is missing"


def test_the_error_of_a_norm_is_that_of_its_test_images():
    norms = np.random.default_rng(1).normal(5, 1, 1000)
    summary = {"mean": norms.mean(), "rms": np.sqrt(np.mean(norms**2))}
    model = {"jacobian_norm": summary, "test_images": 1000, "of_test_images": 10_000}
    assert results.sampling_error([model], results.norm) == pytest.approx(1 / np.sqrt(1000) * np.sqrt(0.9), rel=0.05)


def test_the_penalty_of_a_batch_norm_network_is_at_held_statistics():
    """Only where there is a penalty: other recipes, and those of networks without BatchNorm, are what they were."""
    resnet, ddnet = (problems.CIFAR10_RESNET18, CIFAR10_DDNET)
    assert regularizers(resnet)["Jacobian"].penalised == defences(resnet)["both"].penalised == "batch statistics"
    assert regularizers(resnet)["L2"].penalised == "as trained"
    assert "penalised" not in defences(ddnet)["both"].config()
    assert jacobian(resnet, 0.0) == {"lambda_jr": 0.0}
    assert "dropout" not in regularizers(resnet)


@pytest.fixture(scope="module")
def committed(tfds_dir, tmp_path_factory):
    """A cell of two models in a folder of its own, as an experiment leaves it."""
    with optimized():
        return leave_a_cell(tfds_dir, tmp_path_factory)


def leave_a_cell(tfds_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    arguments = ["--columns", "1", "--regularizers", "none", "--seeds", "2", "--num-steps", "20", "--norms", "10"]
    module, config = command_line.parse("table1", [*arguments, "--dispatch", "10", "--checkpoint-every", "10"])
    config = dataclasses.replace(config, out=folder, runs=folder / "runs", data_dir=str(tfds_dir))
    command_line.run(module, config)
    path = folder / "20-steps" / "table1" / "1-none.json"
    found = json.loads(path.read_text())
    found["environment"]["command"] = "python -m experiments table1 " + " ".join(arguments)
    path.write_text(json.dumps(found))
    return folder, path


def test_a_committed_model_is_made_once_more(committed, tfds_dir, tmp_path, capsys):
    folder, path = committed
    config = verify.Config("20-steps/table1/1-none", 1, folder, tmp_path, str(tfds_dir))
    with optimized():
        rows = verify.run(config)
    assert set(rows) == {"accuracy", "jacobian_norm.mean", "jacobian_norm.rms"}
    assert all(old == new for old, new in rows.values())
    out = capsys.readouterr().out
    assert "the same weights" in out
    assert out.count("the same\n") == 3
    found = json.loads(path.read_text())
    changed = json.loads(path.read_text())
    changed["models"]["1"] |= {"accuracy": 0.9, "weights": "0123456789"}
    other = tmp_path / "changed" / "20-steps" / "table1"
    other.mkdir(parents=True)
    (other / "1-none.json").write_text(json.dumps(changed))
    verify.run(dataclasses.replace(config, results=tmp_path / "changed"))
    out = capsys.readouterr().out
    assert "other weights" in out
    assert "fewer than three seeds to judge it by" in out
    changed["config"]["recipe"]["learning_rate"] = 7.0
    (other / "1-none.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"another configuration today.*recipe.learning_rate.*\(7.0, 0.01\)"):
        verify.run(dataclasses.replace(config, results=tmp_path / "changed"))
    assert found["config"]["recipe"]["learning_rate"] == 0.01


def test_what_cannot_be_verified_is_said(committed):
    folder, _ = committed
    with pytest.raises(ValueError, match=r"cell must name a file of .*, such as table1/1-none, got 'table9/x'"):
        verify.run(verify.Config("table9/x", 0, folder))
    with pytest.raises(ValueError, match=r"seed must be one that .*1-none.json holds, 0, 1; got 5"):
        verify.run(verify.Config("20-steps/table1/1-none", 5, folder))


def test_a_number_is_judged_by_the_seeds():
    assert verify.verdict(1.0, 1.0, [1.0]) == "the same"
    assert verify.verdict(1.0, 1.5, [0.0, 1.0, 2.0]).startswith("alike")
    assert verify.verdict(1.0, 4.0, [0.0, 1.0, 2.0]).startswith("NOT alike")


def test_help_keeps_the_parts_of_the_docstring_apart(capsys):
    with pytest.raises(SystemExit):
        command_line.parse("figure3", ["--help"])
    lines = capsys.readouterr().out.splitlines()
    for word in ("Command:", "Paper:", "Time:", "Leaves:"):
        assert any(line.startswith(word) for line in lines), word


def test_the_run_book_lists_what_is_missing(tmp_path, capsys):
    """Every line parses; nothing is missing twice; a listing runs nothing."""
    config = runbook.Config(list=True, out=tmp_path / "out", runs=tmp_path / "runs")
    assert runbook.run(config) == []
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "|" in line]) == len(runbook.CPU) + 2
    assert "table3 --columns 1 " in lines[2]
    assert "| 75 " in lines[2]
    assert runbook.run(dataclasses.replace(config, gpu=True)) == []
    with pytest.raises(ValueError, match="hours must be positive, got 0"):
        runbook.run(dataclasses.replace(config, hours=0))
    with pytest.raises(ValueError, match="beside must be at least 1, got 0"):
        runbook.run(dataclasses.replace(config, beside=0))


def test_the_run_book_estimates_from_timed_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert runbook.hours_of(plain(CIFAR10_DDNET)) is None
    (tmp_path / "cost").mkdir()
    times = {"milliseconds": {"plain": 100.0, "n = 1": 200.0, "n = 3": 300.0, "exact": 900.0}}
    (tmp_path / "cost" / "cifar10_ddnet.json").write_text(json.dumps(times))
    assert runbook.hours_of(plain(CIFAR10_DDNET)) == pytest.approx(150_000 * 0.1 / 3600)
    assert runbook.hours_of(plain(problems.CIFAR10_DDNET_GELU)) == runbook.hours_of(plain(CIFAR10_DDNET))
    few = regularizers(CIFAR10_DDNET)["Jacobian"].few_shot(1)
    assert runbook.hours_of(few) == pytest.approx(10_000 * 0.2 * 10 / 100 / 3600)
    both = defences(CIFAR10_DDNET)["both"]
    assert runbook.hours_of(both) == pytest.approx(150_000 * 0.3 / 3600)


def test_a_piece_of_the_run_book_ends_at_its_deadline(tmp_path, monkeypatch):
    """The experiment is told to save and stop."""
    stand_in(tmp_path, monkeypatch, "exec sleep 60")
    begun, lines = time.monotonic(), [runbook.Line(name, 1, None) for name in ("table1", "table2", "table3")]
    config = runbook.Config(out=tmp_path, runs=tmp_path, beside=2)
    failed = runbook.work(lines, config, time.monotonic() + 0.5)
    assert failed == [f"{name}: exit status {-signal.SIGTERM}" for name in ("table1", "table2")]
    assert time.monotonic() - begun < 10


def test_lines_of_the_run_book_beside_one_another_share_no_model(tmp_path, monkeypatch):
    log = tmp_path / "log"
    stand_in(tmp_path, monkeypatch, f'echo "+$3" >> {log}; sleep 0.5; echo "-$3" >> {log}; test $3 != a')
    lines = [
        runbook.Line(name, 1, None, frozenset(models)) for name, models in {"a": [1], "b": [1, 2], "c": [3]}.items()
    ]
    run = lambda beside: runbook.work(lines, runbook.Config(beside=beside), time.monotonic() + 60)
    assert run(1) == ["a: exit status 1"]
    assert log.read_text().split() == ["+a", "-a", "+b", "-b", "+c", "-c"]
    log.unlink()
    assert run(3) == ["a: exit status 1"]
    written = log.read_text().split()
    assert set(written[:2]) == {"+a", "+c"}, "both at once"
    assert written.index("+b") > written.index("-a"), "b wants the model that a trains"


def stand_in(folder, monkeypatch, program):
    """A shell script in the place of python."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_problem_that_streams_is_trained_attacked_and_measured(tmp_path, monkeypatch):
    """The twenty photographs through the zoo, by the one path that Figure S7 takes; the same numbers twice."""
    small_imagenet.prepare(tmp_path)
    monkeypatch.setitem(problems.PROBLEMS, SMALL.name, SMALL)
    recipe = dataclasses.replace(plain(SMALL), **jacobian(SMALL, 1e-3)).shortened(4)
    kept = {"dispatch": 1, "checkpoint_every": 1, "workers": 0, "data_dir": str(tmp_path)}
    options = Options(runs=tmp_path / "runs", **kept)
    ((_, model),) = zoo.train(recipe, [0], options)
    found = measure.clean(model, 0, norms=3, data_dir=str(tmp_path), batch_size=4)
    assert (found["test_images"], found["of_test_images"]) == (10, 50_000)
    images = problems.held_out(SMALL, None, str(tmp_path))
    x = jnp.asarray(SMALL.preprocessing.normalize(images["image"]))
    np.testing.assert_allclose(model.image_f(jnp.asarray(images["image"])), model.f(x), atol=1e-5)
    assert np.abs(model.raw_f(jnp.asarray(images["image"])) - model.f(x)).max() > 1e-3, (
        "attacks have a space of their own"
    )
    assert found["accuracy"] == pytest.approx(np.mean(np.argmax(model.f(x), 1) == images["label"]))
    cells = generalization.cells  # the cells of a streamed problem are those of any
    assert cells("x", SMALL, generalization.Config(columns=("all",), regularizers=("none",)))[0].recipe.problem is SMALL
    other = Options(runs=tmp_path / "others", **kept)
    ((_, again),) = zoo.train(recipe, [0], other)
    assert again.weights == model.weights


def test_the_demonstration_of_figure_s7_prepares_its_photographs_and_fills_its_cells(tmp_path, monkeypatch):
    """A small network in place of ResNet-18: each panel has its file, CW says its own options, a second run is read."""
    small = dataclasses.replace(SMALL, name=problems.IMAGENET_SMALL.name, num_attacked=10)
    monkeypatch.setattr(small_figure_s7, "IMAGENET_SMALL", small)
    monkeypatch.setitem(problems.PROBLEMS, small.name, small)
    sizes = {"lambdas": (0.0, 1e-3), "num_steps": 2, "num_attacked": 2, "norms": 2, "dispatch": 1}
    config = small_figure_s7.Config(**sizes, out=tmp_path / "out", runs=tmp_path / "runs")
    found = small_figure_s7.run(config)
    panels = ("clean", "white-noise", "PGD", "CW")
    assert found.keys() == {f"small_figure_s7/{panel}-{value}" for panel in panels for value in ("0", "0.001")}
    assert all(
        len(model["distance"]) == 2 for name, seeds in found.items() if "clean" not in name for model in seeds.values()
    )
    held = json.loads((tmp_path / "out" / "2-steps" / "small_figure_s7" / "CW-0.json").read_text())["config"]
    assert held["options"]["num_steps"] == 100
    assert held["options"]["binary_search_steps"] == 5
    monkeypatch.setattr(small_imagenet, "prepare", lambda folder: pytest.fail("prepared twice"))
    assert small_figure_s7.run(config) == found
    whole = small_figure_s7.Config()
    recipes = {cell.recipe for cell in small_figure_s7.cells(whole)}
    assert len(recipes) == len(whole.lambdas)


def test_the_demonstration_takes_the_steps_of_figure_s7():
    """100 epochs quenched every 30, by the same network and attacks: an epoch is one step of the twenty photographs."""
    small, whole = problems.IMAGENET_SMALL, IMAGENET_RESNET18
    assert (small.batch_size, small.num_steps, small.quench_every) == (len(small_imagenet.photographs()), 100, 30)
    per_epoch = whole.num_steps / 100
    assert (
        small.quench_every / small.num_steps == whole.quench_every / whole.num_steps == 30 * per_epoch / whole.num_steps
    )
    changed = {f.name for f in dataclasses.fields(small) if getattr(small, f.name) != getattr(whole, f.name)}
    assert changed == {"name", "batch_size", "num_steps", "quench_every", "num_attacked"}


def test_black_and_white_photographs_are_attacked_in_the_papers_own_space():
    """Its map takes [0, 1] beyond [0, 1], where attacks refuse an image: what leaves is cropped, the rest is mapped."""
    levels = jnp.linspace(0, 1, 256)[:, None] * jnp.ones((1, 3))
    moved = IMAGENET_RESNET18.attack_space(levels)
    assert (float(moved.min()), float(moved.max())) == (0, 1)
    back = IMAGENET_RESNET18.preprocessing.denormalize(IMAGENET_RESNET18.attack_preprocessing.normalize(moved))
    is_inside = (moved > 0) & (moved < 1)
    np.testing.assert_allclose(jnp.where(is_inside, back, levels), levels, atol=1e-5)
    assert float(jnp.abs(back - levels).max()) < 0.05
    images = jnp.stack([jnp.zeros(SMALL.shape), jnp.ones(SMALL.shape)])
    module = SMALL.network(0.0, "torch")
    params = module.init(jax.random.key(0), images)["params"]
    model = zoo.Model(SMALL, params, {})
    test = {"image": images, "label": jnp.argmax(model.image_f(images), 1)}
    for attack in distances.paper(SMALL)[:3]:
        found = distances._block(model, 0, attack, test, slice(0, 2))
        assert found["distance"].shape == (2,)


@pytest.mark.parametrize(
    ("gains", "steps", "state", "words"),
    [
        ([[1.0, 1.1, 0.9], [2.0, 2.2, 1.8]], 10, "reproduced", "in 3 of 3 models, the paper: 5"),
        ([[1.0, 1.1, 0.9], [0.5, 2.2, -0.1]], 10, "unsettled", "in 2 of 3 models.*interval of a difference includes 0"),
        ([[0.1, 0.2, -0.6]], 10, "unsettled", "in 2 of 3 models"),  # the mean is below 0, by chance as it seems
        ([[-1.0, -1.1, -0.9]], 10, "outside", "in 0 of 3 models"),
        ([[1.0]], 10, "unsettled", "the paper: 5"),
        ([[1.0], [-0.1]], 10, "outside", "the paper: 5"),
        ([[1.0]], 5, "shortened", "holds at 5 of 10 steps, 1 of 5 seeds"),
        ([[1.0, 1.1, 0.9], [0.5, 2.2, -0.1]], 5, "unsettled", "holds at 5 of 10 steps, 3 of 5 seeds; the interval"),
    ],
)
def test_a_claim_is_as_strong_as_its_seeds(gains, steps, state, words, monkeypatch):
    """Reproduced where every difference is above 0 and no interval over the models includes 0."""
    models = {str(seed): {} for seed in range(len(gains[0]))}
    monkeypatch.setattr(elements.results, "read", lambda name: {"config": {"recipe": {"num_steps": steps}}})
    monkeypatch.setattr(elements.results, "models", lambda name: models)
    found, note = elements.of_claim("figure9/heads", lambda: gains, 10, 5)
    assert (found, bool(re.search(words, note))) == (state, True), note
