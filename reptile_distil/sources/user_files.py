"""A user's own task: CSV, TSV, JSON and JSONL files, packed with gzip or not -> rows."""

import csv
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from reptile_distil.data.rows import (
    Field,
    Rows,
    has_lone_surrogate,
    label_columns,
    names_of_columns,
    parse_own_labels,
    read_lines,
    select_columns,
    split_fields,
)
from reptile_distil.data.tasks import TRANSFER, Task
from reptile_distil.errors import DataError

logger = logging.getLogger(__name__)

TEXT_FILES = (".csv", ".tsv", ".json", ".jsonl")
"""Ends of names of the files that are read here; each may have `.gz` behind it."""
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LONGEST_FIELD = 2**31 - 1  # the largest that fits a C long everywhere; by default csv refuses more than 131,072
_Rows = Iterator[tuple[int, Sequence[Any]]]
_Line = TypeVar("_Line")


class _Constant(NamedTuple):
    """NaN or Infinity, which Python writes into JSON and JSON does not have."""

    name: str


def read_user_file(task: Task, split: str, file: Path) -> Rows:
    """Rows of a user's own file; the test split may lack the label column, or labels in it; transfer rows have none."""
    kind = kind_of(file)
    labels = () if split == TRANSFER else task.label_columns or (task.label_column,)
    if kind in (".csv", ".tsv"):
        rows: _Rows = _split_table(file, task, kind)
        if kind == ".csv":
            rows = _without_empty_lines(file, rows)
    else:
        read = _split_json if kind == ".json" else _split_jsonl
        rows = read(file, task.text_columns, labels)
    if (first := next(rows, None)) is not None:
        label_columns(task, split, first[1], str(file))
        rows = chain((first,), rows)
    records = list(
        select_columns(
            file,
            rows,
            texts=task.text_columns,
            label=(task.label_columns or task.label_column) if labels else None,
            label_is_optional=split.startswith("test"),
        )
    )
    if not records:
        raise DataError(f"{file} has no rows")
    unit = "row" if kind == ".json" else "line"
    numbers, texts, values = zip(*records, strict=True)
    empty = [number for number, of_row in zip(numbers, texts, strict=True) if not all(map(str.strip, of_row))]
    if empty:
        logger.warning("%s: %ss with an empty text: %d, the first is %d", file, unit, len(empty), empty[0])
    found = None
    if labels:
        found = parse_own_labels(task, split, values, str(file), lambda row: f"{file}, {unit} {numbers[row]}")
    return Rows(str(file), tuple(zip(*texts, strict=True)), found)


def _without_empty_lines(file: Path, rows: _Rows) -> _Rows:
    """The rows of a CSV file without the lines that hold nothing.

    Of a file of one column they stay: there an empty line may be an empty text.
    """
    if (first := next(rows, None)) is None:
        return
    yield first
    yield from rows if len(first[1]) < 2 else _leave_out(file, rows, lambda fields: not fields)


def _leave_out(
    file: Path, lines: Iterable[tuple[int, _Line]], is_empty: Callable[[_Line], bool]
) -> Iterator[tuple[int, _Line]]:
    """The lines without the empty ones, which one warning counts, up to the last that is not empty."""
    left_out: list[int] = []
    empty: list[int] = []
    for number, line in lines:
        if is_empty(line):
            empty.append(number)
            continue
        left_out, empty = left_out + empty, []
        yield number, line
    if left_out:
        logger.warning("%s: empty lines left out: %d, the first is line %d", file, len(left_out), left_out[0])


def is_text_file(file: Path) -> bool:
    """Whether the file, there or not, is by its name one of `TEXT_FILES`."""
    return file.name.lower().removesuffix(".gz").endswith(TEXT_FILES)


def kind_of(file: Path) -> str:
    """The end of the file's name, without `.gz`. Raises `DataError` for one that is not of `TEXT_FILES`."""
    name = file.name.lower().removesuffix(".gz")
    kind = next((kind for kind in TEXT_FILES if name.endswith(kind)), None)
    if kind is None:
        raise DataError(
            f"{file}: unknown kind of file, expected {', '.join(TEXT_FILES)} (each also as .gz), .parquet, or a folder "
            "saved by datasets"
        )
    return kind


def _split_table(file: Path, task: Task, kind: str) -> _Rows:
    """Yield (number of its first line, fields) of each row of a CSV or TSV file."""
    csv.field_size_limit(_LONGEST_FIELD)
    if kind == ".tsv":
        return _split_csv(file, "\t") if _has_quotes(file, task.quoting) else split_fields(file)
    delimiter = _delimiter(file, task)
    if task.quoting == "none":
        return ((number, line.split(delimiter) if line else []) for number, line in read_lines(file))
    return _split_csv(file, delimiter)


def _delimiter(file: Path, task: Task) -> str:
    """What stands between the fields of a CSV file: a comma, or what the names of the columns are told apart by."""
    _, header = next(read_lines(file), (0, ""))
    for delimiter, name in _DELIMITERS.items():
        try:
            columns = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            continue
        if all(column in columns for column in task.text_columns) and (len(columns) > 1 or delimiter == ","):
            if delimiter != ",":
                logger.info("%s: its fields are separated by %s", file, name)
            return delimiter
    return ","


