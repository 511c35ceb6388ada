"""A table's YAML: a run's, with `tasks`, `methods` and `seeds` for task, method and seed → one `Config` a cell.

The settings of a cell are those of the file, then `per_task` of its task, then `variants` of its row; `key=value` on
the command line goes above all of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from reptile_distil.config.combinations import has_effect, left_aside, refuse_idle_options
from reptile_distil.config.config import Config, check_config, check_keys, given_settings, parse_overrides
from reptile_distil.config.defining_settings import flatten
from reptile_distil.config.messages import COMMAND_LINE, describe, explain
from reptile_distil.config.sections import MethodName, Role
from reptile_distil.config.table_sections import EngineConfig, TableKeys
from reptile_distil.config.yaml_files import find_config, merge_layer, read_layers
from reptile_distil.data import toy
from reptile_distil.data.tasks import GLUE, Task, get_task
from reptile_distil.errors import ConfigError, did_you_mean
from reptile_distil.experiments.build_task import build_task
from reptile_distil.plugin_names import folder_name, is_plugin
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runtime.compute import choose_device

TEACHER = "teacher"
METHODS: tuple[str, ...] = get_args(MethodName)


# Each cell has its own, so that a table's file, or a part of it, cannot give one for all.
_OF_THE_CELL = {
    "task": "tasks=[...]",
    "method": "methods=[...]",
    "seed": "seeds=[...]",
    "compare_with": "methods=[...]",
    "output_dir": "runs_dir=DIR",
}


@dataclass(frozen=True)
class Cell:
    """One run of a table: a row (the teacher, a method or a variant) on a task with a seed."""

    task: Task
    row: str
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        """The run folder; for methods the one that distil.py uses, so that finished runs are shared."""
        return Path(self.config.runs_dir, self.task.name, f"{folder_name(self.row)}-seed{self.seed}")

    @property
    def run(self) -> RunFolder:
        """What is in that folder."""
        return RunFolder(self.folder, remedy="give another runs_dir, or remove this folder")

    @property
    def role(self) -> Role:
        """What the run does."""
        return "teacher" if self.row == TEACHER else self.config.method

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task.name} {self.row} seed {self.seed}"

    @property
    def needs_teacher(self) -> bool:
        """Whether it is a student's run that waits for the table's own teacher."""
        needs_one = self.row != TEACHER and self.config.needs_teacher(self.config.method)
        return needs_one and self.config.teacher.finetuned is None

    @property
    def decisive(self) -> dict[str, Any]:
        """What must be the same in a finished run that is taken for this cell."""
        return self.config.defining_settings(self.role)


@dataclass(frozen=True)
class TableConfig:
    """Everything a table is made of; `cells` has the teachers first."""

    keys: TableKeys
    common: Config
    """The settings that all cells share; task, method and seed mean nothing here."""
    tasks: tuple[Task, ...]
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]
    output: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every cell."""
        return tuple(self.keys.seeds)


