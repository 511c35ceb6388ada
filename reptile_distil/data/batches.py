"""Rows → token ids, once → batches, padded to their longest row and grouped by length.

The order of an epoch's batches is a function of (seed, epoch) alone, so that every method gets the same batches, and a
resumed run gets the same ones as a run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptile_distil.data.features import TEACHER_COLUMNS, Features, Indices, Padding, attention_bias, pad_rows
from reptile_distil.data.order import length_grouped_batches, mixed_batches, sizes_beside
from reptile_distil.errors import DataError

if TYPE_CHECKING:
    import datasets

Rows = TypeVar("Rows", "datasets.Dataset", Features)


Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and, where the model has them, `token_type_ids`, each (B, L); `labels` (B,).

Where the teacher has a tokenizer of its own, its columns are there too, as `teacher_input_ids` and so on.
Where the teacher's logits were kept, also `teacher_logits` (B, C).

Where some rows are transfer rows, `task_weights` (B,), each row's weight in the task loss: B / |l| for the |l| rows
that have a label, 0 for the others, whose labels are -1 or NaN.

On a GPU also what no forward pass needs to ask the GPU for then, or to make again: `lengths` (B,), the tokens of each
row, which stay on the CPU, where padding is on the right; and `attention_bias` (B, 1, 1, L), where rows have padding.
"""


TASK_WEIGHTS = "task_weights"
"""Name of that entry of a batch."""


class StepBatches(NamedTuple):
    """What one training step is taken on: `method.step(batch, *extra)`."""

    batch: Batch
    """The training batch."""
    extra: tuple[Batch | Sequence[Batch], ...] = ()
    """The step's second argument, where the method takes one: MetaDistil's quiz, or the batches of the inner steps."""


def tokenize(rows: datasets.Dataset, tokenizer: Any, max_length: int) -> datasets.Dataset:
    """Token ids of each row's text or pair of texts, cut to `max_length` tokens, beside its `label` if it has one."""

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        encoded: dict[str, Any] = tokenizer(
            batch["text"], batch.get("text_pair"), truncation=True, max_length=max_length
        ).data
        for row, ids in enumerate(encoded["input_ids"]):
            if not ids:  # an empty text, where the tokenizer adds nothing to a text
                for name, value in stand_in.items():
                    if name in encoded:
                        encoded[name][row] = [value]
        return encoded

    # A model must have something to read.
    stand_in = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 1, "token_type_ids": 0}
    texts = [name for name in ("text", "text_pair") if name in rows.column_names]
    with quiet_datasets():
        return rows.map(encode, batched=True, remove_columns=texts)


def draw_rows(rows: Rows, num_rows: int | None) -> Rows:
    """`num_rows` rows drawn without replacement, always the same ones, in their old order; all rows for None.

    Raises `DataError` where there are fewer.
    """
    return rows if num_rows is None else rows.select(draw_row_ids(len(rows), num_rows))


def draw_row_ids(total: int, num_rows: int | None) -> Indices:
    """Which of `total` rows `draw_rows` draws, in ascending order."""
    if num_rows is None:
        return np.arange(total)
    if num_rows > total:
        raise DataError(f"data.max_train_rows is {num_rows}, but the training set has only {total} rows")
    return np.sort(np.random.default_rng(0).choice(total, size=num_rows, replace=False))


class ExtraBatchSource(Protocol):
    """Where a step's second argument comes from (see `extra_batches`)."""

    @property
    def features(self) -> Features:
        """The rows that the extra batches are made of."""
        ...

    def __getitem__(self, step: int) -> Batch | Sequence[Batch]:
        """The second argument of this step of the run, counted from 0: a batch or several, as the method takes it."""
        ...


