"""A table's sheets as Markdown and LaTeX, its numbers as CSV, and the files."""

from __future__ import annotations

import csv
import io
import math
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reptile_distil.comparisons import Comparison, compare, compare_over_tasks
from reptile_distil.errors import RunError
from reptile_distil.glue_table import (
    BASELINES,
    Bold,
    Cell,
    Sheet,
    difference_sheet,
    notes,
    pairs_to_compare,
    published_rows,
    score_sheet,
    task_order,
)
from reptile_distil.models.cost import BATCH_SIZES
from reptile_distil.table_data import BySeed, TableData, columns_of, summarise_scores
from reptile_distil.table_epochs import to_epochs_csv


def write_table(data: TableData, output: Path) -> str:
    """Writes OUTPUT.md, OUTPUT.tex, OUTPUT.csv and OUTPUT-epochs.csv, each whole or not at all; returns the Markdown.

    Raises `RunError` where they cannot be written, or a run's metrics cannot be read.
    """
    sheets = [sheet for sheet in (score_sheet(data), difference_sheet(data)) if sheet is not None]
    markdown = to_markdown(sheets, notes(data))
    files = {".md": markdown, ".tex": to_latex(sheets, notes(data)), ".csv": to_csv(data)}
    for suffix, text in (*files.items(), ("-epochs.csv", to_epochs_csv(data))):
        path = output.with_name(output.name + suffix)
        # Several workers may be done at the same moment, each with a file of its own.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from None
    return markdown


def to_markdown(sheets: Sequence[Sheet], paragraphs: Sequence[str]) -> str:
    """The sheets, aligned for the terminal, and the notes below them."""
    blocks = []
    for sheet in sheets:
        rows = [sheet.header, *([_markdown(cell) for cell in row] for group in sheet.groups for row in group)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(sheet.header))]
        lines = [
            "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |" for row in rows
        ]
        rule = "|" + "-" * (widths[0] + 2) + "|" + "".join("-" * (width + 1) + ":|" for width in widths[1:])
        blocks.append("\n".join([lines[0], rule, *lines[1:]]))
    return "\n\n".join([*blocks, *paragraphs]) + "\n"


def to_latex(sheets: Sequence[Sheet], paragraphs: Sequence[str]) -> str:
    """A `table*` to be taken into a paper, with the rules of the package booktabs, and the notes below."""
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table*}", r"\centering\scriptsize"]
    for sheet in sheets:
        lines += [rf"\begin{{tabular}}{{l{'r' * (len(sheet.header) - 1)}}}", r"\toprule"]
        lines.append(_latex_row([(text,) for text in sheet.header]))
        for group in sheet.groups:
            lines += [r"\midrule", *map(_latex_row, group)]
        lines += [r"\bottomrule", r"\end{tabular}", r"\par\medskip"]
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
            scores, columns = row.scores.get(task.name, ()), columns_of(task)
            # One number for a task of two scores: which one, or their mean, is not said.
            named = [("", "published")] if len(scores) < len(columns) else [tuple(column) for column in columns]
            for (split, metric), score in zip(named, scores, strict=False):
                line = {"method": row.name, "source": f"published: {row.source}", "task": task.name}
                yield {**line, "split": split, "metric": metric, "mean": score}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:z.4f}".rstrip("0").rstrip(".")
    return "" if value is None else value


def _markdown(cell: Cell) -> str:
    return "".join(f"**{piece}**" if isinstance(piece, Bold) else piece for piece in cell)


def _latex_row(row: Sequence[Cell]) -> str:
    texts = []
    for cell in row:
        escaped = [(escape_latex(piece), isinstance(piece, Bold)) for piece in cell]
        texts.append("".join(rf"\textbf{{{text}}}" if bold else text for text, bold in escaped))
    return " & ".join(texts) + r" \\"


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "±": r"$\pm$",
    **{char: "\\" + char for char in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """`text` so that LaTeX prints it, with a minus before a number."""
    if text == "-":
        return "--"
    escaped = "".join(_LATEX.get(char, char) for char in text)
    return re.sub(r"(?<![\w.-])-(?=[\d.])", "$-$", escaped).replace(" - ", " $-$ ")
