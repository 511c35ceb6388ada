"""Memory: the peak of a run, in bytes, and what to do where there is not enough."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from reptile_distil.errors import OutOfMemoryError


def free_memory() -> None:
    """Gives back what models took that are used no more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: str) -> None:
    """Starts a new measurement. Where the system cannot forget an earlier peak, it stays in."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the process's high-water mark


def peak_memory(device: str) -> int:
    """Bytes: the device's peak on CUDA, else the process's highest resident memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def explain_out_of_memory(setting: str) -> Iterator[None]:
    """Where memory runs out inside, raises an `OutOfMemoryError` that says to lower `setting`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory ({' '.join(str(error).split())[:200]}): lower {setting}") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on a device, in PyTorch on the CPU (a plain RuntimeError), or in Python and NumPy."""
    is_ours = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_ours or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
