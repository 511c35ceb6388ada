"""Terms of the loss on hidden states: a student's layers after those of the teacher that they are matched with.

Hidden states are those of `Outputs`: the embeddings' output first, then that of each layer, (B, L, H) each. Both terms
are means over the rows, of a mean within each row, so that micro-batches give the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

from reptile_distil.errors import ModelError
from reptile_distil.models.layer_map import LayerMap, resolve_layer_map

States = Sequence[Tensor]


@dataclass(frozen=True)
class PatientLoss:
    """Patient knowledge distillation: ||h_S / ||h_S|| - h_T / ||h_T||||² of the first token's ([CLS]) states.

    It is the mean over the rows and the matched pairs of layers. The student's last layer is left out, as published:
    what it knows is in the logits. The published code also divides by the width, so its weight of 100 is 100 / H here.

    Source: Sun, Cheng, Gan, Liu, "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, equation 7.
    """

    weight: float
    layer_map: LayerMap
    name: ClassVar[str] = "patient"

    def __post_init__(self) -> None:
        if not any(self.layer_map[:-1]):
            raise ModelError(
                "loss.patient leaves the student's last layer out, and no other layer of this student is matched: "
                "take a deeper student, another layer map, or loss.hidden"
            )

    def __call__(self, student_states: States, teacher_states: States, mask: Tensor) -> Tensor:
        """The term, a scalar. Raises `ModelError` for states that are missing."""
        distances = [
            (F.normalize(h_s[:, 0], dim=1) - F.normalize(h_t[:, 0], dim=1)).square().sum(dim=1).mean()
            for h_s, h_t in _matched(student_states, teacher_states, self.layer_map[:-1], depth=len(self.layer_map))
        ]
        return torch.stack(distances).mean()


@dataclass(frozen=True)
class HiddenLoss:
    """Mean squared difference of the hidden states of all real tokens, over width, tokens, rows and pairs of layers.

    Padding does not count: each row's mean is over its own tokens.
    """

    weight: float
    layer_map: LayerMap
    name: ClassVar[str] = "hidden"

    def __post_init__(self) -> None:
        if not any(self.layer_map):
            raise ModelError("loss.hidden has no layer to compare: loss.layer_map matches none")

    def __call__(self, student_states: States, teacher_states: States, mask: Tensor) -> Tensor:
        """The term, a scalar, under the attention mask (B, L). Raises `ModelError` for states that are missing."""
        share = mask / mask.sum(dim=1, keepdim=True)  # of a row, for each of its tokens; 0 for padding
        differences = [
            ((h_s - h_t).square().mean(dim=2) * share).sum(dim=1).mean()
            for h_s, h_t in _matched(student_states, teacher_states, self.layer_map, depth=len(self.layer_map))
        ]
        return torch.stack(differences).mean()


def match_states(teacher: Any, student: Any, layer_map: str | Sequence[int | Sequence[int]]) -> LayerMap:
    """The teacher layers whose states each student layer's are compared with, under a map's name or an explicit list.

    Raises `LayerMapError` where the map does not fit the two depths, and `ModelError` where the widths differ.
    """
    resolved = resolve_layer_map(layer_map, num_teacher_layers=_depth(teacher), num_student_layers=_depth(student))
    _check_widths(student.config.hidden_size, teacher.config.hidden_size)
    return resolved


def _depth(model: Any) -> int:
    depth: int = model.config.num_hidden_layers
    return depth


def _matched(
    student_states: States, teacher_states: States, layer_map: LayerMap, *, depth: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Student's and teacher's states, in float32 at least, of each matched pair of layers."""
    deepest = max(layer for layers in layer_map for layer in layers)
    for owner, states, num_layers in (("student", student_states, depth), ("teacher", teacher_states, deepest + 1)):
        if len(states) <= num_layers:
            raise ModelError(
                f"the {owner} gave {len(states)} hidden states, but a loss on hidden states needs at least "
                f"{num_layers + 1}, the embeddings' and those of {num_layers} layers"
            )
    for k, teacher_layers in enumerate(layer_map):
        for j in teacher_layers:
            h_s, h_t = student_states[k + 1], teacher_states[j + 1]
            _check_widths(h_s.shape[-1], h_t.shape[-1])
            yield _in_float(h_s), _in_float(h_t)


def _check_widths(student: int, teacher: int) -> None:
    if student != teacher:
        raise ModelError(
            f"loss.patient and loss.hidden compare states of equal width, but the student's is {student} and the "
            f"teacher's {teacher}: set both to 0, or take models of equal width"
        )


def _in_float(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
