"""What a student's teacher is: one model, several, or the epochs of its run; and what is computed of it once and kept.

Its logits are computed in the order of the rows' lengths, so that they depend neither on a run's seed nor on what is in
the cache: a run that finds them computes the same bits as one that makes them, and as one that cannot keep them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role
from reptile_distil.data.batches import Batches
from reptile_distil.data.cache import default_folder, keep_arrays, read_arrays
from reptile_distil.data.tasks import Task
from reptile_distil.errors import RunError
from reptile_distil.losses.attention_maps import check_maps
from reptile_distil.methods.checkpoints import Weights
from reptile_distil.models.checks import check_projections, check_rows, check_states, check_vocabulary, fit_padding
from reptile_distil.models.classifier import Classifier, Ensemble
from reptile_distil.models.cost import compare_latency
from reptile_distil.models.loading import is_model_of_a_run
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.models.tokenizer import (
    SHARE_ONE,
    Tokenizers,
    check_same_tokenizer,
    load_tokenizer,
    pair_tokenizers,
    wider_tokenizer,
)
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.records import read_results
from reptile_distil.runtime.files import digest_files
from reptile_distil.runtime.measuring import explain_out_of_memory
from reptile_distil.training.evaluation import predict_logits
from reptile_distil.training.loop import count_steps

if TYPE_CHECKING:
    from reptile_distil.experiments.setup import Setup

logger = logging.getLogger(__name__)

FORMAT = 1
"""Goes up whenever the same key would stand for other numbers."""

Logits = NDArray[np.float32]

_WITHOUT_EFFECT = ("_name_or_path", "architectures", "dtype", "id2label", "label2id", "transformers_version")


def student_source(config: Config) -> str:
    """Hub name or folder of the model that the student's start, and its tokenizer, come from."""
    if config.student.init == "pretrained" and config.student.pretrained is not None:
        return config.student.pretrained
    return config.teacher.pretrained


def teacher_label_names(config: Config) -> tuple[str, ...]:
    """What the outputs of a teacher from elsewhere mean; one that a run has fine-tuned says so itself."""
    return config.teacher.label_names if config.teacher.finetuned is not None else ()


def check_reading(config: Config, task: Task, name: str, model: nn.Module, tokenizer: Any) -> None:
    """Raises `ModelError` where the model cannot read what the tokenizer makes of the task's texts."""
    check_vocabulary(name, model, tokenizer)
    check_rows(name, model, tokenizer, is_pair=task.is_pair, max_length=config.data.max_length)


def choose_tokenizers(config: Config, teacher_name: str, teacher: Any, student: Any) -> Tokenizers:
    """The tokenizers that the batches of teacher and student are made with: one for both, or one for each.

    Raises `ModelError` where they differ, and the method or the loss needs both models to read the same tokens.
    """
    remedies = []
    if config.method == "reptile":
        moves = "Reptile moves each of the teacher's embeddings towards the student's of the same token"
        remedies.append(f"{moves}; {SHARE_ONE}, or method=kd")
    remedies += [
        f"{key} compares what both models make of the same tokens; {SHARE_ONE}, or {key}=0"
        for key in config.loss.hidden_terms
    ]
    for remedy in remedies:
        check_same_tokenizer(teacher_name, teacher, student_source(config), student, remedy=remedy)
    return pair_tokenizers(teacher, student)


def prepare_to_read(config: Config, task: Task, name: str, teacher: nn.Module, tokenizers: Tokenizers) -> None:
    """Makes the teacher fit for the batches that it gets. Raises `ModelError` as `check_reading` does."""
    fit_padding(name, teacher, tokenizers.of_teacher)
    check_learning(config, task, name, teacher, tokenizers.of_teacher)


