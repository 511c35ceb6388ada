"""Pictures of one run, from its metrics.jsonl and results.json alone. Needs the extra `plots` (matplotlib)."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reptile_distil.plots.style import (
    BLUE,
    GREEN,
    GREY,
    MOST_MARKERS,
    PURPLE,
    SKY,
    STUDENT,
    TEACHER,
    VERMILLION,
    drawing,
    is_finite,
    legend_above,
    new_figure,
    save,
    to_number,
)
from reptile_distil.runs.history import read_run
from reptile_distil.runs.records import Metrics, Results
from reptile_distil.training.metrics import Scores
from reptile_distil.training.records import EpochRecord, StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


logger = logging.getLogger(__name__)
_LINE_STYLES = ("-", "--", ":", "-.")
_LOG_SCALE_FROM = 20  # two learning rates further apart than this share no linear axis

Epochs = Sequence[EpochRecord]
Steps = Sequence[tuple[float, StepRecord]]
"""Logged steps, each with its position in epochs: a step in the middle of the third is at 2.5."""


def draw_curves(run_folder: str | Path) -> Path:
    """Writes `curves.png` into the folder of a finished run; returns its path.

    Raises `MissingExtraError` without matplotlib, `RunError` where the run's files cannot be read.
    """
    return save(curves_figure(*read_run(run_folder)), Path(run_folder) / "curves.png")


def draw_after_run(run_folder: str | Path) -> None:
    """`draw_curves` where matplotlib is installed; a fault in drawing is a line in the log, never one of the run."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    try:
        draw_curves(run_folder)
    except Exception as error:  # a picture is not worth a finished run, whatever went wrong
        logger.warning("%s: curves.png could not be drawn: %s", run_folder, error)


def curves_figure(results: Results, metrics: Metrics) -> Figure:
    """Score, loss and learning rates over the epochs; with a teacher also agreement, gap and teacher drift.

    An undefined value leaves a hole.
    """
    epochs = metrics.epochs
    steps = _on_epochs(metrics.steps, epochs)
    panels: list[Callable[[Axes, Results, Epochs, Steps], None]]
    panels = [_draw_scores, _draw_losses, _draw_learning_rates]
    if any(record.agreement is not None for record in epochs):
        panels.append(_draw_agreement)
    if any(record.last_gap is not None for record in epochs):
        panels += [_draw_gap, _draw_drift]
    with drawing():
        num_columns = 2 if len(panels) == 4 else 3
        num_rows = -(-len(panels) // num_columns)
        figure = new_figure(3.6 * num_columns, 2.9 * num_rows + 0.4)
        figure.suptitle(f"{results.task}: {results.method}, seed {results.seed}", fontsize=11)
        for index, draw in enumerate(panels):
            axes = figure.add_subplot(num_rows, num_columns, index + 1)
            draw(axes, results, epochs, steps)
            _finish_panel(axes, len(epochs))
    return figure


def _draw_scores(axes: Axes, results: Results, epochs: Epochs, _: Steps) -> None:
    """Each score that was watched, of the student and of the teacher, the latter from before the first step on."""
    axes.set_title("Validation score" if "validation" in epochs[0].scores else "Dev score")
    axes.set_ylabel("score (%)")
    role = "teacher" if results.method == "teacher" else "student"
    positions = [record.epoch for record in epochs]
    _draw_each_score(axes, positions, [record.scores for record in epochs], role)
    if results.teacher is not None:
        scores = [results.teacher.scores_at_start, *(record.teacher_scores or {} for record in epochs)]
        _draw_each_score(axes, [0, *positions], scores, "teacher")
    axes.axvline(results.best_epoch, color=GREY, linestyle=":", linewidth=1, zorder=0, label="best epoch")


def _draw_each_score(axes: Axes, positions: Sequence[float], scores: Sequence[Mapping[str, Scores]], role: str) -> None:
    names = [(split, metric) for split, values in scores[-1].items() for metric in values]
    several_splits = len({split for split, _ in names}) > 1
    for (split, metric), style in zip(names, _LINE_STYLES * len(names), strict=False):
        label = f"{role}, {metric}" + (f" ({split})" if several_splits else "")
        values = [100 * by_split.get(split, {}).get(metric, math.nan) for by_split in scores]
        color, marker = (TEACHER, "s") if role == "teacher" else (STUDENT, "o")
        axes.plot(positions, values, linestyle=style, color=color, marker=marker, label=label)


def _draw_losses(axes: Axes, results: Results, epochs: Epochs, steps: Steps) -> None:
    """The loss as logged, thin, and the means of its parts over each epoch."""
    axes.set_title("Training loss")
    axes.set_ylabel("loss (no unit)")
    axes.plot(*_step_series(steps, "loss"), **_thin(steps), color=SKY, linewidth=0.8, label="single steps", zorder=1)
    parts = {"loss": ("mean of epoch", BLUE, "o")}
    if results.teacher is not None:
        parts |= {"task_loss": ("task part", GREEN, "^"), "distillation_loss": ("distillation part", PURPLE, "v")}
    positions = [record.epoch - 0.5 for record in epochs]
    for name, (label, color, marker) in parts.items():
        means = [record.train.get(name, math.nan) for record in epochs]
        axes.plot(positions, means, color=color, marker=marker, label=label)


def _draw_learning_rates(axes: Axes, results: Results, _: Epochs, steps: Steps) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_title("Learning rate")
    axes.set_ylabel("learning rate (no unit)")
    first = ("teacher", TEACHER) if results.method == "teacher" else ("student", STUDENT)
    lines = {"lr": (*first, "-"), "teacher_lr": ("teacher (μ)", TEACHER, "--")}
    peaks = []
    for name, (label, color, style) in lines.items():
        if any(name in record.values for _, record in steps):
            positions, values = _step_series(steps, name)
            axes.plot(positions, values, **_thin(steps), color=color, linestyle=style, label=label)
            peaks.append(max(values))
    if min(peaks, default=0.0) > 0 and max(peaks) / min(peaks) >= _LOG_SCALE_FROM:
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_short_power))


