"""The dry run of a table: which cells are finished, what is missing, and how long the rest would take.

Whatever cannot be checked or could not start is named, and does not keep the rest from being checked. One run of each
row and task is measured, and stands for those with other seeds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from reptile_distil.config.sections import Role
from reptile_distil.errors import DataError, ModelError, ReptileDistilError, RunError
from reptile_distil.experiments.dry_run import (
    Measured,
    RunPlan,
    Status,
    check_one_process,
    check_room,
    disk_needed,
    free_bytes,
    look,
    measure,
)
from reptile_distil.experiments.dry_run_text import ESTIMATE, WIDTH, format_bytes, format_seconds, item
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.experiments.finished_run import KnownDigests, open_finished_run
from reptile_distil.experiments.setup import check_pair
from reptile_distil.experiments.teachers import student_source
from reptile_distil.models.loading import load_config_file
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.runtime.hub import reachability_cached
from reptile_distil.runtime.text_tables import plain_table
from reptile_distil.sources.splits import open_split
from reptile_distil.tables.config import Cell, TableConfig


class Missing(NamedTuple):
    """Why a model, or a task's data, is not available."""

    reason: str
    gist: str
    """The reason without names: the same for what is missing for the same reason."""


@dataclass
class TablePlan:
    """A table's cells as they would be run, and why some of them could not be."""

    cells: Sequence[Cell]
    folder: Path
    """The folder of all runs."""
    device: str = ""
    runs: dict[str, RunPlan] = field(default_factory=dict)
    """By the cell's name; a cell whose folder cannot be used is not among them."""
    missing: dict[str, Missing] = field(default_factory=dict)
    """Models and data that are not available, by name."""
    faults: dict[str, str] = field(default_factory=dict)
    """Other reasons why runs could not be made, by the name of a cell, or of its task and row."""
    disk_needed: int = 0
    disk_free: int = 0

    @property
    def seconds(self) -> float:
        """The estimated seconds that one worker needs for the unfinished cells."""
        return sum(run.seconds for run in self.runs.values())

    def check(self) -> None:
        """Raises `RunError` where a cell could not be run, or there is no room for them."""
        if self.missing:
            raise RunError(
                f"{len(self.missing)} of the models and data sets, named above, are not available here, so the cells "
                "that need them could not be checked"
            )
        if self.faults:
            raise RunError(f"{', '.join(self.faults)}: could not be run, for the reasons above")
        check_room(self.folder, self.disk_needed, self.disk_free)


def plan_table(table: TableConfig) -> TablePlan:
    """Looks at every cell, and measures one of each row and task whose models and data are there."""
    check_one_process()
    plan = TablePlan(table.cells, Path(table.common.runs_dir))
    measured: dict[tuple[str, str], Measured | None] = {}
    known: KnownDigests = {}
    with reachability_cached():
        for cell in table.cells:
            role, key = cell.role, (cell.task.name, cell.row)
            try:
                if open_finished_run(cell.run, cell.config, cell.task, role, known) is not None:
                    plan.runs[cell.name] = RunPlan(role, Status(cell.folder, "finished"), None, cell.config)
                    continue
                experiment = Experiment(cell.config)
                status = look(experiment, role, overwrite=False)
            except ReptileDistilError as error:
                plan.faults[cell.name] = str(error)
                continue
            plan.device = experiment.device
            if key not in measured:
                measured[key] = None  # a fault of one seed is one of all
                try:
                    if not _add_missing(cell, role, plan.missing):
                        measured[key] = measure(experiment, role, status)
                except ReptileDistilError as error:
                    plan.faults[" ".join(key)] = str(error)
            plan.runs[cell.name] = RunPlan(role, status, measured[key], cell.config)
    plan.disk_needed = disk_needed(list(plan.runs.values()))
    plan.disk_free = free_bytes(plan.folder)
    return plan