def check_learning(config: Config, task: Task, name: str, model: nn.Module, tokenizer: Any) -> None:
    """Raises `ModelError` as `check_reading` does, and where the loss cannot compare what the model computes inside."""
    check_reading(config, task, name, model, tokenizer)
    if config.method == "finetune":
        return
    if config.loss.hidden or config.loss.patient:
        check_states(name, model)
    if config.loss.relations.weight or config.loss.attention.weight:
        check_projections(name, model)
    if config.loss.attention.weight:
        check_maps(name, model)


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


def load_several(config: Config, task: Task, tokenizer: Any) -> tuple[list[Any], Any]:
    """The models of `teachers`, checked, and of all tokenizers the one that gives the most inputs.

    `tokenizer` is that of the student's start. Raises `ModelError` where a model is missing,
    was fine-tuned on other labels, or reads other tokens than the student.
    """
    models, widest = [], tokenizer
    for name in config.teachers:
        # The model first: where there is none, its message says what lies there.
        labels = () if is_model_of_a_run(name) else config.teacher.label_names
        models.append(load_finetuned(name, task, labels))
        own = load_tokenizer(name)
        check_same_tokenizer(name, own, student_source(config), tokenizer)
        widest = wider_tokenizer(own, widest)
    for name, model in zip(config.teachers, models, strict=True):
        fit_padding(name, model, widest)
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


def cache_folder(config: Config) -> Path | None:
    """Where what is kept from run to run lies; None for nowhere."""
    cache_dir = config.data.cache_dir
    if cache_dir is False:
        return None
    return default_folder() if cache_dir is None else Path(cache_dir)


def keeps_training_logits(config: Config, role: Role, train: Batches) -> bool:
    """Whether a run of this role steps on kept logits: of a teacher that stays, where the loss needs nothing else.

    Unless `kd.keep_logits` says so, training must go over all rows once at least: keeping them then costs nothing.
    """
    if role != "kd" or config.loss.name or config.loss.hidden_terms or config.kd.keep_logits is False:
        return False
    num_steps = count_steps(train, config.train.epochs, config.train.max_steps)
    return config.kd.keep_logits is True or train.sees_every_row(num_steps)


@dataclass
class TeacherLogits:
    """The logits of a teacher as it is now, from the cache where they are in it, which gets those that are not.

    Args:
        setup: what the run is computed with.
        teacher: on its device.
        fingerprint: of its weights.
    """

    setup: Setup
    teacher: Classifier
    fingerprint: Mapping[str, Any]

    def is_kept(self, batches: Batches, rows: Mapping[str, Any]) -> bool:
        """Whether the logits of these rows are in the cache."""
        return self._read(self._key(batches, rows), batches) is not None

    def of(self, batches: Batches, rows: Mapping[str, Any], *, title: str | None = None) -> tuple[Logits, float]:
        """Logits (N, C) of the rows, by their fingerprint, and the seconds that computing them took.

        They are computed in passes of the batches' size. With a `title`, a bar shows how far that is. Every process of
        the run must ask, and each gets all of them.
        """
        processes = self.setup.processes
        key = self._key(batches, rows)
        kept = processes.on_main(lambda: self._read(key, batches))
        if kept is not None:
            return kept, 0.0
        started = time.perf_counter()
        logits = predict_logits(self.teacher, batches, processes, title=title)
        seconds = time.perf_counter() - started
        processes.on_main(lambda: self._keep(key, logits))
        return logits, seconds

    def keep(self, batches: Batches, rows: Mapping[str, Any], logits: Logits) -> None:
        """Puts logits (N, C) into the cache that were computed as `of` does. Every process of the run must ask."""
        self.setup.processes.on_main(lambda: self._keep(self._key(batches, rows), logits))

    def for_training(self, train: Batches, rows: Mapping[str, Any]) -> float:
        """Gives the training batches their logits; returns the seconds that computing them took."""
        batches = self.passes_over(train)
        if not self.setup.processes.on_main(lambda: self.is_kept(batches, rows)):
            logger.info("the teacher's logits of %s, computed once", train.describe_rows())
        with explain_out_of_memory("train.eval_batch_size"):
            train.teacher_logits, seconds = self.of(batches, rows, title="teacher's logits")
        return seconds

    def pretend_for_training(self, train: Batches, rows: Mapping[str, Any]) -> Batches | None:
        """Gives the training batches zeros for logits; returns those that a run would still compute them in, if any."""
        model: Any = self.teacher.model
        train.teacher_logits = np.zeros((train.num_rows, model.config.num_labels), np.float32)
        batches = self.passes_over(train)
        return None if self.is_kept(batches, rows) else batches

    def passes_over(self, train: Batches) -> Batches:
        """The training rows in the batches in which their logits are computed."""
        return train.in_batches_of(self.setup.config.train.eval_batch_size)

    def _read(self, key: str, batches: Batches) -> Logits | None:
        cache = cache_folder(self.setup.config)
        logits = None if cache is None else (read_arrays(cache, key) or {}).get("logits")
        return None if logits is None or logits.ndim != 2 or len(logits) != batches.num_rows else logits

    def _keep(self, key: str, logits: Logits) -> None:
        cache = cache_folder(self.setup.config)
        if cache is not None:
            keep_arrays(cache, key, {"logits": logits}, "a teacher's logits")

    def _key(self, batches: Batches, rows: Mapping[str, Any]) -> str:
        """Everything that the logits depend on, to the last bit, but for the machine."""
        parts = {
            "teacher": [dict(self.fingerprint), _architecture(self.teacher)],
            "rows": dict(rows),
            "padding": [
                padding and dataclasses.asdict(padding) for padding in (batches.padding, batches.teacher_padding)
            ],
            "rows_at_once": batches.batch_size,
        }
        return _as_key("logits", parts, self.setup)


