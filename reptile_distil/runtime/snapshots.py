"""Repositories of the hub in the local cache: found there whole, or downloaded whole.

The cache holds what some program once asked for: a model without its tokenizer, half of a download that broke off. So
a folder of it is taken only where nothing is missing that is read here, and all that is read comes from one revision.
Code that comes with a model is never downloaded.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from reptile_distil.errors import ModelError, ReptileDistilError, first_sentence
from reptile_distil.runtime.hub import hub_is_reachable

logger = logging.getLogger(__name__)

_SETTINGS = ("*.json", "*.txt", "*.model", "bpe.codes")
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "bpe.codes")
_SAFE_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")


@functools.cache  # a process reads one revision, and asks for it once
def find_model_snapshot(name: str) -> Path:
    """The folder with config, weights and tokenizer of the hub's model `name`, from the cache if whole, or downloaded.

    Where the hub cannot be asked, any revision in the cache will do that looks whole. Raises `ModelError` where there
    is none.
    """
    cached = cached_snapshots(name, "model")
    if cached and _is_whole_model(name, cached[0]):
        return cached[0]
    usable = next((folder for folder in cached if not _lacks(folder)), None)
    if hub_is_reachable():
        try:
            return _download_model(name)
        except ModelError:
            if usable is None:
                raise
    elif usable is None:
        part = f" ({cached[0]} lacks {_lacks(cached[0])})" if cached else ""
        raise ModelError(
            f"{name}: neither a folder here nor usable in the local cache{part}, and the hub cannot be reached; "
            "give the folder of a downloaded model instead"
        )
    if usable != cached[0]:
        logger.info("%s: the newest revision in the cache is not whole, so this one is used: %s", name, usable)
    return usable


def cached_snapshots(name: str, kind: str) -> list[Path]:
    """The folders of the revisions in the cache, that of `main` first, then the newest; `kind` is model or dataset."""
    repository, main = _repository(name, kind), cached_commit(name, kind)
    try:
        folders = [folder for folder in (repository / "snapshots").iterdir() if folder.is_dir()]
        return sorted(folders, key=lambda folder: (folder.name == main, folder.stat().st_mtime), reverse=True)
    except (OSError, ValueError):
        return []


def cached_commit(name: str, kind: str, revision: str | None = None) -> str:
    """The commit that a branch or tag, by default main, was when it was last asked for; "" where it never was.

    A commit is itself.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return (_repository(name, kind) / "refs" / (revision or "main")).read_text().strip()
    except (OSError, ValueError):
        return ""


def whole_snapshot(name: str, kind: str, commit: str) -> Path | None:
    """The folder of a commit in the cache where all files of the repository are in it, or None."""
    folder = _repository(name, kind) / "snapshots" / commit
    try:
        listed = huggingface_hub.get_cached_repo_tree(name, repo_type=kind, revision=commit)
    except (CachedRepoTreeNotFoundError, ValueError):
        return None
    return folder if commit and all((folder / file.path).is_file() for file in listed) else None


def _repository(name: str, kind: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}"


def download_snapshot(
    name: str, kind: str, patterns: Sequence[str], error: type[ReptileDistilError], revision: str | None = None
) -> Path:
    """The folder of a revision of the repository, by default the newest, once it holds the files of these patterns.

    What is there already is not downloaded again. On a terminal, bars show the progress. Raises `error` with one
    sentence.
    """
    try:
        options: dict[str, Any] = {"repo_type": kind, "revision": revision, "allow_patterns": list(patterns)}
        return Path(huggingface_hub.snapshot_download(name, **options))
    except Exception as fault:  # each library below has its own
        raise error(f"{name}: {_explain(fault, kind)}") from None


def _download_model(name: str) -> Path:
    """The folder of the newest revision. Raises `ModelError` for one without weights or tokenizer."""
    try:
        files = _read_files(huggingface_hub.HfApi().list_repo_files(name))
    except Exception as error:
        raise ModelError(f"{name}: {_explain(error, 'model')}") from None
    logger.info("%s: downloading it from the hub", name)
    folder = download_snapshot(name, "model", files, ModelError)
    if lacking := _lacks(folder):
        raise ModelError(f"{name}: the hub gives no {lacking} for it: choose another model")
    return folder


def _is_whole_model(name: str, folder: Path) -> bool:
    """Whether a revision is there with all its files; also False where it is not known how many it has."""
    try:
        listed = huggingface_hub.get_cached_repo_tree(name, revision=folder.name)
    except (CachedRepoTreeNotFoundError, ValueError):
        return False
    files = _read_files(file.path for file in listed)
    return all((folder / file).is_file() for file in files) and not _lacks(folder)


def _read_files(repository: Iterable[str]) -> list[str]:
    """Of a repository's files those that are read here: no code, no subfolders, one format of weights."""
    files = [file for file in repository if "/" not in file]
    weights = _matching(files, _SAFE_WEIGHTS) or _matching(files, _PICKLED_WEIGHTS)
    return _matching(files, _SETTINGS) + weights


def _matching(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [file for file in files if any(fnmatchcase(file, pattern) for pattern in patterns)]


def _lacks(folder: Path) -> str:
    """What a model's folder lacks, as far as its own files tell; "" for nothing."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any(_has_weights(folder, file) for file in ("model.safetensors", "pytorch_model.bin")):
        return "whole model.safetensors or pytorch_model.bin"
    if not any(file.is_file() for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        return "tokenizer files"
    return ""


def _has_weights(folder: Path, file: str) -> bool:
    """Whether the weights are there, in one file, or in all those that an index names."""
    if (folder / file).is_file():
        return True
    try:
        index = json.loads((folder / f"{file}.index.json").read_text(encoding="utf-8"))
        return all((folder / part).is_file() for part in set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _explain(error: Exception, kind: str) -> str:
    if isinstance(error, GatedRepoError):
        return (
            f"the hub gives this {kind} only to those who have asked for it: ask on its page, then log in with "
            "`hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no {kind} of this name that is open to all: check the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has this {kind}, but not in this revision: check the name of the branch or tag, or the commit"
    return f"cannot be downloaded from the hub: {first_sentence(error)}; the same command goes on with what is missing"
