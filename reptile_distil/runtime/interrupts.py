"""Signals that ask a run to stop: SIGTERM, Ctrl-C, and SIGUSR1, which Slurm sends ahead of a job's time limit."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # it takes PyTorch, and a Ctrl-C while that is loaded is wanted as one of these
    from reptile_distil.runtime.processes import Processes

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]

STEPS_BETWEEN_AGREEMENTS = 10


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop. No `Exception`: what carries on after a failed run must not after this.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)
        self.saved_step: int | None = None
        """The step whose checkpoint was written last; None where there is none."""

    @property
    def exit_code(self) -> int:
        """128 and the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signal

    def __str__(self) -> str:
        if self.saved_step is None:
            return f"interrupted by {self.signal.name} outside of training; the same command starts or goes on"
        return (
            f"interrupted by {self.signal.name}; a checkpoint of step {self.saved_step} was written, "
            "and the same command goes on from there"
        )


class Interrupts:
    """While entered, a signal raises `Interrupted` where the program is, or, in `held()`, where that ends.

    A second Ctrl-C stops at once, as a `KeyboardInterrupt`; other signals after the first are ignored, so that nothing
    keeps the checkpoint from being written. Signals that were ignored before stay so (nohup). In a thread other than
    the main one, which gets no signals, this does nothing.

    One of several processes that stopped wherever it is would leave the others waiting. So there a signal is only
    noted, until all of them have come to the same `agree`.
    """

    def __init__(self, processes: Processes | None = None, device: str = "cpu") -> None:
        self._others = processes if processes and processes.count > 1 else None
        self._device = device
        self._received: int | None = None
        self._is_held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):
                    self._before[number] = before
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self._others is not None and self._received is not None and kind is None:
            signal.raise_signal(self._received)  # noted, but not acted on: for whoever was asked before

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing inside is left half done: a signal waits for the end of the block."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
        # Also where an `Interrupted` got lost: Python swallows those that hit a destructor.
        if self._received is not None and self._others is None:
            raise Interrupted(self._received)

    def agree(self, step: int = 0) -> None:
        """Raises `Interrupted` on each of several processes if any has got a signal; all must call it at the same time.

        Of the `step`s of training only each tenth is taken for it, since it waits for the device.
        """
        if self._others is not None and step % STEPS_BETWEEN_AGREEMENTS == 0:
            number = self._others.largest(self._received or 0, self._device)
            if number:
                raise Interrupted(number)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        if not self._is_held and self._others is None:
            raise Interrupted(number)
