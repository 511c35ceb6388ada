"""A table as cells of text: the sheet of scores, the sheet of differences, and the notes below them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from reptile_distil.data.tasks import GLUE, Task
from reptile_distil.models.cost import BATCH_SIZES
from reptile_distil.runtime.text_tables import Bold, Cell
from reptile_distil.tables.comparisons import (
    Comparison,
    compare,
    compare_over_tasks,
    pairs_for_a_point,
    weighs_tasks_unevenly,
)
from reptile_distil.tables.config import TEACHER
from reptile_distil.tables.data import BySeed, Entry, TableData, columns_of, glue_average, summarise_scores
from reptile_distil.tables.published import PUBLISHED, PublishedRow

BASELINES = ("kd", "finetune")
"""The rows that the others are compared with."""
_GLUE_TASKS = [name for name in GLUE if name != "ax"]
_SHORT = {"accuracy": "acc", "f1": "F1", "matthews_correlation": "MCC", "pearson": "P", "spearmanr": "S"}
_SHORT |= {"balanced_accuracy": "bal. acc", "subset_accuracy": "subset acc"}
_SHORT |= {f"f1_{mean}": f"{mean} F1" for mean in ("macro", "micro", "weighted")}
_MAX_PROBLEMS = 20


class Sheet(NamedTuple):
    """A header, and groups of rows with a rule between them."""

    header: list[str]
    groups: list[list[list[Cell]]]


def task_order(tasks: Sequence[Task]) -> list[Task]:
    """The order of the columns: GLUE's tasks as on the leaderboard, then the others as they were given."""
    return sorted(tasks, key=lambda task: len(GLUE) if task.is_own else _place(task.name))


def _place(name: str) -> int:
    return _GLUE_TASKS.index(name) if name in _GLUE_TASKS else len(GLUE)


def score_sheet(data: TableData) -> Sheet:
    """One row for the teacher, one for each method and variant, and the published ones where the task is GLUE's."""
    tasks = task_order(data.tasks)
    header = ["method", *(f"{title(task)} {score_names(task)}" for task in tasks), average_name(tasks)]
    header += ["M parameters", *(f"speed-up, batch {size}" for size in BATCH_SIZES)]
    columns = [_column(data, scores) for scores in _score_columns(data)]
    sizes: list[dict[str, Cell]] = [{row: (_size(data.parameters(row)),) for row in data.rows}]
    sizes += [{row: (_speedup(data, row, size),) for row in data.rows} for size in BATCH_SIZES]
    ours = [[(row,), *(column[row] for column in [*columns, *sizes])] for row in data.rows]
    theirs = [_published(row, tasks) for row in published_rows(tasks)]
    return Sheet(header, [group for group in (ours, theirs) if group])


def difference_sheet(data: TableData) -> Sheet | None:
    """Each student row minus each baseline, by task and over the tasks; None where there is nothing to compare."""
    tasks = task_order(data.tasks)
    rows: list[list[Cell]] = []
    for row, baseline in pairs_to_compare(data):
        found = [compare(data, row, baseline, task=task, columns=columns_of(task)) for task in tasks]
        cells = [(describe_comparison(comparison, len(data.seeds)),) for comparison in found]
        over_tasks = compare_over_tasks(data, row, baseline)
        cells.append((describe_comparison(over_tasks, len(data.seeds) * len(tasks)),))
        rows.append([(f"{row} - {baseline}",), *cells])
    return Sheet(["difference", *map(title, tasks), "over tasks"], [rows]) if rows else None


