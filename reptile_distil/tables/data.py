"""The numbers of a table, from the run folders alone: scores by seed, their means, sizes and speed.

All scores are in percent here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from reptile_distil.data.tasks import Task
from reptile_distil.errors import RunError
from reptile_distil.experiments.finished_run import KnownDigests, open_finished_run
from reptile_distil.runs.records import Results, TeacherResults, read_metrics
from reptile_distil.tables.config import TEACHER, Cell, TableConfig
from reptile_distil.tables.statistics import summarise
from reptile_distil.training.records import EpochRecord

BySeed = dict[int, float | None]
"""Scores of the seeds that were run; None where a score is undefined."""


class Column(NamedTuple):
    """One score of one task."""

    split: str
    metric: str


class Entry(NamedTuple):
    """What a table says of the scores of one row in one column."""

    mean: float | None
    """None where no seed was run, or a score is undefined."""
    std: float
    """Sample standard deviation; NaN for one seed."""
    n: int
    """Seeds that were run."""
    num_undefined: int


def columns_of(task: Task) -> list[Column]:
    """The scores of a task in the order in which tables give them."""
    return [Column(split, metric) for split in task.dev_splits for metric in task.metrics]


def glue_average(scores: Mapping[str, Iterable[float]]) -> float:
    """The leaderboard's score: the mean over tasks of the mean of each task's scores; MNLI's m and mm are one task."""
    return statistics.fmean(statistics.fmean(of_task) for of_task in scores.values())


@dataclass
class TableData:
    """The finished runs of a table, by task, row and seed."""

    tasks: tuple[Task, ...]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: dict[tuple[str, str, int], Results]
    folders: dict[tuple[str, str, int], Path] = field(default_factory=dict)
    epochs: dict[tuple[str, str, int], tuple[EpochRecord, ...]] = field(default_factory=dict)
    """The runs' epochs; none of a run whose metrics.jsonl is gone or damaged."""
    given_teachers: dict[str, TeacherResults] = field(default_factory=dict)
    """By task, a teacher that was fine-tuned elsewhere, as a run of a student has found it."""
    problems: list[str] = field(default_factory=list)
    """What is missing in the table, or damaged, each with the reason."""
    compared: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    """Comparisons made so far: a bootstrap takes seconds, and several files want it."""
    one_teacher: bool = False
    """Whether the teacher was fine-tuned elsewhere: one and the same for all seeds, known from its students' runs."""

    @property
    def students(self) -> list[str]:
        """The rows but the teacher."""
        return [row for row in self.rows if row != TEACHER]

    def planned(self, row: str) -> int:
        """The number of runs per task that a row has when nothing is missing."""
        return 1 if row == TEACHER and self.one_teacher else len(self.seeds)

    def of_row(self, row: str, task: Task | None = None) -> dict[tuple[str, int], Results | TeacherResults]:
        """The runs of a row, on one task or on all, by task and seed; a given teacher stands under the first seed."""
        found: dict[tuple[str, int], Results | TeacherResults] = {}
        if row == TEACHER:
            found |= {(name, self.seeds[0]): teacher for name, teacher in self.given_teachers.items()}
        found |= {(name, seed): results for (name, at, seed), results in self.runs.items() if at == row}
        return {key: results for key, results in found.items() if task is None or key[0] == task.name}

    def scores(self, row: str, task: Task, columns: Sequence[Column]) -> BySeed:
        """The mean of the given scores of a task, by seed."""
        means: BySeed = {}
        for (_, seed), results in sorted(self.of_row(row, task).items()):
            values = [results.scores[split][metric] for split, metric in columns]
            defined = all(map(math.isfinite, values))
            means[seed] = 100 * statistics.fmean(values) if defined else None
        return means

    def averages(self, row: str) -> BySeed:
        """The mean over tasks of their mean scores, of the seeds that were run on every task."""
        by_task = {task.name: self.scores(row, task, columns_of(task)) for task in self.tasks}
        averages: BySeed = {}
        for seed in self.seeds:
            if all(seed in scores for scores in by_task.values()):
                of_seed = {name: scores[seed] for name, scores in by_task.items()}
                known = {name: (score,) for name, score in of_seed.items() if score is not None}
                averages[seed] = glue_average(known) if len(known) == len(of_seed) else None
        return averages

    def parameters(self, row: str) -> float | None:
        """Millions of weights; the mean over tasks, whose heads differ."""
        sizes = [results.num_parameters for results in self.of_row(row).values()]
        return statistics.fmean(sizes) / 1e6 if sizes else None

    def speedup(self, row: str, batch_size: int) -> tuple[float | None, int]:
        """The teacher's milliseconds over the student's: the median over the measurements of a row, and their number.

        Runs of the same shapes on a machine share one.
        """
        latencies = [run.latency for (_, at, _), run in self.runs.items() if at == row and run.latency is not None]
        found = [latency.batches[str(batch_size)] for latency in latencies if str(batch_size) in latency.batches]
        measured = list({(batch.teacher_ms, batch.student_ms): batch for batch in found}.values())
        ratios = [batch.teacher_ms / batch.student_ms for batch in measured if batch.student_ms]
        return (statistics.median(ratios), len(ratios)) if ratios else (None, 0)


