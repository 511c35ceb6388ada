"""A user's own task: CSV, TSV and JSONL files -> rows."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reptile_distil.data.rows import Rows, class_index, collect, read_lines, score, select_columns, split_fields
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DataError


def read_user_file(task: Task, split: str, file: Path) -> Rows:
    """Rows of a user's own file; the test split may lack the label column."""
    if file.suffix == ".csv":
        rows = _split_csv(file)
    elif file.suffix == ".tsv":
        rows = split_fields(file)
    elif file.suffix == ".jsonl":
        rows = _split_jsonl(file, {*task.text_columns, task.label_column})
    else:
        raise DataError(f"{file}: unknown kind of file, expected .csv, .tsv or .jsonl")
    records = select_columns(
        file,
        rows,
        texts=task.text_columns,
        label=task.label_column,
        label_is_optional=split.startswith("test"),
    )
    return collect(file, records, lambda value: _parse_user_label(task, value))


def _parse_user_label(task: Task, value: str) -> float:
    """Class index or score of a label; raises `ValueError` when it is neither."""
    if task.is_regression:
        return score(value, task.score_range)
    allowed = {name: index for index, name in enumerate(task.label_names)}
    if value not in allowed and value.removeprefix("-").isdigit():
        raise ValueError(
            f"label {value!r} is a number, but the labels are names ({', '.join(allowed)}): "
            "write names into the file, or give the numbers as label names"
        )
    return class_index(value, allowed)


def _split_csv(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each CSV row; a quoted field may hold line ends."""
    reader = csv.reader((line + "\n" for _, line in read_lines(file)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{file}, line {number}: not CSV: {error}") from None


def _split_jsonl(file: Path, wanted: set[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the keys of the first object as a header, then the values of each; "" for unwanted ones."""
    header: list[str] | None = None
    for number, line in read_lines(file):
        if not line:
            yield number, []
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object, parse_constant=_refuse_constant)
        except RecursionError:
            raise DataError(f"{file}, line {number}: not JSON for a row: too many values within values") from None
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: expected an object, found {line[:40]}")
        if header is None:
            header = list(row)
            yield number, header
        yield number, [_json_field(file, number, row, key) if key in wanted else "" for key in header]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises `ValueError` for a key that is given twice, of which one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is given twice")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _json_field(file: Path, number: int, row: dict[str, Any], key: str) -> str:
    """A text, or a number as a text; raises `DataError` for anything else."""
    if key not in row:
        raise DataError(f"{file}, line {number}: no key {key!r}, the keys are {', '.join(row)}")
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{file}, line {number}: {json.dumps(value)[:40]} for {key!r}, expected a text or a number")
    text = str(value)
    # JSON can spell half of a character, which no file can hold.
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise DataError(f"{file}, line {number}: {text[:40]!r} for {key!r} has half of a character (a lone surrogate)")
    return text
