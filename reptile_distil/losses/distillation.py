"""The loss of knowledge distillation (Hinton, Vinyals, Dean 2015), for classification and for regression."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from numpy.typing import NDArray
from torch import Tensor, nn

from reptile_distil.data.batches import TASK_WEIGHTS
from reptile_distil.errors import ConfigError
from reptile_distil.models.classifier import OutputName, Outputs, in_float

_NOTHING = torch.iinfo(torch.long).min
"""The label that PyTorch's cross-entropy leaves out: by default -100, and nobody would see that it is not in a mean."""


class LossTerms(NamedTuple):
    """A loss and its terms before weighting, each a scalar, the mean over the batch's rows that have it."""

    total: Tensor
    task: Tensor
    distillation: Tensor
    extra: Mapping[str, Tensor] = MappingProxyType({})
    """Further terms by name."""

    def logs(self) -> dict[str, Tensor]:
        """The terms under the names they are logged by."""
        named = {"loss": self.total, "task_loss": self.task, "distillation_loss": self.distillation}
        return named | {f"{name}_loss": term for name, term in self.extra.items()}

    def detached(self, share: float = 1.0) -> LossTerms:
        """Each term times `share`, without a graph."""
        extra = {name: term.detach() * share for name, term in self.extra.items()}
        total, task, distillation = (term.detach() * share for term in self[:3])
        return LossTerms(total, task, distillation, extra)

    def plus(self, other: LossTerms) -> LossTerms:
        """The sums, term by term, of two losses with the same terms."""
        extra = {name: term + other.extra[name] for name, term in self.extra.items()}
        total, task, distillation = (a + b for a, b in zip(self[:3], other[:3], strict=True))
        return LossTerms(total, task, distillation, extra)


class HiddenTerm(Protocol):
    """A further term of the loss, on what the models compute inside (see the other modules of this folder).

    One that has weights of its own is a module: the optimizer that is given them trains them.
    """

    @property
    def name(self) -> str:
        """Its name in the logs, without `_loss`."""
        ...

    @property
    def weight(self) -> float:
        """What it is multiplied by in the total."""
        ...

    @property
    def needs(self) -> frozenset[OutputName]:
        """What it reads of `Outputs`, beside the logits."""
        ...

    def __call__(self, student: Outputs, teacher: Outputs, mask: Tensor) -> Tensor:
        """The term, a scalar, the mean over the rows, under the attention mask (B, L)."""
        ...


