"""Checkpoints on disk: written whole or not at all, and checked byte for byte before anything is read from one.

checkpoints/step-00000120/             after step 120; step-00000120-evaluated after the evaluation that followed it
    tensors.safetensors                weights, optimizer states, random state
    state.json                         everything else
    metrics.jsonl                      the run's, as far as it had been written; earlier versions kept none
    best/                              the best model so far
    manifest.json                      size and SHA-256 of each of the files above

A checkpoint is written to a folder of another name, flushed to the disk and renamed. It shares no file with another one
or with the run, so that damage to one file leaves a checkpoint to go on from. Nothing in one is ever unpickled, and no
file is read but by these names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from reptile_distil.errors import CheckpointError, RunError
from reptile_distil.runtime.files import (
    copy_files,
    describe_fault,
    files_in,
    finished_name,
    hash_file,
    read_bytes,
    read_json,
    refuse_links,
    remove,
    remove_folder,
    replace_folder,
    sync_folder,
)

TENSORS, STATE, METRICS = "tensors.safetensors", "state.json", "metrics.jsonl"
MANIFEST, BEST = "manifest.json", "best"
_NAME = re.compile(r"step-\d{8}(-evaluated)?")
_FILE = re.compile(
    rf"{re.escape(TENSORS)}|{re.escape(STATE)}|{re.escape(METRICS)}|{BEST}(/[A-Za-z0-9_][A-Za-z0-9_.-]*)+"
)


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    size: NonNegativeInt
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    format: Literal[1]
    files: dict[str, _File]


class Checkpoint:
    """One checkpoint whose files are as its manifest says. Raises `CheckpointError` where they are not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._check_files()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CheckpointError(f"{error.filename}: {error.strerror}") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read: {error.strerror}") from None

    def read_state(self) -> Any:
        """The values that were saved, as JSON gives them."""
        return _read_json(self.path / STATE)

    def read_tensors(self) -> dict[str, Tensor]:
        """The tensors that were saved, on the CPU, by name."""
        try:
            # Copies in memory of their own: the file's are not aligned as PyTorch's are.
            return {name: tensor.clone() for name, tensor in _load_file(self.path / TENSORS).items()}
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.path / TENSORS}: holds no tensors: {error}") from None

    def read_metrics(self) -> bytes | None:
        """The run's metrics.jsonl when the checkpoint was written; None where it was not kept. Raises `RunError`."""
        file = self.path / METRICS
        try:
            return read_bytes(file) if file.exists() else None
        except OSError as error:
            raise RunError(f"{file}: cannot be read: {error.strerror}") from None

    @property
    def best(self) -> Path:
        """Folder of the best model so far; it may not exist."""
        return self.path / BEST

    def _check_files(self) -> None:
        refuse_links(self.path)
        try:
            manifest = _Manifest.model_validate(_read_json(self.path / MANIFEST))
        except ValidationError as error:
            raise CheckpointError(f"{self.path / MANIFEST}: is no manifest ({error.errors()[0]['msg']})") from None
        for name in {*manifest.files, TENSORS, STATE}:
            if not _FILE.fullmatch(name) or name not in manifest.files:
                raise CheckpointError(f"{self.path / MANIFEST}: names {name!r} wrongly or not at all")
        here = {file.relative_to(self.path).as_posix() for file in files_in(self.path)}
        for name in sorted(here - {MANIFEST} - manifest.files.keys()):
            raise CheckpointError(f"{self.path}: {name} is not in its manifest")
        for name, expected in manifest.files.items():
            file = self.path / name
            if file.stat().st_size != expected.size or hash_file(file) != expected.sha256:
                raise CheckpointError(f"{file}: is not what was written (size or checksum)")


class Checkpoints:
    """The checkpoints of one run, in the folder `path`; the newest `keep` stay."""

    def __init__(self, path: Path, *, keep: int = 2) -> None:
        self.path = path
        self.keep = keep

    def names(self) -> list[str]:
        """Names of all checkpoints, valid or not, the newest first. Raises `RunError` where the folder is a link."""
        if self.path.is_symlink():
            raise RunError(f"{self.path}: is a symbolic link, which a run does not follow; remove it")
        if not self.path.is_dir():
            return []
        return sorted((entry.name for entry in self.path.iterdir() if _NAME.fullmatch(entry.name)), reverse=True)

    def open(self, name: str) -> Checkpoint:
        """The checkpoint of that name, checked. Raises `CheckpointError`."""
        return Checkpoint(self.path / name)

    def save(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        metrics: Path | None = None,
        best: Path | None = None,
    ) -> None:
        """Writes a checkpoint, with copies of the file `metrics` and of the folder `best`; removes those not kept.

        Raises `RunError` where it cannot be written; those before it are then as they were.
        """

        def write(new: Path) -> None:
            new.mkdir()
            safetensors.torch.save_file({key: _plain(tensor) for key, tensor in tensors.items()}, new / TENSORS)
            (new / STATE).write_text(json.dumps(state), encoding="utf-8")
            if metrics is not None:
                (new / METRICS).write_bytes(read_bytes(metrics))
            if best is not None:
                copy_files(best, new / BEST)
            _write_manifest(new)

        try:
            if not self.path.exists():
                self.path.mkdir()  # not its parents: a run folder that was moved away is not made again
                sync_folder(self.path.parent)
            replace_folder(self.path / name, write)
            for old in self.names()[self.keep :]:
                remove_folder(self.path / old)
        except (OSError, SafetensorError) as error:
            before = f"{self.names()[0]} is intact" if self.names() else "there is none before it"
            raise RunError(
                f"{self.path / name}: the checkpoint cannot be written: {describe_fault(error)}; {before}: "
                "mend that, and the same command goes on"
            ) from None

    def forget_after(self, name: str) -> None:
        """Removes the checkpoints newer than this one, and what unfinished writes have left. Raises `RunError`."""
        try:
            for newer in self.names():
                if newer > name:
                    remove_folder(self.path / newer)
            for entry in list(self.path.iterdir()):
                if finished_name(entry.name) is not None:
                    remove(entry)
        except OSError as error:
            raise RunError(f"{error.filename}: cannot be removed: {error.strerror}") from None

    def remove_all(self) -> None:
        """Removes the folder. Raises `RunError`."""
        self.names()  # raises where it is a link
        try:
            remove_folder(self.path)
        except OSError as error:
            raise RunError(f"{error.filename}: cannot be removed: {error.strerror}") from None


def _write_manifest(folder: Path) -> None:
    files = {
        file.relative_to(folder).as_posix(): _File(size=file.stat().st_size, sha256=hash_file(file))
        for file in files_in(folder)
    }
    (folder / MANIFEST).write_text(_Manifest(format=1, files=files).model_dump_json(), encoding="utf-8")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _load_file(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(path)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: is not readable as JSON: {error}") from None
