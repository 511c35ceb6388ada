"""Times a few real steps of a run, on models that are thrown away, and estimates the whole run from them.

A batch's time is taken to be linear in its number of tokens, padding included: the line goes through the times of the
batch of median size and of the largest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from reptile_distil.data.batches import Batches
from reptile_distil.models.classifier import Classifier
from reptile_distil.models.cost import BATCH_SIZES, MIN_ROUNDS, num_warm_ups
from reptile_distil.runs.state import module_tensors, optimizer_tensors
from reptile_distil.runtime.measuring import peak_memory, reset_peak_memory, wait_for
from reptile_distil.runtime.randomness import random_numbers_repeated
from reptile_distil.training.cuda_graphs import WARM_UP_STEPS, GraphedSteps
from reptile_distil.training.loop import Method


class TrialSteps(NamedTuple):
    """Seconds that steps and evaluations of a run take on this machine, and the bytes that it needs."""

    step_seconds: float
    """One training step, the mean of an epoch's."""
    evaluation_seconds: float
    """One evaluation: of the student, and of a teacher that moves."""
    once_seconds: float
    """Work done once: the teacher's scores and kept logits before the first step, both models' latency after the last.

    What an earlier run has left of it in the cache takes no time; of that, only the kept logits are looked for.
    """
    peak_memory: int
    """Of a step on the longest batch and of evaluating the longest rows: the device's on CUDA, else the process's."""
    model_bytes: int
    """The learning model's weights."""
    checkpoint_bytes: int
    """The tensors of one checkpoint: weights of all models that learn, and optimizer states."""

    def seconds(self, *, num_steps: int, num_evaluations: int) -> float:
        """Seconds of the whole run."""
        return num_steps * self.step_seconds + num_evaluations * self.evaluation_seconds + self.once_seconds


def run_trial_steps(
    method: Method,
    optimizers: Mapping[str, Optimizer],
    train: Batches,
    dev: Sequence[Batches],
    *,
    student: Classifier,
    teacher: Classifier | None,
    teacher_moves: bool,
    length: int,
    logits_of: Batches | None = None,
    modules: Sequence[nn.Module] = (),
) -> TrialSteps:
    """Takes three steps (the first does not count) and evaluates two batches; this changes the models.

    With CUDA graphs the steps that count are replays, after those that record them. `length` is the number of tokens at
    which a run measures the models' latency; `logits_of` are the batches in which it computes the logits that it keeps;
    `modules` are what checkpoints hold beside the models.
    The state of PyTorch's random numbers is restored, on the CPU and on the run's device.
    """
    device = train.device
    with random_numbers_repeated(torch.device(device)):
        reset_peak_memory(device)
        step_seconds = _time_steps(method, train)
        students_pass = teachers_pass = once = 0.0
        for batches in dev:
            students_pass += _time_pass(student, batches)
            teachers_pass += 0.0 if teacher is None else _time_pass(teacher, batches)
        if teacher is not None:
            tokens = sum((num_warm_ups(size, device) + MIN_ROUNDS) * size * length for size in BATCH_SIZES)
            per_token = (students_pass + teachers_pass) / sum(sum(_pass_sizes(batches)) for batches in dev)
            once = teachers_pass + tokens * per_token
            once += 0.0 if logits_of is None else _time_pass(teacher, logits_of)
        peak = peak_memory(device, with_graphs=isinstance(method, GraphedSteps))
    learners: list[nn.Module] = [student, *([teacher] if teacher is not None and teacher_moves else []), *modules]
    tensors = [tensor for module in learners for tensor in module_tensors(module).values()]
    tensors += [tensor for optimizer in optimizers.values() for tensor in optimizer_tensors(optimizer).values()]
    return TrialSteps(
        step_seconds=step_seconds,
        evaluation_seconds=students_pass + (teachers_pass if teacher_moves else 0.0),
        once_seconds=once,
        peak_memory=peak,
        model_bytes=_size(module_tensors(student).values()),
        checkpoint_bytes=_size(tensors),
    )


def mean_seconds(sizes: Sequence[int], measured: Mapping[int, float]) -> float:
    """Mean time of batches of these sizes, on the line through what batches of one or two sizes took.

    A line that falls is noise: then the time of a batch is taken to be in proportion to its size.
    """
    low, high = min(measured), max(measured)
    mean = float(np.mean(sizes))
    slope = (measured[high] - measured[low]) / (high - low) if high > low else 0.0
    at_zero = measured[low] - slope * low
    if high == low or slope < 0 or at_zero < 0:
        return mean * sum(measured.values()) / (high + low if high > low else low)
    return at_zero + slope * mean


def _time_steps(method: Method, batches: Batches) -> float:
    """Mean seconds of the steps of the first epoch."""
    order = batches.order(1)
    sizes = [int(batches.lengths[rows].max()) * len(rows) for rows in order]

    def take(number: int) -> None:
        batch, extra = next(batches.steps(1, skip=number))
        method.step(batch, *extra)

    if isinstance(method, GraphedSteps):
        for number in _median_and_largest(sizes):
            for _ in range(WARM_UP_STEPS + 1):
                take(number)
    else:
        take(_median_and_largest(sizes)[0])  # the first one does not count
    return mean_seconds(sizes, _measure(take, sizes, batches.device))


@torch.no_grad()
def _time_pass(model: Classifier, batches: Batches) -> float:
    """Seconds of all rows' forward passes in eval mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    sizes = _pass_sizes(batches)

    def take(number: int) -> None:
        model(next(batches.in_length_order(number))[1]).float().cpu()

    try:
        return len(sizes) * mean_seconds(sizes, _measure(take, sizes, batches.device))
    finally:
        model.train(was_training)


def _pass_sizes(batches: Batches) -> list[int]:
    """Tokens, padding included, of each batch in length order."""
    lengths = np.sort(batches.lengths)[::-1]
    starts = range(0, len(lengths), batches.batch_size)
    return [int(lengths[start]) * len(lengths[start : start + batches.batch_size]) for start in starts]


def _measure(take: Callable[[int], Any], sizes: Sequence[int], device: str) -> dict[int, float]:
    """Seconds by size for the batch of median size and for the largest."""
    seconds = {}
    for number in _median_and_largest(sizes):
        wait_for(device)
        started = time.perf_counter()
        take(number)
        wait_for(device)
        seconds[sizes[number]] = time.perf_counter() - started
    return seconds


def _median_and_largest(sizes: Sequence[int]) -> tuple[int, int]:
    """Numbers of the batches of these sizes."""
    by_size = np.argsort(sizes, kind="stable")
    return int(by_size[len(by_size) // 2]), int(by_size[-1])


def _size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
