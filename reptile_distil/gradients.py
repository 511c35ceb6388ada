"""What every method does with a batch: forward, backward, clip, step. A batch may be cut into micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from reptile_distil.losses import LossTerms

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and, where the model has them, `token_type_ids`, each (B, L); `labels` (B,)."""

Logs = dict[str, Tensor]
"""Scalars by name, on the device: nothing waits for the device until one is read."""


def is_split(batch: Batch, micro_batch_size: int | None) -> bool:
    """Whether the batch has more rows than one micro-batch takes."""
    return micro_batch_size is not None and micro_batch_size < len(batch["labels"])


def split_batch(batch: Batch, micro_batch_size: int | None) -> Iterator[tuple[Batch, float]]:
    """Micro-batches of at most `micro_batch_size` rows, each with its share of the batch's rows.

    The shares weight the micro-batches' mean losses, so their sum is the batch's mean loss, also when the last
    micro-batch is smaller.
    """
    if micro_batch_size is None or not is_split(batch, micro_batch_size):
        yield batch, 1.0
        return
    num_rows = len(batch["labels"])
    for start in range(0, num_rows, micro_batch_size):
        part = {name: tensor[start : start + micro_batch_size] for name, tensor in batch.items()}
        yield part, len(part["labels"]) / num_rows


def accumulate_gradient(
    compute_loss: Callable[[Batch], LossTerms],
    batch: Batch,
    micro_batch_size: int | None = None,
    *,
    retain_graph: bool = False,
) -> LossTerms:
    """Adds the gradient of the batch's mean loss to the parameters' `.grad`; returns the detached loss terms.

    `retain_graph` keeps what `compute_loss` was computed from, for another backward pass through it.
    """
    sums: LossTerms | None = None
    for part, share in split_batch(batch, micro_batch_size):
        terms = compute_loss(part)
        (terms.total * share).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        weighted = terms.detached(share)
        sums = weighted if sums is None else sums.plus(weighted)
    if sums is None:
        raise ValueError("the batch has no rows")
    return sums


@contextlib.contextmanager
def random_numbers_repeated(device: torch.device) -> Iterator[None]:
    """The random numbers drawn inside (dropout masks) are drawn once more, the same ones, behind it."""
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    if on_mps is not None:
        torch.mps.set_rng_state(on_mps)


def student_step(
    compute_loss: Callable[[Batch], LossTerms],
    batch: Batch,
    *,
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    micro_batch_size: int | None,
) -> Logs:
    """One clipped gradient step; returns the loss terms and the gradient's norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    terms = accumulate_gradient(compute_loss, batch, micro_batch_size)
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return {**terms.logs(), "grad_norm": grad_norm}
