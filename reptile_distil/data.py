"""Rows → token ids, once → batches, padded to their longest row and grouped by length.

The order of an epoch's batches is a function of (seed, epoch) alone, so that every method sees the same batches and
a run that is taken up again sees those it would have seen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import transformers
from numpy.typing import NDArray
from torch import Tensor

from reptile_distil.errors import DataError

Indices = NDArray[np.int64]


def tokenize(rows: datasets.Dataset, tokenizer: Any, max_length: int) -> datasets.Dataset:
    """Token ids of each row's text or pair of texts, cut to `max_length` tokens, beside its `label` if it has one."""

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded: dict[str, Any] = tokenizer(
            batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length
        ).data
        return encoded

    texts = [name for name in ("text", "text_pair") if name in rows.column_names]
    with quiet_datasets():
        return rows.map(encode, batched=True, remove_columns=texts)


def draw_rows(rows: datasets.Dataset, num_rows: int | None) -> datasets.Dataset:
    """`num_rows` rows drawn without replacement, always the same ones, in their old order; all rows for None.

    Raises `DataError` where there are fewer.
    """
    if num_rows is None:
        return rows
    if num_rows > len(rows):
        raise DataError(f"data.max_train_rows is {num_rows}, but the training set has only {len(rows)} rows")
    chosen = np.random.default_rng(0).choice(len(rows), size=num_rows, replace=False)
    return rows.select(np.sort(chosen))


def length_grouped_batches(lengths: Indices, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """Row indices of each batch of one epoch; every row once, rows of a batch of similar length.

    Rows are shuffled, sorted by length within windows of up to 50 batches (at least four windows, so that batches
    differ from epoch to epoch), cut into batches, and the batches shuffled. The last batch may be smaller.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    window = batch_size * int(np.clip(len(lengths) // (4 * batch_size), 1, 50))
    grouped = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        grouped.append(rows[np.argsort(lengths[rows], kind="stable")])
    rows = np.concatenate(grouped)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


class Batches:
    """Batches of a tokenised data set, on a device.

    Args:
        features: the tokenised rows; a `label` column becomes the batch's `labels`.
        tokenizer: pads.
        batch_size: rows per batch; the last batch of an epoch may be smaller.
        seed: decides, with the epoch, the order in training.
        device: where the batches' tensors lie.
    """

    def __init__(
        self,
        features: datasets.Dataset,
        tokenizer: Any,
        *,
        batch_size: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.features = features
        self.batch_size = batch_size
        self.seed = seed
        self.device = device
        self.lengths: Indices = np.array([len(ids) for ids in features["input_ids"]], dtype=np.int64)
        self.companions: Callable[[int], dict[str, Tensor]] | None = None
        """From a step's number in the run, from 0, to the entries that its training batch has beside its own."""
        self._collate = transformers.DataCollatorWithPadding(tokenizer)

    @property
    def num_rows(self) -> int:
        """Rows in the data set."""
        return len(self.lengths)

    @property
    def num_batches(self) -> int:
        """Batches in one epoch, the last, smaller one included."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch in training order: (B, L) ids and mask, (B,) labels, and companions if any."""
        order = length_grouped_batches(self.lengths, self.batch_size, seed=self.seed, epoch=epoch)
        for step, rows in enumerate(order, start=(epoch - 1) * self.num_batches):
            yield self.batch(rows) | (self.companions(step) if self.companions else {})

    def in_length_order(self) -> Iterator[tuple[Indices, dict[str, Tensor]]]:
        """Row indices and batch, longest rows first (what does not fit in memory fails at once); every row once."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            yield rows, self.batch(rows)

    def batch(self, rows: Indices) -> dict[str, Tensor]:
        """The given rows as one batch, padded to the longest of them."""
        columns = self.features[rows]
        features = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        batch: dict[str, Tensor] = self._collate(features).data
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars from `datasets` inside."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
