"""A configuration in words: as commented YAML, and what is wrong with values that are none."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from reptile_distil.config.own_task import OwnTaskConfig
from reptile_distil.config.yaml_files import dump_yaml
from reptile_distil.errors import did_you_mean
from reptile_distil.plugin_names import PATTERN

COMMAND_LINE = "command line"
"""Origin of what a `key=value` of the command line gives."""

_OF_TABLES = ("tasks", "methods", "seeds", "variants", "per_task", "engine", "search")


def describe(config: BaseModel, without: Collection[str] = (), missing: Collection[str] = ()) -> str:
    """The configuration as YAML with each field's description as a comment above it, `without` some top-level keys.

    Of those that are `missing` a comment says so, whatever their value.
    """
    return "\n".join(_described_lines(config, without, missing)) + "\n"


def _described_lines(
    section: BaseModel, without: Collection[str] = (), missing: Collection[str] = (), indent: int = 0
) -> Iterator[str]:
    pad = " " * indent
    for name, field in type(section).model_fields.items():
        if name in without:
            continue
        value = getattr(section, name)
        if field.description:
            yield f"{pad}# {' '.join(field.description.split())}"
        if name in missing:
            yield f"# {name}: is missing; give it here, or as {name}=... on the command line"
        elif isinstance(value, BaseModel):
            yield f"{pad}{name}:"
            yield from _described_lines(value, indent=indent + 2)
        else:
            plain = section.model_dump(mode="json", include={name})
            # One line per key: a mapping in flow style, without its braces.
            yield pad + dump_yaml(plain, default_flow_style=True).strip()[1:-1]


def explain(
    faults: Sequence[ErrorDetails],
    values: Mapping[str, Any],
    origins: Mapping[str, str],
    path: str,
    *,
    root: type[BaseModel],
    also_known: Sequence[str] = (),
) -> str:
    """One sentence for the first of the faults in values for a `root`: file, dotted key, value, and what is allowed.

    `origins` and `path` say where values come from; `also_known` are keys that may stand beside those of the root.
    """
    fault = faults[0]
    location = _key_parts(fault, values)
    key = ".".join(location)
    known = key
    while known not in origins and "." in known:
        known = known.rpartition(".")[0]
    where = origins.get(known, path)
    unknown = [".".join(map(str, other["loc"])) for other in faults if other["type"] == "extra_forbidden"]
    if not also_known and (of_tables := [name for name in unknown if name in _OF_TABLES]):
        return f"{origins.get(of_tables[0], path)}: {of_tables[0]} is a table's: scripts/table.py runs such a file"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}{_hint(location, root, also_known)}"
    if fault["type"] == "missing":
        return f"{path}: the key {key!r} is missing"
    if fault["type"] == "value_error" and not key:
        where = _origin_of_named(fault["msg"], origins, path)
    if fault["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{fault['msg'].removeprefix('Value error, ')}"
    # Where a value may be of several types, each type has a fault of its own under the same key.
    reasons = dict.fromkeys(
        _reason(other) for other in faults if _key_parts(other, values)[: len(location)] == location
    )
    return f"{where}: {key} = {_thawed(fault['input'])!r}: {', or '.join(reasons)}"


def _origin_of_named(message: str, origins: Mapping[str, str], path: str) -> str:
    """Where the keys come from that a message names: the command line where it gave one of them, else the file.

    Words of everyday language, as `method`, are not taken for keys.
    """
    named = [word for word in re.findall(r"[\w.]*\w", message) if "." in word or "_" in word or word == "teachers"]
    return COMMAND_LINE if COMMAND_LINE in {origins.get(key) for key in named} else path


def _key_parts(fault: Any, values: Any) -> list[str]:
    """The parts of the dotted key; the names of types that pydantic puts between or behind them are left out."""
    parts = []
    for part in fault["loc"]:
        if (isinstance(values, dict) and part in values) or (isinstance(values, list) and isinstance(part, int)):
            values = values[part]
        else:
            continue
        parts.append(str(part))
    return [*parts, str(fault["loc"][-1])] if fault["type"] == "missing" else parts


def _reason(fault: Any) -> str:
    if fault["type"] == "model_type":
        return "expected a section of `key: value` lines"
    if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
        return f"expected a text: in quotes, as '{fault['input']}'"
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == PATTERN:
        return "a class of your own, package.module:Name"
    message = str(fault["msg"]).replace("Input should be", "expected").replace("a valid tuple", "a list")
    return message[0].lower() + message[1:]


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


def _hint(location: Sequence[str], root: type[BaseModel], also_known: Sequence[str]) -> str:
    section: Any = root
    for part in location[:-1]:
        fields = getattr(section, "model_fields", {})
        annotation = fields[part].annotation if part in fields else section  # a name that the user has chosen
        section = OwnTaskConfig if part == "task" else _section_in(annotation)
    if not hasattr(section, "model_fields"):
        return ""
    if "." in location[-1]:
        first, _, rest = location[-1].partition(".")
        return f"; in a file the keys of a section stand below it: {first}: {{{rest}: ...}}"
    names = [*section.model_fields, *(also_known if section is root else ())]
    prefix = "".join(f"{part}." for part in location[:-1])
    if hint := did_you_mean(location[-1], names, prefix):
        return hint
    below = [prefix + key for key in _keys_below(section) if key.endswith(f".{location[-1]}")]
    return f"; did you mean {' or '.join(map(repr, below))}?" if below else f"; known here: {', '.join(names)}"


def _section_in(annotation: Any) -> Any:
    """The section in `Section | None` or `dict[str, Section]`."""
    kinds = [kind for kind in get_args(annotation) if kind not in (str, type(None))]
    return _section_in(kinds[0]) if len(kinds) == 1 else annotation


def _keys_below(section: type[BaseModel]) -> Iterator[str]:
    """Dotted keys of a section, and of the sections in it."""
    for name, field in section.model_fields.items():
        yield name
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (f"{name}.{key}" for key in _keys_below(kind))