def load_table_config(path: str | Path, overrides: Sequence[str] = (), *, scores_dev: bool = True) -> TableConfig:
    """The table in the YAML file at `path`, on top of what it `extends`, under `key=value` overrides.

    `tasks=[...]` may name the own tasks of the file. Without `scores_dev` an own task needs no dev split.

    Raises `ConfigError` as `load_config` does, for any of the cells, and for what no table can have.
    """
    values, origins = read_layers(find_config(path))
    command = parse_overrides(overrides)
    of_file = _own_tasks(values.get("tasks"))
    for layer in [layer for part in ("variants", "per_task") for layer in _mappings(values.get(part))]:
        _replace_leaves(layer, command)
    merge_layer(values, command, origins, COMMAND_LINE)
    for key, instead in _OF_THE_CELL.items():
        if values.get(key) not in (None, []) and origins[key] in (COMMAND_LINE, str(path)):
            fault = f"{origins[key]}: {key} = {values[key]!r}: a table has no {key}, "
            own_name = values[key].get("name") if isinstance(values[key], dict) else None
            raise ConfigError(fault + (f"give {instead}" if own_name is None else _describe_in_tasks(own_name)))
    if isinstance(command.get("tasks"), list):
        values["tasks"] = [of_file.get(task, task) if isinstance(task, str) else task for task in values["tasks"]]
    own = {key: values.pop(key) for key in TableKeys.model_fields if key in values}
    shared = {key: value for key, value in values.items() if key not in _OF_THE_CELL}
    try:
        keys = TableKeys.model_validate(own)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), own, origins, str(path), root=TableKeys)) from None
    _check_names(keys, origins)
    _refuse_options_of_other_engines(keys.engine, command)
    _check_tasks(keys, origins, values.get("task"), of_file)
    # Of the methods each cell has its own, so options of one are for the cells to judge.
    common = _check({**shared, "task": keys.tasks[0], "method": "finetune"}, origins, str(path))
    cells = tuple(_cells(keys, shared, origins, str(path)))
    if any(cell.config.precision == "auto" for cell in cells):
        raise ConfigError(
            f"{origins.get('precision', path)}: precision = 'auto': differs from machine to machine, and all "
            "runs of a table must compute alike; give fp32, tf32 or bf16"
        )
    _check_variants(keys, cells, command, origins)
    _refuse_idle_overrides(cells, overrides)
    _check_teachers(cells, str(path))
    _check_per_task(keys, {*of_file, *(cell.task.name for cell in cells)}, origins)
    with_teacher = any(cell.row == TEACHER or cell.config.needs_teacher(cell.config.method) for cell in cells)
    rows = tuple(dict.fromkeys((*[TEACHER] * with_teacher, *keys.methods)))
    tasks = tuple({cell.task.name: cell.task for cell in cells}.values())
    for task in tasks:
        if scores_dev and task.is_own and not task.dev_splits and keys.search is None:
            raise ConfigError(
                f"{path}: task {task.name} has no dev split, whose scores a table is made of: give it one"
            )
    output = Path(keys.output or Path(common.runs_dir, keys.name))
    if not output.name:
        raise ConfigError(
            f"{origins.get('output', path)}: output = {keys.output!r}: expected the start of the names of the table's "
            f"files, for example {Path(output, keys.name)}"
        )
    used = {name: settings for name, settings in keys.per_task.items() if name in {task.name for task in tasks}}
    keys = keys.model_copy(update={"per_task": used})
    return TableConfig(keys, common, tasks, rows, cells, output)


def _check_variants(
    keys: TableKeys, cells: Sequence[Cell], command: Mapping[str, Any], origins: Mapping[str, str]
) -> None:
    """Raises `ConfigError` for settings that do nothing in a variant, and for a variant that only the command line has.

    A file may have variants that are no rows: the command line narrows `methods`.
    """
    for name, values in keys.variants.items():
        configs = [cell.config for cell in cells if cell.row == name]
        for key, value in flatten(values).items():
            has_no_effect = f"{origins['variants']}: variants.{name}: {key} has no effect"
            if not _concerns(key, values["method"]):
                raise ConfigError(f"{has_no_effect} on {values['method']}; leave it out")
            reasons = [left_aside(key, config) for config in configs]
            if value not in (None, []) and (reason := next(filter(None, reasons), None)) and all(reasons):
                raise ConfigError(f"{has_no_effect} with {reason[0]}; leave it out, or give {reason[1]}")
    given = command.get("variants")
    for name in given if isinstance(given, Mapping) else ():
        if name not in keys.methods:
            raise ConfigError(
                f"command line: variants.{name} is none of the rows, {', '.join(keys.methods)}: name it in "
                "methods=[...], or leave it out"
            )


def _concerns(key: str, method: str) -> bool:
    """Whether a variant of the method can differ by the key from the method itself."""
    is_of_the_distillation = key == "teachers" or (key.startswith("loss.") and key != "loss.class_weights")
    return has_effect(key, {method}) and not (method == "finetune" and is_of_the_distillation)


def _refuse_idle_overrides(cells: Sequence[Cell], overrides: Sequence[str]) -> None:
    """Raises `ConfigError` for what the command line gives and no student takes, nor a teacher that is fine-tuned."""
    students = [cell.config for cell in cells if cell.row != TEACHER]
    given = given_settings(overrides)
    if len(students) < len(cells):
        given = {key: value for key, value in given.items() if not _is_of_the_tuning(key)}
    if students:
        refuse_idle_options(students, given, "methods=[{0}]")


def _is_of_the_tuning(key: str) -> bool:
    return key.startswith("teacher.") and key not in ("teacher.finetuned", "teacher.label_names")


def describe_table(table: TableConfig) -> str:
    """The whole configuration as YAML with comments; `load_table_config` reads it back."""
    return describe(table.keys) + describe(table.common, without=_OF_THE_CELL)


