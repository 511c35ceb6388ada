"""What results look like at a prompt and in a notebook: a few lines, a small table, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Rows = list[tuple[str, ...]]

_MOST_ROWS = 10
"""Of a split that are shown."""

_FACTS = {
    "best_epoch": ("best epoch", "{:d}"),
    "num_steps": ("steps", "{:,d}"),
    "num_train_rows": ("training rows", "{:,d}"),
    "num_parameters": ("parameters", "{:,d}"),
    "train_seconds": ("seconds of training", "{:.1f}"),
    "examples_per_second": ("examples a second", "{:,.0f}"),
    "stopped_by": ("stopped by", "{}"),
}
"""Of a run's results: key, what it is called, how it is written."""


class RunResults(dict[str, Any]):
    """A run's results: the dict that results.json holds, shown as a table of what matters most."""

    def __repr__(self) -> str:
        tables = [_score_rows(self), _fact_rows(self)]
        return "\n".join([_title(self), *map(to_text, filter(None, tables)), f"dict of {', '.join(self)}"])

    def _repr_html_(self) -> str:
        scores, facts = _score_rows(self), _fact_rows(self)
        return to_html(scores, title=_title(self), has_header=True) + to_html(facts)


def to_text(rows: Rows) -> str:
    """Rows of cells as aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)


def to_html(rows: Rows, *, title: str = "", has_header: bool = False) -> str:
    """Rows of cells as an HTML table, whatever the cells hold: the first column to the left, the others to the right.

    Empty without rows, but for the title.
    """
    head = f"<p><b>{escape(title)}</b></p>" if title else ""
    if not rows:
        return head
    lines = []
    for number, row in enumerate(rows):
        tag = "th" if has_header and number == 0 else "td"
        sides = ["left", *["right"] * (len(row) - 1)]
        cells = (
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, row, strict=True)
        )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"{head}<table>{''.join(lines)}</table>"


def describe_scores(scores: Mapping[str, float | None]) -> str:
    """Scores by name in one line; an undefined one is `-`."""
    return ", ".join(f"{name} {_number(score)}" for name, score in scores.items())


def examination_html(
    predictions: Sequence[Any], labels: Sequence[object] | None, scores: Mapping[str, float | None] | None
) -> str:
    """The scores of a model on a split, and its first rows: each with a `label` and `probabilities` by class name."""
    rows: Rows = [("row", "prediction", "probability", *(() if labels is None else ("label",)))]
    for index, prediction in enumerate(predictions[:_MOST_ROWS]):
        probability = prediction.probabilities.get(prediction.label)
        cells = (str(index), _cell(prediction.label), "-" if probability is None else f"{probability:.3f}")
        rows.append(cells if labels is None else (*cells, _cell(labels[index])))
    left_out = len(predictions) - len(rows) + 1
    rest = f"<p>and {left_out:,} more rows</p>" if left_out else ""
    by_name: Rows = [(name, _number(score)) for name, score in (scores or {}).items()]
    return to_html(by_name, title=f"{len(predictions):,} rows") + to_html(rows, has_header=True) + rest


def _title(results: Mapping[str, Any]) -> str:
    return f"{results.get('method', 'a run')} on {results.get('task', '?')}, seed {results.get('seed', '?')}"


def _score_rows(results: Mapping[str, Any]) -> Rows:
    """One row for each score, the teacher's beside the student's; a header first."""
    teacher = results.get("teacher") or {}
    columns = {"score": results.get("scores") or {}}
    if teacher:
        columns = {
            "student": columns["score"],
            "teacher at start": teacher.get("scores_at_start") or {},
            "teacher at end": teacher.get("scores_at_end") or {},
        }
    rows: Rows = [("", *columns)]
    first = next(iter(columns.values()))
    for split, scores in first.items():
        for name in scores:
            rows.append((f"{split} {name}", *(_number(of.get(split, {}).get(name)) for of in columns.values())))
    return rows if len(rows) > 1 else []


def _fact_rows(results: Mapping[str, Any]) -> Rows:
    return [(name, form.format(results[key])) for key, (name, form) in _FACTS.items() if key in results]


def _cell(value: object) -> str:
    """A class name; a number, for regression, to three places."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _number(score: float | None) -> str:
    return "-" if score is None or score != score else f"{score:.4f}"