def measure_latency(setup: Setup, teacher: Classifier, student: Classifier) -> dict[str, Any] | None:
    """`compare_latency` of both models, measured once on a machine for each pair of shapes and way to compute."""
    length, cache = setup.config.data.max_length, cache_folder(setup.config)
    parts = {
        "models": [_architecture(teacher), _architecture(student)],
        "length": length,
        "num_threads": torch.get_num_threads(),
        "machine": [platform.node(), platform.machine(), platform.processor()],
        "gpu": torch.cuda.get_device_name() if setup.device == "cuda" else None,
    }
    key = _as_key("latency", parts, setup)
    kept = None if cache is None else read_arrays(cache, key)
    if kept is not None:
        batches = {
            size: {"teacher_ms": float(teacher_ms), "student_ms": float(student_ms), "rounds": int(rounds)}
            for size, (teacher_ms, student_ms, rounds) in kept.items()
        }
        return {"length": length, "device": setup.device, "num_threads": torch.get_num_threads(), "batches": batches}
    measured = compare_latency(teacher, student, length=length, device=setup.device)
    if measured is not None and cache is not None:
        names = ("teacher_ms", "student_ms", "rounds")
        arrays = {size: np.array([of_size[name] for name in names]) for size, of_size in measured["batches"].items()}
        keep_arrays(cache, key, arrays, "measured latencies")
    return measured


def _as_key(what: str, parts: Mapping[str, Any], setup: Setup) -> str:
    config = setup.config
    computed = {
        "device": setup.device,
        "precision": config.precision,
        "packing": config.data.packing,
        "attention": config.compute.attention,
        "compile": config.compute.compile,
        "shard": config.distributed.shard,
        "versions": [torch.__version__, transformers.__version__],
    }
    return json.dumps({"format": FORMAT, "what": what, **parts, "computed": computed}, sort_keys=True, default=str)


def _architecture(classifier: Any) -> list[Any]:
    """What a model computes, its weights apart."""
    model: Any = classifier.model
    if isinstance(model, Ensemble):
        return [type(model).__name__, model.temperature, *map(_architecture, model.members)]
    config = model.config.to_dict()
    return [type(model).__name__, {key: config[key] for key in config if key not in _WITHOUT_EFFECT}]