def _cells(keys: TableKeys, shared: Mapping[str, Any], origins: Mapping[str, str], path: str) -> Iterator[Cell]:
    """Every cell, checked: the teachers, then task by task and seed by seed the methods, so that pairs come early."""
    students, teachers = [], []
    for task in keys.tasks:
        for seed in keys.seeds:
            of_seed = [_cell(keys, shared, origins, path, task=task, row=row, seed=seed) for row in keys.methods]
            if any(cell.needs_teacher or cell.row == TEACHER for cell in of_seed):
                teacher = _cell(keys, shared, origins, path, task=task, row=TEACHER, seed=seed)
                keeps = any(cell.config.teacher.keep_epochs for cell in of_seed)
                teachers.append(_keeping_its_epochs(teacher) if keeps else teacher)
            students += [cell for cell in of_seed if cell.row != TEACHER]
    yield from (*teachers, *students)


def _keeping_its_epochs(cell: Cell) -> Cell:
    teacher = cell.config.teacher.model_copy(update={"keep_epochs": True})
    return Cell(cell.task, cell.row, cell.seed, cell.config.with_values(teacher=teacher.model_dump()))


def _check_teachers(cells: Sequence[Cell], path: str) -> None:
    """Raises `ConfigError` for a row whose settings ask for another teacher than that of its task and seed."""
    teachers = {(cell.task.name, cell.seed): cell for cell in cells if cell.row == TEACHER}
    for cell in cells:
        if not cell.needs_teacher:
            continue
        teacher = teachers[cell.task.name, cell.seed]
        shared, own = teacher.decisive, cell.config.defining_settings("teacher")
        for key in dict.fromkeys((*shared, *own)):  # a setting of one of them alone is the other's at its default
            if shared.get(key) != own.get(key):
                theirs, ours = (flatten(of.config.model_dump(mode="json")).get(key) for of in (teacher, cell))
                raise ConfigError(
                    f"{path}: variants.{cell.row}: {key} = {ours!r} asks for a teacher of its own, but all rows of "
                    f"a task share one, with {theirs!r}; give the row a teacher.finetuned, or a table of its own"
                )


def _cell(
    keys: TableKeys,
    shared: Mapping[str, Any],
    origins: Mapping[str, str],
    path: str,
    *,
    task: str | dict[str, Any],
    row: str,
    seed: int,
) -> Cell:
    values: dict[str, Any] = {}
    where = dict(origins)
    merge_layer(values, shared, {}, path)
    name = task_name(task)
    if name in keys.per_task:
        merge_layer(values, keys.per_task[name], where, f"{origins['per_task']}, per_task.{name}")
    values["method"] = row if row in METHODS or is_plugin(row) else "kd"
    if row in keys.variants:
        merge_layer(values, keys.variants[row], where, f"{origins['variants']}, variants.{row}")
    values |= {"task": task, "seed": seed}
    config = _check(values, where, path)
    cell = Cell(build_task(config), row, seed, config)
    if keys.engine.name == "local":  # where an engine computes, another device may be
        choose_device(config.device)
    if "train" not in cell.task.splits:
        raise ConfigError(f"{origins['tasks']}: tasks: {name} has no train split; evaluate.py scores a model on it")
    if row in keys.variants:
        return Cell(cell.task, row, seed, config.with_values(output_dir=str(cell.folder)))
    return cell


def _check(values: Mapping[str, Any], origins: Mapping[str, str], path: str) -> Config:
    return check_config(values, {**origins, "task": origins["tasks"]}, path, tuple(TableKeys.model_fields))


def _check_names(keys: TableKeys, origins: Mapping[str, str]) -> None:
    """Raises `ConfigError` for names that are given twice, or mean nothing, or what they cannot mean here."""
    tasks = [task_name(task) for task in keys.tasks]
    given: dict[str, list[Any]] = {"tasks": tasks, "methods": keys.methods, "seeds": keys.seeds}
    for key, items in given.items():
        for item in items:
            if items.count(item) > 1:
                raise ConfigError(f"{origins[key]}: {key}: {item!r} is given twice")
    for name, values in keys.variants.items():
        where = f"{origins['variants']}: variants.{name}"
        if name in (*METHODS, TEACHER) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ConfigError(f"{where}: expected a name of letters, digits, _, . and -, and not that of a method")
        if values.get("method") not in METHODS and not is_plugin(values.get("method")):
            raise ConfigError(
                f"{where}.method = {values.get('method')!r}: expected one of {', '.join(METHODS)}, or a method of your "
                "own, package.module:Name"
            )
        _refuse_cell_keys(where, values, allowed="method")
        check_keys(values, f"{origins['variants']}, variants.{name}")
    folders: dict[str, str] = {TEACHER: TEACHER}
    for method in keys.methods:
        other = folders.setdefault(folder_name(method), method)
        if other != method:
            raise ConfigError(
                f"{origins['methods']}: methods: the runs of {other} and {method} would lie in the same folders; give "
                "one of them as a variant of another name"
            )
    for name, values in keys.per_task.items():
        _refuse_cell_keys(f"{origins['per_task']}: per_task.{name}", values)
    known = (*METHODS, TEACHER, *keys.variants)
    for method in keys.methods:
        if method not in known and not is_plugin(method):
            raise ConfigError(
                f"{origins['methods']}: methods: unknown method {method!r}, known: {', '.join(known)}"
                f"{did_you_mean(method, known)}"
            )


