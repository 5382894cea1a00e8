"""Records of a prepared folder one by one, still encoded, and what a batch holds of one: for `streams`."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from jacreg_jax.datasets.loading import DatasetNotFoundError, _data_folder, _extra, _range

Transform: TypeAlias = Callable[[bytes, np.random.Generator], np.ndarray]


class DamagedRecordError(ValueError):
    """A record of a source cannot be read, or its image cannot be decoded."""


@runtime_checkable
class Source(Protocol):
    """Records by number: {"image": encoded bytes or an array, "label": an integer}. A list of such dicts is one."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, row: Any) -> Any:
        """Record number `row`."""


@dataclasses.dataclass(frozen=True)
class Records:
    """Part of a split of a prepared tensorflow-datasets folder; it pickles as its address.

    Args:
        folder: `<data_dir>/<name>/<version>`, of array_record files.
        split: its name.
        first: number of the first record.
        count: of records.
    """

    folder: Path
    split: str
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Record number `row`, its image as the bytes of the file that was stored."""
        return _opened(self.folder, self.split)[self.first + range(self.count)[row]]

    def __str__(self) -> str:
        return f"{self.split} in {self.folder}"


def open_split(name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None) -> Records:
    """The records of one split of a prepared data set, read when they are asked for.

    Any tensorflow-datasets folder of array_record files with the features `image` and `label`; the newest version
    is taken. Nothing is downloaded.

    Args:
        name: of the folder, such as "imagenet2012", "cifar10", "mnist".
        split: as the folder has it, such as "train", "validation", "test", or a slice, "train[:1000]", "test[10%:]".
        data_dir: where the folder lies; None: TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        A source for `streams.train_batches` and `streams.eval_batches`.

    Raises:
        DatasetNotFoundError: there is no such folder. It is a ValueError and a FileNotFoundError.
        ValueError: no such split, or files of another format than array_record.
        ImportError: the extra `datasets` is not installed.

    Example:
        >>> source = open_split("imagenet2012", "validation")  # doctest: +SKIP
        >>> len(source)  # doctest: +SKIP
        50000
    """
    for argument, value in (("name", name), ("split", split)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{argument} must be a name, got {value!r}")
    folder = _newest(name, _data_folder(data_dir)[0])
    info = _builder(folder).info
    match = re.fullmatch(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?", split)
    if not match or match[1] not in info.splits:
        known = ", ".join(info.splits) or "none"
        raise ValueError(f"split must be one of {known}, or a slice such as 'train[:1000]', got {split!r}")
    _opened(folder, match[1])  # a folder of another format is refused here, not in a worker
    part = _range(match[2], match[3], info.splits[match[1]].num_examples)
    return Records(folder, match[1], part.start, len(part))


def sample(source: Source, transform: Transform, row: int, rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
    """The transformed image of a record, and its label.

    Raises:
        DamagedRecordError: it cannot be read or decoded; with its number and what to do.
    """
    try:
        record = source[row]
        return np.ascontiguousarray(transform(record["image"], rng)), np.int32(record["label"])
    except (OSError, SyntaxError, EOFError, ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
        where = str(source) if isinstance(source, Records) else f"the source, a {type(source).__name__}"
        again = "prepare the data set anew into an empty folder" if isinstance(source, Records) else "mend that record"
        raise DamagedRecordError(
            f"record {row} of {where} cannot be read or decoded ({type(error).__name__}: {error}); to go on, {again}, "
            "and the same command goes on from the last checkpoint"
        ) from error


def _newest(name: str, data_dir: Path) -> Path:
    """`<data_dir>/<name>/<version>` of the greatest version that is prepared."""
    found = [path.parent for path in (data_dir / name).glob("*/dataset_info.json")]
    versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    if not versions:
        raise DatasetNotFoundError(
            f"no {name} in the data folder {data_dir}: expected a prepared data set in {data_dir / name}/VERSION. Make "
            f"it with python -c 'from jacreg_jax import datasets; datasets.prepare({name!r}, {str(data_dir)!r})' where "
            "prepare knows it, else with tensorflow-datasets and file_format='array_record', or name another folder "
            "in data_dir or TFDS_DATA_DIR"
        )
    return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _builder(folder: Path) -> Any:
    return _extra("tensorflow_datasets").builder_from_directory(folder)


@functools.lru_cache(maxsize=8)
def _opened(folder: Path, split: str) -> Any:
    """The reader of a split, once a process."""
    decode, builder = _extra("tensorflow_datasets").decode, _builder(folder)
    try:
        return builder.as_data_source(split, decoders={"image": decode.SkipDecoding()})
    except NotImplementedError as error:
        raise ValueError(
            f"{folder} holds {builder.info.file_format.value} files; streams read array_record. Prepare it into "
            "another folder with file_format='array_record'"
        ) from error
