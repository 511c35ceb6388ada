"""What keeps a teacher that moves towards its student good at the task: steps of its own, a pull towards its start."""

from __future__ import annotations

import torch
from torch import nn

from reptile_distil.data.batches import Batch
from reptile_distil.gradients import Logs, student_step
from reptile_distil.losses import LossTerms, labels_of, task_loss
from reptile_distil.models.classifier import Teacher
from reptile_distil.runtime.processes import ALONE, Processes, local_part


class TeacherUpkeep:
    """Follows equation 2; neither half is in the paper.

    Args:
        teacher: changed in place; where it stands now is its start.
        task_optimizer: takes a step down the teacher's own task loss on the batch, without dropout; None: no such step.
        pull: after that, every trainable weight goes this fraction of its way back to the start. 0: it does not;
            otherwise a copy of the weights is kept.
        max_grad_norm: the gradient of the task loss is clipped to this norm.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.
        processes: those that share each batch.

    Raises:
        ValueError: a pull that is no fraction.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        task_optimizer: torch.optim.Optimizer | None = None,
        pull: float = 0.0,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if not 0 <= pull <= 1:
            raise ValueError(f"pull = {pull}: expected a fraction between 0 and 1")
        self.teacher = Teacher.wrap(teacher)
        self.task_optimizer = task_optimizer
        self.pull = pull
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size = micro_batch_size
        self.processes = processes
        self._start = [theta.clone() for theta in self._weights()] if pull else []

    def after_update(self, batch: Batch) -> Logs:
        """The task step, then the pull; returns `teacher_task_loss`, before the step, where there is one."""
        logs = {} if self.task_optimizer is None else self._learn_task(batch, self.task_optimizer)
        if self.pull:
            # theta_t <- theta_t + pull * (theta_t(0) - theta_t)
            torch._foreach_lerp_(self._weights(), self._start, self.pull)
        return logs

    def _learn_task(self, batch: Batch, optimizer: torch.optim.Optimizer) -> Logs:
        logs = student_step(
            self._compute_loss,
            batch,
            parameters=[theta for theta in self.teacher.parameters() if theta.requires_grad],
            optimizer=optimizer,
            max_grad_norm=self.max_grad_norm,
            micro_batch_size=self.micro_batch_size,
            processes=self.processes,
        )
        self.teacher.zero_grad(set_to_none=True)
        return {"teacher_task_loss": logs["loss"]}

    def _compute_loss(self, batch: Batch) -> LossTerms:
        loss = task_loss(self.teacher(batch), labels_of(batch))
        return LossTerms(loss, loss, torch.zeros_like(loss))

    def _weights(self) -> list[torch.Tensor]:
        return [local_part(theta.detach()) for theta in self.teacher.parameters() if theta.requires_grad]
