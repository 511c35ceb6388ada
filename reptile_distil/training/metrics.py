"""The scores of GLUE, and of tasks of one's own, from predictions; those of GLUE under the names that `evaluate` uses.

Fast enough for a bootstrap, which calls them thousands of times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reptile_distil.metric_names import OF_LABEL_SETS, OF_NUMBERS, OF_TWO_CLASSES

Scores = dict[str, float]
"""Metric name → score, as a fraction (accuracy 0.9, not 90). NaN where the score is undefined."""


def check_metric(metric: str) -> None:
    """Raises `ValueError` for the name of no metric."""
    known = dict.fromkeys((*OF_TWO_CLASSES, *OF_LABEL_SETS, *OF_NUMBERS))
    if metric not in known:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(known)}")


def compute_scores(predictions: ArrayLike, references: ArrayLike, metrics: Sequence[str]) -> Scores:
    """The named scores of predictions against references: class indices or numbers (N,), or sets of labels (N, C).

    A set of labels is a 0 or 1 for each label. The means over classes are those of scikit-learn: f1_macro over the
    classes that are predicted or expected, or over all labels; f1_weighted by how often each is expected; f1_micro of
    all decisions together; balanced_accuracy over the classes that are expected. A class without a decision has F1 0.

    Raises `ValueError` for unequal lengths, no rows, or a metric that is none of them (see `metric_names`).
    """
    predicted, expected = np.asarray(predictions), np.asarray(references)
    are_sets = predicted.ndim == 2 and set(metrics) <= set(OF_LABEL_SETS)
    if predicted.shape != expected.shape or not (predicted.ndim == 1 or are_sets) or not len(predicted):
        raise ValueError(
            f"predictions have shape {predicted.shape}, references {expected.shape}: expected two equal, non-empty "
            f"(N,), or (N, C) for {', '.join(OF_LABEL_SETS)}"
        )
    return {metric: _score(metric, predicted, expected) for metric in metrics}


def _score(metric: str, predicted: NDArray[Any], expected: NDArray[Any]) -> float:
    if metric == "accuracy":
        return float(np.mean(predicted == expected))
    if metric == "subset_accuracy":
        return float(np.mean((predicted == expected).reshape(len(predicted), -1).all(axis=1)))
    if metric == "balanced_accuracy":
        return float(np.mean([np.mean(predicted[expected == each] == each) for each in np.unique(expected)]))
    if metric.startswith("f1_"):
        return _mean_f1(metric.removeprefix("f1_"), predicted, expected)
    if metric == "f1":
        num_positive = np.sum(predicted == 1) + np.sum(expected == 1)
        return float(2 * np.sum((predicted == 1) & (expected == 1)) / num_positive) if num_positive else 0.0
    if metric == "matthews_correlation":
        return _matthews(predicted, expected)
    check_metric(metric)
    from scipy import stats  # not before it is needed: it takes half a second

    correlation = stats.pearsonr if metric == "pearson" else stats.spearmanr
    if len(predicted) < 2 or not (np.isfinite(predicted).all() and np.isfinite(expected).all()):
        return math.nan
    with warnings.catch_warnings():
        # A constant prediction has no correlation: the NaN says so.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(correlation(predicted, expected).statistic)


def _mean_f1(mean: str, predicted: NDArray[Any], expected: NDArray[Any]) -> float:
    """F1 = 2 TP / (2 TP + FP + FN) of each class or label: their plain or weighted mean, or that of all together."""
    if predicted.ndim == 1:
        classes = np.unique(np.concatenate([predicted, expected]))
        predicted, expected = predicted[:, None] == classes, expected[:, None] == classes
    said, true = predicted.astype(bool), expected.astype(bool)
    hits, decisions = (said & true).sum(axis=0), said.sum(axis=0) + true.sum(axis=0)
    if mean == "micro":
        hits, decisions = hits.sum(keepdims=True), decisions.sum(keepdims=True)
    scores = np.divide(2.0 * hits, decisions, out=np.zeros(len(hits)), where=decisions > 0)
    weights = true.sum(axis=0) if mean == "weighted" else np.ones(len(hits))
    return float(scores @ weights / weights.sum()) if weights.sum() else 0.0


def _matthews(predicted: NDArray[Any], expected: NDArray[Any]) -> float:
    """Gorodkin's K-class coefficient: the correlation of one-hot predictions and labels; 0 for a single class."""
    n, classes = len(expected), np.unique(np.concatenate([predicted, expected]))
    said, true = (np.array([np.sum(values == each) for each in classes], float) for values in (predicted, expected))
    size = math.sqrt((n * n - said @ said) * (n * n - true @ true))
    return float(n * np.sum(predicted == expected) - said @ true) / size if size else 0.0


def selection_score(scores: Mapping[str, float]) -> float:
    """What chooses the best epoch: the mean of the scores; minus infinity where one of them is undefined."""
    mean = sum(scores.values()) / len(scores)
    return mean if math.isfinite(mean) else -math.inf


def chance_scores(references: ArrayLike, metrics: Sequence[str]) -> Scores:
    """The named scores of whoever says the most frequent class for every row; a correlation with that counts as 0.

    For sets of labels (N, C), of whoever says each label where more than half of the rows have it.
    """
    expected = np.asarray(references)
    if expected.ndim == 2:
        constant = np.broadcast_to(expected.mean(axis=0) > 0.5, expected.shape).astype(expected.dtype)
    else:
        values, counts = np.unique(expected, return_counts=True)
        constant = np.full(len(expected), values[counts.argmax()])
    scores = compute_scores(constant, expected, metrics)
    return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


def predictions_from_logits(logits: NDArray[Any], *, multi_label: bool = False) -> NDArray[Any]:
    """Class indices (N,) from logits (N, C > 1); the numbers themselves from (N, 1).

    For a multi-label task a 0 or 1 (N, C) for each label: 1 where its probability is above a half, its logit above 0.
    """
    if multi_label:
        return (logits > 0).astype(np.int64)
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)
