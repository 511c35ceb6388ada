"""Memory and time: peaks in bytes, and callables timed in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import contextlib
import gc
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from reptile_distil.errors import OutOfMemoryError

_NO_MEMORY = re.compile(r"out of memory|_ALLOC_FAILED|can't allocate memory|not enough memory", re.IGNORECASE)


def free_memory() -> None:
    """Frees the memory of models that are no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak_memory(device: str) -> None:
    """Starts a new measurement of the peak. Where the system cannot reset it, an earlier peak is included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the process's high-water mark


def peak_memory(device: str, *, with_graphs: bool = False) -> int:
    """Bytes: the device's peak on CUDA, else the process's highest resident memory.

    What CUDA graphs compute in is reserved for them, and counts as allocated while they are recorded alone: with them
    the peak is that of what was reserved.
    """
    if device == "cuda":
        return torch.cuda.max_memory_reserved() if with_graphs else torch.cuda.max_memory_allocated()
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
    """Whether memory ran out: on a device, in PyTorch on the CPU, or in Python and NumPy.

    CUDA's libraries, graph captures and the CPU's allocator raise a `RuntimeError`, which only its words tell apart.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)) is not None


class Stopwatch:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Returns the seconds since the last lap, or since the stopwatch was made."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class Timing(NamedTuple):
    """Seconds for one batch: the median, and the middle half of all rounds."""

    median: float
    low: float
    high: float
    num_rounds: int


def time_in_turn(
    contenders: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    num_warmups: int = 2,
    min_rounds: int = 5,
    max_rounds: int = 200,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Calls the contenders round after round, in turn, for about `seconds` in all; the time of each.

    A contender must be done when it returns: on CUDA it synchronizes. Warm-up rounds are not counted.
    """
    for _ in range(num_warmups):
        for call in contenders.values():
            call()
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    end = clock() + seconds
    for number in range(max_rounds):
        if number >= min_rounds and clock() >= end:
            break
        for name, call in contenders.items():
            started = clock()
            call()
            spent[name].append(clock() - started)
    return {name: _summarise(values) for name, values in spent.items()}


def best_seconds(work: Callable[[], object], device: str, *, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls of `work`, until the device has done it."""
    best = float("inf")
    for _ in range(repeats):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return best


def random_batch(num_rows: int, length: int, *, vocab_size: int, pad_token_id: int, seed: int = 0) -> dict[str, Tensor]:
    """Ids, mask and segments (B, L) of random tokens, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size - 1, (num_rows, length), generator=generator)
    return {
        "input_ids": ids + (ids >= pad_token_id).long(),
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def pad_at_random(batch: Mapping[str, Tensor], *, pad_token_id: int, seed: int = 0) -> dict[str, Tensor]:
    """The batch with each row but the first cut to a random length of 1 or more, and padded again."""
    rows, length = batch["input_ids"].shape
    lengths = torch.randint(1, length + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    lengths[0] = length
    mask = (torch.arange(length)[None] < lengths[:, None]).long()
    ids = torch.where(mask.bool(), batch["input_ids"], pad_token_id)
    return {**batch, "input_ids": ids, "attention_mask": mask}


def _summarise(seconds: list[float]) -> Timing:
    if len(seconds) < 2:
        return Timing(seconds[0], seconds[0], seconds[0], 1)
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(median, low, high, len(seconds))


def wait_for(device: str) -> None:
    """Returns when the device has finished all work given to it."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
