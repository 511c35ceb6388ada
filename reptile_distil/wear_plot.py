"""The picture of what a teacher's move is worth: the student's gain over a frozen teacher's, against the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reptile_distil.looks import legend_on_top, looks_of, order_names
from reptile_distil.plots import GREY, drawing, new_figure, save
from reptile_distil.table_plots import Naming, Result, dev_score, method_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Wear(NamedTuple):
    """One run with a moving teacher, beside the frozen teacher's run of the same task and seed; points of dev score."""

    task: str
    name: str
    teacher_change: float
    """The teacher's own score at the end minus that at the start."""
    student_gain: float
    """The student's score minus that of the baseline's student."""


def draw_wear(results: Sequence[Result], path: str | Path, *, name: Naming = method_of, baseline: str = "kd") -> Path:
    """Writes a panel for each task with a dot for each run with a moving teacher; returns the path.

    Horizontally how much better (right) or worse (left) the teacher's own dev score became during the run, vertically
    how much better (up) or worse (down) the student is than the one that `baseline` made with the same seed.
    `results` are the contents of results.json files.

    Raises `MissingExtraError` without matplotlib, `ValueError` where there is no such run.
    """
    return save(wear_figure(find_wear(results, name=name, baseline=baseline)), path)


def find_wear(results: Sequence[Result], *, name: Naming = method_of, baseline: str = "kd") -> list[Wear]:
    """The runs with a moving teacher that have a baseline to compare with, and defined scores."""
    frozen = {(run["task"], run["seed"]): 100 * dev_score(run["scores"]) for run in results if name(run) == baseline}
    found = []
    for run in results:
        key = run["task"], run["seed"]
        if "teacher" not in run or run["method"] == "kd" or key not in frozen:
            continue
        teacher = run["teacher"]
        change = 100 * (dev_score(teacher["scores_at_end"]) - dev_score(teacher["scores_at_start"]))
        gain = 100 * dev_score(run["scores"]) - frozen[key]
        if math.isfinite(change) and math.isfinite(gain):
            found.append(Wear(str(run["task"]), name(run), change, gain))
    return found


def wear_figure(wear: Sequence[Wear]) -> Figure:
    """The figure of `draw_wear`."""
    if not wear:
        raise ValueError("no run with a moving teacher and a baseline of its task and seed to draw")
    tasks, names = list(dict.fromkeys(of_run.task for of_run in wear)), order_names(of_run.name for of_run in wear)
    num_columns = min(4, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    with drawing():
        figure = new_figure(max(4.5, 3.2 * num_columns), 3.0 * num_rows + 0.5)
        for place, task in enumerate(tasks):
            axes = figure.add_subplot(num_rows, num_columns, place + 1)
            axes.set_title(task)
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.axvline(0, color=GREY, linewidth=0.8)
            for label, look in looks_of(names).items():
                points = [
                    (of_run.teacher_change, of_run.student_gain)
                    for of_run in wear
                    if (of_run.task, of_run.name) == (task, label)
                ]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), linestyle="", marker=look.marker, color=look.color, label=label
                    )
            axes.set_xlabel("teacher's dev score, end minus start")
            axes.set_ylabel("student's, minus frozen teacher's")
        legend_on_top(figure, names)
    return figure
