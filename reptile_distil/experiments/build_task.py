"""From a configuration to its task, and where the task's data lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reptile_distil.config.config import Config
from reptile_distil.data import toy
from reptile_distil.data.tasks import HubDataset, Task, get_task
from reptile_distil.metric_names import OF_NUMBERS
from reptile_distil.sources.splits import own_label_names

VALIDATION = "validation"
"""Name of the split that `data.validation_fraction` makes of training rows."""


def build_task(config: Config) -> Task:
    """The task that the configuration names, or describes."""
    if isinstance(config.task, str):
        return toy.TASKS.get(config.task) or get_task(config.task)
    own = config.task
    columns = () if isinstance(own.label, str) else own.label
    splits = own.hub_splits if own.hub is not None else own.files
    described: dict[str, Any] = {
        "name": own.name,
        "text_columns": own.text,
        "label_column": own.label if isinstance(own.label, str) else own.label[0],
        "label_columns": columns,
        "multi_label": own.has_label_sets,
        "label_separator": own.label_separator,
        "splits": dict.fromkeys(splits, ()),
        "files": own.files or None,
        "quoting": own.quoting,
    }
    if own.hub is not None:
        described["hub"] = HubDataset(name=own.hub, config=own.config, revision=own.revision, splits=splits)
    names = own.labels or columns
    if not names and (own.has_label_sets or not set(own.metrics) <= set(OF_NUMBERS)):
        names = own_label_names(Task(**described, metrics=()), data_path(config))
    return Task(**described, label_names=names, metrics=own.metrics)


def scored_splits(config: Config, task: Task) -> tuple[str, ...]:
    """The splits that a finished model is scored on: the dev splits, or else the training rows that were held out."""
    held_out = () if config.data.validation_fraction is None else (VALIDATION,)
    return task.dev_splits or held_out


def data_path(config: Config) -> Path | None:
    """The folder with the data, where one is given."""
    return None if config.data.path is None else Path(config.data.path)
