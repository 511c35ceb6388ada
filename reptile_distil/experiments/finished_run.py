"""A finished run, opened: its results, once they are known to be whole and made from what is there now.

The files that it was made from are compared as they are, without loading anything. A run that is under way compares
what came out of them: that is in its checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from reptile_distil.builders.plugins import digest_code, plugins_of
from reptile_distil.config.config import Config, load_config
from reptile_distil.config.sections import MethodName, Role
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError, DataError, ModelError, RunError
from reptile_distil.experiments.build_task import build_task
from reptile_distil.experiments.teachers import student_source
from reptile_distil.models.loading import find_folder, real_places
from reptile_distil.plugin_names import is_plugin
from reptile_distil.runs.folder import RunFolder, check_reachable
from reptile_distil.runs.records import Results, read_results
from reptile_distil.runs.settings import is_of_data, is_of_models
from reptile_distil.runtime.files import digest_files, is_endless_link
from reptile_distil.sources.splits import open_split, open_transfer_file
from reptile_distil.training.metrics import Scores

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "config.json")
_TOKENIZER = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")

KnownDigests = MutableMapping[tuple[str, ...], str | None]
"""Digests of what was looked at before, so that one look at many runs reads each file once."""


class FinishedRun(NamedTuple):
    """A run folder that has been opened."""

    folder: Path
    config: Config
    """The run's own, under the overrides that were given."""
    task: Task
    results: Results


def open_finished_run(
    folder: RunFolder, config: Config, task: Task, role: Role, known: KnownDigests | None = None
) -> Results | None:
    """The results of the run in `folder`; None where it is not finished.

    Raises `RunError` where results.json is damaged or lacks a score of the task, and where the run was made with other
    settings, from other files than those that are there now, or with other code of the user's own; what is gone is not
    compared. Of many runs that are opened with one `known`, each input file is read once.
    """
    known = {} if known is None else known
    results = read_finished_run(folder, config, task, role, known)
    if results is None:
        return None
    _check(folder, results, role, task)
    _compare_inputs(folder, results, digest_inputs(config, task, role, known))
    _compare_code(folder, results, config, role)
    return results


def read_finished_run(
    folder: RunFolder, config: Config, task: Task, role: Role, known: KnownDigests | None = None
) -> Results | None:
    """The results of the run in `folder`; None where it is not finished.

    Raises `RunError` where results.json is damaged, and where another method or other settings have made the run. Where
    a setting names other files, these are compared: what they hold counts, not where they lie.
    """
    if not folder.is_finished:
        return None
    results = read_results(folder.results, folder.remedy)
    if results.method != role:
        raise RunError(
            f"{folder.path}: holds a finished run of {results.method}, not of {role}; give another output_dir (or "
            "runs_dir)"
        )
    known, decisive = {} if known is None else known, config.defining_settings(role)

    def reads_the_same(key: str) -> bool:
        if not (is_of_data(key) or is_of_models(key)):
            return False
        now = digest_inputs(config, task, role, known)
        names = {name for name in results.inputs.keys() | now.keys() if _is_read_through(name, key, config, role)}
        return bool(names) and all(results.inputs.get(name) == now.get(name) for name in names)

    folder.check_same("a finished run", results.decisive, decisive, reads_the_same)
    return results


def _is_read_through(name: str, key: str, config: Config, role: Role) -> bool:
    """Whether an input, by what it is, is all that a setting finds. Of several `teachers`, some may be the hub's."""
    if is_of_data(key):
        return name.endswith(" split") or name.startswith("transfer file ")
    model = _models_read(config, role).get(name)
    return model is not None and model == config.defining_settings(role).get(key)


def check_model(folder: RunFolder) -> None:
    """Raises `RunError` where a finished run has no model any more, so that nothing can be done with it."""
    if not (folder.model / "config.json").exists():
        raise RunError(f"{folder.path}: is finished, but its model/ is gone; put it back, {folder.remedy}")


