"""Distillation with a teacher that learns to teach, by first-order Reptile updates.

Ma, Wang, Yu, Zhang: "Knowledge Distillation with Reptile Meta-Learning for Pretrained Language Model Compression",
COLING 2022. Each step makes three updates from one batch x:

    (1) inner update    theta_s' <- theta_s - lambda * grad L(x; theta_s; theta_t)      on a copy of the student
    (2) meta update     theta_t  <- theta_t - mu * (theta_t - theta_s')                 no second derivative
    (3) distillation    theta_s  <- theta_s - lambda * grad L(x; theta_s; theta_t)      with the updated teacher

The copy in (1) is never made: after one step from theta_s, theta_s' has a closed form in theta_s and the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from reptile_distil.gradients import Batch, Logs, accumulate_gradient, student_step
from reptile_distil.layer_map import match_models
from reptile_distil.losses import DistillationLoss, LossTerms
from reptile_distil.models import Student, Teacher


class ReptileDistiller:
    """Distils a student from a teacher that moves towards the student's next step.

    Args:
        teacher: sequence classifier, changed in place. Only its matched parameters move.
        student: sequence classifier of the teacher's architecture and width, changed in place.
        loss: L of equations 1 and 3.
        student_optimizer: takes equation 3's step over the student's parameters.
        teacher_optimizer: takes equation 2's step over (at least) the teacher's matched parameters. For
            `update="interpolate"`, `torch.optim.SGD(teacher.parameters(), lr=mu)`.
        layer_map: "first", "last", "skip", "both", or a list with one entry per student layer (see `layer_map`).
        update: "adamw" as the authors' released code: the difference theta_t - theta_s', clipped to
            `max_grad_norm` over the matched parameters, is the gradient of `teacher_optimizer`, a persistent AdamW,
            so that every matched weight moves about mu a step, whatever the gap. "interpolate" is the printed
            equation: the difference goes through plain SGD, unclipped.
        inner_optimizer: equation 1's step. "adamw": the first step of a fresh AdamW without weight decay (released
            code), that is lambda * g / (|g| + inner_eps). "sgd": lambda * g (printed equation).
        inner_lr: lambda of equation 1. The released code keeps it constant.
        inner_eps: epsilon of the fresh AdamW. The AdamW of transformers 4, with eps, equals this one with
            eps / sqrt(1 - beta2).
        max_grad_norm: the student's gradient is clipped to this norm in equations 1 and 3.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.

    Raises:
        LayerMapError: the two models cannot be matched.
        ValueError: an option that is none of the above, or an optimizer that does not hold the right parameters.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        student_optimizer: torch.optim.Optimizer,
        teacher_optimizer: torch.optim.Optimizer,
        layer_map: str | Sequence[int | Sequence[int]] = "skip",
        update: Literal["adamw", "interpolate"] = "adamw",
        inner_optimizer: Literal["adamw", "sgd"] = "adamw",
        inner_lr: float = 5e-5,
        inner_eps: float = 1e-8,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
    ) -> None:
        _check_choice("update", update, ("adamw", "interpolate"))
        _check_choice("inner_optimizer", inner_optimizer, ("adamw", "sgd"))
        self.teacher = Teacher.wrap(teacher)
        self.student = Student.wrap(student)
        self.loss = loss
        self.student_optimizer = student_optimizer
        self.teacher_optimizer = teacher_optimizer
        self.update = update
        self.inner_optimizer = inner_optimizer
        self.inner_lr = inner_lr
        self.inner_eps = inner_eps
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size = micro_batch_size
        self.pairs = match_models(self.teacher.model, self.student.model, layer_map)
        self._check_optimizers()

    def step(self, batch: Batch) -> Logs:
        """One step of equations 1 to 3; returns detached scalars, none of which has been waited for.

        The batch holds `input_ids`, `attention_mask` and perhaps `token_type_ids` (B, L), and `labels` (B,). The logs
        are `loss`, `task_loss`, `distillation_loss` and `grad_norm` of equation 3, `inner_loss` of equation 1, and
        `gap`, the norm of theta_t - theta_s' over the matched parameters before equation 2 closes some of it.
        """
        self.student.train()
        theta_s_prime, inner_loss = self.inner_update(batch)
        gap = self.update_teacher(theta_s_prime)
        logs = self.distil(batch)
        return {**logs, "inner_loss": inner_loss, "gap": gap}

    def inner_update(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Equation 1: theta_s' by student parameter name, and the loss at theta_s. The student does not change."""
        self.student.zero_grad(set_to_none=True)
        terms = accumulate_gradient(self._compute_loss, batch, self.micro_batch_size)
        nn.utils.clip_grad_norm_(self.student.parameters(), self.max_grad_norm)
        # theta_s' = theta_s - lambda * direction
        theta_s = {pair.student_name: pair.student for pair in self.pairs}
        with torch.no_grad():
            theta_s_prime = {
                name: theta.clone() if theta.grad is None else theta - self.inner_lr * self._direction(theta.grad)
                for name, theta in theta_s.items()
            }
        return theta_s_prime, terms.total

    def update_teacher(self, theta_s_prime: dict[str, Tensor]) -> Tensor:
        """Equation 2: moves the teacher's matched parameters; returns the norm of theta_t - theta_s' before."""
        self.teacher.zero_grad(set_to_none=True)
        for pair in self.pairs:
            pair.teacher.grad = pair.teacher.detach() - theta_s_prime[pair.student_name]
        theta_t = [pair.teacher for pair in self.pairs]
        gap = nn.utils.get_total_norm(theta.grad for theta in theta_t if theta.grad is not None)
        if self.update == "adamw":
            nn.utils.clip_grads_with_norm_(theta_t, self.max_grad_norm, gap)
        self.teacher_optimizer.step()
        self.teacher.zero_grad(set_to_none=True)
        return gap

    def distil(self, batch: Batch) -> Logs:
        """Equation 3: one step of the student towards the teacher as it is now."""
        return student_step(
            self._compute_loss,
            batch,
            parameters=self.student.parameters(),
            optimizer=self.student_optimizer,
            max_grad_norm=self.max_grad_norm,
            micro_batch_size=self.micro_batch_size,
        )

    def _compute_loss(self, batch: Batch) -> LossTerms:
        with_states = self.loss.needs_hidden_states
        targets = self.teacher.targets(batch, hidden_states=with_states)
        return self.loss.compare(self.student.outputs(batch, hidden_states=with_states), targets, batch)

    def _direction(self, gradient: Tensor) -> Tensor:
        if self.inner_optimizer == "sgd":
            return gradient
        return gradient / (gradient.abs() + self.inner_eps)

    def _check_optimizers(self) -> None:
        _check_holds(self.teacher_optimizer, [pair.teacher for pair in self.pairs], "teacher")
        trainable = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        _check_holds(self.student_optimizer, trainable, "student")
        for group in self.teacher_optimizer.param_groups if self.update == "interpolate" else ():
            if "betas" in group or group.get("momentum") or group.get("weight_decay"):
                raise ValueError(
                    "update='interpolate' takes plain steps of mu times the difference: pass "
                    "teacher_optimizer=torch.optim.SGD(teacher.parameters(), lr=mu), without momentum or weight decay"
                )


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(allowed)}")


def _check_holds(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], owner: str) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(id(parameter) not in held for parameter in parameters)
    if missing:
        raise ValueError(
            f"{owner}_optimizer does not hold {missing} of the {len(parameters)} {owner} parameters it must update: "
            f"build it from {owner}.parameters()"
        )
