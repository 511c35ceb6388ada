"""Small random BERTs and their tokenizer, for the generated tasks: nothing is downloaded or read from disk."""

from __future__ import annotations

import re
from typing import Any

import transformers

from reptile_distil.data.toy import VOCABULARY
from reptile_distil.errors import ModelError

_MODEL_NAME = re.compile(r"toy-bert-([0-9]{1,3})L-([0-9]{1,4})H")


def is_toy_model(name: str) -> bool:
    """Whether `name` is that of a toy model: `toy-bert-4L-64H` has 4 layers of width 64."""
    return _MODEL_NAME.fullmatch(name) is not None


def toy_config(name: str) -> transformers.BertConfig:
    """The configuration of a toy model; its weights are drawn where the model is made."""
    match = _MODEL_NAME.fullmatch(name)
    if match is None:
        raise ModelError(f"{name!r} is no toy model: expected a name such as toy-bert-4L-64H")
    num_layers, width = map(int, match.groups())
    if num_layers < 1 or width < 4 or width % 4:
        raise ModelError(f"{name!r}: a toy model needs a layer or more and a width that is a multiple of its 4 heads")
    return transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def toy_tokenizer() -> Any:
    """The tokenizer of every toy model: one token a word."""
    vocabulary = {word: index for index, word in enumerate(VOCABULARY)}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=64)
