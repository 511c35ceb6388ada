"""Lines of the log on a terminal: broken between words there, and left whole in a file."""

import io
import logging

import pytest

from reptile_distil import cli


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def say(monkeypatch):
    """Logs a line to a stream of this kind, and gives back what it then holds."""

    def say(stream, columns, line):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("COLUMNS", str(columns))
        root = logging.getLogger()
        monkeypatch.setattr(root, "handlers", [])
        cli._log_to_stderr()
        logging.getLogger("reptile_distil.test").info("%s", line)
        return stream.getvalue()

    return say


EPOCH = "epoch 1/3: loss 0.5752; dev accuracy 46.20 %; teacher's dev accuracy 88.60 %; agreement 40.4 %; gap 4.385"


def test_on_a_narrow_terminal_a_line_is_broken_between_words(say):
    assert say(Terminal(), 80, EPOCH).splitlines() == [
        "epoch 1/3: loss 0.5752; dev accuracy 46.20 %; teacher's dev accuracy 88.60 %;",
        "    agreement 40.4 %; gap 4.385",
    ]


def test_on_a_wide_terminal_it_is_one_line(say):
    assert say(Terminal(), 200, EPOCH) == EPOCH + "\n"


def test_in_a_file_it_is_one_line(say):
    assert say(io.StringIO(), 80, EPOCH) == EPOCH + "\n"


def test_a_path_is_not_broken(say):
    path = "/" + "a-b/" * 30
    assert path in say(Terminal(), 80, f"into {path}").splitlines()[1]


def test_the_width_is_the_terminals_and_none_elsewhere(monkeypatch):
    monkeypatch.setenv("COLUMNS", "123")
    assert cli.terminal_width(Terminal()) == 123
    assert cli.terminal_width(io.StringIO()) is None
