"""The best trial as a YAML that extends what the table's file extends, and runs with scripts/distil.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reptile_distil.config.config import Config, load_config
from reptile_distil.config.defining_settings import flatten
from reptile_distil.config.yaml_files import PACKAGED, dump_yaml, find_config, parse_yaml
from reptile_distil.errors import ConfigError
from reptile_distil.home_folder import expand_home
from reptile_distil.runtime.files import write_text
from reptile_distil.sweeps.space import Values, with_values
from reptile_distil.tables.config import Cell


def write_winner(cell: Cell, values: Values, table: Path, folder: Path) -> Path:
    """Writes `folder`/best.yaml, for runs of its own in the folders `best-seed*`, and returns its path.

    What the file that the table extends says already is left out; where there is none, everything stands in it.
    """
    file = folder / "best.yaml"
    config = with_values(cell.config, {**values, "output_dir": str(folder / "best-seed{seed}"), "compare_with": ()})
    drawn = ", ".join(f"{key}={value}" for key, value in values.items())
    comment = f"# {cell.name}: the best trial of a search, by training rows held out of training: {drawn}\n"
    base = _base_of(find_config(table))
    if base is not None:
        write_text(file, comment + _on_top_of(base, config))
    if base is None or not _says(file, config):
        write_text(file, comment + config.to_yaml())
    return file


def _base_of(table: Path) -> str | None:
    """What a table's file extends, as a name that is understood from any folder."""
    base = parse_yaml(table.read_text(encoding="utf-8"), str(table)).get("extends")
    if base is None:
        return None
    beside = table.parent / expand_home(base)
    is_packaged = not beside.exists() or beside.resolve().parent == PACKAGED.resolve()
    return beside.name if is_packaged else str(beside.resolve())


def _on_top_of(base: str, config: Config) -> str:
    """The settings in which the configuration differs from the file `base`, as YAML."""
    try:
        plain = load_config(base, [f"task={config.task_name}"] if isinstance(config.task, str) else ())
    except ConfigError:  # no configuration of a run by itself
        return config.to_yaml()
    before, after = (flatten(one.model_dump(mode="json")) for one in (plain, config))
    tree: dict[str, Any] = {"extends": base}
    if isinstance(config.task, str):
        tree["task"] = config.task
    for key, value in after.items():
        if key not in before or before[key] != value:
            *sections, name = key.split(".")
            section = tree
            for part in sections:
                section = section.setdefault(part, {})
            section[name] = value
    return dump_yaml(tree)


def _says(file: Path, config: Config) -> bool:
    """Whether the file is read as this configuration."""
    try:
        return load_config(file) == config
    except ConfigError:
        return False
