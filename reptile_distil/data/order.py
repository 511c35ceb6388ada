"""The order of an epoch's batches: which rows are in each, as a function of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reptile_distil.data.features import Indices

_TRANSFER = 1  # so that their random numbers are not those of the rows with labels


def length_grouped_batches(lengths: Indices, batch_size: int, *, seed: int, epoch: int) -> list[Indices]:
    """Row indices of each batch of one epoch; every row once, rows of a batch of similar length.

    Rows are shuffled, sorted by length within windows of up to 50 batches (at least four windows, so that batches
    differ from epoch to epoch), cut into batches, and the batches shuffled. The last batch may be smaller.
    """
    rng = np.random.default_rng([seed, epoch])
    rows = _sort_in_windows(rng.permutation(len(lengths)), lengths, batch_size * _window(len(lengths), batch_size))
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def mixed_batches(
    is_labelled: NDArray[np.bool_], lengths: Indices, batch_size: int, num_transfer: int, *, seed: int, epoch: int
) -> list[Indices]:
    """Row indices of each batch of one epoch: rows with labels, then `num_transfer` transfer rows of similar length.

    An epoch has every row with a label once, in the very batches that `length_grouped_batches` makes of these rows
    alone, `batch_size - num_transfer` in each. The transfer rows go on from epoch to epoch (see
    `transfer_rows_of_epoch`). Where a batch has fewer rows with labels, it has fewer transfer rows in proportion, but
    one at least.
    """
    labelled, transfer = np.flatnonzero(is_labelled), np.flatnonzero(~is_labelled)
    num_labelled = batch_size - num_transfer
    rng = np.random.default_rng([seed, epoch])
    window = _window(len(labelled), num_labelled)
    order = rng.permutation(len(labelled))
    ours = labelled[_sort_in_windows(order, lengths[labelled], num_labelled * window)]
    batches = [ours[start : start + num_labelled] for start in range(0, len(ours), num_labelled)]
    beside = sizes_beside(len(labelled), num_labelled, num_transfer)
    drawn = transfer_rows_of_epoch(len(transfer), sum(beside), seed=seed, epoch=epoch)
    theirs = transfer[_sort_in_windows(drawn, lengths[transfer], num_transfer * window)]
    ends = np.cumsum(beside)
    mixed = [
        np.concatenate((batch, theirs[end - number : end]))
        for batch, number, end in zip(batches, beside, ends, strict=True)
    ]
    return [mixed[index] for index in rng.permutation(len(mixed))]


def sizes_beside(num_rows: int, num_labelled: int, num_transfer: int) -> list[int]:
    """Transfer rows in each batch of an epoch, whose rows with labels are `num_rows`, `num_labelled` in each batch.

    A smaller batch has them in proportion, but one at least.
    """
    whole, rest = divmod(num_rows, num_labelled)
    return [num_transfer] * whole + ([max(1, round(num_transfer * rest / num_labelled))] if rest else [])


def _window(num_rows: int, batch_size: int) -> int:
    """Batches within which rows are sorted by length."""
    return int(np.clip(num_rows // (4 * batch_size), 1, 50))


def _sort_in_windows(order: Indices, lengths: Indices, window: int) -> Indices:
    """The rows of `order`, in windows of so many rows, each sorted by length."""
    windows = [order[start : start + window] for start in range(0, len(order), window)]
    return np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in windows])


def transfer_rows_of_epoch(num_rows: int, num_drawn: int, *, seed: int, epoch: int) -> Indices:
    """Which of `num_rows` transfer rows, counted from 0, an epoch takes, in what order: `num_drawn`.

    They go on where the epoch before ended; each row comes once before any comes again, in a new order every time.
    """
    start = (epoch - 1) * num_drawn
    first, last = start // num_rows, (start + num_drawn - 1) // num_rows
    passes = [
        np.random.default_rng([seed, number, _TRANSFER]).permutation(num_rows) for number in range(first, last + 1)
    ]
    return np.concatenate(passes)[start - first * num_rows :][:num_drawn]
