"""One split of one task -> a `datasets.Dataset` with `text`, `text_pair` and `label`, wherever the data lie.

With a path: GLUE's own TSV files, then a `datasets` folder or the hub's Parquet layout. Without one: the local cache of
`datasets`, then the hub. An own task: its files, a saved folder, or a data set of the hub. A toy one: made.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reptile_distil.data import toy
from reptile_distil.data.rows import Rows, class_names, digest_dataset, names_of_columns, read_dataset
from reptile_distil.data.tasks import TRANSFER, Task
from reptile_distil.errors import DataError, first_sentence
from reptile_distil.runtime.each_line_once import log_once
from reptile_distil.runtime.files import digest_files
from reptile_distil.runtime.hub import require_hub
from reptile_distil.runtime.snapshots import cached_snapshots, download_snapshot
from reptile_distil.sources.glue_files import files_read_with, find_official_file, read_official_file
from reptile_distil.sources.hub_datasets import open_hub_dataset
from reptile_distil.sources.user_files import is_text_file, read_user_file

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

HUB_NAME = "nyu-mll/glue"
Loaded = TypeVar("Loaded")


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
        if task.hub is not None:
            place = f"hub data set {task.hub.name}"
            return _dataset_source(task, split, open_hub_dataset(task.hub, task.hub.splits[split]), place)
        if task.files is not None:
            return _open_own(task, split, task.files[split], path)
        if task.folder is None:
            raise DataError(f"task {task.name} has neither files of its own nor a place in GLUE")
        return _open_hub(task, split) if path is None else _open_folder(task, split, path)
    except OSError as error:  # a path that is too long, or runs through a folder that may not be entered
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror}") from None


def open_transfer_file(task: Task, file: Path) -> Source:
    """Rows with the task's text columns and without labels, not read yet, in a file or folder as an own task's.

    Raises as `open_split` does.
    """
    beside = replace(
        task, files={TRANSFER: str(file)}, splits={TRANSFER: ()}, folder=None, hub=None, is_generated=False
    )
    return open_split(beside, TRANSFER, None)


def _as_dataset(task: Task, rows: Rows) -> datasets.Dataset:
    """The rows as an Arrow table in memory."""
    import datasets  # here and below: it takes a second, and tokenised rows from the cache need none of it

    columns: dict[str, Any] = dict(zip(("text", "text_pair"), rows.columns, strict=False))
    features: dict[str, Any] = {name: datasets.Value("string") for name in columns}
    if rows.labels is not None:
        columns["label"] = rows.labels
        kind = datasets.Value("float64" if task.is_regression or task.multi_label else "int64")
        features["label"] = datasets.List(kind, length=task.num_labels) if task.multi_label else kind
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def own_label_names(task: Task, path: Path | None) -> tuple[str, ...]:
    """The class names that the data of a user's own task have for its label; () where they have none.

    Text files have none. Raises `DataError` as `open_split` does.
    """
    split = next(iter(task.splits))
    if task.hub is not None:
        dataset: datasets.Dataset | None = open_hub_dataset(task.hub, task.hub.splits[split])
    else:
        dataset = _open_own_dataset(split, (task.files or {})[split], path)
    if dataset is None:
        return ()
    if task.label_column not in dataset.column_names:
        found = names_of_columns(task.label_column, dataset.column_names)
        raise DataError(f"task {task.name}: {split} has no column {task.label_column!r}, the columns are {found}")
    return class_names(dataset, task.label_column) or ()


def _open_own(task: Task, split: str, file: str, path: Path | None) -> Source:
    """A split in a file or folder of the user's own."""
    place = _place(file, path)
    dataset = _open_own_dataset(split, file, path)
    if dataset is not None:
        return _dataset_source(task, split, dataset, str(place))
    return Source(task, split, str(place), partial(digest_files, place), partial(_read_own, task, split, file, path))


def _place(file: str, path: Path | None) -> Path:
    return (path or Path()) / file


