"""A finished run, opened: its results, once they are known to be whole and made from what is there now."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from reptile_distil.config.config import Config, load_config
from reptile_distil.config.sections import MethodName, Role
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError, RunError
from reptile_distil.experiments.build_task import build_task
from reptile_distil.experiments.input_digests import KnownDigests, digest_inputs
from reptile_distil.models.loading import real_places
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.records import Results, read_results
from reptile_distil.training.metrics import Scores


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
    settings, or from other files than those that are there now; a file that is gone is not compared. Of many runs that
    are opened with one `known`, each input file is read once.
    """
    if not folder.is_finished:
        return None
    results = folder.read_results(config.defining_settings(role))
    if results is not None:
        _check(folder, results, role, task)
        _compare_inputs(folder, results, digest_inputs(config, task, role, known))
    return results


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
    folder = RunFolder(path, remedy="run it again with --overwrite")
    own = load_config(path / "config.yaml")
    task, results = build_task(own), read_results(folder.results)
    roles = {role: role for role in (*get_args(MethodName), "teacher")}
    if results.method not in roles:
        raise RunError(f"{folder.results}: method: {results.method!r} is none of {', '.join(roles)}")
    role: Role = roles[results.method]
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


def _check_scores(folder: RunFolder, key: str, scores: Mapping[str, Scores], task: Task) -> None:
    for split in task.dev_splits:
        for metric in task.metrics:
            if metric not in scores.get(split, {}):
                raise RunError(f"{folder.results}: {key}.{split}.{metric}: is missing; {folder.remedy}")
