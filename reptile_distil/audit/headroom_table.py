"""The headroom of each task, seed and row of a table: measured once, kept, and written as Markdown and CSV."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reptile_distil.audit.headroom import (
    FROZEN,
    Headroom,
    HeadroomSettings,
    Measured,
    check_headroom,
)
from reptile_distil.audit.kept_students import DAMAGED, load_student, read_student
from reptile_distil.audit.summary import CONFIDENCE
from reptile_distil.config.config import Config
from reptile_distil.errors import ConfigError, DataError, ReptileDistilError
from reptile_distil.experiments.build_task import build_task
from reptile_distil.runtime.each_line_once import each_line_once
from reptile_distil.runtime.files import make_folder, write_text
from reptile_distil.runtime.measuring import free_memory
from reptile_distil.runtime.text_tables import markdown_table, percent
from reptile_distil.tables.config import TEACHER, Cell, TableConfig
from reptile_distil.training.metrics import Scores, compute_scores

logger = logging.getLogger(__name__)

NUM_RESAMPLES = 1_000


_SAID = {
    "labels": "the labels alone",
    "frozen": "frozen teacher",
    "averaged": "{num_teachers} teachers averaged",
    "more_labels": "teacher of {times} times the labels",
    "oracle": "frozen teacher and true labels averaged",
}
_COLUMNS = (
    *("task", "row", "seed", "targets", "labelled_rows", "transfer_rows"),
    *("model", "step", "train_seconds", "metric", "value"),
)


class Room(NamedTuple):
    """What one kind of targets is worth on one row of one task, over seeds; scores as fractions."""

    task: str
    row: str
    targets: str
    seeds: tuple[int, ...]
    """Those that have been measured for these targets and for the frozen teacher's."""
    teacher: float | None
    """Mean score of whoever gave the targets."""
    student: float | None
    difference: float | None
    """Mean score minus that of the frozen teacher's students; None for these."""
    low: float | None
    high: float | None
    """95 % interval of that: the held-out rows drawn again, the same for both.

    Each of these is None where a score is undefined."""


class Gain(NamedTuple):
    """What the frozen teacher's student has from one row's batches over those of the table's first row; fractions."""

    task: str
    row: str
    first_row: str
    seeds: tuple[int, ...]
    """Those that both have."""
    difference: float | None
    low: float | None
    high: float | None
    """As in `Room`."""


