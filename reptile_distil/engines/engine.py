"""The interface of all engines, and what they share: jobs that wait for others, or are lost and started again."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from reptile_distil.errors import ReptileDistilError

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0


class JobError(ReptileDistilError):
    """A job that has failed: returned by the job itself, or said by the engine that could not run it."""


class FailedBeforeError(JobError):
    """A job that was not started, because one that it comes after has failed."""


@dataclass(eq=False)
class Job:
    """A function with its arguments, and what must be done before it."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: tuple[Future[Any], ...]
    future: Future[Any] = field(default_factory=Future)
    num_lost: int = 0
    """How many times its process has died."""

    @property
    def is_due(self) -> bool:
        """Whether all that it comes after is done, or has failed."""
        return all(future.done() for future in self.after)

    def settle(self, result: Any) -> Future[Any]:
        """Gives the job's future what the job has returned."""
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)
        return self.future

    def failure_before(self) -> FailedBeforeError | None:
        """Why the job cannot be started: the failure of one that it comes after."""
        failures = [failure for future in self.after if (failure := future.exception()) is not None]
        return FailedBeforeError(str(failures[0])) if failures else None


class Engine(ABC):
    """Runs jobs; used in a `with` block, at whose end nothing is left running."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        """Those that are not settled."""

    def submit(
        self, function: Callable[..., Any], *arguments: Any, name: str, after: Sequence[Future[Any]] = ()
    ) -> Future[Any]:
        """The future of `function(*arguments)`, which is not started before `after` is done, nor if that has failed.

        Function and arguments must be such that they can be pickled.
        """
        job = Job(name, function, arguments, tuple(after))
        self._jobs.append(job)
        return job.future

    @abstractmethod
    def as_completed(self) -> Iterator[Future[Any]]:
        """The futures of all jobs, each when it is settled; the jobs run while this is asked for the next."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Ends what is still running."""


class LocalEngine(Engine):
    """The process that asks, one job after the other; a job that another process is at is come back to."""

    def __exit__(self, *_: object) -> None:
        """Nothing is running outside of `as_completed`."""

    def as_completed(self) -> Iterator[Future[Any]]:
        """See `Engine`. Jobs are taken in the order in which they were submitted."""
        while self._jobs:
            num_before = len(self._jobs)
            for job in list(self._jobs):
                if not job.is_due:
                    continue
                result = job.failure_before() or job.function(*job.arguments)
                if result is not None:
                    self._jobs.remove(job)
                    yield job.settle(result)
            if len(self._jobs) == num_before:
                time.sleep(POLL_SECONDS)


class Lost(Exception):  # noqa: N818  # no error of a job's: how an engine says that the job's process has gone
    """The process of a job has died, for this reason."""


class RemoteEngine(Engine):
    """What the engines that run jobs elsewhere share. Each gives `_start` and `_ended`.

    Args:
        retries: how often a job is started again whose process has died; it takes up what the last one has left.
        max_running: how many jobs are started at the same time; None: all, for others to queue.
    """

    def __init__(self, retries: int, max_running: int | None = None) -> None:
        super().__init__()
        self._max_running = max_running
        self._retries = retries
        self._queued: list[Job] = []
        self._running: list[Job] = []

    def as_completed(self) -> Iterator[Future[Any]]:
        """See `Engine`."""
        self._queued = list(self._jobs)
        while self._jobs:
            for job in [job for job in self._queued if job.is_due]:
                if (failure := job.failure_before()) is not None:
                    self._queued.remove(job)
                    yield self._settle(job, failure)
            self._start_what_is_due()
            for job, result in self._ended(self._running) if self._running else ():
                self._running.remove(job)
                if isinstance(result, Lost) and job.num_lost < self._retries:
                    job.num_lost += 1
                    logger.warning("%s: %s; started again (%d of %d)", job.name, result, job.num_lost, self._retries)
                    self._queued.append(job)
                else:
                    yield self._settle(job, JobError(str(result)) if isinstance(result, Lost) else result)

    def _start_what_is_due(self) -> None:
        room = len(self._queued) if self._max_running is None else self._max_running - len(self._running)
        due = [job for job in self._queued if job.is_due and job.failure_before() is None][:room]
        if due:
            self._start(due)
            self._queued = [job for job in self._queued if job not in due]
            self._running += due

    def _settle(self, job: Job, result: Any) -> Future[Any]:
        self._jobs.remove(job)
        return job.settle(result)

    @abstractmethod
    def _start(self, jobs: Sequence[Job]) -> None:
        """Starts the jobs."""

    @abstractmethod
    def _ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Any]]:
        """Those of the running jobs that have ended, with what they returned, or `Lost`; waits a second for one."""
