"""What is in the files that a run reads, so that a finished run is not taken for one on other files.

The files are compared as they are, without loading anything. A run that is under way compares what came out of them:
that is in its checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import MutableMapping
from pathlib import Path

from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role
from reptile_distil.data.sources import open_split
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DataError, ModelError
from reptile_distil.experiments.setup import student_source
from reptile_distil.models.loading import find_folder
from reptile_distil.runtime.files import digest_files

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json")
_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")

KnownDigests = MutableMapping[tuple[str, ...], str | None]
"""Digests of what was looked at before, so that one look at many runs reads each file once."""


def digest_inputs(config: Config, task: Task, role: Role, known: KnownDigests | None = None) -> dict[str, str]:
    """SHA-256 of each local file or folder that a run reads, by what it is: `train split`, `teacher` and so on.

    What comes from the hub, or is missing, is left out. Nothing in `known` is read again; what is read is added to it.
    """
    known = {} if known is None else known
    models: dict[str, str | Path] = {}
    if role == "teacher":
        models["pretrained teacher"] = config.teacher.pretrained
    else:
        if config.needs_teacher(role):
            models["teacher"] = config.teacher.finetuned or config.teacher_run
        if role == "kd":
            models |= {f"teacher {number}": name for number, name in enumerate(config.teachers, start=1)}
        if role == "checkpoints":
            folders = sorted(config.teacher_run.glob("epochs/epoch-*"))
            models |= {f"teacher's epoch {number}": epoch for number, epoch in enumerate(folders, start=1)}
        if config.student.init != "finetuned_layers":
            models["model that the student starts as"] = student_source(config)
    digests = {}
    for name, model in models.items():
        key: tuple[str, ...] = ("model", str(model))
        if key not in known:
            known[key] = _digest_model(model)
        digests[name] = known[key]
    if task.files is not None or (config.data.path is not None and not task.is_generated):
        for split in ("train", *task.dev_splits):
            key = ("split", task.name, split, str(config.data.path))
            if key not in known:
                known[key] = _digest_split(task, split, config.data.path)
            digests[f"{split} split"] = known[key]
    return {name: digest for name, digest in digests.items() if digest is not None}


def _digest_split(task: Task, split: str, path: str | None) -> str | None:
    with contextlib.suppress(DataError, OSError):
        source = open_split(task, split, None if path is None else Path(path))
        if task.files is None or Path(source.place).exists():  # an own task's file is looked for when it is read
            return source.digest()
    return None


def _digest_model(name: str | Path) -> str | None:
    with contextlib.suppress(ModelError, OSError):
        folder = find_folder(str(name)) or Path(name)
        files = sorted(file for pattern in (*_WEIGHTS, *_TOKENIZER) for file in folder.glob(pattern))
        stats = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        return _digest_unchanged(stats) if files else None
    return None


@functools.lru_cache(maxsize=256)
def _digest_unchanged(stats: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files as they were at these sizes and times: a table's many runs share a teacher."""
    return digest_files(*(file for file, _, _ in stats))
