"""Stops a run whose losses are no longer finite, naming the step, its learning rates and its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reptile_distil.data.batches import Batches
from reptile_distil.errors import DivergedError
from reptile_distil.methods.step import Logs

if TYPE_CHECKING:
    from reptile_distil.training.loop import Progress


class DivergenceWatch:
    """Finds the first step whose logs are not finite. It looks on the device; only `check` waits for the answer.

    Args:
        batches: the training batches, to name the rows of that step.
        title: names the run in the error message.
    """

    def __init__(self, batches: Batches, title: str) -> None:
        self._batches = batches
        self._title = title
        self._bad_step: Tensor | None = None  # 0: none so far
        self._bad_values: Tensor | None = None
        self._names: list[str] = []
        self._rates: dict[int, Mapping[str, float]] = {}

    def look(self, progress: Progress, logs: Logs, rates: Mapping[str, float]) -> None:
        """Notes whether the logs of the latest step are finite, and the learning rates that it used."""
        values = torch.stack([value.detach().float() for value in logs.values()])
        if self._bad_step is None or self._bad_values is None:
            self._bad_step, self._bad_values = torch.zeros((), dtype=torch.long, device=values.device), values
        is_first = ~values.isfinite().all() & (self._bad_step == 0)
        self._bad_step = torch.where(is_first, progress.step, self._bad_step)
        self._bad_values = torch.where(is_first, values, self._bad_values)
        self._names = list(logs)
        self._rates[progress.step] = rates

    def check(self, progress: Progress) -> None:
        """Raises `DivergedError` for a step of the epoch under way that was not finite; forgets finite ones' rates."""
        step = 0 if self._bad_step is None else int(self._bad_step)
        if not step or self._bad_values is None:
            self._rates.clear()
            return
        name, value = next(
            (name, value)
            for name, value in zip(self._names, self._bad_values.tolist(), strict=True)
            if not math.isfinite(value)
        )
        batch = progress.batches_done - 1 - (progress.step - step)
        rows = self._batches.name_rows(progress.epochs_done + 1, batch)
        rates = ", ".join(f"{name} {rate:.2e}" for name, rate in self._rates[step].items())
        raise DivergedError(
            f"{self._title}: step {step}: {name} is {value} (learning rates: {rates}; training rows, counted from 0: "
            f"{rows}); the weights have diverged: lower the learning rate, or check these rows"
        )
