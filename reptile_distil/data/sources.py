"""One split of one task -> a `datasets.Dataset` with `text`, `text_pair` and `label`, wherever the data lie.

With a path: GLUE's own TSV files, then a `datasets` folder or the hub's Parquet layout. Without one: the
local cache of `datasets`, then the hub. A user's own task: its CSV, TSV or JSONL files. A toy task: generated.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptile_distil.data import toy
from reptile_distil.data.glue_files import files_read_with, find_official_file, read_official_file
from reptile_distil.data.rows import Rows, class_index, score
from reptile_distil.data.tasks import Task
from reptile_distil.data.user_files import read_user_file
from reptile_distil.errors import DataError, first_sentence
from reptile_distil.runtime.files import digest_files
from reptile_distil.runtime.hub import require_hub
from reptile_distil.runtime.snapshots import cached_snapshots, download_snapshot

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class Source:
    """Where one split lies; nothing of it is parsed before `read`."""

    task: Task
    split: str
    place: str
    """For messages: the file, folder or data set."""
    digest: Callable[[], str]
    """Changes with whatever `read` depends on: file contents, or rows and class names. Raises `OSError`."""
    read: Callable[[], Rows]

    def load(self, *, check_rows: bool = True) -> datasets.Dataset:
        """The rows, checked as `load_split` says."""
        rows = self.read()
        if check_rows:
            self.check_num_rows(len(rows.columns[0]))
        return _as_dataset(self.task, rows)

    def check_num_rows(self, found: int) -> None:
        """Raises `DataError` where `task.splits` states another number of rows."""
        expected = self.task.splits[self.split]
        if expected and found not in expected:
            raise DataError(
                f"{self.place}: expected {' or '.join(map(str, expected))} rows for {self.task.name} {self.split}, "
                f"found {found} (data.check_rows=false turns this check off)"
            )


def load_split(task: Task, split: str, path: Path | None, *, check_rows: bool = True) -> datasets.Dataset:
    """One split in file order: `text`, for pairs `text_pair`, and unless the split is unlabelled `label`.

    The label is the class index in the order of `task.label_names`, or a float for regression. `path` is the
    folder with the data; None: the hub for GLUE, the working directory for a user's own task. Raises
    `DataError` for whatever is missing or malformed, and with `check_rows` when the number of rows is not the
    one that `task.splits` states.
    """
    return open_split(task, split, path).load(check_rows=check_rows)


def open_split(task: Task, split: str, path: Path | None) -> Source:
    """The split as `load_split` finds it, not read yet; raises `DataError` where it is missing."""
    if split not in task.splits:
        raise DataError(f"task {task.name} has no split {split!r}, only {', '.join(task.splits)}")
    try:
        if task.is_generated:
            name = f"{task.name} {split}"
            return Source(task, split, name, lambda: name, partial(toy.read_split, task, split))
        if task.files is not None:
            file = (path or Path()) / task.files[split]
            read = partial(read_user_file, task, split, file)
            return Source(task, split, str(file), partial(digest_files, file), read)
        if task.folder is None:
            raise DataError(f"task {task.name} has neither files of its own nor a place in GLUE")
        return _open_hub(task, split) if path is None else _open_folder(task, split, path)
    except OSError as error:  # a path that is too long, or runs through a file
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _as_dataset(task: Task, rows: Rows) -> datasets.Dataset:
    """The rows as an Arrow table in memory."""
    import datasets  # here and below: it takes a second, and tokenised rows from the cache need none of it

    columns: dict[str, Any] = dict(zip(("text", "text_pair"), rows.columns, strict=False))
    features: dict[str, Any] = {name: datasets.Value("string") for name in columns}
    if rows.labels is not None:
        columns["label"] = rows.labels
        features["label"] = datasets.Value("float64" if task.is_regression else "int64")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _open_folder(task: Task, split: str, path: Path) -> Source:
    """The split in the first of the three layouts that `path` holds."""
    if not path.exists():
        raise DataError(f"data.path = {path}: no such folder (started in {Path.cwd()})")
    folders = (path / str(task.folder), path / task.name, path)
    for folder in (folders[0], path):
        file = find_official_file(task, split, folder)
        if file is not None:
            files = files_read_with(file)
            read = partial(read_official_file, task, split, file)
            return Source(task, split, str(file), partial(digest_files, *files), read)
    for folder in folders[1:]:
        dataset = _open_saved_split(task, split, folder)
        if dataset is not None:
            return _dataset_source(task, split, dataset, str(folder))
    raise DataError(
        f"no {split} split of {task.name} under {path}: neither GLUE's TSV files in {folders[0]} or {path}, "
        f"nor a `datasets` folder or {_hub_split(split)}-*.parquet in {folders[1]} or {path}"
    )


def _hub_split(split: str) -> str:
    """The hub's name of a split: `dev_matched` is `validation_matched` there."""
    return split.replace("dev", "validation", 1)


