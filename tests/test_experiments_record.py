"""Results on disk: whole or not at all, never another configuration's, none lost between processes, damage is named."""

import importlib.machinery
import json
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.lab import record, runner
from experiments.page import results

ROOT = Path(__file__).resolve().parents[1]


def compute(seeds):
    return ((seed, {"accuracy": 0.5 + seed}) for seed in seeds)


def test_a_result_is_written_whole(tmp_path):
    path = tmp_path / "deep" / "result.json"
    record.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        record.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_result_of_another_configuration_is_not_overwritten(tmp_path):
    path = tmp_path / "cell.json"
    assert set(record.fill(path, {"a": 1, "b": 2}, range(2), compute)["models"]) == {"0", "1"}
    computed = []
    more = record.fill(path, {"a": 1, "b": 2}, range(3), lambda seeds: computed.append(seeds) or compute(seeds))
    assert computed == [[2]]
    assert more["models"]["0"] == {"accuracy": 0.5}
    before = path.read_text()
    with pytest.raises(ValueError, match=r"cell.json is the result of another configuration.*'a': \(1, 7\)"):
        record.fill(path, {"a": 7, "b": 2}, range(2), compute)
    assert path.read_text() == before


def test_what_differs_is_named_down_to_the_value():
    there, here = {"recipe": {"num_steps": 20, "seed": 1}, "norms": None}, {"recipe": {"num_steps": 30, "seed": 1}}
    assert record.difference(there, here) == {"recipe.num_steps": (20, 30)}
    assert record.difference(there | {"norms": 5}, here)["norms"] == (5, None)


def test_seeds_lie_in_order_whoever_wrote_first(tmp_path):
    path = tmp_path / "cell.json"
    record.fill(path, {}, [10, 2], compute)
    assert list(record.fill(path, {}, range(3), compute)["models"]) == ["0", "1", "2", "10"]


def test_arrays_lie_in_files_that_can_be_carried(tmp_path):
    """The weights of a ResNet-18, 45 MB: a model is there when its first file is, and damage to another is named."""
    path = tmp_path / "seed-0.npz"
    arrays = {str(i): np.full((9, 512, 512), i, np.float32) for i in range(4)} | {"small": np.ones(3)}
    record.write_arrays(path, arrays, record.PIECE)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(sizes) == {"seed-0.npz", "seed-0.npz.1", "seed-0.npz.2", "seed-0.npz.3"}
    assert max(sizes.values()) < 16e6
    jax.tree.map(np.testing.assert_array_equal, record.read_arrays(path), arrays)
    last = path.with_name("seed-0.npz.3")
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(ValueError, match="npz.3 is damaged"):
        record.read_arrays(path)
    last.unlink()
    with pytest.raises(ValueError, match="seed-0.npz is damaged .*npz.3, a part of it"):
        record.read_arrays(path)
    record.write_arrays(path, {"a": np.ones(2)}, record.PIECE)
    assert list(record.read_arrays(path)) == ["a"], "the parts of before are not read"


FILLING = """
import sys, time
from pathlib import Path
from experiments.lab import record
record.commit, record.environment = str, dict  # quick
folder, first = Path(sys.argv[1]), int(sys.argv[2])
while not (folder.parent / "go").exists():
    time.sleep(0.001)
record.fill(folder / "cell.json", {}, range(first, 120, 3), lambda seeds: ((seed, {}) for seed in seeds))
"""


def test_several_processes_lose_no_seed(tmp_path):
    folder = tmp_path / "results"
    path = folder / "cell.json"
    command = lambda first: [sys.executable, "-c", FILLING, str(folder), str(first)]
    processes = [subprocess.Popen(command(first), cwd=ROOT) for first in range(3)]
    time.sleep(1)
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert list(json.loads(path.read_text())["models"]) == [str(seed) for seed in range(120)]
    assert [p.name for p in folder.iterdir()] == ["cell.json"], "no lock is left behind"


def test_one_process_a_run(tmp_path):
    with (
        record.lock(tmp_path),
        pytest.raises(BlockingIOError, match="another process is at work in"),
        record.lock(tmp_path),
    ):
        pass
    with record.lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ['{"config": {}, "mod', "", "\xff", "[]", "{}"])
def test_a_damaged_result_is_named(tmp_path, text, monkeypatch):
    path = tmp_path / "cell.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"cell.json .*remove it"):
        record.fill(path, {}, [0], compute)
    assert path.read_bytes() == text.encode("latin1")
    if text not in ("[]", "{}"):
        monkeypatch.setattr(results, "RESULTS", tmp_path)
        with pytest.raises(ValueError, match=r"cell.json is damaged .*check it out again"):
            results.read("cell")


def test_damaged_arrays_are_named(tmp_path):
    path = tmp_path / "seed-0.npz"
    record.write_arrays(path, {"a": np.arange(1000.0)})
    whole = path.read_bytes()
    for broken in (
        whole[:500],
        b"",
        b"PK\x03\x04" + whole[4:200],
        whole[:300] + b"!?" + whole[302:],
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"seed-0.npz is damaged .*remove it, and the same command makes it anew"):
            record.read_arrays(path)


def test_a_damaged_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match=r"metrics.jsonl is missing beside its checkpoints; remove its folder"):
        runner.read_history(path)
    path.write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl is damaged in line 2; remove its folder"):
        runner.read_history(path)
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert runner.read_history(path) == [{"step": 1}]


def test_distances_survive_json():
    values = np.array([0.0, 1.23456, np.inf])
    assert record.as_json(values) == [0.0, 1.2346, None]
    written = json.loads(json.dumps({"distance": record.as_json(values)}))
    np.testing.assert_allclose(results.distances(written), values, atol=1e-4)


def test_a_command_names_no_place_of_the_machine(monkeypatch):
    line = "prog table3 --seeds 2 --out /a/b --num-steps 5 --runs=/c --data-dir /d --columns 1 3"
    monkeypatch.setattr("sys.argv", line.split())
    assert record.environment()["command"] == "python -m experiments table3 --seeds 2 --num-steps 5 --columns 1 3"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("experiments.__main__", "experiments"),
        ("experiments.benchmarks.__main__", "experiments.benchmarks"),
        ("experiments.benchmarks.rounding", "experiments.benchmarks.rounding"),
        ("pytest.__main__", "experiments"),
    ],
)
def test_a_command_names_the_module_that_runs(monkeypatch, module, said):
    main = types.ModuleType("__main__")
    main.__spec__ = importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr("sys.argv", ["prog", "--rounds", "2"])
    assert record.environment()["command"] == f"python -m {said} --rounds 2"


def test_environment_names_what_a_result_depends_on():
    found = record.environment()
    assert found["jax"] == jax.__version__
    assert found["device_count"] == 8
