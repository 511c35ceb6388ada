"""Methods and losses of the user's own, named as `package.module:Name` in a configuration.

Their code comes from where Python finds installed packages and from the folders in PYTHONPATH. It is never taken from a
folder that a configuration names for models, data or runs, nor from the folder that a command happens to be started in.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from reptile_distil.config.config import Config
from reptile_distil.config.own_task import OwnTaskConfig
from reptile_distil.config.sections import Role
from reptile_distil.data.cache import default_folder
from reptile_distil.errors import ConfigError, first_sentence
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.plugin_names import is_plugin
from reptile_distil.runtime.files import hash_file

METHOD_ARGUMENTS = ("loss", "student_optimizer", "max_grad_norm", "micro_batch_size", "processes")
"""Keyword arguments that every method gets, beside its own options; teacher and student come before them."""

LOSS_ARGUMENTS = ("alpha", "temperature", "regression", "soft", "class_weights", "hidden_terms")
"""Keyword arguments that every loss gets, beside its own options: those of `DistillationLoss`."""


def check_plugins(config: Config, num_processes: int) -> None:
    """Imports what the configuration names of the user's own. Raises `ConfigError` where it cannot be used."""
    load_loss(config)
    if is_plugin(config.method):
        method = load_method(config, config.method)
        if num_processes > 1 and not getattr(method, "takes_several_processes", False):
            raise ConfigError(
                f"method {config.method} takes one process, but {num_processes} were started: start it with python, or "
                "sum its gradients with `processes` and set takes_several_processes = True on the class"
            )


def load_method(config: Config, name: str) -> type[Any]:
    """The class of a method of the user's own. Raises `ConfigError` where it is none, or does not take its options."""
    method = _load("method", name, config)
    if not callable(getattr(method, "step", None)):
        raise ConfigError(f"method = {name!r}: is no method: the class has no step(batch)")
    given = dict.fromkeys(METHOD_ARGUMENTS)
    _check_call("method", name, method, (None, None), given, config.method_options, "method_options")
    return method


def load_loss(config: Config) -> type[DistillationLoss]:
    """The class of the loss: the user's own, or `DistillationLoss`. Raises `ConfigError` as `load_method` does."""
    name = config.loss.name
    if name is None:
        return DistillationLoss
    loss = _load("loss.name", name, config)
    if not issubclass(loss, DistillationLoss):
        raise ConfigError(f"loss.name = {name!r}: is no loss: the class is no subclass of DistillationLoss")
    given = dict.fromkeys(LOSS_ARGUMENTS)
    _check_call("loss.name", name, loss, (), given, config.loss.options, "loss.options")
    return loss


def make(what: str, cls: type[Any], *arguments: Any, **options: Any) -> Any:
    """An instance of a class of the user's own; raises `ConfigError` for values that it refuses."""
    try:
        return cls(*arguments, **options)
    except (TypeError, ValueError) as error:
        if cls.__module__.partition(".")[0] == "reptile_distil":
            raise
        raise ConfigError(f"{what}: {cls.__name__} cannot be made: {first_sentence(error)}") from error


def plugins_of(config: Config, role: Role) -> dict[str, str]:
    """What of a run's code is the user's own, by its key in the configuration."""
    named = {"method": role if is_plugin(role) else None}
    named["loss.name"] = None if role in ("teacher", "finetune") else config.loss.name
    return {key: name for key, name in named.items() if name is not None}


def describe_plugin(name: str) -> dict[str, str | None]:
    """A class of the user's own that was imported: its package, the package's version, and its module's SHA-256."""
    module = name.partition(":")[0]
    package = module.partition(".")[0]
    distribution: str | None
    try:
        distribution = importlib.metadata.distribution(package).name
    except importlib.metadata.PackageNotFoundError:  # its distribution has another name, or there is none
        distribution = next(iter(_distributions().get(package, ())), None)
    file = getattr(sys.modules[module], "__file__", None)
    return {
        "name": name,
        "package": distribution,
        "version": None if distribution is None else importlib.metadata.version(distribution),
        "sha256": hash_file(Path(file)) if file and Path(file).is_file() else None,
    }


