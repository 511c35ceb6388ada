"""What torchrun or `accelerate launch` says of the processes it has started, known before they have joined.

Without PyTorch, so that a command can ask before it loads anything.
"""

from __future__ import annotations

import os


def launched_count() -> str:
    """The number of processes as their launcher gave it, in its own words; `1` without a launcher."""
    return os.environ.get("WORLD_SIZE", "1")


def launched_several() -> bool:
    """Whether a launcher has started this process as one of several."""
    return launched_count() != "1"


def launched_rank() -> int:
    """The process's number as its launcher gave it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0")) if launched_several() else 0
