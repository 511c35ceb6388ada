"""What every method does with a batch: forward, backward, clip, step. A batch may be cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from reptile_distil.losses import LossTerms

Batch = Mapping[str, Tensor]
"""`input_ids`, `attention_mask` and, where the model has them, `token_type_ids`, each (B, L); `labels` (B,)."""

Logs = dict[str, Tensor]
"""Scalars by name, on the device: nothing waits for the device until one is read."""


def split_batch(batch: Batch, micro_batch_size: int | None) -> Iterator[tuple[Batch, float]]:
    """Micro-batches of at most `micro_batch_size` rows, each with its share of the batch's rows.

    The shares weight the micro-batches' mean losses, so their sum is the batch's mean loss, also when the last
    micro-batch is smaller.
    """
    num_rows = len(batch["labels"])
    if micro_batch_size is None or micro_batch_size >= num_rows:
        yield batch, 1.0
        return
    for start in range(0, num_rows, micro_batch_size):
        part = {name: tensor[start : start + micro_batch_size] for name, tensor in batch.items()}
        yield part, len(part["labels"]) / num_rows


def accumulate_gradient(
    compute_loss: Callable[[Batch], LossTerms], batch: Batch, micro_batch_size: int | None = None
) -> LossTerms:
    """Adds the gradient of the batch's mean loss to the parameters' `.grad`; returns the detached loss terms."""
    sums: LossTerms | None = None
    for part, share in split_batch(batch, micro_batch_size):
        terms = compute_loss(part)
        (terms.total * share).backward()  # type: ignore[no-untyped-call]
        weighted = terms.detached(share)
        sums = weighted if sums is None else sums.plus(weighted)
    if sums is None:
        raise ValueError("the batch has no rows")
    return sums


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
