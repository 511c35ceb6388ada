"""The picture of how runs learn: dev score after each epoch, against steps and time, the teacher's own, and the gap.

Runs of one task under one name are seeds of the same thing: their mean is drawn, with a band of one standard deviation
on each side where there is more than one seed.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reptile_distil.errors import RunError
from reptile_distil.plots.style import (
    GREY,
    MOST_MARKERS,
    SeriesStyle,
    band_key,
    drawing,
    is_finite,
    legend_beside,
    legend_on_top,
    new_figure,
    order_names,
    save,
    split_names,
    styles_of,
    to_number,
)
from reptile_distil.runs.history import read_run
from reptile_distil.runs.records import Results
from reptile_distil.training.records import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
"""Positions and values (scores in percent), NaN where a value is undefined."""

Naming = Callable[[Path, dict[str, Any]], str]
"""What to call a run, from its folder and what its results.json holds."""


@dataclass(frozen=True)
class Run:
    """One run's curves."""

    task: str
    name: str
    by_steps: Points
    by_seconds: Points
    teacher_by_steps: Points
    """The teacher's own score, from before the first step on; empty where the run has no teacher."""
    gap_by_steps: Points
    """How far teacher and assumed student stand apart in the weights that the teacher update moves, ‖θ_T − θ_S'‖;
    empty where the method has no such update."""
    rows: str = "dev"
    """What the scores are of: `validation` where training rows held out have chosen the epoch."""


def draw_learning_curves(
    runs: str | Path | Iterable[str | Path], path: str | Path, *, name: Naming | None = None
) -> Path:
    """Writes the curves of finished runs, or of one, into an image file; returns its path.

    They are given by their folders, or all at once by the `...-epochs.csv` of a table, where their rows name them.

    Each task has a row of panels, or several where there are more than 10 names, each then with `kd`: the student's
    dev score against steps, the same against seconds of training (evaluation not counted), and against steps the
    dev score of the teacher that the student learns from and, for Reptile, the gap ‖θ_T − θ_S'‖ before the epoch's
    last teacher update. `name` takes a run's folder and results.json and says what to call it; by default its
    folder's name without the seed, which is its row in a table. A teacher's own fine-tuning is left out.

    Raises `MissingExtraError` without matplotlib, `RunError` for a folder that holds no finished run, `ValueError`
    where no student's run is among them.
    """
    curves: list[Run] = []
    for place in map(Path, [runs] if isinstance(runs, str | Path) else runs):
        curves += read_curves_csv(place) if place.is_file() else [read_curves(place, name=name)]
    return save(learning_curves_figure(curves), path)


def name_of(folder: Path, results: Results) -> str:
    """The folder's name without its `-seed...`; where it has none, the method."""
    stem, seed, _ = folder.name.rpartition(f"-seed{results.seed}")
    return stem if seed else results.method


def read_curves(folder: str | Path, *, name: Naming | None = None) -> Run:
    """The curves of the run in `folder`. Raises `RunError` where it holds no finished run."""
    folder = Path(folder)
    results, metrics = read_run(folder)
    epochs = metrics.epochs
    teacher: Points = []
    if results.teacher is not None:
        scores = next(iter(results.teacher.scores_at_start.values()))
        teacher = [(0.0, 100 * statistics.fmean(scores.values())), *map(_teacher_point, epochs)]
    return Run(
        task=results.task,
        name=name_of(folder, results) if name is None else name(folder, results.to_dict()),
        by_steps=[(record.step, 100 * record.score) for record in epochs],
        by_seconds=[(record.train_seconds, 100 * record.score) for record in epochs],
        teacher_by_steps=teacher,
        gap_by_steps=[(record.step, record.last_gap) for record in epochs if record.last_gap is not None],
        rows="validation" if any("validation" in record.scores for record in epochs) else "dev",
    )


def read_curves_csv(path: str | Path) -> list[Run]:
    """The curves of all runs in a table's `...-epochs.csv`, its teachers' own among them.

    Raises `RunError` where the file cannot be read or is none.
    """
    lines: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["epoch"]:  # a run without its epochs has final scores alone
                    lines.setdefault((line["task"], line["method"], line["seed"]), []).append(line)
        return [_run_of_lines(task, name, of_run) for (task, name, _), of_run in lines.items()]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise RunError(f"{path}: is no CSV of a table's epochs: {error}; give a table's ...-epochs.csv") from None


