"""A table as commands, one for each cell: for a cluster's scheduler, or for several terminals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from reptile_distil.config.combinations import has_effect, left_aside
from reptile_distil.config.config import given_settings, listed, parse_overrides
from reptile_distil.config.yaml_files import parse_yaml
from reptile_distil.errors import ConfigError
from reptile_distil.tables.config import TEACHER, Cell, TableConfig, task_name


def commands(table: TableConfig, start: Sequence[str], path: Path, overrides: Sequence[str]) -> Iterator[list[str]]:
    """The words of one command per cell, which runs that cell; any order and any number at once will do.

    `start` are those that start this script, for example `python scripts/table.py`.
    The teachers come first. A student's command started before its teacher is there fine-tunes it, or waits for the
    command that is at it.
    """
    own = ("tasks", "methods", "seeds", "engine")
    kept = [item for item in listed(overrides) if item.partition("=")[0].partition(".")[0] not in own]
    tasks = {
        cell.task.name: task for cell in table.cells for task in table.keys.tasks if task_name(task) == cell.task.name
    }
    keeping = {(cell.task.name, cell.seed) for cell in table.cells if cell.config.teacher.keep_epochs}
    for cell in table.cells:
        task = tasks[cell.task.name]
        cell_of_one = [f"tasks=[{task if isinstance(task, str) else json.dumps(task)}]"]
        cell_of_one += [f"methods=[{_as_yaml(cell.row)}]", f"seeds=[{cell.seed}]"]
        # Whichever comes first fine-tunes the teacher, for all of them.
        is_tuned = cell.row == TEACHER or cell.config.teacher.finetuned is None
        cell_of_one += ["teacher.keep_epochs=true"] if is_tuned and (cell.task.name, cell.seed) in keeping else []
        cell_of_one += ["engine.name=local"] if table.keys.engine.name != "local" else []
        of_cell = [word for item in kept for word in _for_cell(item, cell)]
        yield [*start, "--config", str(path), *of_cell, *cell_of_one, "--only-runs"]


def _for_cell(override: str, cell: Cell) -> list[str]:
    """What the command that runs one cell has of an override of the whole table's."""
    given = given_settings([override])
    if override.partition("=")[0].partition(".")[0] == "variants":
        variant = parse_overrides([override])["variants"].get(cell.row)
        return [] if variant is None else [f"variants={json.dumps({cell.row: variant})}"]
    if cell.row == TEACHER:
        return [override]
    if not all(has_effect(key, {cell.config.method}) for key in given):
        return []
    left = [key for key in given if left_aside(key, cell.config) is not None]
    alone = [f"{key}={json.dumps(value)}" for key, value in given.items()] if left else [override]
    # What other cells have a use for counts among the settings of this one, too.
    return [
        f"per_task={json.dumps({cell.task.name: parse_overrides([item])})}" if item.partition("=")[0] in left else item
        for item in alone
    ]


def _as_yaml(row: str) -> str:
    """A row's name as it stands in a list, in quotes where it would be read as something else: 0.5, or null."""
    try:
        is_plain = parse_yaml(f"[{row}]", "a row's name") == [row]
    except ConfigError:
        is_plain = False
    return row if is_plain else json.dumps(row)
