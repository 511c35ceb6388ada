"""The gradient step of every method: forward, backward, clip, optimizer step; the batch may be cut into micro-batches.

Also the optimizer that takes it: AdamW with the usual decay groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses.distillation import LossTerms, labels_of
from reptile_distil.runtime.processes import ALONE, Processes, whole

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
        max_grad_norm: the gradient is clipped to this norm.
        micro_batch_size: rows per forward pass; None takes the whole batch at once.
        processes: those that share each batch.
    """

    optimizer: torch.optim.Optimizer
    max_grad_norm: float = 1.0
    micro_batch_size: int | None = None
    processes: Processes = ALONE

    def take(
        self, compute_loss: Callable[[Batch], LossTerms], batch: Batch, parameters: Iterable[nn.Parameter]
    ) -> Logs:
        """Takes one clipped step; returns the loss terms and `grad_norm`, the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        terms, grad_norm = self.compute_gradient(compute_loss, batch, parameters)
        self.optimizer.step()
        return {**terms.logs(), "grad_norm": whole(grad_norm)}

    def compute_gradient(
        self,
        compute_loss: Callable[[Batch], LossTerms],
        batch: Batch,
        parameters: Iterable[nn.Parameter],
        *,
        retain_graph: bool = False,
    ) -> tuple[LossTerms, Tensor]:
        """Leaves the clipped gradient in the parameters' `.grad`, which must be None before.

        Returns the detached loss terms and the gradient's norm before clipping. `retain_graph` as in
        `accumulate_gradient`.
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


FUSED_DEVICES = ("cpu", "cuda")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices decay; vectors (biases, layer norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, *, lr: float, weight_decay: float = 0.0, eps: float = 1e-8) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, betas 0.9 and 0.999.

    One kernel reads and writes each weight once (`fused`), where the device has it: on a CPU a quarter of the time of
    the loop over parameters, and no scratch memory. Elsewhere PyTorch chooses. Move the model to its device before.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    can_fuse = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(decay_groups(model, weight_decay), lr=lr, eps=eps, fused=can_fuse or None)


def check_trainable(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], owner: str) -> None:
    """Raises `ValueError` where the optimizer would not move these parameters of `owner`, teacher or student.

    It must hold all of them, and they must be float32 or float64: in half precision a step of 5e-5 is rounded away, and
    in float16 AdamW's epsilon is 0.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(id(parameter) not in held for parameter in parameters)
    if missing:
        raise ValueError(
            f"{owner}_optimizer does not hold {missing} of the {len(parameters)} {owner} parameters it must update: "
            f"build it from {owner}.parameters()"
        )
    for parameter in parameters:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{owner} weights are {parameter.dtype}, too coarse to be trained: load the model with "
                "from_pretrained(..., dtype=torch.float32)"
            )


def divide_by_magnitude(gradients: list[Tensor], eps: float) -> None:
    """Turns each g into g / (|g| + eps), the direction of an AdamW's first step."""
    magnitude = torch._foreach_abs(gradients)
    torch._foreach_add_(magnitude, eps)
    torch._foreach_div_(gradients, magnitude)


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