def describe_table_plan(plan: TablePlan) -> str:
    """The whole plan: what is missing, each task and row, time and disk."""
    blocks = ["Dry run: nothing is trained, and nothing is written into a run folder."]
    header = ("task", "row", "cells", "finished", "steps", "s/step", "time left", "memory")
    blocks.append(plain_table([header, *_lines(plan)], num_left=2))
    if plan.missing:
        blocks.append("\n".join(["Not available here:", *_grouped(plan.missing)]))
    if plan.faults:
        faults = [_entry(f"{name}: {reason}") for name, reason in plan.faults.items()]
        blocks.append("\n".join(["Could not be run:", *faults]))
    blocks.append("\n".join(_needs(plan)))
    return "\n\n".join(blocks)


def _lines(plan: TablePlan) -> Iterator[tuple[str, ...]]:
    tasks = list(dict.fromkeys(cell.task.name for cell in plan.cells))
    of_rows = dict.fromkeys((cell.task.name, cell.row) for cell in plan.cells)
    for task, row in sorted(of_rows, key=lambda of_row: tasks.index(of_row[0])):
        cells = [cell for cell in plan.cells if (cell.task.name, cell.row) == (task, row)]
        runs = [plan.runs[cell.name] for cell in cells if cell.name in plan.runs]
        finished = sum(run.status.state == "finished" for run in runs)
        measured = next((run.measured for run in runs if run.measured is not None), None)
        numbers = ["-"] * 4
        if measured is not None:
            left = format_seconds(sum(run.seconds for run in runs))
            trial = measured.trial
            numbers = [f"{measured.num_steps:,}", f"{trial.step_seconds:.3f}", left, format_bytes(trial.peak_memory)]
        yield task, row, str(len(cells)), str(finished), *numbers


def _needs(plan: TablePlan) -> Iterator[str]:
    runs = plan.runs.values()
    finished = sum(run.status.state == "finished" for run in runs)
    unfinished = sum(run.status.state == "unfinished" for run in runs)
    measured = sum(run.measured is not None for run in runs)
    yield item(
        "cells", f"{len(plan.cells)}: {finished} finished, {unfinished} begun, {len(plan.cells) - finished} left"
    )
    if not measured:
        return
    which = "" if measured == len(plan.cells) - finished else f" for the {measured} of them that could be measured"
    said = f"about {format_seconds(plan.seconds)}{which}, by one worker on {plan.device}. {ESTIMATE}"
    yield item("time", f"{said} Other seeds are taken to need as much.")
    yield item(
        "disk",
        f"about {format_bytes(plan.disk_needed)} in {plan.folder}, where {format_bytes(plan.disk_free)} are free",
    )


def _add_missing(cell: Cell, role: Role, missing: dict[str, Missing]) -> bool:
    """Whether a run's models or data are not available; adds those to `missing`, and checks the others alone."""
    config, task = cell.config, cell.task
    models = [config.teacher.pretrained] if role == "teacher" else [student_source(config)]
    if role != "teacher" and config.needs_teacher(role):
        models.append(config.teacher.finetuned or config.teacher.pretrained)
    for name in models:
        if f"model {name}" not in missing:
            try:
                load_config_file(name)
                load_tokenizer(name)
            except ModelError as error:
                missing[f"model {name}"] = Missing(str(error).removeprefix(f"{name}: "), str(error).replace(name, ""))
    lacks_models = any(f"model {name}" in missing for name in models)
    data = f"data of {task.name}"
    if data not in missing:
        try:
            for split in ("train", *task.dev_splits):
                source = open_split(task, split, None if config.data.path is None else Path(config.data.path))
                if lacks_models:
                    source.load(check_rows=config.data.check_rows)
        except DataError as error:
            missing[data] = Missing(str(error), str(error).replace(str(task.folder), "").replace(task.name, ""))
    if data in missing and not lacks_models and len(models) == 2:
        check_pair(config, task)
    return lacks_models or data in missing


def _grouped(missing: Mapping[str, Missing]) -> Iterator[str]:
    """What is missing for the same reason together, and that reason for the first of them."""
    for gist in dict.fromkeys(one.gist for one in missing.values()):
        names = [name for name, one in missing.items() if one.gist == gist]
        kind = names[0].rpartition(" ")[0] + " "  # model, or data of
        listed = kind + ", ".join(name.removeprefix(kind) for name in names)
        yield _entry(f"{listed}: {missing[names[0]].reason}")


def _entry(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