class Batches:
    """Batches of a tokenised data set, on a device.

    Args:
        features: the tokenised rows; a `label` column becomes the batch's `labels`. What `tokenize` returns is
            taken out of its lists once.
        tokenizer: says how to pad.
        teacher_tokenizer: says how to pad the teacher's columns, where the features have such (`of_teacher`).
        batch_size: rows per batch; one batch of an epoch may be smaller.
        num_transfer: how many of these are transfer rows, where the features have such (see `mixed_batches`).
        seed: decides, with the epoch, the order in training.
        device: where the batches' tensors lie.
        length_step: batches are padded to a multiple of this many tokens, but never beyond the data set's longest row.
        bias_dtype: the type in which forward passes compute attention.
    """

    def __init__(
        self,
        features: Features | datasets.Dataset,
        tokenizer: Any,
        *,
        batch_size: int,
        seed: int = 0,
        device: str = "cpu",
        length_step: int = 1,
        teacher_tokenizer: Any = None,
        bias_dtype: torch.dtype = torch.float32,
        num_transfer: int = 0,
    ) -> None:
        self.features = features if isinstance(features, Features) else Features.from_dataset(features)
        self.batch_size = batch_size
        self.num_transfer = num_transfer
        self.seed = seed
        self.device = device
        self.length_step = length_step
        self.bias_dtype = bias_dtype
        self.extra_batches: ExtraBatchSource | None = None
        """Where the second argument of the method's step comes from; None: the method takes the batch alone."""
        self.teacher_logits: NDArray[np.float32] | None = None
        """(N, C) the teacher's logits of each row, which each batch then brings; None: it brings none."""
        self.padding = Padding.of(tokenizer)
        self.teacher_padding = None if teacher_tokenizer is None else Padding.of(teacher_tokenizer)

    @property
    def lengths(self) -> Indices:
        """(N,) tokens of each row."""
        return self.features.lengths

    @property
    def num_rows(self) -> int:
        """Rows in the data set."""
        return len(self.lengths)

    @property
    def num_transfer_rows(self) -> int:
        """Rows that have no label, among others that have."""
        return self.features.num_transfer_rows

    @property
    def num_labelled_rows(self) -> int:
        """The other rows: an epoch is one pass over them."""
        return self.num_rows - self.num_transfer_rows

    @property
    def num_batches(self) -> int:
        """Batches in one epoch, the last, smaller one included."""
        num_rows = self.num_labelled_rows if self.num_transfer else self.num_rows
        return -(-num_rows // (self.batch_size - self.num_transfer))

    @property
    def transfer_rows_per_epoch(self) -> int:
        """Transfer rows in the batches of one epoch."""
        if not self.num_transfer:
            return 0
        return sum(sizes_beside(self.num_labelled_rows, self.batch_size - self.num_transfer, self.num_transfer))

    def sees_every_row(self, num_steps: int) -> bool:
        """Whether the batches of so many steps, from the first on, have each row at least once."""
        epochs, rest = divmod(num_steps, self.num_batches)
        # A batch that has fewer is counted as whole: this decides what pays, not what is computed.
        num_transfer = epochs * self.transfer_rows_per_epoch + rest * self.num_transfer
        return epochs > 0 and num_transfer >= self.num_transfer_rows

    def describe_rows(self) -> str:
        """How many rows there are, in words."""
        if not self.num_transfer_rows:
            return f"{self.num_rows} training rows"
        return f"{self.num_labelled_rows} training rows with labels and {self.num_transfer_rows} without"

    def count_examples(self, num_steps: int) -> int:
        """Rows of the batches of so many steps, about, where these end within an epoch."""
        per_epoch = self.num_rows
        if self.num_transfer:
            per_epoch = self.num_labelled_rows + self.transfer_rows_per_epoch
        epochs, rest = divmod(num_steps, self.num_batches)
        return epochs * per_epoch + min(rest * self.batch_size, per_epoch)

    def epoch(self, epoch: int, *, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """The batches of one epoch in training order, the first `skip` left out: (B, L) ids and mask, (B,) labels."""
        for rows in self.order(epoch)[skip:]:
            yield self.batch(rows)

    def steps(self, epoch: int, *, skip: int = 0) -> Iterator[StepBatches]:
        """The batches of one epoch as `epoch` gives them, each with the extra batches of its step of the run."""
        for step, batch in enumerate(self.epoch(epoch, skip=skip), start=(epoch - 1) * self.num_batches + skip):
            yield StepBatches(batch, () if self.extra_batches is None else (self.extra_batches[step],))

    def row_ids(self, epoch: int, batch: int) -> list[int]:
        """Which rows of their split, counted from 0, are in a batch (counted from 0) of an epoch."""
        ids: list[int] = self.features.row_ids[self.order(epoch)[batch]].tolist()
        return ids

    def name_rows(self, epoch: int, batch: int) -> str:
        """The same for a message, transfer rows apart: they may be those of other files."""
        rows, features = self.order(epoch)[batch], self.features
        if features.is_labelled is None:
            return ", ".join(map(str, features.row_ids[rows]))
        parts = [features.row_ids[rows[features.is_labelled[rows] == has_label]] for has_label in (True, False)]
        labelled, transfer = (", ".join(map(str, ids)) for ids in parts)
        return f"{labelled}; transfer rows: {transfer}"

    def order(self, epoch: int) -> list[Indices]:
        """The row indices of each batch of an epoch, in training order."""
        if self.num_transfer and self.features.is_labelled is not None:
            return mixed_batches(
                self.features.is_labelled,
                self.lengths,
                self.batch_size,
                self.num_transfer,
                seed=self.seed,
                epoch=epoch,
            )
        return length_grouped_batches(self.lengths, self.batch_size, seed=self.seed, epoch=epoch)

    def in_length_order(self, first: int = 0, step: int = 1) -> Iterator[tuple[Indices, dict[str, Tensor]]]:
        """Row indices and batch, longest rows first (what does not fit in memory fails at once); every row once.

        Only each `step`-th batch from number `first` on, one for each of several processes: every process gets equally
        many, one of them perhaps the last batch a second time, under no indices.
        """
        order = np.argsort(-self.lengths, kind="stable")
        num_batches = -(-self.num_rows // self.batch_size)
        for turn in range(0, num_batches, step):
            start = min(turn + first, num_batches - 1) * self.batch_size
            rows = order[start : start + self.batch_size]
            yield (rows if turn + first < num_batches else rows[:0]), self.batch(rows)

    def in_batches_of(self, batch_size: int) -> Batches:
        """The same rows in batches of another size, padded no further than needed, with nothing beside them."""
        other = copy.copy(self)
        other.batch_size, other.length_step, other.num_transfer = batch_size, 1, 0
        other.extra_batches = other.teacher_logits = None
        return other

    def with_nothing_beside(self) -> Batches:
        """The same batches, without extra batches."""
        other = copy.copy(self)
        other.extra_batches = None
        return other

    def batch(self, rows: Indices) -> dict[str, Tensor]:
        """The given rows as one batch, padded to the longest of them, up to the next multiple of `length_step`."""
        batch = self._pad(self.features, rows, self.padding)
        if self.features.is_labelled is not None:
            is_labelled = self.features.is_labelled[rows]
            weights = is_labelled * (len(rows) / max(1, is_labelled.sum()))
            batch[TASK_WEIGHTS] = torch.from_numpy(weights.astype(np.float32))
        of_teacher = self.features.of_teacher
        if self.teacher_logits is not None:
            batch["teacher_logits"] = torch.from_numpy(self.teacher_logits[rows])
        elif of_teacher is not None and self.teacher_padding is not None:
            for name, tensor in self._pad(of_teacher, rows, self.teacher_padding).items():
                if name != "labels":
                    batch[TEACHER_COLUMNS + name] = tensor
        if torch.device(self.device).type == "cuda":
            return self._on_gpu(batch, torch.from_numpy(self.lengths[rows]))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _pad(self, features: Features, rows: Indices, padding: Padding) -> dict[str, Tensor]:
        lengths = features.lengths
        width = -(-int(lengths[rows].max()) // self.length_step) * self.length_step
        return pad_rows(features, rows, padding, width=min(width, int(lengths.max(initial=0))))

    def _on_gpu(self, batch: dict[str, Tensor], lengths: Tensor) -> dict[str, Tensor]:
        """The batch on the GPU, with what the CPU knows of its padding; the CPU waits for no copy."""
        width = batch["input_ids"].shape[1]
        # A graph is recorded once for a shape: there every batch has a bias, also one without padding.
        has_bias = "attention_mask" in batch and (self.length_step > 1 or int(lengths.min()) < width)
        given = {
            **batch,
            **({"attention_bias": attention_bias(batch["attention_mask"], self.bias_dtype)} if has_bias else {}),
        }
        # The GPU takes a copy in its turn with all other work; from pinned memory, nothing waits for it here.
        there = {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in given.items()}
        if has_bias:
            there["attention_bias"] = there["attention_bias"][..., :width]
        return there if self.padding.on_the_left else {**there, "lengths": lengths}


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress bars from `datasets` inside."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
