"""What a table's numbers come from, as one tidy CSV: every score of every run after every epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reptile_distil.runs.history import read_records
from reptile_distil.table_data import TableData
from reptile_distil.training.metrics import Scores

FIELDS = ("task", "method", "seed", "epoch", "step", "train_seconds", "model", "split", "metric", "value")

_EpochLine = dict[str, Any]


def to_epochs_csv(data: TableData) -> str:
    """One line per run, epoch, model and score.

    `value` is a fraction, as in results.json, and empty where it is undefined. Epoch 0 is the teacher before the first
    step. A split that is looked at only at the end of a run, because validation rows chose the epoch, has one line for
    the student, at its chosen epoch, and two for the teacher. Lines without a model are of both: `agreement`, `gap`,
    `teacher_drift`; `chosen` is 1 at the epoch whose student was kept. A run whose metrics.jsonl is gone has its final
    scores alone, without an epoch. Raises `RunError` for a damaged one.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    writer.writeheader()
    for (task, row, seed), folder in data.folders.items():
        results = data.runs[task, row, seed]
        for line in _epoch_lines(results, _read_epochs(folder)):
            writer.writerow({"task": task, "method": row, "seed": seed, **line, "value": _epoch_value(line["value"])})
    return stream.getvalue()


def _read_epochs(folder: Path) -> list[_EpochLine]:
    """The epoch records of a run, none where its metrics.jsonl is gone."""
    if not (folder / "metrics.jsonl").exists():
        return []
    return [record for record in read_records(folder) if record["event"] == "epoch"]


def _epoch_lines(results: Mapping[str, Any], epochs: list[dict[str, Any]]) -> Iterator[_EpochLine]:
    if not epochs:
        yield from _score_lines({"epoch": "", "step": "", "train_seconds": ""}, "student", results["scores"])
        return
    watched = set(epochs[0]["scores"])
    at_start: _EpochLine = {"epoch": 0, "step": 0, "train_seconds": "0.0"}
    teacher = results.get("teacher")
    if teacher is not None:
        yield from _score_lines(at_start, "teacher", teacher["scores_at_start"])
    for record in epochs:
        at = {**{name: record[name] for name in at_start}, "train_seconds": f"{record['train_seconds']:.1f}"}
        is_chosen = record["epoch"] == results["best_epoch"]
        yield from _score_lines(at, "student", record["scores"])
        if is_chosen:
            yield from _score_lines(at, "student", _without(results["scores"], watched))
        if teacher is not None:
            yield from _score_lines(at, "teacher", record["teacher_scores"])
            if record is epochs[-1]:
                yield from _score_lines(at, "teacher", _without(teacher["scores_at_end"], watched))
        both = {name: record.get(key) for name, key in (("agreement", "agreement"), ("gap", "last_gap"))}
        both |= {"teacher_drift": record.get("teacher_drift")}
        yield from (_epoch_line(at, metric=name, value=value) for name, value in both.items() if value is not None)
        yield _epoch_line(at, metric="chosen", value=float(is_chosen))


def _score_lines(at: _EpochLine, model: str, scores: Mapping[str, Scores]) -> Iterator[_EpochLine]:
    for split, by_metric in scores.items():
        for metric, value in by_metric.items():
            yield _epoch_line(at, model=model, split=split, metric=metric, value=value)


def _epoch_line(at: _EpochLine, *, metric: str, value: float | None, model: str = "", split: str = "") -> _EpochLine:
    return {**at, "model": model, "split": split, "metric": metric, "value": value}


def _without(scores: Mapping[str, Scores], splits: set[str]) -> dict[str, Scores]:
    return {split: by_metric for split, by_metric in scores.items() if split not in splits}


def _epoch_value(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
