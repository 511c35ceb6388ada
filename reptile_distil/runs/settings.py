"""Whether two runs have the same settings: one path has many spellings, relative, absolute, with `~` and by links."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reptile_distil.home_folder import expand_home

_MODELS = ("teacher.pretrained", "teacher.finetuned", "teachers", "student.pretrained")
_BESIDE_THE_DATA = ("data.transfer.files", "task.files.")


def is_of_data(key: str) -> bool:
    """Whether the setting, by dotted key, says where the rows of a run lie."""
    return key == "data.path" or key.startswith(_BESIDE_THE_DATA)


def is_of_models(key: str) -> bool:
    """Whether the setting names folders of models, or models of the hub."""
    return key in _MODELS


def find_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The keys, in order, whose values differ; paths are the same where they lead to the same place from here."""
    return [key for key in sorted(old.keys() | new.keys()) if _place(key, old) != _place(key, new)]


def _place(key: str, settings: Mapping[str, Any]) -> Any:
    """The value of a key; of one that names files or folders, where these lie."""
    value = settings.get(key)
    if not is_of_data(key) and not is_of_models(key):
        return expand_home(value).rstrip("/") if isinstance(value, str) else value
    folder = settings.get("data.path") if key.startswith(_BESIDE_THE_DATA) else None
    return [_real(folder, one) for one in value] if isinstance(value, list) else _real(folder, value)


def _real(folder: Any, name: Any) -> Any:
    if not isinstance(name, str):
        return name
    with contextlib.suppress(ValueError):  # no path has a character of number 0
        return os.path.realpath(Path(expand_home(folder) if isinstance(folder, str) else "", expand_home(name)))
    return name
