"""Results and logs on disk, written whole or not at all."""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from experiments import ROOT
from experiments.lab import disk

LOG = logging.getLogger(__name__)
WRITES = True  # whether this process is the one that writes: of several the first, see `world.join`


@contextlib.contextmanager
def _whole(path: Path):
    """A file to write, which then takes the place of path: a reader sees the old one or the new one, never half.

    Of several processes the first one alone writes.
    """
    if not WRITES:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    with disk.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text to path atomically."""
    with _whole(path) as partial:
        partial.write_text(text)


def write_json(path: Path, content) -> None:
    """Write content to path atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


PIECE = 15_000_000  # bytes of a file that can be carried
PIECES = "number of files"


def write_arrays(path: Path, arrays: dict, piece: float = np.inf) -> None:
    """Write named arrays to an .npz atomically; what is over `piece` bytes into NAME.npz.1 and on, path itself last."""
    pieces, size = [{}], 0
    for name, array in arrays.items():
        if size and size + array.nbytes > piece:
            pieces, size = [*pieces, {}], 0
        pieces[-1][name], size = array, size + array.nbytes
    if len(pieces) > 1:
        pieces[0][PIECES] = np.asarray(len(pieces))
    for i, part in reversed([*enumerate(pieces)]):
        with _whole(_piece(path, i)) as partial, partial.open("wb") as file:
            np.savez(file, **part)


def _piece(path: Path, i: int) -> Path:
    return path.with_name(f"{path.name}.{i}") if i else path


def as_json(values: np.ndarray) -> list:
    """Distances with four decimals; None where never fooled."""
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


REMEDY = "remove it, and the same command makes it anew"


def read_json(path: Path, remedy: str = REMEDY):
    """The content of a json file.

    Raises:
        ValueError: it is damaged; with the path and the remedy.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # no json, or no text
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from None


def read_arrays(path: Path, remedy: str = REMEDY) -> dict[str, np.ndarray]:
    """The arrays of an .npz, and of the files that it goes on in.

    Raises:
        ValueError: it is damaged; with the path and the remedy.
    """
    found = _read_piece(path, path, remedy)
    for i in range(1, int(found.pop(PIECES, 1))):
        found |= _read_piece(_piece(path, i), path, remedy)
    return found


def _read_piece(piece: Path, path: Path, remedy: str) -> dict[str, np.ndarray]:
    try:
        with piece.open("rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (FileNotFoundError, PermissionError):
        if piece == path:
            raise
        raise ValueError(f"{path} is damaged ({piece.name}, a part of it, cannot be opened); {remedy}") from None
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for single bits
        raise ValueError(f"{piece} is damaged ({error}); {remedy}") from None


def kept(path: Path, read: Callable):
    """What read finds in a file that can be made anew; None where it is missing or damaged, and the latter is said."""
    if not path.exists():
        return None
    try:
        return read(path, "it is made anew")
    except ValueError as error:
        LOG.warning(error)
        return None


def digest(config: dict) -> str:
    """Ten characters that differ between configurations."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]


def slug(name: str) -> str:
    """A name as a part of a file's: "sphere, n = 3" -> sphere-n3."""
    return name.replace(", ", "-").replace(" = ", "").replace(" ", "-").replace("'", "")


def is_done(path: Path, config: dict, option: str = "--out") -> bool:
    """Whether path holds the result of this configuration.

    Raises:
        ValueError: it holds the result of another, which is left as it is, or is damaged.
    """
    if not path.exists():
        return False
    found = read_json(path)
    if not isinstance(found, dict) or "config" not in found:
        raise ValueError(f"{path} is no result, it has no configuration; {REMEDY}")
    found, config = found["config"], json.loads(json.dumps(config))
    if found != config:
        raise ValueError(
            f"{path} is the result of another configuration; (there, here) of what differs: "
            f"{difference(found, config)}. Choose another folder with {option}, or remove it"
        )
    return True


