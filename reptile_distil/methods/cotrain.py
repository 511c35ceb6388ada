"""Distillation from a teacher that goes on learning its task, in the same forward pass that gives the soft labels.

Each step goes through both models once, and takes one gradient step of each:

    teacher    theta_t <- theta_t - mu * grad task loss(x; theta_t)
    student    theta_s <- theta_s - lambda * grad L(x; theta_s; theta_t)

This teacher hears nothing of its student: it is what a method owes to be compared with whose teacher moves for the
student's sake. It is Reptile without equation 2 (`mu` = 0, `task_lr` above 0, `order="student_first"`), which takes a
forward pass of the teacher more. `JointStep`, the step of both models, also serves `prokt`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss, LossTerms
from reptile_distil.methods.step import GradientStep, Logs, accumulate_gradient, check_trainable
from reptile_distil.models.classifier import Outputs, Student, Teacher, wrap_pair
from reptile_distil.runtime.processes import ALONE, Processes, whole
from reptile_distil.runtime.randomness import random_numbers_repeated

Order = Literal["together", "teacher_first"]


@dataclass(frozen=True)
class JointStep:
    """A gradient step of the teacher and one of the student, from one forward pass of each where the order allows it.

    Args:
        teacher: changed in place; always without dropout.
        student: changed in place.
        loss: L, the student's.
        teacher_loss: the teacher's, with the roles swapped: it compares the teacher's logits with the labels and with
            the student's logits, which get no gradient.
        gradient_step: how the student's step is taken, and clipped; the teacher's is clipped to the same norm.
        teacher_optimizer: takes the teacher's step.
        order: "together": both gradients come from the same weights. "teacher_first": the student learns from the
            teacher as it is after its step, which takes one forward pass of the teacher more. The student's forward
            pass serves both steps all the same; a batch cut into micro-batches goes through it twice, with the same
            dropout masks.

    Raises:
        ValueError: an unknown order, a model that is frozen, an optimizer that does not hold the right parameters, or
            weights in half precision.
    """

    teacher: Teacher
    student: Student
    loss: DistillationLoss
    teacher_loss: DistillationLoss
    gradient_step: GradientStep
    teacher_optimizer: torch.optim.Optimizer
    order: Order = "together"

    def __post_init__(self) -> None:
        if self.order not in ("together", "teacher_first"):
            raise ValueError(f"order = {self.order!r}: expected one of together, teacher_first")
        check_trainable(self.teacher_optimizer, self.teacher.trainable, "teacher")
        check_trainable(self.gradient_step.optimizer, self.student.trainable, "student")

    def take(self, batch: Batch) -> Logs:
        """Takes both steps; returns detached scalars.

        The logs are the terms of L and `grad_norm`, and of the teacher `teacher_loss` and `teacher_grad_norm`, before
        clipping.
        """
        self.student.train()
        self.gradient_step.optimizer.zero_grad(set_to_none=True)
        self.teacher.zero_grad(set_to_none=True)
        return self._take_together(batch) if self.order == "together" else self._take_teacher_first(batch)

    def _take_together(self, batch: Batch) -> Logs:
        terms = self._accumulate(self._both_losses, batch, [*self.student.parameters(), *self._theta_t()])
        teacher_loss = terms.extra["teacher"]
        grad_norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.gradient_step.max_grad_norm)
        teacher_grad_norm = self._step_teacher()
        self.gradient_step.step_optimizer()
        extra = {name: term for name, term in terms.extra.items() if name != "teacher"}
        of_student = terms._replace(total=terms.total - teacher_loss, extra=extra)
        return {
            **of_student.logs(),
            "grad_norm": whole(grad_norm),
            "teacher_loss": teacher_loss,
            "teacher_grad_norm": teacher_grad_norm,
        }

    def _take_teacher_first(self, batch: Batch) -> Logs:
        student = self._student_forward(batch)

        def compute_teacher_loss(part: Batch) -> LossTerms:
            with torch.no_grad():
                target = student(part)
            outputs = self.teacher.outputs(part, needs=self.teacher_loss.needs)
            return self._teacher_terms(outputs, target, part)

        def compute_loss(part: Batch) -> LossTerms:
            targets = self.teacher.targets(part, needs=self.loss.needs)
            return self.loss.compare(student(part), targets, part)

        with self._masks_for_both_passes(batch):
            teacher_terms = self._accumulate(compute_teacher_loss, batch, self._theta_t())
        teacher_grad_norm = self._step_teacher()
        logs = self.gradient_step.take(compute_loss, batch, self.student.parameters())
        return {**logs, "teacher_loss": teacher_terms.total, "teacher_grad_norm": teacher_grad_norm}

    def _both_losses(self, batch: Batch) -> LossTerms:
        needs = self.loss.needs
        student = self.student.outputs(batch, needs=needs)
        teacher = self.teacher.outputs(batch, needs=needs)
        terms = self.loss.compare(student, teacher.without_graph(), batch)
        of_teacher = self._teacher_terms(teacher, student, batch).total
        return terms._replace(total=terms.total + of_teacher, extra={**terms.extra, "teacher": of_teacher})

    def _teacher_terms(self, teacher: Outputs, student: Outputs, batch: Batch) -> LossTerms:
        return self.teacher_loss.compare(teacher, student.without_graph(), batch)

    def _step_teacher(self) -> Tensor:
        """Clips the gradient, takes the step, and leaves no gradient; returns its norm before clipping."""
        grad_norm = nn.utils.clip_grad_norm_(self._theta_t(), self.gradient_step.max_grad_norm)
        self.teacher_optimizer.step()
        self.teacher.zero_grad(set_to_none=True)
        return whole(grad_norm)

    def _accumulate(
        self, compute_loss: Callable[[Batch], LossTerms], batch: Batch, parameters: list[nn.Parameter]
    ) -> LossTerms:
        step = self.gradient_step
        return accumulate_gradient(
            compute_loss, batch, step.micro_batch_size, parameters=parameters, processes=step.processes
        )

    def _student_forward(self, batch: Batch) -> Callable[[Batch], Outputs]:
        """The student, or its outputs for this process's rows, computed once for both steps."""
        needs = self.loss.needs
        if self.gradient_step.splits(batch):
            return lambda part: self.student.outputs(part, needs=needs)
        outputs = self.student.outputs(self.gradient_step.own_rows(batch), needs=needs)
        return lambda _: outputs

    def _masks_for_both_passes(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        if self.gradient_step.splits(batch):
            return random_numbers_repeated(batch["input_ids"].device)
        return contextlib.nullcontext()

    def _theta_t(self) -> list[nn.Parameter]:
        return [theta for theta in self.teacher.parameters() if theta.requires_grad]


class CoTrainer:
    """Distils a student from a teacher that goes on learning the task.

    Args:
        teacher: sequence classifier, changed in place; of any width and architecture.
        student: sequence classifier, changed in place.
        loss: L, the student's. The teacher's is its task loss.
        student_optimizer: takes the student's step over its parameters.
        teacher_optimizer: takes the teacher's step over its parameters.
        order: "together" or "teacher_first" (see `JointStep`).
        max_grad_norm: each model's gradient is clipped to this norm.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.
        processes: those that share each batch.

    Raises `ValueError` as `JointStep`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        student_optimizer: torch.optim.Optimizer,
        teacher_optimizer: torch.optim.Optimizer,
        order: Order = "together",
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.teacher, self.student = wrap_pair(teacher, student)
        self.joint_step = JointStep(
            self.teacher,
            self.student,
            loss,
            loss.of_teacher(beta=0.0),
            GradientStep(student_optimizer, max_grad_norm, micro_batch_size, processes, tuple(loss.parameters())),
            teacher_optimizer,
            order,
        )

    def step(self, batch: Batch) -> Logs:
        """Takes a step of each model; returns detached scalars (see `JointStep.take`)."""
        return self.joint_step.take(batch)
