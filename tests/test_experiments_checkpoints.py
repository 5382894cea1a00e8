"""Checkpoints and disks: damage is noticed and the checkpoint before is used; what cannot be written is said early."""

import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab import checkpoints, disk, distances, record, runner, zoo
from experiments.lab.batches import reshuffled
from experiments.page import plots
from jacreg_jax import training


def quadratic(params, state, batch, keys):
    noise = jax.vmap(lambda k: jax.random.normal(k))(keys)
    loss = jnp.mean((params["w"] - batch["image"][:, 0] + 0.1 * noise) ** 2) + jnp.sum(params["big"] ** 2)
    return loss, (state.model_state, {"accuracy": loss})


OPTIMIZER = training.sgd(0.05)
STEPS = training.make_train_steps(quadratic, OPTIMIZER)
DATA = {"image": jnp.arange(20.0).reshape(20, 1) / 20, "label": jnp.zeros(20, int)}


def train(folder, num_steps=40, steps=STEPS, size=100, **options):
    big = jax.random.normal(jax.random.key(5), (size,))  # does not compress
    state = training.init_state({"w": jnp.zeros(()), "big": big}, OPTIMIZER, jax.random.key(3))
    rows = lambda first, count: reshuffled(5, first, count, 4, 20)
    options = {"dispatch": 5, "checkpoint_every": 10} | options
    return runner.train(steps, state, DATA, rows, num_steps=num_steps, folder=folder, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder, state) of a run of 40 steps; its checkpoints are those of steps 30 and 40."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(folder)[0]


def test_files_of_a_checkpoint_can_be_carried(tmp_path):
    """Of 25 models that train together, with one array over the limit."""
    weights = jax.random.normal(jax.random.key(0), (25, 600, 600))
    state = {"w": weights, "b": jnp.ones((25, 9)), "key": jax.random.key(1)}
    kept = checkpoints.Checkpoints(tmp_path)
    kept.save(50, state)
    kept.close()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) > 30e6
    assert max(file.stat().st_size for file in files) < 2 * checkpoints.CHUNK + 2**20 < 16e6
    again = checkpoints.Checkpoints(tmp_path)
    found, step = again.restore(state | {"w": jnp.zeros_like(weights)}, {50})
    again.close()
    assert step == 50
    chex.assert_trees_all_equal(found, state)


@pytest.fixture
def run(whole, tmp_path):
    """A copy of that run."""
    return shutil.copytree(whole[0], tmp_path / "run")


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_last_line(path: Path):
    path.write_bytes(path.read_bytes()[:-20])


