"""The loss of knowledge distillation (Hinton, Vinyals, Dean 2015), for classification and for regression."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn


class LossTerms(NamedTuple):
    """A loss and its two terms before weighting, each a scalar, the mean over the batch."""

    total: Tensor
    task: Tensor
    distillation: Tensor


class DistillationLoss(nn.Module):
    """L = (1 - alpha) * task loss + alpha * T² * KL(softmax(z_T / T) ‖ softmax(z_S / T)).

    The task loss is cross-entropy for C > 1 classes. One logit (C = 1) is regression: the task loss is the mean
    squared error, and since a softmax over one logit is constant and its KL always 0, the distillation term is the
    mean squared difference of the two logits, without T. `regression="none"` keeps the zero, as the authors' code does.

    Args:
        alpha: weight of the distillation term, in [0, 1].
        temperature: T > 0. T² keeps the gradient's size comparable between temperatures.
        regression: distillation term for one logit, "mse" or "none".
    """

    def __init__(
        self, *, alpha: float = 0.5, temperature: float = 5.0, regression: Literal["mse", "none"] = "mse"
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha = {alpha}: expected a weight from 0 to 1")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature = {temperature}: expected a number above 0")
        if regression not in ("mse", "none"):
            raise ValueError(f"regression = {regression!r}: expected 'mse' or 'none'")
        self.alpha = alpha
        self.temperature = temperature
        self.regression = regression

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> LossTerms:
        """The loss of a batch: student's and teacher's logits (B, C), labels (B,)."""
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits have shape {tuple(student_logits.shape)}, "
                f"teacher logits {tuple(teacher_logits.shape)}: expected the same rows and classes"
            )
        task = task_loss(student_logits, labels)
        distillation = self._distillation(_in_float(student_logits), _in_float(teacher_logits).detach())
        return LossTerms((1 - self.alpha) * task + self.alpha * distillation, task, distillation)

    def _distillation(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if student_logits.shape[1] > 1:
            return tempered_kl(student_logits, teacher_logits, self.temperature)
        if self.regression == "mse":
            return F.mse_loss(student_logits, teacher_logits)
        return student_logits.new_zeros(())

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return f"alpha={self.alpha}, temperature={self.temperature}, regression={self.regression!r}"


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for logits (B, C > 1), mean squared error for (B, 1); the mean over labels (B,)."""
    logits = _in_float(logits)
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))
    return F.cross_entropy(logits, labels)


def tempered_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² * KL(softmax(z_T / T) ‖ softmax(z_S / T)), the mean over the rows of (B, C)."""
    student_log_probs = F.log_softmax(student_logits / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher_logits / temperature, dim=1)
    kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)
    return temperature**2 * kl


def _in_float(logits: Tensor) -> Tensor:
    """At least float32: half precision loses small probabilities, and autocast may have produced it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
