"""What is in the files that a run reads, so that a finished run is not taken for one on other files.

A run that is under way compares what came out of them, in its checkpoints; here are the files themselves, which can be
compared without loading anything.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role
from reptile_distil.data.sources import open_split
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DataError, ModelError, RunError
from reptile_distil.experiments.setup import student_source
from reptile_distil.models.loading import find_folder
from reptile_distil.runs.folder import Results, RunFolder
from reptile_distil.runtime.files import digest_files

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json")
_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")


def digest_inputs(config: Config, task: Task, role: Role) -> dict[str, str]:
    """SHA-256 of each local file or folder that a run reads, by what it is: `train split`, `teacher` and so on.

    What comes from the hub, or is not there, is left out.
    """
    models: dict[str, str | Path] = {}
    if role == "teacher":
        models["pretrained teacher"] = config.teacher.pretrained
    else:
        if config.needs_teacher(role):
            models["teacher"] = config.teacher.finetuned or config.teacher_run
        if config.student.init != "finetuned_layers":
            models["model that the student starts as"] = student_source(config)
    digests = {name: _digest_model(model) for name, model in models.items()}
    if task.files is not None or (config.data.path is not None and not task.is_generated):
        for split in ("train", *task.dev_splits):
            digests[f"{split} split"] = _digest_split(task, split, config.data.path)
    return {name: digest for name, digest in digests.items() if digest is not None}


def check_inputs(folder: RunFolder, results: Results, config: Config, task: Task, role: Role) -> None:
    """Raises `RunError` where the finished run was made with other files; those that are gone do not count."""
    before, now = results.get("inputs", {}), digest_inputs(config, task, role)
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            raise RunError(
                f"{folder.path}: the {name} has changed since this run was made; put the old one back, {folder.remedy}"
            )


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
