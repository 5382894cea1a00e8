"""SIGINT and SIGTERM: one line and the usual exit status, no traceback; a second one ends the process at once."""

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 10  # seconds that a stopped process has to end in


class Stopped(SystemExit):
    """A signal ended the work. Its code is the exit status, 128 + the number of the signal; its message the line."""

    def __init__(self, number: int, message: str):
        super().__init__(128 + number)
        self.message = message


class Signal:
    """The first signal that came: its number, or None."""

    number: int | None = None


@contextlib.contextmanager
def deferred() -> Iterator[Signal]:
    """A first signal is noted, for the work inside to stop where it can go on."""
    with _caught(lambda number: None) as first:
        yield first


@contextlib.contextmanager
def in_one_line(line: str = "stopped; the same command goes on from what it wrote") -> Iterator[None]:
    """A first signal ends the work inside, with a line on stderr; what XLA still computes then is not waited for."""

    def stop(number):
        raise Stopped(number, line)

    with _caught(stop) as first:
        try:
            yield
        except BaseException as error:  # it may have become another one on its way through XLA
            if isinstance(error, Stopped):
                code, line = error.code, error.message
            elif first.number:
                code = 128 + first.number
            else:
                raise
            print(line, file=sys.stderr, flush=True)
            atexit.register(_end_within, PATIENCE)
            sys.exit(code)


def _end_within(seconds: int) -> None:
    """Let the kernel end this process then: on its way out JAX waits for all that was dispatched, which no thread of
    Python can interrupt.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


@contextlib.contextmanager
def _caught(on_first: Callable[[int], None]) -> Iterator[Signal]:
    """Call on_first at the first signal, as soon as Python runs; the handlers of before are put back at the end.

    Python's handlers wait until a call of XLA is over. A thread is told of the signals meanwhile, and ends the process
    at the second one. Outside of the main thread nothing is caught.
    """
    first = Signal()
    if threading.current_thread() is not threading.main_thread():
        yield first
        return

    def handler(number, frame):
        if first.number is None:
            first.number = number
            on_first(number)

    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    threading.Thread(target=_end_at_second, args=(ear,), daemon=True).start()
    told = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield first
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        signal.set_wakeup_fd(told)
        mouth.close()


def _end_at_second(ear: socket.socket) -> None:
    heard = 0
    with ear:
        while numbers := ear.recv(16):  # nothing where the other end was closed
            for number in numbers:
                heard += number in SIGNALS
                if heard == 2:
                    os._exit(128 + number)
