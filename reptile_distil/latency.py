"""How long two models take for the same batch, on the machine at hand."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import torch

from reptile_distil.gradients import Batch
from reptile_distil.models import Classifier

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 32)
MIN_ROUNDS, MAX_ROUNDS = 3, 15
SECONDS = 0.5
"""After `MIN_ROUNDS`, a batch size is measured no longer than this."""


def compare_latency(teacher: Classifier, student: Classifier, *, length: int, device: str) -> dict[str, Any] | None:
    """Milliseconds per batch of both models, in turn, for batches of 1 and of 32 rows of `length` tokens.

    Forward passes in eval mode without gradients, with all tokens attended to; the median over the rounds, of which
    one more runs first and is not counted. The models' modes are restored. None where the device has no room for it.
    """
    modes = teacher.training, student.training
    teacher.eval()
    student.eval()
    try:
        batches = {size: _batch(student, size, length, device) for size in BATCH_SIZES}
        measured = {str(size): _measure(teacher, student, batch, device) for size, batch in batches.items()}
    except torch.OutOfMemoryError:
        logger.warning("latency not measured: the device has no room for a batch of %d", max(BATCH_SIZES))
        return None
    finally:
        teacher.train(modes[0])
        student.train(modes[1])
    return {"length": length, "device": device, "num_threads": torch.get_num_threads(), "batches": measured}


@torch.no_grad()
def _measure(teacher: Classifier, student: Classifier, batch: Batch, device: str) -> dict[str, float]:
    times: dict[str, list[float]] = {"teacher": [], "student": []}
    models = {"teacher": teacher, "student": student}
    for model in models.values():
        _milliseconds(model, batch, device)
    started = time.perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() - started > SECONDS:
            break
        for name, model in models.items():
            times[name].append(_milliseconds(model, batch, device))
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    return {**medians, "rounds": len(times["teacher"])}


def _milliseconds(model: Classifier, batch: Batch, device: str) -> float:
    _synchronize(device)
    started = time.perf_counter()
    model(batch)
    _synchronize(device)
    return 1000 * (time.perf_counter() - started)


def _synchronize(device: str) -> None:
    """Waits for what the device has been told to do."""
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _batch(model: Classifier, num_rows: int, length: int, device: str) -> Batch:
    """(num_rows, length) ids of a word from the middle of the vocabulary, which is no padding in any of them."""
    config: Any = model.model.config
    ids = torch.full((num_rows, length), config.vocab_size // 2, device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "type_vocab_size", 0):
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch
