"""Where a student's teacher comes from when it is more than one model: the epochs of its own run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from reptile_distil.config.config import Config
from reptile_distil.data.tasks import Task
from reptile_distil.errors import RunError
from reptile_distil.methods.checkpoints import Weights
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.records import read_results
from reptile_distil.runtime.files import digest_files


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