def notes(data: TableData) -> list[str]:
    """What a reader must know to read the sheets, a paragraph each."""
    latencies = [run.latency for run in data.runs.values() if run.latency is not None]
    lengths, devices = {latency.length for latency in latencies}, {latency.device for latency in latencies}
    # A run that chose by training rows held out has their score beside the dev set's.
    by_validation = [("validation" in run.scores) for run in data.runs.values()]
    chosen = (
        "each of the best epoch on that very set"
        if not any(by_validation)
        else (
            "each of the best epoch on training rows held out for the choice"
            if all(by_validation)
            else "each of the best epoch, on that very set or on training rows held out for the choice"
        )
    )
    all_there = " of those with all their seeds" if _is_one_left_out(data) else ""
    paragraphs = [
        f"Scores on the dev sets in percent, {chosen}: mean ± sample standard deviation "
        f"over n of the seeds {_listed(set(data.seeds))}. Bold: the best student{all_there}. "
        "The mean over tasks takes the mean of a task's scores, over the seeds that were run on every task.",
    ]
    if lengths:
        paragraphs.append(
            "Speed-up: milliseconds of the teacher over those of the student, measured in turn at the end of a run "
            f"that has both in memory (so not of finetune), {_listed(lengths)} tokens a row, on {_listed(devices)}; "
            "the median over n measurements, one for all runs of the same shapes on a machine; on a busy one it means "
            "little."
        )
    if compared := pairs_to_compare(data):
        is_uneven = any(weighs_tasks_unevenly(data, row, baseline) for row, baseline in compared)
        uneven = (
            " Over tasks every pair weighs alike, so that a task with more finished pairs weighs more: a difference "
            "there can contradict the means over tasks."
        )
        paragraphs.append(
            "Differences in points of the mean of a task's scores, with a 95 % interval and a two-sided p. Over seeds, "
            "and over the (task, seed) cells: permutation test of paired differences, bootstrap interval; with few "
            "seeds p cannot be small (3 seeds: 0.25, 5 seeds: 0.0625 at best). One seed: McNemar's test or a paired "
            f"bootstrap over the rows of the dev set, which says nothing of other seeds.{uneven if is_uneven else ''}"
        )
    needed = [(row, baseline, pairs_for_a_point(data, row, baseline)) for row, baseline in compared]
    if said := [f"{row} and {baseline} {number:,}" for row, baseline, number in needed if number is not None]:
        paragraphs.append(
            "How many (task, seed) cells a study would need, by the spread of the differences here, to show a point "
            f"between two rows (p below 0.05, in four studies of five): {', '.join(said)}. "
            "It is rough where cells are few."
        )
    if shown := published_rows(task_order(data.tasks)):
        sources = "; ".join(f"{row.name}: {row.source}" for row in shown)
        paragraphs.append(
            "Published: dev scores as others have reported them, with their own seeds and choices, not run here "
            f"({sources}). ReptileDistil's published speed-up over BERT-base is 1.94x, the batch size is not said."
        )
    if data.problems:
        more = f" and {len(data.problems) - _MAX_PROBLEMS} more" if len(data.problems) > _MAX_PROBLEMS else ""
        paragraphs.append(f"Not in the table: {'; '.join(data.problems[:_MAX_PROBLEMS])}{more}.")
    return paragraphs


def pairs_to_compare(data: TableData) -> list[tuple[str, str]]:
    """(row, baseline): every student row with both baselines, and the baselines with each other once."""
    students = data.students
    pairs = [(row, BASELINES[0]) for row in students if row not in BASELINES and BASELINES[0] in students]
    return pairs + [(row, BASELINES[1]) for row in students if row != BASELINES[1] and BASELINES[1] in students]


def title(task: Task) -> str:
    """A task's name as tables print it."""
    return task.folder or task.name


def score_names(task: Task) -> str:
    """`F1/acc`, or `m/mm` for the two halves of MNLI."""
    columns = columns_of(task)
    if len({column.split for column in columns}) > 1:
        return "/".join(
            {"dev_matched": "m", "dev_mismatched": "mm"}.get(column.split, column.split) for column in columns
        )
    return "/".join(_SHORT[column.metric] for column in columns)


def average_name(tasks: Sequence[Task]) -> str:
    """`GLUE` is the mean over all nine tasks and nothing less."""
    names = [None if task.is_own else task.name for task in tasks]
    return "GLUE" if names == _GLUE_TASKS else f"mean of {len(tasks)} tasks"


def published_rows(tasks: Sequence[Task]) -> list[PublishedRow]:
    """The published rows with a score for one of these tasks."""
    return [row for row in PUBLISHED if any(published_scores(row, task) for task in tasks)]


def published_scores(row: PublishedRow, task: Task) -> tuple[float, ...]:
    """What the row has for the task; nothing for an own task, which has other rows, whatever it is called."""
    return () if task.is_own else tuple(row.scores.get(task.name, ()))


def describe_comparison(comparison: Comparison | None, planned: int) -> str:
    """`+1.2 [0.8, 1.9] p=0.250 n=3`, without the parts that are undefined; `n=2 of 3` where 3 pairs were planned."""
    if comparison is None:
        return "-"
    parts = [f"{comparison.difference:+z.1f}"]
    if not math.isnan(comparison.low):
        parts.append(f"[{comparison.low:z.1f}, {comparison.high:z.1f}]")
    if not math.isnan(comparison.p_value):
        parts.append(f"p={comparison.p_value:.3g}" if comparison.p_value >= 0.001 else "p<0.001")
    if comparison.test in ("seeds", "cells"):
        parts.append(_out_of(comparison.n, planned))
    elif comparison.test:
        one_of_several = f", {_out_of(1, planned)}" if planned > 1 else ""
        parts.append(f"({comparison.test}, {comparison.n} rows{one_of_several})")
    else:
        parts.append(f"{_out_of(1, planned)}, no test")
    return " ".join(parts)


