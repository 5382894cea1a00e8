"""Streams of batches: which records, in which order, on which host, after which interruption."""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments.lab import small_imagenet
from jacreg_jax import datasets, sharding
from jacreg_jax.datasets import epoch_permutation, images, streams
from tests.conftest import skip_or_fail

ROOT = Path(__file__).resolve().parents[1]
SOURCE = [{"image": images.encoded(np.full((4, 4, 1), i, np.uint8)), "label": i} for i in range(23)]


def noisy(data, rng):
    """The grey level of the image, and what was drawn for it."""
    return np.asarray([images.stored(data, channels=1)[0, 0, 0], rng.integers(256)], np.uint8)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def joined(batches, name="label"):
    return np.concatenate([batch[name] for batch in batches])


@pytest.fixture(scope="module")
def imagenet_dir(tmp_path_factory):
    """A folder that holds ImageNet in small."""
    if importlib.util.find_spec("foolbox") is None:
        skip_or_fail("peers", "foolbox is not installed; run `make peers`")
    folder = tmp_path_factory.mktemp("imagenet")
    small_imagenet.prepare(folder)
    return folder


# --- the folder ----------------------------------------------------------------------------------------------------


def test_imagenets_archives_become_the_official_folder(imagenet_dir):
    """Read back by tensorflow-datasets' own entry point: the files of the archives, untouched, with their classes."""
    import tensorflow_datasets as tfds

    expected = {hashlib.sha256(data).digest(): label for label, data in small_imagenet.photographs()}
    decoders = {"image": tfds.decode.SkipDecoding()}
    official = tfds.data_source("imagenet2012", split="train", data_dir=imagenet_dir, decoders=decoders, download=False)
    found = {hashlib.sha256(record["image"]).digest(): record["label"] for record in official}
    assert found == expected
    assert len(official) == 20
    assert official.dataset_info.features["label"].int2str(243).startswith("n02108422")
    ours = streams.open_split("imagenet2012", "train", data_dir=imagenet_dir)
    assert [record["image"] for record in official] == [ours[i]["image"] for i in range(len(ours))]


def test_validation_labels_go_by_the_number_in_the_name(imagenet_dir):
    import tensorflow_datasets as tfds

    lines = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    names = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    source = streams.open_split("imagenet2012", "validation", data_dir=imagenet_dir)
    assert len(source) == 10
    known = {hashlib.sha256(data).digest(): label for label, data in small_imagenet.photographs()}
    for i in range(10):
        number = int(source[i]["file_name"][-13:-5])
        assert names[source[i]["label"]] == lines[number - 1]
        assert source[i]["label"] == known[hashlib.sha256(source[i]["image"]).digest()], "a photograph keeps its class"


def test_slices_of_a_split(imagenet_dir):
    whole = streams.open_split("imagenet2012", "train", data_dir=imagenet_dir)
    for text, part in {"[5:9]": slice(5, 9), "[-3:]": slice(-3, None), "[:25%]": slice(5)}.items():
        source = streams.open_split("imagenet2012", "train" + text, data_dir=imagenet_dir)
        rows = range(len(whole))[part]
        assert len(source) == len(rows)
        assert [source[i]["label"] for i in range(len(source))] == [whole[i]["label"] for i in rows]
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.parametrize(("name", "channels"), [("mnist", 1), ("cifar10", 3)])
def test_the_small_data_sets_stream_too(tfds_dir, name, channels):
    pixels, labels = datasets.load(name, "test[:20]", data_dir=tfds_dir)
    source = streams.open_split(name, "test[:20]", data_dir=tfds_dir)
    with streams.eval_batches(source, partial(images.stored, channels=channels), batch_size=8) as batches:
        found = list(batches)
    np.testing.assert_array_equal(joined(found, "image")[:20], pixels)
    np.testing.assert_array_equal(joined(found)[:20], labels)


# --- which records -------------------------------------------------------------------------------------------------


