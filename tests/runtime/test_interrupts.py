"""Signals: when they stop a run, and when they wait."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from reptile_distil.runtime.interrupts import Interrupted, Interrupts

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def as_at_a_terminal():
    """Ctrl-C raises, as it does where a shell has not put the tests into the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop(body):
    """What `body(interrupts, done)` raised while signals were caught, and what it had put into `done`."""
    done = []
    with pytest.raises(BaseException) as raised, Interrupts() as interrupts:  # noqa: PT011
        body(interrupts, done)
    return raised.value, done


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_raises_where_the_program_is_and_knows_its_exit_code(number, code):
    error, _ = stop(lambda *_: send(number))
    assert isinstance(error, Interrupted)
    assert error.exit_code == code
    assert str(error).startswith(f"interrupted by {number.name}")


def test_a_held_signal_waits_for_the_end_of_the_block():
    def body(interrupts, done):
        with interrupts.held():
            send(signal.SIGTERM)
            done.append("inside")
        done.append("behind")

    error, done = stop(body)
    assert isinstance(error, Interrupted)
    assert done == ["inside"]


def test_an_error_inside_a_held_block_is_not_hidden_by_the_signal():
    def body(interrupts, _):
        with interrupts.held():
            send(signal.SIGTERM)
            raise ValueError("full")

    assert isinstance(stop(body)[0], ValueError)


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_stops_at_once_even_inside_a_held_block(first):
    def body(interrupts, done):
        with interrupts.held():
            send(first)
            done.append("first")
            send(signal.SIGINT)
            done.append("second")

    error, done = stop(body)
    assert type(error) is KeyboardInterrupt
    assert done == ["first"]


def test_after_the_first_signal_no_other_disturbs_the_writing():
    def body(_, done):
        try:
            send(signal.SIGUSR1)
        except Interrupted:
            send(signal.SIGTERM)
            done.append("written")
            raise

    error, done = stop(body)
    assert done == ["written"]
    assert error.signal == signal.SIGUSR1


class Quiet:
    def __del__(self):
        send(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_swallowed_is_raised_at_the_end_of_the_next_held_block():
    def body(interrupts, done):
        thing = Quiet()
        del thing
        done.append("swallowed")
        with interrupts.held():
            pass

    error, done = stop(body)
    assert isinstance(error, Interrupted)
    assert done == ["swallowed"]


def test_the_handlers_of_before_are_back_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        with Interrupts():
            pass
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interrupts() as interrupts, interrupts.held():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_what_survives_a_failed_run_does_not_survive_an_interrupt():
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


def test_importing_installs_nothing():
    code = "import signal, reptile_distil.runtime.interrupts; print(signal.getsignal(15) == signal.SIG_DFL)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
