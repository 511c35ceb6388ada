"""What every method does with a batch: forward, backward, clip, step. A batch may be cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from reptile_distil.data.batches import Batch
from reptile_distil.losses import LossTerms, labels_of
from reptile_distil.runtime.processes import ALONE, Processes, whole

Logs = dict[str, Tensor]
"""Scalars by name, on the device: nothing waits for the device until one is read."""


def is_split(batch: Batch, micro_batch_size: int | None, processes: Processes = ALONE) -> bool:
    """Whether a process's rows of the batch are more than one micro-batch takes."""
    return micro_batch_size is not None and micro_batch_size < _most_rows(batch, processes)


def split_batch(
    batch: Batch, micro_batch_size: int | None, processes: Processes = ALONE
) -> Iterator[tuple[Batch, float]]:
    """Micro-batches of this process's rows, at most `micro_batch_size` each, with their share of the whole batch.

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


def student_step(
    compute_loss: Callable[[Batch], LossTerms],
    batch: Batch,
    *,
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
    micro_batch_size: int | None,
    processes: Processes = ALONE,
) -> Logs:
    """One clipped gradient step; returns the loss terms and the gradient's norm before clipping."""
    parameters = list(parameters)
    optimizer.zero_grad(set_to_none=True)
    terms = accumulate_gradient(compute_loss, batch, micro_batch_size, parameters=parameters, processes=processes)
    # After the exchange: the norm that clips is the whole batch's.
    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return {**terms.logs(), "grad_norm": whole(grad_norm)}
