"""The files that the trials of a search are made from, by their digests: scores from other files are not compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reptile_distil.builders.plugins import check_plugins, describe_plugin, plugins_of
from reptile_distil.config.config import Config
from reptile_distil.config.table_sections import SearchConfig
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError
from reptile_distil.experiments.finished_run import KnownDigests, digest_inputs
from reptile_distil.sweeps.space import with_values
from reptile_distil.tables.config import Cell


def digest_all_inputs(cells: Sequence[Cell], task: Task, search: SearchConfig) -> dict[str, str]:
    """SHA-256 of each local file or folder that trials read, and of the user's own code, by what it is.

    The task's dev splits count only where `task` has them. Raises `ConfigError` for code that cannot be imported.
    """
    known: KnownDigests = {}
    found: dict[str, str] = {}
    for where, config in _variants(cells, search):
        code = {}
        if plugins := plugins_of(config, config.method):
            check_plugins(config, num_processes=1)
            code = {f"code of {name}": describe_plugin(name)["sha256"] or "" for name in plugins.values()}
        for name, digest in {**digest_inputs(config, task, config.method, known), **code}.items():
            if found.setdefault(name, digest) != digest:  # not the first one's: a teacher or model of its own
                found[f"{name} ({where})"] = digest
    return found


def _variants(cells: Sequence[Cell], search: SearchConfig) -> Iterator[tuple[str, Config]]:
    """The configuration of each seed, and, since files may be drawn, with each single choice."""
    for cell in cells:
        yield f"seed {cell.seed}", cell.config
        for key, value in [(key, value) for key, drawn in search.keys.items() for value in drawn.choices]:
            try:
                config = with_values(cell.config, {key: value})
            except ConfigError:  # it is drawn together with others, or fails its trial
                continue
            yield f"seed {cell.seed}, {key} = {value}", config