def _open_saved_split(task: Task, split: str, folder: Path) -> datasets.Dataset | None:
    """The split of a `save_to_disk` folder or of Parquet files in `folder`; None when it holds neither."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    name = _hub_split(split)
    try:
        if (folder / "dataset_dict.json").is_file() and (folder / name).is_dir():
            return datasets.load_from_disk(str(folder / name))
        files = _parquet_files(folder, name)
        if not files:
            return None
        return datasets.Dataset(pa.concat_tables([pa.parquet.ParquetFile(file).read() for file in files]))
    except DataError:
        raise
    except Exception as error:  # each damage has an exception of its own
        raise DataError(f"{folder}: the {name} split cannot be read: {first_sentence(error)}") from error


def _parquet_files(folder: Path, name: str) -> list[Path]:
    """The files of a split in order; raises `DataError` where some of them are missing."""
    files = sorted(file for file in folder.glob(f"{name}-*.parquet") if file.is_file())
    total = re.search(r"-of-(\d+)", files[0].name) if files else None
    if total and int(total[1]) != len(files):
        raise DataError(f"{folder}: found {len(files)} of the {int(total[1])} files {name}-*.parquet")
    return files


def _open_hub(task: Task, split: str) -> Source:
    """The split of the hub's data set, from the cache of `datasets` or of the hub if it is there."""
    dataset, place = _open_cached_split(task, split), f"hub data set {HUB_NAME} {task.name}"
    if dataset is None:
        folder = _find_hub_folder(task, split)
        dataset = _open_saved_split(task, split, folder)
        if dataset is None:
            raise DataError(f"{place}: no {_hub_split(split)} split in {folder}")
        _say_once(f"{place}: read from {folder}")
    return _dataset_source(task, split, dataset, place)


def _find_hub_folder(task: Task, split: str) -> Path:
    """The folder of the task's Parquet files in the hub's cache; downloaded where no revision has all its splits."""
    folders = [snapshot / task.name for snapshot in cached_snapshots(HUB_NAME, "dataset")]
    for folder in folders:
        if all(_has_split(folder, name) for name in task.splits):
            return folder
    part = f"the {split} split of " if any(folder.is_dir() for folder in folders) else ""
    try:
        require_hub(
            f"{part}GLUE's {task.name} ({HUB_NAME})",
            f"pass data.path=DIR with GLUE's TSV folder {task.folder} in DIR, or call "
            f"`hf download {HUB_NAME} --repo-type dataset` once with a network",
        )
    except DataError:
        if folders and _has_split(folders[0], split):
            return folders[0]
        raise
    return download_snapshot(HUB_NAME, "dataset", [f"{task.name}/*.parquet"], DataError) / task.name


def _has_split(folder: Path, split: str) -> bool:
    try:
        return bool(_parquet_files(folder, _hub_split(split)))
    except DataError:
        return False


