"""Random numbers that depend on a seed alone, or that are drawn twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers drawn inside depend on `seed` alone, and leave those drawn outside as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def random_numbers_repeated(device: torch.device) -> Iterator[None]:
    """The random numbers drawn inside (dropout masks) are drawn once more, the same ones, behind it."""
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    if on_mps is not None:
        torch.mps.set_rng_state(on_mps)
