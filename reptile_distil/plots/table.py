"""Pictures of many runs, from their results.json: scores as bars or points, and score against training time.

Runs of one task under one name are seeds of the same thing: their mean is drawn, with the standard deviation over
seeds as an error bar where there is more than one seed, and each seed as a dot.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reptile_distil.errors import RunError
from reptile_distil.plots.style import (
    GREY,
    SeriesStyle,
    bar_key,
    drawing,
    legend_beside,
    legend_on_top,
    new_figure,
    order_names,
    save,
    split_names,
    styles_of,
)
from reptile_distil.runs.records import Results, as_results
from reptile_distil.training.metrics import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Result = Mapping[str, Any]
"""What a results.json holds; callers may add keys, by which they name the runs."""
Naming = Callable[[Result], str]
MOST_BARS = 6
"""More names than this stand beside the axis, with a point for each instead of a bar."""


class _Panel(NamedTuple):
    """A panel of one task, and the names in it."""

    task: str
    names: list[str]
    axes: Axes


def method_of(result: Result) -> str:
    """The name that runs are grouped by where nothing else is asked for."""
    return str(result["method"])


def draw_table(results: Sequence[Result], path: str | Path, *, name: Naming = method_of) -> Path:
    """Writes bars of the dev score (in percent; the mean of a task's metrics) by task and name; returns the path.

    Many names are points in the colour of their method, a panel for each task. `results` are the contents of
    results.json files. Where one seed's score is undefined there is no bar but a word.

    Raises `MissingExtraError` without matplotlib, `ValueError` for no results, `RunError` for what are none.
    """
    return save(table_figure(results, name=name), path)


def draw_score_against_time(results: Sequence[Result], path: str | Path, *, name: Naming = method_of) -> Path:
    """Writes the dev score against seconds of training, a panel for each task; returns the path. As `draw_table`."""
    return save(score_against_time_figure(results, name=name), path)


def table_figure(results: Sequence[Result], *, name: Naming = method_of) -> Figure:
    """The figure of `draw_table`."""
    tasks, names, cells = _group(results, name)
    if len(names) > MOST_BARS:
        return _points_figure(tasks, names, cells)
    width = 0.8 / len(names)
    with drawing():
        figure = new_figure(max(5.0, min(16.0, 1.6 + 0.33 * len(tasks) * (len(names) + 1))), 3.8)
        axes = figure.add_subplot()
        for index, (label, look) in enumerate(styles_of(names).items()):
            shift = (index - (len(names) - 1) / 2) * width
            present = [(place, cells[task, label]) for place, task in enumerate(tasks) if (task, label) in cells]
            defined = [(place + shift, _scores(runs)) for place, runs in present if _is_defined(runs)]
            axes.bar(
                [place for place, _ in defined],
                [statistics.mean(scores) for _, scores in defined],
                0.9 * width,
                color=look.color,
                hatch=look.hatch,
                edgecolor="white",
                label=label,
            )
            for place, scores in defined:
                _draw_seeds(axes, place, scores)
            for place, runs in present:
                if not _is_defined(runs):
                    axes.text(place + shift, 0, " undefined", rotation=90, ha="center", va="bottom", color=look.color)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_ylabel("dev score (%)")
        axes.grid(visible=False, axis="x")
        axes.axhline(0, color=GREY, linewidth=0.8)
        legend_on_top(figure, names, spread=_key_of_bars([axes]))
    return figure


def _points_figure(tasks: list[str], names: list[str], cells: Mapping[tuple[str, str], list[Results]]) -> Figure:
    """A panel for each task, with the names from top to bottom; the axis holds the scores, not 0."""
    num_columns = min(4, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    methods = order_names(run.method for runs in cells.values() for run in runs)
    styles = styles_of(methods)
    with drawing():
        figure = new_figure(1.2 + 2.6 * num_columns, num_rows * (0.9 + 0.2 * len(names)) + 0.4)
        for place, task in enumerate(tasks):
            axes = figure.add_subplot(num_rows, num_columns, place + 1)
            axes.set_title(task)
            axes.set_xlabel("dev score (%)")
            is_first = place % num_columns == 0
            axes.set_yticks(range(len(names)), names if is_first else [""] * len(names))
            axes.set_ylim(len(names) - 0.4, -0.6)
            for height, label in enumerate(names):
                runs = cells.get((task, label), [])
                if runs and _is_defined(runs):
                    method = runs[0].method
                    _draw_row(axes, height, _scores(runs), styles[method], label=method)
                elif runs:
                    axes.text(0.02, height, "undefined", transform=axes.get_yaxis_transform(), va="center", color=GREY)
        legend_on_top(figure, methods, spread=_key_of_bars(figure.axes))
    return figure


def _draw_row(axes: Axes, height: float, scores: Sequence[float], look: SeriesStyle, *, label: str) -> None:
    """The mean of the seeds with their standard deviation, and each seed as a dot."""
    spread = {"xerr": [statistics.stdev(scores)], "capsize": 2.5} if len(scores) > 1 else {}
    mean = [statistics.mean(scores)]
    axes.errorbar(mean, [height], fmt=look.marker, markersize=6, linewidth=1, color=look.color, label=label, **spread)
    if len(scores) > 1:
        axes.plot(scores, [height] * len(scores), linestyle="", marker=".", markersize=3, color=GREY)


def score_against_time_figure(results: Sequence[Result], *, name: Naming = method_of) -> Figure:
    """The figure of `draw_score_against_time`."""
    tasks, names, cells = _group(results, name)
    seconds: dict[str, list[float]] = {}
    for (task, _), runs in cells.items():
        seconds.setdefault(task, []).extend(run.train_seconds for run in runs)
    is_log = any(min(of_task) > 0 and max(of_task) > 10 * min(of_task) for of_task in seconds.values())
    with drawing():
        figure, panels = _grid(tasks, names, num_columns=2 if len(tasks) == 4 else min(3, len(tasks)), width=3.6)
        for task, group, axes in panels:
            for label in group:
                _draw_cloud(axes, cells.get((task, label), []), styles_of(names)[label], label=label)
            undefined = [label for label in group if (task, label) in cells and not _is_defined(cells[task, label])]
            if undefined:
                axes.text(0.02, 0.02, f"undefined: {', '.join(undefined)}", transform=axes.transAxes, color=GREY)
            _scale_seconds(axes, seconds[task], is_log=is_log)
            axes.margins(y=0.15)
            axes.set_xlabel("seconds of training")
            axes.set_ylabel("dev score (%)")
        _add_legends(figure, panels)
    return figure


def _grid(tasks: Sequence[str], names: Sequence[str], *, num_columns: int, width: float) -> tuple[Figure, list[_Panel]]:
    """A figure with a panel for each task; with many names one again, on the same axes, for each group of them."""
    groups = split_names(names)
    rows_each = -(-len(tasks) // num_columns)
    room_for_legends = 1.8 * (len(groups) > 1)
    figure = new_figure(max(5.0, width * num_columns + room_for_legends), 2.9 * rows_each * len(groups) + 0.5)
    panels: list[_Panel] = []
    first: dict[str, Axes] = {}
    for number, group in enumerate(groups):
        for place, task in enumerate(tasks, start=1 + number * rows_each * num_columns):
            grid = rows_each * len(groups), num_columns, place
            axes = figure.add_subplot(*grid, sharex=first.get(task), sharey=first.get(task))
            first.setdefault(task, axes)
            axes.set_title(task)
            panels.append(_Panel(task, group, axes))
    return figure, panels


def _add_legends(figure: Figure, panels: Sequence[_Panel]) -> None:
    """One legend on top; where names are in groups, one for each, beside the first row of its panels."""
    groups: dict[tuple[str, ...], list[Axes]] = {}
    for panel in panels:
        groups.setdefault(tuple(panel.names), []).append(panel.axes)
    for names, of_group in groups.items():
        spread = _key_of_bars(of_group)
        if len(groups) == 1:
            legend_on_top(figure, names, spread=spread)
        else:
            num_columns = min(of_group[0].get_gridspec().ncols, len(of_group))
            legend_beside(of_group[num_columns - 1], of_group, names, spread=spread)


def _key_of_bars(panels: Sequence[Axes]) -> Any:
    """What a legend shows of error bars; None where none is drawn."""
    from matplotlib.container import ErrorbarContainer

    drawn = (bar for axes in panels for bar in axes.containers if isinstance(bar, ErrorbarContainer))
    return bar_key() if any(bar.has_xerr or bar.has_yerr for bar in drawn) else None


def _group(
    results: Sequence[Result], name: Naming
) -> tuple[list[str], list[str], dict[tuple[str, str], list[Results]]]:
    """Tasks and names in the order they come in, the known methods first; and the runs of each pair of them."""
    if not results:
        raise ValueError("no results to draw")
    cells: dict[tuple[str, str], list[Results]] = {}
    for result in results:
        run = _checked(result)
        cells.setdefault((run.task, name(result)), []).append(run)
    return list(dict.fromkeys(task for task, _ in cells)), order_names(label for _, label in cells), cells


def _checked(result: Result) -> Results:
    """The record of what a results.json holds, with a dev split's scores. Raises `RunError` where it is none."""
    run = as_results(result)
    for key, scores in {"scores": run.scores, **_teacher_scores(run)}.items():
        if not any(split.startswith("dev") for split in scores):
            raise RunError(f"results: {key}: has no dev split; give the contents of a results.json")
    return run


def _teacher_scores(run: Results) -> dict[str, dict[str, Scores]]:
    if run.teacher is None:
        return {}
    return {"scores_at_start": run.teacher.scores_at_start, "scores_at_end": run.teacher.scores_at_end}


def _is_defined(runs: Sequence[Results]) -> bool:
    return all(math.isfinite(score) for score in _scores(runs))


def _scores(runs: Sequence[Results]) -> list[float]:
    """The score that stands for each run's dev scores, in percent; NaN where it is undefined."""
    return [100 * dev_score(run.scores) for run in runs]


def dev_score(scores: Mapping[str, Scores]) -> float:
    """The mean of the first dev split's scores, a fraction; NaN where one is undefined."""
    first = next(of_split for split, of_split in scores.items() if split.startswith("dev"))
    return statistics.fmean(first.values())


def _draw_seeds(axes: Axes, place: float, scores: Sequence[float]) -> None:
    """Error bar and dots over a bar, for two seeds or more."""
    if len(scores) < 2:
        return
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    axes.errorbar([place], [mean], yerr=[deviation], color="black", linewidth=1, capsize=2.5)
    axes.plot([place] * len(scores), scores, linestyle="", marker=".", markersize=4, color=GREY)


def _draw_cloud(axes: Axes, runs: Sequence[Results], look: SeriesStyle, *, label: str) -> None:
    """The mean, and for two seeds or more the standard deviation in both directions and each seed, small."""
    if not runs or not _is_defined(runs):
        return
    seconds, scores = [run.train_seconds for run in runs], _scores(runs)
    mean = [statistics.mean(seconds)], [statistics.mean(scores)]
    if len(runs) > 1:
        axes.plot(seconds, scores, linestyle="", marker=look.marker, markersize=3, color=look.color, alpha=0.5)
        deviations = {"xerr": [statistics.stdev(seconds)], "yerr": [statistics.stdev(scores)]}
        axes.errorbar(*mean, fmt="none", capsize=2.5, linewidth=1, color=look.color, **deviations)
    axes.plot(*mean, linestyle="", marker=look.marker, markersize=7, color=look.color, label=label)


def _scale_seconds(axes: Axes, seconds: Sequence[float], *, is_log: bool) -> None:
    """The axis of one task's times: from 0 on, or logarithmic, as all tasks' of the picture are."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.1 * max(seconds) or 1.0)


class TeacherChange(NamedTuple):
    """One run with a moving teacher, beside the frozen teacher's run of the same task and seed; points of dev score."""

    task: str
    name: str
    teacher_change: float
    """The teacher's own score at the end minus that at the start."""
    student_gain: float
    """The student's score minus that of the baseline's student."""


def draw_teacher_change(
    results: Sequence[Result], path: str | Path, *, name: Naming = method_of, baseline: str = "kd"
) -> Path:
    """Writes a panel for each task with a dot for each run with a moving teacher; returns the path.

    Horizontally how much better (right) or worse (left) the teacher's own dev score became during the run, vertically
    how much better (up) or worse (down) the student is than the one that `baseline` made with the same seed.
    `results` are the contents of results.json files.

    Raises `MissingExtraError` without matplotlib, `ValueError` where there is no such run.
    """
    return save(teacher_change_figure(find_teacher_changes(results, name=name, baseline=baseline)), path)


def find_teacher_changes(
    results: Sequence[Result], *, name: Naming = method_of, baseline: str = "kd"
) -> list[TeacherChange]:
    """The runs with a moving teacher that have a baseline to compare with, and defined scores."""
    named = [(_checked(result), name(result)) for result in results]
    frozen = {(run.task, run.seed): 100 * dev_score(run.scores) for run, label in named if label == baseline}
    found = []
    for run, label in named:
        if run.teacher is None or run.method == "kd" or (run.task, run.seed) not in frozen:
            continue
        change = 100 * (dev_score(run.teacher.scores_at_end) - dev_score(run.teacher.scores_at_start))
        gain = 100 * dev_score(run.scores) - frozen[run.task, run.seed]
        if math.isfinite(change) and math.isfinite(gain):
            found.append(TeacherChange(run.task, label, change, gain))
    return found


def teacher_change_figure(changes: Sequence[TeacherChange]) -> Figure:
    """The figure of `draw_teacher_change`."""
    if not changes:
        raise ValueError("no run with a moving teacher and a baseline of its task and seed to draw")
    tasks, names = (
        list(dict.fromkeys(of_run.task for of_run in changes)),
        order_names(of_run.name for of_run in changes),
    )
    with drawing():
        figure, panels = _grid(tasks, names, num_columns=min(4, len(tasks)), width=3.2)
        for task, group, axes in panels:
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.axvline(0, color=GREY, linewidth=0.8)
            for label in group:
                look = styles_of(names)[label]
                points = [
                    (of_run.teacher_change, of_run.student_gain)
                    for of_run in changes
                    if (of_run.task, of_run.name) == (task, label)
                ]
                if points:
                    axes.plot(
                        *zip(*points, strict=True), linestyle="", marker=look.marker, color=look.color, label=label
                    )
            axes.set_xlabel("teacher's dev score,\nend minus start (points)")
            axes.set_ylabel("student's dev score,\nminus frozen teacher's (points)")
        _add_legends(figure, panels)
    return figure