def _open_cached_split(task: Task, split: str) -> datasets.Dataset | None:
    """The split as an earlier `load_dataset` left it in the cache, or None; the network is not asked."""
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()
    try:
        builder = Cache(repo_id=HUB_NAME, dataset_name="glue", config_name=task.name, version="auto", hash="auto")
        dataset = builder.as_dataset(split=_hub_split(split))
    except (OSError, ValueError):
        return None
    except Exception as error:
        cache = datasets.config.HF_DATASETS_CACHE
        raise DataError(f"{HUB_NAME} {task.name} in the cache {cache} is damaged: {first_sentence(error)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    _say_once(f"hub data set {HUB_NAME} {task.name}: read from {builder.cache_dir}")
    return dataset


@functools.cache
def _say_once(line: str) -> None:
    """One line for all splits of a data set."""
    logger.info("%s", line)


def _dataset_source(task: Task, split: str, dataset: datasets.Dataset, place: str) -> Source:
    read = partial(_read_dataset, task, split, dataset, place)
    return Source(task, split, place, partial(_digest_dataset, task, dataset), read)


def _digest_dataset(task: Task, dataset: datasets.Dataset) -> str:
    """Hash of the rows of the columns that are read, and of their types and class names."""
    import pyarrow as pa

    names = [name for name in (*task.text_columns, task.label_column) if name in dataset.column_names]
    rows = dataset.select_columns(names)
    hashed = _HashingFile()
    hashed.write(json.dumps(rows.features.to_dict(), sort_keys=True).encode())
    table = rows.with_format("arrow")[:].replace_schema_metadata(None)
    with pa.ipc.new_stream(pa.PythonFile(hashed, mode="w"), table.schema) as stream:
        stream.write_table(table)
    return hashed.digest.hexdigest()


class _HashingFile(io.RawIOBase):
    """A file to write to that keeps only the hash of what was written."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return memoryview(data).nbytes


def _read_dataset(task: Task, split: str, dataset: datasets.Dataset, source: str) -> Rows:
    """Rows of a data set with the hub's columns; raises `DataError` with the row, counted from 0."""
    wanted = [*task.text_columns]
    if task.label_column in dataset.column_names or not split.startswith("test"):
        wanted.append(task.label_column)
    missing = [name for name in wanted if name not in dataset.column_names]
    if missing:
        found = ", ".join(dataset.column_names)
        raise DataError(f"{source}: no column {missing[0]!r} in {split}, the columns are {found}")
    if len(dataset) == 0:
        raise DataError(f"{source}: {split} has no rows")
    columns = _read_columns(dataset, wanted, f"{source}: {split}")
    for name in task.text_columns:
        for row, text in enumerate(columns[name]):
            if not isinstance(text, str):
                raise DataError(f"{source}: row {row} of {split} has {text!r} for {name}, not a text")
    texts = tuple(tuple(columns[name]) for name in task.text_columns)
    labels = columns.get(task.label_column)
    if labels is None or (split.startswith("test") and all(label == -1 for label in labels)):  # the hub's "unlabelled"
        return Rows(source, texts, None)
    return Rows(source, texts, _read_labels(task, split, dataset.features[task.label_column], labels, source))


def _read_columns(dataset: datasets.Dataset, names: list[str], source: str) -> dict[str, list[Any]]:
    """The values of columns as they are stored; raises `DataError` for damaged ones."""
    try:
        # As Arrow: decoding could open files that a column names, and would trust damaged offsets.
        table = dataset.select_columns(names).with_format("arrow")[:]
        table.validate(full=True)
        return {name: table.column(name).to_pylist() for name in names}
    except Exception as error:
        raise DataError(f"{source} cannot be read: {first_sentence(error)}") from error


def _read_labels(task: Task, split: str, feature: Any, values: list[Any], source: str) -> list[float]:
    """Labels in our order. Class ids are matched by class NAME; raises `DataError` when the names differ."""
    allowed: dict[str, int] = {}
    if not task.is_regression:
        names = getattr(feature, "names", None)
        if names is None or sorted(map(str, names)) != sorted(task.label_names):
            expected = ", ".join(task.label_names)
            found = "numbers without class names" if names is None else ", ".join(map(str, names))
            raise DataError(f"{source}: expected the classes {expected} in {task.label_column}, found {found}")
        allowed = {str(index): task.label_names.index(name) for index, name in enumerate(names)}
    labels: list[float] = []
    for row, value in enumerate(values):
        try:
            labels.append(
                score(str(value), task.score_range) if task.is_regression else class_index(str(value), allowed)
            )
        except ValueError as error:
            raise DataError(f"{source}: row {row} of {split}: {error}") from None
    return labels
