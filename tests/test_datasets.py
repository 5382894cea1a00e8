import bz2
import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import struct
import subprocess
import sys
import tarfile
import threading
import types

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jacreg_jax.datasets import DatasetNotFoundError, epoch_permutation, few_shot, load, prepare

USPS_COUNTS = {
    "train": [1194, 1005, 731, 658, 652, 556, 664, 645, 542, 644],
    "test": [359, 264, 198, 166, 200, 160, 170, 147, 166, 177],
}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Decoded arrays are cached in a folder of this session, never in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_split_in_two():
    parts = {split: load("digits", split) for split in ("train", "test")}
    assert parts["train"][0].shape == (1297, 8, 8, 1)
    assert parts["test"][0].shape == (500, 8, 8, 1)
    for images, labels in parts.values():
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(parts["test"][1]), np.full(10, 50))

    def rows(images, labels):
        return sorted(map(tuple, np.column_stack([labels, images.reshape(len(labels), 64)]).tolist()))

    original = load_digits()
    levels = np.round(np.arange(17) * 255 / 16)[original.images.astype(int)]
    both = [np.concatenate([parts["train"][i], parts["test"][i]]) for i in (0, 1)]
    assert rows(*both) == rows(levels, original.target)


def test_the_split_of_the_digits_is_fixed():
    """A changed split would silently change every published figure."""
    _, labels = load("digits", "test")
    assert hashlib.md5(labels.tobytes()).hexdigest() == "facbe5e749abe5b1c4bfbfea579b8eb5"


@pytest.mark.parametrize(
    ("split", "python"),
    [
        ("train[:100]", slice(100)),
        ("train[-10:]", slice(-10, None)),
        ("train[5:7]", slice(5, 7)),
        ("train[:10%]", slice(130)),
        ("train[50%:]", slice(648, None)),
        ("train[:]", slice(None)),
    ],
)
def test_slices(split, python):
    images, labels = load("digits", split)
    whole_images, whole_labels = load("digits", "train")
    np.testing.assert_array_equal(images, whole_images[python])
    np.testing.assert_array_equal(labels, whole_labels[python])


# --- the prepared datasets -----------------------------------------------------------------------------------------


def test_mnist(tfds_dir):
    images, labels = load("mnist", "train", data_dir=tfds_dir)
    assert images.shape == (60_000, 28, 28, 1)
    np.testing.assert_array_equal(labels[:10], [4, 1, 0, 7, 8, 1, 2, 7, 1, 6])  # the order of tensorflow-datasets
    np.testing.assert_array_equal(
        np.bincount(labels), [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    )  # as LeCun's
    assert round(float(images.mean()) / 255, 4) == 0.1307
    assert round(float(images.std()) / 255, 4) == 0.3081


@pytest.mark.parametrize("split", ["train", "test"])
def test_usps(tfds_dir, split):
    images, labels = load("usps", split, data_dir=tfds_dir)
    assert images.shape == (sum(USPS_COUNTS[split]), 16, 16, 1)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(labels), USPS_COUNTS[split])
    assert (images.min(), images.max()) == (0, 255)


def test_cifar10(tfds_dir):
    images, labels = load("cifar10", "train[:500]", data_dir=tfds_dir)
    assert images.shape == (500, 32, 32, 3)
    assert set(labels) == set(range(10))
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.491, 0.482, 0.447], atol=0.02)
    images, labels = load("cifar10", "test[:20]", data_dir=tfds_dir)
    assert images.shape == (20, 32, 32, 3)
    assert labels.shape == (20,)


def test_a_part_of_a_split_equals_the_official_reader(tfds_dir):
    import tensorflow_datasets as tfds

    source = tfds.data_source("mnist", split="test[10:30]", data_dir=tfds_dir, download=False)
    examples = source.__getitems__(range(20))
    images, labels = load("mnist", "test[10:30]", data_dir=tfds_dir)
    np.testing.assert_array_equal(images, [e["image"] for e in examples])
    np.testing.assert_array_equal(labels, [e["label"] for e in examples])


