"""One device's share of a batch: what a model needs so that it acts on a share as it would on the whole batch.

A train step over a mesh runs the model on each device's rows alone. Two things in a model look at all rows: dropout,
which draws one mask for the batch, and BatchNorm, which averages over it. Inside `on_share` the model's key draws the
rows of this share from the mask of the whole batch, and the adapters of models tell every BatchNorm to average over the
axis of the mesh. So the numbers are those of one device.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax

from jacreg_jax.share_keys import of_whole_batch, rows_of_whole
from jacreg_jax.types import Array


class Share(NamedTuple):
    """Which rows of the batch are here."""

    axis_name: str  # of the mesh
    rows: int  # of this device
    first_key: Array  # the key of row 0 of the whole batch, the same on every device


_current: ContextVar[Share | None] = ContextVar("share", default=None)


@contextmanager
def on_share(share: Share | None) -> Iterator[None]:
    """What is traced inside sees this share; None: a batch that is whole.

    Args:
        share: see `Share`.

    Returns:
        A context manager.

    Example:
        >>> with on_share(Share("data", 4, jax.random.key(0))):
        ...     batch_axis()
        'data'
    """
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def batch_axis() -> str | None:
    """The axis of the mesh over which the batch of this train step is split; None where the batch is whole.

    For a model that averages over the batch by hand:

        mean = x.mean(0)
        if (axis := shares.batch_axis()) is not None:
            mean = jax.lax.pmean(mean, axis)

    Returns:
        Its name, or None.

    Example:
        >>> batch_axis() is None
        True
    """
    share = _current.get()
    return None if share is None else share.axis_name


def whole_batch(rows: int) -> int:
    """Rows of the batch that is shared among devices; `rows` where none is.

    Args:
        rows: of the batch at hand.

    Returns:
        A count.

    Example:
        >>> whole_batch(4)
        4
    """
    share = _current.get()
    return rows if share is None else share.rows * int(jax.lax.axis_size(share.axis_name))


def whole_batch_key(first_key: Array, derive: Callable[[Array], Array]) -> Array:
    """derive(key of the first row of the whole batch), whose draws [rows, ...] are this share's rows of the whole draw.

    Args:
        first_key: key of the first row that is here.
        derive: key -> key.

    Returns:
        Typed key.

    Example:
        >>> key = whole_batch_key(jax.random.key(0), lambda key: jax.random.fold_in(key, 1))
        >>> key == jax.random.fold_in(jax.random.key(0), 1)
        Array(True, dtype=bool)
    """
    share = _current.get()
    return derive(first_key) if share is None else rows_of_whole(derive(share.first_key), share.axis_name, share.rows)


def key_for_rows(key: Array, rows: int) -> Array:
    """The key of a share, for a part of the batch of which `rows` rows are on each device, in the devices' order.

    Args:
        key: as `whole_batch_key` made it, or folded from such a one.
        rows: of the part.

    Returns:
        Typed key whose draws [rows, ...] are these rows of the draw for the whole part; any other key as it is.

    Example:
        >>> key_for_rows(jax.random.key(0), 2) == jax.random.key(0)
        Array(True, dtype=bool)
    """
    share = _current.get()
    if share is None or rows == share.rows:
        return key
    whole, _ = of_whole_batch(key, share.rows)
    return key if whole is key else rows_of_whole(whole, share.axis_name, rows)
