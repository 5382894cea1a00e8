"""Data that do not fit into memory: batches read, decoded and augmented in worker processes, by Grain.

    source = streams.open_split("imagenet2012", "train")
    batches = streams.train_batches(source, images.augmented, batch_size=256, seed=0, num_workers=8)
    with streams.to_devices(batches, sharding) as feed:
        for batch in feed: ...                      # {"image": uint8 [B, H, W, 3], "label": int32 [B]}, on devices

Batch number t is a function of (seed, t): its rows are those of `epoch_permutation(seed, epoch, N)`, and what is drawn
for a record is drawn from (seed, epoch, row). So the position is one number, and neither the number of workers nor
that of hosts is part of it: host h of H reads the h-th of H parts of every batch.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, parent_process
from typing import Any

import numpy as np

from jacreg_jax import checks
from jacreg_jax.datasets.feeding import Feed as Feed, to_devices as to_devices
from jacreg_jax.datasets.loading import _extra
from jacreg_jax.datasets.positions import Order, eval_record, train_record
from jacreg_jax.datasets.reading import (
    DamagedRecordError as DamagedRecordError,
    Records as Records,
    Source as Source,
    Transform as Transform,
    open_split as open_split,
)

ENDLESS = 1 << 40  # batches


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int = 0,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> "Batches":
    """Batches without end; every epoch is a new permutation, without its last incomplete batch.

    Args:
        source: records, from `open_split`, or whatever has a length and gives {"image": ..., "label": ...} by number.
        transform: (image as stored, rng) -> uint8 array of one shape, such as `images.augmented`.
        batch_size: of all hosts together, a multiple of their number.
        seed: of the orders and of what transform draws.
        num_workers: processes that read; 0: this one. One for each core, each holds two batches.
        shard: (h, H), number of this host and of all: (jax.process_index(), jax.process_count()).

    Returns:
        Iterator of {"image": uint8 [batch_size / H, ...], "label": int32 [batch_size / H]}, see `Batches`.

    Raises:
        ValueError: a count or a seed is out of range; batch_size is greater than the number of records, or no
            multiple of H.
        TypeError: transform cannot be called like that.
        ImportError: the extra `streams` is not installed.

    Example:
        >>> source = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(6)]
        >>> batches = train_batches(source, lambda image, rng: image, batch_size=2, seed=1)
        >>> sorted(np.concatenate([next(batches)["label"] for _ in range(3)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    seed, order = checks.count("seed", seed, least=0), Order.of(source, batch_size, shard)
    if batch_size > len(source):
        raise ValueError(f"batch_size must be at most the {len(source)} records of the source, got {batch_size}")
    record = functools.partial(train_record, source, _checked(transform), seed, order)
    state = {"seed": seed, "batch_size": batch_size, "samples": len(source)}
    return Batches(record, order.local, ENDLESS, num_workers, state)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> "Batches":
    """One pass in the order of the files, every record once: the last batch is filled up with records of weight 0.

    Args:
        source: see `train_batches`.
        transform: see `train_batches`, such as `images.centered`; its rng is the same for every record.
        batch_size: of all hosts together, a multiple of their number.
        num_workers: see `train_batches`.
        shard: see `train_batches`.

    Returns:
        Iterator of {"image": uint8 [batch_size / H, ...], "label": int32 [batch_size / H], "weight": float32
        [batch_size / H], 1 or 0}; the accuracy is sum(weight * right) / sum(weight), over all hosts.

    Raises:
        ValueError: a count is out of range; source is empty; batch_size is no multiple of H.
        TypeError: transform cannot be called like that.
        ImportError: the extra `streams` is not installed.

    Example:
        >>> source = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(3)]
        >>> [b["weight"].tolist() for b in eval_batches(source, lambda image, rng: image, batch_size=2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    order = Order.of(source, batch_size, shard)
    record = functools.partial(eval_record, source, _checked(transform), order)
    state = {"batch_size": batch_size, "samples": len(source)}
    return Batches(record, order.local, -(-len(source) // batch_size), num_workers, state)


class Batches(Iterator[dict[str, np.ndarray]]):
    """An iterator of batches whose position can be written down. Made by `train_batches` and `eval_batches`."""

    def __init__(
        self,
        record: Callable[[int], dict[str, Any]],
        local: int,
        count: int,
        num_workers: int,
        identity: dict[str, int],
    ):
        self._record, self._local, self._count = record, local, count
        self._num_workers = checks.count("num_workers", num_workers, least=0)
        self._identity, self._next = identity, 0
        self._running: Any = None
        self._grain = _extra("grain", "streams")

    def __next__(self) -> dict[str, np.ndarray]:
        if self._next >= self._count:
            self.close()
            raise StopIteration
        if self._running is None:
            self._running = iter(self._dataset())
        try:
            batch = next(self._running)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            self.close()
            raise RuntimeError(
                f"a worker process of the input died at batch {self._next} ({error}). Exit code -9 is often a want of "
                "memory: use fewer num_workers. To go on, the same command goes on from the last checkpoint"
            ) from None
        self._next += 1
        return {name: np.array(leaf) for name, leaf in batch.items()}  # a worker's lie in memory that it shares

    def _dataset(self) -> Any:
        grain = self._grain
        records = grain.MapDataset.range(self._next * self._local, self._count * self._local).map(self._record)
        batches = records.batch(self._local, drop_remainder=True)
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if not self._num_workers:
            return batches
        flags = _extra("absl.flags", "streams").FLAGS
        if not flags.is_parsed():  # Grain asks one of its own, which only programs of absl have read
            flags.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=1)
        return batches.mp_prefetch(options, worker_init_fn=_begin_worker)

    def get_state(self) -> dict[str, int]:
        """The position, as json takes it: the number of the next batch, and what tells this stream from others."""
        return {"next_batch": self._next, **self._identity}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on from a position, with any number of workers and hosts.

        Raises:
            ValueError: it is none, or one of a stream with another seed, batch size or source.
        """
        if not isinstance(state, dict) or state.keys() != self.get_state().keys():
            raise ValueError(
                f"state must be one that get_state gave, with {', '.join(self.get_state())}; got {state!r}"
            )
        other = [f"{name} {state[name]}, here {own}" for name, own in self._identity.items() if state[name] != own]
        if other:
            raise ValueError(f"state is of another stream: {'; '.join(other)}")
        position = checks.count("next_batch", state["next_batch"], least=0)
        self.close()
        self._next = position

    def close(self) -> None:
        """End the workers; the next batch starts them again."""
        running, self._running = self._running, None
        if hasattr(running, "close"):
            running.close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _checked(transform: Transform) -> Transform:
    checks.function("transform", transform, ("image", "rng"))
    return transform


def _begin_worker(number: int, count: int) -> None:
    """In a worker: signals to stop are for the process that trains, and the worker does not outlive it."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
