"""YAML files on top of each other, and where each value came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from reptile_distil.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which `5e-5` is a number, `no` is a word, and a key given twice is an error."""


# PyYAML follows YAML 1.1: floats need a dot, and yes/no/on/off are booleans. YAML 1.2 reads both as people do.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    list("-+0123456789."),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    for key in keys:
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not a word", node.start_mark)
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The values in `text`; raises `ConfigError`, which names `where` it stands, for anything but plain YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: not readable as YAML: {reason}") from None


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of `path` laid over those of the file it `extends`, and the file that each dotted key came from.

    `above` are the files that extend this one. Raises `ConfigError` for a missing or broken file, or a circle.
    """
    if path.resolve() in above:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(str(p) for p in above)}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    layer = parse_yaml(text, str(path))
    if layer is None:
        layer = {}
    if not isinstance(layer, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(layer).__name__}")
    base = layer.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: extends = {base!r}: expected the name of one YAML file")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if base is not None:
        values, origins = read_layers(path.parent / base, (*above, path.resolve()))
    merge_layer(values, layer, origins, str(path))
    return values, origins


def merge_layer(
    values: dict[str, Any], layer: Mapping[str, Any], origins: dict[str, str], origin: str, prefix: str = ""
) -> None:
    """Lays `layer` over `values` in place: mappings key by key, everything else as a whole; notes the origins."""
    for key, value in layer.items():
        origins[prefix + key] = origin
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merge_layer(values[key], value, origins, origin, f"{prefix}{key}.")
        elif isinstance(value, dict):
            values[key] = {}
            merge_layer(values[key], value, origins, origin, f"{prefix}{key}.")
        else:
            values[key] = value
