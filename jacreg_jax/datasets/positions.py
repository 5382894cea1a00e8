"""Which record stands where in a stream, and what a batch holds of it: run in worker processes, for `streams`."""

import dataclasses
import functools
from typing import Any

import numpy as np

from jacreg_jax import checks
from jacreg_jax.datasets.reading import Source, Transform, sample
from jacreg_jax.datasets.sampling import epoch_permutation


@dataclasses.dataclass(frozen=True)
class Order:
    """Places of one host in the batches of all.

    Args:
        samples: records of the source.
        batch_size: of all hosts together.
        host: number of this host.
        hosts: how many there are.
    """

    samples: int
    batch_size: int
    host: int
    hosts: int

    @classmethod
    def of(cls, source: Source, batch_size: int, shard: tuple[int, int]) -> "Order":
        """The order of one host, (host, hosts) = shard, after all has been checked.

        Raises:
            TypeError: source gives no records by number.
            ValueError: source is empty, a number is out of range, or batch_size is no multiple of the hosts.
        """
        if not isinstance(source, Source):
            raise TypeError(f"source must have a length and give records by number, got {type(source).__name__}")
        if not len(source):
            raise ValueError("source must hold at least one record, got none")
        checks.count("batch_size", batch_size)
        if not isinstance(shard, tuple) or len(shard) != 2:
            raise ValueError(f"shard must be (number of this host, number of hosts), got {shard!r}")
        host, hosts = checks.count("shard[0]", shard[0], least=0), checks.count("shard[1]", shard[1])
        if host >= hosts:
            raise ValueError(f"shard[0] must be below the number of hosts, shard[1]; got {shard!r}")
        if batch_size % hosts:
            raise ValueError(f"batch_size must be a multiple of the {hosts} hosts of shard, got {batch_size}")
        return cls(len(source), int(batch_size), host, hosts)

    @property
    def local(self) -> int:
        """Rows of a batch that are this host's."""
        return self.batch_size // self.hosts

    def place(self, position: int) -> tuple[int, int]:
        """(batch, place in the whole batch) of a position in the stream."""
        batch, place = divmod(position, self.local)
        return batch, self.host * self.local + place


def train_record(source: Source, transform: Transform, seed: int, order: Order, position: int) -> dict[str, Any]:
    """What stands at a position of the endless stream: its row and its draws are functions of the seed and it."""
    batch, place = order.place(position)
    epoch, step = divmod(batch, order.samples // order.batch_size)
    row = int(_permutation(seed, epoch, order.samples)[step * order.batch_size + place])
    image, label = sample(source, transform, row, np.random.default_rng((seed, epoch, row)))
    return {"image": image, "label": label}


def eval_record(source: Source, transform: Transform, order: Order, position: int) -> dict[str, Any]:
    """What stands at a position of one pass; behind the last record the last one, with weight 0."""
    batch, place = order.place(position)
    row = batch * order.batch_size + place
    image, label = sample(source, transform, min(row, order.samples - 1), np.random.default_rng(0))
    return {"image": image, "label": label, "weight": np.float32(row < order.samples)}


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    return epoch_permutation(seed, epoch, samples)
