"""From a configuration to a loss whose terms fit the two models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reptile_distil.builders.plugins import load_loss, make
from reptile_distil.config.config import Config
from reptile_distil.data.features import Features
from reptile_distil.errors import ConfigError
from reptile_distil.losses.attention_maps import AttentionLoss
from reptile_distil.losses.distillation import DistillationLoss, HiddenTerm, balanced_weights
from reptile_distil.losses.hidden_states import HiddenLoss, PatientLoss, ProjectedHiddenLoss, match_states
from reptile_distil.losses.relations import RelationLoss, match_relations
from reptile_distil.runtime.randomness import seeded


def class_weights(config: Config, features: Features, label_names: Sequence[str], device: str) -> Tensor | None:
    """`loss.class_weights` (C,) on the device; balanced ones are those of these training rows. None where none are set.

    Balanced are rows / (classes * rows of the class), whose mean over the rows is 1; for a multi-label task, of each
    label's positives, negatives / positives. Raises `ConfigError` for regression, for another number of weights than of
    labels, and where balanced weights need a row that is not there.
    """
    wanted, num_labels = config.loss.class_weights, len(label_names)
    if wanted is None:
        return None
    if not num_labels:
        raise ConfigError(f"loss.class_weights: task {config.task_name} is a regression, which has no classes")
    if wanted != "balanced":
        if len(wanted) != num_labels:
            raise ConfigError(
                f"loss.class_weights: {len(wanted)} weights, but task {config.task_name} has {num_labels} labels: "
                f"{', '.join(label_names)}"
            )
        return torch.tensor(wanted, device=device)
    return balanced_weights(np.asarray(features["label"]), label_names).to(device)


def build_loss(
    config: Config, teacher: nn.Module, student: nn.Module, weights: Tensor | None = None
) -> DistillationLoss:
    """The loss, its hidden terms matched for these two models. Raises `ModelError` where they do not fit."""
    loss = config.loss
    loss_class: type[DistillationLoss] = load_loss(config)
    built: DistillationLoss = make(
        "loss.name",
        loss_class,
        alpha=loss.alpha,
        temperature=loss.temperature,
        regression=loss.regression,
        soft=loss.soft,
        class_weights=weights,
        hidden_terms=_hidden_terms(config, teacher, student),
        **config.loss.options,
    )
    return built.to(next(student.parameters()).device)


def _hidden_terms(config: Config, teacher: Any, student: Any) -> list[HiddenTerm]:
    loss, terms = config.loss, list[HiddenTerm]()
    shapes = teacher.config, student.config
    if loss.patient:
        terms.append(PatientLoss(loss.patient, match_states(teacher, student, loss.layer_map)))
    if loss.hidden:
        layer_map = match_states(teacher, student, loss.layer_map, any_width=loss.hidden_projection == "learned")
        if loss.hidden_projection == "none":
            terms.append(HiddenLoss(loss.hidden, layer_map, loss.hidden_embeddings))
        else:
            widths = {"teacher_width": shapes[0].hidden_size, "student_width": shapes[1].hidden_size}
            with seeded(config.seed):
                terms.append(ProjectedHiddenLoss(loss.hidden, layer_map, embeddings=loss.hidden_embeddings, **widths))
    if loss.relations.weight:
        layers = match_relations(
            num_heads=loss.relations.heads,
            widths=(shapes[0].hidden_size, shapes[1].hidden_size),
            depths=(shapes[0].num_hidden_layers, shapes[1].num_hidden_layers),
            layers=(loss.relations.teacher_layer, loss.relations.student_layer),
        )
        terms.append(RelationLoss(loss.relations.weight, loss.relations.heads, *layers))
    if loss.attention.weight:
        layer_map = match_states(teacher, student, loss.layer_map, any_width=True)
        heads = shapes[0].num_attention_heads, shapes[1].num_attention_heads
        terms.append(AttentionLoss(loss.attention.weight, layer_map, loss.attention.of, *heads))
    return terms