def test_the_environment_names_the_folder(tfds_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    named, found = load("usps", "test[:5]", data_dir=tfds_dir), load("usps", "test[:5]")
    np.testing.assert_array_equal(named[0], found[0])


# --- bad input -----------------------------------------------------------------------------------------------------


def test_unknown_names_and_splits():
    with pytest.raises(ValueError, match=r"name must be one of digits, mnist, usps, cifar10, got 'svhn'"):
        load("svhn", "train")
    with pytest.raises(ValueError, match=r"name must be one of mnist, usps, cifar10, imagenet2012, got 'digits'"):
        prepare("digits")
    for split in ("validation", "train[", "train[1:2:3]", "train+test", "train[a:]", ""):
        with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
            load("digits", split)


def test_a_named_folder_without_the_dataset_is_an_error(tmp_path, monkeypatch):
    """Nothing is downloaded into a folder that the user named: it may be misspelt."""
    with pytest.raises(DatasetNotFoundError) as caught:
        load("mnist", "train", data_dir=tmp_path)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FileNotFoundError)
    message = str(caught.value)
    assert str(tmp_path / "mnist" / "3.0.1") in message
    assert f"jacreg_jax.datasets.prepare('mnist', {str(tmp_path)!r})" in message
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere"):
        load("usps", "train")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn.datasets"), ("mnist", "tensorflow_datasets")])
def test_a_missing_extra_is_named(name, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{module}: pip install "jacreg-jax\[datasets\]"'):
        load(name, "train", data_dir=tmp_path)


def test_imports_are_light_and_tensorflow_is_never_among_them(tfds_dir):
    program = """
import sys
from jacreg_jax import datasets
heavy = {"tensorflow_datasets", "sklearn", "PIL", "array_record"} & set(sys.modules)
assert not heavy, heavy
datasets.load("usps", "test[:10]", data_dir=sys.argv[1])
datasets.load("digits", "test")
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tfds_dir)], check=True)


# --- prepare, from small files in the original formats --------------------------------------------------------------


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, rng, sizes):
    data = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = rng.integers(0, 256, (sizes[split], 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, sizes[split], dtype=np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
        data[split] = images[..., None], labels
    return data


def write_cifar10(folder, rng, sizes):
    data = {}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
            images = rng.integers(0, 256, (sizes[split], 32, 32, 3), dtype=np.uint8)
            labels = rng.integers(0, 10, sizes[split], dtype=np.uint8)
            records = np.column_stack([labels, images.transpose(0, 3, 1, 2).reshape(sizes[split], -1)])
            for name, part in zip(names, np.array_split(records, len(names)), strict=True):
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
                member.size = part.size
                archive.addfile(member, io.BytesIO(part.tobytes()))
            data[split] = images, labels
    return data


def write_usps(folder, rng, sizes):
    data = {}
    for split, name in (("train", "usps.bz2"), ("test", "usps.t.bz2")):
        pixels = np.round(rng.uniform(-1, 1, (sizes[split], 256)), 6) * (rng.random((sizes[split], 256)) < 0.8)
        labels = rng.integers(0, 10, sizes[split])
        lines = [
            f"{label + 1} " + " ".join(f"{j + 1}:{value:.6f}" for j, value in enumerate(row) if value)
            for label, row in zip(labels, pixels, strict=True)
        ]
        (folder / name).write_bytes(bz2.compress("\n".join(lines).encode() + b"\n"))
        images = np.round(127.5 + 127.5 * pixels).astype(np.uint8)
        data[split] = images.reshape(-1, 16, 16, 1), labels
    return data


WRITE = {"mnist": write_mnist, "cifar10": write_cifar10, "usps": write_usps}


def original_files(name, tmp_path, monkeypatch, sizes):
    """A folder of small files in the original format, their content, and the builder told their digests."""
    from jacreg_jax.datasets.builders import BUILDERS

    folder = tmp_path / "original"
    folder.mkdir()
    data = WRITE[name](folder, np.random.default_rng(0), sizes)
    digests = {f: "sha256:" + hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in BUILDERS[name].DIGESTS}
    monkeypatch.setattr(BUILDERS[name], "DIGESTS", digests)
    return types.SimpleNamespace(folder=folder, data=data, builder=BUILDERS[name])


def as_rows(images, labels):
    """Sorted (label, pixels): tensorflow-datasets shuffles what it writes."""
    return sorted((int(label), image.tobytes()) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize("name", WRITE)
def test_prepare_from_original_files(name, tmp_path, monkeypatch):
    original = original_files(name, tmp_path, monkeypatch, {"train": 25, "test": 8})
    folder = prepare(name, tmp_path / "data", original.folder)
    assert folder == tmp_path / "data" / name / str(original.builder.VERSION)
    for split in ("train", "test"):
        images, labels = load(name, split, data_dir=tmp_path / "data")
        assert as_rows(images, labels) == as_rows(*original.data[split])
    assert prepare(name, tmp_path / "data") == folder  # there is nothing left to do


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_official_reader_reads_what_prepare_wrote(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    original_files(name, tmp_path, monkeypatch, {"train": 5, "test": 12})
    prepare(name, tmp_path / "data", tmp_path / "original")
    source = tfds.data_source(name, split="test", data_dir=tmp_path / "data", download=False)
    images, labels = load(name, "test", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(images, [e["image"] for e in source])
    np.testing.assert_array_equal(labels, [e["label"] for e in source])
    if name == "cifar10":
        assert sorted(e["id"].decode() for e in source) == [f"test_{i:05d}" for i in range(12)]
        official = tfds.builder("cifar10", data_dir=tmp_path / "data")
        assert official.info.features["label"].names[:2] == ["airplane", "automobile"]


def test_our_order_is_the_official_one_and_the_test_digits_are_lecuns(tfds_dir, tmp_path, monkeypatch):
    """Number the images, prepare them, see where each went, undo that for MNIST: LeCun's files come out to the byte."""
    original = original_files("mnist", tmp_path, monkeypatch, {"train": 1, "test": 10_000})
    prepare("mnist", tmp_path / "data", original.folder)
    position = {image.tobytes(): i for i, image in enumerate(original.data["test"][0])}
    shuffled, _ = load("mnist", "test", data_dir=tmp_path / "data")
    order = [position[image.tobytes()] for image in shuffled]

    images, labels = load("mnist", "test", data_dir=tfds_dir)
    lecun = np.argsort(order)
    assert hashlib.md5(idx(images[lecun, :, :, 0])).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    assert hashlib.md5(idx(labels[lecun].astype(np.uint8))).hexdigest() == "27ae3e4e09519cfbb04c329615203637"


def test_a_file_that_is_not_the_original_is_refused(tmp_path, monkeypatch):
    original = original_files("usps", tmp_path, monkeypatch, {"train": 3, "test": 3})
    path = original.folder / "usps.t.bz2"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"usps.t.bz2 is not the original usps.t.bz2: expected sha256 .*Delete it"):
        prepare("usps", tmp_path / "data", original.folder)
    with pytest.raises(DatasetNotFoundError):  # and nothing half made is left
        load("usps", "test", data_dir=tmp_path / "data")


