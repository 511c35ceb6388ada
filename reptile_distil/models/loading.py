"""A model's files: read from a folder, the local cache or the hub, checked, and never run as code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from reptile_distil.errors import ModelError, first_sentence
from reptile_distil.models.toy import is_toy_model, toy_config
from reptile_distil.runtime.files import read_json
from reptile_distil.runtime.snapshots import find_model_snapshot


def load_config_file(name: str) -> Any:
    """The configuration of the model `name` (folder, hub name or toy), fit to be used here."""
    config = toy_config(name) if is_toy_model(name) else load_files(transformers.AutoConfig, name)
    # A name with a slash is that of code on the hub, which transformers would download and run.
    if "/" in str(config._attn_implementation):
        raise ModelError(
            f"{name}: config.json asks for the attention code {config._attn_implementation!r} from the hub; "
            "remove that line"
        )
    config.return_dict = True
    config.chunk_size_feed_forward = 0  # saves memory, and fails for lengths that are no multiple of it
    return config


# What is larger is a slip or a trap: transformers would fill the memory before it found out.
_LARGEST = {
    "num_labels": 10_000,
    "num_hidden_layers": 1000,
    "num_attention_heads": 1000,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "vocab_size": 2**22,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 1000,
}


def _check_sizes(folder: Path) -> None:
    """Raises `ModelError` for absurd sizes in config.json; whatever else is wrong with it is left to transformers."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except (OSError, ValueError):
        return
    for key, limit in _LARGEST.items():
        value = config.get(key) if isinstance(config, dict) else None
        if isinstance(value, int | float) and value > limit:
            raise ModelError(f"{path}: {key} = {value}: expected {limit} or less")


def find_folder(name: str) -> Path | None:
    """The local folder (or file) that a model's name stands for, None where there is none; a finished run's is model/.

    Raises `ModelError` for a run that has a model already, but is not finished.
    """
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # ~ and no such user
        path = path.expanduser()
    try:
        if not path.exists():
            return None
        model = path / "model"
        is_run = (path / "config.yaml").is_file() and (model / "config.json").is_file()
        if (path / "config.json").exists() or not is_run:
            return path
        if (path / "results.json").exists():
            return model
    except OSError:  # a name too long for a path
        return None
    raise ModelError(f"{name}: this run is not finished; its best model so far is {model}")


def is_model_of_a_run(name: str) -> bool:
    """Whether the model `name` lies in the folder of a finished run, or of one under way."""
    folder = find_folder(name)
    return folder is not None and any(
        place.name == "model" and (place.parent / "config.yaml").is_file() for place in real_places(folder)
    )


def real_places(path: Path) -> tuple[Path, Path]:
    """Where a path such as `.`, `..` or a link lies, as it is written and with links followed."""
    return Path(os.path.abspath(path)), Path(os.path.realpath(path))  # noqa: PTH100 (pathlib has none that does not follow links)


_NAMED = 4
"""So many folders are named in a sentence."""


def _look_below(name: str, folder: Path) -> None:
    """Raises `ModelError` for a folder that holds no model where the folders in it do, and names those."""
    if not folder.is_dir() or (folder / "config.json").exists():
        return
    found = [path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/config.json")]
    newest = sorted(found, key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    if not newest:
        return
    listed = ", ".join(f"{path.relative_to(folder)}/" for path in newest[:_NAMED])
    more = f" and {len(newest) - _NAMED} more" if len(newest) > _NAMED else ""
    raise ModelError(
        f"{name}: has no config.json, but {listed}{more} in it ha{'ve' if len(newest) > 1 else 's'} one: "
        f"give {'one of them, such as ' if len(newest) > 1 else ''}{newest[0]}"
    )


def load_files(loader: Any, name: str, **options: Any) -> Any:
    """`loader.from_pretrained` of a folder, or of the hub's model `name` once it is whole in the local cache.

    Code that comes with a model is never run: not said, transformers would ask, and take a `y` on stdin for consent.
    """
    folder = find_folder(name)
    place = "this folder"
    if folder is None:
        if name.startswith((".", "/", "~")):
            raise ModelError(f"{name}: no such folder")
        folder = find_model_snapshot(name)
        place = str(folder)
    _look_below(name, folder)
    _check_sizes(folder)
    with quiet_transformers():
        # Damaged files fail in many ways, each with an exception of its own.
        try:
            return loader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False, **options)
        except Exception as error:
            raise ModelError(
                f"{name}: no model or tokenizer can be loaded from {place}: {first_sentence(error)}"
            ) from None


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and load reports inside; what matters in a report is checked, and raised."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
