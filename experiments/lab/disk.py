"""What cannot be written: noticed before hours of work, and said with the path and the remedy."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE = os.strerror(errno.ENOSPC)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError of what is written inside names path, what is wrong, and what to do.

    Raises:
        OSError: of the same kind.
    """
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in FULL else "make it writable"
        reason = error.strerror or str(error)
        elsewhere = "choose another folder (--out or --runs, of train --folder)"
        raise OSError(error.errno or 0, f"{path} cannot be written: {reason}; {remedy}, or {elsewhere}") from error


def check_room(folder: Path, size: int = 0) -> None:
    """That folder takes a file of size bytes, 4 MiB at least; it is made where it is not there.

    Raises:
        OSError: it does not; with the folder, the size and the remedy.
    """
    block = os.urandom(2**20)  # nothing that a file system could compress
    blocks = max(4, -(-size // len(block)))
    probe = folder / f".probe.{os.getpid()}"
    with writing(f"{folder} (a file of {blocks} MiB, to see that there is room)"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                for _ in range(blocks):
                    file.write(block)
        finally:
            probe.unlink(missing_ok=True)
