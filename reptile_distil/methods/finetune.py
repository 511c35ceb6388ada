"""Training on the labels alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import LossTerms, task_loss_of
from reptile_distil.methods.step import GradientStep, Logs, check_trainable
from reptile_distil.models.classifier import Student
from reptile_distil.runtime.processes import ALONE, Processes


class FineTuner:
    """Trains a model on the labels alone. Arguments and errors as for `ReptileDistiller`.

    `class_weights` (C,) are those of `task_loss`.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        student_optimizer: torch.optim.Optimizer,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        processes: Processes = ALONE,
        class_weights: Tensor | None = None,
    ) -> None:
        self.student = Student.wrap(student)
        check_trainable(student_optimizer, self.student.trainable, "student")
        self.class_weights = class_weights
        self.gradient_step = GradientStep(student_optimizer, max_grad_norm, micro_batch_size, processes)

    def step(self, batch: Batch) -> Logs:
        """Takes one step on the task loss; returns detached scalars."""
        self.student.train()
        return self.gradient_step.take(self._compute_loss, batch, self.student.parameters())

    def _compute_loss(self, batch: Batch) -> LossTerms:
        loss = task_loss_of(self.student(batch), batch, self.class_weights)
        return LossTerms(loss, loss, torch.zeros_like(loss))
