"""TFDS builders that need no TensorFlow: MNIST, CIFAR-10, USPS from their original files to array_record.

Name, version, folder layout and features are the official ones (USPS has none), so that `tfds.data_source` reads the
result back. The official builders extract, read and encode through TensorFlow; these use gzip, tarfile, bz2 and pillow.
Importing this module imports tensorflow_datasets.
"""

import bz2
import gzip
import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jacreg_jax.datasets.imagenet import Imagenet2012


class ArrayBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """Builder of a set of labelled images whose splits fit in memory. A subclass tells where from and how to parse."""

    URL: str  # folder of the original files
    DIGESTS: ClassVar[dict[str, str]]  # file name -> "algorithm:hexdigest"
    IMAGE_SHAPE: tuple[int, int, int]
    CLASSES = tuple("0123456789")
    HOMEPAGE: str
    manual_dir: Path | None = None  # files found here are not downloaded

    def arrays(self, files: dict[str, Path], split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, H, W] or [N, H, W, 3] and labels [N] of "train" or "test", from the original files."""
        raise NotImplementedError

    def features(self) -> dict[str, Any]:
        """The TFDS features of one example."""
        label = tfds.features.ClassLabel(names=self.CLASSES)
        return {"image": tfds.features.Image(shape=self.IMAGE_SHAPE), "label": label}

    def example(self, split: str, i: int, image: np.ndarray, label: Any) -> dict[str, Any]:
        """Example number i of a split; the image goes as a PIL image, for tfds encodes an array with TensorFlow."""
        return {"image": Image.fromarray(image), "label": int(label)}

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(self.features()),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = {name: self._original_file(name, dl_manager) for name in self.DIGESTS}
        return {split: self._generate_examples(files, split) for split in ("train", "test")}

    def _generate_examples(self, files: dict[str, Path], split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(*self.arrays(files, split), strict=True)):
            yield i, self.example(split, i, image, label)

    def _original_file(self, name: str, dl_manager: Any) -> Path:
        """Path of an original file, from manual_dir or downloaded, after its digest has been checked."""
        path = self.manual_dir and self.manual_dir / name
        if not (path and path.exists()):
            path = self._download(self.URL + name, dl_manager)
        algorithm, expected = self.DIGESTS[name].split(":")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            raise ValueError(
                f"{path} is not the original {name}: expected {algorithm} {expected}, got {found}. "
                f"Delete it and try again, or get it from {self.URL + name}"
            )
        return path

    def _download(self, url: str, dl_manager: Any) -> Path:
        try:
            return Path(dl_manager.download(url))
        except (OSError, tfds.download.DownloadError) as error:
            raise ConnectionError(
                f"could not download {url} ({error}). Put the original files {', '.join(self.DIGESTS)} into a folder "
                f"and run jacreg_jax.datasets.prepare({self.name!r}, data_dir, manual_dir=that_folder)"
            ) from error


class Mnist(ArrayBuilder, skip_registration=True):  # type: ignore[call-arg]
    """MNIST handwritten digits (LeCun et al. 1998): 60,000 train and 10,000 test images of 28x28 pixels."""

    VERSION = tfds.core.Version("3.0.1")
    HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
    IMAGE_SHAPE = (28, 28, 1)
    DIGESTS: ClassVar = {
        "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }

    def arrays(self, files: dict[str, Path], split: str) -> tuple[np.ndarray, np.ndarray]:
        """Parse the idx files: a header of 16 (images) or 8 (labels) bytes, then the bytes themselves."""
        prefix = {"train": "train", "test": "t10k"}[split]
        images = gzip.decompress(files[f"{prefix}-images-idx3-ubyte.gz"].read_bytes())
        labels = gzip.decompress(files[f"{prefix}-labels-idx1-ubyte.gz"].read_bytes())
        return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


class Cifar10(ArrayBuilder, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10 (Krizhevsky 2009): 50,000 train and 10,000 test colour images of 32x32 pixels in 10 classes."""

    VERSION = tfds.core.Version("3.0.2")
    HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
    URL = "https://www.cs.toronto.edu/~kriz/"
    IMAGE_SHAPE = (32, 32, 3)
    CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    DIGESTS: ClassVar = {
        "cifar-10-binary.tar.gz": "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    }

    def arrays(self, files: dict[str, Path], split: str) -> tuple[np.ndarray, np.ndarray]:
        """Parse the binary archive: records of one label byte and 3 x 32 x 32 bytes, channels first."""
        members = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}[split]
        with tarfile.open(files["cifar-10-binary.tar.gz"]) as archive:
            opened: list[Any] = [archive.extractfile(f"cifar-10-batches-bin/{name}") for name in members]
            batches = [file.read() for file in opened]
        records = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, 0]

    def features(self) -> dict[str, Any]:
        """As the official builder: an id beside image and label."""
        return {"id": tfds.features.Text()} | super().features()

    def example(self, split: str, i: int, image: np.ndarray, label: Any) -> dict[str, Any]:
        """As the official builder: the id is the split and the number in the original order."""
        return {"id": f"{split}_{i:05d}"} | super().example(split, i, image, label)


class Usps(ArrayBuilder, skip_registration=True):  # type: ignore[call-arg]
    """USPS handwritten digits (Hull 1994): 7,291 train and 2,007 test images of 16x16 pixels, quantised to 8 bit."""

    VERSION = tfds.core.Version("1.0.0")
    HOMEPAGE = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps"
    URL = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/"
    IMAGE_SHAPE = (16, 16, 1)
    DIGESTS: ClassVar = {
        "usps.bz2": "md5:ec16c51db3855ca6c91edd34d0e9b197",
        "usps.t.bz2": "md5:8ea070ee2aca1ac39742fdd1ef5ed118",
    }

    def arrays(self, files: dict[str, Path], split: str) -> tuple[np.ndarray, np.ndarray]:
        """Parse the LIBSVM text: "label index:value ..." with labels 1 ... 10 and values in [-1, 1], zeros left out."""
        lines = bz2.decompress(files[{"train": "usps.bz2", "test": "usps.t.bz2"}[split]].read_bytes()).splitlines()
        pixels = np.zeros((len(lines), 16 * 16))
        labels = np.empty(len(lines), np.int64)
        for i, line in enumerate(lines):
            label, *entries = line.split()
            labels[i] = int(label) - 1
            for entry in entries:
                index, value = entry.split(b":")
                pixels[i, int(index) - 1] = float(value)
        return np.round(255 * (pixels + 1) / 2).astype(np.uint8).reshape(-1, 16, 16), labels


BUILDERS = {"mnist": Mnist, "usps": Usps, "cifar10": Cifar10, "imagenet2012": Imagenet2012}
