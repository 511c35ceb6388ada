"""The scores of GLUE from predictions, under the names that `evaluate` uses.

Fast enough for a bootstrap, which calls them thousands of times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = dict[str, float]
"""Metric name → score, as a fraction (accuracy 0.9, not 90). NaN where the score is undefined."""


def compute_scores(predictions: ArrayLike, references: ArrayLike, metrics: Sequence[str]) -> Scores:
    """The named scores of predictions (N,) against references (N,): class indices, or numbers for regression.

    Raises `ValueError` for unequal lengths, no rows, or a metric that is not one of accuracy, f1 (of class 1),
    matthews_correlation, pearson and spearmanr.
    """
    predicted, expected = np.asarray(predictions), np.asarray(references)
    if predicted.shape != expected.shape or predicted.ndim != 1 or not len(predicted):
        raise ValueError(
            f"predictions have shape {predicted.shape}, references {expected.shape}: expected two equal, non-empty (N,)"
        )
    return {metric: _score(metric, predicted, expected) for metric in metrics}


def _score(metric: str, predicted: NDArray[Any], expected: NDArray[Any]) -> float:
    if metric == "accuracy":
        return float(np.mean(predicted == expected))
    if metric == "f1":
        num_positive = np.sum(predicted == 1) + np.sum(expected == 1)
        return float(2 * np.sum((predicted == 1) & (expected == 1)) / num_positive) if num_positive else 0.0
    if metric == "matthews_correlation":
        return _matthews(predicted, expected)
    if metric not in ("pearson", "spearmanr"):
        raise ValueError(f"metric {metric!r}: expected accuracy, f1, matthews_correlation, pearson or spearmanr")
    from scipy import stats  # not before it is needed: it takes half a second

    correlation = stats.pearsonr if metric == "pearson" else stats.spearmanr
    if len(predicted) < 2 or not (np.isfinite(predicted).all() and np.isfinite(expected).all()):
        return math.nan
    with warnings.catch_warnings():
        # A constant prediction has no correlation: the NaN says so.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(correlation(predicted, expected).statistic)


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
    """The named scores of whoever says the most frequent class for every row; a correlation with that counts as 0."""
    expected = np.asarray(references)
    values, counts = np.unique(expected, return_counts=True)
    scores = compute_scores(np.full(len(expected), values[counts.argmax()]), expected, metrics)
    return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


def predictions_from_logits(logits: NDArray[Any]) -> NDArray[Any]:
    """Class indices (N,) from logits (N, C > 1); the numbers themselves from (N, 1)."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)