def _check_tasks(keys: TableKeys, origins: Mapping[str, str], of_a_run: Any, of_file: Collection[str]) -> None:
    """Raises `ConfigError` for a name among `tasks` that no task has.

    `of_a_run` is the task of a file for a run, `of_file` are the own tasks in the table's file.
    """
    own = of_a_run.get("name") if isinstance(of_a_run, dict) else None
    for name in keys.tasks:
        if not isinstance(name, str) or name in toy.TASKS:
            continue
        try:
            get_task(name, (*toy.TASKS, *of_file))
        except ConfigError as error:
            fault = f"{origins['tasks']}: tasks: {error}"
            if name == own:
                fault = (
                    f"{origins['tasks']}: tasks: {name!r} is described under task, in {origins['task']}, which a table "
                    f"does not read: {_describe_in_tasks(name)}"
                )
            raise ConfigError(fault) from None


def _describe_in_tasks(name: str) -> str:
    """What to do with a task of one's own that stands elsewhere."""
    return (
        "describe a task of your own in the list tasks itself, beside the names of others: "
        f"tasks: [toy-sentence, {{name: {name}, text: [...], labels: [...], metrics: [...], files: {{...}}}}]"
    )


def _refuse_options_of_other_engines(engine: EngineConfig, command: Mapping[str, Any]) -> None:
    """A file may hold the options of every engine, but who gives one on the command line expects an effect."""
    given = command.get("engine")
    for other in given if isinstance(given, Mapping) else ():
        if other not in ("name", engine.name):
            raise ConfigError(
                f"command line: engine.{other} has no effect on engine {engine.name}; leave it out, or give "
                f"--engine {other}"
            )
    options = given.get("slurm") if isinstance(given, Mapping) and engine.slurm.cluster == "local" else None
    for key in ("partition", "memory_gb", "options", "setup"):
        if isinstance(options, Mapping) and options.get(key) and getattr(engine.slurm, key):
            raise ConfigError(
                f"command line: engine.slurm.{key} has no effect with engine.slurm.cluster = local; leave one of them "
                "out"
            )


def _refuse_cell_keys(where: str, values: Mapping[str, Any], allowed: str = "") -> None:
    for key in (*_OF_THE_CELL, "runs_dir", *TableKeys.model_fields):
        if key in values and key != allowed:
            raise ConfigError(f"{where}: {key} is the table's affair and cannot stand here")


def _own_tasks(tasks: Any) -> dict[str, Any]:
    """The own tasks of a file's list by name; whatever else is there is refused later."""
    own = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    return {task["name"]: task for task in own if isinstance(task.get("name"), str)}


def _check_per_task(keys: TableKeys, tasks: Collection[str], origins: Mapping[str, str]) -> None:
    """Settings for a task outside this table are fine, for none at all they are a slip of the pen."""
    known = (*GLUE, *toy.TASKS, *tasks)
    for name in keys.per_task:
        if name not in known:
            raise ConfigError(f"{origins['per_task']}: per_task: unknown task {name!r}{did_you_mean(name, known)}")


def task_name(task: str | dict[str, Any]) -> str:
    """Name of one of a table's `tasks`: GLUE's, or a mapping that has it."""
    return task if isinstance(task, str) else str(task.get("name"))


def _mappings(value: Any) -> list[dict[str, Any]]:
    """The mappings in a mapping; whatever else is there is refused later."""
    return [item for item in value.values() if isinstance(item, dict)] if isinstance(value, dict) else []


def _replace_leaves(values: dict[str, Any], above: Mapping[str, Any]) -> None:
    """Gives `values` in place the leaves of `above` where both have one: the command line has the last word."""
    for key in values.keys() & above.keys():
        if isinstance(values[key], dict) and isinstance(above[key], Mapping):
            _replace_leaves(values[key], above[key])
        else:
            values[key] = above[key]
