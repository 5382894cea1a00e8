"""TFDS builder of ImageNet that needs no TensorFlow: the two original archives to array_record, images untouched.

Importing this module imports tensorflow_datasets.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """ImageNet, ILSVRC 2012 (Russakovsky et al. 2015): 1,281,167 train and 50,000 validation JPEGs of 1,000 classes.

    Name, version, features and order are the official ones, so that `tfds.data_source` reads the result back. The
    official builder re-encodes 23 images (22 are CMYK, one is a PNG); here all are the bytes of the archives, and
    `images.decode` converts them as torchvision's loader does.
    """

    VERSION = tfds.core.Version("5.1.0")
    name = "imagenet2012"
    ARCHIVES: ClassVar = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
    manual_dir: Path | None = None  # where the archives lie

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=class_names()),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://image-net.org/",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = self.manual_dir or Path(os.fspath(self._data_dir_root)) / "downloads" / "manual"
        paths = {split: folder / name for split, name in self.ARCHIVES.items()}
        found = {split: path for split, path in paths.items() if path.exists()}
        if not found:
            raise FileNotFoundError(
                f"ImageNet cannot be downloaded by a program: get {' and '.join(self.ARCHIVES.values())} from "
                "https://image-net.org, and run jacreg_jax.datasets.prepare('imagenet2012', data_dir, "
                f"manual_dir=FOLDER) with the folder that holds them; neither lies in {folder}"
            )
        return {split: self._generate_examples(path, split) for split, path in found.items()}

    def _generate_examples(self, archive: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from (_train if split == "train" else _validation)(archive)


def _train(archive: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """An archive of one archive a class, called by it."""
    with tarfile.open(archive) as classes:
        for member in classes:
            inner: Any = classes.extractfile(member)
            with tarfile.open(fileobj=io.BytesIO(inner.read())) as pictures:
                for picture in pictures:
                    file: Any = pictures.extractfile(picture)
                    example = {"image": file.read(), "label": Path(member.name).stem, "file_name": picture.name}
                    yield picture.name, example


def _validation(archive: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Files called ILSVRC2012_val_00000001.JPEG ...; the label stands in the line of that number."""
    labels = validation_classes()
    with tarfile.open(archive) as pictures:
        for picture in pictures:
            file: Any = pictures.extractfile(picture)
            label = labels[int(Path(picture.name).stem.rsplit("_", 1)[1]) - 1]
            yield picture.name, {"image": file.read(), "label": label, "file_name": picture.name}


def class_names() -> list[str]:
    """The 1,000 WordNet numbers, "n01440764" first: those that the archives of the classes are called by."""
    return _lines("labels.txt")


def validation_classes() -> list[str]:
    """The WordNet numbers of the 50,000 validation images, that of ILSVRC2012_val_00000001 first."""
    return _lines("validation_labels.txt")


def _lines(name: str) -> list[str]:
    """Of a file that tensorflow-datasets ships beside its own builder."""
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}").read_text().split()
