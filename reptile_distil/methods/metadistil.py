"""Distillation with a teacher that learns from a quiz, by second-order gradients: the method to compare Reptile with.

Zhou, Xu, McAuley: "BERT Learns to Teach: Knowledge Distillation with Meta Learning" (MetaDistil), ACL 2022. Each step
takes a training batch x and a quiz batch q of training rows that no student step ever uses:

    (1) assumed step    theta_s'(theta_t) = theta_s - lambda * grad L(x; theta_s; theta_t)
    (2) teacher step    theta_t  <- theta_t - mu * d/d theta_t task loss(q; theta_s'(theta_t))
    (3) distillation    theta_s  <- theta_s - lambda * grad L(x; theta_s; theta_t)      with the updated teacher

(2) differentiates the gradient of (1), so (1) keeps the graph of its own backward pass.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss, LossTerms, task_loss_of
from reptile_distil.methods.step import GradientStep, Logs, check_not_negative, check_teaches, check_trainable
from reptile_distil.models.classifier import wrap_pair


class MetaDistiller:
    """Distils a student from a teacher that learns to teach from the student's loss on a quiz batch.

    Teacher and student may have different widths and architectures. As in the authors' released code, the student has
    dropout in (1) and (3) but not in the quiz, the teacher never has, and the teacher's gradient is clipped.

    Args:
        teacher: sequence classifier, changed in place.
        student: sequence classifier, changed in place.
        loss: L of (1) and (3). Through its distillation term, and its hidden-state terms, the teacher learns.
        student_optimizer: takes (3)'s step over the student's parameters.
        teacher_optimizer: takes (2)'s step over the teacher's parameters; as published an AdamW, learning rate 1e-5.
        assumed_optimizer: (1)'s step. "sgd": lambda * g, as published. "adamw": the first step of a fresh AdamW,
            lambda * g / (|g| + assumed_eps); it hardly depends on the size of g, so the teacher hardly learns where
            |g| is large against `assumed_eps`.
        assumed_lr: lambda of (1), constant.
        assumed_eps: epsilon of the fresh AdamW.
        max_grad_norm: the teacher's gradient in (2) and the student's in (3) are clipped to this norm.

    Raises:
        ValueError: an unknown `assumed_optimizer`, a negative `assumed_lr`, a loss that does not depend on the teacher,
            a model that is frozen, an optimizer that does not hold the right parameters, or weights in half precision.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        student_optimizer: torch.optim.Optimizer,
        teacher_optimizer: torch.optim.Optimizer,
        assumed_optimizer: Literal["sgd", "adamw"] = "sgd",
        assumed_lr: float = 5e-5,
        assumed_eps: float = 1e-8,
        max_grad_norm: float = 1.0,
    ) -> None:
        if assumed_optimizer not in ("sgd", "adamw"):
            raise ValueError(f"assumed_optimizer = {assumed_optimizer!r}: expected 'sgd' or 'adamw'")
        check_not_negative(assumed_lr=assumed_lr, assumed_eps=assumed_eps)
        self.teacher, self.student = wrap_pair(teacher, student)
        check_teaches(loss, self.teacher, so_that="a quiz teaches it nothing")
        check_trainable(teacher_optimizer, self.teacher.trainable, "teacher")
        check_trainable(student_optimizer, self.student.trainable, "student")
        self.loss = loss
        self.teacher_optimizer = teacher_optimizer
        self.assumed_optimizer = assumed_optimizer
        self.assumed_lr = assumed_lr
        self.assumed_eps = assumed_eps
        self.max_grad_norm = max_grad_norm
        self.gradient_step = GradientStep(student_optimizer, max_grad_norm, of_the_loss=tuple(loss.parameters()))

    def step(self, batch: Batch, quiz_batch: Batch | None = None) -> Logs:
        """Takes steps (1) to (3); returns detached scalars, tensors that nothing has waited for.

        The logs are those of (3) (`loss`, `task_loss`, `distillation_loss`, `grad_norm`), `assumed_loss` of (1), and
        `quiz_loss` and `teacher_grad_norm`, before clipping, of (2). Raises `ValueError` without a `quiz_batch`.
        """
        if quiz_batch is None:
            raise ValueError(
                "MetaDistiller.step takes a quiz batch as second argument, of rows that no student step uses: call "
                "step(batch, quiz_batch)"
            )
        self.student.train()
        theta_s_prime, assumed_loss = self.assume_step(batch)
        quiz_loss = self.take_quiz(theta_s_prime, quiz_batch)
        teacher_grad_norm = self.update_teacher(quiz_loss)
        logs = self.distil(batch)
        return {
            **logs,
            "assumed_loss": assumed_loss,
            "quiz_loss": quiz_loss.detach(),
            "teacher_grad_norm": teacher_grad_norm,
        }

    def assume_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """(1): returns theta_s' by parameter name, differentiable in theta_t, and the loss at the unchanged theta_s."""
        needs = self.loss.needs
        # The fused attention kernels have no second derivative; the plain one is made of operations that have.
        with sdpa_kernel(SDPBackend.MATH):
            student = self.student.outputs(batch, needs=needs)
        loss = self.loss.compare(student, self.teacher.outputs(batch, needs=needs), batch).total
        theta_s = {name: theta for name, theta in self.student.named_parameters() if theta.requires_grad}
        gradients = torch.autograd.grad(loss, list(theta_s.values()), create_graph=True, allow_unused=True)
        # theta_s' = theta_s - lambda * direction
        theta_s_prime = {
            name: theta if gradient is None else theta - self.assumed_lr * self._direction(gradient)
            for (name, theta), gradient in zip(theta_s.items(), gradients, strict=True)
        }
        return theta_s_prime, loss.detach()

    def take_quiz(self, theta_s_prime: dict[str, Tensor], quiz_batch: Batch) -> Tensor:
        """Returns the task loss of theta_s' on the quiz batch, without dropout; differentiable in theta_t."""
        self.student.eval()
        logits = torch.func.functional_call(self.student, theta_s_prime, (quiz_batch,))
        self.student.train()
        return task_loss_of(logits, quiz_batch, self.loss.class_weights)

    def update_teacher(self, quiz_loss: Tensor) -> Tensor:
        """(2): one step of the teacher down the quiz loss; returns the norm of its gradient before clipping."""
        theta_t = [theta for theta in self.teacher.parameters() if theta.requires_grad]
        gradients = torch.autograd.grad(quiz_loss, theta_t, allow_unused=True)
        for theta, gradient in zip(theta_t, gradients, strict=True):
            theta.grad = gradient
        grad_norm = nn.utils.clip_grad_norm_(theta_t, self.max_grad_norm)
        self.teacher_optimizer.step()
        self.teacher.zero_grad(set_to_none=True)
        return grad_norm

    def distil(self, batch: Batch) -> Logs:
        """(3): one step of the student towards the teacher as it is now."""
        return self.gradient_step.take(self._compute_loss, batch, self.student.parameters())

    def _compute_loss(self, batch: Batch) -> LossTerms:
        needs = self.loss.needs
        targets = self.teacher.targets(batch, needs=needs)
        return self.loss.compare(self.student.outputs(batch, needs=needs), targets, batch)

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.assumed_optimizer == "sgd":
            return gradient
        return gradient / (gradient.abs() + self.assumed_eps)
