"""What a search may draw: the values of some keys, checked against the configuration before anything is trained."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from reptile_distil.config.config import Config
from reptile_distil.config.table_sections import RangeConfig, SearchConfig
from reptile_distil.errors import ConfigError, did_you_mean, first_fault
from reptile_distil.tables.config import TEACHER, Cell, TableConfig

Values = Mapping[str, Any]
"""What a trial has drawn, by dotted key."""

CHOOSE_HELD_OUT_ROWS = ("data.path", "data.max_train_rows", "data.validation_fraction")
"""Keys that decide which rows are held out: with others of them, scores would be of other rows."""


def with_values(config: Config, values: Values) -> Config:
    """The configuration with other values of some dotted keys. Raises `ConfigError` for what is not allowed."""
    tree = config.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        section = tree
        for part in sections:
            section = section[part]
        section[name] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"search: {dict(values)}: {first_fault(error)}") from None


def check_search(table: TableConfig, search: SearchConfig) -> None:
    """Raises `ConfigError` where a search could not be made, or one of its keys would have no effect on a row."""
    if table.keys.engine.name != "local":
        raise ConfigError(
            f"search cannot be made by engine {table.keys.engine.name}: give --engine local, and start the same "
            "command several times, as workers on one runs_dir"
        )
    for cell in table.cells:
        if cell.config.data.validation_fraction is None:
            raise ConfigError(
                "search chooses by training rows that are held out, and never by the dev split: give "
                "data.validation_fraction, for example 0.1"
            )
    if TEACHER in table.keys.methods:
        raise ConfigError("search is for students, which share one teacher: leave teacher out of methods")
    for key, drawn in search.keys.items():
        kind = _kind(key)
        if key in CHOOSE_HELD_OUT_ROWS:
            raise ConfigError(
                f"search.keys: {key} decides which rows are held out, so that trials would be scored on different "
                "rows: leave it out, and give it one value"
            )
        _check_numbers(key, drawn, kind)
        for row in table.keys.methods:
            _check_effect(next(cell for cell in table.cells if cell.row == row), key, drawn)


def is_whole(key: str) -> bool:
    """Whether a key of the configuration takes whole numbers."""
    return _kind(key) is int


def ends(drawn: RangeConfig) -> Sequence[Any]:
    """The two ends of a range, or all choices."""
    return drawn.choices or (drawn.low, drawn.high)


def _check_numbers(key: str, drawn: RangeConfig, kind: Any) -> None:
    if drawn.choices:
        return
    if kind not in (int, float):
        raise ConfigError(f"search.keys: {key} takes no numbers: give choices in the place of low and high")
    if kind is int and not all(isinstance(end, int) for end in ends(drawn)):
        raise ConfigError(f"search.keys: {key} takes whole numbers, but its range is {drawn.low} to {drawn.high}")


def _check_effect(cell: Cell, key: str, drawn: RangeConfig) -> None:
    """Raises `ConfigError` where the ends of a range are not allowed, change nothing, or change the shared teacher."""
    configs = [with_values(cell.config, {key: value}) for value in ends(drawn)]
    first, *others = configs
    for other in others:
        if cell.needs_teacher and first.defining_settings("teacher") != other.defining_settings("teacher"):
            raise ConfigError(f"search.keys: {key} asks for a teacher of its own, but all trials share one")
        if first.defining_settings(cell.role) == other.defining_settings(cell.role):
            raise ConfigError(f"search.keys: {key} has no effect on {cell.row}: leave it, or that row, out")


def _kind(key: str) -> Any:
    """The type of a key's values without None. Raises `ConfigError` for a key that cannot be searched."""
    model: type[BaseModel] = Config
    *sections, name = key.split(".")
    for depth, part in enumerate((*sections, name)):
        field = model.model_fields.get(part)
        if field is None:
            prefix = "".join(f"{section}." for section in sections[:depth])
            raise ConfigError(f"search.keys: unknown key {key!r}{did_you_mean(part, model.model_fields, prefix)}")
        kind = _without_none(field.annotation)
        is_section = isinstance(kind, type) and issubclass(kind, BaseModel)
        if is_section != (depth < len(sections)):
            raise ConfigError(f"search.keys: {key}: give the key of one value, with its section: train.lr")
        if is_section:
            model = kind
    if not sections:
        raise ConfigError(f"search.keys: {key} cannot be searched: only keys of a section can, such as train.lr")
    return kind


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        others = [kind for kind in get_args(annotation) if kind is not type(None)]
        return others[0] if len(others) == 1 else annotation
    return annotation
