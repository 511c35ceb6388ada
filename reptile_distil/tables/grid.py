"""The cells of a table, run or reused one after the other, by any number of workers on one shared folder.

A worker is a process that runs the same command. It goes through the cells that are not finished, takes each that no
other worker has (the run folder's lock says so; the system frees it when a worker dies), and passes over a student
whose teacher another worker is fine-tuning. When nothing can be taken, it starts over after a second.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

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

POLL_SECONDS = 1.0


class Grid:
    """One worker: which cells are still to be settled, and why some failed.

    After `run`, every cell is finished or in `failures`, by name, with its reason in one sentence. Raises `ConfigError`
    where torchrun or accelerate has started several processes: they would have to agree on each cell.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        if launched_several():
            raise ConfigError(
                "a table is made by workers of one process each: start scripts/table.py with python, as many times as "
                "there are GPUs"
            )
        self.failures: dict[str, str] = {}
        self._cells = cells
        self._teachers = {(cell.task.name, cell.seed): cell for cell in cells if cell.row == TEACHER}
        self._pending = list(cells)
        self._num_threads = torch.get_num_threads()
        self._waiting: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._digests: KnownDigests = {}  # of one look at the cells: a run takes long, and files may change meanwhile

    def run(self) -> None:
        """Settles every cell: a finished one is not run again, a failed one does not stop the others."""
        while self._pending:
            self._digests = {}
            settled = [self._settle(cell) for cell in list(self._pending)]
            if self._pending and not any(settled):
                time.sleep(POLL_SECONDS)

    def report(self) -> str:
        """How many cells were run and how many were there, then a line for each that failed."""
        counts = ", ".join(f"{self._counts[how]} {how}" for how in ("run", "already finished", "failed"))
        lines = [f"failed: {name}: {reason}" for name, reason in self.failures.items()]
        num_cells = len(self._cells)
        return "\n".join([f"{num_cells} cell{'s' * (num_cells != 1)}: {counts}", *lines])

    def _settle(self, cell: Cell) -> bool:
        """Runs the cell, or finds it finished or failed; False where it has to wait for another worker."""
        teacher = self._teachers.get((cell.task.name, cell.seed)) if cell.needs_teacher else None
        if teacher is not None and teacher.name in self.failures:
            return self._fail(cell, f"its teacher failed: {self.failures[teacher.name]}")
        try:
            if (results := self._open(cell)) is not None:
                tidy_finished_run(cell.run, cell.config)
                return self._succeed(cell, results.score, "already finished")
            if teacher is not None and not self._is_ready(teacher):
                return False
        except Exception as error:
            return self._fail_unless_waiting(cell, teacher, error)
        return self._run(cell, teacher)

    def _run(self, cell: Cell, teacher: Cell | None) -> bool:
        """Trains the cell; False where another worker has it."""
        started = time.perf_counter()
        torch.set_num_threads(self._num_threads)  # whatever the cell before has set
        try:
            experiment = Experiment(cell.config)
            results = experiment.fit_teacher() if cell.row == TEACHER else experiment.fit()
        except RunInUseError:
            if cell.name not in self._waiting:
                logger.info("waiting for the process that is running in %s", cell.folder)
            self._waiting.add(cell.name)
            return False
        except Exception as error:
            settled = self._fail_unless_waiting(cell, teacher, error)
        else:
            settled = self._succeed(cell, results["score"], "run", f" ({time.perf_counter() - started:.1f} s)")
        # Only here: a full collection takes tenths of a second, and a cell that is only looked at loads nothing.
        free_memory()
        self._digests = {}
        return settled

    def _fail_unless_waiting(self, cell: Cell, teacher: Cell | None, error: Exception) -> bool:
        """Settles the cell as failed; False where another worker has taken its teacher away to fine-tune it anew."""
        with contextlib.suppress(ReptileDistilError):
            if teacher is not None and not self._is_ready(teacher):
                return False
        reason = str(error)[:300] if isinstance(error, ReptileDistilError) else first_sentence(error)
        return self._fail(cell, reason, "".join(traceback.format_exception(error)))

    def _open(self, cell: Cell) -> Results | None:
        return open_finished_run(cell.run, cell.config, cell.task, cell.role, self._digests)

    def _is_ready(self, teacher: Cell) -> bool:
        """Whether the teacher is finished; one that is not (any more) gets its turn."""
        if self._open(teacher) is not None:
            return True
        if teacher not in self._pending:
            self._pending.insert(0, teacher)
        return False

    def _succeed(self, cell: Cell, score: float | None, how: str, seconds: str = "") -> bool:
        with contextlib.suppress(OSError):
            _failure_file(cell).unlink(missing_ok=True)
        return self._note(cell, how, percent(score) + seconds)

    def _fail(self, cell: Cell, reason: str, trace: str | None = None) -> bool:
        if trace is not None:
            file = _failure_file(cell)
            with contextlib.suppress(OSError):  # a full disk may be the very reason
                make_folder(file.parent)
                append_text(file, trace)
                reason += f" (traceback in {file})"
        self.failures[cell.name] = reason
        return self._note(cell, "failed", f"failed: {reason}")

    def _note(self, cell: Cell, how: str, said: str) -> bool:
        self._pending.remove(cell)
        self._counts[how] += 1
        number = len(self._cells) - len(self._pending)
        level = logging.WARNING if how == "failed" else logging.INFO
        logger.log(level, "[%d/%d] %s: %s", number, len(self._cells), cell.name, said)
        return True


def _failure_file(cell: Cell) -> Path:
    """Beside the run folder: a folder that holds something else than a run is not run in."""
    return cell.folder.with_name(f"failed-{cell.folder.name}.txt")
