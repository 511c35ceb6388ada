"""Distillation with a teacher that learns to teach, by first-order Reptile updates.

Ma, Wang, Yu, Zhang: "Knowledge Distillation with Reptile Meta-Learning for Pretrained Language Model Compression",
COLING 2022. Each step makes three updates from one batch x:

    (1) inner update    theta_s' <- theta_s - lambda * grad L(x; theta_s; theta_t)      on a copy of the student
    (2) meta update     theta_t  <- theta_t - mu * (theta_t - theta_s')                 no second derivative
    (3) distillation    theta_s  <- theta_s - lambda * grad L(x; theta_s; theta_t)      with the updated teacher

The copy in (1) is never made: its step theta_s - theta_s' has a closed form in the gradient, and (2) needs no more. (1)
and (3) differ only in the teacher's soft labels, so one forward pass of the student can serve both.

`order="student_first"` is not in the paper. It takes the student's own step for the inner step, so that a batch needs
one forward pass of each model and one backward pass, as many as distillation from a frozen teacher:

    (3) distillation    theta_s  <- theta_s - lambda * grad L(x; theta_s; theta_t)      with the teacher as it is
    (2) meta update     theta_t  <- theta_t - mu * (theta_t - theta_s)                  towards where the student went
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch._functorch.config as compiled_autograd_config
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.inner_step import has_closed_form
from reptile_distil.losses.distillation import DistillationLoss, LossTerms
from reptile_distil.methods.adamw import ADAMW, AdamwName, add_decay, divide_by_magnitude, fresh_eps
from reptile_distil.methods.reptile_variants import (
    Ablation,
    InnerLearner,
    TeacherRegularization,
    check_forward_can_be_shared,
    check_no_inner_step,
)
from reptile_distil.methods.step import (
    GradientStep,
    Logs,
    check_choice,
    check_not_negative,
    check_trainable,
    difference_of,
    difference_on_common_rows,
    in_chunks,
    teacher_moves_now,
)
from reptile_distil.models.classifier import Outputs, Student, wrap_pair
from reptile_distil.models.layer_map import ParameterPair, match_models
from reptile_distil.runtime.processes import ALONE, Processes, local_part, whole
from reptile_distil.runtime.randomness import random_numbers_repeated

Forward = Callable[[Batch], Outputs]
"""From a micro-batch to the student's outputs."""


