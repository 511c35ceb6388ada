"""From a configuration to a task, models and a device; `build_data` and `build_method` make the rest.

These three are the last that know the configuration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reptile_distil.build_method import build_loss
from reptile_distil.config.config import Config
from reptile_distil.data import toy
from reptile_distil.data.tasks import Task, get_task
from reptile_distil.errors import ConfigError, LayerMapError
from reptile_distil.models.layer_map import encoder_layers, match_models, resolve_layer_map
from reptile_distil.models.packing import check_packable
from reptile_distil.models.pretrained import (
    check_length,
    load_finetuned,
    load_pretrained,
    start_from_teacher_layers,
    start_random,
)
from reptile_distil.models.tokenizer import check_same_tokenizer, check_vocabulary, load_tokenizer
from reptile_distil.runtime.compute import compile_forward, set_attention
from reptile_distil.runtime.processes import Processes, shard_model


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


def build_student(config: Config, task: Task, finetuned_teacher: str | None = None) -> tuple[nn.Module, Any]:
    """The student at its start, the same for every method with the same seed, and its tokenizer.

    `finetuned_teacher` is the folder that `student.init: finetuned_layers` starts from; before there is one, the
    pretrained teacher stands in for it.
    """
    start, source = config.student, student_source(config)
    if start.init == "finetuned_layers" and finetuned_teacher is not None:
        source = finetuned_teacher
        model = load_finetuned(source, task, config.teacher.label_names)
    else:
        model = load_pretrained(source, task, seed=config.seed)
    if start.init in ("teacher_layers", "finetuned_layers"):
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
    build_loss(config, teacher, student)
    if config.method == "reptile":
        match_models(teacher, student, config.reptile.layer_map)


def check_processes(config: Config, processes: Processes) -> None:
    """Raises `ConfigError` for a method that several processes cannot share."""
    if processes.count > 1 and "metadistil" in (config.method, *config.compare_with):
        raise ConfigError(
            f"method metadistil takes one process, but {processes.count} were started: start it with python"
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


def autocast_dtype(config: Config) -> torch.dtype | None:
    """The dtype of forward passes where it is not that of the weights."""
    return torch.bfloat16 if config.precision == "bf16" else None


def forward_options(config: Config) -> dict[str, Any]:
    """How `Classifier` computes."""
    return {"autocast_dtype": autocast_dtype(config), "packed": config.data.packing}


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