def _run_of_lines(task: str, name: str, lines: Sequence[Mapping[str, str]]) -> Run:
    """The curves of a run, whose first split of the student is the one that was watched."""
    watched = next(line["split"] for line in lines if line["model"] == "student")

    def points(model: str, x: str) -> Points:
        by_epoch: dict[str, list[Mapping[str, str]]] = {}
        for line in lines:
            if (line["model"], line["split"]) == (model, watched):
                by_epoch.setdefault(line["epoch"], []).append(line)
        return [
            (float(of_epoch[0][x]), 100 * statistics.fmean(float(line["value"] or "nan") for line in of_epoch))
            for of_epoch in by_epoch.values()
        ]

    gaps = [(float(line["step"]), float(line["value"])) for line in lines if line["metric"] == "gap"]
    by_steps, by_seconds = points("student", "step"), points("student", "train_seconds")
    return Run(task, name, by_steps, by_seconds, points("teacher", "step"), gaps, _rows_of(watched))


def _rows_of(split: str) -> str:
    return "validation" if split == "validation" else "dev"


def learning_curves_figure(runs: Sequence[Run]) -> Figure:
    """The figure of `draw_learning_curves`."""
    runs = [run for run in runs if run.name != "teacher"]
    if not runs:
        raise ValueError("no runs to draw")
    tasks, names = list(dict.fromkeys(run.task for run in runs)), order_names(run.name for run in runs)
    styles = styles_of(names)
    of_rows = " or ".join(dict.fromkeys(run.rows for run in runs))
    panels: list[tuple[str, str, Callable[[Run], Points]]] = [
        ("steps", f"student's {of_rows} score (%)", lambda run: run.by_steps),
        ("seconds of training", f"student's {of_rows} score (%)", lambda run: run.by_seconds),
        ("steps", f"teacher's {of_rows} score (%)", lambda run: run.teacher_by_steps),
        ("steps", r"gap $\|\theta_T - \theta_S'\|$ (no unit)", lambda run: run.gap_by_steps),
    ]
    panels = [panel for panel in panels if any(panel[-1](run) for run in runs)]
    groups = split_names(names)
    rows = [(task, group) for task in tasks for group in groups]
    with drawing():
        figure = new_figure(3.6 * len(panels) + 1.8 * (len(groups) > 1), 2.9 * len(rows) + 0.5)
        above: dict[tuple[str, int], Axes] = {}  # one axis of scores for a task, in all its rows of a column
        for height, (task, group) in enumerate(rows):
            of_task = [run for run in runs if run.task == task]
            drawn = []
            for place in range(len(panels)):
                grid = len(rows), len(panels), height * len(panels) + place + 1
                drawn.append(figure.add_subplot(*grid, sharey=above.get((task, place))))
                above.setdefault((task, place), drawn[-1])
            for axes, (x_label, y_label, points_of) in zip(drawn, panels, strict=True):
                axes.set_title(task)
                axes.set_xlabel(x_label)
                axes.set_ylabel(y_label)
                for label in group:
                    seeds = [points_of(run) for run in of_task if run.name == label]
                    _draw_mean(
                        axes, [points for points in seeds if points], label, styles[label], 0.6 / (3 + len(group))
                    )
                _show_from_zero(axes, [points_of(run) for run in of_task])
            if len(groups) > 1:
                legend_beside(drawn[-1], drawn, group, spread=_key_of_bands(drawn))
        if len(groups) == 1:
            legend_on_top(figure, names, spread=_key_of_bands(figure.axes))
    return figure


def _key_of_bands(panels: Sequence[Axes]) -> Any:
    """What a legend shows of bands; None where none is drawn."""
    return band_key() if any(axes.collections for axes in panels) else None


def _show_from_zero(axes: Axes, seeds: Sequence[Points]) -> None:
    """An axis from 0 to where the last of these runs ends, with room for whole markers; a word where nothing is."""
    last = max((position for points in seeds for position, _ in points), default=1.0) or 1.0
    axes.set_xlim(-0.03 * last, 1.05 * last)
    if not any(map(is_finite, axes.lines)):
        reason = "undefined" if axes.lines else "none"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY)


def _draw_mean(axes: Axes, seeds: Sequence[Points], label: str, look: SeriesStyle, alpha: float) -> None:
    """The mean over seeds as far as all of them go, so that it is always the mean of the same runs."""
    if not seeds:
        return
    num_points = min(map(len, seeds))
    if not num_points:
        return
    points = np.array([of_seed[:num_points] for of_seed in seeds])  # (seeds, points, 2)
    positions, scores = points.mean(axis=0).T
    marker = look.marker if num_points <= MOST_MARKERS else ""
    axes.plot(positions, scores, color=look.color, marker=marker, linestyle=look.line, label=label)
    if len(seeds) > 1:
        deviation = points[..., 1].std(axis=0, ddof=1)
        axes.fill_between(positions, scores - deviation, scores + deviation, color=look.color, alpha=alpha, linewidth=0)


def _teacher_point(record: EpochRecord) -> tuple[float, float]:
    return record.step, 100 * to_number(record.teacher_score)
