"""The cells of a table, run or reused, by whatever engine there is; and what one process does for one cell.

Several processes may be at the same cells on one shared folder: workers that the same command has started, or jobs of
an engine beside one whose process is not known to have died. Each cell is run by the one that has the run folder's
lock, which the system frees when a process dies; the others come back to it, and find it finished.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reptile_distil.engines.engine import Engine, FailedBeforeError, JobError, LocalEngine
from reptile_distil.errors import ConfigError, ReptileDistilError, RunInUseError, first_sentence
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.experiments.finished_run import KnownDigests, open_finished_run, tidy_finished_run
from reptile_distil.runs.records import Results
from reptile_distil.runtime.files import append_text, make_folder
from reptile_distil.runtime.launcher import launched_several
from reptile_distil.runtime.measuring import free_memory
from reptile_distil.runtime.text_tables import percent
from reptile_distil.tables.config import TEACHER, Cell

logger = logging.getLogger(__name__)


class Settled(NamedTuple):
    """How a cell was settled."""

    how: str
    """run, or already finished."""
    said: str
    """Its score, and how long it took."""


class Grid:
    """The cells of a table on an engine: how each was settled, and why some failed.

    After `run`, every cell is finished or in `failures`, by name, with its reason in one sentence. Raises `ConfigError`
    where torchrun or accelerate has started several processes: they would have to agree on each cell.
    """

    def __init__(self, cells: Sequence[Cell], engine: Engine | None = None) -> None:
        if launched_several():
            raise ConfigError(
                "a table is made by workers of one process each: start scripts/table.py with python, as many times as "
                "there are GPUs"
            )
        self.failures: dict[str, str] = {}
        self._cells = cells
        self._engine = engine or LocalEngine()
        self._counts: Counter[str] = Counter()

    def run(self) -> None:
        """Settles every cell: a finished one is not run again, a failed one does not stop the others."""
        settler = CellSettler(torch.get_num_threads() if isinstance(self._engine, LocalEngine) else None)
        teachers = {(cell.task.name, cell.seed): cell for cell in self._cells if cell.row == TEACHER}
        futures: dict[str, Future[Any]] = {}
        cells: dict[Future[Any], Cell] = {}
        for cell in self._cells:
            teacher = teachers.get((cell.task.name, cell.seed)) if cell.needs_teacher else None
            after = [] if teacher is None else [futures[teacher.name]]
            future = self._engine.submit(settler.settle, cell, teacher, name=cell.name, after=after)
            futures[cell.name], cells[future] = future, cell
        for future in self._engine.as_completed():
            cell, failure = cells[future], future.exception()
            if failure is None:
                settled: Settled = future.result()
                self._note(cell, settled.how, settled.said)
            else:
                before = "its teacher failed: " if isinstance(failure, FailedBeforeError) else ""
                self.failures[cell.name] = f"{before}{failure}"
                self._note(cell, "failed", f"failed: {self.failures[cell.name]}")

    def report(self) -> str:
        """How many cells were run and how many were there, then a line for each that failed."""
        counts = ", ".join(f"{self._counts[how]} {how}" for how in ("run", "already finished", "failed"))
        lines = [f"failed: {name}: {reason}" for name, reason in self.failures.items()]
        num_cells = len(self._cells)
        return "\n".join([f"{num_cells} cell{'s' * (num_cells != 1)}: {counts}", *lines])

    def _note(self, cell: Cell, how: str, said: str) -> None:
        self._counts[how] += 1
        level = logging.WARNING if how == "failed" else logging.INFO
        logger.log(level, "[%d/%d] %s: %s", sum(self._counts.values()), len(self._cells), cell.name, said)


class CellSettler:
    """What one process does for one cell after another.

    Args:
        num_threads: CPU threads that each cell starts with; None: those that its process has.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads
        self._waiting: set[str] = set()
        self._digests: KnownDigests = {}  # of one look at the cells: a run takes long, and files may change meanwhile

    def settle(self, cell: Cell, teacher: Cell | None) -> Settled | JobError | None:
        """Runs the cell, or finds it finished or failed; None where it has to wait for another process.

        A teacher that is not finished (any more) is settled first.
        """
        try:
            if (results := self._open(cell)) is not None:
                tidy_finished_run(cell.run, cell.config)
                return self._succeed(cell, results.score, "already finished")
            if teacher is not None and self._open(teacher) is None:
                ended = self.settle(teacher, None)
                if not isinstance(ended, Settled):
                    return ended
        except Exception as error:
            return self._fail_unless_waiting(cell, teacher, error)
        return self._run(cell, teacher)

    def _run(self, cell: Cell, teacher: Cell | None) -> Settled | JobError | None:
        """Trains the cell; None where another process has it."""
        started = time.perf_counter()
        if self._num_threads is not None:
            torch.set_num_threads(self._num_threads)  # whatever the cell before has set
        settled: Settled | JobError | None
        self._digests = {}
        try:
            experiment = Experiment(cell.config)
            results = experiment.fit_teacher() if cell.row == TEACHER else experiment.fit()
        except RunInUseError:
            if cell.name not in self._waiting:
                logger.info("waiting for the process that is running in %s", cell.folder)
            self._waiting.add(cell.name)
            return None
        except Exception as error:
            settled = self._fail_unless_waiting(cell, teacher, error)
        else:
            settled = self._succeed(cell, results["score"], "run", f" ({time.perf_counter() - started:.1f} s)")
        # Only here: a full collection takes tenths of a second, and a cell that is only looked at loads nothing.
        free_memory()
        return settled

    def _fail_unless_waiting(self, cell: Cell, teacher: Cell | None, error: Exception) -> JobError | None:
        """The cell's failure; None where another process has taken its teacher away to fine-tune it anew."""
        with contextlib.suppress(ReptileDistilError):
            if teacher is not None and self._open(teacher) is None:
                return None
        reason = str(error)[:300] if isinstance(error, ReptileDistilError) else first_sentence(error)
        file = _failure_file(cell)
        with contextlib.suppress(OSError):  # a full disk may be the very reason
            make_folder(file.parent)
            append_text(file, "".join(traceback.format_exception(error)))
            reason += f" (traceback in {file})"
        return JobError(reason)

    def _open(self, cell: Cell) -> Results | None:
        return open_finished_run(cell.run, cell.config, cell.task, cell.role, self._digests)

    def _succeed(self, cell: Cell, score: float | None, how: str, seconds: str = "") -> Settled:
        with contextlib.suppress(OSError):
            _failure_file(cell).unlink(missing_ok=True)
        return Settled(how, percent(score) + seconds)


def _failure_file(cell: Cell) -> Path:
    """Beside the run folder: a folder that holds something else than a run is not run in."""
    return cell.folder.with_name(f"failed-{cell.folder.name}.txt")
