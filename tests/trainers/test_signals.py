"""The first signal asks, the second ends; handlers are put back and other threads are left alone."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from dialtune.trainers.signals import WATCHED, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_sets_the_flag_and_nothing_else_happens(number):
    with stop_on_signals() as flag:
        assert flag.number is None
        os.kill(os.getpid(), number)
        assert flag.number == number


def test_the_handlers_that_were_there_are_put_back_even_after_an_error():
    def mine(number, frame):
        pass

    original = {number: signal.signal(number, mine) for number in WATCHED}
    try:
        watching = stop_on_signals()
        watching.__enter__()
        assert all(signal.getsignal(number) is not mine for number in WATCHED)
        assert not watching.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
        assert all(signal.getsignal(number) is mine for number in WATCHED)
    finally:
        for number, handler in original.items():
            signal.signal(number, handler)


def test_a_second_signal_ends_the_process_at_once_with_its_code():
    pid = os.fork()
    if pid == 0:  # the child must never return into pytest
        try:
            with stop_on_signals():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130


def test_another_thread_gets_a_flag_that_no_signal_sets():
    # Python lets only the main thread set handlers; a run inside a server's thread must still work.
    found = []

    def work():
        before = signal.getsignal(signal.SIGTERM)
        with stop_on_signals() as flag:
            found.append((flag.number, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, True)]
