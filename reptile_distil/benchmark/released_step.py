"""The training step as the authors' released code takes it, kept to be measured against; it shares nothing with ours.

Every step deep-copies the student, builds an AdamW for the copy and drops it, draws new dropout masks for equation 3,
collects garbage, loops over the parameters in each optimizer, and runs in float32 with attention written out
(`attn_implementation="eager"` is the caller's to set), on rows that the caller has padded to the longest allowed.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn


class _Adamw:
    """The AdamW of transformers 4.12 without decay, a weight at a time; betas 0.9 and 0.999, eps 1e-8."""

    def __init__(self, weights: list[nn.Parameter], lr: float) -> None:
        self.weights = weights
        self.lr = lr
        self.moments: dict[nn.Parameter, tuple[int, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        for weight in self.weights:
            if weight.grad is None:
                continue
            count, mean, square = self.moments.get(weight, (0, torch.zeros_like(weight), torch.zeros_like(weight)))
            count += 1
            mean.mul_(0.9).add_(weight.grad, alpha=0.1)
            square.mul_(0.999).addcmul_(weight.grad, weight.grad, value=0.001)
            self.moments[weight] = count, mean, square
            rate = self.lr * (1 - 0.999**count) ** 0.5 / (1 - 0.9**count)
            weight.addcdiv_(mean, square.sqrt().add_(1e-8), value=-rate)


class ReleasedStep:
    """Reptile distillation with `update="adamw"` and the `skip` layer map, for BERT; models are changed in place."""

    def __init__(self, teacher: Any, student: Any, *, lr: float = 5e-5, alpha: float = 0.5, temperature: float = 5.0):
        self.teacher = teacher
        self.student = student
        self.lr = lr
        self.alpha = alpha
        self.temperature = temperature
        self.student_optimizer = self._new_optimizer(student)
        self.teacher_optimizer = self._new_optimizer(teacher)
        self.ratio = teacher.config.num_hidden_layers // student.config.num_hidden_layers

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """One step of equations 1 to 3; returns the loss of equation 3."""
        fast_student = copy.deepcopy(self.student)
        fast_optimizer = self._new_optimizer(fast_student)
        self._learn(batch, fast_student, fast_optimizer)
        partners = {self._teacher_name(name): weight for name, weight in fast_student.named_parameters()}
        for name, weight in self.teacher.named_parameters():
            if name in partners:
                weight.grad = weight.data - partners[name].data
        nn.utils.clip_grad_norm_(self.teacher.parameters(), 1.0)
        self.teacher_optimizer.step()
        self.teacher.zero_grad()
        del fast_optimizer, fast_student, partners
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._learn(batch, self.student, self.student_optimizer)

    def _learn(self, batch: Mapping[str, Tensor], student: Any, optimizer: _Adamw) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        student.train()
        self.teacher.eval()
        logits = student(**inputs).logits
        with torch.no_grad():
            soft_labels = self.teacher(**inputs).logits
        hard = F.cross_entropy(logits, batch["labels"])
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, dim=-1),
            F.softmax(soft_labels / self.temperature, dim=-1),
            reduction="batchmean",
        )
        loss = (1 - self.alpha) * hard + self.alpha * self.temperature**2 * soft
        student.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def _new_optimizer(self, model: Any) -> _Adamw:
        return _Adamw(list(model.parameters()), self.lr)

    def _teacher_name(self, student_name: str) -> str:
        before, found, after = student_name.partition(".layer.")
        if not found:
            return student_name
        layer, _, rest = after.partition(".")
        return f"{before}.layer.{self.ratio * (int(layer) + 1) - 1}.{rest}"
