"""Options that change the published Reptile step, for ablations: each changes one thing.

`InnerLearner` is equation 1 in more than one step, or with an optimizer that keeps its state, on a copy of the student:
one fresh step has a closed form and needs no copy (see `reptile`). `TeacherRegularization` keeps a teacher that moves
towards its student good at the task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.inner_step import can_share_forward
from reptile_distil.losses.distillation import LossTerms, task_loss_of
from reptile_distil.methods.adamw import ADAMW, AdamwName, can_be_fused, decay_groups, forget_moments
from reptile_distil.methods.step import GradientStep, Logs
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.layer_map import ParameterPair, part_of_model
from reptile_distil.runtime.processes import local_part


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """How a step departs from the published one; by default not at all.

    Args:
        inner_steps: steps of equation 1, on successive batches.
        inner_batch: "same": equation 1 begins with the batch of equation 3. "held_out": it takes others.
        every: the teacher moves in the first step and every `every`-th after it; the others are equation 3 alone.
        move_head: whether equation 2 moves the pooler and the classifier.
        move_embeddings: whether it moves the embeddings.

    Raises:
        ValueError: an option out of range.
    """

    inner_steps: int = 1
    inner_batch: Literal["same", "held_out"] = "same"
    every: int = 1
    move_head: bool = True
    move_embeddings: bool = True

    def __post_init__(self) -> None:
        if self.inner_batch not in ("same", "held_out"):
            raise ValueError(f"inner_batch = {self.inner_batch!r}: expected one of same, held_out")
        for name in ("inner_steps", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")

    @property
    def uses_other_batches(self) -> bool:
        """Whether equation 1 takes other batches than that of equation 3, or more."""
        return self.inner_steps > 1 or self.inner_batch == "held_out"

    def moving_pairs(self, pairs: Sequence[ParameterPair], student: nn.Module) -> list[ParameterPair]:
        """The matched pairs that take part in equation 2."""
        if self.move_head and self.move_embeddings:
            return list(pairs)
        moves = {"head": self.move_head, "embeddings": self.move_embeddings, "encoder": True}
        return [pair for pair in pairs if moves[part_of_model(student, pair.student_name)]]

    def inner_batches(self, batch: Batch, given: Sequence[Batch] | None) -> Sequence[Batch]:
        """The batches of equation 1's inner steps: those given, or else the batch itself.

        Raises `ValueError` for batches that are missing, too many, or given where none are taken.
        """
        options = f"inner_steps is {self.inner_steps} and inner_batch is {self.inner_batch!r}"
        if given is None:
            if self.uses_other_batches:
                raise ValueError(f"inner batches are missing: {options}; call step(batch, inner_batches)")
            return [batch]
        if not self.uses_other_batches or len(given) != self.inner_steps:
            raise ValueError(f"{len(given)} inner batches are given, but {options}")
        return given


def check_no_inner_step(ablation: Ablation, inner_optimizer: str, *, share_forward: bool) -> None:
    """Raises `ValueError` for options of an inner step that `order="student_first"` does not have."""
    if ablation.uses_other_batches or inner_optimizer != "adamw" or not share_forward:
        raise ValueError(
            "order = 'student_first' has no inner step: leave inner_optimizer, inner_steps, inner_batch and "
            "share_forward at their defaults"
        )


def check_forward_can_be_shared(ablation: Ablation, inner_optimizer: str) -> None:
    """Raises `ValueError` where equations 1 and 3 cannot take one forward pass of the student."""
    if not can_share_forward(
        inner_steps=ablation.inner_steps, inner_batch=ablation.inner_batch, inner_optimizer=inner_optimizer
    ):
        raise ValueError(
            "share_forward = True: equation 1 can share equation 3's forward pass only as one fresh step on the same "
            "batch; set share_forward = False with inner_steps > 1, held_out or persistent_adamw"
        )


class InnerLearner:
    """A copy of the student that starts each training step from theta_s and takes inner steps to theta_s'.

    Args:
        student: the model that is copied, and in whose `.grad` theta_s - theta_s' is left.
        compute_loss: L(x; theta; theta_t) as a function of the learner theta and the batch x.
        optimizer: "adamw", new for each training step, its moments shared by the inner steps of one training step;
            "persistent_adamw", whose moments live on; or "sgd".
        lr: lambda, constant.
        eps: epsilon of either AdamW.
        adamw: whose AdamW it is.
        weight_decay: decay of weight matrices by either AdamW.
        gradient_step: the norm that each inner step's gradient is clipped to, the size of micro-batches and the
            processes; its optimizer is not used. The models must not be sharded.
    """

    def __init__(
        self,
        student: Student,
        compute_loss: Callable[[Student, Batch], LossTerms],
        *,
        optimizer: Literal["adamw", "sgd", "persistent_adamw"],
        lr: float,
        eps: float,
        adamw: AdamwName = "torch",
        weight_decay: float = 0.0,
        gradient_step: GradientStep,
    ) -> None:
        self.student = student
        self.fast_student = copy.deepcopy(student)
        self.compute_loss = compute_loss
        self.lr = lr
        self.eps = eps
        self.adamw = adamw
        self.weight_decay = weight_decay
        self.gradient_step = gradient_step
        self.is_renewed = optimizer == "adamw"
        self.optimizer = self._new_sgd() if optimizer == "sgd" else self._new_adamw()

    def learn(self, batches: Sequence[Batch]) -> Tensor:
        """Leaves theta_s - theta_s' in the student's `.grad`, after one inner step on each batch.

        The student's weights stay. Returns the mean of the losses before each step.
        """
        theta_s: list[Tensor] = list(self.student.parameters())
        theta: list[Tensor] = list(self.fast_student.parameters())
        with torch.no_grad():
            torch._foreach_copy_(theta, theta_s)
        if self.is_renewed:
            forget_moments(self.optimizer)
        self.fast_student.train()
        step = replace(self.gradient_step, optimizer=self.optimizer, of_the_loss=())
        losses = [step.take(self._compute_loss, batch, self.fast_student.parameters())["loss"] for batch in batches]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for start, end in zip(theta_s, theta, strict=True):
                start.grad = start - end
        return torch.stack(losses).mean()

    def _compute_loss(self, batch: Batch) -> LossTerms:
        return self.compute_loss(self.fast_student, batch)

    def _new_adamw(self) -> torch.optim.Optimizer:
        weights = self._trainable()
        # A persistent one is in checkpoints, whose optimizers are compared with those of the run that goes on.
        fused = (self.is_renewed and can_be_fused(weights)) or None
        groups: Any = decay_groups(self.fast_student, self.weight_decay) if self.weight_decay else weights
        return ADAMW[self.adamw](groups, lr=self.lr, weight_decay=0.0, eps=self.eps, fused=fused)

    def _new_sgd(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self._trainable(), lr=self.lr)

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.fast_student.parameters() if parameter.requires_grad]


class TeacherRegularization:
    """Keeps a teacher that moves towards its student good at the task; follows equation 2, and is not in the paper.

    Args:
        teacher: changed in place; where it stands now is its start.
        task_step: takes a step down the teacher's own task loss on the batch, without dropout; None: no such step.
        pull: after that, every trainable weight goes this fraction of its way back to the start. 0: it does not;
            otherwise a copy of the weights is kept.
        class_weights: (C,) those of `task_loss` in the task step.

    Raises:
        ValueError: a pull that is no fraction.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        task_step: GradientStep | None = None,
        pull: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        if not 0 <= pull <= 1:
            raise ValueError(f"pull = {pull}: expected a fraction between 0 and 1")
        self.teacher = Teacher.wrap(teacher)
        self.task_step = task_step
        self.class_weights = class_weights
        self.pull = pull
        self._start = [theta.clone() for theta in self._weights()] if pull else []

    def after_update(self, batch: Batch) -> Logs:
        """The task step, then the pull; returns `teacher_task_loss`, before the step, where there is one."""
        logs = {} if self.task_step is None else self._learn_task(batch, self.task_step)
        if self.pull:
            # theta_t <- theta_t + pull * (theta_t(0) - theta_t)
            torch._foreach_lerp_(self._weights(), self._start, self.pull)
        return logs

    def _learn_task(self, batch: Batch, task_step: GradientStep) -> Logs:
        logs = task_step.take(self._compute_loss, batch, (t for t in self.teacher.parameters() if t.requires_grad))
        self.teacher.zero_grad(set_to_none=True)
        return {"teacher_task_loss": logs["loss"]}

    def _compute_loss(self, batch: Batch) -> LossTerms:
        loss = task_loss_of(self.teacher(batch), batch, self.class_weights)
        return LossTerms(loss, loss, torch.zeros_like(loss))

    def _weights(self) -> list[torch.Tensor]:
        return [local_part(theta.detach()) for theta in self.teacher.parameters() if theta.requires_grad]
