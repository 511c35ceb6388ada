"""Which scores and names a kind of task has: what the configuration and the tasks share; neither imports the other."""

from __future__ import annotations

from collections.abc import Sequence

from reptile_distil.errors import did_you_mean

OF_CLASSES = ("accuracy", "balanced_accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews_correlation")
OF_TWO_CLASSES = (*OF_CLASSES, "f1")
OF_LABEL_SETS = ("f1_macro", "f1_micro", "f1_weighted", "subset_accuracy")
OF_NUMBERS = ("pearson", "spearmanr")


def fault_in_metrics(metrics: Sequence[str], *, num_labels: int, multi_label: bool) -> str | None:
    """What is wrong with the metrics of a task with so many label names (0: regression); None where nothing is."""
    allowed: tuple[str, ...]
    if multi_label:
        kind, allowed = "a multi-label task", OF_LABEL_SETS
    elif not num_labels:
        kind, allowed = "a regression task, which a task without label names is", OF_NUMBERS
    else:
        kind, allowed = f"a task with {num_labels} classes", OF_TWO_CLASSES if num_labels == 2 else OF_CLASSES
    wrong = next((metric for metric in metrics if metric not in allowed), None)
    if wrong is None:
        return None
    return f"{wrong} is no metric of {kind}; its metrics are {', '.join(allowed)}{did_you_mean(wrong, allowed)}"


def fault_in_names(names: Sequence[str], separator: str) -> str | None:
    """What is wrong with the label names of a multi-label task, whose predictions are joined; None where nothing is."""
    wrong = next((name for name in names if separator in name), None)
    if wrong is None:
        return None
    return (
        f"the label {wrong!r} contains {separator!r}, which stands between the labels of a row, also in files of "
        "predictions: give another task.label_separator"
    )
