"""Checkpoints by Orbax, each with the digests of its files beside it; the newest that is whole is gone on with.

Every process of a run takes part in writing and reading; the first one looks at the files, and says which to read.
"""

import contextlib
import gc
import hashlib
import logging
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from experiments.lab import disk, record, world

LOG = logging.getLogger(__name__)
KEPT = 2  # the newest, and the one before it
CHUNK = 7 * 2**20  # bytes of a file at which Orbax begins the next: all stay under 16 MB, so that they can be carried


class Checkpoints:
    """STEP and STEP.sha256 for each checkpoint in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        with disk.writing(folder):
            options = ocp.CheckpointManagerOptions(enable_async_checkpointing=False, cleanup_tmp_directories=True)
            self.manager = ocp.CheckpointManager(folder, options=options)

    def close(self):
        """Let go of the folder."""
        self.manager.close()

    def steps(self) -> list[int]:
        """Those that are there, whole or not, the newest first."""
        return sorted((int(p.name) for p in self.folder.iterdir() if p.is_dir() and p.name.isdecimal()), reverse=True)

    def check_room(self, state):
        """That there is room for those that will lie here together.

        Raises:
            OSError: there is not.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        disk.check_room(self.folder, size * max(1, KEPT + 1 - len(self.steps())))

    def restore(self, state, logged: Collection[int]):
        """(state, step) of the newest checkpoint that is whole; (state, None) where there is none at all.

        A newer one that is not is removed, and a line on stderr says so: the training that follows makes it anew.

        Args:
            state: of the same structure.
            logged: the steps that the log of the metrics holds; one that is not among them is of no use.

        Raises:
            ValueError: there are some, and none is whole; with their paths and the remedy.
        """
        abstract, faults = jax.tree.map(ocp.utils.to_shape_dtype_struct, state), {}
        wanted = ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))
        for step in world.agreed(self.steps()):
            unlogged = "" if step in logged else "metrics.jsonl holds no row of it"
            faults[step] = world.agreed(self.fault(step) or unlogged if world.is_first() else "")
            if not faults[step]:
                try:
                    state = self.manager.restore(step, args=wanted)
                except Exception as error:  # Orbax does not say what it raises
                    faults[step] = f"cannot be read ({type(error).__name__}: {error})"
                else:
                    del faults[step]
                    self._drop(faults, step)
                    return state, step
        if faults:
            each = "; ".join(f"{self.folder / str(step)}: {fault}" for step, fault in faults.items())
            remedy = f"remove {self.folder.parent}, and the same command trains from the start"
            raise ValueError(f"no checkpoint can be used. {each}. To go on, {remedy}")
        return state, None

    def fault(self, step: int) -> str:
        """What is wrong with the files of a checkpoint; empty where they are those that were written.

        One without digests is of an older version, or the process was killed before they were written. It counts as
        whole, unless an older checkpoint has digests.
        """
        path = self._digests(step)
        if not path.exists():
            older = any(self._digests(other).exists() for other in self.steps() if other < step)
            return f"{path.name} is missing, so it may be incomplete" if older else ""
        lines = [line.split("  ", 1) for line in path.read_text(errors="replace").splitlines()]
        if not lines or any(len(line) != 2 for line in lines):
            return f"{path.name} is damaged"
        there, here = {name: found for found, name in lines}, digests(self.folder / str(step))
        wrong = sorted(name for name in there | here if there.get(name) != here.get(name))
        return f"{wrong[0]} is {'damaged' if wrong[0] in here else 'missing'}" if wrong else ""

    def save(self, step: int, state):
        """Write the checkpoint of a step, then its digests; only then the third newest is removed.

        Raises:
            OSError: it cannot be written; those before it are as they were.
        """
        before, path = world.agreed(self.steps()), self.folder / str(step)
        if step in before:
            return
        with _quiet():
            reason = self._write(step, state)
            if reason:
                gc.collect()  # what is left of Orbax's coroutines complains when it goes
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and its futures, at the end of the process
        if reason:
            self._remove(step)
            whole = f"the checkpoint of step {before[0]} is whole" if before else "there is none before it"
            remedy = "free some space" if disk.NO_SPACE in reason else "make it writable"
            raise OSError(f"{path} cannot be written ({reason}); {whole}. To go on, {remedy}")
        for old in before[KEPT - 1 :]:
            self._remove(old)

    def _write(self, step: int, state) -> str:
        """Write a checkpoint and its digests; what went wrong, empty where nothing did."""
        try:
            self.manager.save(step, args=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=CHUNK))
            world.meet(f"checkpoint {step} is written")
            if not world.is_first():
                return ""
            record.write_text(self._digests(step), _as_text(digests(self.folder / str(step))))
        except Exception as error:  # Orbax does not say what it raises
            return disk.NO_SPACE if disk.NO_SPACE in str(error) else f"{type(error).__name__}: {error}"
        return ""

    def _drop(self, faults: dict[int, str], good: int):
        for step, fault in faults.items():
            self._remove(step)
            LOG.warning("%s: %s; removed, going on from step %d", self.folder / str(step), fault, good)

    def _digests(self, step: int) -> Path:
        return self.folder / f"{step}.sha256"

    def _remove(self, step: int):
        if world.is_first():
            for path in (self.folder / str(step), *self.folder.glob(f"{step}.orbax-checkpoint-tmp*")):
                shutil.rmtree(path, ignore_errors=True)
            self._digests(step).unlink(missing_ok=True)
        world.meet(f"checkpoint {step} is removed")
        self.manager.reload()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path from the folder's parent."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder.parent)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _as_text(found: dict[str, str]) -> str:
    """As `sha256sum -c` reads them."""
    return "".join(f"{digest}  {name}\n" for name, digest in found.items())


@contextlib.contextmanager
def _quiet():
    """Without what Orbax prints of an error in each of its threads and coroutines; it raises it too."""
    before = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.ERROR)
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        logging.disable(before[0])
        sys.unraisablehook = before[1]