class DistillationLoss(nn.Module):
    """L = (1 - alpha) * task loss + alpha * T² * KL(softmax(z_T / T) ‖ softmax(z_S / T)) + weighted hidden terms.

    The task loss is cross-entropy for C > 1 classes. One logit (C = 1) is regression: the task loss is the mean
    squared error, and since a softmax over one logit is constant and its KL always 0, the distillation term is the
    mean squared difference of the two logits, without T. `regression="none"` keeps the zero, as the authors' code does.

    Labels (B, C), a 0 or 1 for each, are those of a multi-label task: the task loss is the binary cross-entropy of each
    label, and the distillation term T² * KL(Bernoulli(sigmoid(z_T / T)) ‖ Bernoulli(sigmoid(z_S / T))) of each label,
    both the mean over rows and labels. It is the term above for the two classes "has it" and "has it not", whose
    logits are z and 0 (Hinton, Vinyals, Dean 2015, once for each label).

    A batch may hold transfer rows, which have no label (see `transfer`). Each term is then the mean over the rows that
    have it, so that alpha means the same whatever the mixture: with the rows x of a batch, of which l have labels,

        L = (1 - alpha) / |l| * sum_{i in l} task loss_i + alpha / |x| * sum_{i in x} T² * KL_i

    and terms on hidden states are taken over all rows, as the distillation term is. So it is in every equation of a
    method that has L, and with beta in the loss of a teacher that learns (`of_teacher`).

    Args:
        alpha: weight of the distillation term, in [0, 1].
        temperature: T > 0. T² keeps the gradient's size comparable between temperatures.
        regression: distillation term for one logit, "mse" or "none".
        soft: distillation term for classes, "kl", or "mse": T² times the mean squared difference of the tempered
            probabilities, as in the released code of MetaDistil (Zhou, Xu, McAuley 2022).
        class_weights: (C,) weight of each class in the task loss (see `task_loss`); None: all 1.
        hidden_terms: terms on what the models compute inside, added with their own weights. Those that are modules are
            registered as `learned`.

    >>> loss = DistillationLoss(alpha=0.5, temperature=2.0)
    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0 * math.log(3.0), 0.0]])
    >>> terms = loss(student, teacher, torch.tensor([0]))
    >>> round(float(terms.task), 4), round(float(terms.distillation), 4)  # ln 2 and 2² * KL((3/4, 1/4) ‖ (1/2, 1/2))
    (0.6931, 0.5232)
    >>> round(float(terms.total), 4)
    0.6082
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        temperature: float = 5.0,
        regression: Literal["mse", "none"] = "mse",
        soft: Literal["kl", "mse"] = "kl",
        class_weights: Tensor | Sequence[float] | None = None,
        hidden_terms: Sequence[HiddenTerm] = (),
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha = {alpha}: expected a weight from 0 to 1")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature = {temperature}: expected a number above 0")
        if regression not in ("mse", "none"):
            raise ValueError(f"regression = {regression!r}: expected 'mse' or 'none'")
        if soft not in ("kl", "mse"):
            raise ValueError(f"soft = {soft!r}: expected 'kl' or 'mse'")
        self.alpha = alpha
        self.temperature = temperature
        self.regression = regression
        self.soft = soft
        self.class_weights = None if class_weights is None else torch.as_tensor(class_weights)
        self.hidden_terms = tuple(hidden_terms)
        if learned := [term for term in hidden_terms if isinstance(term, nn.Module)]:
            self.learned = nn.ModuleList(learned)

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses a subclass whose `forward` no method would call."""
        super().__init_subclass__(**options)
        if cls.forward is not DistillationLoss.forward and cls.compare is DistillationLoss.compare:
            raise TypeError(f"{cls.__name__} overrides forward(), but methods call compare(): override that one")

    def of_teacher(self, *, beta: float) -> DistillationLoss:
        """The loss of a teacher that learns: (1 - beta) * task loss + beta * distillation term, the roles swapped.

        Its `compare` takes the teacher's outputs first, and the student's as the target; it has no hidden terms.
        Raises `ValueError` for a beta outside [0, 1].
        """
        if not 0 <= beta <= 1:
            raise ValueError(f"beta = {beta}: expected a weight from 0 to 1")
        swapped = copy.copy(self)
        swapped.alpha, swapped.hidden_terms = beta, ()
        swapped._modules = {name: module for name, module in self._modules.items() if name != "learned"}
        return swapped

    @property
    def needs(self) -> frozenset[OutputName]:
        """What `compare` reads of both models' `Outputs` beside the logits; they are asked for no more.

        A subclass that reads more says so here.
        """
        of_terms = frozenset(name for term in self.hidden_terms for name in term.needs)
        return of_terms | {"hidden_states"} if self.needs_hidden_states else of_terms

    @property
    def needs_hidden_states(self) -> bool:
        """Whether `compare` reads hidden states, so that both models have to give them."""
        return any("hidden_states" in term.needs for term in self.hidden_terms)

    def leaves_teacher_out(self, *, is_regression: bool) -> str | None:
        """Which setting leaves the teacher without any part in the loss; None where none does.

        None also where a subclass has a `compare` of its own, and does not say alpha = 0 and no needs.
        """
        if self.needs:
            return None
        if self.alpha == 0:
            return "alpha = 0"
        has_no_term = is_regression and self.regression == "none" and type(self).compare is DistillationLoss.compare
        return "regression = 'none'" if has_no_term else None

    def compare(self, student: Outputs, teacher: Outputs, batch: Mapping[str, Tensor]) -> LossTerms:
        """The whole loss of a batch, from what both models say of it.

        The gradient goes to the student, and to the teacher where its outputs have a graph.
        """
        terms = self._logit_terms(student.logits, teacher.logits, labels_of(batch), batch.get(TASK_WEIGHTS))
        if not self.hidden_terms:
            return terms
        extra = {term.name: term(student, teacher, batch["attention_mask"]) for term in self.hidden_terms}
        weighted = [term.weight * extra[term.name] for term in self.hidden_terms]
        return terms._replace(total=sum(weighted, start=terms.total), extra=extra)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> LossTerms:
        """The loss of student's and teacher's logits (B, C) and labels (B,). The teacher's get no gradient."""
        if self.needs:
            raise ValueError(f"a loss on {', '.join(sorted(self.needs))} needs more than logits: call its compare()")
        return self._logit_terms(student_logits, teacher_logits.detach(), labels)

    def _logit_terms(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, row_weights: Tensor | None = None
    ) -> LossTerms:
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits have shape {tuple(student_logits.shape)}, "
                f"teacher logits {tuple(teacher_logits.shape)}: expected the same rows and classes"
            )
        task = task_loss(student_logits, labels, self.class_weights, row_weights)
        logits = in_float(student_logits), in_float(teacher_logits)
        if labels.ndim == 2:
            logits = _as_two_classes(logits[0]), _as_two_classes(logits[1])
        distillation = self._distillation(*logits)
        return LossTerms((1 - self.alpha) * task + self.alpha * distillation, task, distillation)

    def _distillation(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if student_logits.shape[1] > 1:
            compare = tempered_kl if self.soft == "kl" else tempered_mse
            return compare(student_logits, teacher_logits, self.temperature)
        if self.regression == "mse":
            return F.mse_loss(student_logits, teacher_logits)
        return student_logits.new_zeros(())

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        basic = f"alpha={self.alpha}, temperature={self.temperature}, regression={self.regression!r}"
        soft = "" if self.soft == "kl" else f", soft={self.soft!r}"
        return basic + soft + "".join(f", {term.name}={term.weight}" for term in self.hidden_terms)


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The labels (B,), or (B, C) of a multi-label task, of a batch. Raises `ValueError` where it has none."""
    if "labels" not in batch:
        raise ValueError(f"the batch has no labels, only {', '.join(batch) or 'nothing'}: a step needs 'labels'")
    return batch["labels"]


def task_loss_of(logits: Tensor, batch: Mapping[str, Tensor], class_weights: Tensor | None = None) -> Tensor:
    """`task_loss` of a batch's logits, over those of its rows that have labels. Raises as `labels_of`."""
    return task_loss(logits, labels_of(batch), class_weights, batch.get(TASK_WEIGHTS))


def task_loss(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, row_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy for logits (B, C > 1), mean squared error for (B, 1); the mean over labels (B,).

    For labels (B, C), a 0 or 1 for each, the binary cross-entropy of each, the mean over rows and labels.

    Under `class_weights` w (C,) it is sum_i w[y_i] * CE_i / B, and for a multi-label task the terms of positive labels
    are multiplied by w. It is divided by the number of rows, not by the sum of their weights as PyTorch does, so that
    the losses of a batch's parts add up to the batch's. Raises `ValueError` for another number of weights than classes,
    and where there are none; for labels of another shape, also (B, 1), which may mean either; and, where they lie on
    the CPU, for labels outside 0 to C - 1 and targets of a multi-label task outside 0 to 1: a GPU would have to be
    waited for. There, for such a label, -100 included, the kernel's own assertion fails.

    Under `row_weights` v (B,) it is sum_i v_i * loss_i / B. The labels of rows with v = 0 are not read, whatever they
    are. With B / |l| for the |l| rows of a batch that have labels and 0 for the others it is the mean over the former,
    and the losses of a batch's parts still add up to it.
    """
    _check_shape(labels, logits)
    logits = in_float(logits)
    weights = None if class_weights is None else _of_classes(class_weights.to(logits), logits)
    if row_weights is not None:
        return _weighted_task_loss(logits, labels, weights, row_weights)
    if labels.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits, _flags(labels).to(logits.dtype), pos_weight=weights)
    if weights is not None:
        return (_cross_entropy(logits, labels) * weights[labels]).mean()
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))
    return _cross_entropy(logits, labels, reduction="mean")


def _weighted_task_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None, row_weights: Tensor) -> Tensor:
    # Not a selection of rows, whose number a GPU would be asked for.
    has_label = row_weights > 0
    known = torch.where(has_label if labels.ndim == 1 else has_label[:, None], labels, torch.zeros_like(labels))
    if labels.ndim == 2:
        each = F.binary_cross_entropy_with_logits(
            logits, _flags(known).to(logits.dtype), pos_weight=class_weights, reduction="none"
        )
        losses = each.mean(dim=1)
    elif logits.shape[1] == 1:
        losses = (logits.squeeze(1) - known.to(logits.dtype)).square()
    else:
        losses = _cross_entropy(logits, known)
        losses = losses if class_weights is None else class_weights[known] * losses
    return (row_weights.to(losses.dtype) * losses).mean()


def _cross_entropy(logits: Tensor, labels: Tensor, reduction: Literal["none", "mean"] = "none") -> Tensor:
    """That of each row (B,), or their mean; no row is left out."""
    _check_classes(labels, logits.shape[1])
    return F.cross_entropy(logits, labels, reduction=reduction, ignore_index=_NOTHING)


def _check_classes(labels: Tensor, num_classes: int) -> None:
    if labels.device.type == "cpu" and not (known := (labels >= 0) & (labels < num_classes)).all():
        raise ValueError(
            f"a label is {labels[~known][0].item()}: expected a class from 0 to {num_classes - 1}; of rows without a "
            f"label, also -100, the batch's {TASK_WEIGHTS!r} (B,) is 0, and of the |l| others B / |l|"
        )


def _check_shape(labels: Tensor, logits: Tensor) -> None:
    num_rows, num_classes = logits.shape
    if labels.shape == (num_rows,) or (labels.shape == logits.shape and num_classes > 1):
        return
    found = f"labels have shape {tuple(labels.shape)}"
    if num_classes == 1:
        raise ValueError(f"{found} for one logit, which is regression: give ({num_rows},), as by labels.squeeze(1)")
    raise ValueError(f"{found}: expected ({num_rows},), or of a multi-label task ({num_rows}, {num_classes})")


def _flags(labels: Tensor) -> Tensor:
    if labels.device.type == "cpu" and not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError("labels (B, C) hold a number outside 0 to 1: a multi-label task has a 0 or 1 for each label")
    return labels


def _of_classes(class_weights: Tensor, logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        raise ValueError("class weights are for classes, and one logit is regression")
    if class_weights.shape != logits.shape[1:]:
        shapes = tuple(class_weights.shape), tuple(logits.shape[1:])
        raise ValueError(f"class weights have shape {shapes[0]}, but there is one for each class: expected {shapes[1]}")
    return class_weights


def balanced_weights(labels: NDArray[Any], label_names: Sequence[str]) -> Tensor:
    """(C,) weights for rows with these labels (N,), or sets of labels (N, C): rows / (classes * rows of the class).

    Their mean over the rows is 1. For sets, of each label's positives: negatives / positives. Raises `ConfigError`
    where a label has no row.
    """
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        weights = (len(labels) - counts) / np.maximum(counts, 1)
    else:
        counts = np.bincount(labels, minlength=len(label_names))
        weights = len(labels) / (len(label_names) * np.maximum(counts, 1))
    if not counts.all():
        rare = label_names[int(counts.argmin())]
        raise ConfigError(
            f"loss.class_weights = balanced: no training row has the label {rare}; give a list of weights"
        )
    return torch.tensor(weights, dtype=torch.float32)


def tempered_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² * KL(softmax(z_T / T) ‖ softmax(z_S / T)), the mean over the rows of (B, C)."""
    student_log_probs = F.log_softmax(student_logits / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher_logits / temperature, dim=1)
    kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="batchmean", log_target=True)
    return temperature**2 * kl


def tempered_mse(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T² * (softmax(z_T / T) - softmax(z_S / T))², the mean over the rows and classes of (B, C)."""
    student_probs = F.softmax(student_logits / temperature, dim=1)
    teacher_probs = F.softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.mse_loss(student_probs, teacher_probs)


def _as_two_classes(logits: Tensor) -> Tensor:
    """From logits (B, C) of labels those of "has it" and "has it not" (B * C, 2): sigmoid(z) is softmax(z, 0)."""
    flat = logits.reshape(-1)
    return torch.stack((flat, torch.zeros_like(flat)), dim=1)