_RowScores = dict[str, BySeed]
"""One score of each row, by seed."""


def _score_columns(data: TableData) -> list[list[_RowScores]]:
    """The columns of scores, each with one score or several: those of the tasks, then the mean over them."""
    columns = [
        [{row: data.scores(row, task, [column]) for row in data.rows} for column in columns_of(task)]
        for task in task_order(data.tasks)
    ]
    return [*columns, [{row: data.averages(row) for row in data.rows}]]


def _column(data: TableData, scores: Sequence[_RowScores]) -> dict[str, Cell]:
    """The cell of each row: its entry for each of the scores, the best student's bold, and n."""
    entries = {row: [summarise_scores(by_row[row]) for by_row in scores] for row in data.rows}
    best = [_best_students(data, by_row) for by_row in scores]
    cells: dict[str, Cell] = {}
    for row, of_row in entries.items():
        pieces: list[str] = []
        for index, entry in enumerate(of_row):
            pieces += [" / "] * (index > 0)
            pieces.append(_mean_and_deviation(entry, best=row in best[index]))
        cells[row] = (*pieces, f" ({_count(of_row, data.planned(row))})")
    return cells


def _best_students(data: TableData, by_row: _RowScores) -> set[str]:
    """Those of which none is better as it is printed, of the students with all their seeds; none of a single one."""
    means = {row: entry.mean for row, entry in _student_entries(data, by_row) if entry.n == data.planned(row)}
    rounded = {row: round(mean, 1) for row, mean in means.items() if mean is not None}
    return {row for row, mean in rounded.items() if len(rounded) > 1 and mean == max(rounded.values())}


def _is_one_left_out(data: TableData) -> bool:
    """Whether a student has a mean, but not of all its seeds, and so is not among those that may be the best."""
    return any(
        entry.mean is not None and entry.n != data.planned(row)
        for scores in _score_columns(data)
        for by_row in scores
        for row, entry in _student_entries(data, by_row)
    )


def _student_entries(data: TableData, by_row: _RowScores) -> list[tuple[str, Entry]]:
    return [(row, summarise_scores(by_row[row])) for row in data.students]


def _mean_and_deviation(entry: Entry, *, best: bool) -> str:
    if entry.mean is None:
        return "-"
    text = f"{entry.mean:z.1f}" if math.isnan(entry.std) else f"{entry.mean:z.1f} ± {entry.std:.1f}"
    return Bold(text) if best else text


def _count(entries: Sequence[Entry], planned: int) -> str:
    n, num_undefined = entries[0].n, max(entry.num_undefined for entry in entries)
    text = _out_of(n, planned)
    return f"{text}, {num_undefined} undefined" if num_undefined else text


def _out_of(n: int, planned: int) -> str:
    """`n=3`, or `n=2 of 3`."""
    return f"n={n}" if n == planned else f"n={n} of {planned}"


def _size(millions: float | None) -> str:
    if millions is None:
        return "-"
    return f"{millions:.1f}" if millions >= 10 else f"{millions:.2f}"


def _speedup(data: TableData, row: str, batch_size: int) -> str:
    if row == TEACHER:
        return "1.00x" if data.of_row(row) else "-"
    ratio, n = data.speedup(row, batch_size)
    return "-" if ratio is None else f"{ratio:.2f}x (n={n})"


def _published(row: PublishedRow, tasks: Sequence[Task]) -> list[Cell]:
    scores = [published_scores(row, task) for task in tasks]
    cells = [" / ".join(f"{score:.1f}" for score in of_task) or "-" for of_task in scores]
    average = row.average if average_name(tasks) == "GLUE" else "-"
    if all(len(of_task) == len(columns_of(task)) for of_task, task in zip(scores, tasks, strict=True)):
        average = f"{glue_average({task.name: row.scores[task.name] for task in tasks}):.1f}"
    return [(text,) for text in (f"{row.name} (published, dev)", *cells, average, row.parameters, "-", "-")]


def _listed(values: set[Any]) -> str:
    return ", ".join(str(value) for value in sorted(values))
