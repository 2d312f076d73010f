"""Ctrl-C and SIGTERM at moments where they do no harm."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is done, so that its work is whole.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    earlier = {s: signal.signal(s, lambda caught, _: held.append(caught)) for s in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        if held:  # whether or not the block has failed
            signal.raise_signal(held[0])


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Undo what a library does to the handlers of Ctrl-C and SIGTERM in the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = {s: signal.getsignal(s) for s in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            # One that native code has put in place can't be told, nor put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def raise_once() -> None:
    """Let the first Ctrl-C or SIGTERM raise KeyboardInterrupt, and ignore those that follow.

    `mlflow run` sends its child SIGTERM right after the terminal has sent it SIGINT; the second
    must not cut short what the first has begun to put away.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for other in _SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _SIGNALS:
        signal.signal(number, interrupt)
