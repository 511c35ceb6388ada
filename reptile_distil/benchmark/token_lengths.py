"""How long the GLUE tasks' rows are, in tokens: what a benchmark needs of the data, without the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reptile_distil.data.batches import tokenize
from reptile_distil.data.tasks import get_task
from reptile_distil.errors import DataError
from reptile_distil.sources.splits import load_split

Lengths = NDArray[np.int64]

Quantiles = Mapping[str, tuple[int, ...]]
"""By task, lengths at evenly spaced levels from 0 to 1."""

# Quantiles 0, 0.05, ..., 1 of the training rows of the official files, in tokens of BERT's uncased vocabulary, special
# tokens included, cut to 128.
QUANTILES: Quantiles = {
    "cola": (4, 6, 7, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 12, 12, 13, 14, 15, 17, 20, 47),
    "sst2": (3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 13, 14, 16, 18, 20, 23, 27, 33, 66),
    "stsb": (10, 15, 16, 17, 18, 19, 19, 20, 21, 22, 23, 24, 25, 26, 28, 31, 35, 42, 51, 60, 125),
    "rte": (13, 29, 33, 37, 40, 43, 45, 47, 50, 53, 56, 59, 62, 67, 72, 85, 103, 120, 128, 128, 128),
    "wnli": (16, 21, 23, 24, 26, 27, 28, 28, 30, 31, 32, 34, 35, 37, 38, 42, 45, 52, 63, 72, 108),
}


def measure_quantiles(task_name: str, folder: Path, tokenizer: Any, max_length: int = 128) -> tuple[int, ...]:
    """The 21 quantiles of a task's training rows in a folder of GLUE's official files, as in `QUANTILES`."""
    rows = tokenize(load_split(get_task(task_name), "train", folder), tokenizer, max_length)
    lengths = [len(ids) for ids in rows["input_ids"]]
    return tuple(int(value) for value in np.quantile(lengths, np.linspace(0, 1, 21), method="nearest"))


def draw_lengths(
    name: str, num_rows: int, *, max_length: int = 128, seed: int = 0, table: Quantiles = QUANTILES
) -> Lengths:
    """Lengths of `num_rows` rows: drawn from a task's distribution, or all of them `name` where that is a number.

    Raises `DataError` for a name that is neither.
    """
    if name.isdecimal() and int(name) > 1:
        return np.full(num_rows, int(name), dtype=np.int64)
    if name not in table:
        raise DataError(f"lengths {name!r}: expected a number of tokens, or a task: {', '.join(table)}")
    quantiles = table[name]
    levels = np.random.default_rng(seed).random(num_rows)
    lengths = np.interp(levels, np.linspace(0, 1, len(quantiles)), quantiles)
    return np.minimum(np.rint(lengths).astype(np.int64), max_length)
