"""Terms of the loss on hidden states: a student's layers after those of the teacher that they are matched with.

Hidden states are those of `Outputs`: the embeddings' output first, then that of each layer, (B, L, H) each. All terms
are means over the rows, of a mean within each row, so that micro-batches give the gradient of the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from reptile_distil.errors import ModelError
from reptile_distil.models.classifier import OutputName, Outputs, in_float
from reptile_distil.models.layer_map import LayerMap, resolve_layer_map

HIDDEN_STATES: frozenset[OutputName] = frozenset({"hidden_states"})


@dataclass(frozen=True)
class PatientLoss:
    """Patient knowledge distillation: ||h_S / ||h_S|| - h_T / ||h_T||||² of the first real token's ([CLS]) states.

    It is the mean over the rows and the matched pairs of layers. The student's last layer is left out, as published:
    what it knows is in the logits. The published code also divides by the width, so its weight of 100 is 100 / H here.

    Source: Sun, Cheng, Gan, Liu, "Patient Knowledge Distillation for BERT Model Compression", EMNLP 2019, equation 7.
    """

    weight: float
    layer_map: LayerMap
    name: ClassVar[str] = "patient"
    needs: ClassVar[frozenset[OutputName]] = HIDDEN_STATES

    def __post_init__(self) -> None:
        if not any(self.layer_map[:-1]):
            raise ModelError(
                "loss.patient leaves the student's last layer out, and no other layer of this student is matched: "
                "take a deeper student, another layer map, or loss.hidden"
            )

    def __call__(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """The term, a scalar, under the attention mask (B, L). Raises `ModelError` for states that do not fit."""
        pairs = [*_matched(student, teacher, mask, self.layer_map[:-1], depth=len(self.layer_map))]
        for h_s, h_t in pairs:
            _check_widths(h_s.shape[-1], h_t.shape[-1])
        rows, first = torch.arange(len(mask), device=mask.device), mask.argmax(dim=1)  # padding may be on the left
        distances = [
            (F.normalize(h_s[rows, first], dim=1) - F.normalize(h_t[rows, first], dim=1)).square().sum(dim=1).mean()
            for h_s, h_t in pairs
        ]
        return torch.stack(distances).mean()


@dataclass(frozen=True)
class HiddenLoss:
    """Mean squared difference of the hidden states of all real tokens, over width, tokens, rows and pairs of layers.

    Padding does not count: each row's mean is over its own tokens. With `embeddings` the embeddings' outputs are one
    more pair.
    """

    weight: float
    layer_map: LayerMap
    embeddings: bool = False
    name: ClassVar[str] = "hidden"
    needs: ClassVar[frozenset[OutputName]] = HIDDEN_STATES

    def __post_init__(self) -> None:
        _check_something_is_matched(self.layer_map)

    def __call__(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """The term, a scalar, under the attention mask (B, L). Raises `ModelError` for states that do not fit."""
        pairs = [*_matched(student, teacher, mask, self.layer_map, depth=len(self.layer_map))]
        if self.embeddings:
            pairs.append(_pair_at(student, teacher, mask, 0, 0))
        for h_s, h_t in pairs:
            _check_widths(h_s.shape[-1], h_t.shape[-1])
        return _mean_square(pairs, mask)


class ProjectedHiddenLoss(nn.Module):
    """Mean squared difference of W h_S and h_T, as `HiddenLoss` takes it; W is learned with the student.

    One matrix serves all layers, and another one the embeddings' outputs. Without bias, and at the start drawn with a
    standard deviation of 0.02, from PyTorch's random numbers.

    Source: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language
    Understanding", Findings of EMNLP 2020, equations 8 and 9. The released code has one W, with a bias, for both.

    Args:
        weight: what the term is multiplied by.
        layer_map: the teacher's layers that each layer of the student is compared with.
        student_width: H of the student's states.
        teacher_width: H of the teacher's.
        embeddings: whether the embeddings' outputs are one more pair.
    """

    name = "hidden"
    needs = HIDDEN_STATES

    def __init__(
        self, weight: float, layer_map: LayerMap, *, student_width: int, teacher_width: int, embeddings: bool = False
    ) -> None:
        super().__init__()
        _check_something_is_matched(layer_map)
        self.weight = weight
        self.layer_map = layer_map
        self.w_hidden = nn.Linear(student_width, teacher_width, bias=False)
        self.w_embeddings = nn.Linear(student_width, teacher_width, bias=False) if embeddings else None
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def forward(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """The term, a scalar, under the attention mask (B, L). Raises `ModelError` for states that do not fit."""
        matched = _matched(student, teacher, mask, self.layer_map, depth=len(self.layer_map))
        pairs = [(self.w_hidden(h_s), h_t) for h_s, h_t in matched]
        if self.w_embeddings is not None:
            h_s, h_t = _pair_at(student, teacher, mask, 0, 0)
            pairs.append((self.w_embeddings(h_s), h_t))
        return _mean_square(pairs, mask)


def match_states(
    teacher: Any, student: Any, layer_map: str | Sequence[int | Sequence[int]], *, any_width: bool = False
) -> LayerMap:
    """The teacher layers whose states each student layer's are compared with, under a map's name or an explicit list.

    Raises `LayerMapError` where the map does not fit the two depths, and unless `any_width` is fine, `ModelError` where
    the widths differ.
    """
    resolved = resolve_layer_map(layer_map, num_teacher_layers=_depth(teacher), num_student_layers=_depth(student))
    if not any_width:
        _check_widths(student.config.hidden_size, teacher.config.hidden_size)
    return resolved


def _check_something_is_matched(layer_map: LayerMap) -> None:
    if not any(layer_map):
        raise ModelError("loss.hidden has no layer to compare: loss.layer_map matches none")


def _mean_square(pairs: Sequence[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
    """Mean squared difference of states (B, L, H) over width, real tokens, rows and pairs."""
    share = share_of_tokens(mask, pairs[0][0].dtype)
    differences = [((h_s - h_t).square().mean(dim=2) * share).sum(dim=1).mean() for h_s, h_t in pairs]
    return torch.stack(differences).mean()


def _depth(model: Any) -> int:
    depth: int = model.config.num_hidden_layers
    return depth


def _pair_at(
    student: Outputs, teacher: Outputs, mask: Tensor, of_student: int, of_teacher: int
) -> tuple[Tensor, Tensor]:
    """Student's and teacher's states at these places, 0 the embeddings' output, in float32 at least."""
    pair = student.hidden_states[of_student], teacher.hidden_states[of_teacher]
    for owner, states in zip(("student", "teacher"), pair, strict=True):
        if states.shape[:2] != mask.shape:
            raise ModelError(
                f"the {owner}'s hidden states have length {states.shape[1]}, but the attention mask has length "
                f"{mask.shape[1]}: a loss on hidden states compares them token by token; leave it out, or take two "
                "models with one tokenizer whose layers do not pool tokens"
            )
    return in_float(pair[0]), in_float(pair[1])


