"""What a model costs: how long two of them take for the same batch, and the operations of one forward pass."""

from __future__ import annotations

import logging
import re
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from reptile_distil.data.batches import Batch
from reptile_distil.data.features import Indices
from reptile_distil.models.classifier import Classifier
from reptile_distil.runtime.measuring import time_in_turn, wait_for

logger = logging.getLogger(__name__)
BATCH_SIZES = (1, 32)
MIN_ROUNDS, MAX_ROUNDS = 3, 15
SECONDS = 0.5
"""After `MIN_ROUNDS`, a batch size is measured no longer than this."""


def compare_latency(teacher: Classifier, student: Classifier, *, length: int, device: str) -> dict[str, Any] | None:
    """Milliseconds per batch of both models, in turn, for batches of 1 and of 32 rows of `length` tokens.

    Forward passes in eval mode without gradients, with all tokens attended to; the median over the rounds, of which
    one more runs first and is not counted. On one thread of a CPU it is the processor's time, which other work on the
    machine hardly changes; else the clock's. The models' modes are restored. None where the device has no room for it.
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
    def call(model: Classifier) -> None:
        model(batch)
        wait_for(device)

    on_one_thread = device == "cpu" and torch.get_num_threads() == 1
    times = time_in_turn(
        {"teacher": partial(call, teacher), "student": partial(call, student)},
        seconds=SECONDS,
        num_warmups=1,
        min_rounds=MIN_ROUNDS,
        max_rounds=MAX_ROUNDS,
        clock=time.process_time if on_one_thread else time.perf_counter,
    )
    medians = {f"{name}_ms": 1000 * timing.median for name, timing in times.items()}
    return {**medians, "rounds": times["teacher"].num_rounds}


def _batch(model: Classifier, num_rows: int, length: int, device: str) -> Batch:
    """(num_rows, length) ids of a word from the middle of the vocabulary, which is no padding in any of them."""
    config: Any = model.model.config
    ids = torch.full((num_rows, length), config.vocab_size // 2, device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if getattr(config, "type_vocab_size", 0):
        batch["token_type_ids"] = torch.zeros_like(ids)
    return batch


_PLAIN_ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "albert", "distilbert")
_IN_A_LAYER = re.compile(r"\.layer\.|albert_layer_groups")


def flops_per_sequence(model: Any, length: int) -> int | None:
    """Operations for one sequence of `length` tokens; a multiplication and its addition count as two.

    With width d, feed-forward width f, and N layers, one sequence of L tokens takes

        N (8 L d² + 4 L² d + 4 L d f)

    in the encoder: four projections, the scores and the weighted sums of attention, the two feed-forward products. On
    top come 2 · in · out for each linear layer outside: L times for a projection of embeddings, once for pooler and
    head. Softmax, normalisation, activations and biases are left out (about 1 %). None for an architecture whose
    layers are not these.
    """
    config = model.config
    if config.model_type not in _PLAIN_ENCODERS:
        return None
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or config.hidden_dim
    layer = layer_flops(np.array([length]), width, inner)
    outside = sum(
        2 * module.in_features * module.out_features * (length if "embedding" in name else 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not _IN_A_LAYER.search(name)
    )
    return int(config.num_hidden_layers * layer + outside)


def layer_flops(lengths: Indices, width: int, inner_width: int) -> float:
    """Operations of one layer's forward pass over rows of these lengths."""
    tokens, squares = float(lengths.sum()), float((lengths**2).sum())
    return 2 * tokens * (4 * width**2 + 2 * width * inner_width) + 4 * squares * width
