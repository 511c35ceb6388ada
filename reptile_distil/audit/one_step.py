"""What one step from a teacher is worth: the student's loss on other rows before it and after it.

All teachers are compared on the same student, batch, rows and dropout, so that what differs is the teacher alone.
Nothing that is measured changes the run: models and optimizers are put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from reptile_distil.data.batches import Batch, Batches, StepBatches
from reptile_distil.errors import DivergedError
from reptile_distil.losses.distillation import DistillationLoss, labels_of, task_loss
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.classifier import Student, Teacher
from reptile_distil.models.half_precision import mark_changed
from reptile_distil.runtime.interrupts import Interrupts
from reptile_distil.training.loop import Method

BEFORE, FROZEN, SO_FAR, MOVED, OTHER, KNOWS = "before", "frozen", "so_far", "moved", "other", "knows"


@dataclass
class OneStepAudit:
    """Measures what one step from each of several teachers is worth, at the point where a run stands.

    Args:
        method: the run's method, which moves `teacher` in its steps.
        student: the run's, as it is.
        teacher: the run's, as the method has moved it so far.
        student_optimizer: the run's, with which the student takes its step from any teacher.
        optimizers: all that the method steps.
        loss: that of the student's step.
        max_grad_norm: the gradient of the student's step is clipped to it.
        micro_batch_size: rows per forward pass of that step; None takes the whole batch.
        frozen: the teacher as it was at the run's start.
        other: another teacher to compare with `frozen`.
        takes_steps: whether the method's step moves the teacher.
    """

    method: Method
    student: Student
    teacher: Teacher
    student_optimizer: Optimizer
    optimizers: Sequence[Optimizer]
    loss: DistillationLoss
    max_grad_norm: float
    frozen: Teacher
    micro_batch_size: int | None = None
    other: Teacher | None = None
    takes_steps: bool = True

    def measure(self, batches: StepBatches, probe: Batch, *, seed: int) -> dict[str, float]:
        """`measure_rows`, means over the rows of `probe`."""
        return {name: float(np.mean(values)) for name, values in self.measure_rows(batches, probe, seed=seed).items()}

    def measure_rows(self, batches: StepBatches, probe: Batch, *, seed: int) -> dict[str, NDArray[np.float64]]:
        """Task losses (R,) on the R rows of `probe`, which are none of the batch's, with the student as it is...

        - `before`: without a step;
        - `frozen`: after one step of `kd` on the batch from the teacher as it was at the start;
        - `so_far`: ... from the teacher as it is now;
        - `moved`: ... from the teacher after one more step of the method on the same batch;
        - `other`: ... from the other teacher.

        Under Reptile also `knows`, a single number: the part of equation 2's difference that the batch has a say in,
        ‖theta_S - theta_S'‖ / ‖theta_T - theta_S'‖ over the matched weights; left out where there is no difference.
        Dropout masks follow from `seed`. Models and optimizers are as before afterwards.
        """
        state = _State([self.student, self.teacher, self.loss], self.optimizers)
        losses = {BEFORE: self._probe(probe), FROZEN: self._after_kd(self.frozen, batches.batch, probe, seed)}
        state.restore()
        losses[SO_FAR] = self._after_kd(self.teacher, batches.batch, probe, seed)
        state.restore()
        if self.other is not None:
            losses[OTHER] = self._after_kd(self.other, batches.batch, probe, seed)
            state.restore()
        if self.takes_steps:
            losses |= self._part_that_knows(batches, seed)
            state.restore()
            torch.manual_seed(seed)
            self.method.step(batches.batch, *batches.extra)
            state.restore(but=self.teacher)
            losses[MOVED] = self._after_kd(self.teacher, batches.batch, probe, seed)
            state.restore()
        return losses

    def _after_kd(self, teacher: Teacher, batch: Batch, probe: Batch, seed: int) -> NDArray[np.float64]:
        torch.manual_seed(seed)
        KnowledgeDistiller(
            teacher,
            self.student,
            loss=self.loss,
            student_optimizer=self.student_optimizer,
            max_grad_norm=self.max_grad_norm,
            micro_batch_size=self.micro_batch_size,
        ).step(batch)
        return self._probe(probe)

    @torch.no_grad()
    def _probe(self, probe: Batch) -> NDArray[np.float64]:
        self.student.eval()
        logits, labels = self.student(probe), labels_of(probe)
        of_rows = [task_loss(logits[row : row + 1], labels[row : row + 1]) for row in range(len(labels))]
        losses: NDArray[np.float64] = torch.stack(of_rows).double().cpu().numpy()
        return losses

    def _part_that_knows(self, batches: StepBatches, seed: int) -> dict[str, NDArray[np.float64]]:
        method = self.method
        if not isinstance(method, ReptileDistiller) or method.inner_learner is not None:
            return {}
        start = [pair.student.detach().clone() for pair in method.pairs]
        torch.manual_seed(seed)
        method.student.train()
        if method.order == "student_first":
            gap = method.step(batches.batch)["gap"]
            steps = [then - pair.student.detach() for then, pair in zip(start, method.pairs, strict=True)]
        else:
            inner_batch = method.ablation.inner_batches(batches.batch, *batches.extra or (None,))[0]
            ask = partial(method.student.outputs, needs=self.loss.needs)
            method.inner_update(inner_batch, ask)
            # Copies: equation 2 takes the gradients' memory. One without a gradient stays where it is.
            steps = [pair.student.grad.clone() for pair in method.pairs if pair.student.grad is not None]
            gap = method.update_teacher()
        # Without one, as at a learning rate of 0 from a common start, there is nothing to have a part of.
        return {KNOWS: np.asarray(float(nn.utils.get_total_norm(steps) / gap))} if float(gap) else {}


class _State:
    """Modules and optimizers as they are, to be put back as often as wanted."""

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        self._modules = [
            (module, {name: tensor.detach().clone() for name, tensor in _tensors(module)}) for module in modules
        ]
        self._optimizers = [(optimizer, _copy_state(optimizer)) for optimizer in optimizers]

    @torch.no_grad()
    def restore(self, *, but: nn.Module | None = None) -> None:
        """Puts all back, except the weights of one module."""
        for module, values in self._modules:
            if module is not but:
                for name, tensor in _tensors(module):  # by name: a buffer may be another tensor by now
                    tensor.copy_(values[name])
                mark_changed(parameter for parameter in module.parameters())
            module.zero_grad(set_to_none=True)
        for optimizer, (groups, states) in self._optimizers:
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)
            for parameter in list(optimizer.state):
                if parameter not in states:
                    del optimizer.state[parameter]
            for parameter, state in states.items():
                for name, value in state.items():
                    if isinstance(value, Tensor):
                        optimizer.state[parameter][name].copy_(value)
                    else:
                        optimizer.state[parameter][name] = value


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _copy_state(optimizer: Optimizer) -> tuple[list[dict[str, Any]], dict[Any, dict[str, Any]]]:
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    states = {
        parameter: {name: v.clone() if isinstance(v, Tensor) else v for name, v in state.items()}
        for parameter, state in optimizer.state.items()
    }
    return groups, states


class RowLosses(NamedTuple):
    """What was measured of one batch, row by row."""

    rows: NDArray[np.int64]
    """Which of the held-out rows, (R,)."""
    losses: Mapping[str, NDArray[np.float64]]
    """By name, those of `OneStepAudit.measure_rows`, (R,)."""


@dataclass
class Stage:
    """What was measured at one point of a run: for each batch, the values of `OneStepAudit.measure`."""

    step: int
    """Steps that were taken before it."""
    measured: list[Mapping[str, float]] = field(default_factory=list)
    by_row: list[RowLosses] = field(default_factory=list)
    """The same before means were taken, of each batch; empty where only these are known."""

    def add(self, rows: NDArray[np.int64], values: Mapping[str, NDArray[np.float64]]) -> None:
        """One batch's `OneStepAudit.measure_rows` on these held-out rows (R,)."""
        self.measured.append({name: float(np.mean(of_rows)) for name, of_rows in values.items()})
        self.by_row.append(RowLosses(rows, {name: of_rows for name, of_rows in values.items() if of_rows.ndim}))

    def column(self, name: str) -> list[float]:
        """One value of each batch (N,); empty where it was not measured."""
        return [of_batch[name] for of_batch in self.measured if name in of_batch]