def test_every_epoch_is_its_own_permutation():
    batches = streams.train_batches(SOURCE, noisy, batch_size=5, seed=3)
    for epoch in range(3):
        found = take(batches, 4)
        np.testing.assert_array_equal(joined(found), epoch_permutation(3, epoch, 23)[:20])
        np.testing.assert_array_equal(joined(found, "image")[:, 0], joined(found))
    assert found[0]["image"].dtype == np.uint8
    assert found[0]["label"].dtype == np.int32


def test_what_is_drawn_depends_on_seed_epoch_and_record_alone():
    def drawn(batch_size, seed, epoch=0):
        batches = streams.train_batches(SOURCE, noisy, batch_size=batch_size, seed=seed)
        per_epoch = 23 // batch_size
        found = take(batches, per_epoch * (epoch + 1))[per_epoch * epoch :]
        return dict(zip(joined(found).tolist(), joined(found, "image")[:, 1].tolist(), strict=True))

    fives, sevens = drawn(5, seed=3), drawn(7, seed=3)
    assert all(fives[row] == sevens[row] for row in fives.keys() & sevens.keys())
    for other in (drawn(5, seed=4), drawn(5, seed=3, epoch=1)):
        same = [fives[row] == other[row] for row in fives.keys() & other.keys()]
        assert sum(same) < len(same) / 2


def test_hosts_read_the_parts_of_the_same_batches():
    """However many there are; so a run goes on with another number of them."""
    whole = take(streams.train_batches(SOURCE, noisy, batch_size=6, seed=1), 7)
    for hosts in (2, 3):
        parts = [
            take(streams.train_batches(SOURCE, noisy, batch_size=6, seed=1, shard=(h, hosts)), 7) for h in range(hosts)
        ]
        for t, batch in enumerate(whole):
            for name in batch:
                np.testing.assert_array_equal(np.concatenate([part[t][name] for part in parts]), batch[name])


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_counts_every_record_once(hosts):
    parts = [list(streams.eval_batches(SOURCE, noisy, batch_size=8, shard=(h, hosts))) for h in range(hosts)]
    assert {len(part) for part in parts} == {3}
    assert {batch["image"].shape for part in parts for batch in part} == {(8 // hosts, 2)}
    labels, weights = (np.concatenate([joined(part, name) for part in parts]) for name in ("label", "weight"))
    assert sorted(labels[weights == 1].tolist()) == list(range(23))
    assert weights.sum() == 23
    assert weights.dtype == np.float32


def test_one_pass_ends_and_stays_ended():
    batches = streams.eval_batches(SOURCE[:4], noisy, batch_size=2)
    assert len(list(batches)) == 2
    assert list(batches) == []
    batches.set_state(batches.get_state() | {"next_batch": 1})
    assert joined(batches).tolist() == [2, 3]


# --- position ------------------------------------------------------------------------------------------------------


def test_a_stream_goes_on_from_its_position():
    """Through json, on another number of hosts."""
    whole = take(streams.train_batches(SOURCE, noisy, batch_size=4, seed=1), 12)
    first = streams.train_batches(SOURCE, noisy, batch_size=4, seed=1)
    take(first, 7)
    state = json.loads(json.dumps(first.get_state()))
    for host in range(2):
        rest = streams.train_batches(SOURCE, noisy, batch_size=4, seed=1, shard=(host, 2))
        rest.set_state(state)
        for batch, expected in zip(take(rest, 5), whole[7:], strict=True):
            np.testing.assert_array_equal(batch["image"], expected["image"][2 * host : 2 * host + 2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2}, "seed 2, here 1"),
        ({"batch_size": 8}, "batch_size 8, here 4"),
        ({"samples": 9}, "samples 9, here 23"),
        ({"next_batch": -1}, "next_batch must be an integer of at least 0"),
        ({"other": 1}, "state must be one that get_state gave"),
    ],
)
def test_the_position_of_another_stream_is_refused(change, words):
    batches = streams.train_batches(SOURCE, noisy, batch_size=4, seed=1)
    with pytest.raises(ValueError, match=words):
        batches.set_state(batches.get_state() | change)


