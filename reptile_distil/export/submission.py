"""The zip that the GLUE leaderboard takes: eleven TSV files, made from finished runs; and a check of any such zip.

Nothing is ever unpacked to disk, and no more than `MAX_BYTES` of a member is held in memory.
"""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from reptile_distil.config.config import load_config
from reptile_distil.data.tasks import GLUE, Task
from reptile_distil.errors import DataError, RunError
from reptile_distil.runtime.files import make_folder, write_bytes
from reptile_distil.sources.glue_files import find_official_file

if TYPE_CHECKING:
    from reptile_distil.experiments.finished_run import FinishedRun
    from reptile_distil.runs.results import SplitPredictions

logger = logging.getLogger(__name__)

HEADER = "index\tprediction"
LOWEST, HIGHEST = 0.0, 5.0  # STS-B's scores
MAX_BYTES = 16 * 2**20
"""Size at which a zip, or a file in it, is refused unread; the largest of an honest one, QQP.tsv, has 4 MiB."""


@dataclass(frozen=True, kw_only=True)
class SubmissionFile:
    """What one file of the zip must hold."""

    task: str
    split: str
    num_rows: int
    student: str
    """The task whose student predicts it: `mnli` for AX."""
    spelling: Mapping[str, str]
    """Class name -> how the file says it; empty where a prediction is a number in [0, 5]."""


def _file(task: str, split: str = "test", *, names: bool = False, student: str | None = None) -> SubmissionFile:
    labels, (num_rows,) = GLUE[task].label_names, GLUE[task].splits[split]
    spelling = {label: label if names else str(index) for index, label in enumerate(labels)}
    return SubmissionFile(task=task, split=split, num_rows=num_rows, student=student or task, spelling=spelling)


FILES: Mapping[str, SubmissionFile] = MappingProxyType(
    {
        "CoLA.tsv": _file("cola"),
        "SST-2.tsv": _file("sst2"),
        "MRPC.tsv": _file("mrpc"),
        "STS-B.tsv": _file("stsb"),
        "QQP.tsv": _file("qqp"),
        "MNLI-m.tsv": _file("mnli", "test_matched", names=True),
        "MNLI-mm.tsv": _file("mnli", "test_mismatched", names=True),
        "QNLI.tsv": _file("qnli", names=True),
        "RTE.tsv": _file("rte", names=True),
        "WNLI.tsv": _file("wnli"),
        "AX.tsv": _file("ax", names=True, student="mnli"),
    }
)
"""The eleven files by name, in the leaderboard's order."""

# What the official training sets say most often, for those that are not at hand; STS-B: their mean score. Counted in
# the files: CoLA 6023 of 8551, SST-2 37569 of 67349, RTE 1249 of 2490, WNLI 323 of 635, STS-B's mean. Not counted:
# MRPC and QQP, known to be unbalanced this way; MNLI and QNLI, which are close to balanced, so any class will do.
_MAJORITY: Mapping[str, str | float] = {
    "cola": "acceptable",
    "sst2": "positive",
    "mrpc": "equivalent",
    "stsb": 2.701,
    "qqp": "not_duplicate",
    "mnli": "entailment",
    "qnli": "entailment",
    "rte": "entailment",
    "wnli": "not_entailment",
}


class FileContent(NamedTuple):
    """The predictions of one file, as they stand in it, and where they come from, in words."""

    predictions: list[str]
    origin: str


def find_runs(folders: Iterable[str | Path], overrides: Sequence[str] = ()) -> dict[str, FinishedRun]:
    """The finished runs in `folders` by task, each with its own configuration under `key=value` overrides.

    Raises `RunError` as `open_run_folder` does, for a task that has no file in a submission, and for a second run of a
    task.
    """
    from reptile_distil.experiments.finished_run import find_run, open_run_folder  # seconds, and a check does without

    runs: dict[str, FinishedRun] = {}
    for folder in map(find_run, folders):
        config = load_config(folder / "config.yaml", overrides)
        if not isinstance(config.task, str) or not any(file.student == config.task for file in FILES.values()):
            raise RunError(f"{folder}: task {config.task_name} has no test set on the GLUE leaderboard; leave it out")
        if config.task in runs:
            raise RunError(f"{runs[config.task].folder} and {folder}: two runs of task {config.task}; give one of them")
        runs[config.task] = open_run_folder(folder, overrides)
    return runs