def _has_quotes(file: Path, quoting: str | None) -> bool:
    """Whether the quotation marks around fields of a TSV file are quotes, as pandas writes them, not text.

    Where the option does not say, the file is read in both ways; where only one of them gives every row as many fields
    as the first, it is that one. Raises `DataError` where both do, and differ.
    """
    if quoting is not None:
        return quoting == "csv"
    if not any(field.startswith('"') for _, fields in split_fields(file) for field in fields):
        return False
    plain, quoted = _is_table(split_fields(file)), _is_table(_split_csv(file, "\t"))
    if plain and quoted:
        nothing: tuple[int, list[str]] = (0, [])
        both = zip_longest(split_fields(file), _split_csv(file, "\t"), fillvalue=nothing)
        number = next((row[0] for row, other in both if row[1] != other[1]), None)
        if number is None:
            return False
        raise DataError(
            f"{file}, line {number}: quotation marks around a field may be part of the text, or its quotes as pandas "
            "and spreadsheets write them: say which with task.quoting=none or task.quoting=csv"
        )
    if quoted:
        logger.info("%s: fields in quotation marks are read without them, as in CSV", file)
    return quoted


def _is_table(rows: Iterable[tuple[int, list[str]]]) -> bool:
    """Whether every row that has fields has as many as the first."""
    try:
        return len({len(fields) for _, fields in rows if fields}) == 1
    except DataError:
        return False


def _split_csv(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each CSV row; a quoted field may hold line ends."""
    reader = csv.reader((line + "\n" for _, line in read_lines(file)), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{file}, line {number}: not CSV: {error}") from None


def _split_jsonl(file: Path, texts: Sequence[str], labels: Sequence[str]) -> _Rows:
    """Yield the keys of the first object as a header, then the values of each; "" for unwanted ones."""
    header: list[str] | None = None
    for number, line in _leave_out(file, read_lines(file), lambda line: not line.strip()):
        row = _parse_json(f"{file}, line {number}", line)
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: expected an object, found {line[:40]}")
        if header is None:
            header = list(row)
            yield number, header
        yield number, _json_fields(f"{file}, line {number}", row, header, texts, labels)


def _split_json(file: Path, texts: Sequence[str], labels: Sequence[str]) -> _Rows:
    """As `_split_jsonl`, from a list of objects, or from an object of columns; rows are counted from 1."""
    lines = [line for _, line in read_lines(file)]
    first = next((line for line in lines if line.strip()), "")
    if len(lines) > 1 and _is_json(first) and not _is_json("\n".join(lines)):  # lines of JSON by another name
        yield from _split_jsonl(file, texts, labels)
        return
    if not first:
        return
    content = _parse_json(str(file), "\n".join(lines))
    rows = _rows_of_columns(file, content, texts) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f"{file}: expected a list of objects, found {json.dumps(rows)[:40]}")
    header: list[str] | None = None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {number}: expected an object, found {json.dumps(row)[:40]}")
        if header is None:
            header = list(row)
            yield number, header
        yield number, _json_fields(f"{file}, row {number}", row, header, texts, labels)


def _rows_of_columns(file: Path, columns: dict[str, Any], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `{column: [value, ...]}`, or of `{column: {row: value}}`, as pandas writes a table by default."""
    for name in texts:
        if not isinstance(columns.get(name), list | dict):
            raise DataError(
                f"{file}: expected a list of objects, or an object with a list of values for {name!r}; its keys are "
                f"{names_of_columns(name, columns)}"
            )
    kept = {name: values for name, values in columns.items() if isinstance(values, list | dict)}
    keys = {name: list(values) if isinstance(values, dict) else len(values) for name, values in kept.items()}
    first = keys[texts[0]]
    for name, of_column in keys.items():
        if of_column != first:
            raise DataError(f"{file}: the columns {texts[0]!r} and {name!r} do not have the same rows")
    lists = {name: list(values.values()) if isinstance(values, dict) else values for name, values in kept.items()}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse_json(place: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_Constant)
    except RecursionError:
        raise DataError(f"{place}: not JSON for a row: too many values within values") from None
    except ValueError as error:
        raise DataError(f"{place}: not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises `ValueError` for a key that is given twice, of which one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def _json_fields(
    place: str, row: dict[str, Any], header: Sequence[str], texts: Sequence[str], labels: Sequence[str]
) -> list[Field]:
    """The wanted values of a row in the header's order, "" for the others."""
    fields: list[Field] = []
    for key in header:
        if key in texts:
            fields.append(_json_text(place, row, key))
        else:
            fields.append(_json_label(place, row, key, is_flag=len(labels) > 1) if key in labels else "")
    return fields


def _json_label(place: str, row: dict[str, Any], key: str, *, is_flag: bool) -> Field:
    """A label: a text, a number as a text, a list of them, or None for null and NaN; for one of several, true as 1."""
    value = row.get(key, "")
    if is_flag and isinstance(value, bool):
        return str(int(value))
    if value is None or value == _Constant("NaN"):
        return None
    if isinstance(value, list):
        return [_json_text(place, {key: item}, key) for item in value]
    return _json_text(place, row, key)


def _json_text(place: str, row: dict[str, Any], key: str) -> str:
    """A text, or a number as a text; raises `DataError` for anything else."""
    if key not in row:
        raise DataError(f"{place}: no key {key!r}, the keys are {names_of_columns(key, row)}")
    value = row[key]
    if isinstance(value, _Constant):
        raise DataError(f"{place}: not JSON: {value.name} is no JSON")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: {json.dumps(value)[:40]} for {key!r}, expected a text or a number")
    text = str(value)
    if has_lone_surrogate(text):
        raise DataError(f"{place}: {text[:40]!r} for {key!r} has half of a character (a lone surrogate)")
    return text
