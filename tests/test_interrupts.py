"""Ctrl-C and SIGTERM act after the block, once."""

import signal
import subprocess
import sys
import threading

import pytest

from resfool import interrupts
from tests.conftest import ROOT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    earlier = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    done = False
    try:
        interrupts.raise_once()
        with pytest.raises(KeyboardInterrupt), interrupts.deferred():
            signal.raise_signal(number)
            done = True
        assert done
    finally:
        for s, handler in earlier.items():
            signal.signal(s, handler)


def test_a_block_that_fails_loses_no_signal() -> None:
    earlier = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        interrupts.raise_once()
        with pytest.raises(KeyboardInterrupt) as caught, interrupts.deferred():
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("it failed, too")
        assert isinstance(caught.value.__context__, ValueError)
    finally:
        for s, handler in earlier.items():
            signal.signal(s, handler)


def test_without_a_signal_the_handlers_are_put_back() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    with interrupts.deferred():
        assert signal.getsignal(signal.SIGTERM) is not earlier
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_a_library_does_not_keep_the_handlers() -> None:
    earlier = signal.getsignal(signal.SIGTERM)
    with interrupts.kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_in_other_threads_it_does_nothing() -> None:
    errors: list[Exception] = []

    def work() -> None:
        try:
            with interrupts.deferred():
                pass
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


def test_a_second_signal_does_not_cut_the_tidying_short() -> None:
    script = (
        "import signal\n"
        "from resfool import interrupts\n"
        "interrupts.raise_once()\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('tidied')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "tidied\n")