def predict_files(runs: Mapping[str, FinishedRun], *, fill_missing: bool = False) -> dict[str, FileContent]:
    """The content of all eleven files, predicted by the runs' models.

    A task without a run is refused with a `RunError`, before anything is predicted, or with `fill_missing` gets
    `majority_prediction` in every row, from the data folder of the first run.
    """
    missing = [name for name, file in FILES.items() if file.student not in runs]
    if missing and not (fill_missing and runs):
        raise RunError(f"no run for {', '.join(missing)}: give one for each, or --fill-missing for a constant in each")
    contents = {}
    for name in missing:  # these first: they take the least time to fail
        data = next(iter(runs.values())).config.data
        path = None if data.path is None else Path(data.path)
        prediction, origin = majority_prediction(name, path, check_rows=data.check_rows)
        contents[name] = FileContent([prediction] * FILES[name].num_rows, origin)
    for name, file in FILES.items():
        if name not in missing:
            run = runs[file.student]
            logger.info("predicting %s with %s", name, run.folder / "model")
            contents[name] = FileContent(_predict(name, run), f"from {run.folder}")
    return {name: contents[name] for name in FILES}


def _predict(name: str, run: FinishedRun) -> list[str]:
    from reptile_distil.experiments.experiment import Experiment  # takes seconds, and a check does without

    file = FILES[name]
    experiment = Experiment(run.config.with_values(task=file.task))
    return to_predictions(name, experiment.predict_split(file.split, model=run.folder / "model"))


def to_predictions(name: str, split_predictions: SplitPredictions) -> list[str]:
    """A model's predictions on the test split of the file `name`, in order, as they stand in that file."""
    return [_spell(FILES[name], prediction.label) for prediction in split_predictions.predictions]


def _spell(file: SubmissionFile, label: Any) -> str:
    if isinstance(label, str):
        return file.spelling[label]
    # Not np.clip or max(0, ...): a NaN must stay one, for the check to find.
    return f"{min(max(label, LOWEST), HIGHEST):z.3f}"


def majority_prediction(name: str, path: Path | None, *, check_rows: bool = True) -> tuple[str, str]:
    """A constant for the file `name`, as it stands in it, and what it is, in words.

    It is the most frequent class of the task's training set under `path` (None: on the hub), the first one of
    equals, or for STS-B the mean score. Where there is no training set to be read, it is that of the official one,
    from a table here. Raises `DataError` for a broken training file.
    """
    from reptile_distil.sources.splits import load_split  # takes seconds, and a check does without

    file = FILES[name]
    task = GLUE[file.student]
    try:
        labels = load_split(task, "train", path, check_rows=check_rows)["label"]
    except DataError:
        if _has_training_file(task, path):
            raise
        majority = _MAJORITY[task.name]
        source = f"the official training set, for want of one in {path or 'reach'}"
    else:
        source = f"the {len(labels)} training rows in {path or 'the hub data set'}"
        counts = Counter(labels)
        if task.is_regression:
            majority = math.fsum(labels) / len(labels)
        else:
            majority = task.label_names[max(range(task.num_labels), key=counts.__getitem__)]
    prediction = _spell(file, majority)
    meaning = f" ({majority})" if majority in file.spelling and prediction != majority else ""
    kind = "mean score" if task.is_regression else "majority class"
    return prediction, f"filled with {prediction}{meaning}: {kind} of {source}"


def _has_training_file(task: Task, path: Path | None) -> bool:
    folders = () if path is None else (path / str(task.folder), path)
    return any(find_official_file(task, "train", folder) for folder in folders)


def write_submission(path: Path, predictions: Mapping[str, Sequence[str]]) -> None:
    """Writes the zip at `path`, all of it or nothing; the same predictions give the same bytes.

    `predictions` has for each of the eleven file names the predictions in the order of the test set, spelled as in
    the file. Raises `DataError` where a file is missing, unknown or not as the leaderboard wants it.
    """
    if missing := [name for name in FILES if name not in predictions]:
        raise DataError(f"no predictions for {', '.join(missing)}")
    if unknown := [name for name in predictions if name not in FILES]:
        raise DataError(f"{', '.join(unknown)}: no file of a submission, known: {', '.join(FILES)}")
    contents = {}
    for name in FILES:
        rows = (f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions[name]))
        contents[name] = "".join((f"{HEADER}\n", *rows)).encode()
        for fault in _faults_of_file(name, io.BytesIO(contents[name])):
            raise DataError(fault)
    try:
        make_folder(path.parent)
        write_bytes(path, _zip(contents))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _zip(contents: Mapping[str, bytes]) -> bytes:
    """The same bytes for the same contents, on every system."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, content in contents.items():
            member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system, member.external_attr = 3, 0o644 << 16
            archive.writestr(member, content)
    return zipped.getvalue()


_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""What `zipfile` raises on a damaged, encrypted or strangely packed file."""


def check_submission(path: Path) -> list[str]:
    """Everything that is wrong with the zip at `path`, a sentence each; an empty list for one without fault.

    A fault that many rows of a file share is reported once, with the first of them. The zip may come from anywhere.
    """
    if not path.is_file():
        return [f"{path}: no such file"]
    if path.stat().st_size > MAX_BYTES:
        return [f"{path}: has {path.stat().st_size} bytes, more than {MAX_BYTES}; not read"]
    try:
        with zipfile.ZipFile(path) as archive:
            return list(_faults_of_zip(archive))
    except _UNREADABLE as error:
        return [f"{path}: is no zip that can be read: {_quote(str(error))[1:-1]}"]


