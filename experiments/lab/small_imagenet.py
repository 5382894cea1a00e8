"""ImageNet in small: the 20 photographs that foolbox ships, as the two original archives, prepared like the whole.

The train archive holds all, each in the archive of its class, the validation archive the first ten.
"""

import importlib.util
import io
import tarfile
from pathlib import Path

from experiments.lab import record
from jacreg_jax import datasets


def photographs() -> list[tuple[int, bytes]]:
    """(class, JPEG file) of each; imagenet_06_609.jpg is of class 609.

    Raises:
        ImportError: foolbox is not installed.
    """
    spec = importlib.util.find_spec("foolbox")  # its files alone are wanted
    if spec is None:
        raise ImportError("foolbox is not installed; run `make peers`")
    files = sorted((Path(spec.submodule_search_locations[0]) / "data").glob("imagenet_*.jpg"))
    return [(int(path.stem.rsplit("_", 1)[1]), path.read_bytes()) for path in files]


def prepared(folder: Path) -> Path:
    """The folder, with the data set in it: prepared at the first call, by one process."""
    with record.lock(folder):
        if not any(folder.glob("imagenet2012/[0-9]*")):  # an interrupted one is called otherwise
            prepare(folder)
    return folder


def prepare(folder: Path, times: int = 1) -> Path:
    """Write the archives and the prepared data set into a folder, the photographs `times` times; its path."""
    from jacreg_jax.datasets.imagenet import class_names, validation_classes

    names, found, free = class_names(), photographs() * times, {}
    for i, name in enumerate(validation_classes(), 1):
        free.setdefault(name, []).append(i)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for number in sorted({number for number, _ in found}):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as pictures:
                for i, (other, data) in enumerate(found):
                    if other == number:
                        _add(pictures, f"{names[number]}_{i}.JPEG", data)
            _add(archive, f"{names[number]}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, data in found[: len(found) // 2]:  # its class stands in the list at the number of its name
            _add(archive, f"ILSVRC2012_val_{free[names[number]].pop(0):08d}.JPEG", data)
    return datasets.prepare("imagenet2012", folder, folder)


def _add(archive: tarfile.TarFile, name: str, data: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
