"""What a job does in the process that an engine has given it: its log goes into a file of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reptile_distil.engines.engine import POLL_SECONDS, JobError
from reptile_distil.errors import first_sentence

logger = logging.getLogger(__name__)


def log_file(folder: Path, name: str) -> Path:
    """Where the job of this name writes its log."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.log"


def run_job(log: Path, folder: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, as long as it is `not now` asked again; run in `folder`, for relative paths.

    What it logs and prints is appended to the file `log`. An exception is returned, as a `JobError`, not raised.
    """
    os.chdir(folder)
    with _logged_to(log):
        logger.info("process %d on %s", os.getpid(), socket.gethostname())
        try:
            while (result := function(*arguments)) is None:
                time.sleep(POLL_SECONDS)
        except Exception as error:
            logger.exception("failed")
            return JobError(f"{first_sentence(error)} (traceback in {log})")
        return result


@contextlib.contextmanager
def _logged_to(log: Path) -> Iterator[None]:
    """Log lines, and what is printed, go into the file inside: our own from INFO on, others' from WARNING on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    package = logging.getLogger("reptile_distil")
    root, level = logging.getLogger(), package.level
    with (
        log.open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        root.addHandler(handler)
        package.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.removeHandler(handler)
            package.setLevel(level)
