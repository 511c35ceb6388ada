"""From a configuration to objects: the last place that knows the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from reptile_distil import toy
from reptile_distil.compute import compile_forward, set_attention
from reptile_distil.config import Config, TrainConfig
from reptile_distil.data import Batches, draw_row_ids, draw_rows, tokenize
from reptile_distil.errors import ConfigError
from reptile_distil.feature_cache import default_folder, load_features
from reptile_distil.features import Features
from reptile_distil.layer_map import encoder_layers, match_models, resolve_layer_map
from reptile_distil.losses import DistillationLoss
from reptile_distil.methods import FineTuner, KnowledgeDistiller
from reptile_distil.models import (
    Student,
    Teacher,
    check_length,
    check_same_tokenizer,
    check_vocabulary,
    load_pretrained,
    load_tokenizer,
    start_from_teacher_layers,
    start_random,
)
from reptile_distil.optim import adamw
from reptile_distil.packing import check_packable
from reptile_distil.processes import ALONE, Processes
from reptile_distil.reptile import ReptileDistiller
from reptile_distil.sharding import shard_model
from reptile_distil.sources import open_split
from reptile_distil.tasks import Task, get_task
from reptile_distil.training import Method, count_steps


class BuiltMethod(NamedTuple):
    """A method and the optimizers it steps, under the names that their learning rates are logged by."""

    method: Method
    optimizers: dict[str, Optimizer]


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


def build_batches(
    config: Config, task: Task, split: str, tokenizer: Any, settings: TrainConfig, *, for_training: bool = False
) -> Batches:
    """The tokenised rows of a split: all of them for evaluation, or `data.max_train_rows` of them for training."""
    data = config.data
    max_rows = data.max_train_rows if for_training else None
    if task.name in toy.TASKS:
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
    return Batches(
        features,
        tokenizer,
        batch_size=settings.batch_size if for_training else settings.eval_batch_size,
        seed=config.seed,
        device=choose_device(config.device),
    )


def build_student(config: Config, task: Task) -> tuple[nn.Module, Any]:
    """The student at its start, the same for every method with the same seed, and its tokenizer."""
    start, source = config.student, student_source(config)
    model = load_pretrained(source, task, seed=config.seed)
    if start.init == "teacher_layers":
        model = start_from_teacher_layers(model, _layers_to_copy(config, model))
    elif start.init == "random" and start.num_layers is not None:
        model = start_random(model, start.num_layers, seed=config.seed)
    tokenizer = load_tokenizer(source)
    check_vocabulary(source, model, tokenizer)
    return model, tokenizer


def student_source(config: Config) -> str:
    """Hub name or folder of the model that the student's start, and its tokenizer, come from."""
    if config.student.init == "pretrained" and config.student.pretrained is not None:
        return config.student.pretrained
    return config.teacher.pretrained


def check_pair(config: Config, task: Task) -> None:
    """Raises now what the student's run would raise only after the teacher has been fine-tuned."""
    name, limit = config.teacher.pretrained, config.data.max_length
    student, tokenizer = build_student(config, task)
    check_same_tokenizer(name, load_tokenizer(name), student_source(config), tokenizer)
    check_length(student_source(config), student, limit)
    teacher = load_pretrained(name, task, seed=config.seed)
    check_length(name, teacher, limit)
    for model in (teacher, student) if config.data.packing else ():
        check_packable(model)
    if config.method == "reptile":
        match_models(teacher, student, config.reptile.layer_map)


def wider_tokenizer(teacher: Any, student: Any) -> Any:
    """Of two tokenizers with the same ids, the one that gives more inputs: BERT needs segments, DistilBERT has none."""
    return max(student, teacher, key=lambda tokenizer: len(tokenizer.model_input_names))


def build_method(
    config: Config,
    student: Student,
    teacher: Teacher | None,
    settings: TrainConfig,
    *,
    teacher_moves: bool,
    processes: Processes = ALONE,
) -> BuiltMethod:
    """Fine-tuning where there is no teacher, distillation from a frozen one, or Reptile where it moves."""
    optimizer = adamw(student, lr=settings.lr, weight_decay=settings.weight_decay, eps=settings.adam_eps)
    shared: dict[str, Any] = {
        "student_optimizer": optimizer,
        "max_grad_norm": settings.max_grad_norm,
        "micro_batch_size": settings.micro_batch_size,
        "processes": processes,
    }
    if teacher is None:
        return BuiltMethod(FineTuner(student, **shared), {"lr": optimizer})
    loss = DistillationLoss(
        alpha=config.loss.alpha, temperature=config.loss.temperature, regression=config.loss.regression
    )
    if not teacher_moves:
        return BuiltMethod(KnowledgeDistiller(teacher, student, loss=loss, **shared), {"lr": optimizer})
    reptile = config.reptile
    teacher_optimizer: Optimizer = (
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
        share_forward=reptile.share_forward,
        **shared,
    )
    return BuiltMethod(distiller, {"lr": optimizer, "teacher_lr": teacher_optimizer})


def build_schedules(
    optimizers: dict[str, Optimizer], batches: Batches, settings: TrainConfig
) -> dict[str, LRScheduler]:
    """For each optimizer, a linear rise over the warm-up and a linear fall to 0 at the last step."""
    num_steps = count_steps(batches, settings.epochs, settings.max_steps)
    num_warmup_steps = round(settings.warmup_ratio * num_steps)
    return {
        name: transformers.get_linear_schedule_with_warmup(optimizer, num_warmup_steps, num_steps)
        for name, optimizer in optimizers.items()
    }


def prepare_model(model: Any, config: Config, device: str, *, may_compile: bool = True) -> None:
    """Moves a model, or this process's part of it, to the device, in place, to compute as the configuration says."""
    set_attention(model, config.compute.attention)
    if config.distributed.shard:
        shard_model(model, device)
    else:
        model.to(device)
    if config.compute.compile and may_compile:
        compile_forward(model, device)


def autocast_dtype(config: Config) -> torch.dtype | None:
    """The dtype of forward passes where it is not that of the weights."""
    return torch.bfloat16 if config.precision == "bf16" else None


def forward_options(config: Config) -> dict[str, Any]:
    """How `Classifier` computes."""
    return {"autocast_dtype": autocast_dtype(config), "packed": config.data.packing}


def choose_device(wanted: str) -> str:
    """The device to compute on. Raises `ConfigError` where it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto" and os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        return "cpu"  # accelerate launch --cpu
    if wanted == "auto":
        return next(device for device in there if there[device])
    if not there[wanted]:
        raise ConfigError(f"device = {wanted!r}: PyTorch finds none here; use device=auto or device=cpu")
    return wanted


def _cache_folder(cache_dir: str | Literal[False] | None) -> Path | None:
    if cache_dir is False:
        return None
    return default_folder() if cache_dir is None else Path(cache_dir).expanduser()


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
