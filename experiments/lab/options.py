"""The options that all experiments share, once."""

import dataclasses
import re
from pathlib import Path

from experiments import RESULTS, RUNS
from experiments.lab.world import Hosts
from jacreg_jax.sharding import Backend


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is run, where things lie, and how training is cut into pieces.

    The first two decide numbers; the others do not, but part_size with dropout.
    """

    seeds: int = 5
    """Models of each cell: seeds 0, 1, ..."""
    num_steps: int | None = None
    """Shorter training, the quenches at the same shares of it, its results in a folder of their own, OUT/STEPS-steps;
    None: the paper's length."""
    data_dir: str | None = None
    """Prepared tensorflow-datasets folder; default TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    out: Path = RESULTS
    """Folder of the results."""
    runs: Path = RUNS
    """Folder of checkpoints, logs and trained models."""
    together: int | None = None
    """Models trained in one compiled program, vmapped over seeds and regularizers; None: 1 on CPU, where more are no
    faster, and elsewhere what the problem says."""
    devices: int | None = None
    """Over which every batch is spread, or the models that train together; None: one, and all where several processes
    take part. JAX_NUM_CPU_DEVICES=8 makes a CPU look like 8."""
    backend: Backend = "jit"
    """How a batch is spread: the same numbers by all three."""
    hosts: Hosts = Hosts()  # noqa: RUF009  frozen
    """The other processes of the same command."""
    workers: int = 4
    """Processes that read, decode and crop the images of data that do not fit into memory; 0: this one."""
    dispatch: int = 50
    """Training steps compiled into one call."""
    checkpoint_every: int = 5000
    part_size: int | None = None
    """Samples differentiated at once: on CPU 25 are faster than the full batches of few-shot cells, being in the cache.
    The same numbers up to rounding, but dropout draws a mask for each part. None: the whole batch."""

    @property
    def results(self) -> Path:
        """Where results lie: those of another length than the experiment's own apart, in STEPS-steps."""
        own = type(self).num_steps
        return Path(self.out) / ("" if self.num_steps == own else f"{self.num_steps}-steps")

    def __post_init__(self):
        for name, value in vars(self).items():
            least = 0 if name == "workers" else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclasses.dataclass(frozen=True)
class Measured(Options):
    """Those of experiments that measure ||J||_F."""

    norms: int | None = None
    """Test samples that ||J||_F is averaged over; None: all."""


# what every experiment's own QUICK starts from
QUICK = {
    "seeds": 1,
    "num_steps": 20,
    "dispatch": 10,
    "checkpoint_every": 10,
    "out": Path("runs/quick"),
    "runs": Path("runs/quick"),
}


def in_paragraphs(words: str) -> str:
    """A module's docstring with every "Word: ..." a paragraph of its own, as tyro's --help joins the lines of one."""
    return re.sub(r"\n(?=[A-Z]\w+:)", "\n\n", words)