def _matched(
    student: Outputs, teacher: Outputs, mask: Tensor, layer_map: LayerMap, *, depth: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Student's and teacher's states, in float32 at least, of each matched pair of layers."""
    student_states, teacher_states = student.hidden_states, teacher.hidden_states
    deepest = max(layer for layers in layer_map for layer in layers)
    for owner, states, num_layers in (("student", student_states, depth), ("teacher", teacher_states, deepest + 1)):
        if len(states) <= num_layers:
            raise ModelError(
                f"the {owner} gave {len(states)} hidden states, but a loss on hidden states needs at least "
                f"{num_layers + 1}, the embeddings' and those of {num_layers} layers"
            )
    for k, teacher_layers in enumerate(layer_map):
        for j in teacher_layers:
            yield _pair_at(student, teacher, mask, k + 1, j + 1)


def share_of_tokens(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L) of a row, for each of its tokens; 0 for padding."""
    weights = mask.to(dtype)
    return weights / weights.sum(dim=1, keepdim=True)


def _check_widths(student: int, teacher: int) -> None:
    if student != teacher:
        raise ModelError(
            f"loss.patient and loss.hidden compare states of equal width, but the student's is {student} and the "
            f"teacher's {teacher}: set both to 0, take models of equal width, or loss.hidden_projection: learned"
        )
