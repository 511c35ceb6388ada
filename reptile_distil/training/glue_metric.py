"""The scores of GLUE as a metric of the library `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
from numpy.typing import ArrayLike

from reptile_distil.metric_names import OF_LABEL_SETS
from reptile_distil.training.metrics import Scores, check_metric, compute_scores


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """GLUE's scores as an `evaluate.Metric`, built without any network.

    `metrics` are names as in `compute_scores`, or one of them; those of sets of labels take rows (N, C), too. Raises
    `ValueError` for another name.

    >>> GlueMetric(["accuracy"]).compute(predictions=[1, 0, 1], references=[1, 0, 0])["accuracy"]
    0.6666666666666666
    """

    def __init__(self, metrics: str | Sequence[str], **options: Any) -> None:
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        for metric in self.metrics:
            check_metric(metric)
        options.setdefault("keep_in_memory", True)
        super().__init__(config_name="-".join(self.metrics), **options)

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if {"pearson", "spearmanr"} & set(self.metrics) else "int64"
        value = datasets.Value(kind)
        # `evaluate` takes the first kind that the first row is of. Where no set can be, there is no choice.
        kinds = [datasets.List(value), value] if set(self.metrics) <= set(OF_LABEL_SETS) else [value]
        features = [datasets.Features({"predictions": each, "references": each}) for each in kinds]
        return evaluate.MetricInfo(
            description="Scores of the GLUE benchmark.",
            citation="Wang et al.: GLUE, a multi-task benchmark for natural language understanding. ICLR 2019.",
            inputs_description="predictions and references: class indices, numbers, or a 0 or 1 for each label.",
            features=features if len(features) > 1 else features[0],
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> Scores:
        return compute_scores(predictions, references, self.metrics)
