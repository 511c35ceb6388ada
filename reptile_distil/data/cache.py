"""Arrays kept on disk, memory-mapped, and found again by what they were made of; above all tokenised splits.

An entry is a folder whose name is the hash of its key; a split's are the bytes of the source, the task's columns and
classes, the tokenizer, the length. It holds plain arrays (`.npy`, no pickle) and entry.json with the key and each
array's hash; an entry that differs from its hashes in one byte counts as missing and is written anew. It comes into
being by a rename, so any number of processes may read and write the same cache.

Why not the Arrow cache of `datasets`: with the rows of MNLI (392,702) a batch of 32 from it took 4 times the processor
time of one from these arrays, and 20 times through the tokenizer's own `pad`; both start again within half a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray

from reptile_distil.data.batches import draw_row_ids, draw_rows, tokenize
from reptile_distil.data.features import TOKEN_COLUMNS, Features
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DataError
from reptile_distil.runtime.each_line_once import log_once
from reptile_distil.runtime.files import hash_file, read_json

if TYPE_CHECKING:
    from reptile_distil.sources.splits import Source

logger = logging.getLogger(__name__)

_LARGEST_MEAN, _SMALLEST_DEVIATION, _LARGEST_DEVIATION = 10.0, 0.1, 10.0
"""Of the labels of a regression, which fine-tuning reaches with the usual learning rates and numbers of steps."""

FORMAT = 2
"""Goes up whenever the same source would give other arrays: another reader, another layout."""


def default_folder() -> Path | None:
    """`reptile_distil` in `HF_HOME`, else in `XDG_CACHE_HOME`, else in ~/.cache; None where there is no home."""
    cache = os.environ.get("HF_HOME") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(cache).expanduser() / "reptile_distil"
    except RuntimeError:
        return None


def load_features(
    source: Source,
    tokenizer: Any,
    *,
    max_length: int,
    max_rows: int | None = None,
    check_rows: bool = True,
    cache: Path | None = None,
) -> Features:
    """The tokenised rows of a split, or `max_rows` drawn from them, from the cache where they are in it.

    The cache holds whole splits. Without one, only the drawn rows are tokenised. A cache that cannot be written is
    done without, with a warning. Another warning says where the scores to train on are far from the size of 1. Raises
    `DataError` as `load_split` does, and for a split without rows.
    """
    if source.task.is_generated:  # no slower than the cache, and what generates the rows may change
        cache = None
    key = None if cache is None else _key(source, tokenizer, max_length)
    if cache is None or key is None:
        rows = _tokenize(source, tokenizer, max_length, max_rows=max_rows, check_rows=check_rows)
    else:
        rows = draw_rows(_load_whole(source, tokenizer, max_length, cache, key, check_rows=check_rows), max_rows)
    _warn_of_scores(source, rows)
    return rows


def _load_whole(
    source: Source, tokenizer: Any, max_length: int, cache: Path, key: str, *, check_rows: bool
) -> Features:
    features = _read_features(cache, key)
    if features is None:
        features = _tokenize(source, tokenizer, max_length, check_rows=check_rows)
        # The source may have changed while it was read: what came out is then nobody's.
        if _key(source, tokenizer, max_length) == key and keep_arrays(cache, key, _arrays_of(features)):
            features = _read_features(cache, key) or features
    elif check_rows:
        source.check_num_rows(len(features))
    return features


def _warn_of_scores(source: Source, rows: Features) -> None:
    """A line in the log where an own regression's training labels are not of the size that a new head can learn."""
    if source.split != "train" or not (source.task.is_own and source.task.is_regression) or rows.labels is None:
        return
    mean, deviation = float(rows.labels.mean()), float(rows.labels.std())
    if abs(mean) > _LARGEST_MEAN or not _SMALLEST_DEVIATION <= deviation <= _LARGEST_DEVIATION:
        line = (
            f"{source.place}: the labels to train on have the mean {mean:.4g} and the standard deviation "
            f"{deviation:.4g}: scale them to about 1 (0 to 5, as those of GLUE's STS-B, is well), or predictions stay "
            "far from them, which a correlation does not show"
        )
        log_once(logger, line, logging.WARNING)


def _tokenize(
    source: Source, tokenizer: Any, max_length: int, *, max_rows: int | None = None, check_rows: bool
) -> Features:
    rows = source.load(check_rows=check_rows)
    if not len(rows):
        raise DataError(f"task {source.task.name}: split {source.split} has no rows")
    drawn = draw_row_ids(len(rows), max_rows)
    return Features.from_dataset(tokenize(draw_rows(rows, max_rows), tokenizer, max_length), drawn)