KILLED = """
import hashlib, json, multiprocessing, sys
from tests.test_streams import SOURCE, noisy
from jacreg_jax.datasets import streams

if __name__ == "__main__":
    batches = streams.train_batches(SOURCE, noisy, batch_size=4, seed=5, num_workers=1)
    with open(sys.argv[1], "a", buffering=1) as file:
        while True:
            digest = hashlib.sha256(next(batches)["image"].tobytes()).hexdigest()
            workers = [child.pid for child in multiprocessing.active_children()]
            file.write(json.dumps({"state": batches.get_state(), "digest": digest, "workers": workers}) + "\\n")
"""


def test_after_sigkill_the_next_batch_is_the_next(tmp_path):
    """A process with a worker is killed while it reads; the last line that it wrote holds its position."""
    script, log = tmp_path / "killed.py", tmp_path / "log.jsonl"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), str(log)], env=environment, cwd=ROOT)
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 20, process)
    process.kill()
    process.wait()
    rows = [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rest = streams.train_batches(SOURCE, noisy, batch_size=4, seed=5)
    digest = lambda batch: hashlib.sha256(batch["image"].tobytes()).hexdigest()
    whole = [digest(batch) for batch in take(rest, len(rows) + 3)]
    assert [row["digest"] for row in rows] == whole[: len(rows)]
    rest.set_state(rows[-1]["state"])
    assert [digest(batch) for batch in take(rest, 3)] == whole[len(rows) :]
    assert rows[-1]["workers"]
    wait_for(lambda: not any(map(is_alive, rows[-1]["workers"])))


def wait_for(condition, process=None, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "the process ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_alive(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# --- faults --------------------------------------------------------------------------------------------------------


def test_workers_hand_on_what_went_wrong_and_their_own_end():
    """What a worker reads is what is read without one; a damaged record and a worker that dies are errors at once."""
    source = [*SOURCE[:9], {"image": SOURCE[0]["image"][:40], "label": 9}]
    expected = streams.eval_batches(source, noisy, batch_size=2)
    with streams.eval_batches(source, noisy, batch_size=2, num_workers=1) as batches:
        for batch in take(batches, 4):
            np.testing.assert_array_equal(batch["image"], next(expected)["image"])
        with pytest.raises(streams.DamagedRecordError, match=r"record 9 of the source, a list.*mend that record"):
            next(batches)
        assert batches.get_state()["next_batch"] == 4
        batches.set_state(batches.get_state() | {"next_batch": 0})
        next(batches)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"worker process of the input died at batch \d.*exit code -9"):
            take(batches, 4)
    assert not multiprocessing.active_children()


def test_workers_leave_signals_to_the_process_that_trains():
    def handled(number):
        return {signal.SIG_IGN} == {signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        streams._begin_worker(0, 1)
        assert handled(0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_damaged_file_names_the_record_and_what_to_do(imagenet_dir, tmp_path):
    shutil.copytree(imagenet_dir / "imagenet2012", tmp_path / "imagenet2012")
    file = next((tmp_path / "imagenet2012").rglob("*train*array_record*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    source = streams.open_split("imagenet2012", "train", data_dir=tmp_path)
    with pytest.raises(
        streams.DamagedRecordError, match=rf"record \d+ of train in {tmp_path}.*prepare the data set anew"
    ):
        list(streams.eval_batches(source, images.centered, batch_size=20))


def test_a_missing_folder_names_the_command(tmp_path):
    words = r"no imagenet2012 in the data folder .*datasets.prepare\('imagenet2012'"
    with pytest.raises(datasets.DatasetNotFoundError, match=words):
        streams.open_split("imagenet2012", "train", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ILSVRC2012_img_train.tar and .*manual_dir=FOLDER"):
        datasets.prepare("imagenet2012", tmp_path, tmp_path)


def test_an_unknown_split_is_named_beside_those_there_are(imagenet_dir):
    for split in ("test", "train[1]", "training"):
        with pytest.raises(ValueError, match="split must be one of train, validation"):
            streams.open_split("imagenet2012", split, data_dir=imagenet_dir)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 24}, "batch_size must be at most the 23 records"),
        ({"batch_size": 4, "shard": (0, 3)}, "multiple of the 3 hosts"),
        ({"batch_size": 4, "shard": (2, 2)}, r"shard\[0\] must be below"),
        ({"batch_size": 4, "shard": 2}, "shard must be"),
        ({"batch_size": 4, "num_workers": -1}, "num_workers must be"),
    ],
)
def test_wrong_sizes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        streams.train_batches(SOURCE, noisy, **options)


def test_wrong_sources_and_transforms_are_refused():
    with pytest.raises(ValueError, match="at least one record"):
        streams.eval_batches([], noisy, batch_size=1)
    with pytest.raises(TypeError, match="source must have a length"):
        streams.eval_batches(iter(SOURCE), noisy, batch_size=1)
    with pytest.raises(TypeError, match="transform"):
        streams.eval_batches(SOURCE, lambda image: image, batch_size=1)


# --- to the devices ------------------------------------------------------------------------------------------------


def test_batches_lie_on_a_mesh_in_order_and_position():
    mesh = sharding.data_mesh(jax.devices())
    placement = NamedSharding(mesh, PartitionSpec("data"))
    as_floats = jax.jit(lambda batch: batch | {"image": datasets.from_uint8(batch["image"])})
    expected = take(streams.train_batches(SOURCE, noisy, batch_size=8, seed=1), 9)
    batches = streams.train_batches(SOURCE, noisy, batch_size=8, seed=1)
    with streams.to_devices(batches, placement, ahead=3, convert=as_floats) as feed:
        assert feed.get_state()["next_batch"] == 0
        for t in range(4):
            batch = next(feed)
            assert batch["image"].sharding.is_equivalent_to(placement, 2)
            np.testing.assert_allclose(batch["image"], expected[t]["image"] / 255, rtol=2e-7)
            assert feed.get_state()["next_batch"] == t + 1
        state = feed.get_state()
        take(feed, 2)
        feed.set_state(state)
        np.testing.assert_array_equal(next(feed)["label"], expected[4]["label"])
    assert batches.get_state()["next_batch"] == 5
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_the_end_and_errors_come_through_the_feed():
    damaged = [*SOURCE[:4], {"image": b"", "label": 4}]
    with streams.to_devices(streams.eval_batches(damaged, noisy, batch_size=2), jax.devices()[1]) as feed:
        assert next(feed)["image"].devices() == {jax.devices()[1]}
        next(feed)
        with pytest.raises(streams.DamagedRecordError, match="record 4"):
            next(feed)
        assert feed.get_state()["next_batch"] == 2
    with streams.to_devices([np.zeros((2, 3))] * 2) as feed:
        assert len(list(feed)) == 2
        assert list(feed) == []
        with pytest.raises(TypeError, match="no position"):
            feed.set_state({})


def test_waiting_is_measured():
    """A slow source is waited for, a slow step is not."""

    def slowly(pause):
        for _ in range(5):
            time.sleep(pause)
            yield {"image": np.zeros((10, 2))}

    with streams.to_devices(slowly(0.05)) as feed:
        list(feed)
        rates = feed.rates()
        assert rates["images"] == 50
        assert rates["waiting"] > 0.6
        assert 0 < rates["images_per_second"] < 210
        assert feed.rates()["images"] == 0
    with streams.to_devices(slowly(0.0)) as feed:
        for _ in feed:
            time.sleep(0.05)
        assert feed.rates()["waiting"] < 0.4
