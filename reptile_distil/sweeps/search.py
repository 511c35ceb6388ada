"""A search: for each row on each task, trials that are scored on held-out training rows, and the best as a YAML."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reptile_distil.config.table_sections import SearchConfig
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError, RunError, RunInUseError
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.runtime.files import remove_folder
from reptile_distil.runtime.measuring import free_memory
from reptile_distil.runtime.text_tables import percent, plain_table
from reptile_distil.sweeps.faults import is_of_values, others, raise_if_of_all, sentence
from reptile_distil.sweeps.inputs import digest_all_inputs
from reptile_distil.sweeps.space import check_search, with_values
from reptile_distil.sweeps.study import Ended, Study, Trial
from reptile_distil.sweeps.winner import write_winner
from reptile_distil.tables.config import TEACHER, Cell, TableConfig
from reptile_distil.tables.grid import Grid

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


def run_search(table: TableConfig, path: Path) -> str:
    """Runs the search of the table whose file is `path`, or goes on with it; returns it in words.

    Several processes may run the same search: each takes trials that no other has. Raises `ConfigError` for a search
    that cannot be made, `RunError` where the teacher could not be fine-tuned or what the search reads has changed, and
    whatever ends a run for a reason that lies outside of the trial's values; the same command then goes on.
    """
    search = table.keys.search
    if search is None:
        raise ConfigError("search: is missing")
    check_search(table, search)
    searches = [
        RowSearch(cells, search, Path(table.common.runs_dir, f"{table.keys.name}-search"))
        for cells in _cells_by_task_and_row(table)
    ]
    teachers = Grid([cell for cell in table.cells if cell.row == TEACHER])
    teachers.run()
    if teachers.failures:
        raise RunError("; ".join(f"{name}: {reason}" for name, reason in teachers.failures.items()))
    for one in searches:
        one.run()
    return "\n".join(one.describe(one.write_winner(path)) for one in searches)


def _cells_by_task_and_row(table: TableConfig) -> Iterator[list[Cell]]:
    for task in table.tasks:
        for row in table.keys.methods:
            yield [cell for cell in table.cells if (cell.task.name, cell.row) == (task.name, row)]


class RowSearch:
    """The search for one row on one task.

    Args:
        cells: of that row and task, one for each seed.
        folder: of the whole search.
    """

    def __init__(self, cells: Sequence[Cell], search: SearchConfig, folder: Path) -> None:
        self._cells, self._search = cells, search
        first = cells[0]
        self.name = f"{first.task.name} {first.row}"
        self._task = without_dev(first.task)
        searched = search.keys.keys()
        settings: Mapping[str, Any] = {
            **{key: value for key, value in first.decisive.items() if key not in searched and key != "seed"},
            "seeds": [cell.seed for cell in cells],
        }
        self._study = Study(folder / first.task.name / first.row, search, settings)

    def run(self) -> None:
        """Runs trials until all have ended, those of other processes included."""
        self._check_inputs()
        while not self._study.is_over:
            with self._study.next_trial() as trial:
                if trial is not None:
                    self._check_inputs()
                    self._run(trial)
                    continue
            time.sleep(POLL_SECONDS)

    def write_winner(self, path: Path) -> Path | None:
        """Writes the best trial as a YAML for scripts/distil.py; None where no trial has a score."""
        best = self._study.ended()[0]
        if best.score is None:
            return None
        return write_winner(self._cells[0], best.trial.values, path, self._study.folder)

    def describe(self, winner: Path | None) -> str:
        """The trials as a table, the best first, those that failed with their reason, and where the winner is."""
        keys = list(self._search.keys)
        ended = self._study.ended()
        rows = [("trial", *keys, "validation"), *(_line(one, keys) for one in ended)]
        failed = [f"trial {one.trial.number + 1} failed: {one.reason}" for one in ended if one.score is None]
        said = "no trial has a score" if winner is None else f"the best, as a configuration: {winner}"
        return "\n".join([f"{self.name}: {len(ended)} trials", plain_table(rows, num_left=0), *failed, said, ""])

    def _check_inputs(self) -> None:
        self._study.check_inputs(digest_all_inputs(self._cells, self._task, self._search))

    def _run(self, trial: Trial) -> None:
        drawn = ", ".join(f"{key} {_short(value)}" for key, value in trial.values.items())
        logger.info("%s: trial %d of %d: %s", self.name, trial.number + 1, self._search.trials, drawn)
        folders = [self._study.folder / f"trial-{trial.number:04d}-seed{cell.seed}" for cell in self._cells]
        scores: list[float] = []
        reason = None
        for cell, folder in zip(self._cells, folders, strict=True):
            outcome = self._try(cell, trial, folder)
            if isinstance(outcome, str):
                reason = outcome
                break
            scores.append(outcome)
        else:
            mean = statistics.fmean(scores)
            if not math.isfinite(mean):
                reason = "its validation score is undefined"
        if reason is None:
            self._study.end(trial, mean)
            logger.info("%s: trial %d of %d: %s", self.name, trial.number + 1, self._search.trials, percent(mean))
        else:
            self._study.end(trial, None, reason)
            logger.warning("%s: trial %d failed: %s", self.name, trial.number + 1, reason)
        for cell, folder in zip(self._cells, folders, strict=True):  # a trial keeps its results; the rest takes room
            for part in ("model", *["checkpoints"] * (not cell.config.checkpoint.keep_when_finished)):
                with contextlib.suppress(OSError):
                    remove_folder(folder / part)

    def _try(self, cell: Cell, trial: Trial, folder: Path) -> float | str:
        """The score of one seed, or why there is none where that is due to the trial's values; raises all else."""
        try:
            return self._score(cell, trial, folder)
        except Exception as error:
            is_theirs, said = is_of_values(error), sentence(error)
            if is_theirs is False:
                raise
        free_memory()  # of the run, which the error has held
        if is_theirs is None:
            best = next((one.trial.values for one in self._study.ended() if one.score is not None), None)
            candidates = [{**values, "output_dir": str(folder)} for values in others(self._search.keys, best)]
            raise_if_of_all(said, candidates, cell.config, self._task)
        return said

    def _score(self, cell: Cell, trial: Trial, folder: Path) -> float:
        """The score of one seed on the held-out training rows: the dev splits are no part of the task here."""
        config = with_values(cell.config, {**trial.values, "output_dir": str(folder)})
        while True:
            try:
                score = Experiment(config, task=self._task).fit()["score"]
                return math.nan if score is None else float(score)
            except RunInUseError:
                time.sleep(POLL_SECONDS)


def without_dev(task: Task) -> Task:
    """The task as if it had no dev splits, so that nothing is scored on them."""
    splits = {split: counts for split, counts in task.splits.items() if split not in task.dev_splits}
    files = task.files and {split: file for split, file in task.files.items() if split in splits}
    return replace(task, splits=splits, files=files)


def _line(one: Ended, keys: Sequence[str]) -> tuple[str, ...]:
    values = [_short(one.trial.values.get(key)) for key in keys]
    return (str(one.trial.number + 1), *values, "failed" if one.score is None else percent(one.score))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
