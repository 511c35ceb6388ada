"""GLUE's own TSV files -> rows, without losing one.

The files are not CSV: a `"` is a character like any other, `null` and `n/a` are words, a carriage return
inside a line is text. So a line ends at a line feed alone, a field at a tab, and nothing is unquoted.
"""

import codecs
import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reptile_distil.errors import DataError
from reptile_distil.tasks import Task

logger = logging.getLogger(__name__)

Record = tuple[int, tuple[str, ...], str | None]
"""Line number from 1, the texts, the label as it stands in the file (None: the file has no labels)."""


@dataclass(frozen=True)
class Rows:
    """One split in file order: one or two columns of texts; `labels` is None for an unlabelled split."""

    source: str
    columns: tuple[tuple[str, ...], ...]
    labels: list[float] | None


@dataclass(frozen=True)
class _Columns:
    """Columns of one task's official files, as the files call them."""

    texts: tuple[str, ...]
    label: str
    labels_are_names: bool = False


_SENTENCES = ("sentence1", "sentence2")
_COLUMNS = {
    "cola": _Columns(("sentence",), "label"),
    "sst2": _Columns(("sentence",), "label"),
    "mrpc": _Columns(("#1 String", "#2 String"), "Quality"),
    "stsb": _Columns(_SENTENCES, "score"),
    "qqp": _Columns(("question1", "question2"), "is_duplicate"),
    "mnli": _Columns(_SENTENCES, "gold_label", labels_are_names=True),
    "qnli": _Columns(("question", "sentence"), "label", labels_are_names=True),
    "rte": _Columns(_SENTENCES, "label", labels_are_names=True),
    "wnli": _Columns(_SENTENCES, "label"),
    "ax": _Columns(_SENTENCES, "label"),
}
_AX_LABELLED = _Columns(("Premise", "Hypothesis"), "Label", labels_are_names=True)
_COLA_HEADER = ("source", "label", "star", "sentence")  # what the header of CoLA's train and dev would say
_MRPC_IDS = ("#1 ID", "#2 ID")
_MRPC_TRAIN, _MRPC_TEST = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt"
_MRPC_DEV_IDS = "dev_ids.tsv"


def find_official_file(task: Task, split: str, folder: Path) -> Path | None:
    """The file of `folder` that holds a split of a GLUE task, or None."""
    candidates = [f"{split}.tsv"]
    if task.name == "ax":
        # Its folder and file have had several names; the labelled file comes first.
        names = ("diagnostic-full.tsv", "diagnostic.tsv", "AX.tsv")
        candidates = [*names, *(f"diagnostic/{name}" for name in names)]
    elif task.name == "mrpc" and split == "test":
        candidates = ["test.tsv", _MRPC_TEST]
    elif task.name == "mrpc" and not any((folder / name).is_file() for name in ("train.tsv", "dev.tsv")):
        # Never beside one of the two: a dev split made here could hold rows of that train.tsv.
        candidates = [_MRPC_TRAIN]
    return next((folder / name for name in candidates if (folder / name).is_file()), None)


def files_read_with(file: Path) -> tuple[Path, ...]:
    """The files that `read_official_file` reads for one file, itself included, whether or not they are there."""
    return (file, file.with_name(_MRPC_DEV_IDS)) if file.name == _MRPC_TRAIN else (file,)


def read_official_file(task: Task, split: str, file: Path) -> Rows:
    """Rows of one split from one of GLUE's files; raises `DataError` that names file, line and reason.

    Test splits have no labels, except MRPC's in `msr_paraphrase_test.txt` and AX's in `diagnostic-full.tsv`.
    """
    columns = _AX_LABELLED if file.name == "diagnostic-full.tsv" else _COLUMNS[task.name]
    is_test = split.startswith("test")
    labelled = not is_test or file.name in (_MRPC_TEST, "diagnostic-full.tsv")
    texts = columns.texts
    if file.name == _MRPC_TRAIN:
        texts = (*_MRPC_IDS, *texts)
    records = select_columns(
        file,
        split_fields(file),
        texts=texts,
        label=columns.label if labelled else None,
        header=_COLA_HEADER if task.name == "cola" and not is_test else None,
        skip_short=task.name == "qqp" and not is_test,
    )
    if file.name == _MRPC_TRAIN:
        records = _divide_mrpc(file, split, list(records))
    if task.is_regression:
        return collect(file, records, lambda value: score(value, task.score_range))
    spelling = task.label_names if columns.labels_are_names else [str(i) for i in range(task.num_labels)]
    allowed = {label: index for index, label in enumerate(spelling)}
    return collect(file, records, lambda value: class_index(value, allowed))


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its line feed and one carriage return before it).

    Raises `DataError` for a file that cannot be opened and for a line that is not UTF-8.
    """
    try:
        if file.exists() and not file.is_file():
            raise DataError(f"{file} cannot be read: it is no regular file")
        with file.open("rb") as stream:
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


def _divide_mrpc(file: Path, split: str, records: list[Record]) -> Iterator[Record]:
    """Yield the records of `split`, without the two ids that lead their texts.

    `dev_ids.tsv` says which rows are dev. Without it they are the tenth of the rows (408 of 4076) whose ids
    have the smallest hashes.
    """
    ids_file = file.with_name(_MRPC_DEV_IDS)
    if ids_file.is_file():
        dev_ids = {tuple(fields[:2]) for _, fields in split_fields(ids_file)}
    else:
        logger.warning("%s is missing: made a dev split that is not the official one", ids_file)
        pairs = {record[1][:2] for record in records}
        hashed = sorted(pairs, key=lambda ids: hashlib.sha256("\t".join(ids).encode()).digest())
        dev_ids = set(hashed[: round(len(records) / 10)])
    for number, texts, label in records:
        if (texts[:2] in dev_ids) == (split == "dev"):
            yield number, texts[2:], label
