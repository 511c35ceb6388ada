"""The results of a run, and how its records are read: results.json and the lines of metrics.jsonl, checked as a whole.

Every reader comes through `read_record`, `read_metrics` or `as_results`: whatever a file holds, the result is a record
whose values have their types, or a `RunError` of one sentence with the file, the key and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from reptile_distil.errors import RunError, first_fault
from reptile_distil.runtime.files import read_bytes
from reptile_distil.training.records import EpochRecord, Number, Record, SplitScores, StepRecord, nan_to_null

_Kind = TypeVar("_Kind", bound=Record)


class _Kept(Record):
    """A record that keeps what another version of the package has added to it."""

    model_config = ConfigDict(extra="allow")


class TeacherResults(_Kept):
    """The teacher of a student's run, before the first step and after the last."""

    num_parameters: NonNegativeInt
    scores_at_start: SplitScores
    scores_at_end: SplitScores
    chance: SplitScores | None = None
    """Those of whoever says the most frequent class for every row."""
    one_class: list[str] = Field(default_factory=list)
    """Splits on which the teacher, at its start, said the same class, or number, for every row."""

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Those of the teacher as it was fine-tuned."""
        return self.scores_at_start


class BatchLatency(_Kept):
    """Milliseconds of both models for a batch of one size: medians over the rounds."""

    teacher_ms: NonNegativeFloat
    student_ms: NonNegativeFloat
    rounds: NonNegativeInt = 0


class Latency(_Kept):
    """How fast the student is beside its teacher."""

    length: PositiveInt
    """Tokens in each row."""
    device: str
    num_threads: NonNegativeInt = 0
    batches: dict[str, BatchLatency]
    """By the number of rows in a batch."""


class Plugin(_Kept):
    """A method or loss of the user's own."""

    name: str
    package: str | None = None
    version: str | None = None
    sha256: str | None = None
    """Of its module."""


class Results(_Kept):
    """What results.json holds."""

    task: str
    method: str
    """The method's name; `teacher` for the teacher's fine-tuning."""
    seed: NonNegativeInt
    scores: SplitScores
    """Of the best epoch's model."""
    score: Number
    """The one that chose the best epoch."""
    best_epoch: PositiveInt
    num_steps: NonNegativeInt
    num_train_rows: NonNegativeInt
    """Training rows with labels."""
    num_transfer_rows: NonNegativeInt = 0
    """Training rows without labels, from which a student learns by its teacher's soft labels alone."""
    num_parameters: NonNegativeInt
    train_seconds: NonNegativeFloat
    examples_per_second: NonNegativeFloat
    num_processes: PositiveInt = 1
    peak_memory_bytes: NonNegativeInt = 0
    inputs: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the files that the run has read, by what they are."""
    stopped_by: str | None = None
    """The callback that asked for the end of training."""
    plugins: dict[str, Plugin] = Field(default_factory=dict)
    """Code of the user's own that the run was made with, by its key in the configuration."""
    teacher: TeacherResults | None = None
    latency: Latency | None = None
    wall_seconds: NonNegativeFloat
    device: str
    decisive: dict[str, Any]
    """The settings that decide the result, by dotted key."""

    def to_dict(self) -> dict[str, Any]:
        """The results as results.json holds them: plain values, an undefined score is None."""
        values: dict[str, Any] = nan_to_null(self.model_dump(exclude_unset=True))
        return values


class Predictions(_Kept):
    """What predictions_SPLIT.json holds: the best model's prediction for each row (N,), and the row's label."""

    predictions: list[int | Number]
    labels: list[int | Number]

    @model_validator(mode="after")
    def _one_for_each_row(self) -> Self:
        if len(self.predictions) != len(self.labels):
            raise ValueError(f"{len(self.predictions)} predictions for {len(self.labels)} labels")
        return self


class PredictedSets(_Kept):
    """The same for a multi-label task: each prediction, and what it should be, is a list (C,) of 0 and 1."""

    predictions: list[list[Literal[0, 1]]]
    labels: list[list[Literal[0, 1]]]

    @model_validator(mode="after")
    def _one_for_each_row(self) -> Self:
        if len(self.predictions) != len(self.labels):
            raise ValueError(f"{len(self.predictions)} predictions for {len(self.labels)} sets of labels")
        if len({len(row) for row in [*self.predictions, *self.labels]}) > 1:
            raise ValueError("sets of different numbers of labels")
        return self


class Environment(_Kept):
    """What environment.json holds, as far as it is read again."""

    torch: str
    transformers: str


@dataclass(frozen=True)
class Metrics:
    """The records in a run's metrics.jsonl, in their order."""

    epochs: tuple[EpochRecord, ...]
    steps: tuple[StepRecord, ...]


def read_record(path: Path, kind: type[_Kind], remedy: str) -> _Kind:
    """The record that a JSON file holds. Raises `RunError`, with `remedy`, for whatever else is at `path`."""
    return _parse(kind, _read_bytes(path, remedy), path, remedy)


def read_results(path: Path, remedy: str = "run again with --overwrite") -> Results:
    """The results in a results.json. Raises as `read_record`."""
    return read_record(path, Results, remedy)


def read_metrics(folder: Path) -> Metrics:
    """What a run has logged so far. Raises `RunError` where there is no run, or its metrics.jsonl is damaged."""
    file, remedy = folder / "metrics.jsonl", "run again with --overwrite"
    if not file.exists():
        raise RunError(f"{folder}: no run yet; run fit() or scripts/distil.py first")
    content = _read_bytes(file, remedy)
    epochs, steps = [], []
    # What follows the last line's end is what a run that died was writing, or one that lives is.
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        at = f"line {number}: "
        event = _parse(_Event, line, file, remedy, at=at).event
        if event == "epoch":
            epochs.append(_parse(EpochRecord, line, file, remedy, at=at))
        elif event == "step":
            steps.append(_parse(StepRecord, line, file, remedy, at=at))
    return Metrics(tuple(epochs), tuple(steps))


def as_results(results: Results | Mapping[str, Any]) -> Results:
    """The record of results that are given as the contents of a results.json. Raises `RunError` where they are not."""
    if isinstance(results, Results):
        return results
    try:
        return Results.model_validate(results)
    except ValidationError as error:
        raise RunError(
            f"results: {first_fault(error)}; give the contents of a results.json, as a run has written it"
        ) from None


class _Event(Record):
    """The kind of a line; a later version of the package may have others than `epoch` and `step`."""

    event: str


def _read_bytes(path: Path, remedy: str) -> bytes:
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path}: cannot be read ({reason}); {remedy}") from None


def _parse(kind: type[_Kind], content: bytes, path: Path, remedy: str, *, at: str = "") -> _Kind:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise RunError(f"{path}: cannot be read ({at}{first_fault(error)}); {remedy}") from None
