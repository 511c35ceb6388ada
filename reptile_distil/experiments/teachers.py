"""A student's teacher where it is more than one model: several, or the epochs of its own run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reptile_distil.config.config import Config
from reptile_distil.data.tasks import Task
from reptile_distil.errors import RunError
from reptile_distil.methods.checkpoints import Weights
from reptile_distil.models.checks import check_rows, check_vocabulary
from reptile_distil.models.loading import is_model_of_a_run
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.models.tokenizer import check_same_tokenizer, load_tokenizer, wider_tokenizer
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.records import read_results
from reptile_distil.runtime.files import digest_files


def teacher_label_names(config: Config) -> tuple[str, ...]:
    """What the outputs of a teacher from elsewhere mean; one that a run has fine-tuned says so itself."""
    return config.teacher.label_names if config.teacher.finetuned is not None else ()


def teacher_epochs(config: Config, *, stand_in: bool) -> tuple[Path, ...]:
    """Folders of the models of the teacher's epochs, from the first to the best.

    There are none for most methods, nor while another model is a `stand_in` for the teacher.

    Raises `RunError` where the teacher's run has not kept them.
    """
    if config.method != "checkpoints" or stand_in:
        return ()
    folder = RunFolder(config.teacher_run)
    remedy = "fine-tune it again with scripts/finetune.py --overwrite teacher.keep_epochs=true"
    best = read_results(folder.results, remedy).best_epoch
    epochs = tuple(folder.epoch_model(number) for number in range(1, best + 1))
    for number, epoch in enumerate(epochs, start=1):
        if not epoch.is_dir():
            raise RunError(
                f"{folder.path}: does not hold the teacher's weights after epoch {number}, which method checkpoints "
                f"learns from; {remedy}"
            )
    return epochs


def check_reading(config: Config, task: Task, name: str, model: nn.Module, tokenizer: Any) -> None:
    """Raises `ModelError` where the model cannot read what the tokenizer makes of the task's texts."""
    check_vocabulary(name, model, tokenizer)
    check_rows(name, model, tokenizer, is_pair=task.is_pair, max_length=config.data.max_length)


def load_several(config: Config, task: Task, student: str, tokenizer: Any) -> tuple[list[Any], Any]:
    """The models of `teachers`, checked, and of all tokenizers the one that gives the most inputs.

    `student` is what the student's start, and its `tokenizer`, come from. Raises `ModelError` where a model is missing,
    was fine-tuned on other labels, or reads other tokens than the student.
    """
    models, widest = [], tokenizer
    for name in config.teachers:
        own = load_tokenizer(name)
        check_same_tokenizer(name, own, student, tokenizer)
        widest = wider_tokenizer(own, widest)
        labels = () if is_model_of_a_run(name) else config.teacher.label_names
        models.append(load_finetuned(name, task, labels))
    for name, model in zip(config.teachers, models, strict=True):
        check_reading(config, task, name, model, widest)
    return models, widest


def epoch_weights(epochs: tuple[Path, ...], task: Task) -> list[Weights]:
    """How to read each epoch's weights, one at a time."""
    return [partial(_read_weights, str(epoch), task) for epoch in epochs]


def epoch_fingerprints(epochs: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """What identifies each epoch: when one has changed, an unfinished run cannot go on."""
    return {
        f"teacher's epoch {number}": {"sha256": digest_files(*sorted(epoch.glob("*.safetensors")))}
        for number, epoch in enumerate(epochs, start=1)
    }


def _read_weights(name: str, task: Task) -> Mapping[str, Tensor]:
    weights: Mapping[str, Tensor] = load_finetuned(name, task).state_dict()
    return weights
