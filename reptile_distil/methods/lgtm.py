"""Distillation with a teacher that learns which of its soft labels help: LGTM, learning good teacher matters.

Ren, Zhong, Shi, Zhu, Yuan, Li: "Tailoring Instructions to Student's Learning Levels Boosts Knowledge Distillation", ACL
2023. Each step takes a training batch x and a quiz batch q of training rows that no student step ever uses:

    (1) assumed step    theta_s' <- theta_s - lambda * grad L(x; theta_s; theta_t)          on a copy of the student
    (2) quiz            v        <- grad task loss(q; theta_s')                             in the student's weights
    (3) teacher step    theta_t  <- theta_t - mu * grad [A(x; theta_t) - c * I(x; theta_t)]
    (4) distillation    theta_s  <- theta_s - lambda * grad L(x; theta_s; theta_t)          with the updated teacher

    I = [L(x; theta_s + e v; theta_t) - L(x; theta_s - e v; theta_t)] / (2 e),              e = radius / ||v||
    A = (1 - beta) * task loss(x; theta_t) + beta * T² * KL(p_S ‖ p_T)

I is, but for e², the product of v with the gradient of L in theta_s. Its gradient in theta_t, the distillation
influence, is thus the one that MetaDistil takes by second-order gradients of a plain assumed step, over -lambda: here
two more forward passes of the student, without gradient, take their place. A is the auxiliary loss, ProKT's. Both
gradients come from one backward pass of the teacher.

The authors' released code differs in this: the quiz is the validation split, which it also chooses the best epoch by;
c is the teacher's learning rate, which makes the influence about 1e-4 of the auxiliary gradient (`influence_ratio` in
the logs says how much it is); the assumed step is that of the student's own AdamW, and the quiz has dropout; I is taken
of A in the place of L, that is of KL(p_S ‖ p_T); the teacher begins pretrained, not fine-tuned, and has dropout in A;
alpha and T are 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss, LossTerms, labels_of, task_loss_of
from reptile_distil.methods.adamw import divide_by_magnitude
from reptile_distil.methods.step import (
    GradientStep,
    Logs,
    accumulate_gradient,
    check_not_negative,
    check_teaches,
    check_trainable,
    split_batch,
    teacher_moves_now,
)
from reptile_distil.models.classifier import Outputs, wrap_pair

OF_THE_TEACHER = ("assumed_loss", "quiz_loss", "auxiliary_loss", "teacher_grad_norm", "influence_ratio")
"""What a step says of (1) to (3)."""


class InfluenceDistiller:
    """Distils a student from a teacher that learns from the influence of its soft labels on a quiz.

    Teacher and student may have different widths and architectures. The student has dropout in (1) and (4), not in the
    quiz and in I; the teacher never has.

    Args:
        teacher: sequence classifier, changed in place.
        student: sequence classifier, changed in place.
        loss: L. Through its distillation term, and its hidden-state terms, the teacher has influence.
        student_optimizer: takes (4)'s step over the student's parameters.
        teacher_optimizer: takes (3)'s step over the teacher's parameters; as published an AdamW, learning rate 3e-5.
        beta: weight of the student in A, in [0, 1]; as published 0.4.
        influence: c. The step of a teacher that learns for the quiz alone has beta = 0 and a large c.
        radius: norm of the student's move along the quiz gradient, in I; as published 1e-2.
        every: the teacher moves, (1) to (3), in the first step and every `every`-th after it.
        assumed_optimizer: (1)'s step. "sgd": lambda * g, as in the paper. "adamw": the first step of a fresh AdamW.
        assumed_lr: lambda of (1), constant.
        assumed_eps: epsilon of the fresh AdamW.
        max_grad_norm: the teacher's gradient in (3) and the student's in (4) are clipped to this norm.
        micro_batch_size: rows per forward pass; None takes the whole batch at once, and the teacher's outputs for (1)
            then serve (3).

    Raises:
        ValueError: an option out of range, a loss that does not depend on the teacher, a model that is frozen, an
            optimizer that does not hold the right parameters, or weights in half precision.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        loss: DistillationLoss,
        student_optimizer: torch.optim.Optimizer,
        teacher_optimizer: torch.optim.Optimizer,
        beta: float = 0.4,
        influence: float = 1.0,
        radius: float = 1e-2,
        every: int = 1,
        assumed_optimizer: Literal["sgd", "adamw"] = "sgd",
        assumed_lr: float = 5e-5,
        assumed_eps: float = 1e-8,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
    ) -> None:
        if assumed_optimizer not in ("sgd", "adamw"):
            raise ValueError(f"assumed_optimizer = {assumed_optimizer!r}: expected 'sgd' or 'adamw'")
        if every < 1 or not radius > 0:
            raise ValueError(f"every = {every}, radius = {radius}: expected at least 1, and a number above 0")
        check_not_negative(influence=influence, assumed_lr=assumed_lr, assumed_eps=assumed_eps)
        self.teacher, self.student = wrap_pair(teacher, student)
        check_teaches(loss, self.teacher, so_that="its soft labels influence nothing")
        check_trainable(teacher_optimizer, self.teacher.trainable, "teacher")
        check_trainable(student_optimizer, self.student.trainable, "student")
        self.loss = loss
        self.teacher_loss = loss.of_teacher(beta=beta)
        self.teacher_optimizer = teacher_optimizer
        self.influence = influence
        self.radius = radius
        self.every = every
        self.assumed_optimizer = assumed_optimizer
        self.assumed_lr = assumed_lr
        self.assumed_eps = assumed_eps
        self.gradient_step = GradientStep(
            student_optimizer, max_grad_norm, micro_batch_size, of_the_loss=tuple(loss.parameters())
        )
        if every > 1:
            teacher_optimizer.param_groups[0]["num_student_steps"] = 0

    def step(self, batch: Batch, quiz_batch: Batch | None = None) -> Logs:
        """Takes steps (1) to (4); returns detached scalars.

        The logs are those of (4) (`loss`, `task_loss`, `distillation_loss`, `grad_norm`), and, 0 in a step in which the
        teacher rests, `assumed_loss` of (1), `quiz_loss` of (2), and of (3) `auxiliary_loss`, `teacher_grad_norm`,
        before clipping, and `influence_ratio`: the norm of c times the influence over that of A's gradient, both at
        the teacher's logits. Raises `ValueError` without a `quiz_batch`.
        """
        if quiz_batch is None:
            raise ValueError(
                "InfluenceDistiller.step takes a quiz batch as second argument, of rows that no student step uses: "
                "call step(batch, quiz_batch)"
            )
        self.student.train()
        moves = teacher_moves_now(self.teacher_optimizer, self.every)
        of_teacher = self._move_teacher(batch, quiz_batch) if moves else None
        logs = self.distil(batch)
        return {**logs, **(of_teacher or dict.fromkeys(OF_THE_TEACHER, torch.zeros_like(logs["loss"])))}

    def _move_teacher(self, batch: Batch, quiz_batch: Batch) -> Logs:
        theta_s: list[Tensor] = list(self.student.parameters())
        start = [theta.detach().clone() for theta in theta_s]
        passes: list[tuple[Outputs, Outputs]] = []
        try:
            assumed_loss = self.assume_step(batch, passes)
            quiz_loss, v = self.take_quiz(quiz_batch)
            self._put(start)
            return {
                "assumed_loss": assumed_loss,
                "quiz_loss": quiz_loss,
                **self.update_teacher(batch, v, passes),
            }
        finally:
            self._put(start)
            self.student.zero_grad(set_to_none=True)
            self.student.train()

    def assume_step(self, batch: Batch, passes: list[tuple[Outputs, Outputs]] | None = None) -> Tensor:
        """(1): takes theta_s to theta_s' in place; returns the loss before.

        Adds to `passes`, for each micro-batch, the student's outputs without a graph and the teacher's, with one where
        the batch is not split.
        """

        def compute_loss(part: Batch) -> LossTerms:
            needs = self.loss.needs
            student = self.student.outputs(part, needs=needs)
            with torch.set_grad_enabled(not self.gradient_step.splits(batch)):
                teacher = self.teacher.outputs(part, needs=needs)
            if passes is not None:
                passes.append((student.without_graph(), teacher))
            return self.loss.compare(student, teacher.without_graph(), part)

        self.student.zero_grad(set_to_none=True)
        terms = accumulate_gradient(compute_loss, batch, self.gradient_step.micro_batch_size)
        steps = [(theta, theta.grad) for theta in self.student.parameters() if theta.grad is not None]
        directions = [gradient for _, gradient in steps if gradient is not None]
        if self.assumed_optimizer == "adamw":
            divide_by_magnitude(directions, self.assumed_eps)
        with torch.no_grad():
            # theta_s' = theta_s - lambda * direction
            torch._foreach_add_([theta for theta, _ in steps], directions, alpha=-self.assumed_lr)
        return terms.total

    def take_quiz(self, quiz_batch: Batch) -> tuple[Tensor, list[Tensor | None]]:
        """(2): the task loss on the quiz, without dropout, and v, its gradient in the student's weights as they are."""
        self.student.eval()
        self.student.zero_grad(set_to_none=True)
        terms = accumulate_gradient(self._quiz_loss, quiz_batch, self.gradient_step.micro_batch_size)
        v = [theta.grad for theta in self.student.parameters()]
        self.student.zero_grad(set_to_none=True)
        return terms.total, v

    def update_teacher(
        self, batch: Batch, v: Sequence[Tensor | None], passes: Sequence[tuple[Outputs, Outputs]]
    ) -> Logs:
        """(3): one step of the teacher down A - c I; `passes` are those of `assume_step`.

        Leaves the student's weights where they were, but for rounding, and no gradient on the teacher.
        """
        norm = nn.utils.get_total_norm([part for part in v if part is not None])
        epsilon = self.radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        there, back = self._outputs_on_either_side(batch, v, epsilon)
        squares: dict[str, list[Tensor]] = {"auxiliary": [], "influence": []}
        number = iter(range(len(passes)))

        def compute_loss(part: Batch) -> LossTerms:
            place = next(number)
            student, teacher = passes[place]
            if self.gradient_step.splits(batch):
                teacher = self.teacher.outputs(part, needs=self.loss.needs)
            auxiliary = self.teacher_loss.compare(teacher, student, part).total
            difference = self.loss.compare(there[place], teacher, part).total
            difference = difference - self.loss.compare(back[place], teacher, part).total
            influence = self.influence * difference / (2 * epsilon)
            share = len(labels_of(part)) / len(labels_of(batch))
            for name, term in (("auxiliary", auxiliary), ("influence", influence)):
                (gradient,) = torch.autograd.grad(term, teacher.logits, retain_graph=True, materialize_grads=True)
                squares[name].append((share * gradient).square().sum())
            return LossTerms(auxiliary - influence, auxiliary, influence)

        self.teacher.zero_grad(set_to_none=True)
        terms = accumulate_gradient(compute_loss, batch, self.gradient_step.micro_batch_size)
        theta_t = [theta for theta in self.teacher.parameters() if theta.requires_grad]
        grad_norm = nn.utils.clip_grad_norm_(theta_t, self.gradient_step.max_grad_norm)
        self.teacher_optimizer.step()
        self.teacher.zero_grad(set_to_none=True)
        norms = {name: torch.stack(parts).sum().sqrt() for name, parts in squares.items()}
        return {
            "auxiliary_loss": terms.task,
            "teacher_grad_norm": grad_norm,
            "influence_ratio": norms["influence"] / norms["auxiliary"].clamp(min=torch.finfo(norm.dtype).tiny),
        }

    def distil(self, batch: Batch) -> Logs:
        """(4): one step of the student towards the teacher as it is now."""
        return self.gradient_step.take(self._compute_loss, batch, self.student.parameters())

    def _outputs_on_either_side(
        self, batch: Batch, v: Sequence[Tensor | None], epsilon: Tensor
    ) -> tuple[list[Outputs], list[Outputs]]:
        """The student's outputs for each micro-batch, without dropout, at theta_s plus and minus epsilon v."""
        pairs = [(theta, part) for theta, part in zip(self.student.parameters(), v, strict=True) if part is not None]
        theta_s: list[Tensor] = [theta for theta, _ in pairs]
        self.student.eval()
        with torch.no_grad():
            move = torch._foreach_mul([part for _, part in pairs], epsilon)
            torch._foreach_add_(theta_s, move)
            there = self._outputs_of_parts(batch)
            torch._foreach_sub_(theta_s, move, alpha=2)
            back = self._outputs_of_parts(batch)
            torch._foreach_add_(theta_s, move)
        return there, back

    def _outputs_of_parts(self, batch: Batch) -> list[Outputs]:
        parts = split_batch(batch, self.gradient_step.micro_batch_size)
        return [self.student.outputs(part, needs=self.loss.needs) for part, _ in parts]

    @torch.no_grad()
    def _put(self, weights: Sequence[Tensor]) -> None:
        torch._foreach_copy_(list(self.student.parameters()), list(weights))

    def _compute_loss(self, batch: Batch) -> LossTerms:
        needs = self.loss.needs
        targets = self.teacher.targets(batch, needs=needs)
        return self.loss.compare(self.student.outputs(batch, needs=needs), targets, batch)

    def _quiz_loss(self, quiz_batch: Batch) -> LossTerms:
        loss = task_loss_of(self.student(quiz_batch), quiz_batch, self.loss.class_weights)
        return LossTerms(loss, loss, torch.zeros_like(loss))