def test_tfrecord_folders_are_refused_with_the_way_out(tmp_path, monkeypatch):
    """Official builders write tfrecord by default, which only TensorFlow reads."""
    original = original_files("mnist", tmp_path, monkeypatch, {"train": 2, "test": 2})
    folder = prepare("mnist", tmp_path / "data", original.folder)
    for file in folder.glob("*array_record*"):
        file.rename(folder / file.name.replace("array_record", "tfrecord"))
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"holds tfrecord files; load reads array_record.*prepare\('mnist'"):
        load("mnist", "train", data_dir=tmp_path / "data")


@contextlib.contextmanager
def serving(folder):
    """The address of an HTTP server on this machine that hands out the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def new_user(tmp_path, monkeypatch):
    """Nothing set, an empty home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return tmp_path


def test_the_default_folder_is_filled_by_download(new_user, monkeypatch):
    original = original_files("usps", new_user, monkeypatch, {"train": 6, "test": 4})
    with serving(original.folder) as address:
        monkeypatch.setattr(original.builder, "URL", address)
        images, labels = load("usps", "train")
    assert as_rows(images, labels) == as_rows(*original.data["train"])
    assert (new_user / "tensorflow_datasets" / "usps" / "1.0.0").is_dir()


def test_a_failed_download_says_what_to_do(new_user, monkeypatch):
    original = original_files("usps", new_user, monkeypatch, {"train": 6, "test": 4})
    (original.folder / "usps.t.bz2").unlink()
    with serving(original.folder) as address:
        monkeypatch.setattr(original.builder, "URL", address)
        with pytest.raises(ConnectionError, match=r"usps\.t\.bz2 \(.*404.*usps\.bz2, usps\.t\.bz2 .*manual_dir"):
            load("usps", "train")


