"""A data set of the hub as a user's own task reads it: one revision, from the cache where it is there whole."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from reptile_distil.data.tasks import HubDataset
from reptile_distil.errors import DataError, first_sentence
from reptile_distil.runtime.each_line_once import log_once
from reptile_distil.runtime.hub import hub_is_reachable, require_hub
from reptile_distil.runtime.snapshots import cached_commit, download_snapshot, whole_snapshot

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


def open_hub_dataset(hub: HubDataset, split: str) -> datasets.Dataset:
    """A split of a data set of the hub, from the cache where this revision is there whole; its code is never run."""
    named = f"data set {hub.name}" + (f", config {hub.config}" if hub.config else "")
    if Path(hub.name).exists():  # `datasets` would read that instead
        raise DataError(f"{named}: a file or folder {hub.name} lies here too: start elsewhere, or give task.files")
    dataset = _load(hub.name, hub.config, hub.revision)
    if split not in dataset:
        raise DataError(f"{named}: has no split {split!r}, only {', '.join(dataset)}: give task.splits")
    return dataset[split]


@functools.cache  # a process reads one revision, and asks for it once
def _load(name: str, config: str | None, revision: str | None) -> datasets.DatasetDict:
    import datasets

    named = f"data set {name}" + (f", config {config}" if config else "")
    commit = cached_commit(name, "dataset", revision)
    cached = _load_prepared(name, config, commit) if config or not hub_is_reachable() else None
    if cached is not None:
        return cached
    folder = whole_snapshot(name, "dataset", commit)
    if folder is None:
        remedy = "call the same command once with a network, or give files of your own: task.files"
        require_hub(f"{named}, revision {revision or 'main'},", remedy)
        commit = download_snapshot(name, "dataset", ["README.md", ".gitattributes"], DataError, revision).name
    log_once(logger, f"{named}: read from {folder or f'revision {commit} on the hub'}")
    try:
        with _uncounted():
            builder = datasets.load_dataset_builder(str(folder or name), config, revision=None if folder else commit)
        if folder is None and builder.hash != commit:  # `datasets` takes another revision where it cannot have this one
            raise DataError(f"{named}: revision {commit} cannot be read from the hub now; try again")
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except DataError:
        raise
    except Exception as error:
        why = first_sentence(error)
        if "scripts are no longer supported" in why:
            why = "it is made by code, which is never run; task.revision=refs/convert/parquet may have its files"
        elif "gated" in why:
            why = "the hub gives it only to those who have asked for it on its page, and log in with `hf auth login`"
        elif isinstance(error, ValueError) and "onfig" in why:
            why = f"give one of its configurations as task.config ({why})"
        raise DataError(f"{named}: cannot be loaded: {why}") from None
    assert isinstance(loaded, datasets.DatasetDict)
    return loaded


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    """Inside, `datasets` reports no loads to another host, which behind a firewall takes three seconds each."""
    import datasets

    counts = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def _load_prepared(name: str, config: str | None, commit: str) -> datasets.DatasetDict | None:
    """What an earlier load of this very commit left in the cache of `datasets`, or None."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, own_name = name.rpartition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / "___".join(filter(None, (owner, camelcase_to_snakecase(own_name))))
    found = sorted(root.glob(f"{config or '*'}/*/{commit}/dataset_info.json")) if commit else []
    if len(found) != 1:
        return None
    of_config, version = found[0].parts[-4:-2]
    try:
        options = {"repo_id": name, "dataset_name": camelcase_to_snakecase(own_name), "config_name": of_config}
        loaded = Cache(**options, version=version, hash=commit).as_dataset()
    except (OSError, ValueError):
        return None
    except Exception as error:
        reason = first_sentence(error)
        raise DataError(f"data set {name} in the cache {found[0].parent} is damaged: {reason}") from error
    log_once(logger, f"data set {name}, config {of_config}: read from {found[0].parent}")
    return loaded
