"""The pictures beside a table: scores, scores against training time, how the runs learned, what became of teachers."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

from reptile_distil.plots.learning import draw_learning_curves
from reptile_distil.plots.table import (
    Result,
    draw_score_against_time,
    draw_table,
    draw_teacher_change,
    find_teacher_changes,
)
from reptile_distil.tables.config import TEACHER
from reptile_distil.tables.data import TableData

logger = logging.getLogger(__name__)


_NAMES = ("scores", "time", "curves", "teacher-change")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_pictures(data: TableData, output: Path) -> list[Path]:
    """Writes OUTPUT-scores.png, -time.png, -curves.png and -teacher-change.png, as far as there are runs to draw.

    Returns the paths of those that were written; one that an earlier table has left, and this one does not have, goes.
    A fault in drawing is a line in the log: the table is there all the same. Raises
    `MissingExtraError` without matplotlib.
    """
    results: list[Result] = [{**run.to_dict(), "row": row} for (_, row, _), run in data.runs.items()]
    students = [folder for (_, row, _), folder in data.folders.items() if row != TEACHER]
    if not results:
        return []
    drawings: dict[str, Callable[[Path], Path]] = {
        "scores": lambda path: draw_table(results, path, name=row_of),
        "time": lambda path: draw_score_against_time(results, path, name=row_of),
    }
    if students:
        drawings["curves"] = lambda path: draw_learning_curves(students, path)
    if find_teacher_changes(results, name=row_of):
        drawings["teacher-change"] = lambda path: draw_teacher_change(results, path, name=row_of)
    drawn = []
    for name in _NAMES:
        path = output.with_name(f"{output.name}-{name}.png")
        if name not in drawings:  # one of an earlier table, perhaps of other rows
            path.unlink(missing_ok=True)
    for name, draw in drawings.items():
        path = output.with_name(f"{output.name}-{name}.png")
        try:
            drawn.append(draw(path))
        except Exception as error:  # a picture is not worth a finished table, whatever went wrong
            logger.warning("%s: could not be drawn: %s", path, error)
    return drawn


def row_of(result: Result) -> str:
    """The row of the table that a run belongs to."""
    return str(result["row"])
