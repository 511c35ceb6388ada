"""The gradient step of every method: forward, backward, clip, optimizer step; a batch may be cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss, LossTerms, labels_of
from reptile_distil.models.classifier import Classifier
from reptile_distil.models.layer_map import ParameterPair
from reptile_distil.runtime.processes import ALONE, Processes, cut_like, is_sharded, whole

MAX_SCRATCH_ELEMENTS = 2**22
"""Gradients are turned into steps by this many elements at a time: its scratch memory stays at 16 MB."""

Logs = dict[str, Tensor]
"""Scalars by name, tensors on the device: the CPU waits for the device only when one is read."""


def split_batch(
    batch: Batch, micro_batch_size: int | None, processes: Processes = ALONE
) -> Iterator[tuple[Batch, float]]:
    """Yields micro-batches of this process's rows, at most `micro_batch_size` each, and their share of the batch.

    The shares weight the micro-batches' mean losses, so that their sum over all processes is the batch's mean loss,
    also when rows and processes do not divide evenly. Every process gets equally many micro-batches; one without a
    row left gets the batch's first row with the share 0, because it must take part in every exchange.
    """
    num_rows = len(labels_of(batch))
    most_rows = _most_rows(batch, processes)
    size = min(micro_batch_size or most_rows, most_rows)
    if processes.count == 1 and size == num_rows:
        yield batch, 1.0
        return
    # Every count-th row: batches are sorted by length, and each process should get long and short rows.
    own = {name: tensor[processes.rank :: processes.count] for name, tensor in batch.items()}
    for start in range(0, most_rows, size):
        part = {name: tensor[start : start + size] for name, tensor in own.items()}
        if share := len(part["labels"]) / num_rows:
            yield part, share
        else:
            yield {name: tensor[:1] for name, tensor in batch.items()}, 0.0


def accumulate_gradient(
    compute_loss: Callable[[Batch], LossTerms],
    batch: Batch,
    micro_batch_size: int | None = None,
    *,
    retain_graph: bool = False,
    parameters: Iterable[nn.Parameter] = (),
    processes: Processes = ALONE,
) -> LossTerms:
    """Adds the gradient of the batch's mean loss to the parameters' `.grad`; returns the detached loss terms.

    `retain_graph` keeps what `compute_loss` was computed from, for another backward pass through it. Each of several
    processes computes its rows' part; the terms, and the gradients of `parameters`, which must have none before, are
    then summed over all of them.
    """
    sums: LossTerms | None = None
    for part, share in split_batch(batch, micro_batch_size, processes):
        terms = compute_loss(part)
        (terms.total * share).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        weighted = terms.detached(share)
        sums = weighted if sums is None else sums.plus(weighted)
    if sums is None:
        raise ValueError("the batch has no rows")
    processes.sum_gradients(parameters)
    processes.sum_([*sums[:3], *sums.extra.values()])
    return sums


def _most_rows(batch: Batch, processes: Processes) -> int:
    """Rows of the main process; the others have as many, or one fewer."""
    return -(-len(labels_of(batch)) // processes.count)


@dataclass(frozen=True)
class GradientStep:
    """How a method takes its gradient steps: forward and backward, clip, optimizer step.

    Args:
        optimizer: takes the step.
        max_grad_norm: the gradient is clipped to this norm, above 0; infinite: it is not clipped.
        micro_batch_size: rows per forward pass, at least 1; None takes the whole batch at once.
        processes: those that share each batch.
        of_the_loss: weights of the loss's own, which the optimizer holds too. Their gradient is clipped by itself.

    Raises `ValueError` for a norm or a size out of range, and as `check_trainable`.
    """

    optimizer: torch.optim.Optimizer
    max_grad_norm: float = 1.0
    micro_batch_size: int | None = None
    processes: Processes = ALONE
    of_the_loss: tuple[nn.Parameter, ...] = ()

    def __post_init__(self) -> None:
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm = {self.max_grad_norm}: expected a number above 0, or math.inf for none")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size = {self.micro_batch_size}: expected at least 1, or None for all rows")
        check_trainable(self.optimizer, self.of_the_loss, "student", "loss")

    def take(
        self, compute_loss: Callable[[Batch], LossTerms], batch: Batch, parameters: Iterable[nn.Parameter]
    ) -> Logs:
        """Takes one clipped step; returns the loss terms and `grad_norm`, the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        terms, grad_norm = self.compute_gradient(compute_loss, batch, parameters)
        self.step_optimizer()
        return {**terms.logs(), "grad_norm": whole(grad_norm)}

    def step_optimizer(self) -> None:
        """The optimizer's step, once the model's gradient is summed over the processes and clipped."""
        self.processes.sum_gradients(self.of_the_loss)
        nn.utils.clip_grad_norm_(self.of_the_loss, self.max_grad_norm)
        self.optimizer.step()

    def compute_gradient(
        self,
        compute_loss: Callable[[Batch], LossTerms],
        batch: Batch,
        parameters: Iterable[nn.Parameter],
        *,
        retain_graph: bool = False,
    ) -> tuple[LossTerms, Tensor]:
        """Leaves the clipped gradient in the parameters' `.grad`, which must be None before.

        Returns the detached loss terms and the gradient's norm before clipping (`retain_graph`: `accumulate_gradient`).
        """
        parameters = list(parameters)
        terms = accumulate_gradient(
            compute_loss,
            batch,
            self.micro_batch_size,
            retain_graph=retain_graph,
            parameters=parameters,
            processes=self.processes,
        )
        # After the exchange between processes: the norm that clips is that of the whole batch's gradient.
        return terms, nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)

    def splits(self, batch: Batch) -> bool:
        """Whether this process's rows of the batch are more than one micro-batch takes."""
        return self.micro_batch_size is not None and self.micro_batch_size < _most_rows(batch, self.processes)

    def own_rows(self, batch: Batch) -> Batch:
        """Rows of this process of a batch that is not split into micro-batches."""
        ((rows, _),) = split_batch(batch, self.micro_batch_size, self.processes)
        return rows


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises `ValueError` for an option that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(allowed)}")


