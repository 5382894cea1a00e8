"""`load` gives a split as two arrays; `prepare` makes the folder that it reads, by download or from original files."""

import contextlib
import hashlib
import importlib
import io
import os
import re
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jacreg_jax.datasets.sampling import few_shot

DATASETS = ("digits", "mnist", "usps", "cifar10")


class DatasetNotFoundError(FileNotFoundError, ValueError):
    """The data folder that the user named does not hold the dataset."""


def load(name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split, as stored: bytes, native size, in the order of the files.

    | name    | images          | train / test     | source                                               |
    |---------|-----------------|------------------|------------------------------------------------------|
    | digits  | [N, 8, 8, 1]    | 1,297 / 500      | ships inside scikit-learn, no download               |
    | mnist   | [N, 28, 28, 1]  | 60,000 / 10,000  | tensorflow-datasets folder `mnist/3.0.1`             |
    | usps    | [N, 16, 16, 1]  | 7,291 / 2,007    | folder `usps/1.0.0`, made by `prepare`               |
    | cifar10 | [N, 32, 32, 3]  | 50,000 / 10,000  | tensorflow-datasets folder `cifar10/3.0.2`           |

    The folders are looked for in data_dir, else in the environment variable TFDS_DATA_DIR, else in
    ~/tensorflow_datasets, the only one into which a missing dataset is downloaded. A split once decoded is kept in
    the user's cache folder ($XDG_CACHE_HOME/jacreg_jax or ~/.cache/jacreg_jax), keyed by the files it came from.

    scikit-learn's digits know no split: the test set is 50 fixed random images of each class, train the rest. Their
    17 grey levels are spread over 0 ... 255. To feed digits or USPS to an MNIST model see `resize_bilinear`.

    Args:
        name: "digits", "mnist", "usps" or "cifar10".
        split: "train" or "test", or a slice of one: "train[:1000]", "test[10%:]".
        data_dir: folder of prepared datasets; not used by digits.

    Returns:
        (images, labels): uint8 [N, H, W, C] and int32 [N].

    Raises:
        ValueError: unknown name or split, or data in another format than array_record.
        DatasetNotFoundError: data_dir or TFDS_DATA_DIR lacks the dataset. It is a ValueError and a FileNotFoundError.
        ImportError: the extra `datasets` is not installed.

    Example:
        >>> images, labels = load("digits", "test")
        >>> images.shape, images.dtype
        ((500, 8, 8, 1), dtype('uint8'))
    """
    _check_name(name, DATASETS)
    split, start, stop = _parse_split(split)
    if name == "digits":
        images, labels = _digits(split)
        part = _range(start, stop, len(labels))
        return images[part.start : part.stop], labels[part.start : part.stop]
    return _read(_open(name, data_dir), split, start, stop)


def prepare(
    name: str, data_dir: str | os.PathLike[str] | None = None, manual_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Download a dataset, or take its original files from manual_dir, and write the folder that `load` reads.

    Needs no TensorFlow. Does nothing where the folder exists. Digests of the original files are checked, but for
    ImageNet, which is only written, by hours of copying, and read by `streams`.

    Args:
        name: "mnist", "usps", "cifar10" or "imagenet2012".
        data_dir: where to write; None: TFDS_DATA_DIR, else ~/tensorflow_datasets.
        manual_dir: folder with the original files under their original names (train-images-idx3-ubyte.gz ...,
            usps.bz2 and usps.t.bz2, cifar-10-binary.tar.gz). What it lacks is downloaded. For ImageNet, which cannot
            be: that of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar; None: `<data_dir>/downloads/manual`.

    Returns:
        The folder written, `<data_dir>/<name>/<version>`.

    Raises:
        ValueError: unknown name, or a file that is not the original one.
        ConnectionError: a file could not be downloaded; tried for some minutes.
        FileNotFoundError: neither archive of ImageNet is there.
        ImportError: the extra `datasets` is not installed.

    Example:
        >>> folder = prepare("mnist", "~/tensorflow_datasets")  # doctest: +SKIP
    """
    _check_name(name, (*DATASETS[1:], "imagenet2012"))
    folder, _ = _data_folder(data_dir)
    builder = _extra("jacreg_jax.datasets.builders").BUILDERS[name](data_dir=folder, file_format="array_record")
    builder.manual_dir = manual_dir and Path(manual_dir).expanduser()
    builder.download_and_prepare()
    return Path(builder.data_dir)


def _check_name(name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")


def _extra(module: str, extra: str = "datasets") -> Any:
    """Import a module that comes with, or stands on, an extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'jacreg_jax.datasets needs {error.name or module}: pip install "jacreg-jax[{extra}]"'
        ) from error


def _data_folder(data_dir: str | os.PathLike[str] | None) -> tuple[Path, bool]:
    """Folder to look into, and whether the user named it."""
    named = data_dir or os.environ.get("TFDS_DATA_DIR")
    return Path(named or "~/tensorflow_datasets").expanduser(), bool(named)


def _parse_split(split: str) -> tuple[str, str | None, str | None]:
    match = re.fullmatch(r"(train|test)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split) if isinstance(split, str) else None
    if not match:
        raise ValueError(f"split must be 'train' or 'test', or a slice such as 'train[:1000]', got {split!r}")
    name, start, stop = match.groups()
    return name, start, stop


def _range(start: str | None, stop: str | None, n: int) -> range:
    """Indices of a slice with bounds like "10", "-10" or "10%", by Python's rules."""

    def bound(text: str | None) -> int | None:
        if not text:
            return None
        return round(n * int(text[:-1]) / 100) if text.endswith("%") else int(text)

    return range(n)[bound(start) : bound(stop)]


def _digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    digits = _extra("sklearn.datasets").load_digits()
    test = np.isin(np.arange(len(digits.target)), few_shot(digits.target, 50, seed=0))
    chosen = test if split == "test" else ~test
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[..., None]
    return images[chosen], digits.target[chosen].astype(np.int32)


def _open(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """The TFDS builder over the prepared folder; prepares it first if it is missing and the user named no folder."""
    folder, named_by_user = _data_folder(data_dir)
    tfds = _extra("tensorflow_datasets")
    version = _extra("jacreg_jax.datasets.builders").BUILDERS[name].VERSION
    expected = folder / name / str(version)
    if not (expected / "dataset_info.json").exists():
        if named_by_user:
            raise DatasetNotFoundError(
                f"no {name} in the data folder {folder}: expected a prepared dataset in {expected}. Make it with "
                f"jacreg_jax.datasets.prepare({name!r}, {str(folder)!r}), or name another folder in data_dir or "
                "TFDS_DATA_DIR"
            )
        prepare(name, folder)
    return tfds.builder_from_directory(expected)


def _read(builder: Any, split: str, start: str | None, stop: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Part of a split: cut from the cached arrays where there are any, else decoded. A whole split is then cached."""
    info = builder.info.splits[split]
    part = _range(start, stop, info.num_examples)
    cache = _cache_file(builder.info, split)
    if cache.exists():
        try:
            with np.load(cache) as arrays:
                return arrays["images"][part.start : part.stop], arrays["labels"][part.start : part.stop]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            cache.unlink(missing_ok=True)  # damaged: a miss
    images, labels = _decode(builder, split, part)
    if len(part) == info.num_examples:
        _save(cache, images, labels)
    return images, labels


def _decode(builder: Any, split: str, part: range) -> tuple[np.ndarray, np.ndarray]:
    tfds, image_module = _extra("tensorflow_datasets"), _extra("PIL.Image")
    try:
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.data_dir} holds {builder.info.file_format.value} files; load reads array_record. Prepare it "
            f"into another folder: jacreg_jax.datasets.prepare({builder.name!r}, data_dir)"
        ) from error
    images = np.empty((len(part), *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(len(part), np.int32)
    # In bulk and by pillow alone: half the time of the decoding inside tfds.
    for i, record in enumerate(source.__getitems__(part)):
        images[i] = np.asarray(image_module.open(io.BytesIO(record["image"]))).reshape(images.shape[1:])
        labels[i] = record["label"]
    return images, labels


def _cache_file(info: Any, split: str) -> Path:
    """Where the decoded split is kept. New, moved or changed files get a new name."""
    files = [Path(path).resolve() for path in info.splits[split].filepaths]
    stamp = repr([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files])
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    return root / "jacreg_jax" / f"{info.name}-{info.version}-{split}-{digest}.npz"


def _save(cache: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write the cache in one rename, so that no reader meets half a file. Where it cannot be written, go without."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            np.savez(Path(scratch) / cache.name, images=images, labels=labels)
            (Path(scratch) / cache.name).replace(cache)