def _read_own(task: Task, split: str, file: str, path: Path | None) -> Rows:
    """The rows of a text file; raises `DataError` as `read_user_file` does, and where it is not there."""
    try:
        return read_user_file(task, split, _place(file, path))
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _not_there(split, file, path) from None
        raise


def _not_there(split: str, file: str, path: Path | None) -> DataError:
    """Says by which key a file or folder was looked for, and from where."""
    key = "data.transfer.files" if split == TRANSFER else f"task.files.{split}"
    started = f"(started in {Path.cwd()})"
    if Path(file).is_absolute():
        return DataError(f"{key}: {file}: no such file or folder")
    if path is not None and not path.exists():
        return DataError(
            f"data.path = {path}: no such folder {started}, in which {key} = {file} is looked for: data.path=DIR gives "
            "another folder"
        )
    return DataError(
        f"{key}: {_place(file, path)}: no such file or folder {started}: data.path=DIR gives another folder"
    )


def _open_own_dataset(split: str, file: str, path: Path | None) -> datasets.Dataset | None:
    """A Parquet file, or what `datasets` has saved in a folder: a data set, or one for each split; else None.

    Raises `DataError` where nothing is there, unless its name is that of a text file, which is looked for when read.
    """
    import datasets

    place = _place(file, path)
    if place.is_dir():
        for name in (split, _hub_split(split)):
            dataset = _open_saved_split(name, place)
            if dataset is not None:
                return dataset
        if (place / "state.json").is_file():
            return _reading(place, "data set", lambda: datasets.load_from_disk(str(place)))
        found = sorted(entry.name for entry in place.iterdir())[:8]
        raise DataError(
            f"{place}: no {split} split saved by datasets in this folder, which holds {', '.join(found) or 'nothing'}"
        )
    if not place.exists() and not is_text_file(place):
        raise _not_there(split, file, path)
    if place.suffix.lower() == ".parquet":
        import pyarrow.parquet as parquet

        return _reading(place, "file", lambda: datasets.Dataset(parquet.ParquetFile(place).read()))
    return None


def _reading(place: Path, what: str, read: Callable[[], Loaded]) -> Loaded:
    """What `read` returns; raises `DataError` where it cannot."""
    try:
        return read()
    except Exception as error:  # each damage has an exception of its own
        raise DataError(f"{place}: the {what} cannot be read: {first_sentence(error)}") from error


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
        dataset = _open_saved_split(_hub_split(split), folder)
        if dataset is not None:
            return _dataset_source(task, split, dataset, str(folder))
    raise DataError(
        f"no {split} split of {task.name} under {path}: neither GLUE's TSV files in {folders[0]} or {path}, "
        f"nor a `datasets` folder or {_hub_split(split)}-*.parquet in {folders[1]} or {path}"
    )


def _hub_split(split: str) -> str:
    """The hub's name of a split: `dev_matched` is `validation_matched` there."""
    return split.replace("dev", "validation", 1)


def _open_saved_split(name: str, folder: Path) -> datasets.Dataset | None:
    """The split of a `save_to_disk` folder or of Parquet files in `folder`; None when it holds neither."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet

    def read() -> datasets.Dataset | None:
        if (folder / "dataset_dict.json").is_file() and (folder / name).is_dir():
            return datasets.load_from_disk(str(folder / name))
        if not files:
            return None
        return datasets.Dataset(pa.concat_tables([pa.parquet.ParquetFile(file).read() for file in files]))

    files = _parquet_files(folder, name)
    return _reading(folder, f"{name} split", read)


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
        dataset = _open_saved_split(_hub_split(split), folder)
        if dataset is None:
            raise DataError(f"{place}: no {_hub_split(split)} split in {folder}")
        log_once(logger, f"{place}: read from {folder}")
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
    log_once(logger, f"hub data set {HUB_NAME} {task.name}: read from {builder.cache_dir}")
    return dataset


def _dataset_source(task: Task, split: str, dataset: datasets.Dataset, place: str) -> Source:
    read = partial(read_dataset, task, split, dataset, place)
    return Source(task, split, place, partial(digest_dataset, task, dataset), read)
