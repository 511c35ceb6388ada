"""What is said once inside is said again after."""

import logging

import pytest

from reptile_distil.runtime.each_line_once import each_line_once, log_once


def test_equal_lines_of_a_package_are_logged_once_while_it_lasts(caplog):
    inside, package, outside = (logging.getLogger(name) for name in ("once.one", "once", "oncemore"))
    with caplog.at_level("INFO"):
        with each_line_once("once"):
            for logger in (inside, package, outside, inside, outside):
                logger.info("%s rows", 3)
            inside.info("4 rows")
        inside.info("%d rows", 3)
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("once.one", "3 rows"),
        ("oncemore", "3 rows"),
        ("oncemore", "3 rows"),
        ("once.one", "4 rows"),
        ("once.one", "3 rows"),
    ]


def test_a_line_is_logged_once_by_each_logger_and_level(caplog):
    one, other = logging.getLogger("once.a"), logging.getLogger("once.b")
    with caplog.at_level("INFO"):
        for logger, line in ((one, "70 % of rows"), (one, "70 % of rows"), (one, "no rows"), (other, "no rows")):
            log_once(logger, line)
        for _ in range(2):
            log_once(one, "no rows", logging.WARNING)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("once.a", "INFO", "70 % of rows"),
        ("once.a", "INFO", "no rows"),
        ("once.b", "INFO", "no rows"),
        ("once.a", "WARNING", "no rows"),
    ]


def test_a_fault_inside_ends_it_too():
    logger = logging.getLogger("faulty.one")

    def fail():
        with each_line_once("faulty"):
            assert len(logger.filters) == 1
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert logger.filters == []
