"""Jobs as tasks of Ray: on a cluster that is there, or on one of this machine that lives as long as the engine."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from reptile_distil.engines.engine import Job, Lost, RemoteEngine
from reptile_distil.engines.worker import log_file, run_job
from reptile_distil.errors import ConfigError, MissingExtraError
from reptile_distil.runtime.interrupts import Interrupts

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 2**27
"""Of a cluster that is started here; jobs return a few words."""
_HANDED_ON = ("OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "PYTHONPATH")
"""Variables of the environment that a job on a cluster which is joined gets from here."""


class RayEngine(RemoteEngine):
    """Each job is a task that reserves CPUs and a number, or a fraction, of GPUs.

    Ray gives each task its GPU in CUDA_VISIBLE_DEVICES, so that a job finds its own as `cuda:0`. Raises
    `MissingExtraError` without Ray; `ConfigError`, once entered, for a cluster that cannot be joined, or that can never
    give a job what it reserves.

    Args:
        logs: folder of the jobs' logs, on a disk that all nodes share.
        gpus_per_job: None: 1 where the cluster has GPUs and the jobs can use them, else 0.
    """

    def __init__(
        self,
        logs: Path,
        *,
        address: str | None,
        gpus_per_job: float | None,
        cpus_per_job: float,
        use_gpus: bool,
        retries: int,
    ) -> None:
        super().__init__(retries)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
        try:
            import ray
        except ImportError:
            raise MissingExtraError("engine ray needs the package ray: pip install 'reptile-distil[ray]'") from None
        self._ray: Any = ray
        self._logs, self._address = logs.absolute(), address
        self._gpus, self._cpus, self._use_gpus = gpus_per_job, cpus_per_job, use_gpus
        self._tasks: dict[Any, Job] = {}
        self._interrupts = Interrupts()
        self._stdout = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Ray prints there what happens to its workers; stdout is the table's.
        self._stdout.enter_context(contextlib.redirect_stdout(sys.stderr))
        try:
            self._reserve(is_own=self._join())
        except BaseException:
            self._ray.shutdown()
            self._stdout.close()
            raise
        self._interrupts.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            for task in self._tasks:
                self._ray.cancel(task)  # as Ctrl-C would: a run writes its checkpoint first
            if self._tasks:
                self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=10.0)
            self._ray.shutdown()
        finally:
            self._interrupts.__exit__(kind, error, _)
            self._stdout.close()

    def _join(self) -> bool:
        """Joins the cluster; True where there is none, and one was started on this machine."""
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        handed_on = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        given = self._address or os.environ.get("RAY_ADDRESS")
        if given:
            _check_reachable(given)
        try:
            self._ray.init(address=given or "auto", runtime_env={"env_vars": handed_on}, **quiet)
            return False
        except ConnectionError as error:
            if given:
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(f"engine.ray.address: no Ray cluster answers at {given} ({reason})") from None
        self._ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        return True

    def _reserve(self, *, is_own: bool) -> None:
        """Decides what a job reserves. Raises `ConfigError` for what no node has, so that a job would wait for ever."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus, cpus = (max((node.get(name, 0.0) for node in nodes), default=0.0) for name in ("GPU", "CPU"))
        if self._gpus is None:
            self._gpus = 1.0 if gpus >= 1 and self._use_gpus else 0.0
        for key, wanted, there in (("gpus", self._gpus, gpus), ("cpus", self._cpus, cpus)):
            if wanted > there:
                raise ConfigError(
                    f"engine.ray.{key}_per_cell = {wanted:g}: no node of this Ray cluster has more than {there:g}"
                )
        where = "Ray on this machine" if is_own else f"Ray cluster of {len(nodes)} nodes"
        logger.info("%s: %g CPUs and %g GPUs a cell, logs in %s", where, self._cpus, self._gpus, self._logs)

    def _start(self, jobs: Sequence[Job]) -> None:
        remote = self._ray.remote(run_job)
        for job in jobs:
            # A lost task is started again here, where it is said and counted.
            options = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_retries": 0, "name": job.name}
            log = log_file(self._logs, job.name)
            self._tasks[remote.options(**options).remote(log, Path.cwd(), job.function, *job.arguments)] = job

    def _ended(self, jobs: Sequence[Job]) -> list[tuple[Job, Any]]:
        with self._interrupts.held():  # inside, Ray would make a plain KeyboardInterrupt of any signal
            ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=1.0)
            return [(self._tasks.pop(task), self._result_of(task)) for task in ready]

    def _result_of(self, task: Any) -> Any:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            first_line = str(error).strip().splitlines()[0].strip().rstrip(".")
            return Lost(f"its Ray worker has died ({type(error).__name__}: {first_line[:200]})")


def _check_reachable(address: str) -> None:
    """Raises `ConfigError` where nothing listens at host:port: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if "//" in address or not port.isdecimal():  # of another kind, such as ray://head:10001, or auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"engine.ray.address: no Ray cluster answers at {address} ({error})") from None