def _key(source: Source, tokenizer: Any, max_length: int) -> str | None:
    """Everything that the arrays depend on, as JSON; None where that cannot be said."""
    task, made_by = source.task, _describe_tokenizer(tokenizer)
    if made_by is None:
        return None
    try:
        digest = source.digest()
    except OSError:  # reading says it better
        return None
    parts = {
        "format": FORMAT,
        "source": digest,
        "split": source.split,
        "task": [task.name, task.text_columns, task.label_column, task.label_names, task.score_range, *_own(task)],
        "max_length": max_length,
        "tokenizer": made_by,
        "versions": [transformers.__version__, tokenizers.__version__],
    }
    return json.dumps(parts, sort_keys=True)


def _own(task: Task) -> list[Any]:
    """What else decides how the rows of a user's own task are read."""
    options = [task.multi_label, task.label_columns, task.label_separator, task.quoting]
    return options if task.is_own else []


def _describe_tokenizer(tokenizer: Any) -> list[Any] | None:
    """What a tokenizer's ids depend on; None for one whose Python code has a say in them."""
    kind = type(tokenizer)
    if not kind.__module__.startswith("transformers.") or not getattr(tokenizer, "is_fast", False):
        return None
    try:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
    except Exception:  # tokenizers raises nothing narrower for parts written in Python
        return None
    for name in ("truncation", "padding"):  # left behind by the last call
        state.pop(name, None)
    state_hash = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    options = [tokenizer.model_input_names, tokenizer.truncation_side, tokenizer.split_special_tokens]
    return [f"{kind.__module__}.{kind.__qualname__}", state_hash, *options]


def _read_features(cache: Path, key: str) -> Features | None:
    arrays = read_arrays(cache, key)
    try:
        return None if arrays is None else _features_of(arrays)
    except (KeyError, DataError):
        return None


def _arrays_of(features: Features) -> dict[str, NDArray[Any]]:
    arrays = {**features.columns, "lengths": features.lengths.astype(np.int32)}
    return arrays if features.labels is None else {**arrays, "labels": features.labels}


def _features_of(arrays: Mapping[str, NDArray[Any]]) -> Features:
    columns = {name: arrays[name] for name in TOKEN_COLUMNS if name in arrays}
    labels = np.array(arrays["labels"]) if "labels" in arrays else None
    return Features.end_to_end(columns, arrays["lengths"], labels)


def read_arrays(cache: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays kept under this key, memory-mapped; None where there are none, or not just what was written."""
    return _read_entry(_entry(cache, key), key)


def keep_arrays(cache: Path, key: str, arrays: Mapping[str, NDArray[Any]], what: str = "tokenised data") -> bool:
    """Whether the arrays could be kept under this key; where not, a warning says why, and calls them `what`."""
    entry = _entry(cache, key)
    temporary = cache / f".new-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        hashes = {name: hash_file(temporary / f"{name}.npy") for name in arrays}
        listed = json.dumps({"key": key, "hashes": hashes})
        (temporary / "entry.json").write_text(listed, encoding="utf-8")
        _put_in_place(temporary, entry, key)
    except OSError as error:
        line = f"{cache}: {what} cannot be kept there ({error.strerror or error}): going on without"
        log_once(logger, line, logging.WARNING)
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _entry(cache: Path, key: str) -> Path:
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def _read_entry(entry: Path, key: str) -> dict[str, NDArray[Any]] | None:
    try:
        listed = read_json(entry / "entry.json")
        hashes = listed["hashes"]
        if listed["key"] != key or any(hash_file(entry / f"{name}.npy") != hashes[name] for name in hashes):
            return None
        return {name: _open_array(entry, name) for name in hashes}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open_array(entry: Path, name: str) -> NDArray[Any]:
    return np.asarray(np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False))


def _put_in_place(temporary: Path, entry: Path, key: str) -> None:
    """Makes the finished folder the entry, unless another process was faster. Raises `OSError`."""
    if _read_entry(entry, key) is not None:
        return
    shutil.rmtree(entry, ignore_errors=True)  # damaged; who has it mapped keeps what is mapped
    try:
        temporary.rename(entry)
    except OSError:
        if _read_entry(entry, key) is None:
            raise
