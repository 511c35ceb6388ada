"""A term of the loss on attention maps: which tokens a student's tokens attend to, after a teacher's.

The maps are computed from both models' queries and keys, of the matched layers alone, so that the models themselves may
attend by fused kernels, which give none; and the student's are those before dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from reptile_distil.errors import ModelError
from reptile_distil.losses.hidden_states import share_of_tokens
from reptile_distil.losses.relations import projections_at, similarities
from reptile_distil.models.classifier import OutputName, Outputs
from reptile_distil.models.layer_map import LayerMap

OF_QUERIES_AND_KEYS = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Model types whose attention scores are the products of queries and keys over √d, and nothing besides."""


@dataclass(frozen=True)
class AttentionLoss:
    """Mean squared difference of two models' attention maps, over matched layers, heads and pairs of real tokens.

    Where the models have as many heads as each other, head i is compared with head i; where not, the mean over the
    student's heads with the mean over the teacher's. Each row's mean is over its own pairs of tokens, the term's over
    the rows.

    Source: Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu, "TinyBERT: Distilling BERT for Natural Language
    Understanding", Findings of EMNLP 2020, equation 7, which compares scores. There pairs with padding count, as 0.

    Args:
        weight: what the term is multiplied by.
        layer_map: the teacher's layers that each layer of the student is compared with.
        of: "scores", before the softmax; or "probabilities", after it, without dropout.
        teacher_heads: attention heads of the teacher.
        student_heads: attention heads of the student.
    """

    weight: float
    layer_map: LayerMap
    of: Literal["scores", "probabilities"]
    teacher_heads: int
    student_heads: int
    name: ClassVar[str] = "attention"
    needs: ClassVar[frozenset[OutputName]] = frozenset({"projections"})

    def __post_init__(self) -> None:
        if not any(self.layer_map):
            raise ModelError("loss.attention has no layer to compare: loss.layer_map matches none")

    def __call__(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """The term, a scalar. Raises `ModelError` for a layer that is missing."""
        differences = [
            ((self._maps(student, k, "student", mask) - self._maps(teacher, j, "teacher", mask)).square().mean(dim=1))
            for k, layers in enumerate(self.layer_map)
            for j in layers
        ]
        of_a_row = share_of_tokens(mask, differences[0].dtype)
        share = of_a_row[:, :, None] * of_a_row[:, None, :]  # (B, L, L) of a row, for each pair of its tokens
        return torch.stack([(of_pairs * share).sum(dim=(1, 2)).mean() for of_pairs in differences]).mean()

    def _maps(self, outputs: Outputs, layer: int, owner: Literal["student", "teacher"], mask: Tensor) -> Tensor:
        """(B, A, L, L), or their mean (B, 1, L, L) over the heads."""
        queries, keys, _ = projections_at(outputs, layer, owner)
        maps = similarities(queries, keys, self.student_heads if owner == "student" else self.teacher_heads)
        if self.of == "probabilities":
            maps = torch.softmax(maps.masked_fill(~mask[:, None, None].bool(), -torch.inf), dim=3)
        return maps if self.student_heads == self.teacher_heads else maps.mean(dim=1, keepdim=True)


def check_maps(name: str, model: Any) -> None:
    """Raises `ModelError` for a model whose attention is more than its queries and keys."""
    kind = model.config.model_type
    relative = getattr(model.config, "position_embedding_type", "absolute") not in ("absolute", None)
    if kind not in OF_QUERIES_AND_KEYS or relative:
        raise ModelError(
            f"{name}: loss.attention computes the maps of {', '.join(OF_QUERIES_AND_KEYS)} models, and this one is "
            f"{kind}{', with relative positions' if relative else ''}: set loss.attention.weight=0, or take "
            "loss.relations"
        )
