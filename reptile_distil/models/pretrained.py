"""Transformers' sequence classifiers: loaded, given a new head, or made of another one's layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn

from reptile_distil.data.tasks import Task
from reptile_distil.errors import ModelError, first_sentence
from reptile_distil.models.checks import check_it_runs
from reptile_distil.models.layer_map import copy_layers, encoder_layers, resolve_layer_map
from reptile_distil.models.loading import load_config_file, load_files
from reptile_distil.models.toy import is_toy_model
from reptile_distil.runtime.randomness import seeded

logger = logging.getLogger(__name__)


def load_pretrained(name: str, task: Task, *, seed: int) -> Any:
    """The model `name` (folder, hub name or toy) in float32, with a new head for `task` drawn from `seed`.

    A head in the checkpoint is dropped. Raises `ModelError` where the model is missing or incomplete.
    """
    with seeded(seed):
        config = _with_labels(load_config_file(name), task)
        if is_toy_model(name):
            return _new_classifier(config)
        model, report = load_files(
            transformers.AutoModelForSequenceClassification,
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    body = model.base_model_prefix + "."
    lost = [key for key in report["missing_keys"] if key.startswith(body) and ".pooler." not in key]
    lost += [key for key, *_ in report["mismatched_keys"] if key.startswith(body)]
    if lost:
        raise ModelError(
            f"{name}: {len(lost)} weights of the encoder are not in the checkpoint or have another shape, "
            f"{sorted(lost)[0]!r} among them; it is no checkpoint of a {type(model).__name__}"
        )
    with seeded(seed):
        new = _new_classifier(config)
    for part, module in new.named_children():
        if part != model.base_model_prefix:
            getattr(model, part).load_state_dict(module.state_dict())
    check_it_runs(name, model)
    _output_layer(model, task.num_labels)
    return model


def load_finetuned(name: str, task: Task, label_names: Sequence[str] = ()) -> Any:
    """The classifier `name` (folder or hub name) in float32, its outputs in the task's label order.

    Labels are compared by the names in the model's own `id2label`, or, where those are not the task's (LABEL_0,
    LABEL_1, ...), by `label_names`. Outputs in another order are permuted. Raises `ModelError` where the head is
    missing, its labels are not the task's, or `label_names` gives them another order than the model does.
    """
    model, report = load_files(
        transformers.AutoModelForSequenceClassification,
        name,
        config=load_config_file(name),
        dtype=torch.float32,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise ModelError(
            f"{name}: no fine-tuned classifier: {len(report['missing_keys'])} weights are not in the checkpoint, "
            f"{sorted(report['missing_keys'])[0]!r} among them"
        )
    _order_labels(model, name, task, label_names)
    check_it_runs(name, model)
    return model


def start_from_teacher_layers(teacher: nn.Module, layers: Sequence[int]) -> nn.Module:
    """A student made of the given teacher layers (counted from 0) and copies of everything outside the layers."""
    if not layers:
        raise ModelError("a student needs at least one of the teacher's layers")
    depth = len(encoder_layers(teacher)[1])
    layer_map = resolve_layer_map(layers, num_teacher_layers=depth, num_student_layers=len(layers))
    with seeded(0):  # nearly every weight drawn here is overwritten below
        student = _new_classifier(_with_layers(teacher.config, layers))
    if new := copy_layers(teacher, student, layer_map):
        logger.info("%d weights that the copied layers do not have start anew: %s", len(new), ", ".join(new[:4]))
    return student


def start_random(teacher: nn.Module, num_layers: int, *, seed: int) -> nn.Module:
    """A student with `num_layers` layers of the teacher's shape and random weights drawn from `seed`."""
    with seeded(seed):
        return _new_classifier(_with_layers(teacher.config, range(num_layers)))


def _new_classifier(config: Any) -> nn.Module:
    # A configuration remembers the dtype its checkpoint was saved in; weights to be trained are float32 all the same.
    model: nn.Module = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    return model


def _with_labels(config: Any, task: Task) -> Any:
    names = task.label_names or ("score",)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = _problem_type(task)
    return config


def _problem_type(task: Task) -> str:
    """What transformers calls the kind of task; a pipeline chooses sigmoid, softmax or neither by it."""
    if task.is_regression:
        return "regression"
    return "multi_label_classification" if task.multi_label else "single_label_classification"