class ReptileDistiller:
    """Distils a student from a teacher that moves towards the student's next step.

    Args:
        teacher: sequence classifier, changed in place. Only its matched parameters move, and of those none that is
            frozen (`requires_grad` false) here: its pair is left out of equation 2, of its gap and of its clipping.
        student: sequence classifier of the teacher's architecture and width, changed in place.
        loss: L of equations 1 and 3. Weights of its own (a learned projection) are no part of theta_s: equation 1
            leaves them where they are, equation 2 knows nothing of them, and equation 3 steps them.
        student_optimizer: takes equation 3's step over the student's parameters.
        teacher_optimizer: takes equation 2's step over (at least) the teacher's matched parameters. For
            `update="interpolate"`, `torch.optim.SGD(teacher.parameters(), lr=mu)`.
        layer_map: "first", "last", "skip", "both", or a list with one entry per student layer (see `layer_map`).
        update: "adamw" as the authors' released code: the difference theta_t - theta_s', clipped to
            `max_grad_norm` over the matched parameters, is the gradient of `teacher_optimizer`, a persistent AdamW,
            so that every matched weight moves about mu a step, whatever the gap. "interpolate" is the printed
            equation: the difference goes through plain SGD, unclipped.
        order: "teacher_first" as published, or "student_first" (see the module), which has no equation 1 and takes none
            of its options.
        inner_optimizer: equation 1's step. "adamw": the first step of a fresh AdamW without weight decay (released
            code), that is lambda * g / (|g| + inner_eps). "sgd": lambda * g (printed equation). "persistent_adamw": an
            AdamW without weight decay whose moments live on from step to step, `inner_learner.optimizer`.
        inner_lr: lambda of equation 1. The released code keeps it constant.
        inner_eps: epsilon of either AdamW.
        inner_adamw: "torch", or "transformers4" as the released code has it (see `Transformers4AdamW`); the first step
            of the latter divides by |g| + inner_eps / sqrt(1 - beta2).
        inner_weight_decay: decay of weight matrices in equation 1, by either AdamW.
        max_grad_norm: the student's gradient is clipped to this norm in equations 1 and 3.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.
        share_forward: equations 1 and 3 see the student with the same dropout masks. A batch that is taken at once then
            goes through the student once, and backwards through that graph twice. A batch cut into micro-batches goes
            through it twice all the same, with repeated masks: keeping every micro-batch's graph would undo what
            they save. False draws new masks for equation 3, as the released code does. It must be False where
            equation 1 is more than one fresh step on the batch of equation 3.
        ablation: departures from the published step, for ablations (see `Ablation`).
        regularization: what follows equation 2 to keep the teacher good at the task; as published nothing.
        processes: those that share each batch (`start_processes`). All of them get the same batches; equation 1's
            gradient is summed over them like equation 3's, so that every process's teacher moves alike.

    Raises:
        LayerMapError: the two models cannot be matched.
        ValueError: an option that is none of the above, an optimizer that does not hold the right parameters, weights
            in half precision, in which a step of 5e-5 is lost, or a teacher whose matched parameters are all frozen.

    >>> import transformers
    >>> def bert(num_layers):
    ...     size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 30}
    ...     config = transformers.BertConfig(num_hidden_layers=num_layers, **size)
    ...     return transformers.BertForSequenceClassification(config)
    >>> teacher, student = bert(4), bert(2)
    >>> distiller = ReptileDistiller(
    ...     teacher,
    ...     student,
    ...     loss=DistillationLoss(alpha=0.5, temperature=5.0),
    ...     layer_map="skip",
    ...     student_optimizer=torch.optim.AdamW(student.parameters(), lr=5e-5),
    ...     teacher_optimizer=torch.optim.AdamW(teacher.parameters(), lr=5e-5, weight_decay=0.0),
    ... )
    >>> ids = torch.tensor([[2, 7, 3], [2, 9, 3]])
    >>> batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}
    >>> logs = distiller.step(batch)
    >>> bool(logs["gap"] > 0), logs["loss"].shape
    (True, torch.Size([]))
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
        order: Literal["teacher_first", "student_first"] = "teacher_first",
        inner_optimizer: Literal["adamw", "sgd", "persistent_adamw"] = "adamw",
        inner_lr: float = 5e-5,
        inner_eps: float = 1e-8,
        inner_adamw: AdamwName = "torch",
        inner_weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        share_forward: bool = True,
        ablation: Ablation | None = None,
        regularization: TeacherRegularization | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.teacher, self.student = wrap_pair(teacher, student)
        self.loss = loss
        learned = tuple(loss.parameters())
        self.gradient_step = GradientStep(student_optimizer, max_grad_norm, micro_batch_size, processes, learned)
        self.teacher_optimizer = teacher_optimizer
        self.update = update
        self.order = order
        self.inner_optimizer = inner_optimizer
        self.inner_lr = inner_lr
        self.inner_eps = inner_eps
        self.inner_adamw = inner_adamw
        self.inner_weight_decay = inner_weight_decay
        self.share_forward = share_forward
        self.ablation = ablation or Ablation()
        self.regularization = regularization
        self._check_options()
        matched = match_models(self.teacher.model, self.student.model, layer_map)
        chosen = self.ablation.moving_pairs(matched, self.student.model)
        moving = [pair for pair in chosen if pair.teacher.requires_grad]
        if not moving:
            raise ValueError(
                "every weight of the teacher that equation 2 would move is frozen: unfreeze some by "
                "requires_grad_(True), or take KnowledgeDistiller, whose teacher stays"
            )
        self.pairs = sorted(moving, key=lambda pair: not pair.has_same_shape)
        self.inner_learner = self._new_inner_learner()
        self._check_optimizers()
        if self.ablation.every > 1:
            teacher_optimizer.param_groups[0]["num_student_steps"] = 0

    def step(self, batch: Batch, inner_batches: Sequence[Batch] | None = None) -> Logs:
        """Takes the three updates of one batch; returns detached scalars, tensors that nothing has waited for.

        The batch holds `input_ids`, `attention_mask` and perhaps `token_type_ids` (B, L), and `labels` (B,). The logs
        are `loss`, `task_loss`, `distillation_loss`, those of the loss's further terms and `grad_norm` of equation 3,
        `inner_loss` of equation 1 if there is one, and `gap`, the norm of theta_t - theta_s' over the matched
        parameters before equation 2 closes some of it; of a `regularization` that takes a task step also
        `teacher_task_loss`, in steps in which the teacher moves.

        Equation 1 takes one inner step on each of `inner_batches`: by default on the batch itself; with `inner_steps`
        > 1 or `held_out` they must be given. Raises `ValueError` where they are missing, too many or not wanted.
        """
        self.student.train()
        inner_batches = self.ablation.inner_batches(batch, inner_batches)
        if self.order == "student_first":
            return self._take_student_first_step(batch)
        with self._graphs_kept():
            return self._take_step(batch, inner_batches)

    def _take_step(self, batch: Batch, inner_batches: Sequence[Batch]) -> Logs:
        if not teacher_moves_now(self.teacher_optimizer, self.ablation.every):
            return self._distil_alone(batch)
        student = self._student_forward(batch)
        if self.inner_learner is None:
            inner_loss = self.inner_update(inner_batches[0], student)
        else:
            inner_loss = self.inner_learner.learn(inner_batches)
        gap = self.update_teacher()
        regularization_logs = {} if self.regularization is None else self.regularization.after_update(batch)
        logs = self.distil(batch, student)
        return {**logs, "inner_loss": inner_loss, "gap": gap, **regularization_logs}

    def _take_student_first_step(self, batch: Batch) -> Logs:
        """Equation 3, then equation 2 with the student's own step for the inner step: theta_s' is theta_s."""
        logs = self.distil(batch, self._ask_student)
        self.student.zero_grad(set_to_none=True)
        if not teacher_moves_now(self.teacher_optimizer, self.ablation.every):
            return {**logs, "gap": whole(nn.utils.get_total_norm(self._take_difference()))}
        gap = self.update_teacher()
        regularization_logs = {} if self.regularization is None else self.regularization.after_update(batch)
        return {**logs, "gap": gap, **regularization_logs}

    def inner_update(self, batch: Batch, student: Forward) -> Tensor:
        """Equation 1: leaves theta_s - theta_s' in the student's `.grad`, and theta_s as it is; returns the loss."""
        self.student.zero_grad(set_to_none=True)
        with self._masks_for_both_equations(batch):
            terms, _ = self.gradient_step.compute_gradient(
                self._loss_with(student), batch, self.student.parameters(), retain_graph=self._shares_forward(batch)
            )
        # theta_s - theta_s' = lambda * direction
        gradients = [local_part(theta.grad) for theta in self.student.parameters() if theta.grad is not None]
        for chunk in in_chunks(gradients):
            if self.inner_optimizer == "adamw":
                divide_by_magnitude(chunk, fresh_eps(self.inner_eps, self.inner_adamw))
            torch._foreach_mul_(chunk, self.inner_lr)
        add_decay(self.student, self.inner_lr * self.inner_weight_decay, self.inner_adamw)
        return terms.total

    def update_teacher(self) -> Tensor:
        """Equation 2: moves the teacher's matched parameters; returns the norm of theta_t - theta_s' before.

        Takes theta_s - theta_s' from the student's `.grad`, and leaves no gradient on either model.
        """
        theta_t: list[Tensor] = [pair.teacher for pair in self.pairs]
        difference = self._take_difference()
        self.teacher.zero_grad(set_to_none=True)
        for theta, gradient in zip(theta_t, difference, strict=True):
            theta.grad = gradient
        gap = nn.utils.get_total_norm(difference)
        if self.update == "adamw":
            nn.utils.clip_grads_with_norm_(theta_t, self.gradient_step.max_grad_norm, gap)
        self.teacher_optimizer.step()
        self.teacher.zero_grad(set_to_none=True)
        return whole(gap)

    def distil(self, batch: Batch, student: Forward) -> Logs:
        """Equation 3: one step of the student towards the teacher as it is now."""
        return self.gradient_step.take(self._loss_with(student), batch, self.student.parameters())

    def _distil_alone(self, batch: Batch) -> Logs:
        """Equation 3 in a step where the teacher rests: there is no inner step, so theta_s' is theta_s."""
        self.student.zero_grad(set_to_none=True)
        gap = whole(nn.utils.get_total_norm(self._take_difference()))
        logs = self.distil(batch, self._ask_student)
        return {**logs, "inner_loss": logs["loss"], "gap": gap}

    def _student_forward(self, batch: Batch) -> Forward:
        """The student, or its outputs for this process's rows, computed once for equations 1 and 3."""
        if not self._shares_forward(batch):
            return self._ask_student
        outputs = self._ask_student(self.gradient_step.own_rows(batch))
        return lambda _: outputs

    def _graphs_kept(self) -> contextlib.AbstractContextManager[Any]:
        """A compiled model's graph may be used twice only if it does not lend its memory to the first backward pass.

        Any batch's: a graph that was compiled for one that is split may be used for one that is not.
        """
        return compiled_autograd_config.patch(donated_buffer=False) if self.share_forward else contextlib.nullcontext()

    def _shares_forward(self, batch: Batch) -> bool:
        return self.share_forward and not self.gradient_step.splits(batch)

    def _ask_student(self, batch: Batch) -> Outputs:
        return self.student.outputs(batch, needs=self.loss.needs)

    def _masks_for_both_equations(self, batch: Batch) -> contextlib.AbstractContextManager[None]:
        if self.share_forward and self.gradient_step.splits(batch):
            return random_numbers_repeated(batch["input_ids"].device)
        return contextlib.nullcontext()

    def _new_inner_learner(self) -> InnerLearner | None:
        """Takes equation 1's steps where they have no closed form; None where they have."""
        if has_closed_form(inner_steps=self.ablation.inner_steps, inner_optimizer=self.inner_optimizer):
            return None
        return InnerLearner(
            self.student,
            self._loss_of,
            optimizer=self.inner_optimizer,
            lr=self.inner_lr,
            eps=self.inner_eps,
            adamw=self.inner_adamw,
            weight_decay=self.inner_weight_decay,
            gradient_step=self.gradient_step,
        )

    def _loss_with(self, student: Forward) -> Callable[[Batch], LossTerms]:
        """L(x; theta_s; theta_t) as a function of x."""

        def compute_loss(batch: Batch) -> LossTerms:
            targets = self.teacher.targets(batch, needs=self.loss.needs)
            return self.loss.compare(student(batch), targets, batch)

        return compute_loss

    def _loss_of(self, learner: Student, batch: Batch) -> LossTerms:
        """L(x; theta; theta_t) for another student than the one that is distilled."""
        outputs = learner.outputs(batch, needs=self.loss.needs)
        return self._loss_with(lambda _: outputs)(batch)

    def _take_difference(self) -> list[Tensor]:
        """theta_t - theta_s' of each pair, where the student's `.grad` is theta_s - theta_s' (0 without one)."""
        pairs = [pair for pair in self.pairs if pair.has_same_shape]
        uneven = [difference_on_common_rows(pair) for pair in self.pairs[len(pairs) :]]
        if not pairs:  # all others are frozen
            self.student.zero_grad(set_to_none=True)
            return uneven
        if all(pair.student.grad is None for pair in pairs):
            return difference_of([pair.teacher for pair in pairs], [pair.student for pair in pairs]) + uneven
        # theta_t - theta_s' = (theta_s - theta_s') + theta_t - theta_s
        difference = self._take_inner_steps(pairs)
        with torch.no_grad():
            # Paired weights are sharded alike, if at all: each process subtracts its parts.
            parts = [local_part(step) for step in difference]
            torch._foreach_add_(parts, [local_part(pair.teacher) for pair in pairs])
            torch._foreach_sub_(parts, [local_part(pair.student) for pair in pairs])
        return difference + uneven

    def _take_inner_steps(self, pairs: Sequence[ParameterPair]) -> list[Tensor]:
        """theta_s - theta_s' of each pair, taken from the student's `.grad`: the memory becomes the caller's.

        Where several teacher weights move towards one student weight, all but the last get a copy.
        """
        last = {pair.student_name: pair.teacher_name for pair in pairs}
        steps = []
        for pair in pairs:
            step = pair.student.grad
            if step is None:  # the loss does not depend on it
                steps.append(torch.zeros_like(pair.student))
            else:
                steps.append(step if last[pair.student_name] == pair.teacher_name else step.clone())
        self.student.zero_grad(set_to_none=True)
        return steps

    def _check_options(self) -> None:
        check_choice("update", self.update, ("adamw", "interpolate"))
        check_choice("order", self.order, ("teacher_first", "student_first"))
        check_choice("inner_optimizer", self.inner_optimizer, ("adamw", "sgd", "persistent_adamw"))
        check_choice("inner_adamw", self.inner_adamw, tuple(ADAMW))
        check_not_negative(inner_lr=self.inner_lr, inner_eps=self.inner_eps, inner_weight_decay=self.inner_weight_decay)
        if self.inner_weight_decay and self.inner_optimizer == "sgd":
            raise ValueError("inner_weight_decay belongs to inner_optimizer adamw or persistent_adamw, but it is sgd")
        if self.order == "student_first":
            check_no_inner_step(self.ablation, self.inner_optimizer, share_forward=self.share_forward)
        elif self.share_forward:
            check_forward_can_be_shared(self.ablation, self.inner_optimizer)

    def _check_optimizers(self) -> None:
        check_trainable(self.teacher_optimizer, [pair.teacher for pair in self.pairs], "teacher")
        check_trainable(self.gradient_step.optimizer, self.student.trainable, "student")
        if self.update == "adamw" and isinstance(self.teacher_optimizer, torch.optim.SGD):
            raise ValueError("update='adamw': pass teacher_optimizer=torch.optim.AdamW(teacher.parameters(), lr=mu)")
        for group in self.teacher_optimizer.param_groups if self.update == "interpolate" else ():
            is_sgd = isinstance(self.teacher_optimizer, torch.optim.SGD)
            if not is_sgd or group["momentum"] or group["weight_decay"] or group["lr"] > 1:
                optimizer = (
                    "torch.optim.SGD(teacher.parameters(), lr=mu), mu at most 1, without momentum or weight decay"
                )
                raise ValueError(f"update='interpolate' takes plain steps: pass teacher_optimizer={optimizer}")