def _faults_of_zip(archive: zipfile.ZipFile) -> Iterator[str]:
    """Faults of the list of members, then of each file."""
    members: dict[str, list[zipfile.ZipInfo]] = {name: [] for name in FILES}
    nested, strangers = [], []
    for member in archive.infolist():
        folder, _, name = member.filename.rpartition("/")
        if name in members:
            members[name].append(member)
            if folder:
                nested.append(member.filename)
        else:
            strangers.append(member.filename)
    if nested:
        yield f"{_quote(nested[0])} lies in a folder, but a submission is flat{_and_more(len(nested), 'file')}"
    if strangers:
        yield f"{_quote(strangers[0])} does not belong in a submission{_and_more(len(strangers), 'file')}"
    for name, found in members.items():
        if not found:
            yield f"{name} is missing"
            continue
        if len(found) > 1:
            yield f"{name} is there {len(found)} times"
        try:
            yield from _faults_of_file(name, io.BytesIO(_read(archive, found[0])))
        except _UNREADABLE as error:
            yield f"{name} cannot be read: {_quote(str(error))[1:-1]}"


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The unpacked bytes of a member. Raises `ValueError` for one that may not fit into memory."""
    if member.file_size > MAX_BYTES:
        raise ValueError(f"it has {member.file_size} bytes, more than {MAX_BYTES}")
    if member.flag_bits & 1:
        raise ValueError("it is encrypted")
    # The other methods of packing can unfold a few bytes into gigabytes in one call, whatever limit is asked for.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"it is packed by method {member.compress_type}, use deflate")
    with archive.open(member) as stream:
        return stream.read(MAX_BYTES)


def _faults_of_file(name: str, lines: Iterable[bytes]) -> Iterator[str]:
    """Faults of one file from its lines: the first of each kind, and how many more there are."""
    file = FILES[name]
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    num_rows = -1  # the header is none
    for number, line in enumerate(lines, start=1):
        if number > 1 and not line.strip():
            faults = [("blank", "is blank")]
        else:
            # Rows too many are counted alone.
            faults = _faults_of_line(file, num_rows, line) if num_rows < file.num_rows else []
            num_rows += 1
        for kind, fault in faults:
            first.setdefault(kind, f"{name}, line {number}: {fault}")
            counts[kind] += 1
    for kind, fault in first.items():
        yield fault + _and_more(counts[kind], "line")
    if max(num_rows, 0) != file.num_rows:
        yield f"{name}: expected {file.num_rows} rows, found {max(num_rows, 0)}"
    if num_rows < 0:
        yield f"{name}: is empty, expected the header {HEADER!r}"


def _faults_of_line(file: SubmissionFile, row: int, line: bytes) -> list[tuple[str, str]]:
    """(kind, words) of each fault in the line of a row, counted from 0; row -1 is the header."""
    faults = []
    try:
        text = line.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError:
        return [("encoding", "is not UTF-8")]
    if text.endswith("\r"):
        faults.append(("line end", "ends in a carriage return"))
        text = text[:-1]
    if row < 0:
        return faults if text == HEADER else [*faults, ("header", f"expected {HEADER!r}, found {_quote(text)}")]
    fields = text.split("\t")
    if len(fields) != 2:
        return [*faults, ("fields", f"expected an index and a prediction, found {len(fields)} fields")]
    index, prediction = fields
    if index != str(row):
        again = ", which was there before" if re.fullmatch(r"[0-9]{1,9}", index) and int(index) < row else ""
        faults.append(("index", f"expected index {row}, found {_quote(index)}{again}"))
    if fault := _fault_of_prediction(file, prediction):
        faults.append(("prediction", fault))
    return faults


# Narrower than float(), which takes nan, 1_0 and digits of any script, and digits without end.
_NUMBER = re.compile(r"[+-]?([0-9]{1,20}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")


def _fault_of_prediction(file: SubmissionFile, prediction: str) -> str | None:
    if file.spelling:
        allowed = tuple(file.spelling.values())
        return None if prediction in allowed else f"expected one of {', '.join(allowed)}, found {_quote(prediction)}"
    if not _NUMBER.fullmatch(prediction):
        return f"expected a finite number, found {_quote(prediction)}"
    if LOWEST <= float(prediction) <= HIGHEST:
        return None
    return f"expected a number from {LOWEST:g} to {HIGHEST:g}, found {prediction}"


def _quote(text: str) -> str:
    """A foreign text in ASCII, its control characters spelled out, and not too long for a message."""
    return ascii(text if len(text) <= 80 else text[:80] + "...")


def _and_more(count: int, what: str) -> str:
    return "" if count == 1 else f" (and {count - 1} more {what}{'s' * (count > 2)})"