def _draw_agreement(axes: Axes, _: Results, epochs: Epochs, __: Steps) -> None:
    axes.set_title("Agreement of student and teacher")
    axes.set_ylabel("agreement (%)")
    agreements = [100 * to_number(record.agreement) for record in epochs]
    axes.plot([record.epoch for record in epochs], agreements, color=GREEN, marker="o")


def _draw_gap(axes: Axes, _: Results, __: Epochs, steps: Steps) -> None:
    axes.set_title(r"Gap $\|\theta_T - \theta_S'\|$, matched weights")
    axes.set_ylabel("distance (no unit)")
    axes.plot(*_step_series(steps, "gap"), **_thin(steps), color=PURPLE)


def _draw_drift(axes: Axes, _: Results, epochs: Epochs, __: Steps) -> None:
    axes.set_title(r"Teacher drift $\|\theta_T - \theta_T(0)\|$")
    axes.set_ylabel("distance (no unit)")
    positions, drifts = [record.epoch for record in epochs], [to_number(record.teacher_drift) for record in epochs]
    axes.plot([0, *positions], [0.0, *drifts], color=VERMILLION, marker="s")


def _finish_panel(axes: Axes, num_epochs: int) -> None:
    """Axis from the start to the last epoch, a legend where there is more than one series, a word where nothing is."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_xlim(-0.04 * num_epochs, 1.04 * num_epochs)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if not any(is_finite(line) for line in axes.lines if _is_series(line)):
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", va="center", color=GREY)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        legend_above(axes)


def _is_series(line: Any) -> bool:
    """Whether a line is data: an axvline is not."""
    return str(line.get_label()) != "best epoch"


def _on_epochs(steps: Sequence[StepRecord], epochs: Epochs) -> Steps:
    """The steps with their positions in epochs."""
    ends, passed = [0, *(record.step for record in epochs)], [0, *(record.epoch for record in epochs)]
    return [(float(np.interp(record.step, ends, passed)), record) for record in steps]


def _step_series(steps: Steps, name: str) -> tuple[list[float], list[float]]:
    """Positions and values of one logged quantity, NaN where it is undefined."""
    return [position for position, _ in steps], [record.values.get(name, math.nan) for _, record in steps]


def _thin(steps: Steps) -> dict[str, str]:
    """Dots on a line of few points, so that a single one is seen too."""
    return {"marker": "." if len(steps) <= MOST_MARKERS else ""}


def _short_power(value: float, _: int | None = None) -> str:
    """0.0005 as 5e-4."""
    if not value:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
