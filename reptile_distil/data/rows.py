"""Lines of a text file -> checked rows: the reader that GLUE's own files and a user's own files share."""

from __future__ import annotations

import codecs
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reptile_distil.errors import DataError
from reptile_distil.runtime.files import open_regular

logger = logging.getLogger(__name__)
Record = tuple[int, tuple[str, ...], str | None]
"""Line number from 1, the texts, the label as it stands in the file (None: the file has no labels)."""


@dataclass(frozen=True)
class Rows:
    """One split in file order: one or two columns of texts; `labels` is None for an unlabelled split."""

    source: str
    columns: tuple[tuple[str, ...], ...]
    labels: list[float] | None


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line feed and one carriage return before it).

    Raises `DataError` for a file that cannot be opened and for a line that is not UTF-8.
    """
    try:
        with open_regular(file) as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}, line {number}: not UTF-8 at byte {error.start + 1} of the line") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error


def split_fields(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields between tabs) of each line; no fields for an empty line."""
    for number, line in read_lines(file):
        yield number, line.split("\t") if line else []


def select_columns(
    file: Path,
    rows: Iterable[tuple[int, list[str]]],
    *,
    texts: Sequence[str],
    label: str | None,
    header: Sequence[str] | None = None,
    label_is_optional: bool = False,
    skip_short: bool = False,
) -> Iterator[Record]:
    """Yield the wanted columns of each row, found by name in `header`, or in the first row when that is None.

    Raises `DataError` for a missing column, for an empty line before the last row and for a row with too few
    or too many fields. With `skip_short`, rows with too few fields are left out and reported in one warning,
    and fields past the last column are ignored.
    """
    rows = _without_empty_end(rows)
    if header is None:
        number, header = next(rows, (0, []))
        if not header:
            raise DataError(f"{file}, line 1: empty line" if number else f"{file} is empty")
    if label_is_optional and label not in header:
        label = None
    positions = [_position(file, header, name) for name in texts]
    label_position = None if label is None else _position(file, header, label)
    short = []
    for number, fields in rows:
        if skip_short and len(fields) < len(header):
            short.append(number)
            continue
        if not fields:
            raise DataError(f"{file}, line {number}: empty line")
        if len(fields) != len(header) and not skip_short:
            raise DataError(f"{file}, line {number}: expected {len(header)} fields, found {len(fields)}")
        value = None if label_position is None else fields[label_position]
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


def class_index(value: str, allowed: Mapping[str, int]) -> int:
    """Class index of a label; raises `ValueError` for an unknown one."""
    if value not in allowed:
        raise ValueError(f"unknown label {value!r}, allowed: {', '.join(allowed)}")
    return allowed[value]


def score(value: str, score_range: tuple[float, float] | None) -> float:
    """A regression label; raises `ValueError` when it is no finite number or lies outside `score_range`."""
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
    return number


def _position(file: Path, header: Sequence[str], name: str) -> int:
    """Position of a column; raises `DataError` when it is missing or there twice."""
    if name not in header:
        raise DataError(f"{file}, line 1: no column {name!r}, the columns are {', '.join(header)}")
    if header.count(name) > 1:
        raise DataError(f"{file}, line 1: the column {name!r} is there {header.count(name)} times")
    return header.index(name)


def _without_empty_end(rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """The same rows without the empty ones after the last row that has fields."""
    held_back: list[tuple[int, list[str]]] = []
    for row in rows:
        if not row[1]:
            held_back.append(row)
            continue
        yield from held_back
        held_back.clear()
        yield row