def tidy_finished_run(folder: RunFolder, config: Config) -> None:
    """Removes what the end of a finished run has left where it was cut short: its checkpoints, unless they are to stay.

    They stay where `config`, or the run's own configuration, says so, and while another process has the folder.
    """
    with contextlib.suppress(RunError):
        if folder.is_tidy():
            return
        with folder.claimed():
            kept = config.checkpoint.keep_when_finished or _keeps_checkpoints(folder)
            folder.tidy(keep_checkpoints=kept)


def _keeps_checkpoints(folder: RunFolder) -> bool:
    """Whether the run keeps its checkpoints (`checkpoint.keep_when_finished`); also where that cannot be read."""
    try:
        return load_config(folder.config).checkpoint.keep_when_finished
    except ConfigError:
        return True


def open_run_folder(given: str | Path, overrides: Sequence[str] = ()) -> FinishedRun:
    """The finished run in `given`, its folder or the model/ folder in it, with its own configuration.

    `overrides` (`key=value`) are laid over the configuration after it was compared with the results. Raises `RunError`
    as `open_finished_run` does, and where there is no finished run; `ConfigError` for a damaged config.yaml.
    """
    path = find_run(given)
    folder = RunFolder(path, remedy="train it again with scripts/distil.py --overwrite (or finetune.py)")
    own = load_config(path / "config.yaml")
    task, results = build_task(own), read_results(folder.results, folder.remedy)
    roles = {role: role for role in (*get_args(MethodName), "teacher")}
    if results.method not in roles and not is_plugin(results.method):
        raise RunError(f"{folder.results}: method: {results.method!r} is none of {', '.join(roles)}")
    role: Role = roles.get(results.method, results.method)
    folder.check_same("a finished run", results.decisive, own.defining_settings(role))
    _check(folder, results, role, task)
    _compare_inputs(folder, results, digest_inputs(own, task, role))
    return FinishedRun(path, load_config(path / "config.yaml", overrides) if overrides else own, task, results)


def find_run(given: str | Path) -> Path:
    """The run folder of `given`, which is it or the model/ folder in it. Raises `RunError`."""
    path = Path(given)
    above = [place.parent for place in real_places(path)]
    folder = next((folder for folder in above if (folder / "results.json").exists()), path)
    for part in ("config.yaml", "results.json", "model"):
        if not (folder / part).exists():
            raise RunError(
                f"{given}: is neither the folder of a finished run nor the model/ folder in one: there is no {part}"
            )
    return folder


def _check(folder: RunFolder, results: Results, role: Role, task: Task) -> None:
    """Raises `RunError` where the run is another method's, or lacks a score of the task."""
    if results.method != role:
        raise RunError(f"{folder.results}: method: is {results.method!r}, expected {role!r}; {folder.remedy}")
    scores = {"scores": results.scores}
    if results.teacher is not None:
        scores["teacher.scores_at_start"] = results.teacher.scores_at_start
        scores["teacher.scores_at_end"] = results.teacher.scores_at_end
    for key, by_split in scores.items():
        _check_scores(folder, key, by_split, task)


def _compare_inputs(folder: RunFolder, results: Results, now: Mapping[str, str]) -> None:
    """Raises `RunError` where the run was made from other files than those of today, by their digests."""
    for name in sorted(results.inputs.keys() & now.keys()):
        if results.inputs[name] != now[name]:
            raise RunError(
                f"{folder.path}: the {name} has changed since this run was made; put the old one back, {folder.remedy}"
            )


def _compare_code(folder: RunFolder, results: Results, config: Config, role: Role) -> None:
    """Raises `RunError` where a method or loss of the user's own is not, as it is now, the one that made the run."""
    for key, name in plugins_of(config, role).items():
        then, now = results.plugins.get(key), digest_code(key, name, config)
        if then is not None and then.sha256 is not None and now is not None and then.sha256 != now:
            raise RunError(
                f"{folder.path}: the code of {name} has changed since this run was made; put the old one back, "
                f"{folder.remedy}"
            )


def _check_scores(folder: RunFolder, key: str, scores: Mapping[str, Scores], task: Task) -> None:
    for split in task.dev_splits:
        for metric in task.metrics:
            if metric not in scores.get(split, {}):
                raise RunError(f"{folder.results}: {key}.{split}.{metric}: is missing; {folder.remedy}")


