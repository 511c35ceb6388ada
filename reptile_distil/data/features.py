"""Tokenised rows of unequal length, end to end in flat arrays: a few bytes a token, and a batch is a few slices.

The arrays may be memory-mapped files. A batch is what the tokenizer's `pad` would make of the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptile_distil.data.rows import has_lone_surrogate
from reptile_distil.errors import DataError, ModelError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

    from reptile_distil.data.tasks import Task

Indices = NDArray[np.int64]

TOKEN_COLUMNS = ("input_ids", "token_type_ids", "attention_mask")
"""What a tokenizer may say of each token."""

TEACHER_COLUMNS = "teacher_"
"""What the names of the columns begin with that a teacher with a tokenizer of its own reads."""

_ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class Features:
    """Tokenised rows: row i has the values `starts[i]` to `starts[i] + lengths[i]` of each column."""

    columns: Mapping[str, NDArray[Any]]
    """By name (of `TOKEN_COLUMNS`), the values of all rows end to end."""
    starts: Indices
    """(N,)"""
    lengths: Indices
    """(N,) tokens of each row."""
    labels: NDArray[Any] | None
    """(N,) int64 classes or float64 scores, (N, C) float64 for a multi-label task; None for unlabelled rows."""
    row_ids: Indices
    """(N,) number of each row in its split, counted from 0."""
    of_teacher: Features | None = None
    """The same rows as the teacher's tokenizer makes them; None: one tokenizer serves both models."""
    is_labelled: NDArray[np.bool_] | None = None
    """(N,) which rows have a label, where some are transfer rows (see `transfer`); None: all, or as `labels` says."""

    @classmethod
    def end_to_end(
        cls, columns: Mapping[str, NDArray[Any]], lengths: NDArray[Any], labels: Any, row_ids: Indices | None = None
    ) -> Self:
        """Rows that follow each other without a gap; all those of a split, where `row_ids` does not say which.

        Raises `DataError` where a column has not the sum of `lengths`.
        """
        lengths = lengths.astype(np.int64)
        for name, values in columns.items():
            if len(values) != lengths.sum():
                raise DataError(f"column {name!r} has {len(values)} values for {lengths.sum()} tokens")
        row_ids = np.arange(len(lengths)) if row_ids is None else row_ids
        return cls(columns, np.cumsum(lengths) - lengths, lengths, labels, row_ids)

    @classmethod
    def from_dataset(cls, rows: datasets.Dataset, row_ids: Indices | None = None) -> Self:
        """The lists of token ids, token types and masks and the `label` of a `datasets.Dataset`; see `end_to_end`.

        Raises `DataError` for any other column, and where there is no `input_ids`.
        """
        for name in rows.column_names:
            if name not in (*TOKEN_COLUMNS, "label"):
                raise DataError(f"column {name!r} cannot be part of a batch: remove it, or tokenise the rows first")
        if "input_ids" not in rows.column_names:
            raise DataError("the rows have no column 'input_ids': tokenise them first")
        table = rows.with_format("arrow")[:]
        lists = {name: table[name].chunks for name in table.column_names if name != "label"}
        return cls.end_to_end(
            {name: _narrow([chunk.flatten().to_numpy() for chunk in chunks]) for name, chunks in lists.items()},
            np.concatenate([chunk.value_lengths().to_numpy() for chunk in lists["input_ids"]]),
            _labels(table["label"]) if "label" in table.column_names else None,
            row_ids,
        )

    @property
    def has_label_sets(self) -> bool:
        """Whether the labels are those of a multi-label task."""
        return self.labels is not None and self.labels.ndim == 2

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def column_names(self) -> list[str]:
        """Names that `[]` takes."""
        return [*self.columns, *(() if self.labels is None else ("label",))]

    def __getitem__(self, name: str) -> Any:
        """The labels (N,) or (N, C) for `label`, else a list with each row's values."""
        if name == "label" and self.labels is not None:
            return self.labels
        values = self.columns[name]
        return [
            values[start : start + length].tolist() for start, length in zip(self.starts, self.lengths, strict=True)
        ]

    def select(self, rows: Any) -> Features:
        """The rows of these indices, in this order; nothing is copied but where they are."""
        chosen = np.asarray(rows, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        of_teacher = None if self.of_teacher is None else self.of_teacher.select(chosen)
        is_labelled = None if self.is_labelled is None else self.is_labelled[chosen]
        return Features(
            self.columns,
            self.starts[chosen],
            self.lengths[chosen],
            labels,
            self.row_ids[chosen],
            of_teacher,
            is_labelled,
        )

    @property
    def labelled(self) -> Features:
        """The rows that have a label."""
        if self.is_labelled is None:
            return self
        return replace(self.select(np.flatnonzero(self.is_labelled)), is_labelled=None)

    @property
    def num_transfer_rows(self) -> int:
        """Rows among those with labels that have none."""
        return 0 if self.is_labelled is None else int((~self.is_labelled).sum())

    def beside(self, of_teacher: Features) -> Features:
        """The rows with what the teacher's tokenizer makes of them. Raises `DataError` where those are other rows."""
        if not np.array_equal(self.row_ids, of_teacher.row_ids):
            raise DataError(f"{len(of_teacher)} rows of the teacher do not belong to {len(self)} rows of the student")
        return replace(self, of_teacher=of_teacher)

    def fingerprint(self) -> dict[str, int | str]:
        """Number of rows, and a SHA-256 of their token ids and labels in order."""
        digest = hashlib.sha256(self.lengths.tobytes())
        for name in sorted(self.columns):
            digest.update(name.encode())
            for start in range(0, len(self), _ROWS_AT_ONCE):
                rows = slice(start, start + _ROWS_AT_ONCE)
                tokens = _positions(self.starts[rows], self.lengths[rows])
                digest.update(self.columns[name][tokens].astype(np.int64).tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        if self.of_teacher is not None:
            digest.update(str(self.of_teacher.fingerprint()["sha256"]).encode())
        return {"num_rows": len(self), "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class Padding:
    """What stands in a batch where a row has no token."""

    values: Mapping[str, int]
    """By name of column."""
    on_the_left: bool
    """Whether it stands before the row, not behind it."""
    adds_mask: bool
    """Whether a batch has an attention mask even where the rows have none."""

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """As the tokenizer's own `pad`. Raises `ModelError` where it has no padding token."""
        if tokenizer.pad_token_id is None:
            raise ModelError(
                f"the tokenizer ({type(tokenizer).__name__}) has no padding token, which batches need: "
                "set tokenizer.pad_token, and the model's config.pad_token_id"
            )
        return cls(
            dict(zip(TOKEN_COLUMNS, (tokenizer.pad_token_id, tokenizer.pad_token_type_id, 0), strict=True)),
            on_the_left=tokenizer.padding_side == "left",
            adds_mask="attention_mask" in tokenizer.model_input_names,
        )


def pad_rows(features: Features, rows: Indices, padding: Padding, *, width: int = 0) -> dict[str, Tensor]:
    """The given rows, padded to the longest of them, or to `width` if that is more.

    Each column is (B, L) int64; `labels` (B,) int64 or float32, or (B, C) float32.
    """
    lengths = features.lengths[rows]
    width = max(width, int(lengths.max()))
    gaps = (width - lengths)[:, None] if padding.on_the_left else 0
    columns_of_rows = np.arange(width) - gaps
    is_token = (columns_of_rows >= 0) & (columns_of_rows < lengths[:, None])  # (B, L)
    tokens = _positions(features.starts[rows], lengths)
    batch = {}
    for name, values in features.columns.items():
        padded = np.full(is_token.shape, padding.values[name], dtype=np.int64)
        padded[is_token] = values[tokens]
        batch[name] = torch.from_numpy(padded)
    if padding.adds_mask and "attention_mask" not in batch:
        batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
    if features.labels is not None:
        labels = features.labels[rows]
        batch["labels"] = torch.from_numpy(labels.astype(np.float32) if labels.dtype.kind == "f" else labels)
    return batch


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores: 0 for the tokens of a mask (B, L), for padding the lowest number.

    It is (B, 1, 1, W), and W the next multiple of 8: what is cut from it to L columns keeps rows that lie as PyTorch's
    memory-efficient attention takes them without a copy.
    """
    num_rows, width = mask.shape
    bias = torch.zeros(num_rows, 1, 1, -(-width // 8) * 8, dtype=dtype)
    bias[..., :width].masked_fill_(mask[:, None, None] == 0, torch.finfo(dtype).min)
    return bias


def _positions(starts: Indices, lengths: Indices) -> Indices:
    """Where the tokens of rows (N,) lie in the flat columns, row after row."""
    ends = np.cumsum(lengths)
    # A token's number among all of them, moved to its own row's start.
    positions: Indices = np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)
    return positions


def _narrow(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """One array of all parts, in the smallest integer type that holds them: BERT's 30,522 ids fit into two bytes."""
    values = np.concatenate(parts)
    kind = np.result_type(np.min_scalar_type(values.min(initial=0)), np.min_scalar_type(values.max(initial=0)))
    return values.astype(kind)


def _labels(column: pa.ChunkedArray) -> NDArray[Any]:
    """(N,) classes or scores, or (N, C) for lists of one number a label. Raises `DataError` for one outside 0 to 1."""
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        flags = np.array(column.to_pylist(), dtype=np.float64)
        if len(wrong := np.flatnonzero(~((flags >= 0) & (flags <= 1)).all(axis=1))):
            raise DataError(
                f"row {wrong[0]}, counted from 0, has the labels {flags[wrong[0]]}: expected a 0 or 1 for each"
            )
        return flags
    return _wide(column.to_numpy())


def _wide(labels: NDArray[Any]) -> NDArray[Any]:
    return labels.astype(np.float64 if labels.dtype.kind == "f" else np.int64)


def text_rows(texts: Iterable[str] | Iterable[Sequence[str]], task: Task) -> list[tuple[str, ...]]:
    """One text, or for a pair task two, for each row. Raises `DataError` for anything else, with its place."""
    if isinstance(texts, str):
        raise DataError(f"predict takes a list of texts, not one text: predict([{texts!r}])")
    if hasattr(texts, "columns") or isinstance(texts, Mapping):  # whose rows are not what it goes through
        raise DataError("predict takes a list of texts, not a table: predict(list(table['text']))")
    wanted = "pairs of texts" if task.is_pair else "single texts"
    rows = []
    for number, row in enumerate(texts):
        has_parts = isinstance(row, Iterable) and not isinstance(row, str | Mapping)
        parts: tuple[Any, ...] = tuple(row) if has_parts else (row,)
        if len(parts) != len(task.text_columns) or not all(isinstance(part, str) for part in parts):
            raise DataError(f"task {task.name}: expected {wanted}, but number {number}, counted from 0, is {row!r:.80}")
        if any(map(has_lone_surrogate, parts)):
            place = f"task {task.name}: number {number}, counted from 0"
            raise DataError(f"{place}, has half of a character (a lone surrogate): {row!r:.80}")
        rows.append(parts)
    return rows
