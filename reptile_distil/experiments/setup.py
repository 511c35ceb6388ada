"""From a configuration to all that a run needs, loaded and checked: task, models, tokenizer, batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from reptile_distil.builders.loss import build_loss, class_weights
from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role, TrainConfig
from reptile_distil.data.batches import Batches
from reptile_distil.data.extra_batches import BatchGroups, BatchStream, hold_out
from reptile_distil.data.features import Features
from reptile_distil.data.tasks import Task
from reptile_distil.data.transfer import join_rows
from reptile_distil.errors import DataError, LayerMapError
from reptile_distil.experiments.build_method import (
    BuiltMethod,
    autocast_dtype,
    build_method,
    forward_options,
)
from reptile_distil.experiments.build_task import VALIDATION, load_rows, load_training_rows, warn_of_rows
from reptile_distil.experiments.teachers import (
    check_learning,
    check_reading,
    choose_tokenizers,
    epoch_fingerprints,
    epoch_weights,
    load_several,
    prepare_to_read,
    student_source,
    teacher_epochs,
    teacher_label_names,
)
from reptile_distil.models.checks import check_vocabulary, fit_padding, set_length
from reptile_distil.models.classifier import Classifier, Ensemble, Student, Teacher
from reptile_distil.models.layer_map import encoder_layers, match_models, resolve_layer_map
from reptile_distil.models.loading import is_model_of_a_run
from reptile_distil.models.pretrained import (
    load_finetuned,
    load_pretrained,
    start_from_teacher_layers,
    start_random,
)
from reptile_distil.models.tokenizer import (
    Tokenizers,
    forget_last_call,
    load_tokenizer,
)
from reptile_distil.plugin_names import is_plugin
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.resume import Fingerprints
from reptile_distil.runs.state import weights_fingerprint
from reptile_distil.runtime.compute import choose_device, compile_forward, set_attention
from reptile_distil.runtime.processes import Processes, shard_model, whole_copy
from reptile_distil.training.cuda_graphs import LENGTH_STEP
from reptile_distil.training.loop import count_steps


class Components(NamedTuple):
    """What a run trains with."""

    settings: TrainConfig
    model: Any
    """The one that learns, at its start."""
    tokenizer: Any
    """That of `model`."""
    data: dict[str, Batches]
    """The training split and each dev split."""
    teacher: Teacher | None
    """As it is at the first step."""
    epochs: tuple[Path, ...] = ()
    """Folders of the teacher's epochs, for the method that learns from them."""

    def fingerprints(self) -> Fingerprints:
        """What identifies each input: when one has changed, an unfinished run cannot go on."""
        fingerprints = {f"{split} split": batches.features.fingerprint() for split, batches in self.data.items()}
        if (extra_batches := self.data["train"].extra_batches) is not None:
            fingerprints["rows beside the train split"] = extra_batches.features.fingerprint()
        fingerprints["model that it starts with"] = weights_fingerprint(self.model)
        if self.teacher is not None:
            fingerprints["teacher"] = weights_fingerprint(self.teacher)
        return fingerprints | epoch_fingerprints(self.epochs)


