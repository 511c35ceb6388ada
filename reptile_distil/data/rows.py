"""Lines of a text file, or the table of a data set -> checked rows: for GLUE's own files and a user's own data."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptile_distil.data.tasks import TRANSFER, Task
from reptile_distil.errors import DataError, first_sentence, looks_like
from reptile_distil.runtime.files import open_regular

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
Field = str | list[str] | None
"""A value as it stands in a file: a text, for labels also a list of them, or None where there is none."""
Record = tuple[int, tuple[str, ...], Any]
"""Line number from 1, the texts, the label as it stands in the file (a `Field`, or a list of one for each column)."""
_NO_LABEL = ("", "-1", "-1.0", "null", "none", "nan")
"""What a file may hold where a row has no label, capitals aside."""
_LARGEST_SCORE = 1e16
"""Up to this size squared errors, and their sum over a batch, stay finite in float32."""
_NAMES_NOT_FLAGS = (
    "a list holds the names of the labels that a text has, each once, and no 0 or 1 for each label: these need columns "
    "of their own, task.label=[...]"
)
_FLAGS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}


@dataclass(frozen=True)
class Rows:
    """One split in file order: one or two columns of texts; `labels` is None for an unlabelled split."""

    source: str
    columns: tuple[tuple[str, ...], ...]
    labels: list[Any] | None
    """Class indices or scores; for a multi-label task a list of 0.0 and 1.0, one for each label."""


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line feed and one carriage return before it); unpacks `.gz`.

    Raises `DataError` for a file that cannot be opened and for a line that is not UTF-8.
    """
    number = 0
    try:
        with open_regular(file) as stream:
            lines = gzip.GzipFile(fileobj=stream) if file.suffix.lower() == ".gz" else stream
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        utf16 = number == 1 and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        hint = " (it looks like UTF-16: save the file as UTF-8)" if utf16 else ""
        raise DataError(f"{file}, line {number}: not UTF-8 at byte {error.start + 1} of the line{hint}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be unpacked after line {number}: {first_sentence(error)}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def split_fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields between tabs) of each line; no fields for an empty line."""
    for number, line in read_lines(file):
        yield number, line.split("\t") if line else []


def select_columns(
    file: Path,
    rows: Iterable[tuple[int, Sequence[Any]]],
    *,
    texts: Sequence[str],
    label: str | Sequence[str] | None,
    header: Sequence[str] | None = None,
    label_is_optional: bool = False,
    skip_short: bool = False,
) -> Iterator[Record]:
    """Yield the wanted columns of each row, found by name in `header`, or in the first row when that is None.

    The label of several columns is the list of their fields. Raises `DataError` for a missing column, for an empty line
    before the last row and for a row with too few or too many fields. With `skip_short`, rows with too few fields are
    left out and reported in one warning, and fields past the last column are ignored.
    """
    rows = _without_empty_end(rows)
    if header is None:
        number, header = next(rows, (0, []))
        if not header:
            raise DataError(f"{file}, line 1: empty line" if number else f"{file} is empty")
    labels = () if label is None else (label,) if isinstance(label, str) else tuple(label)
    if label_is_optional and not any(name in header for name in labels):
        labels = ()
    positions = [_position(file, header, name) for name in texts]
    label_positions = [_position(file, header, name) for name in labels]
    short = []
    for number, fields in rows:
        if skip_short and len(fields) < len(header):
            short.append(number)
            continue
        if not fields:
            raise DataError(f"{file}, line {number}: empty line")
        if len(fields) != len(header) and not skip_short:
            raise DataError(f"{file}, line {number}: expected {len(header)} fields, found {len(fields)}")
        values = [fields[position] for position in label_positions]
        value = values if not isinstance(label, str) and labels else next(iter(values), None)
        yield number, tuple(fields[position] for position in positions), value
    if short:
        logger.warning("%s: left out %d rows with too few fields, the first at line %d", file, len(short), short[0])


def collect(file: Path, records: Iterable[Record], parse_label: Callable[[str], float]) -> Rows:
    """Gather records into columns; a `ValueError` of `parse_label` becomes a `DataError` with file and line.

    Raises `DataError` when there is no record at all.
    """
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    for number, text, label in records:
        texts.append(text)
        if label is not None:
            try:
                labels.append(parse_label(label))
            except ValueError as error:
                raise DataError(f"{file}, line {number}: {error}") from None
    if not texts:
        raise DataError(f"{file} has no rows")
    return Rows(str(file), tuple(zip(*texts, strict=True)), labels or None)


def parse_own_labels(
    task: Task, split: str, values: Sequence[Any], source: str, name_row: Callable[[int], str]
) -> list[Any] | None:
    """The labels of a user's own rows; None for a test split in which no row has one.

    `name_row` names a row, counted from 0, for messages. Raises `DataError` for a label that is none of the task's and
    for a row without one.
    """
    is_test = split.startswith("test")
    if is_test and all(_has_no_label(task, value) for value in values):
        logger.info("%s: no row has a label, so there are no scores", source)
        return None
    labels = []
    for row, value in enumerate(values):
        try:
            labels.append(_parse_own_label(task, value))
        except ValueError as error:
            reason = str(error)
            if _has_no_label(task, value):
                wanted = "others have: label all rows of a test file, or none" if is_test else "training needs one"
                reason = f"has no label (found {value!r}), and {wanted}"
            raise DataError(f"{name_row(row)}: {reason}") from None
    if task.multi_label and not task.label_columns:
        _refuse_flags_as_names(task, values, name_row)
    return labels


def _has_no_label(task: Task, value: Any) -> bool:
    if isinstance(value, list):
        return bool(task.label_columns) and all(_has_no_label(task, flag) for flag in value)
    return value is None or (value.strip().lower() in _NO_LABEL and value not in task.label_names)


def _parse_own_label(task: Task, value: Any) -> float | list[float]:
    """Class index, score, or a 0.0 or 1.0 for each label; raises `ValueError` when it is none of them."""
    if task.multi_label:
        return _parse_label_set(task, value)
    if isinstance(value, list):
        raise ValueError(f"the label is a list, {json.dumps(value)[:40]}: a task with multi_label: true takes lists")
    text = "" if value is None else value
    if task.is_regression:
        return score(text, task.score_range)
    allowed = {name: index for index, name in enumerate(task.label_names)}
    if text not in allowed and text.removeprefix("-").isdigit():
        raise ValueError(
            f"label {text!r} is a number, but the labels are names ({', '.join(allowed)}): "
            "write names into the file, or give the numbers as label names"
        )
    return class_index(text, allowed)


def _parse_label_set(task: Task, value: Any) -> list[float]:
    if task.label_columns:
        flags = [_FLAGS.get(str(flag).strip().lower()) for flag in value]
        for column, flag, found in zip(task.label_columns, flags, value, strict=True):
            if flag is None:
                raise ValueError(f"{found!r} in the label column {column!r}, expected 0 or 1")
        return [flag for flag in flags if flag is not None]
    if value is None:
        raise ValueError("no list of labels")
    names = _names_of_set(task, value)
    allowed = {name: index for index, name in enumerate(task.label_names)}
    chosen = {class_index(name, allowed) for name in names}
    if len(chosen) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names the label {twice!r} {names.count(twice)} times: {_NAMES_NOT_FLAGS}")
    return [float(index in chosen) for index in range(task.num_labels)]


def _names_of_set(task: Task, value: str | list[str]) -> list[str]:
    """The names of a row's labels, from a list or from a text with separators."""
    if isinstance(value, list):
        return value
    return [name for name in map(str.strip, value.split(task.label_separator)) if name]


def _refuse_flags_as_names(task: Task, values: Sequence[Any], name_row: Callable[[int], str]) -> None:
    """Raises `DataError` where two labels are called 0 and 1, and rows of a 0 and a 1 for each would read as names.

    Each such row has both labels, so that none repeats a name; only that their order changes shows what they mean.
    """
    if set(task.label_names) != {"0", "1"}:
        return
    sets = [_names_of_set(task, value) for value in values]
    other = next((row for row, names in enumerate(sets) if names != sets[0]), None)
    if other is not None and all(len(names) == 2 for names in sets):
        raise DataError(
            f"{name_row(other)}: every row has both labels, here as {', '.join(sets[other])}, before as "
            f"{', '.join(sets[0])}: {_NAMES_NOT_FLAGS}"
        )


def has_lone_surrogate(text: str) -> bool:
    """Whether the text has half of a character, which JSON and Python can spell, but no file and no tokenizer holds."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def class_index(value: str, allowed: Mapping[str, int]) -> int:
    """Class index of a label; raises `ValueError` for an unknown one."""
    if value not in allowed:
        remedy = "correct the row, or name it in the labels of a task of your own"
        raise ValueError(
            f"unknown label {value!r}, allowed: {', '.join(allowed)}{looks_like(value, allowed)}; {remedy}"
        )
    return allowed[value]


def score(value: str, score_range: tuple[float, float] | None) -> float:
    """A regression label; raises `ValueError` when it is no finite number, too large, or outside `score_range`."""
    low, high = score_range or (-math.inf, math.inf)
    try:
        # float() takes 1_0 and digits of any script too: more likely slips than scores.
        number = float(value) if value.isascii() and "_" not in value else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"score {value!r} is not a finite number")
    if not low <= number <= high:
        raise ValueError(f"score {value!r} is not in [{low:g}, {high:g}]")
    if abs(number) > _LARGEST_SCORE:
        raise ValueError(f"score {value!r} is too large for squared errors in float32: give the scores in another unit")
    return number


def read_dataset(task: Task, split: str, dataset: datasets.Dataset, source: str) -> Rows:
    """Rows of a data set with the task's columns; raises `DataError` with the row, counted from 0."""
    wanted, labels = [*task.text_columns], label_columns(task, split, dataset.column_names, source)
    if not split.startswith("test") or any(name in dataset.column_names for name in labels):
        wanted += labels
    missing = [name for name in wanted if name not in dataset.column_names]
    if missing:
        columns_are = names_of_columns(missing[0], dataset.column_names)
        raise DataError(f"{source}: no column {missing[0]!r} in {split}, the columns are {columns_are}")
    if len(dataset) == 0:
        raise DataError(f"{source}: {split} has no rows")
    columns = _read_columns(dataset, wanted, f"{source}: {split}")
    for name in task.text_columns:
        for row, text in enumerate(columns[name]):
            if not isinstance(text, str):
                raise DataError(f"{source}: row {row} of {split} has {text!r} for {name}, not a text")
    texts = tuple(tuple(columns[name]) for name in task.text_columns)
    if not labels or labels[0] not in columns:
        return Rows(source, texts, None)
    if task.is_own:
        values = _own_values(task, dataset, columns, f"{source}: {split}")
        name_row = f"{source}: row {{}} of {split}".format
        return Rows(source, texts, parse_own_labels(task, split, values, source, name_row))
    values = columns[task.label_column]
    if split.startswith("test") and all(label == -1 for label in values):  # the hub's "unlabelled"
        return Rows(source, texts, None)
    return Rows(source, texts, _read_labels(task, split, dataset.features[task.label_column], values, source))


def label_columns(task: Task, split: str, columns: Sequence[str], source: str) -> tuple[str, ...]:
    """The columns that hold labels; none where the rows are to have no labels, which a line in the log then says."""
    labels = task.label_columns or (task.label_column,)
    if split == TRANSFER and any(name in columns for name in labels):
        logger.info("%s: column %s is not read: transfer rows have no labels", source, ", ".join(labels))
    return () if split == TRANSFER else labels


def names_of_columns(wanted: str, found: Iterable[str]) -> str:
    """The columns that are found, in quotes, and which of them looks like the wanted one that is not there."""
    names = list(map(str, found))
    return ", ".join(map(repr, names)) + looks_like(wanted, names)


def class_names(dataset: datasets.Dataset, column: str) -> tuple[str, ...] | None:
    """The class names that a data set itself has for a column, also one of lists; None where it has none."""
    feature = dataset.features.get(column)
    names = getattr(getattr(feature, "feature", feature), "names", None)
    return None if names is None else tuple(map(str, names))


def digest_dataset(task: Task, dataset: datasets.Dataset) -> str:
    """Hash of the rows of the columns that are read, and of their types and class names."""
    import pyarrow as pa

    wanted = (*task.text_columns, *(task.label_columns or (task.label_column,)))
    rows = dataset.select_columns([name for name in wanted if name in dataset.column_names])
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


def _read_columns(dataset: datasets.Dataset, names: list[str], source: str) -> dict[str, list[Any]]:
    """The values of columns as they are stored; raises `DataError` for damaged ones."""
    try:
        # As Arrow: decoding could open files that a column names, and would trust damaged offsets.
        table = dataset.select_columns(names).with_format("arrow")[:]
        table.validate(full=True)
        return {name: table.column(name).to_pylist() for name in names}
    except Exception as error:
        raise DataError(f"{source} cannot be read: {first_sentence(error)}") from error


def _own_values(task: Task, dataset: datasets.Dataset, columns: Mapping[str, list[Any]], source: str) -> list[Any]:
    """The label of each row as a text file would have it: class ids as names."""
    if task.label_columns:
        return [list(map(_as_text, row)) for row in zip(*(columns[name] for name in task.label_columns), strict=True)]
    names = class_names(dataset, task.label_column)
    if names is not None and sorted(names) != sorted(task.label_names):
        raise DataError(
            f"{source}: has the classes {', '.join(names)} in {task.label_column}, but task.labels says "
            f"{', '.join(task.label_names) or 'none'}: leave task.labels out, or give the same names"
        )
    return [_as_field(value, names) for value in columns[task.label_column]]


def _as_field(value: Any, names: Sequence[str] | None) -> Field:
    if isinstance(value, list):
        return [_as_field(item, names) or "" for item in value]  # type: ignore[misc]
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return _as_text(value)


def _as_text(value: Any) -> str | None:
    """None for a missing value; a whole number without a point, as 1 for 1.0 in a column that has gaps."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


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


def _position(file: Path, header: Sequence[str], name: str) -> int:
    """Position of a column; raises `DataError` when it is missing or there twice."""
    if name not in header:
        raise DataError(f"{file}, line 1: no column {name!r}, the columns are {names_of_columns(name, header)}")
    if header.count(name) > 1:
        raise DataError(f"{file}, line 1: the column {name!r} is there {header.count(name)} times")
    return header.index(name)


def _without_empty_end(rows: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[tuple[int, Sequence[Any]]]:
    """The same rows without the empty ones after the last row that has fields."""
    held_back: list[tuple[int, Sequence[Any]]] = []
    for row in rows:
        if not row[1]:
            held_back.append(row)
            continue
        yield from held_back
        held_back.clear()
        yield row