def digest_code(key: str, name: str, config: Config) -> str | None:
    """SHA-256 of the module of a class of the user's own, as `describe_plugin` has it, without running the module.

    None where it is not to be found, or lies where no code is taken from.
    """
    try:
        origin = _find(key, name, config).origin
    except (Exception, SystemExit):  # whatever the packages above it may raise
        return None
    return hash_file(Path(origin)) if origin and Path(origin).is_file() else None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _load(key: str, name: str, config: Config) -> type[Any]:
    """The class. Packages above its module are looked at before the module is run."""
    module_name, _, class_name = name.partition(":")
    try:
        _find(key, name, config)
        module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(_not_found(key, name, module_name, error)) from None
    except (Exception, SystemExit) as error:  # whatever a module's own code may raise
        raise ConfigError(f"{key} = {name!r}: {module_name} fails on import: {_reason(error)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"{key} = {name!r}: {module_name} has no {class_name}; is it spelled so there?")
    if not inspect.isclass(found):
        raise ConfigError(f"{key} = {name!r}: {class_name} is no class but a {type(found).__name__}")
    return found


def _find(key: str, name: str, config: Config) -> ModuleSpec:
    """Where the module is. Those above it are run; raises what they raise, and `ConfigError` for a wrong place."""
    parts = name.partition(":")[0].split(".")
    for depth in range(1, len(parts) + 1):
        above = ".".join(parts[:depth])
        spec = importlib.util.find_spec(above)
        if spec is None:
            raise ModuleNotFoundError(name=above)
        for place in _places(spec):
            _check_place(key, name, place, parts[0], config)
    assert spec is not None  # a name has a part at least
    return spec


def _reason(error: BaseException) -> str:
    return first_sentence(error) if isinstance(error, Exception) else f"it exits with {error}"


def _not_found(key: str, name: str, module_name: str, error: ModuleNotFoundError) -> str:
    missing = error.name or ""
    if f"{module_name}.".startswith(f"{missing}."):
        return (
            f"{key} = {name!r}: Python finds no module {missing}: install its package, or name its folder in PYTHONPATH"
        )
    return f"{key} = {name!r}: {module_name} fails on import: it needs {missing or first_sentence(error)}"


def _places(spec: Any) -> Iterator[Path]:
    """Files and folders that a module's code may come from."""
    if spec.origin not in (None, "built-in", "frozen", "namespace"):
        yield Path(spec.origin)
    yield from map(Path, spec.submodule_search_locations or ())


def _check_place(key: str, name: str, place: Path, package: str, config: Config) -> None:
    """Raises `ConfigError` for code in a folder of models, data or runs, or found in the current folder alone."""
    place = place.resolve()
    if any(place.is_relative_to(folder) for folder in _installation()):
        return
    for what, folder in _folders(config):
        if place.is_relative_to(folder):
            raise ConfigError(
                f"{key} = {name!r}: lies in {folder}, a folder of {what}, from which no code is taken: install its "
                "package elsewhere"
            )
    here = Path.cwd()
    named = [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    named = [path.resolve() for path in named if path.is_absolute()]
    by_others = [Path(path).resolve() for path in sys.path if path and Path(path).resolve() != here]
    in_reach = any(place.is_relative_to(folder) for folder in (*named, *by_others))
    if place.is_relative_to(here) and not in_reach and package not in _distributions():
        raise ConfigError(
            f"{key} = {name!r}: was found in the current folder alone, from which no code is taken: install its "
            f"package (pip install -e), or name {here} in PYTHONPATH"
        )


@functools.cache
def _installation() -> frozenset[Path]:
    """Where Python and installed packages lie."""
    paths = sysconfig.get_paths()
    named = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return frozenset(Path(path).resolve() for path in (*named, site.getusersitepackages()))


def _folders(config: Config) -> Iterator[tuple[str, Path]]:
    """Folders of models, data and runs, the current folder apart, which has a rule of its own."""
    models = [config.teacher.pretrained, config.teacher.finetuned, *config.teachers, config.student.pretrained]
    data = [config.data.path, config.data.cache_dir or None, str(default_folder())]
    if isinstance(config.task, OwnTaskConfig):
        parents = [Path(config.data.path or ".", file).parent.resolve() for file in config.task.files.values()]
        data += [str(folder) for folder in parents if not Path.cwd().is_relative_to(folder)]
    hub = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    runs = [config.runs_dir, str(config.student_run)]
    named: dict[str, list[str | None]] = {"models": [*models, hub], "data": [*data], "runs": [*runs]}
    for what, paths in named.items():
        for path in paths:
            folder = Path(path).expanduser().resolve() if path else Path.cwd()
            if folder.is_dir() and folder != Path.cwd():
                yield what, folder


def _check_call(
    key: str,
    name: str,
    cls: type[Any],
    arguments: tuple[Any, ...],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
    options_key: str,
) -> None:
    """Raises `ConfigError` where the class cannot be called with what it gets and these options."""
    for option in options:
        if option in given or option in ("teacher", "student"):
            raise ConfigError(f"{options_key}.{option}: is given by the run itself; leave it out")
    try:
        signature = inspect.signature(cls)
        signature.bind(*arguments, **given, **options)
    except (TypeError, ValueError) as error:
        what = ", ".join((*["teacher", "student"][: len(arguments)], *given))
        raise ConfigError(
            f"{key} = {name!r}: {cls.__name__} {error}; it gets {what}, and what is in {options_key}: "
            f"{', '.join(options) or 'nothing'}"
        ) from None
