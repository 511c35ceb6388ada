"""What a model says of texts: labels by name, with their probabilities, and of a whole split."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reptile_distil.data.tasks import Task
from reptile_distil.display import describe_scores, examination_html
from reptile_distil.training.metrics import Scores, predictions_from_logits


class Prediction(NamedTuple):
    """What a model says of one text or pair of texts."""

    label: str | float
    """Name of the most probable class; the number itself for regression."""
    probabilities: dict[str, float]
    """Probability by class name; empty for regression."""


class Examination(NamedTuple):
    """A model on a split, row by row and as a whole; `labels` and `scores` are None for a split without labels."""

    predictions: list[Prediction]
    labels: list[str | float] | None
    scores: Scores | None

    def to_tsv(self) -> str:
        """Lines of index, prediction, its probability (empty for regression) and label (empty where unknown)."""
        rows: list[tuple[Any, ...]] = [("index", "prediction", "probability", "label")]
        for index, prediction in enumerate(self.predictions):
            probability = prediction.probabilities.get(str(prediction.label), "")
            rows.append((index, prediction.label, probability, "" if self.labels is None else self.labels[index]))
        return "".join("\t".join(map(str, row)) + "\n" for row in rows)

    def __repr__(self) -> str:
        scores = "no labels" if self.scores is None else describe_scores(self.scores)
        return f"Examination({len(self.predictions):,} rows: {scores})"

    def _repr_html_(self) -> str:
        return examination_html(*self)


def name_predictions(logits: NDArray[np.float32], task: Task) -> list[Prediction]:
    """What logits (N, C) of a task's rows say, by the names of its classes."""
    if task.is_regression:
        return [Prediction(float(number), {}) for number in predictions_from_logits(logits)]
    probabilities = torch.from_numpy(logits).softmax(dim=1).tolist()
    named = [dict(zip(task.label_names, row, strict=True)) for row in probabilities]
    return [Prediction(max(row, key=row.__getitem__), row) for row in named]


def name_label(label: float, task: Task) -> str | float:
    """The name of a class index, or a regression task's number itself."""
    return float(label) if task.is_regression else task.label_names[int(label)]