def _with_layers(config: Any, layers: Sequence[int]) -> Any:
    """The configuration of a model that has these layers alone; lists with an entry for each layer are cut too."""
    values = config.to_dict()
    for key, value in values.items():
        if _is_per_layer(key, value, config.num_hidden_layers):
            values[key] = [value[layer] for layer in layers]
    try:
        return type(config).from_dict({**values, "num_hidden_layers": len(layers)})
    except Exception as error:  # each architecture checks itself in its own way
        raise ModelError(
            f"{type(config).__name__}: cannot be cut to {len(layers)} layers: {first_sentence(error)}; "
            "give the student a checkpoint of its own: student.init=pretrained"
        ) from None


def _is_per_layer(key: str, value: Any, num_layers: int) -> bool:
    """Whether a value lists something of each layer: its kind of attention, the width of its window."""
    if not isinstance(value, list) or len(value) != num_layers:
        return False
    # Words and token ids of another matter may be as many by chance: DeBERTa's pos_att_type, BART's eos_token_id.
    return key.endswith("layer_types") or not (any(isinstance(item, str) for item in value) or key.endswith("_id"))


def _order_labels(model: Any, name: str, task: Task, label_names: Sequence[str]) -> None:
    if model.config.num_labels != task.num_labels:
        raise ModelError(f"{name}: has {model.config.num_labels} outputs, but task {task.name} needs {task.num_labels}")
    if task.is_regression:
        _with_labels(model.config, task)
        return
    kind, wanted = model.config.problem_type, _problem_type(task)
    if kind != wanted and "multi_label_classification" in (kind, wanted) and kind is not None:
        raise ModelError(
            f"{name}: its config.json says problem_type = {kind}, but task {task.name} is a {wanted}: its logits mean "
            "something else; fine-tune a model on this task"
        )
    order = _find_order(model, name, task, label_names)
    output = _output_layer(model, task.num_labels)
    with torch.no_grad():
        for parameter in output.parameters():
            parameter.copy_(parameter[order].clone())
    _with_labels(model.config, task)


def _find_order(model: Any, name: str, task: Task, label_names: Sequence[str]) -> list[int]:
    """The output of each of the task's labels; raises `ModelError` where it is not known, or given in two ways."""
    own_names = [str(model.config.id2label.get(i, f"LABEL_{i}")) for i in range(task.num_labels)]
    own, given = match_labels(own_names, task.label_names), match_labels(label_names, task.label_names)
    order = given if own is None else own
    if order is None or (label_names and given is None):
        raise ModelError(
            f"{name}: its labels are {', '.join(label_names or own_names)}, "
            f"but task {task.name} has {', '.join(task.label_names)}; "
            "if they mean the same, say in which order: teacher.label_names=[...]"
        )
    if own is not None and given not in (None, own):
        raise ModelError(
            f"{name}: its labels are {', '.join(own_names)}, but teacher.label_names says {', '.join(label_names)}; "
            "leave teacher.label_names out, or correct id2label in the model's config.json"
        )
    return order


def match_labels(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """The place among `names` of each wanted label; None where they do not name the same labels.

    Capitals, hyphens and the blanks around a name do not count, unless labels differ in nothing else.

    >>> match_labels(["Not-Entailment", "Entailment"], ["entailment", "not_entailment"])
    [1, 0]
    >>> match_labels(["us", "US"], ["US", "us"])
    [1, 0]
    """
    for spelling in (str, _plain):
        has, needed = [spelling(name) for name in names], [spelling(name) for name in wanted]
        if len(set(has)) == len(has) and sorted(has) == sorted(needed):
            return [has.index(name) for name in needed]
    return None


def _plain(label: str) -> str:
    return label.strip().lower().replace("-", "_").replace(" ", "_")


def _output_layer(model: Any, num_labels: int) -> nn.Linear:
    """The last linear layer outside the encoder; its rows are the classes."""
    linears = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(model.base_model_prefix + ".")
    ]
    if not linears or linears[-1].out_features != num_labels:
        raise ModelError(
            f"{type(model).__name__}: no linear layer with {num_labels} outputs found at its end, so its labels cannot "
            "be put in order; choose another model"
        )
    return linears[-1]
