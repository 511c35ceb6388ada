"""What a run would do, found out without doing it: checks, sizes, and an estimate from a few measured steps.

Nothing is written into run folders, and none is claimed. Everything that a run loads is loaded: what it would download
is downloaded, and tokenised data are kept in the cache.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reptile_distil.config.config import Config
from reptile_distil.config.sections import Role
from reptile_distil.data.batches import Batches
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError, LayerMapError, RunError
from reptile_distil.experiments.build_task import VALIDATION
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.experiments.finished_run import check_place
from reptile_distil.experiments.setup import Components
from reptile_distil.experiments.teachers import TeacherLogits, keeps_training_logits
from reptile_distil.experiments.trial_steps import TrialSteps, run_trial_steps
from reptile_distil.models.classifier import count_parameters
from reptile_distil.models.layer_map import LayerMap, encoder_layers, resolve_layer_map
from reptile_distil.runs.folder import check_writable
from reptile_distil.runs.resume import Recovery
from reptile_distil.runs.state import weights_fingerprint
from reptile_distil.runtime.files import nearest_place
from reptile_distil.runtime.launcher import launched_several
from reptile_distil.runtime.measuring import explain_out_of_memory, free_memory
from reptile_distil.training.loop import count_steps
from reptile_distil.training.trackers import check_trackers

logger = logging.getLogger(__name__)


class ModelFacts(NamedTuple):
    """What a model is."""

    name: str
    num_layers: int
    width: int
    num_parameters: int


@dataclass(frozen=True)
class Status:
    """What lies in the folder of a run."""

    folder: Path
    state: Literal["new", "unfinished", "finished"]
    recovery: Recovery | None = None
    """Of a run that is not finished."""

    @property
    def step(self) -> int:
        """The step from which the run would go on."""
        return (self.recovery.step or 0) if self.recovery else 0


@dataclass(frozen=True)
class Measured:
    """A run's parts, and what a few of its steps took."""

    num_rows: Mapping[str, int]
    """Of each split: the training rows with labels, and those of each evaluation."""
    batches_per_epoch: int
    epochs: int
    num_steps: int
    """Of the whole run, early stopping aside."""
    vocabulary: int
    """Tokens that the tokenizer knows."""
    student: ModelFacts
    """The model that learns, also where that is the teacher."""
    teacher: ModelFacts | None
    layer_map: LayerMap | None
    """Reptile's."""
    trial: TrialSteps
    num_transfer_rows: int = 0
    """Training rows without labels."""

    def seconds_left(self, step: int) -> float:
        """Seconds that a run takes from this step on."""
        num_evaluations = -(-self.num_steps // self.batches_per_epoch) - step // self.batches_per_epoch
        return self.trial.seconds(num_steps=self.num_steps - step, num_evaluations=num_evaluations)


@dataclass(frozen=True)
class RunPlan:
    """One run: where it stands and, unless it is finished, what is left to do."""

    role: Role
    status: Status
    measured: Measured | None
    config: Config
    """Its own: what it keeps may differ from run to run."""

    @property
    def seconds(self) -> float:
        """Seconds that are left, about."""
        return 0.0 if self.measured is None else self.measured.seconds_left(self.status.step)


@dataclass(frozen=True)
class Plan:
    """The runs of one command, in their order."""

    config: Config
    task: Task
    device: str
    runs: tuple[RunPlan, ...]
    disk_needed: int
    """Bytes, at the moment when most is needed."""
    disk_free: int

    @property
    def seconds(self) -> float:
        """Of all runs, about."""
        return sum(run.seconds for run in self.runs)


def plan_distillation(config: Config, *, overwrite: bool = False) -> Plan:
    """What scripts/distil.py would do. Raises `ReptileDistilError` where it could not."""
    methods = tuple(dict.fromkeys((config.method, *config.compare_with)))
    roles: dict[Role, bool] = {}
    if config.teacher.finetuned is None and any(map(config.needs_teacher, methods)):
        roles["teacher"] = False
    return plan_runs(config, {**roles, **dict.fromkeys(methods, overwrite)})


def plan_runs(config: Config, roles: Mapping[Role, bool]) -> Plan:
    """The runs of a configuration, by role and whether a run that is there is to be overwritten.

    Raises `ReptileDistilError` for the first thing that would keep a run from its end: in configuration, data, labels,
    models, tokenizers, layer map, run folders, memory of the device or room on the disk.
    """
    check_one_process()
    found = []
    for role, overwrite in roles.items():  # all of them before one is measured, which takes a while
        experiment = experiment_for(config, role)
        found.append((role, experiment, look(experiment, role, overwrite=overwrite)))
    runs = []
    for role, experiment, status in found:
        measured = None if status.state == "finished" else measure(experiment, role, status)
        runs.append(RunPlan(role, status, measured, config))
    needed, free = disk_needed(runs), free_bytes(runs[0].status.folder)
    check_room(runs[0].status.folder.parent, needed, free)
    return Plan(experiment.config, experiment.task, experiment.device, tuple(runs), needed, free)


def experiment_for(config: Config, role: Role) -> Experiment:
    """The experiment in which a role is run."""
    return Experiment(config if role == "teacher" else config.with_values(method=role, compare_with=()))


def check_one_process() -> None:
    """Raises `ConfigError` where a launcher has started several processes."""
    if launched_several():
        raise ConfigError("--dry-run takes one process: start it with python")


def look(experiment: Experiment, role: Role, *, overwrite: bool) -> Status:
    """What lies in a run's folder. Raises `RunError` for what the run could not go on with, or write to."""
    folder = experiment.folder_for(role)
    check_writable(folder.path)
    check_place(folder, experiment.config, role)
    if not overwrite and experiment.open_whole(folder, role) is not None:
        return Status(folder.path, "finished")
    recovery = experiment.recovery(folder, role, afresh=overwrite)
    return Status(folder.path, "new" if recovery.step is None else "unfinished", recovery)


def measure(experiment: Experiment, role: Role, status: Status) -> Measured:
    """Loads all that a run needs, as it would, and takes a few steps on models that are then dropped."""
    free_memory()  # of the run measured before, which would count as this one's
    check_trackers(experiment.config.trackers)
    if role != "teacher":
        experiment.check_plugins()
    with experiment.own_settings():
        return _measure(experiment, role, status)


def _measure(experiment: Experiment, role: Role, status: Status) -> Measured:
    config, task = experiment.config, experiment.task
    logger.info("measuring a few steps: %s on %s", role, task.name)
    components, is_stand_in = experiment.prepare(role)
    if status.recovery is not None and not is_stand_in:
        status.recovery.check_inputs(components.fingerprints())
    logits_of = _pretend_logits(experiment, role, components)
    settings, model, tokenizer, data, teacher = components[:5]
    names = _names(config, role)
    key = "teacher.train" if role == "teacher" else "train"
    with explain_out_of_memory(f"{key}.micro_batch_size, {key}.eval_batch_size or data.max_length"):
        student, built = experiment.setup.assemble(role, components)
        trial = run_trial_steps(
            built.method,
            built.optimizers,
            data["train"],
            [data[split] for split in ((VALIDATION,) if VALIDATION in data else task.dev_splits)],
            student=student,
            teacher=teacher,
            teacher_moves=built.moves_teacher,
            length=config.data.max_length,
            logits_of=logits_of,
            modules=tuple(built.modules.values()),
        )
    facts = _facts(names[0], model)
    teachers = None if teacher is None else _facts(names[1], teacher.model)
    layer_map = None
    if role == "reptile" and teachers is not None:
        layer_map = resolve_layer_map(
            config.reptile.layer_map, num_teacher_layers=teachers.num_layers, num_student_layers=facts.num_layers
        )
    return Measured(
        num_rows={split: batches.num_labelled_rows for split, batches in data.items()},
        batches_per_epoch=data["train"].num_batches,
        epochs=settings.epochs,
        num_steps=count_steps(data["train"], settings.epochs, settings.max_steps),
        vocabulary=len(tokenizer),
        student=facts,
        teacher=teachers,
        layer_map=layer_map,
        trial=trial,
        num_transfer_rows=data["train"].num_transfer_rows,
    )


def _pretend_logits(experiment: Experiment, role: Role, components: Components) -> Batches | None:
    """Lets steps be as quick as with kept logits; returns the batches in which a run would still compute these."""
    train, teacher = components.data["train"], components.teacher
    if teacher is None or not keeps_training_logits(experiment.config, role, train):
        return None
    kept = TeacherLogits(experiment.setup, teacher, weights_fingerprint(teacher))
    return kept.pretend_for_training(train, train.features.fingerprint())


def disk_needed(runs: Sequence[RunPlan]) -> int:
    """Bytes still to be written at the moment when most of them lie there, the runs being made one after the other.

    While a run goes on, it holds up to `checkpoint.keep` checkpoints, each perhaps with a best model of its own, one
    more that is being written, and its own model. When it is finished, the model is left, and those of all epochs where
    the teacher's are kept.
    """
    finished, most = 0, 0
    for run in runs:
        if run.measured is None:
            continue
        config, keep = run.config, run.config.checkpoint.keep
        model, checkpoint = run.measured.trial.model_bytes, run.measured.trial.checkpoint_bytes
        there = _size_of(run.status.folder) if run.status.state == "unfinished" else 0
        epochs = run.measured.epochs * model if run.role == "teacher" and config.teacher.keep_epochs else 0
        most = max(most, finished + epochs + (keep + 1) * (checkpoint + model) - there)
        finished += model + epochs + (keep * (checkpoint + model) if config.checkpoint.keep_when_finished else 0)
    return max(most, finished)


def free_bytes(path: Path) -> int:
    """Bytes that are free where the folder `path` is, or would be made."""
    return shutil.disk_usage(nearest_place(path)).free


def check_room(folder: Path, needed: int, free: int) -> None:
    """Raises `RunError` where less is free than needed."""
    if needed > free:
        raise RunError(
            f"{folder}: about {needed / 1e9:.2f} GB are needed, but only {free / 1e9:.2f} GB are free; "
            "make room, lower checkpoint.keep, or give another runs_dir"
        )


def _size_of(folder: Path) -> int:
    """Bytes of the files in a folder, one that has several names counted once."""
    stats = [path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({stat.st_ino: stat.st_size for stat in stats}.values())


def _names(config: Config, role: Role) -> tuple[str, str]:
    """What to call the model that learns, and its teacher."""
    teacher = ", ".join(config.teachers) or config.teacher.finetuned or config.teacher.pretrained
    student = {
        "pretrained": str(config.student.pretrained),
        "teacher_layers": f"layers of {config.teacher.pretrained}",
        "finetuned_layers": f"layers of {teacher}, fine-tuned",
        "random": f"random, in the shape of {config.teacher.pretrained}",
    }[config.student.init]
    return (config.teacher.pretrained if role == "teacher" else student), teacher


def _facts(name: str, model: Any) -> ModelFacts:
    try:
        num_layers = len(encoder_layers(model)[1])
    except LayerMapError:  # layers that share their weights
        num_layers = model.config.num_hidden_layers
    return ModelFacts(name, num_layers, model.config.hidden_size, count_parameters(model))
