"""A term of the loss on self-attention relations: how alike a student's tokens are to each other, after a teacher's.

It compares two models of any widths and numbers of attention heads, at one layer each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reptile_distil.errors import ModelError
from reptile_distil.losses.hidden_states import share_of_tokens
from reptile_distil.models.classifier import OutputName, Outputs, Projections, in_float


@dataclass(frozen=True)
class RelationLoss:
    """KL(R_T ‖ R_S), the sum for queries, keys and values, of R = softmax(A A^T / √d) over a row's tokens.

    A (L, d) are one relation head's parts of the layer's queries (keys, values): those of all attention heads, one
    behind the other, are cut into `num_heads` equal parts. Each row's mean is over its own tokens and the heads, the
    term's over the rows; padding neither counts nor is attended to.

    Source: Wang, Bao, Huang, Dong, Wei, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
    Pretrained Transformers", Findings of ACL 2021, equations 4 to 6, with Q-Q, K-K and V-V; there 48 heads.

    Args:
        weight: what the term is multiplied by.
        num_heads: relation heads; they divide both models' widths.
        teacher_layer: counted from 0.
        student_layer: counted from 0.
    """

    weight: float
    num_heads: int
    teacher_layer: int
    student_layer: int
    name: ClassVar[str] = "relations"
    needs: ClassVar[frozenset[OutputName]] = frozenset({"projections"})

    def __call__(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """The term, a scalar. Raises `ModelError` for a missing layer, or a width that the heads do not divide."""
        of_student = projections_at(student, self.student_layer, "student")
        of_teacher = projections_at(teacher, self.teacher_layer, "teacher")
        divergences = [self._divergence(a_s, a_t, mask) for a_s, a_t in zip(of_student, of_teacher, strict=True)]
        return torch.stack(divergences).sum()

    def _divergence(self, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        log_r_s, log_r_t = self._log_relation(student, mask), self._log_relation(teacher, mask)
        # Of padding, 0 * (-inf - -inf).
        difference = (log_r_t - log_r_s).masked_fill(~mask[:, None, None].bool(), 0)
        of_tokens = (log_r_t.exp() * difference).sum(dim=3).mean(dim=1)  # (B, L)
        return (of_tokens * share_of_tokens(mask, of_tokens.dtype)).sum(dim=1).mean()

    def _log_relation(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, num_heads, L, L), minus infinity for padding in the last dimension, from (B, L, D)."""
        scores = similarities(states, states, self.num_heads)
        return torch.log_softmax(scores.masked_fill(~mask[:, None, None].bool(), -torch.inf), dim=3)


def projections_at(outputs: Outputs, layer: int, owner: str) -> Projections:
    """Queries, keys and values of a layer. Raises `ModelError` where the owner has not given them."""
    if len(outputs.projections) <= layer:
        raise ModelError(
            f"the {owner} gave queries, keys and values of {len(outputs.projections)} layers, but a loss on them "
            f"needs those of layer {layer}, counted from 0"
        )
    return outputs.projections[layer]


def similarities(queries: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """(B, num_heads, L, L) products over √d, d = D / num_heads, of (B, L, D) each, in float32 at least."""
    for width in (queries.shape[2], keys.shape[2]):
        if width % num_heads:
            raise ModelError(f"queries, keys or values of width {width} cannot be cut into {num_heads} equal heads")
    q, k = (in_float(states).view(*states.shape[:2], num_heads, -1) for states in (queries, keys))
    scores: Tensor = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) / q.shape[3] ** 0.5
    return scores


def match_relations(
    *,
    num_heads: int,
    widths: tuple[int, int],
    depths: tuple[int, int],
    layers: tuple[int | None, int | None],
) -> tuple[int, int]:
    """The compared layers of teacher and student, the last ones for None.

    `widths`, `depths` and `layers` are the teacher's and the student's. Raises `ModelError` for a layer that there is
    not, and for heads that do not divide a width.
    """
    chosen = []
    for owner, width, depth, layer in zip(("teacher", "student"), widths, depths, layers, strict=True):
        if width % num_heads:
            raise ModelError(
                f"loss.relations.heads = {num_heads} does not divide the {owner}'s width of {width}: give a number "
                "that divides both models' widths"
            )
        if layer is not None and layer >= depth:
            raise ModelError(
                f"loss.relations.{owner}_layer = {layer}: the {owner}'s layers are 0 to {depth - 1}; null is the last"
            )
        chosen.append(depth - 1 if layer is None else layer)
    return chosen[0], chosen[1]
