"""A row of a table against another, with the test that fits: over seeds, over cells, or over the rows of a dev set.

Differences are in points of percent.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reptile_distil.data.tasks import Task
from reptile_distil.errors import RunError
from reptile_distil.runs.folder import RunFolder
from reptile_distil.tables.data import Column, TableData, columns_of
from reptile_distil.tables.statistics import compare_paired, mcnemar, paired_bootstrap, pairs_needed
from reptile_distil.training.metrics import compute_scores


class Comparison(NamedTuple):
    """A row minus another: difference, 95 % interval and p-value (NaN where there is none)."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    """Pairs compared: seeds, (task, seed) cells, or rows of the dev set."""
    test: str
    """seeds, cells, McNemar or bootstrap; empty: none could be made."""


def compare(data: TableData, row: str, baseline: str, *, task: Task, columns: Sequence[Column]) -> Comparison | None:
    """A row minus `baseline` on one task, by the mean of the given scores, over the seeds that both have.

    Two seeds or more are compared by `statistics.compare_paired`. One seed tells nothing of other seeds; there the two
    models are compared over the rows of the dev set: by `statistics.mcnemar` for accuracy, by
    `statistics.paired_bootstrap` for the rest. None where there is no common seed, or a score is undefined.
    """
    key = (row, baseline, task.name, *columns)
    if key not in data.compared:
        data.compared[key] = _compare(data, row, baseline, task, columns)
    found: Comparison | None = data.compared[key]
    return found


def _compare(data: TableData, row: str, baseline: str, task: Task, columns: Sequence[Column]) -> Comparison | None:
    first, second = data.scores(row, task, columns), data.scores(baseline, task, columns)
    seeds = [seed for seed in first if seed in second]
    pairs = _defined_pairs([(first[seed], second[seed]) for seed in seeds])
    if not pairs:
        return None
    if len(pairs) > 1:
        return Comparison(*compare_paired(*zip(*pairs, strict=True)), "seeds")
    difference = pairs[0][0] - pairs[0][1]
    ours, theirs = (_read_predictions(data, task, name, seeds[0], columns) for name in (row, baseline))
    if ours is None or theirs is None or not np.array_equal(ours[1], theirs[1]):
        return Comparison(difference, math.nan, math.nan, math.nan, 1, "")
    return _compare_models(difference, ours[0], theirs[0], ours[1], columns)


def compare_over_tasks(data: TableData, row: str, baseline: str) -> Comparison | None:
    """A row minus `baseline` over all (task, seed) cells that both have.

    None where an undefined score is among them, or there are fewer than two.
    """
    pairs = _pairs_over_tasks(data, row, baseline)
    return Comparison(*compare_paired(*zip(*pairs, strict=True)), "cells") if len(pairs) > 1 else None


def weighs_tasks_unevenly(data: TableData, row: str, baseline: str) -> bool:
    """Whether `compare_over_tasks` compares the two by more cells of one task than of another."""
    numbers = {len(cells) for cells in _cells_by_task(data, row, baseline).values()}
    return len(numbers) > 1 and compare_over_tasks(data, row, baseline) is not None


def pairs_for_a_point(data: TableData, row: str, baseline: str) -> int | None:
    """How many (task, seed) cells a study would need to show a row one point ahead of, or behind, `baseline`.

    As `statistics.pairs_needed` has it, by the spread of the cells that both have; None where there are fewer than
    three, or no spread, which says nothing.
    """
    differences = [ours - theirs for ours, theirs in _pairs_over_tasks(data, row, baseline)]
    std = statistics.stdev(differences) if len(differences) > 2 else 0.0
    return pairs_needed(std, 1.0) if std else None


def _pairs_over_tasks(data: TableData, row: str, baseline: str) -> list[tuple[float, float]]:
    by_task = _cells_by_task(data, row, baseline)
    return _defined_pairs([cell for cells in by_task.values() for cell in cells])


def _cells_by_task(data: TableData, row: str, baseline: str) -> dict[str, list[tuple[float | None, float | None]]]:
    """The scores of both rows, by task, of the seeds that both have."""
    by_task: dict[str, list[tuple[float | None, float | None]]] = {}
    for task in data.tasks:
        first, second = (data.scores(name, task, columns_of(task)) for name in (row, baseline))
        by_task[task.name] = [(first[seed], second[seed]) for seed in first if seed in second]
    return by_task


def _defined_pairs(pairs: Sequence[tuple[float | None, float | None]]) -> list[tuple[float, float]]:
    """The pairs; none at all where a score in them is undefined."""
    defined = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    return defined if len(defined) == len(pairs) else []


def _compare_models(
    difference: float,
    first: NDArray[Any],
    second: NDArray[Any],
    labels: NDArray[Any],
    columns: Sequence[Column],
) -> Comparison:
    """Two models of one seed by their predictions and the labels, (N,) or (N, C), of the splits of `columns`."""
    metrics = list(dict.fromkeys(column.metric for column in columns))
    if metrics == ["accuracy"]:
        p_value = mcnemar(first == labels, second == labels).p_value
        return Comparison(difference, math.nan, math.nan, p_value, len(labels), "McNemar")
    # Rows by their number, which may be sets of labels: those of the first model, then those of the second.
    rows, said_by_both = np.arange(len(labels)), np.concatenate([first, second])
    try:
        found = paired_bootstrap(
            lambda said, expected: 100 * _mean_score(said_by_both[said], labels[expected], metrics),
            rows,
            rows + len(labels),
            rows,
        )
    except ValueError:  # the score is undefined on some of the resamples
        return Comparison(difference, math.nan, math.nan, math.nan, 1, "")
    return Comparison(difference, found.low, found.high, found.p_value, found.n, "bootstrap")


def _read_predictions(
    data: TableData, task: Task, row: str, seed: int, columns: Sequence[Column]
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Predictions and labels, (N,) or (N, C), of the splits of `columns`, one behind the other.

    None where one is missing, or damaged, which is then among the problems of the table.
    """
    if (task.name, row, seed) not in data.folders:
        return None
    folder = RunFolder(data.folders[task.name, row, seed])
    splits = dict.fromkeys(column.split for column in columns)
    try:
        found = [folder.read_predictions(split, multi_label=task.multi_label) for split in splits]
    except RunError as error:
        problem = f"predictions of {task.name} {row} seed {seed}: {error}"
        data.problems += [problem] * (problem not in data.problems)
        return None
    parts = [part for part in found if part is not None]
    if len(parts) < len(splits):
        return None
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _mean_score(predictions: NDArray[Any], labels: NDArray[Any], metrics: Sequence[str]) -> float:
    return statistics.fmean(compute_scores(predictions, labels, metrics).values())
