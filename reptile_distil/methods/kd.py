"""Distillation from a teacher that stays as it is."""

from __future__ import annotations

import torch
from torch import nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss, LossTerms, task_loss_of
from reptile_distil.methods.step import GradientStep, Logs, accumulate_gradient, check_not_negative, check_trainable
from reptile_distil.models.classifier import Outputs, wrap_pair
from reptile_distil.runtime.processes import ALONE, Processes, whole


class KnowledgeDistiller:
    """Distils a student from a teacher that stays as it is. Arguments and errors as for `ReptileDistiller`.

    A batch may bring the teacher's `teacher_logits` (B, C); without them, or where the loss needs more than logits,
    the teacher computes them.

    `extra_rows` is the weight of the task loss on a second batch, of rows that the teacher says nothing of:

        theta_s <- theta_s - lambda * grad [L(x; theta_s; theta_t) + extra_rows * task loss(q; theta_s)]

    It is the control of every method whose teacher learns from a quiz q: what the same rows are worth as plain labels.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        extra_rows: float = 0.0,
        student_optimizer: torch.optim.Optimizer,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        check_not_negative(extra_rows=extra_rows)
        self.teacher, self.student = wrap_pair(teacher, student)
        check_trainable(student_optimizer, self.student.trainable, "student")
        self.loss = loss
        self.extra_rows = extra_rows
        self.gradient_step = GradientStep(
            student_optimizer, max_grad_norm, micro_batch_size, processes, tuple(loss.parameters())
        )

    def step(self, batch: Batch, extra_batch: Batch | None = None) -> Logs:
        """Takes one step on the distillation loss; returns detached scalars.

        With `extra_rows` it takes a second batch, and returns its `extra_rows_loss`, too. Raises `ValueError` where
        that is missing, or not wanted.
        """
        if (extra_batch is not None) != (self.extra_rows > 0):
            raise ValueError(f"extra_rows is {self.extra_rows}: a second batch comes with a weight above 0 alone")
        self.student.train()
        if extra_batch is None:
            return self.gradient_step.take(self._compute_loss, batch, self.student.parameters())
        return self._take_with_extra_rows(batch, extra_batch)

    def _take_with_extra_rows(self, batch: Batch, extra_batch: Batch) -> Logs:
        step = self.gradient_step
        step.optimizer.zero_grad(set_to_none=True)
        terms, extra = (
            accumulate_gradient(compute_loss, rows, step.micro_batch_size, processes=step.processes)
            for compute_loss, rows in ((self._compute_loss, batch), (self._compute_extra_loss, extra_batch))
        )
        theta_s = list(self.student.parameters())
        step.processes.sum_gradients(theta_s)
        grad_norm = nn.utils.clip_grad_norm_(theta_s, step.max_grad_norm)
        step.step_optimizer()
        logs = terms._replace(total=terms.total + extra.total).logs()
        return {**logs, "grad_norm": whole(grad_norm), "extra_rows_loss": extra.task}

    def _compute_loss(self, batch: Batch) -> LossTerms:
        needs = self.loss.needs
        if "teacher_logits" in batch and not needs:
            targets = Outputs(batch["teacher_logits"])
        else:
            targets = self.teacher.targets(batch, needs=needs)
        return self.loss.compare(self.student.outputs(batch, needs=needs), targets, batch)

    def _compute_extra_loss(self, extra_batch: Batch) -> LossTerms:
        loss = task_loss_of(self.student(extra_batch), extra_batch, self.loss.class_weights)
        return LossTerms(self.extra_rows * loss, loss, torch.zeros_like(loss))