@dataclass(frozen=True)
class Setup:
    """Where components are got ready: a configuration, and what it is run on."""

    config: Config
    task: Task
    device: str
    processes: Processes

    def prepare_student(self, teacher_name: str | None, *, stand_in: bool = False) -> Components:
        """What the configured method trains with, checked: student and teacher at their start, and data for both.

        `teacher_name` is the folder or hub name of the fine-tuned teacher, None where neither the method nor the
        student's start needs one. As a `stand_in`, it is that of a model which is not fine-tuned yet, and gets a new
        head.
        """
        config = self.config
        model, tokenizer = build_student(config, self.task, None if stand_in else teacher_name)
        teacher, tokenizers, epochs = None, Tokenizers(tokenizer), teacher_epochs(config, stand_in=stand_in)
        if config.method == "kd" and config.teachers:
            models, widest = load_several(config, self.task, tokenizer)
            tokenizers = Tokenizers(widest)
            members = [Classifier(self._placed(one), **forward_options(config)) for one in models]
            teacher = Teacher(Ensemble(members, temperature=config.loss.temperature))
        elif teacher_name is not None and config.method != "finetune":
            tokenizers = choose_tokenizers(config, teacher_name, load_tokenizer(teacher_name), tokenizer)
            first = str(epochs[0]) if epochs else teacher_name
            teacher = self._load_teacher(first, tokenizers, stand_in=stand_in)
        check_learning(config, self.task, student_source(config), model, tokenizers.student)
        data = self.load_data(tokenizers, config.train, for_student=True)
        return Components(config.train, model, tokenizer, data, teacher, epochs)

    def prepare_teacher(self) -> Components:
        """What the teacher is fine-tuned with, checked."""
        name, settings = self.config.teacher.pretrained, self.config.teacher.train
        model, tokenizer = load_pretrained(name, self.task, seed=self.config.seed), load_tokenizer(name)
        fit_padding(name, model, tokenizer)
        self._check_reading(name, model, tokenizer)
        set_length(tokenizer, model, self.config.data.max_length)
        data = self.load_data(Tokenizers(tokenizer), settings, for_student=False)
        return Components(settings, model, tokenizer, data, None)

    def assemble(self, role: Role, components: Components) -> tuple[Student, BuiltMethod]:
        """The model that learns, on the device, and the method that teaches it."""
        settings, teacher = components.settings, components.teacher
        student = Student(self._placed(components.model), **forward_options(self.config))
        train = components.data["train"]
        built = build_method(
            self.config,
            student,
            teacher,
            settings,
            role=role,
            num_steps=count_steps(train, settings.epochs, settings.max_steps),
            epochs=epoch_weights(components.epochs, self.task),
            processes=self.processes,
            weights=class_weights(self.config, train.features.labelled, self.task.label_names, self.device),
        )
        return student, built

    def load_data(self, tokenizers: Tokenizers, settings: TrainConfig, *, for_student: bool) -> dict[str, Batches]:
        """Batches of the training split and of each dev split."""
        if "train" not in self.task.splits:
            raise DataError(f"task {self.task.name} has no train split to train on")
        if for_student:
            train = build_training_batches(self.config, self.task, tokenizers)
        else:
            train = build_batches(self.config, self.task, "train", tokenizers, settings, for_training=True)
        if self.config.data.validation_fraction is not None:
            splits = (VALIDATION, *self.task.dev_splits)
        else:
            splits = (self.task.selection_split, *self.task.dev_splits[1:])
        dev = {split: build_batches(self.config, self.task, split, tokenizers, settings) for split in splits}
        if for_student:
            warn_of_rows(self.config, self.task, train.features, {split: of.features for split, of in dev.items()})
        return {"train": train, **dev}

    def _placed(self, model: Any) -> Any:
        """The model on the device, the same on every process, or this process's part of it."""
        self.processes.share_weights(model, self.device)
        prepare_model(model, self.config, self.device)
        return model

    def save_model(self, folder: RunFolder, model: Any, tokenizer: Any, *, epoch: int | None = None) -> None:
        """Replaces the folder's model, or that of an epoch, by this one, by the main process."""
        whole = whole_copy(model) if self.config.distributed.shard else model
        forget_last_call(tokenizer)
        self.processes.on_main(lambda: folder.save_model(whole, tokenizer, epoch=epoch))

    def _check_reading(self, name: str, model: Any, tokenizer: Any) -> None:
        check_reading(self.config, self.task, name, model, tokenizer)

    def _load_teacher(self, name: str, tokenizers: Tokenizers, *, stand_in: bool) -> Teacher:
        if stand_in:
            model = load_pretrained(name, self.task, seed=self.config.seed)
        else:
            model = load_finetuned(name, self.task, teacher_label_names(self.config))
        prepare_to_read(self.config, self.task, name, model, tokenizers)
        has_own_tokens = tokenizers.teacher is not None
        return Teacher(self._placed(model), has_own_tokens=has_own_tokens, **forward_options(self.config))

    def load_trained(self, name: str) -> tuple[Classifier, Any]:
        """A fine-tuned model, a folder or hub name, ready to be asked, and its tokenizer."""
        names = () if is_model_of_a_run(name) else self.config.teacher.label_names
        classifier, tokenizer = load_finetuned(name, self.task, names), load_tokenizer(name)
        fit_padding(name, classifier, tokenizer)
        self._check_reading(name, classifier, tokenizer)
        prepare_model(classifier, self.config, self.device, may_compile=False)
        return Classifier(classifier, **forward_options(self.config)), tokenizer


