"""The log of work that prepares the same data and models many times: what is said of them is said once."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator


class _Once(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        is_new = line not in self._said
        self._said.add(line)
        return is_new


@functools.cache
def log_once(logger: logging.Logger, line: str, level: int = logging.INFO) -> None:
    """Logs the line, if this process has not logged it here before."""
    logger.log(level, "%s", line)


@contextlib.contextmanager
def each_line_once(package: str) -> Iterator[None]:
    """Inside, of equal lines from the modules of this package only the first is logged.

    Modules that are imported inside for the first time log as ever.
    """
    once, known = _Once(), logging.root.manager.loggerDict
    names = [name for name in known if name == package or name.startswith(f"{package}.")]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(once)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(once)
