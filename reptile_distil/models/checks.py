"""What keeps a model from being trained or asked, found before anything is: by letting it compute, not by its name."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reptile_distil.errors import ModelError, first_sentence
from reptile_distil.models.classifier import Classifier
from reptile_distil.runtime.randomness import seeded

logger = logging.getLogger(__name__)

_NUM_TOKENS = 8
"""Of the row that a model is tried out with: some models pool neighbours, and cannot read a single token."""

_ROUNDING = 1e-4
"""A logit that differs by no more is taken for the same."""

_ANY_ID = 2**16
"""Stands for the number of ids of a model that reads any."""


def check_it_runs(name: str, model: Any) -> None:
    """Raises `ModelError` for weights that are no finite numbers, and for a model that fails on a few tokens."""
    for key, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ModelError(f"{name}: the weights {key!r} hold infinite or undefined numbers; the file is damaged")
    row = end_rows(model, torch.zeros(1, _NUM_TOKENS, dtype=torch.long))
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


def fit_padding(name: str, model: Any, tokenizer: Any) -> None:
    """Sets pad token and side so that a padded row means what it means alone, where they can do that; in place.

    A model that classifies from a row's last
    token (a decoder) finds it by the pad token in its own configuration: that becomes the tokenizer's where padding
    changes the logits otherwise. So does the side: a decoder that counts positions from the left is padded on the
    right, XLNet, which reads the last position, on the left. What already works stays as it is, and so does what no
    choice mends (FNet, which sees padding).
    """
    before = (getattr(model.config, "pad_token_id", None), tokenizer.padding_side)
    pads = dict.fromkeys((before[0], tokenizer.pad_token_id))
    choices = [(pad, side) for side in sorted(("left", "right"), key=lambda side: side != before[1]) for pad in pads]
    effects: dict[tuple[int | None, str], float] = {}
    for choice in choices:
        model.config.pad_token_id, tokenizer.padding_side = choice
        effects[choice] = _effect_of_padding(model, tokenizer)
        if effects[choice] <= _ROUNDING:
            break
    best = min(effects, key=lambda choice: effects[choice])
    kept = effects[best] > _ROUNDING or best == before
    model.config.pad_token_id, tokenizer.padding_side = before if kept else best
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if not kept and best[1] != before[1]:
        logger.info("%s: rows are padded on the %s: on the %s it changes the logits", name, best[1], before[1])


def _effect_of_padding(model: Any, tokenizer: Any) -> float:
    """How much a logit of a short text differs between the text alone and beside a longer one; infinity: it fails."""
    try:
        rows = tokenizer(["a", "a a a a a a"], padding=True, return_tensors="pt")
        alone = tokenizer(["a"], return_tensors="pt")
        return float((_logits(model, rows)[:1] - _logits(model, alone)).abs().max())
    except Exception:  # each architecture has its own; `check_rows` says what is wrong
        return math.inf


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


def embedding_table(model: Any) -> Tensor | None:
    """The weights (V, D) of which each token id has a row; None where there are none, as in CANINE, which hashes ids.

    They need not be those of an `nn.Embedding`: I-BERT's are in a module of its own.
    """
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    weight = getattr(table, "weight", None)  # Perceiver's "embeddings" are a parameter of something else
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None


def embedding_rows(model: Any) -> int:
    """How many token ids the model can read: rows of its table; without one, what its configuration says, or any."""
    table = embedding_table(model)
    size = getattr(model.config, "vocab_size", None) if table is None else table.shape[0]
    return size if isinstance(size, int) and size > 0 else _ANY_ID


def end_rows(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """The rows (B, L) with the model's end token in the last place of each, from whose state some models classify.

    It stands nowhere else. Where a mask (B, L) says so, a row ends before its padding.
    """
    end = getattr(model.config, "eos_token_id", None)
    if not isinstance(end, int) or not 0 <= end < embedding_rows(model):
        return ids
    mask = torch.ones_like(ids) if mask is None else mask
    other = next(i for i in range(embedding_rows(model)) if i not in (end, getattr(model.config, "pad_token_id", None)))
    ids = torch.where((ids == end) & mask.bool(), other, ids)
    return ids.scatter(1, mask.sum(1, keepdim=True) - 1, end)


def check_states(name: str, model: Any) -> None:
    """Raises `ModelError` where the model gives no hidden states, or not one for each token in each layer."""
    row = end_rows(model, torch.zeros(1, _NUM_TOKENS, dtype=torch.long))
    with seeded(0), torch.no_grad():
        states = Classifier(model).outputs(
            {"input_ids": row, "attention_mask": torch.ones_like(row)}, needs=["hidden_states"]
        )
    lengths = {state.shape[1] for state in states.hidden_states}
    if lengths != {_NUM_TOKENS}:
        raise ModelError(
            f"{name}: of {_NUM_TOKENS} tokens its layers have {', '.join(map(str, sorted(lengths)))} hidden states, so "
            "they cannot be compared: set loss.hidden=0 and loss.patient=0, or choose another model"
        )


def check_projections(name: str, model: Any) -> None:
    """Raises `ModelError` where the model does not give a query, a key and a value for each token in each layer."""
    row = end_rows(model, torch.zeros(1, _NUM_TOKENS, dtype=torch.long))
    batch = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    with seeded(0), torch.no_grad():
        projections = Classifier(model).outputs(batch, needs=["projections"]).projections
    shapes = {tuple(part.shape[:2]) for layer in projections for part in layer}
    if shapes != {(1, _NUM_TOKENS)}:
        raise ModelError(
            f"{name}: of {_NUM_TOKENS} tokens its layers give queries, keys and values of shapes "
            f"{', '.join(map(str, sorted(shapes)))}, so they cannot be compared: set loss.relations.weight=0 and "
            "loss.attention.weight=0, or choose another model"
        )


def _logits(model: Any, inputs: dict[str, Tensor], *, training: bool = False) -> Tensor:
    """What the model says of a batch; its mode and the global random numbers stay as they were."""
    was_training = model.training
    try:
        with seeded(0), torch.no_grad():
            logits: Tensor = Classifier(model).train(training)(inputs)
            return logits
    finally:
        model.train(was_training)
