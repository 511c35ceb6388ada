"""Pictures of many runs, from their results.json: scores as bars, and score against training time.

Runs of one task under one name are seeds of the same thing: their mean is drawn, with the standard deviation over
seeds as an error bar where there is more than one seed, and each seed as a dot.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptile_distil.looks import legend_on_top, looks_of, order_names
from reptile_distil.plots import GREY, drawing, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Result = Mapping[str, Any]
Naming = Callable[[Result], str]


def method_of(result: Result) -> str:
    """The name that runs are grouped by where nothing else is asked for."""
    return str(result["method"])


def draw_table(results: Sequence[Result], path: str | Path, *, name: Naming = method_of) -> Path:
    """Writes bars of the dev score (in percent; the mean of a task's metrics) by task and name; returns the path.

    `results` are the contents of results.json files. Where one seed's score is undefined there is no bar but a word.
    Raises `MissingExtraError` without matplotlib, `ValueError` for no results.
    """
    return save(table_figure(results, name=name), path)


def draw_score_against_time(results: Sequence[Result], path: str | Path, *, name: Naming = method_of) -> Path:
    """Writes the dev score against seconds of training, a panel for each task; returns the path. As `draw_table`."""
    return save(score_against_time_figure(results, name=name), path)


def table_figure(results: Sequence[Result], *, name: Naming = method_of) -> Figure:
    """The figure of `draw_table`."""
    tasks, names, cells = _group(results, name)
    width = 0.8 / len(names)
    with drawing():
        figure = new_figure(max(5.0, min(16.0, 1.6 + 0.33 * len(tasks) * (len(names) + 1))), 3.8)
        axes = figure.add_subplot()
        for index, (label, look) in enumerate(looks_of(names).items()):
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
        legend_on_top(figure, names)
    return figure


def score_against_time_figure(results: Sequence[Result], *, name: Naming = method_of) -> Figure:
    """The figure of `draw_score_against_time`."""
    tasks, names, cells = _group(results, name)
    num_columns = min(3, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    with drawing():
        figure = new_figure(max(5.0, 3.6 * num_columns), 2.9 * num_rows + 0.5)
        for place, task in enumerate(tasks):
            axes = figure.add_subplot(num_rows, num_columns, place + 1)
            axes.set_title(task)
            for label, look in looks_of(names).items():
                _draw_cloud(axes, cells.get((task, label), []), color=look.color, marker=look.marker, label=label)
            undefined = [label for label in names if (task, label) in cells and not _is_defined(cells[task, label])]
            if undefined:
                axes.text(0.02, 0.02, f"undefined: {', '.join(undefined)}", transform=axes.transAxes, color=GREY)
            _start_at_zero_or_log(axes)
            axes.margins(y=0.15)
            axes.set_xlabel("seconds of training")
            axes.set_ylabel("dev score (%)")
        legend_on_top(figure, names)
    return figure


def _group(results: Sequence[Result], name: Naming) -> tuple[list[str], list[str], dict[tuple[str, str], list[Result]]]:
    """Tasks and names in the order they come in, the known methods first; and the runs of each pair of them."""
    if not results:
        raise ValueError("no results to draw")
    cells: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        cells.setdefault((str(result["task"]), name(result)), []).append(result)
    return list(dict.fromkeys(task for task, _ in cells)), order_names(label for _, label in cells), cells


def _is_defined(runs: Sequence[Result]) -> bool:
    return all(run["score"] is not None and math.isfinite(run["score"]) for run in runs)


def _scores(runs: Sequence[Result]) -> list[float]:
    return [100 * run["score"] for run in runs]


def _draw_seeds(axes: Axes, place: float, scores: Sequence[float]) -> None:
    """Error bar and dots over a bar, for two seeds or more."""
    if len(scores) < 2:
        return
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    axes.errorbar([place], [mean], yerr=[deviation], color="black", linewidth=1, capsize=2.5)
    axes.plot([place] * len(scores), scores, linestyle="", marker=".", markersize=4, color=GREY)


def _draw_cloud(axes: Axes, runs: Sequence[Result], *, color: str, marker: str, label: str) -> None:
    """Mean and standard deviation in both directions, and each seed as a small marker."""
    if not runs or not _is_defined(runs):
        return
    seconds, scores = [run["train_seconds"] for run in runs], _scores(runs)
    spread: dict[str, Any] = {}
    if len(runs) > 1:
        spread = {"xerr": [statistics.stdev(seconds)], "yerr": [statistics.stdev(scores)], "capsize": 2.5}
        axes.plot(seconds, scores, linestyle="", marker=marker, markersize=3, color=color, alpha=0.5)
    mean = [statistics.mean(seconds)], [statistics.mean(scores)]
    axes.errorbar(*mean, fmt=marker, markersize=8, linewidth=1, color=color, label=label, **spread)


def _start_at_zero_or_log(axes: Axes) -> None:
    """Times that differ little on an axis from 0, times that differ much on a logarithmic one."""
    seconds = [float(value) for line in axes.lines for value in line.get_xdata()]
    if seconds and min(seconds) > 0 and max(seconds) > 10 * min(seconds):
        axes.set_xscale("log")
    elif seconds:
        axes.set_xlim(0, 1.1 * max(seconds))
