"""Results as text and HTML, tables that compare runs, and predictions with the names of their labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reptile_distil.data.tasks import Task
from reptile_distil.errors import RunError
from reptile_distil.runs.records import Results, as_results
from reptile_distil.runtime.text_tables import html_table, list_scores, markdown_table, percent, plain_table
from reptile_distil.training.metrics import Scores, predictions_from_logits, selection_score

Rows = list[tuple[str, ...]]
_MOST_ROWS = 10
"""Rows of a split that a notebook shows."""


class RunResults(dict[str, Any]):
    """A run's results: the dict that results.json holds, shown as a table of what matters most.

    One that was changed, so that it is no run's results any more, is shown as any dict is.
    """

    def __repr__(self) -> str:
        try:
            results = as_results(self)
        except RunError:
            return super().__repr__()
        tables = [plain_table(_score_rows(results)), plain_table(_fact_rows(results))]
        return "\n".join([_title(results), *tables, f"dict of {', '.join(self)}"])

    def _repr_html_(self) -> str | None:
        try:
            results = as_results(self)
        except RunError:
            return None  # a notebook then shows the text
        scores, facts = _score_rows(results), _fact_rows(results)
        return html_table(scores, title=_title(results), has_header=True) + html_table(facts)


def weak_teacher(
    scores: Mapping[str, Scores],
    *,
    chance: Mapping[str, Scores] | None = None,
    one_class: Collection[str] = (),
    student: Mapping[str, Scores] | None = None,
) -> list[str]:
    """What is wrong with a teacher of these scores, by split: a sentence each, without its full stop.

    It says one class for every row (on the splits `one_class`), or is no better than whoever says the most frequent one
    (`chance`), or is below its `student`. Looked at is the first split, whose scores also choose the best epoch.
    """
    split, own = next(iter(scores.items()))
    said = f"on {split} the teacher ({list_scores(own)})"
    weak = []
    if split in one_class:
        weak.append(f"{said} says the same for every row: that a student agrees with it means nothing")
    elif chance is not None and split in chance and selection_score(own) <= selection_score(chance[split]):
        frequent = list_scores(chance[split])
        weak.append(f"{said} is no better than saying the most frequent class for every row ({frequent})")
    if student is not None and split in student and selection_score(own) < selection_score(student[split]):
        weak.append(f"{said} is below its student ({list_scores(student[split])}), which has outgrown it")
    return weak


def split_predictions_html(
    predictions: Sequence[Any], labels: Sequence[object] | None, scores: Mapping[str, float | None] | None
) -> str:
    """HTML tables of a model's scores on a split, and of its first rows: prediction, probability and label."""
    rows: Rows = [("row", "prediction", "probability", *(() if labels is None else ("label",)))]
    for index, prediction in enumerate(predictions[:_MOST_ROWS]):
        probability = prediction.probabilities.get(prediction.label)
        cells = (str(index), _cell(prediction.label), "-" if probability is None else f"{probability:.3f}")
        rows.append(cells if labels is None else (*cells, _cell(labels[index])))
    left_out = len(predictions) - len(rows) + 1
    rest = f"<p>and {left_out:,} more rows</p>" if left_out else ""
    by_name: Rows = [(f"{name} (%)", percent(score, 2)) for name, score in (scores or {}).items()]
    return html_table(by_name, title=f"{len(predictions):,} rows") + html_table(rows, has_header=True) + rest


def _title(results: Results) -> str:
    return f"{results.method} on {results.task}, seed {results.seed}"


def _score_rows(results: Results) -> Rows:
    """One row for each score, the teacher's beside the student's; a header first."""
    columns: dict[str, Mapping[str, Scores]] = {"score": results.scores}
    if results.teacher is not None:
        columns = {
            "student": results.scores,
            "teacher at start": results.teacher.scores_at_start,
            "teacher at end": results.teacher.scores_at_end,
        }
    rows: Rows = [("", *columns)]
    for split, scores in results.scores.items():
        for name in scores:
            values = (percent(of.get(split, {}).get(name), 2) for of in columns.values())
            rows.append((f"{split} {name} (%)", *values))
    return rows


def _fact_rows(results: Results) -> Rows:
    rows: Rows = [
        ("best epoch", f"{results.best_epoch}"),
        ("steps", f"{results.num_steps:,}"),
        ("training rows", f"{results.num_train_rows:,}"),
        *([("rows without labels", f"{results.num_transfer_rows:,}")] if results.num_transfer_rows else []),
        ("parameters", f"{results.num_parameters:,}"),
        ("seconds of training", f"{results.train_seconds:.1f}"),
        ("examples a second", f"{results.examples_per_second:,.0f}"),
    ]
    return rows if results.stopped_by is None else [*rows, ("stopped by", results.stopped_by)]


def _cell(value: object) -> str:
    """A class name; a number, for regression, to three places."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


PREDICTION_FILES = (".tsv", ".csv", ".jsonl")
"""Ends of names of the files that predictions are written to."""


def _joined(label: object, separator: str) -> object:
    """A label as one text or number: several with the separator between them."""
    return separator.join(label) if isinstance(label, tuple) else label


class Prediction(NamedTuple):
    """A model's prediction for one text or pair of texts."""

    label: str | float | tuple[str, ...]
    """Name of the most probable class; the number itself for regression; for a multi-label task the names of the labels
    whose probability is above a half."""
    probabilities: dict[str, float]
    """Probability by class name; empty for regression. Those of a multi-label task do not add up to 1."""