def take_steps(
    method: Method,
    steps: Iterator[StepBatches],
    schedules: Mapping[str, LRScheduler],
    *,
    start: int,
    until: int,
    title: str,
) -> None:
    """Takes the next steps, from number `start` (counted from 0) to before `until`.

    Raises `DivergedError` for a loss that is not finite, and `Interrupted` after the step in which a signal came.
    """
    losses = []
    with Interrupts() as interrupts:
        for _ in tqdm(range(start, until), desc=f"{title} to step {until}", disable=None, leave=False):
            with interrupts.held():
                batches = next(steps)
                losses.append(method.step(batches.batch, *batches.extra)["loss"])
                for schedule in schedules.values():
                    schedule.step()
    for step, loss in enumerate(torch.stack(losses).tolist() if losses else [], start=start + 1):
        if not math.isfinite(loss):
            raise DivergedError(
                f"{title}: step {step}: loss is {loss}; the weights have diverged: lower the learning rate"
            )


def steps_from(batches: Batches, step: int) -> Iterator[StepBatches]:
    """What the steps of a run are taken on from this one (counted from 0) on, epoch after epoch, without end."""
    epoch, done = divmod(step, batches.num_batches)
    while True:
        yield from batches.steps(epoch + 1, skip=done)
        epoch, done = epoch + 1, 0
