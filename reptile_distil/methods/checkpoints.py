"""Distillation from a frozen teacher's own epochs, in the order in which it was fine-tuned: a curriculum.

Harutyunyan, Rawat, Menon, Kim, Kumar: "Supervision Complexity and its Role in Knowledge Distillation", ICLR 2023, which
calls it online distillation; Rezagholizadeh, Jafari, Saladi, Sharma, Saheb Pasand, Ghodsi: "Pro-KD: Progressive
Distillation by Following the Footsteps of the Teacher", COLING 2022. An early epoch of the teacher is a simpler
function than the finished one, and more of it is within a student's reach. Each step is that of `kd`, from the epoch
whose turn it is:

    theta_s <- theta_s - lambda * grad L(x; theta_s; theta_t(e)),      e = 1, 2, ..., the teacher's best

Neither paper's schedule is repeated to the letter: here the epochs teach for equally long each, under the same loss and
temperature, and those after the teacher's best one do not teach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.methods.kd import KnowledgeDistiller
from reptile_distil.methods.step import Logs
from reptile_distil.runtime.processes import ALONE, Processes

Weights = Callable[[], Mapping[str, Tensor]]
"""Reads the teacher's `state_dict` as it was at the end of an epoch."""


class CheckpointDistiller:
    """Distils a student from successive states of its teacher, which takes no step of its own.

    Args:
        teacher: sequence classifier; takes on the weights of each epoch when its turn comes.
        student: sequence classifier, changed in place.
        epochs: the teacher's states, in order. Where there is one, or none, this is `kd`.
        num_steps: optimizer steps over which the epochs teach, equally long each; after them the last one stays.
        loss: L.
        student_optimizer: takes the student's step. It also keeps the number of steps taken, in its first parameter
            group, so that a resumed run goes on with the epoch whose turn it is.
        max_grad_norm: the student's gradient is clipped to this norm.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.
        processes: those that share each batch.

    Raises `ValueError` as `KnowledgeDistiller`, and for a number of steps below 1.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        *,
        epochs: Sequence[Weights],
        num_steps: int,
        loss: DistillationLoss,
        student_optimizer: torch.optim.Optimizer,
        max_grad_norm: float = 1.0,
        micro_batch_size: int | None = None,
        processes: Processes = ALONE,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps = {num_steps}: expected at least 1")
        self.kd = KnowledgeDistiller(
            teacher,
            student,
            loss=loss,
            student_optimizer=student_optimizer,
            max_grad_norm=max_grad_norm,
            micro_batch_size=micro_batch_size,
            processes=processes,
        )
        self.teacher, self.student = self.kd.teacher, self.kd.student
        self.epochs = epochs
        self.num_steps = num_steps
        student_optimizer.param_groups[0]["num_student_steps"] = 0
        self._loaded: int | None = None

    def step(self, batch: Batch) -> Logs:
        """Takes one step of `kd`; returns its logs and `teacher_epoch`, the number of the epoch that teaches."""
        # Looked up anew: an optimizer that loads its state has new groups.
        group = self.kd.gradient_step.optimizer.param_groups[0]
        turn = epoch_at(group["num_student_steps"], num_epochs=len(self.epochs), num_steps=self.num_steps)
        self._take_on(turn)
        group["num_student_steps"] += 1
        logs = self.kd.step(batch)
        return {**logs, "teacher_epoch": torch.full_like(logs["loss"], turn + 1)}

    def _take_on(self, turn: int) -> None:
        if self.epochs and turn != self._loaded:
            self.teacher.model.load_state_dict(self.epochs[turn]())
            self._loaded = turn


def epoch_at(step: int, *, num_epochs: int, num_steps: int) -> int:
    """Which of the teacher's epochs, counted from 0, teaches at a step, counted from 0.

    >>> [epoch_at(step, num_epochs=3, num_steps=6) for step in range(8)]
    [0, 0, 1, 1, 2, 2, 2, 2]
    """
    return max(0, min(step * num_epochs // num_steps, num_epochs - 1))