def digest_inputs(config: Config, task: Task, role: Role, known: KnownDigests | None = None) -> dict[str, str]:
    """SHA-256 of each local file or folder that a run reads, by what it is: `train split`, `teacher` and so on.

    What comes from the hub, or is missing, is left out. Nothing in `known` is read again; what is read is added to it.
    """
    known = {} if known is None else known
    digests = {}
    for name, model in _models_read(config, role).items():
        key: tuple[str, ...] = ("model", str(model))
        if key not in known:
            known[key] = _digest_model(model)
        digests[name] = known[key]
    reads_files = config.data.path is not None and not (task.is_generated or task.hub)
    if task.files is not None or reads_files:
        for split in ("train", *task.dev_splits):
            key = ("split", task.name, split, str(config.data.path))
            if key not in known:
                known[key] = _digest_split(task, split, config.data.path)
            digests[f"{split} split"] = known[key]
    learns_from_labels_alone = role in ("teacher", "finetune")
    for number, file in enumerate(() if learns_from_labels_alone else config.data.transfer.files, start=1):
        key = ("transfer", task.name, file, str(config.data.path))
        if key not in known:
            known[key] = _digest_transfer_file(task, file, config.data.path)
        digests[f"transfer file {number}"] = known[key]
    return {name: digest for name, digest in digests.items() if digest is not None}


def _models_read(config: Config, role: Role) -> dict[str, str | Path]:
    """The models that a run starts from or learns from, by what they are: hub names, or folders."""
    models: dict[str, str | Path] = {}
    if role == "teacher":
        models["pretrained teacher"] = config.teacher.pretrained
    else:
        if config.needs_teacher(role):
            models["teacher"] = config.teacher.finetuned or config.teacher_run
        if role == "kd":
            models |= {f"teacher {number}": name for number, name in enumerate(config.teachers, start=1)}
        if role == "checkpoints":
            folders = sorted(config.teacher_run.glob("epochs/epoch-*"))
            models |= {f"teacher's epoch {number}": epoch for number, epoch in enumerate(folders, start=1)}
        if config.student.init != "finetuned_layers":
            models["model that the student starts as"] = student_source(config)
    return models


def check_place(folder: RunFolder, config: Config, role: Role) -> None:
    """Raises `RunError` where a run would be written over a model that it reads, and as `check_reachable` does.

    Raises `ModelError` for a model that is a link to itself.
    """
    check_reachable(folder.path)
    place = folder.path.resolve()
    for name, model in _models_read(config, role).items():
        if is_endless_link(Path(model)):
            raise ModelError(f"{model}: is a link that leads to itself; give another folder as the {name}")
        read = Path(model).resolve()
        if read == place or (read.is_dir() and read.is_relative_to(place)):
            raise RunError(
                f"{folder.path}: holds the {name} of this run, which would be written over it; give another "
                "output_dir (or runs_dir)"
            )


def _digest_split(task: Task, split: str, path: str | None) -> str | None:
    with contextlib.suppress(DataError, OSError):
        source = open_split(task, split, None if path is None else Path(path))
        if task.files is None or Path(source.place).exists():  # an own task's file is looked for when it is read
            return source.digest()
    return None


def _digest_transfer_file(task: Task, file: str, path: str | None) -> str | None:
    with contextlib.suppress(DataError, OSError):
        return open_transfer_file(task, Path(path or "") / file).digest()
    return None


def _digest_model(name: str | Path) -> str | None:
    with contextlib.suppress(ModelError, OSError):
        folder = find_folder(str(name)) or Path(name)
        files = sorted(file for pattern in (*_WEIGHTS, *_TOKENIZER) for file in folder.glob(pattern))
        stats = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
        return _digest_unchanged(stats) if files else None
    return None


@functools.lru_cache(maxsize=256)
def _digest_unchanged(stats: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files as they were at these sizes and times: a table's many runs share a teacher."""
    return digest_files(*(file for file, _, _ in stats))