def check_not_negative(**options: float) -> None:
    """Raises `ValueError` for one that is no number from 0 on: below 0 a rate or a weight reverses what it is of."""
    for name, value in options.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value}: expected a number from 0 on")


def check_trainable(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], owner: str, of: str = "") -> None:
    """Raises `ValueError` where the optimizer of `owner`, teacher or student, would not move these, its own or `of`'s.

    It must hold all of them, of `owner` at least one, and go down their gradients. They must be float32 or float64: in
    half precision a step of 5e-5 is rounded away, and in float16 AdamW's epsilon is 0.
    """
    if not parameters and not of:
        raise ValueError(
            f"all weights of the {owner} are frozen, so that no step would change it: call {owner}.requires_grad_(True)"
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise ValueError(f"{type(optimizer).__name__}(maximize=True) goes up the loss: leave maximize out")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(id(parameter) not in held for parameter in parameters)
    if missing:
        raise ValueError(
            f"{owner}_optimizer does not hold {missing} of the {len(parameters)} {of or owner} parameters it must "
            f"update: build it from {' and '.join(f'{one}.parameters()' for one in (owner, of) if one)}"
        )
    for parameter in parameters:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{of or owner} weights are {parameter.dtype}, too coarse to be trained: load the model with "
                "from_pretrained(..., dtype=torch.float32)"
            )


def check_teaches(loss: DistillationLoss, teacher: Classifier, *, so_that: str) -> None:
    """Raises `ValueError` for a loss that does not depend on the teacher, with what follows from that."""
    config = getattr(teacher.model, "config", None)
    is_multi_label = getattr(config, "problem_type", None) == "multi_label_classification"
    is_regression = getattr(config, "num_labels", None) == 1 and not is_multi_label
    if setting := loss.leaves_teacher_out(is_regression=is_regression):
        raise ValueError(f"{setting} leaves the teacher out of the loss, so that {so_that}")


@torch.no_grad()
def difference_of(ones: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Each of `ones` minus its partner, sharded alike if at all; on a GPU by a few kernels for all of them."""
    if any(is_sharded(one) for one in ones):
        return [one - other for one, other in zip(ones, others, strict=True)]
    return list(torch._foreach_sub(list(ones), list(others)))


def teacher_moves_now(teacher_optimizer: torch.optim.Optimizer, every: int) -> bool:
    """Counts a step of the student; whether the teacher moves in it: in the first, and every `every`-th after it.

    With `every` > 1 the first of the optimizer's groups must have its `num_student_steps`, 0 at the start.
    """
    if every == 1:
        return True
    # Counted where the optimizer keeps its own state, so that a resumed run goes on counting.
    group = teacher_optimizer.param_groups[0]
    group["num_student_steps"] += 1
    return bool((group["num_student_steps"] - 1) % every == 0)


@torch.no_grad()
def difference_on_common_rows(pair: ParameterPair) -> Tensor:
    """theta_t - theta_s' of two tables (V, D) with other numbers of rows, in the teacher's shape; 0 where one has none.

    The student's `.grad` is theta_s - theta_s', or None for 0; it stays. Sharded tables are cut elsewhere, and are
    gathered for it.
    """
    theta_t, theta_s = whole(pair.teacher.detach()), whole(pair.student.detach())
    rows = min(len(theta_t), len(theta_s))
    difference = torch.zeros_like(theta_t)
    difference[:rows] = theta_t[:rows] - theta_s[:rows]
    if pair.student.grad is not None:
        difference[:rows] += whole(pair.student.grad)[:rows]
    return cut_like(pair.teacher, difference)


def in_chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors, large ones cut into views of some rows, in lists of at most `MAX_SCRATCH_ELEMENTS` elements."""
    chunk: list[Tensor] = []
    size = 0
    for tensor in tensors:
        rows = MAX_SCRATCH_ELEMENTS // max(1, tensor[0].numel()) if tensor.numel() > MAX_SCRATCH_ELEMENTS else None
        for piece in (tensor,) if rows is None else torch.split(tensor, max(1, rows)):
            if chunk and size + piece.numel() > MAX_SCRATCH_ELEMENTS:
                yield chunk
                chunk, size = [], 0
            chunk.append(piece)
            size += piece.numel()
    if chunk:
        yield chunk