DAMAGES = {
    "a flipped bit": lambda newest: flip(largest(newest)),
    "a file cut short": lambda newest: cut(largest(newest)),
    "a missing file": lambda newest: largest(newest).unlink(),
    "an empty folder": lambda newest: (shutil.rmtree(newest), newest.mkdir()),
    "no digests, as after a kill": lambda newest: newest.with_name("40.sha256").unlink(),
    "damaged digests": lambda newest: cut(newest.with_name("40.sha256")),
    "empty digests": lambda newest: newest.with_name("40.sha256").write_text(""),
    "no metrics of it": lambda newest: cut_last_line(newest.parents[1] / "metrics.jsonl"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used(run, whole, damage, caplog):
    newest = run / "checkpoints" / "40"
    damage(newest)
    state, history = train(run)
    np.testing.assert_array_equal(state.params["big"], whole[1].params["big"])
    np.testing.assert_array_equal(state.params["w"], whole[1].params["w"])
    assert [row["step"] for row in history] == list(range(5, 41, 5))
    (line,) = [line for line in caplog.messages if "removed" in line]
    assert re.fullmatch(
        rf"{re.escape(str(newest))}: .*(damaged|missing|no row).*; removed, going on from step 30", line
    )
    caplog.clear()
    again, _ = train(run)
    np.testing.assert_array_equal(again.params["big"], state.params["big"])
    assert "removed" not in caplog.text
    assert sorted(path.name for path in newest.parent.iterdir()) == ["30", "30.sha256", "40", "40.sha256"]


def test_every_file_of_a_checkpoint_counts(run):
    kept = checkpoints.Checkpoints(run / "checkpoints")
    for path in sorted((run / "checkpoints" / "40").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            flip(path)
            assert kept.fault(40) == f"{path.relative_to(run / 'checkpoints')} is damaged"
            path.write_bytes(content)
    assert not kept.fault(40)
    kept.close()


def test_where_none_is_whole_all_are_named_and_left(run):
    for step in (30, 40):
        flip(largest(run / "checkpoints" / str(step)))
    with pytest.raises(
        ValueError, match=r"no checkpoint can be used.*checkpoints/40: .*damaged.*checkpoints/30"
    ) as error:
        train(run)
    assert f"remove {run}, and the same command trains from the start" in str(error.value)
    assert (run / "checkpoints" / "30").is_dir()
    assert (run / "checkpoints" / "40").is_dir()


def test_a_run_of_an_older_version_without_digests_goes_on(run, caplog):
    for path in (run / "checkpoints").glob("*.sha256"):
        path.unlink()
    longer, _ = train(run, num_steps=60)
    np.testing.assert_array_equal(longer.params["w"], train(None, num_steps=60)[0].params["w"])
    assert "removed" not in caplog.text


def test_a_damaged_one_of_an_older_version_is_left_behind(run, whole, caplog):
    for path in (run / "checkpoints").glob("*.sha256"):
        path.unlink()
    largest(run / "checkpoints" / "40" / "default").unlink()
    state, _ = train(run)
    np.testing.assert_array_equal(state.params["w"], whole[1].params["w"])
    assert "checkpoints/40: cannot be read" in caplog.text


def test_digests_are_those_of_sha256sum(run):
    command = ["sha256sum", "--check", "--quiet", "40.sha256"]
    if not shutil.which("sha256sum"):
        pytest.skip("sha256sum is not there")
    assert subprocess.run(command, cwd=run / "checkpoints").returncode == 0


def test_another_dispatch_comes_back_to_the_intervals(tmp_path):
    train(tmp_path, num_steps=15)
    _, history = train(tmp_path, num_steps=40, dispatch=10)
    assert [row["step"] for row in history] == [5, 10, 15, 20, 30, 40]
    assert (tmp_path / "checkpoints" / "30").is_dir()


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 9 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_is_noticed_at_the_start(small_disk):
    never = lambda *_: pytest.fail("trained")
    with pytest.raises(OSError, match=r"checkpoints \(a file of 25 MiB.*No space left on device; free some space"):
        train(small_disk / "run", size=2**20, steps=never)
    assert not list(small_disk.rglob(".probe*"))
    (small_disk / "filled").write_bytes(bytes(6 * 2**20))
    with pytest.raises(OSError, match=r"out \(a file of 4 MiB.*free some space, or choose another folder"):
        record.fill(small_disk / "out" / "cell.json", {}, [0], never)


def test_a_disk_that_fills_leaves_the_checkpoint_before(small_disk, tmp_path):
    """Room for two checkpoints at first; then another process takes it, and later gives it back."""
    folder, size, calls = small_disk / "run", 300_000, []
    whole, _ = train(tmp_path / "whole", size=size)

    def filling(*arguments):
        calls.append(1)
        if len(calls) == 5:
            free = shutil.disk_usage(small_disk).free
            (small_disk / "filled").write_bytes(bytes(max(0, free - 600_000)))
        return STEPS(*arguments)

    with pytest.raises(
        OSError,
        match=r"checkpoints/30 cannot be written \(No space.*the checkpoint of step 20 is whole.*free some space",
    ):
        train(folder, size=size, steps=filling)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir() if "tmp" not in path.name)
    assert kept == ["10", "10.sha256", "20", "20.sha256"]
    with pytest.raises(OSError, match=r"checkpoints \(a file of 4 MiB.*No space left"):
        train(folder, size=size, steps=lambda *_: pytest.fail("trained"))
    (small_disk / "filled").unlink()
    state, history = train(folder, size=size)
    np.testing.assert_array_equal(state.params["big"], whole.params["big"])
    assert [row["step"] for row in history] == list(range(5, 41, 5))


def test_a_result_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "cell.json"
    record.write_json(path, {"a": 1})

    def full(self, text):
        self.touch()
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        OSError, match=r"cell.json cannot be written: No space left on device; free some space"
    ) as error:
        record.write_json(path, {"a": 2})
    assert error.value.errno == 28
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["cell.json"], "no half of a file is left"


def test_a_folder_that_is_read_only_is_noticed_at_the_start(tmp_path, monkeypatch):
    never = lambda *_: pytest.fail("trained")
    if os.geteuid():
        tmp_path.chmod(0o500)
    else:  # root may write anywhere

        def refuse(self, *_, **__):
            raise PermissionError(13, os.strerror(13))

        monkeypatch.setattr(Path, "mkdir", refuse)
    said = r"cannot be written: Permission denied; make it writable, or choose another folder"
    with pytest.raises(PermissionError, match=rf"run {said}"):
        train(tmp_path / "run", steps=never)
    with pytest.raises(PermissionError, match=rf"run {said}"), record.lock(tmp_path / "run"):
        pass
    with pytest.raises(PermissionError, match=rf"out \(a file of 4 MiB, .*\) {said}"):
        record.fill(tmp_path / "out" / "cell.json", {}, [0], never)
    tmp_path.chmod(0o700)


def test_room_is_made_free_again(tmp_path):
    disk.check_room(tmp_path / "new", 5 * 2**20 + 1)
    assert not list((tmp_path / "new").iterdir())


def test_damaged_blocks_of_an_attack_are_made_anew(tmp_path, caplog):
    path, rows = tmp_path / "0-4.npz", slice(0, 4)
    read = partial(distances._read_block, rows=rows)
    block = {"distance": np.arange(4.0), "steps": np.arange(4)}
    assert record.kept(path, read) is None
    assert not caplog.text
    record.write_arrays(path, block)
    np.testing.assert_array_equal(record.kept(path, read)["distance"], block["distance"])
    content = path.read_bytes()
    damages = [cut, flip, lambda path: path.write_bytes(b"")]
    others = [{"distance": np.arange(4.0)}, {"distance": np.arange(3.0), "steps": np.arange(3)}]
    for damage in [*damages, *(lambda path, other=other: record.write_arrays(path, other) for other in others)]:
        path.write_bytes(content)
        damage(path)
        assert record.kept(path, read) is None
        assert re.fullmatch(r".*0-4.npz is damaged \(.*\); it is made anew", caplog.messages[-1])


def test_any_flipped_bit_of_arrays_is_noticed_or_harmless(tmp_path):
    path, arrays = tmp_path / "0-4.npz", {"distance": np.arange(4.0), "steps": np.arange(4)}
    record.write_arrays(path, arrays)
    content = path.read_bytes()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1 << i % 8]) + content[i + 1 :])
        found = record.kept(path, partial(distances._read_block, rows=slice(0, 4)))
        for name, array in (found or {}).items():
            np.testing.assert_array_equal(array, arrays[name])


def test_a_model_that_is_not_what_was_written_is_named(tmp_path):
    path = tmp_path / "seed-0.npz"
    model = zoo.Model(None, {"w": np.ones(3, np.float32)}, {})
    record.write_arrays(path, model.arrays())
    assert zoo._as_written(path, model) is model, "an old one, without facts beside it"
    record.write_json(path.with_suffix(".json"), {"weights": model.weights})
    assert zoo._as_written(path, model) is model
    moved = zoo.Model(None, {"w": np.ones(3, np.float32) * 1.0001}, {})
    with pytest.raises(
        ValueError, match=r"seed-0.npz is damaged .*remove .*seed-0.npz, and the same command makes both"
    ):
        zoo._as_written(path, moved)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(
        ValueError, match=r"seed-0.json is damaged .*remove .*seed-0.npz, and the same command makes both"
    ):
        zoo._as_written(path, model)


def test_a_damaged_figure_is_named(tmp_path):
    path = tmp_path / "figure1.npz"
    path.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"figure1.npz is damaged .*check it out again, or run its experiment"):
        plots.planes(path, {"config": {"extent": 1.0}, "samples": []}, {})
