"""Equation 1 in more than one step, or with an optimizer that remembers: on a copy of the student.

One fresh step has a closed form and needs no copy (see `reptile`); this is the plainer way for the rest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from reptile_distil.data.batches import Batch
from reptile_distil.gradients import student_step
from reptile_distil.losses import LossTerms
from reptile_distil.models.classifier import Student
from reptile_distil.runtime.processes import ALONE, Processes


class InnerLearner:
    """A copy of the student that starts each training step from theta_s and takes inner steps to theta_s'.

    Args:
        student: what is copied, and where the outcome is left.
        compute_loss: L(x; theta; theta_t) as a function of the learner theta and the batch x.
        optimizer: "adamw", new for each training step, its moments shared by the inner steps of one training step;
            "persistent_adamw", whose moments live on; or "sgd".
        lr: lambda, constant.
        eps: epsilon of either AdamW; neither decays weights.
        max_grad_norm: the gradient of each inner step is clipped to this norm.
        micro_batch_size: rows per forward pass; None takes a batch at once.
        processes: those that share each batch; the models must not be sharded.
    """

    def __init__(
        self,
        student: Student,
        compute_loss: Callable[[Student, Batch], LossTerms],
        *,
        optimizer: Literal["adamw", "sgd", "persistent_adamw"],
        lr: float,
        eps: float,
        max_grad_norm: float,
        micro_batch_size: int | None,
        processes: Processes = ALONE,
    ) -> None:
        self.student = student
        self.fast_student = copy.deepcopy(student)
        self.compute_loss = compute_loss
        self.lr = lr
        self.eps = eps
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size = micro_batch_size
        self.processes = processes
        self.optimizer = self._new_sgd() if optimizer == "sgd" else self._new_adamw()
        self.is_renewed = optimizer == "adamw"

    def learn(self, batches: Sequence[Batch]) -> Tensor:
        """Leaves theta_s - theta_s' in the student's `.grad`, after one inner step on each batch.

        The student's weights stay. Returns the mean of the losses before each step.
        """
        theta_s: list[Tensor] = list(self.student.parameters())
        theta: list[Tensor] = list(self.fast_student.parameters())
        with torch.no_grad():
            torch._foreach_copy_(theta, theta_s)
        if self.is_renewed:
            self.optimizer = self._new_adamw()
        self.fast_student.train()
        losses = [self._step(batch) for batch in batches]
        with torch.no_grad():
            for start, end in zip(theta_s, theta, strict=True):
                start.grad = start - end
        return torch.stack(losses).mean()

    def _step(self, batch: Batch) -> Tensor:
        logs = student_step(
            lambda part: self.compute_loss(self.fast_student, part),
            batch,
            parameters=self.fast_student.parameters(),
            optimizer=self.optimizer,
            max_grad_norm=self.max_grad_norm,
            micro_batch_size=self.micro_batch_size,
            processes=self.processes,
        )
        self.optimizer.zero_grad(set_to_none=True)
        return logs["loss"]

    def _new_adamw(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._trainable(), lr=self.lr, weight_decay=0.0, eps=self.eps)

    def _new_sgd(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self._trainable(), lr=self.lr)

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.fast_student.parameters() if parameter.requires_grad]
