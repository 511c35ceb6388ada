"""What a training step has to compute and to move, in closed form, and what the machine can do of it per second.

One encoder layer of width H and inner width F, on B rows of L tokens, takes forwards

    2 B L (4 H² + 2 H F)    for its six matrices: a multiplication and an addition for each weight and token
    4 B L² H                for attention: scores, and the weighted sum of values

floating point operations; a backward pass takes twice its forward. Embeddings, norms, softmax and the head are left
out: under one percent at BERT's sizes.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from reptile_distil.token_lengths import Lengths


class Shape(NamedTuple):
    """Depths and widths of a teacher and its student, and their numbers of weights."""

    teacher_layers: int
    student_layers: int
    width: int
    inner_width: int
    teacher_parameters: int
    student_parameters: int


class Peaks(NamedTuple):
    """What the machine was seen to reach."""

    flops: float
    """Floating point operations per second in a matrix product."""
    bandwidth: float
    """Bytes read and written per second in a copy."""


# Forward passes of the teacher, forward passes of the student, backward passes of the student, in one step.
PASSES = {"finetune": (0, 1, 1), "kd": (1, 1, 1), "reptile": (2, 1, 2), "released": (2, 2, 2)}

BYTES_PER_WEIGHT = 4
# AdamW reads weight, gradient and two moments, and writes all but the gradient.
ADAMW_TRANSFERS = 7


def layer_flops(lengths: Lengths, width: int, inner_width: int) -> float:
    """Operations of one layer's forward pass over rows of these lengths."""
    tokens, squares = float(lengths.sum()), float((lengths**2).sum())
    return 2 * tokens * (4 * width**2 + 2 * width * inner_width) + 4 * squares * width


def step_flops(method: str, shape: Shape, lengths: Lengths) -> float:
    """Operations of one step on rows of these lengths: real ones, or all equal to what they are padded to."""
    teacher_forwards, forwards, backwards = PASSES[method]
    layers = teacher_forwards * shape.teacher_layers + (forwards + 2 * backwards) * shape.student_layers
    return layers * layer_flops(lengths, shape.width, shape.inner_width)


def step_bytes(method: str, shape: Shape) -> float:
    """Bytes of weights that one step has to move at least; activations are left out.

    A forward pass reads each weight. A backward pass reads each and writes its gradient. The student's AdamW follows;
    Reptile's teacher update reads theta_t, theta_s and the gradient, writes the difference, and steps an AdamW over the
    teacher's matched weights, which are about as many as the student's.
    """
    teacher_forwards, forwards, backwards = PASSES[method]
    transfers = teacher_forwards * shape.teacher_parameters
    transfers += (forwards + 2 * backwards + ADAMW_TRANSFERS) * shape.student_parameters
    if method in ("reptile", "released"):
        transfers += (4 + ADAMW_TRANSFERS) * shape.student_parameters
    return float(BYTES_PER_WEIGHT * transfers)


def floor_seconds(method: str, shape: Shape, lengths: Lengths, peaks: Peaks) -> float:
    """The time below which no step on these real tokens can come, at the machine's measured peaks."""
    return max(step_flops(method, shape, lengths) / peaks.flops, step_bytes(method, shape) / peaks.bandwidth)


def measure_peaks(device: str, dtype: torch.dtype, *, repeats: int = 8) -> Peaks:
    """The best of some matrix products and copies, of sizes as they occur in training."""
    sizes = (512, 1024, 2048) if device == "cpu" else (4096, 8192)
    flops = 0.0
    for size in sizes:
        a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
        flops = max(flops, 2 * size**3 / _best_seconds(lambda a=a, b=b: a @ b, device, repeats))
    source = torch.empty(2**26, device=device)  # 256 MB
    target = torch.zeros_like(source)
    num_bytes = 2 * source.numel() * source.element_size()
    return Peaks(flops, num_bytes / _best_seconds(lambda: target.copy_(source), device, repeats))


def wait_for(device: str) -> None:
    """Returns when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _best_seconds(work: object, device: str, repeats: int) -> float:
    assert callable(work)
    best = float("inf")
    for _ in range(repeats):
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - started)
    return best
