"""What some methods' `step` takes beside the training batch: a quiz batch, or the batches of the inner steps.

The extra batches of a step are a function of (seed, number of the step) alone, so that a resumed run gets the same ones
as a run that was never interrupted.
"""

from __future__ import annotations

import numpy as np

from reptile_distil.data.batches import Batch, Batches
from reptile_distil.data.features import Features, Indices
from reptile_distil.errors import DataError


def hold_out(rows: Features, fraction: float, *, key: str) -> tuple[Features, Features]:
    """Splits the rows in two, always in the same way: those to train on, and the held-out `fraction`, each in order.

    Raises `DataError`, which names the `key` of the fraction, where either part would be empty.
    """
    num_held_out = round(fraction * len(rows))
    if not 0 < num_held_out < len(rows):
        raise DataError(
            f"{key} = {fraction}: of {len(rows)} training rows it holds out {num_held_out}; give a "
            f"{'smaller' if num_held_out else 'larger'} fraction, or more training rows"
        )
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.select(np.sort(order[num_held_out:])), rows.select(np.sort(order[:num_held_out]))


class BatchStream:
    """All batches of epoch 1 in training order, then those of epoch 2, and so on without end.

    As the `extra_batches` of training batches it gives each step of the run one batch: MetaDistil's quiz.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._epoch = 0
        self._order: list[Indices] = []

    @property
    def features(self) -> Features:
        """The rows that the batches are made of."""
        return self.batches.features

    def __getitem__(self, number: int) -> Batch:
        """Batch `number` of the stream, counted from 0."""
        past_epochs, index = divmod(number, self.batches.num_batches)
        if past_epochs + 1 != self._epoch:
            self._epoch = past_epochs + 1
            self._order = self.batches.order(self._epoch)
        return self.batches.batch(self._order[index])


class BatchGroups:
    """For each step of the run `num_batches` successive batches of a stream: those of Reptile's inner steps.

    Args:
        stream: where the batches come from.
        num_batches: batches per step.
        overlapping: whether step n's batches start with the stream's batch n, so that with a stream of the training
            batches they are the training batch of the step and those that follow it. By default no batch is used twice.
    """

    def __init__(self, stream: BatchStream, *, num_batches: int, overlapping: bool = False) -> None:
        self._stream = stream
        self._num_batches = num_batches
        self._stride = 1 if overlapping else num_batches

    @property
    def features(self) -> Features:
        """The rows that the batches are made of."""
        return self._stream.features

    def __getitem__(self, step: int) -> list[Batch]:
        """The batches of a step, counted from 0."""
        first = self._stride * step
        return [self._stream[number] for number in range(first, first + self._num_batches)]
