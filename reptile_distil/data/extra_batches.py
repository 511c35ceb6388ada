"""Batches that come beside a training batch: a quiz of rows held out of training, or the batches that follow.

The extra_batches of a step are a function of (seed, epoch, step) alone, as the training batches are, so that a run that
is taken up again sees those it would have seen. They travel inside the training batch, under names like `quiz/labels`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from reptile_distil.data.batches import Batches, length_grouped_batches
from reptile_distil.data.features import Features, Indices
from reptile_distil.errors import DataError


def hold_out(rows: Features, fraction: float) -> tuple[Features, Features]:
    """The rows that are left to train on, and `fraction` of the rows; always the same ones, in their old order.

    Raises `DataError` where either part would be empty.
    """
    num_held_out = round(fraction * len(rows))
    if not 0 < num_held_out < len(rows):
        raise DataError(
            f"a fraction of {fraction} of {len(rows)} training rows is {num_held_out} rows: neither none nor all of "
            "them can be held out"
        )
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.select(np.sort(order[num_held_out:])), rows.select(np.sort(order[:num_held_out]))


class BatchStream:
    """The batches of epoch after epoch in training order, without end, that can be entered anywhere."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._epoch = 0
        self._order: list[Indices] = []

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Batch `number` of them all, counted from 0."""
        past_epochs, index = divmod(number, self.batches.num_batches)
        if past_epochs + 1 != self._epoch:
            self._epoch = past_epochs + 1
            self._order = length_grouped_batches(
                self.batches.lengths, self.batches.batch_size, seed=self.batches.seed, epoch=self._epoch
            )
        return self.batches.batch(self._order[index])


class ExtraBatches:
    """`num_batches` batches of a stream for each step; called with the number of the step in the run, from 0.

    Held-out batches are used up one after another. With `overlapping`, a step's extra_batches are the stream's batches
    from the step's own number on, so that with a stream of the training batches they are that batch and those that
    follow it.
    """

    def __init__(self, name: str, stream: BatchStream, *, num_batches: int = 1, overlapping: bool = False) -> None:
        self._names = extra_batch_names(name, num_batches)
        self._stream = stream
        self._stride = 1 if overlapping else num_batches

    @property
    def features(self) -> Features:
        """The rows that the stream is made of."""
        return self._stream.batches.features

    def __call__(self, step: int) -> dict[str, Tensor]:
        """The extra_batches' entries, under `NAME/`."""
        first = self._stride * step
        return {
            f"{name}/{key}": tensor
            for number, name in enumerate(self._names, start=first)
            for key, tensor in self._stream[number].items()
        }


def extra_batch_names(name: str, num_batches: int) -> list[str]:
    """The names that so many extra_batches of a batch go by."""
    return [name] if num_batches == 1 else [f"{name}{number}" for number in range(num_batches)]


def companion(batch: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The companion of that name. Raises `ValueError` where the batch has none."""
    prefix = f"{name}/"
    found = {key.removeprefix(prefix): tensor for key, tensor in batch.items() if key.startswith(prefix)}
    if not found:
        raise ValueError(f"the batch has no companion {name!r}: its entries are {', '.join(batch)}")
    return found


def alone(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch without its extra_batches."""
    return {key: tensor for key, tensor in batch.items() if "/" not in key}
