"""Transfer rows: training rows without labels, from which a student learns by its teacher's soft labels alone.

Their labels in `Features`, and so in batches, are -1 for classes and NaN for scores and for sets of labels: a loss that
would use one fails, or is NaN. What a batch's `task_weights` say of them is in `batches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptile_distil.data.features import Features, Indices
from reptile_distil.errors import DataError

_DRAW = 2  # so that its random numbers are not those of the batches


def hide_labels(rows: Features, *, num_labelled: int, seed: int, skip: int = 0) -> tuple[Features, Features]:
    """Splits the rows in two, each in order: `num_labelled` that keep their labels, and the others without labels.

    Whether a row comes first is decided by its number in its split and the seed alone: it does not depend on which
    other rows are there, and fewer labelled rows are always among those of a larger number. The first `skip` rows of
    that order do not keep theirs. Raises `DataError` where either part would be empty, or there are too few rows.
    """
    if not 0 < num_labelled < len(rows):
        raise DataError(
            f"data.transfer: {num_labelled} of {len(rows)} training rows would keep their labels: neither none nor all "
            "of them can, so give another fraction or labelled_rows"
        )
    if skip + num_labelled > len(rows):
        raise DataError(
            f"data.transfer: {num_labelled} of {len(rows)} training rows are to keep their labels, but {skip} are "
            "skipped before them: give a smaller skip, or fewer labelled_rows"
        )
    place_in_draw = np.random.default_rng([seed, _DRAW]).random(int(rows.row_ids.max()) + 1)[rows.row_ids]
    order = np.argsort(place_in_draw, kind="stable")
    keeps = np.zeros(len(rows), dtype=bool)
    keeps[order[skip : skip + num_labelled]] = True
    labelled, hidden = (rows.select(np.flatnonzero(part)) for part in (keeps, ~keeps))
    return labelled, without_labels(hidden, like=rows)


def without_labels(rows: Features, *, like: Features) -> Features:
    """The rows as transfer rows, beside rows with labels `like` those. What labels they have is dropped."""
    labels = like.labels
    if labels is None:
        raise DataError("transfer rows are for training rows with labels, and these have none")
    missing = np.nan if labels.dtype.kind == "f" else -1
    none = np.full((len(rows), *labels.shape[1:]), missing, dtype=labels.dtype)
    return replace(rows, labels=none, is_labelled=np.zeros(len(rows), dtype=bool))


def join_rows(parts: Sequence[Features]) -> Features:
    """All rows of the parts, one part after the other; their tokens are copied unless they lie in the same arrays.

    Each row keeps its number in its own split. Raises `DataError` for parts with other columns.
    """
    first = parts[0]
    for part in parts:
        if set(part.columns) != set(first.columns):
            ours, theirs = ", ".join(first.columns), ", ".join(part.columns)
            raise DataError(f"rows with {theirs} cannot be joined to rows with {ours}")
    # Their labels are no part of a batch: those of files have none, others may be hidden.
    of_teacher = [replace(part.of_teacher, labels=None) for part in parts if part.of_teacher is not None]
    has_transfer_rows = any(part.is_labelled is not None for part in parts)
    columns, starts = _join_tokens(parts)
    return Features(
        columns,
        starts,
        np.concatenate([part.lengths for part in parts]),
        _join_labels(parts),
        np.concatenate([part.row_ids for part in parts]),
        join_rows(of_teacher) if of_teacher else None,
        np.concatenate([_labelled(part) for part in parts]) if has_transfer_rows else None,
    )


def count_shared(rows: Features, others: Features) -> int:
    """How many of `others` have the same tokens as one of the rows."""
    known = set(_tokens_of(rows))
    return sum(tokens in known for tokens in _tokens_of(others))


def _tokens_of(rows: Features) -> Iterator[bytes]:
    ids = rows.columns["input_ids"]
    for start, length in zip(rows.starts, rows.lengths, strict=True):
        yield ids[start : start + length].astype(np.int64).tobytes()


def _join_tokens(parts: Sequence[Features]) -> tuple[Mapping[str, NDArray[Any]], Indices]:
    """The columns of all parts, and where in them each row starts."""
    first = parts[0].columns
    if all(part.columns is first for part in parts):
        return first, np.concatenate([part.starts for part in parts])
    sizes = [len(next(iter(part.columns.values()))) for part in parts]
    before = np.cumsum([0, *sizes[:-1]])
    starts = np.concatenate([part.starts + shift for part, shift in zip(parts, before, strict=True)])
    return {name: np.concatenate([part.columns[name] for part in parts]) for name in first}, starts


def _labelled(part: Features) -> NDArray[np.bool_]:
    return np.ones(len(part), dtype=bool) if part.is_labelled is None else part.is_labelled


def _join_labels(parts: Sequence[Features]) -> NDArray[Any] | None:
    labels = [part.labels for part in parts if part.labels is not None]
    if labels and len(labels) < len(parts):
        raise DataError("rows with and without labels cannot be joined: mark those without as transfer rows")
    return np.concatenate(labels) if labels else None
