"""The next batches on the devices before they are asked for, and how long a training loop waits for its input."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jacreg_jax import checks
from jacreg_jax.types import PyTree


def to_devices(
    batches: Iterable[PyTree],
    placement: jax.sharding.Sharding | jax.Device | None = None,
    *,
    ahead: int = 2,
    convert: Callable[[PyTree], PyTree] | None = None,
) -> "Feed":
    """Put batches on devices ahead of time, in a thread of its own.

    Args:
        batches: of arrays on the host, [B / H, ...] on each of H hosts; from `streams.train_batches`, or any.
        placement: the sharding of the whole batch [B, ...], such as NamedSharding(mesh, PartitionSpec("data")), a
            device, or None for the default device.
        ahead: batches that wait on the devices.
        convert: batch -> batch on the devices, such as bytes to floats; jit it.

    Returns:
        An iterator of batches on devices, see `Feed`.

    Raises:
        TypeError: batches is not iterable, or convert cannot be called.
        ValueError: ahead is below 1.

    Example:
        >>> with to_devices([{"image": np.zeros((4, 2))}] * 3) as feed:
        ...     shapes = [batch["image"].shape for batch in feed]
        >>> shapes, feed.rates()["images"]
        ([(4, 2), (4, 2), (4, 2)], 12)
    """
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be iterable, got {type(batches).__name__}")
    if convert is not None:
        checks.function("convert", convert, ("batch",))
    return Feed(batches, placement, checks.count("ahead", ahead), convert)


class Feed(Iterator[PyTree]):
    """Batches on devices, made by `to_devices`. Close it, or use it in `with`, so that its thread and workers end.

    Its position, `get_state` and `set_state`, is that of the batches handed out, not of those made ahead.
    """

    def __init__(
        self,
        batches: Iterable[PyTree],
        placement: jax.sharding.Sharding | jax.Device | None,
        ahead: int,
        convert: Callable[[PyTree], PyTree] | None,
    ):
        self._batches: Any = batches
        self._iterator = iter(batches)
        self._placement, self._ahead, self._convert = placement, ahead, convert
        self._state = batches.get_state() if hasattr(batches, "get_state") else None
        self._thread: threading.Thread | None = None
        self._since, self._waited, self._images = time.perf_counter(), 0.0, 0

    def __next__(self) -> PyTree:
        if self._thread is None:
            self._start()
        start = time.perf_counter()
        batch, self._state, error = self._ready.get()
        self._waited += time.perf_counter() - start
        if error is not None:
            self._stop()
            raise error
        self._images += len(jax.tree.leaves(batch)[0])
        return batch

    def rates(self) -> dict[str, float]:
        """Of the time since this was last asked: images, images_per_second, and waiting, the share spent waiting.

        The images are those of all hosts; what a training loop waits for its devices, elsewhere, is not in it.
        """
        now = time.perf_counter()
        seconds, images, waited = max(now - self._since, 1e-9), self._images, self._waited
        self._since, self._waited, self._images = now, 0.0, 0
        return {"images": images, "images_per_second": images / seconds, "waiting": waited / seconds}

    def get_state(self) -> Any:
        """The position after the last batch that was handed out; None where the batches have no position."""
        return self._state

    def set_state(self, state: Any) -> None:
        """Go on from a position.

        Raises:
            TypeError: the batches have no position.
            ValueError: as those of the batches.
        """
        if not hasattr(self._batches, "set_state"):
            raise TypeError(f"batches have no position: {type(self._batches).__name__} has no set_state")
        self._stop()
        self._batches.set_state(state)
        self._state = self._batches.get_state()

    def close(self) -> None:
        """End the thread, and the workers of the batches."""
        self._stop()
        if hasattr(self._batches, "close"):
            self._batches.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        self._ready: queue.Queue[tuple[PyTree, Any, BaseException | None]] = queue.Queue(self._ahead)
        self._ended = threading.Event()
        arguments = (self._state, self._ready, self._ended)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True, name="feed")
        self._thread.start()

    def _stop(self) -> None:
        """End the thread; what it made ahead is dropped, and the batches go back to where the last one ended."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        if self._state is not None:
            self._batches.set_state(self._state)

    def _run(self, state: Any, ready: queue.Queue[Any], ended: threading.Event) -> None:
        """In the thread: make batches, each with the position after it, until the end or an error is handed over."""
        error: BaseException | None = None
        while error is None and not ended.is_set():
            batch = None
            try:
                batch = self._place(next(self._iterator))
                state = state if state is None else self._batches.get_state()
            except BaseException as raised:  # StopIteration too: whoever asks next gets it
                error = raised
            while not ended.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put((batch, state, error), timeout=0.1)
                    break

    def _place(self, batch: PyTree) -> PyTree:
        placement = self._placement
        if isinstance(placement, jax.sharding.Sharding):
            put = lambda leaf: jax.make_array_from_process_local_data(placement, np.asarray(leaf))
        else:
            put = lambda leaf: jax.device_put(leaf, placement)
        placed = jax.tree.map(put, batch)
        return placed if self._convert is None else self._convert(placed)
