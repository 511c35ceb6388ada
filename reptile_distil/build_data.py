"""From a configuration to batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from reptile_distil.config.config import Config
from reptile_distil.config.sections import TrainConfig
from reptile_distil.data import toy
from reptile_distil.data.batches import Batches, draw_row_ids, draw_rows, tokenize
from reptile_distil.data.cache import default_folder, load_features
from reptile_distil.data.extra_batches import BatchStream, Companions, hold_out
from reptile_distil.data.features import Features
from reptile_distil.data.sources import open_split
from reptile_distil.data.tasks import Task
from reptile_distil.runtime.compute import choose_device
from reptile_distil.training.cuda_graphs import LENGTH_STEP

VALIDATION = "validation"
"""Name of the split that `data.validation_fraction` makes of training rows."""


def build_batches(
    config: Config, task: Task, split: str, tokenizer: Any, settings: TrainConfig, *, for_training: bool = False
) -> Batches:
    """The tokenised rows of a split: all of them for evaluation, or those that the configuration trains on.

    The split `VALIDATION` is what `data.validation_fraction` holds out of the latter.
    """
    features = _load_features(config, task, split, tokenizer, for_training=for_training)
    batch_size = settings.batch_size if for_training else settings.eval_batch_size
    return _batches_of(features, config, tokenizer, batch_size, for_training=for_training)


def build_lessons(config: Config, task: Task, tokenizer: Any) -> Batches:
    """The training batches of the configured method, each with the companions that the method's step asks for."""
    features = _load_features(config, task, "train", tokenizer, for_training=True)

    def batches_of(rows: Features, batch_size: int | None = None) -> Batches:
        return _batches_of(rows, config, tokenizer, batch_size or config.train.batch_size, for_training=True)

    reptile = config.reptile
    if config.method == "metadistil":
        features, held_out = hold_out(features, config.metadistil.quiz_fraction)
        batches, quiz = batches_of(features), batches_of(held_out, config.metadistil.quiz_batch_size)
        batches.companions = Companions("quiz", BatchStream(quiz))
    elif config.method == "reptile" and reptile.inner_batch == "held_out":
        features, held_out = hold_out(features, reptile.held_out_fraction)
        batches, stream = batches_of(features), BatchStream(batches_of(held_out))
        batches.companions = Companions("inner", stream, num_batches=reptile.inner_steps)
    else:
        batches = batches_of(features)
        if config.method == "reptile" and reptile.inner_steps > 1:
            following = BatchStream(batches_of(features))
            batches.companions = Companions("inner", following, num_batches=reptile.inner_steps, overlapping=True)
    return batches


def _load_features(config: Config, task: Task, split: str, tokenizer: Any, *, for_training: bool) -> Features:
    fraction = config.data.validation_fraction
    if fraction is not None and (split == VALIDATION or for_training):
        to_train_on, validation = hold_out(_load_split(config, task, "train", tokenizer, for_training=True), fraction)
        return validation if split == VALIDATION else to_train_on
    return _load_split(config, task, split, tokenizer, for_training=for_training)


def _load_split(config: Config, task: Task, split: str, tokenizer: Any, *, for_training: bool) -> Features:
    data = config.data
    max_rows = data.max_train_rows if for_training else None
    if isinstance(config.task, str) and task.name in toy.TASKS:  # an own task may have a toy's name
        rows = toy.load_split(task, split)
        drawn = draw_row_ids(len(rows), max_rows)
        features = Features.from_dataset(tokenize(draw_rows(rows, max_rows), tokenizer, data.max_length), drawn)
    else:
        features = load_features(
            open_split(task, split, None if data.path is None else Path(data.path)),
            tokenizer,
            max_length=data.max_length,
            max_rows=max_rows,
            check_rows=data.check_rows,
            cache=_cache_folder(data.cache_dir),
        )
    return features


def _batches_of(features: Features, config: Config, tokenizer: Any, batch_size: int, *, for_training: bool) -> Batches:
    return Batches(
        features,
        tokenizer,
        batch_size=batch_size,
        seed=config.seed,
        device=choose_device(config.device),
        length_step=LENGTH_STEP if config.compute.cuda_graphs and for_training else 1,
    )


def _cache_folder(cache_dir: str | Literal[False] | None) -> Path | None:
    if cache_dir is False:
        return None
    return default_folder() if cache_dir is None else Path(cache_dir).expanduser()