def collect(table: TableConfig) -> TableData:
    """The finished runs of a table; what is not there, or was made with other settings, is among the `problems`."""
    one_teacher = TEACHER in table.rows and not any(cell.row == TEACHER for cell in table.cells)
    data = TableData(table.tasks, table.rows, table.seeds, {}, one_teacher=one_teacher)
    known: KnownDigests = {}
    teachers: dict[str, dict[str, tuple[Cell, TeacherResults]]] = {}
    for cell in table.cells:
        key = (cell.task.name, cell.row, cell.seed)
        try:
            results = open_finished_run(cell.run, cell.config, cell.task, cell.role, known)
        except RunError as error:
            data.problems.append(f"{cell.name}: {error}")
            continue
        if results is None:
            data.problems.append(f"{cell.name}: not finished")
            continue
        data.runs[key], data.folders[key] = results, cell.folder
        data.epochs[key] = _read_epochs(cell, data.problems)
        if data.one_teacher and results.teacher is not None:
            teachers.setdefault(cell.task.name, {})[cell.row] = (cell, results.teacher)
    for name, by_row in teachers.items():
        _take_given(data, name, by_row)
    return data


def _take_given(data: TableData, task: str, by_row: Mapping[str, tuple[Cell, TeacherResults]]) -> None:
    """The one teacher of a task's rows, or a line in `problems` where they have several."""
    names = {row: (cell.config.teacher.finetuned, cell.config.teachers) for row, (cell, _) in by_row.items()}
    first = next(iter(names))
    if others := [row for row, name in names.items() if name != names[first]]:
        data.problems.append(f"{task} {TEACHER}: {first} and {', '.join(others)} have different ones")
    else:
        data.given_teachers[task] = by_row[first][1]


def _read_epochs(cell: Cell, problems: list[str]) -> tuple[EpochRecord, ...]:
    """The epochs of a finished run; none, and a line in `problems`, where its metrics.jsonl is damaged."""
    if not cell.run.metrics.exists():
        return ()
    try:
        return read_metrics(cell.folder).epochs
    except RunError as error:
        problems.append(f"epochs of {cell.name}: {error}")
        return ()


def summarise_scores(scores: BySeed) -> Entry:
    """Mean and spread of the scores; an undefined one makes both undefined, a mean over the rest would flatter."""
    values = [score for score in scores.values() if score is not None]
    num_undefined = len(scores) - len(values)
    if num_undefined or not values:
        return Entry(None, math.nan, len(scores), num_undefined)
    summary = summarise(values)
    return Entry(summary.mean, summary.std, summary.n, 0)
