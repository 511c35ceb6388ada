"""Distillation from a teacher that goes on learning while its student holds it back: ProKT.

Shi, Song, Zhou, Li, Li: "Follow Your Path: a Progressive Method for Knowledge Distillation", ECML PKDD 2021. A teacher
that has converged is far from what a small student can be; one that learns beside it, and is kept near it, gives
targets within its reach. Each step takes a step of both models:

    teacher    theta_t <- theta_t - mu * grad [(1 - beta) * task loss(x; theta_t) + beta * T² * KL(p_S ‖ p_T)]
    student    theta_s <- theta_s - lambda * grad L(x; theta_s; theta_t)

with the probabilities p at temperature T, the student's as the target of the teacher's term.

The authors' released code differs from this in four things: the teacher begins pretrained, not fine-tuned, both
classifiers at 0; the student has no task loss (alpha = 1) and T is 1; the teacher has dropout in its own step; and the
student learns from the teacher after its step (`order="teacher_first"`), in new forward passes of both models. Here
both gradients come from the same forward passes, unless that order is asked for.
"""

from __future__ import annotations

import torch
from torch import nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.cotrain import JointStep, Order
from reptile_distil.methods.step import GradientStep, Logs
from reptile_distil.models.classifier import wrap_pair
from reptile_distil.runtime.processes import ALONE, Processes


class ProKTDistiller:
    """Distils a student from a teacher that goes on learning the task and stays near its student.

    Args:
        teacher: sequence classifier, changed in place; of any width and architecture.
        student: sequence classifier, changed in place.
        loss: L, the student's. Its temperature and its kind of distillation term are the teacher's, too.
        beta: weight of the student in the teacher's loss, in [0, 1]; as published 0.4 for six BERT layers. 0 leaves the
            task loss (see `cotrain`).
        student_optimizer: takes the student's step over its parameters.
        teacher_optimizer: takes the teacher's step over its parameters; as published an AdamW, learning rate 3e-5.
        order: "together", or "teacher_first" as published (see `JointStep`).
        max_grad_norm: each model's gradient is clipped to this norm.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.
        processes: those that share each batch.

    Raises:
        ValueError: a beta that is no weight, and as `JointStep`.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        beta: float = 0.4,
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
            loss.of_teacher(beta=beta),
            GradientStep(student_optimizer, max_grad_norm, micro_batch_size, processes, tuple(loss.parameters())),
            teacher_optimizer,
            order,
        )

    def step(self, batch: Batch) -> Logs:
        """Takes a step of each model; returns detached scalars (see `JointStep.take`)."""
        return self.joint_step.take(batch)
