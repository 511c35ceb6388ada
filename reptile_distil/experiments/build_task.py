"""From a configuration to its task, where the task's data lie, and to its tokenised rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reptile_distil.config.config import Config
from reptile_distil.data import toy
from reptile_distil.data.cache import load_features
from reptile_distil.data.extra_batches import hold_out
from reptile_distil.data.features import Features
from reptile_distil.data.tasks import HubDataset, Task, get_task
from reptile_distil.data.transfer import count_shared, hide_labels, join_rows, without_labels
from reptile_distil.errors import ConfigError
from reptile_distil.experiments.teachers import cache_folder
from reptile_distil.metric_names import OF_NUMBERS
from reptile_distil.models.tokenizer import Tokenizers
from reptile_distil.plugin_names import is_plugin
from reptile_distil.sources.splits import Source, open_split, open_transfer_file, own_label_names

logger = logging.getLogger(__name__)

VALIDATION = "validation"
"""Name of the split that `data.validation_fraction` makes of training rows."""


def build_task(config: Config) -> Task:
    """The task that the configuration names, or describes.

    Raises `ConfigError` for a regression whose loss leaves a method, or its transfer rows, nothing to learn from.
    """
    task = _task_of(config)
    if task.is_regression:
        _check_regression(config, task)
    return task


def _check_regression(config: Config, task: Task) -> None:
    loss = config.loss
    if loss.regression != "none" or loss.hidden_terms or loss.name:
        return
    methods = {config.method, *config.compare_with} - {"finetune"}
    without = f"loss.regression = none leaves the regression {task.name} without a distillation term, so that"
    if config.data.transfer.is_on and methods:
        raise ConfigError(f"{without} transfer rows teach nothing: set it to mse, or leave data.transfer out")
    for name in sorted(methods & {"metadistil", "lgtm"}):
        raise ConfigError(f"{without} {name} could teach its teacher nothing: set it to mse, or choose another method")
    if loss.alpha == 1 and any(not is_plugin(name) for name in methods):
        raise ConfigError(f"{without} loss.alpha = 1 leaves no loss at all: set it to mse, or loss.alpha below 1")


def _task_of(config: Config) -> Task:
    if isinstance(config.task, str):
        return toy.TASKS.get(config.task) or get_task(config.task, toy.TASKS)
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


def load_rows(config: Config, task: Task, split: str, tokenizers: Tokenizers, *, for_training: bool) -> Features:
    """The tokenised rows of a split: all of them, or those with labels that the configuration trains on.

    The split `VALIDATION` is what `data.validation_fraction` holds out of the training rows.
    """
    if for_training:
        return load_training_rows(config, task, tokenizers, with_transfer=False)[0]
    if split == VALIDATION and config.data.validation_fraction is not None:
        held_out = _hold_out_validation(config, task, tokenizers)[1]
        assert held_out is not None
        return held_out
    return _tokenise(config, open_split(task, split, data_path(config)), tokenizers)


def load_training_rows(
    config: Config, task: Task, tokenizers: Tokenizers, *, with_transfer: bool
) -> tuple[Features, Features | None]:
    """The rows with labels that the configuration trains on, and its transfer rows where it has and wants some.

    Neither are rows of `VALIDATION`, which keep their labels.
    """
    transfer, rows, hidden = config.data.transfer, _hold_out_validation(config, task, tokenizers)[0], None
    if transfer.hides_labels:
        num_labelled = transfer.labelled_rows or len(rows) - round((transfer.fraction or 0.0) * len(rows))
        rows, hidden = hide_labels(rows, num_labelled=num_labelled, seed=transfer.seed, skip=transfer.skip)
    if not with_transfer or not transfer.ratio:
        return rows, None
    if transfer.files:
        of_files = join_rows(load_transfer_files(config, task, tokenizers))
        hidden = replace(without_labels(of_files, like=rows), row_ids=np.arange(len(of_files)))
    return rows, hidden


def load_transfer_files(config: Config, task: Task, tokenizers: Tokenizers) -> list[Features]:
    """The tokenised rows of each of `data.transfer.files`. Raises `DataError` as for any split, with file and row."""
    path = data_path(config) or Path()
    sources = [open_transfer_file(task, path / file) for file in config.data.transfer.files]
    return [_tokenise(config, source, tokenizers) for source in sources]


def warn_of_rows(config: Config, task: Task, train: Features, scored: Mapping[str, Features]) -> None:
    """Lines in the log where scores would say less than they seem to.

    That is where texts of held-out rows, or of an own task's dev split, stand in the training rows too, with labels or
    as transfer rows; and where an own task's training rows lack a class, or a dev split has one alone.
    """
    labelled = train if train.is_labelled is None else train.select(np.flatnonzero(train.is_labelled))
    places = {"the training rows": train}
    if train.is_labelled is not None and config.data.transfer.files:
        hidden = train.select(np.flatnonzero(~train.is_labelled))
        places = {"the training rows": labelled, "data.transfer.files": hidden}
    for split, rows in scored.items():
        for place, others in places.items():
            if place == "the training rows" and split != VALIDATION and not task.is_own:
                continue  # the published splits are as they are
            if shared := count_shared(others, rows):
                once = split == VALIDATION and place == "the training rows"
                logger.warning(
                    "%d of the %d rows of %s are in %s too, so that its scores are not those of unseen rows: %s",
                    *(shared, len(rows), split, place),
                    "keep each text once" if once else "leave them out of one of the two",
                )
    if task.is_own and task.label_names and not task.multi_label:
        _warn_of_classes(task, labelled, scored)


def _warn_of_classes(task: Task, train: Features, scored: Mapping[str, Features]) -> None:
    found = {
        name: set() if rows.labels is None else set(np.unique(rows.labels).tolist())
        for name, rows in {"training": train, **scored}.items()
    }
    if missing := [name for number, name in enumerate(task.label_names) if number not in found["training"]]:
        logger.warning("no training row has the label %s: no student can learn it", " or ".join(missing))
    for split in scored:
        if len(found[split]) == 1:
            only = task.label_names[found[split].pop()]
            logger.warning("all rows of %s have the label %s: its scores say little", split, only)


def _hold_out_validation(config: Config, task: Task, tokenizers: Tokenizers) -> tuple[Features, Features | None]:
    """The rows to train on, and those of `VALIDATION`, if any."""
    source, fraction = open_split(task, "train", data_path(config)), config.data.validation_fraction
    rows = _tokenise(config, source, tokenizers, max_rows=config.data.max_train_rows)
    return (rows, None) if fraction is None else hold_out(rows, fraction, key="data.validation_fraction")


def _tokenise(config: Config, source: Source, tokenizers: Tokenizers, *, max_rows: int | None = None) -> Features:
    def load(tokenizer: Any) -> Features:
        return load_features(
            source,
            tokenizer,
            max_length=config.data.max_length,
            max_rows=max_rows,
            check_rows=config.data.check_rows,
            cache=cache_folder(config),
        )

    features = load(tokenizers.student)
    return features if tokenizers.teacher is None else features.beside(load(tokenizers.teacher))
