"""Tokenizers: loaded, and checked to fit a model, and each other."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, Self

import transformers

from reptile_distil.errors import ModelError, first_sentence
from reptile_distil.models.loading import load_files
from reptile_distil.models.toy import is_toy_model, toy_tokenizer
from reptile_distil.runtime.each_line_once import log_once

logger = logging.getLogger(__name__)


class Tokenizers(NamedTuple):
    """What texts are made batches with."""

    student: Any
    """Of the model that learns, or is asked; of the teacher as well where it has none of its own."""
    teacher: Any = None
    """The teacher's own, where it turns texts into other ids."""

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """Such a pair itself, or a lone tokenizer as one."""
        return tokenizer if isinstance(tokenizer, cls) else cls(tokenizer)

    @property
    def of_teacher(self) -> Any:
        """What the teacher reads with."""
        return self.student if self.teacher is None else self.teacher


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model `name` (folder, hub name or toy).

    One without a pad token, as decoders have it, pads with its end token. Raises `ModelError` where it
    has no vocabulary, or cannot turn texts into one batch.
    """
    if is_toy_model(name):
        return toy_tokenizer()
    tokenizer = load_files(transformers.AutoTokenizer, name)
    # A folder without tokenizer files gives a tokenizer all the same, which knows nothing but its special tokens.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise ModelError(f"{name}: has no vocabulary; put the tokenizer's files beside the model's")
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        log_once(logger, f"{name}: its tokenizer has no padding token, so rows are padded with {tokenizer.pad_token!r}")
    try:
        tokenizer(["a", "Ünknown ☃"], ["b c", ""], padding=True, truncation=True, max_length=8)
    except Exception as error:
        raise ModelError(f"{name}: its tokenizer cannot be used: {first_sentence(error)}") from None
    return tokenizer


def forget_last_call(tokenizer: Any) -> None:
    """Clears cutting and padding, which a fast tokenizer keeps from its last call and would write into its file."""
    if getattr(tokenizer, "is_fast", False):
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


SHARE_ONE = "choose a pair that shares one tokenizer"


def check_same_tokenizer(
    teacher_name: str, teacher: Any, student_name: str, student: Any, *, remedy: str = SHARE_ONE
) -> None:
    """Raises `ModelError` unless both tokenizers turn text into the same ids: one batch feeds both models."""
    if difference := difference_of_tokenizers(teacher, student):
        raise ModelError(f"teacher {teacher_name} and student {student_name} have different {difference}: {remedy}")


def pair_tokenizers(teacher: Any, student: Any) -> Tokenizers:
    """What the batches of teacher and student are made with: one tokenizer where both give the same ids, else two."""
    if difference_of_tokenizers(teacher, student):
        return Tokenizers(student, teacher)
    shared = wider_tokenizer(teacher, student)
    shared.padding_side = student.padding_side
    return Tokenizers(shared)


def difference_of_tokenizers(teacher: Any, student: Any) -> str:
    """What keeps both tokenizers from turning each text into the same ids; "" for nothing."""
    probe = "Déjà-vu: ÀÉÎ, don't 中文 STRASSE ß?"
    normalizers = [_normalizer(teacher), _normalizer(student)]
    differences = {
        "vocabularies": teacher.get_vocab() != student.get_vocab(),
        "special tokens": teacher.special_tokens_map != student.special_tokens_map,
        "ways to lower-case and clean text": None not in normalizers and normalizers[0] != normalizers[1],
        "ways to cut text": teacher(probe)["input_ids"] != student(probe)["input_ids"],
    }
    return next((what for what, differ in differences.items() if differ), "")


def _normalizer(tokenizer: Any) -> str | None:
    """How text is cleaned before it is cut; None for a tokenizer in Python, which does both in its own code."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.normalizer)


def wider_tokenizer(teacher: Any, student: Any) -> Any:
    """Of two tokenizers with the same ids, the one that gives more inputs: BERT needs segments, DistilBERT has none."""
    return max(student, teacher, key=lambda tokenizer: len(tokenizer.model_input_names))
