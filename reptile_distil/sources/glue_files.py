"""GLUE's own TSV files -> rows, without losing one.

The files are not CSV: a `"` is a character like any other, `null` and `n/a` are words, a carriage return
inside a line is text. So a line ends at a line feed alone, a field at a tab, and nothing is unquoted.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from reptile_distil.data.rows import Record, Rows, class_index, collect, score, select_columns, split_fields
from reptile_distil.data.tasks import Task

logger = logging.getLogger(__name__)


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
