"""Operations and bytes of a training step, in closed form, and the machine's measured peaks per second.

One encoder layer of width H and inner width F, on B rows of L tokens, takes forwards

    2 B L (4 H² + 2 H F)    for its six matrices: a multiplication and an addition for each weight and token
    4 B L² H                for attention: scores, and the weighted sum of values

floating point operations; a backward pass takes twice its forward. Embeddings, norms, softmax and the head are left
out: under one percent at BERT's sizes.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch

from reptile_distil.benchmark.token_lengths import Lengths
from reptile_distil.runtime.measuring import best_seconds


class Shape(NamedTuple):
    """Depths and widths of a teacher and its student, and their numbers of weights."""

    teacher_layers: int
    student_layers: int
    width: int
    inner_width: int
    teacher_parameters: int
    student_parameters: int


class Peaks(NamedTuple):
    """The machine's measured peaks."""

    flops: float
    """Floating point operations per second in a matrix product."""
    bandwidth: float
    """Bytes read and written per second in a copy."""


class Passes(NamedTuple):
    """How often one step goes through the layers of each model.

    Per layer a forward pass counts 1, and a backward pass 2: the gradients of its inputs and of its weights. Where the
    teacher learns by second-order gradients (MetaDistil), there are three more kinds:

    - the quiz: forward and backward passes of the assumed student, on the quiz's own rows;
    - the second backward pass, through the first one's operations, towards the gradient at the student's logits: a
      layer's backward pass is two products for each of its matrices, and its output gradient is in both; so there are
      two products more for each matrix, and this pass counts 2 as well. Activations and weights do not depend on the
      teacher, so their parts of it, 2 more, are never asked for;
    - the teacher's backward pass, from its logits to its weights: 2.
    """

    teacher_forwards: int = 0
    forwards: int = 1
    """Of the student, on the batch."""
    backwards: int = 1
    second_backwards: int = 0
    quizzes: int = 0
    """A forward and a backward pass of the student on the quiz batch."""
    teacher_backwards: int = 0


# MetaDistil: assumed step (both forwards, one backward), quiz, second backward, teacher's backward, then a KD step.
# LGTM: two forwards of the student in the place of the second backward.
PASSES = {
    "finetune": Passes(),
    "kd": Passes(teacher_forwards=1),
    "kd-kept": Passes(),
    "reptile": Passes(teacher_forwards=2, backwards=2),
    "student-first": Passes(teacher_forwards=1),
    "metadistil": Passes(2, forwards=2, backwards=2, second_backwards=1, quizzes=1, teacher_backwards=1),
    "prokt": Passes(teacher_forwards=1, teacher_backwards=1),
    "cotrain": Passes(teacher_forwards=1, teacher_backwards=1),
    "checkpoints": Passes(teacher_forwards=1),
    "lgtm": Passes(2, forwards=4, backwards=2, quizzes=1, teacher_backwards=1),
    "released": Passes(teacher_forwards=2, forwards=2, backwards=2),
}
"""Every method that can be measured."""

BYTES_PER_WEIGHT = 4
# AdamW reads weight, gradient and two moments, and writes all but the gradient.
ADAMW_TRANSFERS = 7


def step_flops(method: str, shape: Shape, lengths: Lengths, quiz_lengths: Lengths | None = None) -> float:
    """Operations of one step on rows of these lengths: real ones, or all equal to what they are padded to.

    `quiz_lengths` are those of the quiz's rows; by default the same.
    """
    passes = PASSES[method]
    layers = (passes.teacher_forwards + 2 * passes.teacher_backwards) * shape.teacher_layers
    layers += (passes.forwards + 2 * passes.backwards + 2 * passes.second_backwards) * shape.student_layers
    quiz_layers = 3 * passes.quizzes * shape.student_layers
    of_layer = layer_flops(lengths, shape.width, shape.inner_width)
    of_quiz = of_layer if quiz_lengths is None else layer_flops(quiz_lengths, shape.width, shape.inner_width)
    return layers * of_layer + quiz_layers * of_quiz


def layer_flops(lengths: Lengths, width: int, inner_width: int) -> float:
    """Operations of one layer's forward pass over rows of these lengths."""
    tokens, squares = float(lengths.sum()), float((lengths**2).sum())
    return 2 * tokens * (4 * width**2 + 2 * width * inner_width) + 4 * squares * width


def step_bytes(method: str, shape: Shape) -> float:
    """Bytes of weights that one step has to move at least; activations are left out.

    A forward pass reads each weight. A backward pass reads each and writes its gradient. The student's AdamW follows;
    Reptile's teacher update reads theta_t, theta_s and the gradient, writes the difference, and steps an AdamW over the
    teacher's matched weights, which are about as many as the student's. MetaDistil's second backward pass reads each
    weight and the gradient of its assumed value, which is written from the weight and its gradient. Where there is a
    teacher's backward pass, an AdamW steps over all of the teacher's weights.
    """
    passes = PASSES[method]
    transfers = (passes.teacher_forwards + 2 * passes.teacher_backwards) * shape.teacher_parameters
    student = passes.forwards + 2 * passes.backwards + 2 * passes.second_backwards + ADAMW_TRANSFERS
    transfers += (student + 3 * passes.quizzes) * shape.student_parameters
    if method in ("reptile", "student-first", "released"):
        transfers += (4 + ADAMW_TRANSFERS) * shape.student_parameters
    if passes.second_backwards:
        transfers += 3 * shape.student_parameters
    if passes.teacher_backwards:
        transfers += ADAMW_TRANSFERS * shape.teacher_parameters
    return float(BYTES_PER_WEIGHT * transfers)


def floor_seconds(
    method: str, shape: Shape, lengths: Lengths, peaks: Peaks, quiz_lengths: Lengths | None = None
) -> float:
    """The time below which no step on these real tokens can come, at the machine's measured peaks."""
    flops = step_flops(method, shape, lengths, quiz_lengths)
    return max(flops / peaks.flops, step_bytes(method, shape) / peaks.bandwidth)


def measure_peaks(device: str, dtype: torch.dtype, *, repeats: int = 8) -> Peaks:
    """The fastest of some matrix products and copies, of sizes as they occur in training."""
    sizes = (512, 1024, 2048) if device == "cpu" else (4096, 8192)
    flops = 0.0
    for size in sizes:
        a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
        flops = max(flops, 2 * size**3 / best_seconds(partial(torch.matmul, a, b), device, repeats=repeats))
    source = torch.empty(2**26, device=device)  # 256 MB
    target = torch.zeros_like(source)
    num_bytes = 2 * source.numel() * source.element_size()
    return Peaks(flops, num_bytes / best_seconds(partial(target.copy_, source), device, repeats=repeats))
