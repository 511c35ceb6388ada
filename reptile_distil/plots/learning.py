"""The picture of how runs learn: dev score after each epoch, against steps and time, the teacher's own, and the gap.

Runs of one task under one name are seeds of the same thing: their mean is drawn, with a band of one standard deviation
on each side where there is more than one seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reptile_distil.plots.style import (
    GREY,
    MOST_MARKERS,
    SeriesStyle,
    drawing,
    is_finite,
    legend_on_top,
    new_figure,
    order_names,
    save,
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

MOST_BANDS = 10
"""With more names than this the bands would cover each other: they are left out, and the panels are larger."""


Naming = Callable[[Path, dict[str, Any]], str]
"""What to call a run, from its folder and what its results.json holds."""


class Run(NamedTuple):
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


def draw_learning_curves(runs: Iterable[str | Path], path: str | Path, *, name: Naming | None = None) -> Path:
    """Writes the curves of finished runs, given by their folders, into an image file; returns its path.

    Each task has a row of panels: the student's dev score against steps, the same against seconds of training
    (evaluation not counted), and against steps the dev score of the teacher that the student learns from and, for
    Reptile, the gap ‖θ_T − θ_S'‖ before the epoch's last teacher update. `name` takes a run's folder and results.json
    and says what to call it; by default its folder's name without the seed, which is its row in a table. A teacher's
    own fine-tuning is left out.

    Raises `MissingExtraError` without matplotlib, `RunError` for a folder that holds no finished run, `ValueError`
    where no student's run is among them.
    """
    return save(learning_curves_figure([read_curves(folder, name=name) for folder in runs]), path)


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


def learning_curves_figure(runs: Sequence[Run]) -> Figure:
    """The figure of `draw_learning_curves`."""
    runs = [run for run in runs if run.name != "teacher"]
    if not runs:
        raise ValueError("no runs to draw")
    tasks, names = list(dict.fromkeys(run.task for run in runs)), order_names(run.name for run in runs)
    styles = styles_of(names)
    rows = " or ".join(dict.fromkeys(run.rows for run in runs))
    panels: list[tuple[str, str, Callable[[Run], Points]]] = [
        ("steps", f"student's {rows} score (%)", lambda run: run.by_steps),
        ("seconds of training", f"student's {rows} score (%)", lambda run: run.by_seconds),
        ("steps", f"teacher's {rows} score (%)", lambda run: run.teacher_by_steps),
        ("steps", r"gap $\|\theta_T - \theta_S'\|$", lambda run: run.gap_by_steps),
    ]
    panels = [panel for panel in panels if any(panel[-1](run) for run in runs)]
    scale = 1 if len(names) <= MOST_BANDS else 1.4
    with drawing():
        figure = new_figure(scale * 3.6 * len(panels), scale * 2.9 * len(tasks) + 0.5)
        for place, (task, (x_label, y_label, points_of)) in enumerate((t, p) for t in tasks for p in panels):
            axes = figure.add_subplot(len(tasks), len(panels), place + 1)
            axes.set_title(task)
            axes.set_xlabel(x_label)
            axes.set_ylabel(y_label)
            for label in names:
                seeds = [points_of(run) for run in runs if (run.task, run.name) == (task, label)]
                _draw_mean(axes, [points for points in seeds if points], label, styles[label], len(names) <= MOST_BANDS)
            axes.set_xlim(left=0)
            if not any(map(is_finite, axes.lines)):
                reason = "undefined" if axes.lines else "none"
                axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=GREY)
        legend_on_top(figure, names, bands=any(axes.collections for axes in figure.axes))
    return figure


def _draw_mean(axes: Axes, seeds: Sequence[Points], label: str, look: SeriesStyle, with_band: bool) -> None:
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
    if with_band and len(seeds) > 1:
        deviation = points[..., 1].std(axis=0, ddof=1)
        axes.fill_between(positions, scores - deviation, scores + deviation, color=look.color, alpha=0.15, linewidth=0)


def _teacher_point(record: EpochRecord) -> tuple[float, float]:
    return record.step, 100 * to_number(record.teacher_score)