# --- the cache -----------------------------------------------------------------------------------------------------


def test_a_changed_dataset_is_not_served_from_the_cache(tmp_path, monkeypatch):
    import shutil

    original = original_files("usps", tmp_path, monkeypatch, {"train": 4, "test": 4})
    folder = prepare("usps", tmp_path / "data", original.folder)
    first = load("usps", "test", data_dir=tmp_path / "data")
    for _ in range(2):  # decoded, then cached
        np.testing.assert_array_equal(load("usps", "test", data_dir=tmp_path / "data")[0], first[0])
    shutil.rmtree(folder)
    shutil.rmtree(original.folder)
    changed = original_files("usps", tmp_path, monkeypatch, {"train": 4, "test": 7})
    prepare("usps", tmp_path / "data", changed.folder)
    images, labels = load("usps", "test", data_dir=tmp_path / "data")
    assert as_rows(images, labels) == as_rows(*changed.data["test"])


def test_whole_splits_are_cached_and_parts_cut_from_them(tmp_path, monkeypatch):
    from jacreg_jax.datasets import loading

    original = original_files("usps", tmp_path, monkeypatch, {"train": 9, "test": 2})
    prepare("usps", tmp_path / "data", original.folder)
    part = load("usps", "train[2:5]", data_dir=tmp_path / "data")
    images, labels = load("usps", "train", data_dir=tmp_path / "data")
    monkeypatch.setattr(loading, "_decode", None)  # from here on decoding would raise
    again, labels_again = load("usps", "train[2:5]", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(again, part[0])
    np.testing.assert_array_equal(again, images[2:5])
    np.testing.assert_array_equal(labels_again, labels[2:5])


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    original = original_files("usps", tmp_path, monkeypatch, {"train": 3, "test": 3})
    prepare("usps", tmp_path / "data", original.folder)
    (tmp_path / "file").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load("usps", "train", data_dir=tmp_path / "data")[1]) == 3


# --- subsets and orders --------------------------------------------------------------------------------------------


def test_few_shot_is_stratified_deterministic_and_nested():
    labels = np.random.default_rng(0).integers(0, 10, 500)
    three, ten = few_shot(labels, 3, seed=1), few_shot(labels, 10, seed=1)
    np.testing.assert_array_equal(np.bincount(labels[three]), np.full(10, 3))
    np.testing.assert_array_equal(three, np.sort(three))
    assert len(set(ten)) == 100
    assert set(three) <= set(ten)
    np.testing.assert_array_equal(ten, few_shot(labels, 10, seed=1))
    assert set(ten) != set(few_shot(labels, 10, seed=2))


def test_few_shot_picks_every_sample_equally_often():
    labels = np.repeat([0, 1], 10)
    times = np.bincount(np.concatenate([few_shot(labels, 2, seed) for seed in range(2000)]), minlength=20)
    expected, sigma = 2000 * 0.2, np.sqrt(2000 * 0.2 * 0.8)
    assert np.abs(times - expected).max() < 4.5 * sigma


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        ([0, 0, 0, 1], 2, "class 1 has only 1"),
        ([0, 1], 0, "at least 1"),
        ([], 1, "non-empty"),
        ([[0, 1]], 1, "vector"),
    ],
)
def test_few_shot_refuses(labels, k, message):
    with pytest.raises(ValueError, match=message):
        few_shot(labels, k, seed=0)


def test_epoch_permutation():
    order = epoch_permutation(0, 3, 100)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    np.testing.assert_array_equal(order, epoch_permutation(0, 3, 100))
    assert len({tuple(epoch_permutation(s, e, 100)) for s in range(3) for e in range(3)}) == 9
    with pytest.raises(ValueError, match="epoch must be an integer of at least 0, got -1"):
        epoch_permutation(0, -1, 10)
