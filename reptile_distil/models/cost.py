"""What a model costs: how long two of them take for the same batch, and the operations of one forward pass."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reptile_distil.data.batches import Batch
from reptile_distil.models.checks import embedding_rows, end_rows
from reptile_distil.models.classifier import Classifier
from reptile_distil.runtime.measuring import is_out_of_memory, time_in_turn, wait_for

logger = logging.getLogger(__name__)
BATCH_SIZES = (1, 32)
MIN_ROUNDS, MAX_ROUNDS = 2, 15
SECONDS = 0.5
"""After `MIN_ROUNDS`, a batch size is measured no longer than this."""


def compare_latency(teacher: Classifier, student: Classifier, *, length: int, device: str) -> dict[str, Any] | None:
    """Milliseconds per batch of both models, in turn, for batches of 1 and of 32 rows of `length` tokens.

    Forward passes in eval mode without gradients, with all tokens attended to; the median over the rounds, of which
    one more runs first and is not counted (see `num_warm_ups`). On one thread of a CPU it is the processor's time,
    which other work on the machine hardly changes; else the clock's. The models' modes are restored. None where the
    device has no room for it.
    """
    modes = teacher.training, student.training
    teacher.eval()
    student.eval()
    try:
        measured = {str(size): _measure(teacher, student, size, length, device) for size in BATCH_SIZES}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("latency not measured: the device has no room for a batch of %d", max(BATCH_SIZES))
        return None
    finally:
        teacher.train(modes[0])
        student.train(modes[1])
    return {"length": length, "device": device, "num_threads": torch.get_num_threads(), "batches": measured}


@torch.no_grad()
def _measure(teacher: Classifier, student: Classifier, num_rows: int, length: int, device: str) -> dict[str, float]:
    batches = {model: _batch_for(model, num_rows, length, device) for model in (teacher, student)}

    def call(model: Classifier) -> None:
        model(batches[model])
        wait_for(device)

    on_one_thread = device == "cpu" and torch.get_num_threads() == 1
    times = time_in_turn(
        {"teacher": partial(call, teacher), "student": partial(call, student)},
        seconds=SECONDS,
        num_warmups=num_warm_ups(num_rows, device),
        min_rounds=MIN_ROUNDS,
        max_rounds=MAX_ROUNDS,
        clock=time.process_time if on_one_thread else time.perf_counter,
    )
    medians = {f"{name}_ms": 1000 * timing.median for name, timing in times.items()}
    return {**medians, "rounds": times["teacher"].num_rounds}


def num_warm_ups(num_rows: int, device: str) -> int:
    """Rounds with a batch of so many rows that are not counted: on a CPU, where a large batch takes seconds, none."""
    return 1 if num_rows == BATCH_SIZES[0] or device != "cpu" else 0


def _batch_for(classifier: Classifier, num_rows: int, length: int, device: str) -> Batch:
    """As `plain_batch`, its columns named as the classifier has them in a batch for two models."""
    prefix = classifier.columns if isinstance(classifier, Classifier) else ""
    return {prefix + name: ids for name, ids in plain_batch(classifier.model, num_rows, length, device).items()}


def plain_batch(model: Any, num_rows: int, length: int, device: Any) -> Batch:
    """(num_rows, length) ids of a word from the middle of the vocabulary, which is no padding, and the end token."""
    ids = end_rows(model, torch.full((num_rows, length), embedding_rows(model) // 2)).to(device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(model.config, "type_vocab_size", 0):
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch


def flops_per_sequence(model: nn.Module, length: int) -> int:
    """Operations of a forward pass for one sequence of `length` tokens; a multiplication and its addition are two.

    Counted by PyTorch in a forward pass: all matrix products, those of attention over all pairs of tokens. Softmax,
    normalisation, activations and biases are left out (about 1 %). The model's mode is restored.
    """
    batch = plain_batch(model, 1, length, next(model.parameters()).device)
    was_training = model.training
    # PyTorch does not count its fused attention on a CPU. The counter's hooks fail without gradients where a weight is
    # an argument of a module, as in DeBERTa.
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(**batch)
    model.train(was_training)
    return int(counter.get_total_flops())
