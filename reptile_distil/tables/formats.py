"""The table as Markdown, LaTeX and CSV, and a CSV of every epoch's scores."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reptile_distil.errors import RunError
from reptile_distil.models.cost import BATCH_SIZES
from reptile_distil.runs.records import Results
from reptile_distil.runtime.files import make_folder, write_text
from reptile_distil.runtime.text_tables import escape_latex, latex_table, markdown_table, terminal_table
from reptile_distil.tables.comparisons import Comparison, compare, compare_over_tasks
from reptile_distil.tables.data import BySeed, TableData, columns_of, summarise_scores
from reptile_distil.tables.sheets import (
    BASELINES,
    Sheet,
    difference_sheet,
    notes,
    pairs_to_compare,
    published_rows,
    published_scores,
    score_sheet,
    task_order,
)
from reptile_distil.training.metrics import Scores
from reptile_distil.training.records import EpochRecord


def write_table(data: TableData, output: Path) -> str:
    """Writes OUTPUT.md, OUTPUT.tex, OUTPUT.csv and OUTPUT-epochs.csv, each whole or not at all; returns the Markdown.

    Raises `RunError` where they cannot be written.
    """
    sheets = _sheets(data)
    markdown = to_markdown(sheets, notes(data))
    files = {".md": markdown, ".tex": to_latex(sheets, notes(data)), ".csv": to_csv(data)}
    for suffix, text in (*files.items(), ("-epochs.csv", to_epochs_csv(data))):
        path = output.with_name(output.name + suffix)
        try:
            make_folder(path.parent)
            write_text(path, text, shared=True)  # several workers may be done at the same moment
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from None
    return markdown


def to_markdown(sheets: Sequence[Sheet], paragraphs: Sequence[str]) -> str:
    """The sheets, aligned for the terminal, and the notes below them."""
    blocks = [markdown_table(sheet.header, [row for group in sheet.groups for row in group]) for sheet in sheets]
    return "\n\n".join([*blocks, *paragraphs]) + "\n"


def to_terminal(data: TableData, *, width: int) -> str:
    """The table for a terminal of so many columns: as Markdown, wide tables in parts, and the notes in short lines."""
    tables = [
        terminal_table(sheet.header, [row for group in sheet.groups for row in group], width=width)
        for sheet in _sheets(data)
    ]
    paragraphs = [textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) for text in notes(data)]
    return "\n\n".join([*tables, *paragraphs]) + "\n"


def _sheets(data: TableData) -> list[Sheet]:
    return [sheet for sheet in (score_sheet(data), difference_sheet(data)) if sheet is not None]


def to_latex(sheets: Sequence[Sheet], paragraphs: Sequence[str]) -> str:
    """A `table*` with the rules of the package booktabs, to be included in a paper, and the notes below."""
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table*}", r"\centering\scriptsize"]
    for sheet in sheets:
        lines += [latex_table(sheet.header, sheet.groups), r"\par\medskip"]
    lines += [rf"\parbox{{\textwidth}}{{{escape_latex(text)}}}\par" for text in paragraphs]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def to_csv(data: TableData) -> str:
    """One line per row of the table, task and metric; scores and differences in percent, empty where undefined."""
    fields = ["method", "source", "task", "split", "metric", "n", "planned", "undefined", "mean", "std"]
    fields += [f"{name}_{baseline}" for baseline in BASELINES for name in _COMPARED]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fields, lineterminator="\n")
    writer.writeheader()
    for line in (*_lines(data), *_published_lines(data)):
        writer.writerow({name: _plain(value) for name, value in line.items()})
    return stream.getvalue()


_COMPARED = ("delta", "low", "high", "p", "pairs", "test")


def _lines(data: TableData) -> Iterator[dict[str, Any]]:
    for row in data.rows:
        for task in task_order(data.tasks):
            columns = columns_of(task)
            wanted = [(column.split, column.metric, [column]) for column in columns]
            wanted += [("", "mean", columns)] if len(columns) > 1 else []
            for split, metric, chosen in wanted:
                compared = {
                    baseline: compare(data, row, baseline, task=task, columns=chosen)
                    for baseline in _baselines(data, row)
                }
                scores = data.scores(row, task, chosen)
                yield _line(data, row, scores, compared) | {"task": task.name, "split": split, "metric": metric}
        compared = {baseline: compare_over_tasks(data, row, baseline) for baseline in _baselines(data, row)}
        yield _line(data, row, data.averages(row), compared) | {"task": "all", "metric": "mean"}
        own = {"method": row, "source": "run", "task": "all"}
        yield {**own, "metric": "million_parameters", "mean": data.parameters(row)}
        for size in BATCH_SIZES:
            ratio, n = data.speedup(row, size)
            yield {**own, "metric": f"speedup_batch_{size}", "n": n, "mean": ratio}


def _baselines(data: TableData, row: str) -> list[str]:
    return [baseline for at, baseline in pairs_to_compare(data) if at == row]


def _line(data: TableData, row: str, scores: BySeed, compared: Mapping[str, Comparison | None]) -> dict[str, Any]:
    entry = summarise_scores(scores)
    line = {"method": row, "source": "run", "n": entry.n, "planned": data.planned(row)}
    line |= {"undefined": entry.num_undefined, "mean": entry.mean, "std": entry.std}
    for baseline, comparison in compared.items():
        if comparison is not None:
            line |= {f"{name}_{baseline}": value for name, value in zip(_COMPARED, comparison, strict=True)}
    return line


def _published_lines(data: TableData) -> Iterator[dict[str, Any]]:
    tasks = task_order(data.tasks)
    for row in published_rows(tasks):
        for task in tasks:
            scores, columns = published_scores(row, task), columns_of(task)
            # One number for a task of two scores: which one, or their mean, is not said.
            named = [("", "published")] if len(scores) < len(columns) else [tuple(column) for column in columns]
            for (split, metric), score in zip(named[: len(scores)], scores, strict=True):
                line = {"method": row.name, "source": f"published: {row.source}", "task": task.name}
                yield {**line, "split": split, "metric": metric, "mean": score}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:z.4f}".rstrip("0").rstrip(".")
    return "" if value is None else value


FIELDS = ("task", "method", "seed", "epoch", "step", "train_seconds", "model", "split", "metric", "value")
_EpochLine = dict[str, Any]


def to_epochs_csv(data: TableData) -> str:
    """One line per run, epoch, model and score.

    `value` is a fraction, as in results.json, and empty where it is undefined. Epoch 0 is the teacher before the first
    step. A split that is looked at only at the end of a run, because validation rows chose the epoch, has one line for
    the student, at its chosen epoch, and two for the teacher. Lines without a model are of both: `agreement`, `gap`,
    `teacher_drift`; `chosen` is 1 at the epoch whose student was kept. A run whose metrics.jsonl is gone or
    damaged has its final scores alone, without an epoch.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, FIELDS, lineterminator="\n")
    writer.writeheader()
    for (task, row, seed), results in data.runs.items():
        for line in _epoch_lines(results, data.epochs.get((task, row, seed), ())):
            writer.writerow({"task": task, "method": row, "seed": seed, **line, "value": _epoch_value(line["value"])})
    return stream.getvalue()


def _epoch_lines(results: Results, epochs: Sequence[EpochRecord]) -> Iterator[_EpochLine]:
    if not epochs:
        yield from _score_lines({"epoch": "", "step": "", "train_seconds": ""}, "student", results.scores)
        return
    watched, teacher = set(epochs[0].scores), results.teacher
    at_start: _EpochLine = {"epoch": 0, "step": 0, "train_seconds": "0.0"}
    if teacher is not None:
        yield from _score_lines(at_start, "teacher", teacher.scores_at_start)
    for record in epochs:
        at = {"epoch": record.epoch, "step": record.step, "train_seconds": f"{record.train_seconds:.1f}"}
        is_chosen = record.epoch == results.best_epoch
        yield from _score_lines(at, "student", record.scores)
        if is_chosen:
            yield from _score_lines(at, "student", _without(results.scores, watched))
        if teacher is not None and record.teacher_scores is not None:
            yield from _score_lines(at, "teacher", record.teacher_scores)
            if record is epochs[-1]:
                yield from _score_lines(at, "teacher", _without(teacher.scores_at_end, watched))
        both = {"agreement": record.agreement, "gap": record.last_gap, "teacher_drift": record.teacher_drift}
        for name, value in both.items():
            if value is not None and not math.isnan(value):
                yield _epoch_line(at, metric=name, value=value)
        yield _epoch_line(at, metric="chosen", value=float(is_chosen))


def _score_lines(at: _EpochLine, model: str, scores: Mapping[str, Scores]) -> Iterator[_EpochLine]:
    for split, by_metric in scores.items():
        for metric, value in by_metric.items():
            yield _epoch_line(at, model=model, split=split, metric=metric, value=value)


def _epoch_line(at: _EpochLine, *, metric: str, value: float | None, model: str = "", split: str = "") -> _EpochLine:
    return {**at, "model": model, "split": split, "metric": metric, "value": value}


def _without(scores: Mapping[str, Scores], splits: set[str]) -> dict[str, Scores]:
    return {split: by_metric for split, by_metric in scores.items() if split not in splits}


def _epoch_value(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"
