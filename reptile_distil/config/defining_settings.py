"""Which settings decide what comes out of a run: those by which an unfinished or finished one is known again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys that change how a run is computed or shown, not what it computes.
_WITHOUT_EFFECT = (
    "micro_batch_size",
    "eval_batch_size",
    "log_every",
    "cache_dir",
    "packing",
    "keep_logits",
    "keep_epochs",
)
# Keys that came later, with the value that all runs before them were made with.
_LATER_KEYS = {
    "reptile.order": "teacher_first",
    "reptile.released": False,
    "train.adamw": "torch",
    "teacher.train.adamw": "torch",
    "loss.class_weights": None,
    "task.multi_label": False,
    "task.label_separator": ",",
    "task.quoting": None,
    "task.hub": None,
    "task.config": None,
    "task.revision": None,
    "teachers": [],
    "loss.extra_rows": 0.0,
    "loss.extra_fraction": 0.1,
    "loss.name": None,
    "loss.hidden_projection": "none",
    "loss.hidden_embeddings": False,
    "loss.relations.weight": 0.0,
    "loss.relations.heads": 12,
    "loss.relations.teacher_layer": None,
    "loss.relations.student_layer": None,
    "loss.attention.weight": 0.0,
    "loss.attention.of": "scores",
    "data.transfer.files": [],
    "data.transfer.fraction": None,
    "data.transfer.labelled_rows": None,
    "data.transfer.seed": 0,
    "data.transfer.skip": 0,
    "data.transfer.ratio": 1.0,
}
# What a method or loss of the user's own takes decides, whatever it is called.
_OWN_OPTIONS = ("method_options.", "loss.options.")
_NOT_FOR_THE_TEACHER = ("teacher.finetuned", "teacher.label_names")
# Runs that learn from labels alone are the same whatever transfer rows there are, and how many in a batch.
_FROM_LABELS_ALONE = ("teacher", "finetune")
_OF_TRANSFER_ROWS = ("data.transfer.files", "data.transfer.ratio")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of settings by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def keep_defining(values: Mapping[str, Any], *, role: str) -> dict[str, Any]:
    """Of settings by dotted key, those that decide the result of a run, and differ from what runs before them had.

    `role` is the run's method, or `teacher` for the run that fine-tunes it.
    """
    return {
        key: value
        for key, value in values.items()
        if (key.rpartition(".")[2] not in _WITHOUT_EFFECT or key.startswith(_OWN_OPTIONS))
        and (key, value) not in _LATER_KEYS.items()
        and not (role == "teacher" and key in _NOT_FOR_THE_TEACHER)
        and not (role in _FROM_LABELS_ALONE and key in _OF_TRANSFER_ROWS)
    }
