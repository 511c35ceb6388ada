"""Distillation from a teacher that stays as it is."""

from __future__ import annotations

import torch
from torch import nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss, LossTerms
from reptile_distil.methods.step import GradientStep, Logs, check_trainable
from reptile_distil.models.classifier import wrap_pair
from reptile_distil.runtime.processes import ALONE, Processes


class KnowledgeDistiller:
    """Distils a student from a teacher that stays as it is. Arguments and errors as for `ReptileDistiller`."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        student_optimizer: torch.optim.Optimizer,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.teacher, self.student = wrap_pair(teacher, student)
        check_trainable(student_optimizer, self.student.trainable, "student")
        self.loss = loss
        self.gradient_step = GradientStep(student_optimizer, max_grad_norm, micro_batch_size, processes)

    def step(self, batch: Batch) -> Logs:
        """Takes one step on the distillation loss; returns detached scalars."""
        self.student.train()
        return self.gradient_step.take(self._compute_loss, batch, self.student.parameters())

    def _compute_loss(self, batch: Batch) -> LossTerms:
        with_states = self.loss.needs_hidden_states
        targets = self.teacher.targets(batch, hidden_states=with_states)
        return self.loss.compare(self.student.outputs(batch, hidden_states=with_states), targets, batch)
