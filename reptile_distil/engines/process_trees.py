"""Ends jobs that are processes of this machine: each a controller that has started the worker, its child."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_SECONDS_BETWEEN_SIGNALS = 0.5
_SECONDS_TO_DIE = 10.0


@contextlib.contextmanager
def out_of_reach_of_ctrl_c() -> Iterator[None]:
    """Processes that are started inside get no SIGINT; to this process it comes at the end of the block.

    A terminal sends Ctrl-C to all of its processes, and submitit's controllers kill their workers 1 s after it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_trees(controllers: Sequence[int], has_ended: Callable[[int], bool], seconds: float) -> None:
    """Returns when all have ended: by SIGTERM, which controllers hand on, or, after `seconds` or an interrupt, killed.

    A worker that is still starting takes no signal, so that it is sent again and again.

    Args:
        controllers: process ids of children of this process.
        has_ended: of one of them, and if so, takes it out of the system's list.
        seconds: how long they have.
    """
    until = time.monotonic() + seconds
    try:
        while (running := [pid for pid in controllers if not has_ended(pid)]) and time.monotonic() < until:
            for pid in running:
                os.kill(pid, signal.SIGTERM)
            time.sleep(min(_SECONDS_BETWEEN_SIGNALS, seconds))
    finally:
        for pid in controllers:
            if not has_ended(pid):
                killed = _kill_tree(pid)
                while not has_ended(pid):
                    time.sleep(0.01)
                _wait_until_gone(killed)


def _kill_tree(pid: int) -> list[int]:
    """Returns the processes that it has killed; those that are no children of this one may take a moment to die."""
    os.kill(pid, signal.SIGSTOP)  # it is to start nothing more
    killed = []
    for child in _children_of(pid):
        with contextlib.suppress(ProcessLookupError):
            killed += _kill_tree(child)
    os.kill(pid, signal.SIGKILL)
    return [*killed, pid]


def _wait_until_gone(pids: Sequence[int]) -> None:
    until = time.monotonic() + _SECONDS_TO_DIE
    while any(_is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    """Whether a process is there that has not ended; one whose parent has only not asked for it yet has."""
    if Path("/proc/self/stat").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        return False
    row = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return row.stdout.strip()[:1] not in ("", "Z")


def _children_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    table = subprocess.run(["ps", "-A", "-o", "pid=", "-o", "ppid="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in table.stdout.splitlines()]
    return [int(child) for child, parent in rows if int(parent) == pid]
