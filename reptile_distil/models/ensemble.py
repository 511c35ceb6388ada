"""Several classifiers as one: the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from reptile_distil.models.classifier import Classifier


class Ensemble(nn.Module):
    """Classifiers of the same classes, whose tempered probabilities it averages; of one logit, the values.

    As a teacher at the same temperature T it gives the soft labels (p_1 + ... + p_K) / K, p_k = softmax(z_k / T): its
    logits are T * log of that. Members may have different architectures, and share the tokenizer.

    Args:
        members: the classifiers.
        temperature: T.

    Raises `ValueError` where there is no member.
    """

    def __init__(self, members: Sequence[Classifier], *, temperature: float) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)
        self.temperature = temperature
        self.config = members[0].model.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits (B, C) for ids, mask and types (B, L), as a transformers model gives them."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        batch = {name: tensor for name, tensor in given.items() if tensor is not None}
        logits = torch.stack([member(batch) for member in self.members])
        if logits.shape[2] == 1:
            return SequenceClassifierOutput(logits=logits.mean(dim=0))
        log_probabilities = torch.log_softmax(logits / self.temperature, dim=2)
        log_mean = torch.logsumexp(log_probabilities, dim=0) - math.log(len(self.members))
        return SequenceClassifierOutput(logits=self.temperature * log_mean)