def build_student(config: Config, task: Task, finetuned_teacher: str | None = None) -> tuple[nn.Module, Any]:
    """The student at its start, the same for every method with the same seed, and its tokenizer.

    `finetuned_teacher` is the folder that `student.init: finetuned_layers` starts from; before there is one, the
    pretrained teacher stands in for it.
    """
    start, source = config.student, student_source(config)
    if start.init == "finetuned_layers" and finetuned_teacher is not None:
        source = finetuned_teacher
        model = load_finetuned(source, task, teacher_label_names(config))
    else:
        model = load_pretrained(source, task, seed=config.seed)
    if start.init in ("teacher_layers", "finetuned_layers"):
        model = start_from_teacher_layers(model, _layers_to_copy(config, model))
    elif start.init == "random" and start.num_layers is not None:
        model = start_random(model, start.num_layers, seed=config.seed)
    tokenizer = load_tokenizer(source)
    check_vocabulary(source, model, tokenizer)
    fit_padding(source, model, tokenizer)
    set_length(tokenizer, model, config.data.max_length)
    return model, tokenizer


def check_pair(config: Config, task: Task) -> None:
    """Raises now what the student's run would raise only after the teacher has been fine-tuned."""
    name = config.teacher.pretrained
    student, tokenizer = build_student(config, task)
    tokenizers = choose_tokenizers(config, name, load_tokenizer(name), tokenizer)
    teacher = load_pretrained(name, task, seed=config.seed)
    prepare_to_read(config, task, name, teacher, tokenizers)
    if config.method == "kd" and config.teachers:
        tokenizers = Tokenizers(load_several(config, task, tokenizer)[1])
    check_learning(config, task, student_source(config), student, tokenizers.student)
    if config.data.transfer.files or _held_out_fraction(config) is not None:
        train = build_training_batches(config, task, tokenizers)
        class_weights(config, train.features.labelled, task.label_names, "cpu")
    if config.data.packing:
        from reptile_distil.models.packing import check_packable

        for model in (teacher, student):
            check_packable(model)
    if is_plugin(config.method):
        build_method(config, Student(student), Teacher(teacher), config.train, role=config.method, num_steps=1)
    else:
        build_loss(config, teacher, student)
    if config.method == "reptile":
        match_models(teacher, student, config.reptile.layer_map)


def check_named_teachers(config: Config, task: Task) -> None:
    """Raises `ModelError` now where the student's run would not find the fine-tuned teachers that it is told of."""
    if config.method == "kd" and config.teachers:
        load_several(config, task, load_tokenizer(student_source(config)))
    elif config.needs_teacher(config.method) and config.teacher.finetuned is not None:
        load_finetuned(config.teacher.finetuned, task, teacher_label_names(config))


def _layers_to_copy(config: Config, teacher: nn.Module) -> tuple[int, ...]:
    start = config.student
    if start.teacher_layers or start.num_layers is None:
        return start.teacher_layers
    evenly_spaced = resolve_layer_map(
        "skip",
        num_teacher_layers=len(encoder_layers(teacher)[1]),
        num_student_layers=start.num_layers,
    )
    return tuple(layers[0] for layers in evenly_spaced)