def difference(there: dict, here: dict, prefix: str = "") -> dict:
    """(there, here) of every value that differs, by its dotted name."""
    changed = {}
    for key in sorted(there.keys() | here.keys()):
        both = there.get(key), here.get(key)
        if all(isinstance(value, dict) for value in both):
            changed |= difference(*both, f"{prefix}{key}.")
        elif both[0] != both[1]:
            changed[prefix + key] = both
    return changed


def fill(path: Path, config: dict, seeds: Iterable[int], compute: Callable) -> dict:
    """The result at path, with what it lacks of the seeds computed, and written after every seed.

    Several processes may fill one file: each adds its seeds to what is there by then.

    Args:
        path: json of {"config", "models": {seed: ...}, "environment"}.
        config: what the numbers depend on, but for the seed.
        seeds: wanted.
        compute: seeds -> iterator of (seed, metrics).

    Raises:
        ValueError: path holds the result of another configuration, or is damaged.
        OSError: its folder cannot be written; raised before anything is computed.
    """
    result = read_result(path, config)
    from experiments.lab import world  # jax, which a page can do without

    missing = world.agreed([seed for seed in seeds if str(seed) not in result["models"]])
    if missing:
        disk.check_room(path.parent)
    for seed, metrics in compute(missing) if missing else ():
        facts = {"commits": {str(seed): commit()}, "environment": environment()}
        with _alone(path.parent):
            result = read_result(path, config)  # another process may have added seeds
            models = result["models"] | {str(seed): metrics}
            result["models"] = {name: models[name] for name in sorted(models, key=int)}
            facts["commits"] = result.get("commits", {}) | facts["commits"]
            write_json(path, result | facts)
            result |= facts
    return result


def read_result(path: Path, config: dict) -> dict:
    """What `fill` wrote at path, or an empty result.

    Raises:
        ValueError: it holds the result of another configuration, or is damaged.
    """
    if not is_done(path, config):
        return {"config": config, "models": {}}
    result = read_json(path)
    if not isinstance(result.get("models"), dict):
        raise ValueError(f"{path} is no result, it has no models; {REMEDY}")
    return result


@contextlib.contextmanager
def _alone(folder: Path):
    """Wait until no other process reads, adds to and writes a result in the folder; leaves no file there."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # given back where the handle is closed, be it by a kill
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(folder: Path):
    """Hold a folder for this process.

    Raises:
        BlockingIOError: another process holds it.
    """
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is at work in {folder}; wait for it, or give each process models of its own"
            ) from None
        yield


@contextlib.contextmanager
def run_folder(folder: Path, config: dict, option: str = "--runs"):
    """Hold the folder of a run, which `option` chose, its configuration written in config.json by who comes first.

    Raises:
        BlockingIOError: another process holds it.
        ValueError: it is the run of another configuration.
    """
    with lock(folder) if WRITES else contextlib.nullcontext():
        if not is_done(folder / "config.json", config, option):
            write_json(folder / "config.json", {"config": config, "environment": environment()})
        yield


PLACES = "--out", "--runs", "--data-dir"  # options that say where things lie on a machine


def environment() -> dict:
    """Versions, devices, commit and command that a result depends on; of the command what does not name a place."""
    import jax

    packages = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    devices = sorted({device.device_kind for device in jax.devices()})
    return {
        "python": platform.python_version(),
        **packages,
        "devices": devices,
        "device_count": jax.device_count(),
        "commit": commit(),
        "command": shlex.join(["python", "-m", _program(), *_without_places(sys.argv[1:])]),
    }


def _program() -> str:
    """The module that runs, such as experiments or experiments.benchmarks; experiments where that is none of ours."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    name = spec.name.removesuffix(".__main__") if spec else ""
    return name if name.startswith("experiments") else "experiments"


def _without_places(arguments: list[str]) -> list[str]:
    kept = zip(["", *arguments], arguments, strict=False)
    return [a for before, a in kept if before not in PLACES and a.split("=")[0] not in PLACES]


@functools.cache
def commit() -> str | None:
    """Commit of the checkout, with a + where files differ from it; None outside of one."""
    try:
        options = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
        run = lambda *arguments: subprocess.run(["git", *arguments], **options).stdout
        return run("rev-parse", "--short=12", "HEAD").strip() + ("+" if run("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
