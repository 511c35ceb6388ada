"""What keeps a model from being trained or asked, found before anything is: by letting it compute, not by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reptile_distil.errors import ModelError, first_sentence
from reptile_distil.models.classifier import Classifier
from reptile_distil.runtime.randomness import seeded

_NUM_TOKENS = 8
"""Of the row that a model is tried out with: some models pool neighbours, and cannot read a single token."""


def check_it_runs(name: str, model: Any) -> None:
    """Raises `ModelError` for weights that are no finite numbers, and for a model that fails on a few tokens."""
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"{name}: the weights {key!r} hold infinite or undefined numbers; the file is damaged")
    row = torch.zeros(1, _NUM_TOKENS, dtype=torch.long)
    end = getattr(model.config, "eos_token_id", None)  # from the state of which some models classify
    row[0, -1] = end if isinstance(end, int) and 0 <= end < embedding_rows(model) else 0
    try:  # in training mode, where dropout has its say
        logits = _logits(model, {"input_ids": row, "attention_mask": torch.ones_like(row)}, training=True)
    except Exception as error:  # each wrong size has an exception of its own
        raise ModelError(f"{name}: the model fails on its first tokens: {first_sentence(error)}") from None
    if logits.shape != (1, model.config.num_labels):
        raise ModelError(f"{name}: gives {tuple(logits.shape)} numbers for one text, not {model.config.num_labels}")


def check_vocabulary(name: str, model: Any, tokenizer: Any) -> None:
    """Raises `ModelError` where the tokenizer gives ids that the model has no embedding for."""
    highest, size = max(tokenizer.get_vocab().values()), embedding_rows(model)
    if highest >= size:
        raise ModelError(
            f"{name}: its tokenizer gives ids up to {highest}, but the model has only {size} embeddings; "
            "they do not belong together"
        )


def check_rows(name: str, model: Any, tokenizer: Any, *, is_pair: bool, max_length: int) -> None:
    """Raises `ModelError` where the model cannot read what the tokenizer makes of texts, or of `max_length` tokens."""

    def fault(*texts: str, length: int = max_length, without: str = "") -> str:
        """What goes wrong with these rows, cut to so many tokens; "" for nothing."""
        pairs = {"text_pair": texts[::-1]} if is_pair else {}
        try:
            rows = tokenizer(text=texts, **pairs, padding=True, truncation=True, max_length=length, return_tensors="pt")
            _logits(model, {key: values for key, values in rows.items() if key != without})
        except Exception as error:  # IndexError, RuntimeError, ValueError: each architecture has its own
            return first_sentence(error)
        return ""

    few = min(_NUM_TOKENS, max_length)
    if reason := fault("a", "a a", length=few):
        if not fault("a", "a a", length=few, without="token_type_ids"):
            reason = (
                "its tokenizer tells the texts of a row apart by token_type_ids that the model has no embeddings for "
                "(type_vocab_size in its config.json); choose another model"
            )
        raise ModelError(f"{name}: the model fails on {'a pair of texts' if is_pair else 'a text'}: {reason}")
    long = " ".join(["a"] * max_length)
    if fault(long):
        longest = _largest(lambda length: not fault(long, length=length), few, max_length)
        raise ModelError(f"{name}: has {longest} positions, but data.max_length is {max_length} tokens; lower it")


def _largest(is_fine: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number that is fine, where `low` is and `high` is not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_fine(middle) else (low, middle)
    return low


def set_length(tokenizer: Any, model: Any, max_length: int) -> None:
    """Sets the tokenizer's own `model_max_length` where it knows none: to the length that the model is trained with.

    Saved with the model, it lets others cut long texts. A length above the model's positions counts as unknown.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    known = tokenizer.model_max_length
    if known > (positions if isinstance(positions, int) and positions > 0 else 2**20):
        known = 0
    tokenizer.model_max_length = max(known, max_length)


def embedding_rows(model: Any) -> int:
    """How many tokens the model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def _logits(model: Any, inputs: dict[str, Tensor], *, training: bool = False) -> Tensor:
    """What the model says of a batch; its mode and the global random numbers stay as they were."""
    was_training = model.training
    try:
        with seeded(0), torch.no_grad():
            logits: Tensor = Classifier(model).train(training)(inputs)
            return logits
    finally:
        model.train(was_training)