def build_batches(
    config: Config, task: Task, split: str, tokenizer: Any, settings: TrainConfig, *, for_training: bool = False
) -> Batches:
    """The tokenised rows of a split: all of them for evaluation, or those that the configuration trains on.

    The split `VALIDATION` is what `data.validation_fraction` holds out of the latter. `tokenizer` may be `Tokenizers`.
    None of them are transfer rows.
    """
    tokenizers = Tokenizers.of(tokenizer)
    features = load_rows(config, task, split, tokenizers, for_training=for_training)
    batch_size = settings.batch_size if for_training else settings.eval_batch_size
    return _batches_of(features, config, tokenizers, batch_size, for_training=for_training)


def build_training_batches(config: Config, task: Task, tokenizer: Any) -> Batches:
    """The training batches of the configured method, each with the extra batches that the method's step takes.

    Where there are transfer rows, they are mixed into the training batches; extra batches that are held out have none.
    """
    tokenizers = Tokenizers.of(tokenizer)
    has_teacher = config.method != "finetune"
    features, transfer = load_training_rows(config, task, tokenizers, with_transfer=has_teacher)

    def batches_of(rows: Features, batch_size: int | None = None) -> Batches:
        return _batches_of(rows, config, tokenizers, batch_size or config.train.batch_size, for_training=True)

    def training_batches_of(rows: Features) -> Batches:
        return batches_of(rows if transfer is None else join_rows([rows, transfer]))

    reptile, for_extra = config.reptile, _held_out_fraction(config)
    if for_extra is not None:
        key, fraction = for_extra
        features, held_out = hold_out(features, fraction, key=key)
        quiz_batch_size = {"lgtm": config.lgtm.quiz_batch_size, "metadistil": config.metadistil.quiz_batch_size}
        stream = BatchStream(batches_of(held_out, quiz_batch_size.get(config.method)))
        batches = training_batches_of(features)
        batches.extra_batches = (
            stream if config.method != "reptile" else BatchGroups(stream, num_batches=reptile.inner_steps)
        )
    else:
        batches = training_batches_of(features)
        if config.method == "reptile" and reptile.inner_steps > 1:
            following = BatchStream(batches.with_nothing_beside())
            batches.extra_batches = BatchGroups(following, num_batches=reptile.inner_steps, overlapping=True)
    return batches


def _held_out_fraction(config: Config) -> tuple[str, float] | None:
    """Key and value of the fraction of the labelled rows that is kept for extra batches; None where none is."""
    if config.method == "kd":
        return ("loss.extra_fraction", config.loss.extra_fraction) if config.loss.extra_rows else None
    if config.method == "reptile":
        is_held_out = config.reptile.inner_batch == "held_out"
        return ("reptile.held_out_fraction", config.reptile.held_out_fraction) if is_held_out else None
    return {
        "lgtm": ("lgtm.quiz_fraction", config.lgtm.quiz_fraction),
        "metadistil": ("metadistil.quiz_fraction", config.metadistil.quiz_fraction),
    }.get(config.method)


def _batches_of(
    features: Features, config: Config, tokenizers: Tokenizers, batch_size: int, *, for_training: bool
) -> Batches:
    return Batches(
        features,
        tokenizers.student,
        teacher_tokenizer=tokenizers.teacher,
        batch_size=batch_size,
        seed=config.seed,
        device=choose_device(config.device),
        length_step=LENGTH_STEP if config.compute.cuda_graphs and for_training else 1,
        bias_dtype=autocast_dtype(config) or torch.float32,
        num_transfer=config.data.transfer.rows_per_batch(batch_size) if features.num_transfer_rows else 0,
    )


def prepare_model(model: Any, config: Config, device: str, *, may_compile: bool = True) -> None:
    """Moves a model, or this process's part of it, to the device, in place, to compute as the configuration says."""
    set_attention(model, config.compute.attention)
    if config.distributed.shard:
        shard_model(model, device, layers_to_shard(model))
    else:
        model.to(device)
    if config.compute.compile and may_compile:
        compile_forward(model, device)


def layers_to_shard(model: nn.Module) -> list[nn.Module]:
    """The encoder layers, whose weights are gathered one after another; none where layers share them, as in ALBERT."""
    try:
        return list(encoder_layers(model)[1])
    except LayerMapError:
        return []