@dataclass
class HeadroomTable:
    """Students of kd, each measured for all targets.

    Raises `ConfigError` as `check_headroom` does, where there are none, and where two would have the same files.
    """

    cells: Sequence[Cell]
    settings: HeadroomSettings
    output: Path
    """Start of the paths of what is written: `<output>.csv`, `<output>.md`, and a folder of that name with a file for
    each student."""
    measured: dict[tuple[str, str, int], dict[str, Measured]] = field(default_factory=dict)
    """By task, row and seed, the students of the targets."""
    failures: dict[str, str] = field(default_factory=dict)
    """By cell, or cell and targets, why it could not be measured."""
    stops_at_faults: bool = False
    """Whether a fault is raised, and not noted so that the other cells are measured."""

    def __post_init__(self) -> None:
        if not self.cells:
            raise ConfigError("methods has no student: headroom is that of kd, so give methods=[kd]")
        for cell in self.cells:
            check_headroom(cell.config, self.settings)
        by_file: dict[str, Cell] = {}
        for cell in self.cells:
            if (other := by_file.setdefault(_file_name(cell), cell)) is not cell:
                raise ConfigError(
                    f"task {other.task.name} with row {other.row} and task {cell.task.name} with row {cell.row} would "
                    f"have the same files, {_file_name(cell)}-*.json: give one of them another name"
                )

    @classmethod
    def of_table(cls, table: TableConfig, settings: HeadroomSettings) -> HeadroomTable:
        """All students of a table. Raises `ConfigError` for a search, and for another engine than the local one."""
        if table.keys.engine.name != "local":
            raise ConfigError(f"engine {table.keys.engine.name} has no effect on headroom, which is measured here")
        if table.keys.search is not None:
            raise ConfigError(
                "search has no effect on headroom, whose students have the values as they are: leave it out"
            )
        # A variant's run has a folder of its own, which nothing is written into here.
        cells = [
            dataclasses.replace(cell, config=cell.config.with_values(output_dir=None))
            for cell in table.cells
            if cell.row != TEACHER
        ]
        return cls(cells, settings, table.output.with_name(f"{table.output.name}-headroom"))

    @classmethod
    def of_run(cls, config: Config, settings: HeadroomSettings) -> HeadroomTable:
        """The student of one configuration."""
        cell = Cell(build_task(config), config.method, config.seed, config)
        output = Path(config.runs_dir, config.task_name, f"headroom-seed{config.seed}")
        return cls([cell], settings, output, stops_at_faults=True)

    def run(self, report: Callable[[], None], *, overwrite: bool = False) -> None:
        """Measures what is not there yet; `report` is called after each student. What fails is left out, and noted.

        Raises `RunError`, before anything is measured, where a student was measured with other settings before, unless
        `overwrite`, which measures such students again; `DataError` where a cell has too few rows.
        """
        with each_line_once("reptile_distil.experiments"):
            if not overwrite:
                self._check_settings()
            self._check_rows()
            for cell in self.cells:
                with self._noted(_name(cell)):
                    self._run(cell, report, overwrite=overwrite)
                free_memory()

    def _check_settings(self) -> None:
        for cell in self.cells:
            try:
                headroom = Headroom(cell.config, self.settings)
            except ReptileDistilError:  # said when the cell has its turn
                continue
            for targets in headroom.targets:
                with contextlib.suppress(*DAMAGED):  # said when the student has its turn
                    if kept := load_student(self._path(cell, targets)):
                        kept.check_settings(headroom, targets)

    def _check_rows(self) -> None:
        for cell in self.cells:
            try:
                lack = Headroom(cell.config, self.settings).lack_of_rows()
            except ReptileDistilError:  # said when the cell has its turn
                continue
            if lack:
                raise DataError(lack if self.stops_at_faults else f"{_name(cell)}: {lack}")

    @contextlib.contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """A fault inside is noted under the name, and ends what is inside alone."""
        try:
            yield
        except ReptileDistilError as error:
            if self.stops_at_faults:
                raise
            self.failures[name] = " ".join(str(error).split())
            logger.error("%s: %s", name, self.failures[name])

    def _path(self, cell: Cell, targets: str) -> Path:
        return self.output / f"{_file_name(cell)}-{targets}.json"

    def _run(self, cell: Cell, report: Callable[[], None], *, overwrite: bool) -> None:
        headroom = Headroom(cell.config, self.settings)
        headroom.fit_teacher()
        inputs = headroom.inputs()
        found = self.measured.setdefault((cell.task.name, cell.row, cell.seed), {})
        for targets in headroom.targets:
            with self._noted(f"{_name(cell)}, {targets}"):
                path = self._path(cell, targets)
                kept = read_student(path, headroom, targets, inputs, overwrite=overwrite)
                measured = found[targets] = kept or headroom.measure(targets)
                score = percent(_defined(_mean(measured.points[-1].scores)))
                logger.info("%s, %s: %s%s", _name(cell), targets, score, " (measured before)" if kept else "")
                if kept is None:
                    make_folder(self.output)
                    identity = {"settings": headroom.decisive_settings(targets), "inputs": inputs}
                    write_text(path, json.dumps({"identity": identity, "measured": measured.to_json()}))
                    report()

    def rooms(self) -> list[Room]:
        """What was measured so far, task by task and row by row: the frozen teacher's first.

        Each has the seeds that have both its student and the frozen teacher's.
        """
        metrics = {cell.task.name: cell.task.metrics for cell in self.cells}
        rooms = []
        for task, row in dict.fromkeys((task, row) for task, row, _ in self.measured):
            by_seed = {
                seed: of
                for (name, other, seed), of in self.measured.items()
                if (name, other) == (task, row) and FROZEN in of
            }
            for targets in dict.fromkeys(targets for of in by_seed.values() for targets in of):
                students = {seed: (of[targets], of[FROZEN]) for seed, of in by_seed.items() if targets in of}
                rooms.append(_room(task, row, students, metrics[task]))
        return rooms

    def gains(self) -> list[Gain]:
        """Of each task's other rows whose held-out rows are the first one's."""
        metrics = {cell.task.name: cell.task.metrics for cell in self.cells}
        first_row = self.cells[0].row
        frozen = {cell: of[FROZEN] for cell, of in self.measured.items() if FROZEN in of}
        gains = []
        for task, row in dict.fromkeys((task, row) for task, row, _ in frozen if row != first_row):
            pairs = {
                seed: (student, first)
                for (name, other, seed), student in frozen.items()
                if (name, other) == (task, row)
                and (first := frozen.get((task, first_row, seed))) is not None
                and np.array_equal(student.references, first.references)
            }
            if pairs:
                values = _difference(list(pairs.values()), metrics[task])
                gains.append(Gain(task, row, first_row, tuple(pairs), *map(_defined, values)))
        return gains

    def _num_missing(self, room: Room) -> int:
        """How many of the seeds that were asked for the room lacks."""
        asked = {cell.seed for cell in self.cells if (cell.task.name, cell.row) == (room.task, room.row)}
        return len(asked - {*room.seeds})

    def to_markdown(self) -> str:
        """A line for each kind of targets; then what could not be measured, and why."""
        lines = []
        for room in self.rooms():
            said = _SAID[room.targets].format(**self.settings._asdict())
            num_seeds, num_missing = len(room.seeds), self._num_missing(room)
            seeds = f"{num_seeds} of {num_seeds + num_missing}" if num_missing else str(num_seeds)
            scores = (percent(room.teacher), percent(room.student), _with_interval(room))
            lines.append([room.task, room.row, said, seeds, *scores])
        header = [
            "task",
            "row",
            "the student learns from",
            "seeds",
            "teacher's score",
            "student's score",
            "minus frozen",
        ]
        table = markdown_table(header, lines, num_left=3)
        if gains := self.gains():
            header = ["task", "row", "minus row", "seeds", "the frozen teacher's student"]
            of_gains = [[*gain[:3], str(len(gain.seeds)), _with_interval(gain)] for gain in gains]
            table = f"{table}\n\n{markdown_table(header, of_gains, num_left=3)}"
        missing = "".join(f"\n- {name}: {reason}" for name, reason in self.failures.items())
        return f"{table}\n\nNot measured:\n{missing}" if missing else table

    def to_csv(self, *, with_differences: bool = False) -> str:
        """Every score of every student and of who taught it (step 0), in fractions; the differences over seeds.

        Their column `seed` is "all", or where some are missing those that there are, such as "1 3", as for what a row
        has over the first one.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for (task, row, seed), of_cell in self.measured.items():
            for measured in of_cell.values():
                rows = (measured.num_labelled_rows, measured.num_transfer_rows)
                for model, step, seconds, scores in _points(measured):
                    for metric, value in scores.items():
                        about = (task, row, seed, measured.targets, *rows, model, step, seconds)
                        writer.writerow((*about, metric, f"{value:.6g}"))
        for columns, compared in self._differences() if with_differences else ():
            for name in ("difference", "low", "high"):
                if (value := getattr(compared, name)) is not None:
                    writer.writerow((*columns, "", "", name, f"{value:.6g}"))
        return file.getvalue()

    def _differences(self) -> Iterator[tuple[tuple[str, ...], Room | Gain]]:
        """Rooms, then gains, each with the first columns of its lines of the CSV."""
        for room in self.rooms():
            seeds = " ".join(map(str, room.seeds)) if self._num_missing(room) else "all"
            yield (room.task, room.row, seeds, room.targets, "", "", "student minus frozen"), room
        for gain in self.gains():
            seeds = " ".join(map(str, gain.seeds))
            yield (gain.task, gain.row, seeds, FROZEN, "", "", f"student minus {gain.first_row}"), gain


def _points(measured: Measured) -> Iterator[tuple[str, int, float, Scores]]:
    if measured.teacher_scores is not None:
        yield "teacher", 0, 0.0, measured.teacher_scores
    for point in measured.points:
        yield "student", point.step, point.train_seconds, point.scores


def _room(task: str, row: str, pairs: Mapping[int, tuple[Measured, Measured]], metrics: Sequence[str]) -> Room:
    """Of each seed the student, and that of the frozen teacher."""
    seeds, students = tuple(pairs), [student for student, _ in pairs.values()]
    targets = students[0].targets
    of_teachers = [_mean(of.teacher_scores) for of in students if of.teacher_scores is not None]
    teacher = fmean(of_teachers) if of_teachers else math.nan
    score = fmean(_mean(of.points[-1].scores) for of in students)
    if targets == FROZEN:
        return Room(task, row, targets, seeds, _defined(teacher), _defined(score), None, None, None)

    values = (teacher, score, *_difference(list(pairs.values()), metrics))
    return Room(task, row, targets, seeds, *map(_defined, values))


def _difference(pairs: Sequence[tuple[Measured, Measured]], metrics: Sequence[str]) -> tuple[float, float, float]:
    """Mean over the pairs of the first student's score minus the second's, and the ends of its interval."""

    def of_rows(rows: NDArray[np.int64]) -> float:
        return fmean(_score(one, rows, metrics) - _score(other, rows, metrics) for one, other in pairs)

    num_rows = len(pairs[0][0].references)
    drawn = np.random.default_rng(0).integers(num_rows, size=(NUM_RESAMPLES, num_rows))
    low, high = np.quantile([of_rows(rows) for rows in drawn], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return of_rows(np.arange(num_rows)), float(low), float(high)


def _score(measured: Measured, rows: NDArray[np.int64], metrics: Sequence[str]) -> float:
    return _mean(compute_scores(measured.predictions[rows], measured.references[rows], metrics))


def _mean(scores: Scores) -> float:
    return fmean(scores.values())


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_interval(room: Room | Gain) -> str:
    if room.difference is None:
        return percent(None)
    interval = [percent(end) if end is None else f"{100 * end:+.1f}" for end in (room.low, room.high)]
    return f"{100 * room.difference:+.1f} [{', '.join(interval)}]"


def _name(cell: Cell) -> str:
    return f"{cell.task.name} {cell.row} seed{cell.seed}"


def _file_name(cell: Cell) -> str:
    return _name(cell).replace(" ", "-")
