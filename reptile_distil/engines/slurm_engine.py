"""Jobs of Slurm, through submitit: those that are due at the same time are one job array."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reptile_distil.engines.engine import POLL_SECONDS, Job, JobError, Lost, RemoteEngine
from reptile_distil.engines.process_trees import end_trees, out_of_reach_of_ctrl_c
from reptile_distil.engines.worker import log_file, run_job
from reptile_distil.errors import ConfigError, MissingExtraError
from reptile_distil.runtime.interrupts import Interrupted, Interrupts

logger = logging.getLogger(__name__)

MAX_TIMEOUTS = 1000
"""How often a job that comes to its time limit is queued again: as often as it takes."""
SECONDS_TO_STOP = 10.0
"""How long a job of this machine has for its checkpoint when the engine is left."""


class RequeuedJob:
    """A job that SIGUSR1 has queued again, as submitit does with what has a `checkpoint`.

    While a run trains, it takes the signal itself, writes a checkpoint and stops; the signal is then raised once more,
    for submitit. The job that follows is the same, and the run in it goes on from that checkpoint.
    """

    def __call__(self, log: Path, folder: Path, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs the job, as `run_job`."""
        try:
            return run_job(log, folder, function, *arguments)
        except Interrupted as stop:
            if stop.signal == signal.SIGUSR1:
                signal.raise_signal(signal.SIGUSR1)
            raise SystemExit(stop.exit_code) from None

    def checkpoint(self, *arguments: Any) -> Any:
        """What is to be submitted again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


class SlurmEngine(RemoteEngine):
    """Jobs of Slurm, or, with `cluster="local"`, submitit's processes on this machine, which take the same way.

    Raises `MissingExtraError` without submitit; `ConfigError` where Slurm is not there, or refuses a job.

    Args:
        logs: folder of the jobs' logs and of submitit's files, on a disk that all nodes share.
        cluster: slurm, or local.
        parameters: of submitit's executor for that cluster.
        max_running: how many jobs run at the same time; None: Slurm decides.
        python: the command that starts Python for a job; None: this process's own.
    """

    def __init__(
        self,
        logs: Path,
        *,
        cluster: str,
        parameters: Mapping[str, Any],
        retries: int,
        max_running: int | None = None,
        python: str | None = None,
    ) -> None:
        super().__init__(retries, max_running)
        os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"  # read when submitit is imported, here and in the jobs
        try:
            import submitit
        except ImportError:
            raise MissingExtraError(
                "engine slurm needs the package submitit: pip install 'reptile-distil[slurm]'"
            ) from None
        self._logs = logs.absolute()
        self._is_local = cluster == "local"
        executor = submitit.SlurmExecutor if cluster == "slurm" else submitit.LocalExecutor
        try:
            self._executor: Any = executor(self._logs / "submitit", max_num_timeout=MAX_TIMEOUTS, python=python)
            self._executor.update_parameters(**parameters)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"engine.slurm: {_on_one_line(error)}") from None
        self._submitted: dict[Job, Any] = {}
        self._interrupts = Interrupts()
        logger.info("%s, logs in %s", "Slurm" if cluster == "slurm" else "processes on this machine", self._logs)

    def __enter__(self) -> Self:
        self._interrupts.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if self._is_local:
                jobs = {}
                for submitted in self._submitted.values():
                    with contextlib.suppress(AttributeError):  # one whose submission was broken off has no id
                        jobs[int(submitted.job_id)] = submitted
                end_trees(tuple(jobs), lambda pid: bool(jobs[pid].done()), SECONDS_TO_STOP)
            else:
                for submitted in self._submitted.values():
                    with contextlib.suppress(Exception):  # one that has ended by itself
                        submitted.cancel()
        finally:
            self._interrupts.__exit__(kind, error, _)

    def _start(self, jobs: Sequence[Job]) -> None:
        import submitit

        try:
            # A signal between the submission and the note of it would leave jobs behind that nobody cancels.
            out_of_reach = out_of_reach_of_ctrl_c() if self._is_local else contextlib.nullcontext()
            with self._interrupts.held(), out_of_reach, self._executor.batch():
                for job in jobs:
                    log = log_file(self._logs, job.name)
                    arguments = (log, Path.cwd(), job.function, *job.arguments)
                    self._submitted[job] = self._executor.submit(RequeuedJob(), *arguments)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            for job in jobs:
                self._submitted.pop(job, None)
            raise ConfigError(f"engine.slurm: sbatch has refused the jobs: {_on_one_line(error)}") from None

    def _ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Any]]:
        done = [job for job in jobs if self._submitted[job].done()]
        if not done:
            time.sleep(POLL_SECONDS)
        return [(job, self._result_of(self._submitted.pop(job))) for job in done]

    def _result_of(self, submitted: Any) -> Any:
        import submitit

        if submitted.paths.result_pickle.exists():
            try:
                return submitted.result()
            except submitit.core.utils.UncompletedJobError as error:
                return JobError(f"job {submitted.job_id}: {_last_line(error)} (see {submitted.paths.stderr})")
        state = submitted.state
        if state.startswith("CANCELLED"):
            return JobError(f"job {submitted.job_id} was cancelled")
        return Lost(f"job {submitted.job_id} has died ({state}, see {submitted.paths.stderr})")


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "Error" in line]
    return (lines[-1] if lines else _on_one_line(error))[:300]