class SplitPredictions(NamedTuple):
    """A model's predictions and scores on a split; `labels` and `scores` are None for a split without labels."""

    predictions: list[Prediction]
    labels: list[Any] | None
    scores: Scores | None
    separator: str = ","
    """What stands between the labels of a row that are one text in a TSV or CSV: the task's `label_separator`."""

    def to_text(self, kind: str) -> str:
        """The content of a file of this kind, one of `PREDICTION_FILES`."""
        return {".csv": self.to_csv, ".jsonl": self.to_jsonl}.get(kind, self.to_tsv)()

    def to_tsv(self) -> str:
        """A TSV of index, prediction, its probability (empty for regression) and label (empty where unknown)."""
        rows: list[tuple[Any, ...]] = [("index", "prediction", "probability", "label")]
        for index, prediction in enumerate(self.predictions):
            probability = prediction.probabilities.get(str(prediction.label), "")
            rows.append((index, _joined(prediction.label, self.separator), probability, self._label_text(index)))
        return "".join("\t".join(map(str, row)) + "\n" for row in rows)

    def to_csv(self) -> str:
        """A CSV of index, prediction, label (empty where unknown) and the probability of each class by its name."""
        names = list(self.predictions[0].probabilities) if self.predictions else []
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["index", "prediction", "label", *(f"probability_{name}" for name in names)])
        for index, (label, probabilities) in enumerate(self.predictions):
            writer.writerow([index, _joined(label, self.separator), self._label_text(index), *probabilities.values()])
        return text.getvalue()

    def to_jsonl(self) -> str:
        """A JSON object a line: index, prediction, label (null where unknown) and probabilities by class name."""
        return "".join(
            json.dumps(
                {
                    "index": index,
                    "prediction": label,
                    "label": None if self.labels is None else self.labels[index],
                    "probabilities": probabilities,
                },
                ensure_ascii=False,
            )
            + "\n"
            for index, (label, probabilities) in enumerate(self.predictions)
        )

    def _label_text(self, index: int) -> object:
        return "" if self.labels is None else _joined(self.labels[index], self.separator)

    def __repr__(self) -> str:
        scores = "no labels" if self.scores is None else list_scores(self.scores)
        return f"SplitPredictions({len(self.predictions):,} rows: {scores})"

    def _repr_html_(self) -> str:
        return split_predictions_html(self.predictions, self.labels, self.scores)


def name_predictions(logits: NDArray[np.float32], task: Task) -> list[Prediction]:
    """The predictions of logits (N, C), with the names of the task's classes."""
    if task.is_regression:
        return [Prediction(float(number), {}) for number in predictions_from_logits(logits)]
    if task.multi_label:
        probabilities = torch.from_numpy(logits).sigmoid().tolist()
        chosen = predictions_from_logits(logits, multi_label=True)
        named = [dict(zip(task.label_names, row, strict=True)) for row in probabilities]
        return [Prediction(name_label(labels, task), row) for labels, row in zip(chosen, named, strict=True)]
    probabilities = torch.from_numpy(logits).softmax(dim=1).tolist()
    named = [dict(zip(task.label_names, row, strict=True)) for row in probabilities]
    return [Prediction(max(row, key=row.__getitem__), row) for row in named]


def name_label(label: Any, task: Task) -> Any:
    """The name of a class index, a regression task's number itself, or the names that a multi-label row (C,) has."""
    if task.multi_label:
        return tuple(name for name, has in zip(task.label_names, label, strict=True) if has)
    return float(label) if task.is_regression else task.label_names[int(label)]


_SHORT = {"matthews_correlation": "MCC", "teacher at end": "teacher", "best epoch": "epoch", "examples/s": "ex/s"}


def comparison_table(results: Sequence[Results | Mapping[str, Any]], *, width: int | None = None) -> str:
    """A Markdown table, aligned for the terminal: one row a run, scores in percent, sizes, times.

    `results` are records, or the contents of results.json files. `teacher at end` is the teacher's own score after the
    run, which only methods that move their teacher change, on the first split of the table. A score that is undefined
    is `-`.
    Where the table is wider than `width` columns, its headings are shortened; where that is not enough, columns are
    left out, the last one first, but never scores.
    """
    records = list(map(as_results, results))
    columns = _columns(records)
    table = _draw(columns)
    if width is None or _width(table) <= width:
        return table
    scores = _score_names(records[0])
    splits = {name.partition(" ")[0] for name in scores}
    # Where there is only one dev split, its name says nothing.
    dropped = f"{splits.pop()} " if len(splits) == 1 else ""
    plain = {name.removeprefix(dropped): cells for name, cells in columns.items()}
    short = {_SHORT.get(name, name): cells for name, cells in plain.items()}
    while _width(_draw(short)) > width and len(short) > 1 + len(scores):
        short.popitem()
    return _draw(short)


def _columns(results: Sequence[Results]) -> dict[str, list[str]]:
    """The cells of each column, by heading."""
    scores = [[percent(score) for scores in result.scores.values() for score in scores.values()] for result in results]
    return {
        "run": [result.method for result in results],
        **{name: [row[number] for row in scores] for number, name in enumerate(_score_names(results[0]))},
        "teacher at end": [_teacher_score(result) for result in results],
        "parameters": [f"{result.num_parameters:,}" for result in results],
        "best epoch": [str(result.best_epoch) for result in results],
        "train s": [f"{result.train_seconds:.1f}" for result in results],
        "examples/s": [f"{result.examples_per_second:,.0f}" for result in results],
    }


def _draw(columns: Mapping[str, Sequence[str]]) -> str:
    return markdown_table(list(columns), list(zip(*columns.values(), strict=True)))


def _width(table: str) -> int:
    return len(table.partition("\n")[0])


def _score_names(result: Results) -> list[str]:
    return [f"{split} {name}" for split, scores in result.scores.items() for name in scores]


def _teacher_score(result: Results) -> str:
    if result.teacher is None:
        return "-"
    first = next(iter(result.teacher.scores_at_end.values()))
    return " / ".join(percent(score) for score in first.values())
