"""Faults a user can cause and mend. Each message is one sentence: what was found, and what to do.

The scripts print the message and exit with code 2; nothing else in the package catches them.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST = 1500
"""Characters of a message; the middle of a longer one is left out."""


class ReptileDistilError(Exception):
    """Base of every error that a user can mend: config, data, model or run folder.

    A message may quote what a file holds, so it is made fit for one line of a terminal here, once for all: control
    characters are spelled out, and of a very long one the beginning and the end are kept.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST * 2 // 3]} [...] {line[-_LONGEST // 3 :]}"
        super().__init__(line)


class ConfigError(ReptileDistilError):
    """A YAML file or a `key=value` override that cannot be used."""


class DataError(ReptileDistilError):
    """A data folder, a data file or one of its rows that cannot be used."""


class ModelError(ReptileDistilError):
    """A model, a tokenizer or a pair of them that cannot be used."""


class LayerMapError(ModelError):
    """A layer map that does not fit the two models."""


class RunError(ReptileDistilError):
    """A run folder that cannot be used, or a run that cannot go on."""


class RunInUseError(RunError):
    """A run folder in which another process is running."""


class DivergedError(RunError):
    """A run whose losses, or a model whose logits, are no longer finite."""


class CheckpointError(RunError):
    """A checkpoint that is damaged, or that somebody else has put there."""


class CallbackError(ReptileDistilError):
    """A user's own object that cannot be called while a run goes on, or that has failed."""


class OutOfMemoryError(ReptileDistilError):
    """Memory ran out, on the CPU or on a device."""


class MissingExtraError(ReptileDistilError):
    """An optional package that is not installed."""


def first_fault(error: ValidationError) -> str:
    """The first fault that pydantic has found, as `key.path: what is wrong`."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path, what = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    return f"{path}: {what}" if path else what


def first_sentence(error: Exception) -> str:
    """What kind of error it is and what it says, on one line and not at length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'epochs'?` for the known name that is most like `name`; empty where none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix + close[0]!r}?" if close else ""


def looks_like(name: str, known: Iterable[str]) -> str:
    """`; ' label' has a blank before it`: what tells `name` from a known one that looks like it; empty where none does.

    That is a blank at an end, or the spelling in Unicode (é as one character, or as e with an accent).
    """
    for other in known:
        if _composed(name) != _composed(other):
            continue
        if name.strip() == other.strip():
            return "".join(f"; {text!r} has a blank {_side(text)} it" for text in (name, other) if text != text.strip())
        return f"; {name!r} and {other!r} look alike, but differ in Unicode (NFC or NFD): spell both in one way"
    return ""


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text.strip())


def _side(text: str) -> str:
    return "before" if text != text.lstrip() else "behind"
