"""YAML files on top of each other, and where each value came from."""

from __future__ import annotations

import io
import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from reptile_distil.errors import ConfigError, did_you_mean
from reptile_distil.home_folder import expand_home

MAX_BYTES = 2**17
"""Size at which a file is refused unread; a long configuration has 4 KiB."""
MAX_VALUES = 10_000
"""Values in one file, each alias counted as what it stands for: a few lines of aliases can stand for billions."""
MAX_DEPTH = 16
"""Levels of values within values."""
_TOO_DEEP = f"more than {MAX_DEPTH} levels of values within values"
MAX_LAYERS = 16
"""Files that extend one another."""

_PACKAGE = Path(__file__).parents[1]
PACKAGED = next((path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()), _PACKAGE)
"""Folder of the YAML files that come with the package: an installed one holds it, a checkout has it beside."""

_TAG = "tag:yaml.org,2002:"
_FLOAT = (
    _TAG + "float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$", re.ASCII),
    list("-+0123456789."),
)


class _Loader(yaml.SafeLoader):
    """YAML in which `5e-5` is a number, `no` and `2001-01-01` are words, and a key given twice is an error."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node. Raises `ConstructorError` before it reads one that lies too deep: to read on takes seconds."""
        if self.depth == MAX_DEPTH and parent is not None:
            raise _refusal(parent, _TOO_DEEP)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """YAML in which every text that this loader, or another one, would take for something else is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        """Values that are equal are spelled out each time."""
        return True


# PyYAML follows YAML 1.1: floats need a dot, and yes/no/on/off are booleans. YAML 1.2 reads both as people do.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in (_TAG + "bool", _TAG + "float", _TAG + "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(*_FLOAT)
_Dumper.add_implicit_resolver(*_FLOAT)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = set()
    for key_node, _ in node.value:
        if key_node.tag == _TAG + "merge":
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not a word", node.start_mark)
        if key in keys:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        keys.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(_TAG + "map", _construct_mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The values in `text`; raises `ConfigError`, which names `where` it stands, for anything but plain YAML."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(loader, node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")
        raise ConfigError(f"{where}: not readable as YAML: {reason}") from None


def dump_yaml(values: Mapping[str, Any], **options: Any) -> str:
    """The values as YAML that `parse_yaml` reads back as the same values."""
    # Without a width no text is broken across lines.
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf, **options)
    return text


def _measure(loader: _Loader, node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """How many values a node stands for and how deep they lie; refuses whatever is not a plain value.

    Raises `ConstructorError`. It is called before anything is constructed; `known` holds what was measured before.
    """
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise _refusal(node, "an alias stands within what it stands for")
        return measured
    known[id(node)] = None
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(loader, node)
        children: list[yaml.Node] = []
    else:
        expected = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != _TAG + expected:
            raise _refusal(node, f"the tag {node.tag!r} is not allowed")
        children = [part for pair in node.value for part in pair] if expected == "map" else node.value
    sizes = [_measure(loader, child, known) for child in children]
    size = 1 + sum(size for size, _ in sizes)
    depth = 1 + max((depth for _, depth in sizes), default=0)
    if size > MAX_VALUES:
        raise _refusal(node, f"more than {MAX_VALUES} values, aliases counted as what they stand for")
    if depth > MAX_DEPTH:
        raise _refusal(node, _TOO_DEEP)
    known[id(node)] = (size, depth)
    return size, depth


def _check_scalar(loader: _Loader, node: yaml.ScalarNode) -> None:
    # A tag can promise what the text is not (`!!int x`), or ask for an object.
    plain = loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
    if node.tag not in (_TAG + "str", plain):
        raise _refusal(node, f"the tag {node.tag!r} is not allowed for {node.value!r}")
    if node.tag == _TAG + "int" and len(node.value) > 20:
        raise _refusal(node, "the number has more than 20 digits")
    # No name of a file, column or label has them, and each would break a message or a file where it is used.
    odd = next((c for c in node.value if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    if odd is not None:
        raise _refusal(node, f"the character {odd!r} is not allowed in a text")


def _refusal(node: yaml.Node, reason: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, reason, node.start_mark)


def find_config(name: str | Path) -> Path:
    """The YAML file that is meant by a path, or by the name of one that comes with the package, such as `sst2`.

    A file at the path itself goes first. Raises `ConfigError` for a bare name that is neither.
    """
    path = Path(expand_home(str(name)))
    if _exists(path) or path.name != str(path):
        return path
    if packaged := _packaged(path.name):
        return packaged
    if path.suffix or not path.name.isprintable():
        return path
    known = sorted(file.stem for file in PACKAGED.glob("*.yaml"))
    hint = did_you_mean(path.name, known) or f"; those are {', '.join(known)}"
    raise ConfigError(f"{name}: neither a YAML file here nor the name of one that comes with the package{hint}")


def _packaged(name: str) -> Path | None:
    """The file of this name, with or without `.yaml`, that comes with the package; None where there is none."""
    path = PACKAGED / f"{name.removesuffix('.yaml')}.yaml"
    return path if path.parent == PACKAGED and _exists(path) else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False


def read_layers(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of `path` laid over those of the file it `extends`, and the file that each dotted key came from.

    `above` are the files that extend this one. Raises `ConfigError` for a missing or broken file, or a circle.
    """
    text = _read(path, extended_by=above[-1] if above else None)
    resolved = path.resolve()
    if resolved in above:
        raise ConfigError(f"{path}: extends itself through {' -> '.join(str(p) for p in above)}")
    if len(above) == MAX_LAYERS:
        raise ConfigError(f"{path}: more than {MAX_LAYERS} files extend one another")
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
        beside = path.parent / expand_home(base)
        values, origins = read_layers((None if _exists(beside) else _packaged(base)) or beside, (*above, resolved))
    drop_other_task(layer, values, origins)
    merge_layer(values, layer, origins, str(path))
    return values, origins


def drop_other_task(layer: Mapping[str, Any], values: dict[str, Any], origins: dict[str, str]) -> None:
    """Removes an own task from `values`, and its origins, where `layer` describes one under another name."""
    if _names_another_task(layer.get("task"), values.get("task")):
        del values["task"]
        for key in [key for key in origins if key.partition(".")[0] == "task"]:
            del origins[key]


def _names_another_task(task: object, extended: object) -> bool:
    """Whether a file describes a task anew: an own one under another name than that of the file it extends."""
    if not (isinstance(task, dict) and isinstance(extended, dict)):
        return False
    return "name" in task and task["name"] != extended.get("name")


def _read(path: Path, *, extended_by: Path | None) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ConfigError(f"{path}: cannot be read: it is no regular file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: has more than {MAX_BYTES} bytes, so it is no configuration")
        # Line ends as on every system.
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    except FileNotFoundError:
        why = "" if extended_by is None else f", but {extended_by} extends it"
        raise ConfigError(f"{path}: no such file{why}") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name with a NUL
        raise ConfigError(f"{path}: cannot be read: {error}") from None


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
