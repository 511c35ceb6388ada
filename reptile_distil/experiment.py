"""From a configuration to objects, and from objects to results: the one place where the parts meet."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from reptile_distil import toy
from reptile_distil.config import Config, TrainConfig, load_config
from reptile_distil.data import Batches, draw_rows, tokenize
from reptile_distil.errors import ConfigError, DataError, ModelError
from reptile_distil.evaluation import Examiner, predict_logits, score_logits
from reptile_distil.layer_map import encoder_layers, resolve_layer_map
from reptile_distil.losses import DistillationLoss
from reptile_distil.memory import peak_memory, reset_peak_memory
from reptile_distil.methods import FineTuner, KnowledgeDistiller
from reptile_distil.metrics import Scores, predictions_from_logits
from reptile_distil.models import (
    Student,
    Teacher,
    check_length,
    check_same_tokenizer,
    count_parameters,
    load_finetuned,
    load_pretrained,
    load_tokenizer,
    start_from_teacher_layers,
    start_random,
)
from reptile_distil.optim import adamw
from reptile_distil.reptile import ReptileDistiller
from reptile_distil.runs import Results, RunFolder
from reptile_distil.sources import load_split
from reptile_distil.tasks import Task, get_task
from reptile_distil.training import Method, count_steps, train

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """What a model says of one text or pair of texts."""

    label: str | float
    """Name of the most probable class; the number itself for regression."""
    probabilities: dict[str, float]
    """Probability by class name; empty for regression."""


class Examination(NamedTuple):
    """A model on a split, row by row and as a whole; `labels` and `scores` are None for a split without labels."""

    predictions: list[Prediction]
    labels: list[str | float] | None
    scores: Scores | None

    def to_tsv(self) -> str:
        """Tab-separated lines: index, prediction, its probability (classification), and the label where there is one."""
        rows = [["index", "prediction", "probability", "label"]]
        for index, prediction in enumerate(self.predictions):
            probability = prediction.probabilities.get(str(prediction.label), "")
            label = "" if self.labels is None else self.labels[index]
            rows.append([str(cell) for cell in (index, prediction.label, probability, label)])
        return "".join("\t".join(row) + "\n" for row in rows)


class Experiment:
    """One configuration, run: teacher, student, method, training, results.

    >>> experiment = Experiment.from_yaml("configs/quickstart.yaml", "seed=1")  # doctest: +SKIP
    >>> experiment.fit()["scores"]["dev"]["accuracy"]  # doctest: +SKIP
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.task = build_task(config)
        self.device = choose_device(config.device)
        self.folder = RunFolder(
            config.output_dir or Path(config.runs_dir, config.task_name, f"{config.method}-seed{config.seed}")
        )
        self.teacher_folder = RunFolder(Path(config.runs_dir, config.task_name, f"teacher-seed{config.seed}"))

    @classmethod
    def from_yaml(cls, path: str | Path, *overrides: str) -> Experiment:
        """The experiment of a YAML file with `key=value` overrides."""
        return cls(load_config(path, overrides))

    def fit(self, *, overwrite: bool = False) -> Results:
        """Trains the student with the configured method; returns the results of its run folder.

        A finished run is not run again unless `overwrite`. Where a teacher is needed and missing, it is fine-tuned
        first, into a run folder of its own that all methods share.
        """
        method = self.config.method
        decisive = self.config.decisive_values(method)
        if not overwrite and (results := self.folder.read_results(decisive)):
            logger.info("%s is finished: nothing to run", self.folder.path)
            return results
        teacher = None if method == "finetune" else self._teacher_name()
        return self._train(method, self.folder, decisive, self.config.train, lambda: self._student(teacher), teacher)

    def fit_teacher(self, *, overwrite: bool = False) -> Results:
        """Fine-tunes `teacher.pretrained`; returns the results of its run folder. A finished run is not run again."""
        decisive = self.config.decisive_values("teacher")
        if not overwrite and (results := self.teacher_folder.read_results(decisive)):
            logger.info("%s is finished: nothing to run", self.teacher_folder.path)
            return results
        pretrained = self.config.teacher.pretrained
        return self._train(
            "teacher",
            self.teacher_folder,
            decisive,
            self.config.teacher.train,
            lambda: (
                load_pretrained(pretrained, self.task, seed=self.config.seed),
                load_tokenizer(pretrained),
            ),
            None,
        )

    def evaluate(self, split: str | None = None, *, model: str | Path | None = None) -> dict[str, Scores]:
        """Scores by split of the trained student, or of `model` (a folder or hub name), on all dev splits or one.

        Raises `DataError` for a split without labels.
        """
        splits = self.task.dev_splits if split is None else (split,)
        examined = {name: self.examine(name, model=model) for name in splits}
        for name, examination in examined.items():
            if examination.scores is None:
                raise DataError(f"task {self.task.name}: split {name} has no labels to score against")
        return {name: examination.scores for name, examination in examined.items() if examination.scores is not None}

    def examine(self, split: str, *, model: str | Path | None = None) -> Examination:
        """What the trained student, or `model`, says of each row of a split, and its scores where there are labels."""
        classifier, tokenizer = self._trained(model)
        batches = self._batches(split, tokenizer)
        logits = predict_logits(classifier, batches)
        labels = scores = None
        if "label" in batches.features.column_names:
            labels = [self._name_label(label) for label in batches.features["label"]]
            scores = score_logits(logits, batches, self.task.metrics)
        return Examination(self._name_predictions(logits), labels, scores)

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Prediction]:
        """What the trained student says of texts, or of pairs of texts for a pair task."""
        import datasets

        pairs = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        wanted = len(self.task.text_columns)
        if any(len(pair) != wanted for pair in pairs):
            raise DataError(f"task {self.task.name}: expected {'pairs of texts' if wanted == 2 else 'single texts'}")
        if not pairs:
            return []
        columns = dict(zip(("text", "text_pair"), map(list, zip(*pairs, strict=True)), strict=False))
        classifier, tokenizer = self._trained(None)
        features = tokenize(datasets.Dataset.from_dict(columns), tokenizer, self.config.data.max_length)
        batches = Batches(features, tokenizer, batch_size=self.config.train.eval_batch_size, device=self.device)
        return self._name_predictions(predict_logits(classifier, batches))

    def _train(
        self,
        role: str,
        folder: RunFolder,
        decisive: dict[str, Any],
        settings: TrainConfig,
        build: Callable[[], tuple[nn.Module, Any]],
        teacher_name: str | None,
    ) -> Results:
        started = time.perf_counter()
        reset_peak_memory(self.device)
        for split in ("train", self.task.selection_split):
            if split not in self.task.splits:
                raise DataError(f"task {self.task.name} has no {split} split to train with")
        model, tokenizer = build()
        check_length(role, model, self.config.data.max_length)
        batches = self._batches("train", tokenizer)
        dev = {split: self._batches(split, tokenizer) for split in self.task.dev_splits}
        student = Student(model.to(self.device), autocast_dtype=self._autocast_dtype)
        teacher = None if teacher_name is None else self._load_teacher(teacher_name)
        method, optimizers = self._method(role, student, teacher, settings)
        folder.start(self.config.to_yaml(), self.device)
        logger.info(
            "%s on %s: %s parameters, %d training rows, %d steps, into %s",
            "fine-tuning the teacher" if role == "teacher" else role,
            self.task.name,
            f"{count_parameters(model):,}",
            batches.num_rows,
            count_steps(batches, settings.epochs, settings.max_steps),
            folder.path,
        )
        examiner = Examiner(
            student,
            dev,
            self.task.metrics,
            teacher=teacher,
            teacher_moves=isinstance(method, ReptileDistiller),
        )
        torch.manual_seed(self.config.seed)
        outcome = train(
            method,
            batches,
            num_epochs=settings.epochs,
            max_steps=settings.max_steps,
            schedules=self._schedules(optimizers, batches, settings),
            evaluate=examiner.examine,
            keep_best=lambda: folder.save_model(model, tokenizer),
            log=folder.log,
            patience=settings.patience,
            log_every=settings.log_every,
        )
        results = {
            "task": self.task.name,
            "method": role,
            "seed": self.config.seed,
            "scores": outcome.best["scores"],
            "score": outcome.best["score"],
            "best_epoch": outcome.best["epoch"],
            "num_steps": outcome.num_steps,
            "num_parameters": count_parameters(model),
            "num_train_rows": batches.num_rows,
            "wall_seconds": time.perf_counter() - started,
            "train_seconds": outcome.train_seconds,
            "examples_per_second": outcome.num_examples / outcome.train_seconds,
            "peak_memory_bytes": peak_memory(self.device),
            "device": self.device,
            "decisive": decisive,
        }
        if teacher is not None:
            results["teacher"] = {
                "model": teacher_name,
                "num_parameters": count_parameters(teacher.model),
                "scores_at_start": examiner.teacher_start,
                "scores_at_end": examiner.teacher_scores,
            }
        folder.finish(results)
        return results

    def _method(
        self, role: str, student: Student, teacher: Teacher | None, settings: TrainConfig
    ) -> tuple[Method, dict[str, torch.optim.Optimizer]]:
        """The method's object, and its optimizers under the names that their learning rates are logged by."""
        config = self.config
        optimizer = adamw(student, lr=settings.lr, weight_decay=settings.weight_decay, eps=settings.adam_eps)
        loss = DistillationLoss(
            alpha=config.loss.alpha, temperature=config.loss.temperature, regression=config.loss.regression
        )
        shared: dict[str, Any] = {
            "student_optimizer": optimizer,
            "max_grad_norm": settings.max_grad_norm,
            "micro_batch_size": settings.micro_batch_size,
        }
        if teacher is None:
            return FineTuner(student, **shared), {"lr": optimizer}
        if role == "kd":
            return KnowledgeDistiller(teacher, student, loss=loss, **shared), {"lr": optimizer}
        reptile = config.reptile
        teacher_optimizer: torch.optim.Optimizer = (
            adamw(teacher, lr=reptile.mu, eps=settings.adam_eps)
            if reptile.update == "adamw"
            else torch.optim.SGD(teacher.parameters(), lr=reptile.mu)
        )
        distiller = ReptileDistiller(
            teacher,
            student,
            loss=loss,
            teacher_optimizer=teacher_optimizer,
            layer_map=reptile.layer_map,
            update=reptile.update,
            inner_optimizer=reptile.inner_optimizer,
            inner_lr=settings.lr if reptile.inner_lr is None else reptile.inner_lr,
            inner_eps=reptile.inner_eps,
            **shared,
        )
        return distiller, {"lr": optimizer, "teacher_lr": teacher_optimizer}

    def _schedules(
        self, optimizers: dict[str, torch.optim.Optimizer], batches: Batches, settings: TrainConfig
    ) -> dict[str, LRScheduler]:
        num_steps = count_steps(batches, settings.epochs, settings.max_steps)
        warmup = round(settings.warmup_ratio * num_steps)
        return {
            name: transformers.get_linear_schedule_with_warmup(optimizer, warmup, num_steps)
            for name, optimizer in optimizers.items()
        }

    def _student(self, teacher_name: str | None) -> tuple[nn.Module, Any]:
        """The student at its start, the same for every method, and its tokenizer."""
        start, seed = self.config.student, self.config.seed
        source = start.pretrained if start.init == "pretrained" else self.config.teacher.pretrained
        if source is None:
            raise ConfigError("student.pretrained is missing: give a hub name or a folder")
        model, tokenizer = load_pretrained(source, self.task, seed=seed), load_tokenizer(source)
        if start.init == "teacher_layers":
            model = start_from_teacher_layers(model, self._layers_to_copy(model))
        elif start.init == "random" and start.num_layers is not None:
            model = start_random(model, start.num_layers, seed=seed)
        if teacher_name is not None and teacher_name != source:
            check_same_tokenizer(teacher_name, load_tokenizer(teacher_name), source, tokenizer)
        return model, tokenizer

    def _layers_to_copy(self, teacher: nn.Module) -> tuple[int, ...]:
        start = self.config.student
        if start.teacher_layers or start.num_layers is None:
            return start.teacher_layers
        evenly_spaced = resolve_layer_map(
            "skip",
            num_teacher_layers=len(encoder_layers(teacher)[1]),
            num_student_layers=start.num_layers,
        )
        return tuple(layers[0] for layers in evenly_spaced)

    def _teacher_name(self) -> str:
        """Folder or hub name of the fine-tuned teacher, which is trained now where it is missing."""
        if self.config.teacher.finetuned is not None:
            return self.config.teacher.finetuned
        self.fit_teacher()
        return str(self.teacher_folder.model)

    def _load_teacher(self, name: str) -> Teacher:
        model = load_finetuned(name, self.task, self.config.teacher.label_names)
        check_length(name, model, self.config.data.max_length)
        return Teacher(model.to(self.device), autocast_dtype=self._autocast_dtype)

    def _trained(self, model: str | Path | None) -> tuple[Student, Any]:
        if model is None and not self.folder.model.is_dir():
            raise ModelError(f"{self.folder.model}: no trained model yet; run fit() or distil.py first")
        name = str(model or self.folder.model)
        labels = () if model is None else self.config.teacher.label_names
        classifier = load_finetuned(name, self.task, labels).to(self.device)
        return Student(classifier, autocast_dtype=self._autocast_dtype), load_tokenizer(name)

    def _batches(self, split: str, tokenizer: Any) -> Batches:
        data, settings = self.config.data, self.config.train
        rows = load_rows(self.config, self.task, split)
        if split == "train":
            rows = draw_rows(rows, data.max_train_rows)
        return Batches(
            tokenize(rows, tokenizer, data.max_length),
            tokenizer,
            batch_size=settings.batch_size if split == "train" else settings.eval_batch_size,
            seed=self.config.seed,
            device=self.device,
        )

    def _name_predictions(self, logits: Any) -> list[Prediction]:
        if self.task.is_regression:
            return [Prediction(float(number), {}) for number in predictions_from_logits(logits)]
        probabilities = torch.from_numpy(np.asarray(logits)).softmax(dim=1).tolist()
        named = [dict(zip(self.task.label_names, row, strict=True)) for row in probabilities]
        return [Prediction(max(row, key=row.__getitem__), row) for row in named]

    def _name_label(self, label: int | float) -> str | float:
        return float(label) if self.task.is_regression else self.task.label_names[int(label)]

    @property
    def _autocast_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.config.precision == "bf16" else None


def build_task(config: Config) -> Task:
    """The task that the configuration names, or describes."""
    if isinstance(config.task, str):
        return toy.TASKS.get(config.task) or get_task(config.task)
    own = config.task
    return Task(
        name=own.name,
        text_columns=own.text,
        label_column=own.label,
        label_names=own.labels,
        metrics=own.metrics,
        splits=dict.fromkeys(own.files, ()),
        files=own.files,
    )


def load_rows(config: Config, task: Task, split: str) -> Any:
    """The rows of a split: generated, from `data.path`, or from the hub."""
    if task.name in toy.TASKS:
        return toy.load_split(task, split)
    path = None if config.data.path is None else Path(config.data.path)
    return load_split(task, split, path, check_rows=config.data.check_rows)


def choose_device(wanted: str) -> str:
    """The device to compute on. Raises `ConfigError` where it is not there."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("started as one of several processes, but a run takes one process: start it with python")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(device for device in there if there[device])
    if not there[wanted]:
        raise ConfigError(f"device = {wanted!r}: PyTorch finds none here; use device=auto or device=cpu")
    return wanted
