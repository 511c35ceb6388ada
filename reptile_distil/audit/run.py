"""Audits the teacher of a configuration: trains as its run would, and measures at some points on the way."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from reptile_distil.audit.one_step import OneStepAudit, Stage, steps_from, take_steps
from reptile_distil.builders.loss import build_loss, class_weights
from reptile_distil.config.config import Config
from reptile_distil.config.sections import TEACHER_MOVES
from reptile_distil.errors import ConfigError
from reptile_distil.experiments.build_method import build_schedules, forward_options
from reptile_distil.experiments.build_task import VALIDATION
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.experiments.setup import Components, Setup, prepare_model
from reptile_distil.experiments.teachers import epoch_weights, prepare_to_read, student_source
from reptile_distil.models.classifier import Teacher
from reptile_distil.models.loading import is_model_of_a_run
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.models.tokenizer import Tokenizers, check_same_tokenizer, load_tokenizer
from reptile_distil.runtime.randomness import random_numbers_repeated
from reptile_distil.training.loop import count_steps

logger = logging.getLogger(__name__)


class AuditSettings(NamedTuple):
    """What is measured, and where."""

    stages: Sequence[float] = (0.1, 0.5, 0.9)
    """Fractions of the run's steps at which it is measured: before a step that moves the teacher, where not all do."""
    num_batches: int = 200
    """Batches at each stage."""
    num_probe_rows: int = 256
    """Rows that the loss is measured on after each batch: drawn anew from the validation rows."""
    other: str | None = None
    """Folder or hub name of a second teacher, to be compared with the run's own."""


def check_audit(config: Config, settings: AuditSettings) -> None:
    """Raises `ConfigError` for what cannot be audited, before anything is loaded."""
    moves = config.method in TEACHER_MOVES
    if not moves and config.method != "kd":
        raise ConfigError(f"method = {config.method!r}: an audit needs a teacher; choose kd or a method that moves one")
    if not moves and settings.other is None:
        raise ConfigError("method = 'kd': its teacher does not move; give --other DIR, a second one to compare it with")
    if config.output_dir is not None:
        raise ConfigError("output_dir has no effect on an audit, which keeps no run: leave it out, or give --json")
    if config.teachers:
        raise ConfigError("teachers: an audit compares single teachers; choose one as teacher.finetuned")
    if config.data.validation_fraction is None:
        raise ConfigError(
            "data.validation_fraction is not set: the loss is measured on training rows that are held out, never on "
            "the dev split; set it, for example to 0.2"
        )
    if config.loss.extra_rows and not moves:
        raise ConfigError("loss.extra_rows: the steps that an audit compares are on one batch alone; set it to 0")
    if config.train.patience is not None:
        raise ConfigError("train.patience: an audit takes a run's steps at fixed points; set it to null")
    for name, is_on in {
        "compute.cuda_graphs": config.compute.cuda_graphs,
        "distributed.shard": config.distributed.shard,
    }.items():
        if is_on:
            raise ConfigError(f"{name} = True: an audit puts weights back after each step, and takes none; use false")
    if not settings.stages or not all(0 <= stage < 1 for stage in settings.stages):
        raise ConfigError(f"--stages {_listed(settings.stages)}: expected fractions of the run, from 0 to below 1")
    for option, number in (("--batches", settings.num_batches), ("--probe-rows", settings.num_probe_rows)):
        if number < 2:
            raise ConfigError(f"{option} {number}: expected at least 2")


def audit(config: Config, settings: AuditSettings, report: Callable[[list[Stage]], None]) -> list[Stage]:
    """Trains as `distil.py` would, without a run folder, and measures at each stage; `report` gets what is done so far.

    The teacher is fine-tuned first where it is missing. Raises `ConfigError` as `check_audit` does, and for several
    processes or more probe rows than are held out.
    """
    check_audit(config, settings)
    experiment = Experiment(config.with_values(compare_with=()))
    if experiment.processes.count > 1:
        raise ConfigError(f"an audit takes one process, but {experiment.processes.count} were started")
    experiment.check_pair()
    with experiment.own_settings():
        components, is_stand_in = experiment.prepare(config.method)
        _check_probes(components, settings)
        other = None if settings.other is None else _load_other(experiment.setup, settings.other, components)
    if is_stand_in:
        experiment.fit_teacher(wait=True)
    with experiment.own_settings():
        if is_stand_in:
            components, _ = experiment.prepare(config.method)
        return _Audit(experiment.setup, components, settings, other).run(report)


class _Audit:
    def __init__(self, setup: Setup, components: Components, settings: AuditSettings, other: Teacher | None) -> None:
        config, role = setup.config, setup.config.method
        self.settings, self.title = settings, f"{role} on {setup.task.name}"
        self.train, self.probes = components.data["train"], components.data[VALIDATION]
        student, built = setup.assemble(role, components)
        self.method, self.optimizers = built.method, built.optimizers
        teacher = components.teacher
        assert teacher is not None  # check_audit has seen to it
        self.num_steps = count_steps(self.train, config.train.epochs, config.train.max_steps)
        self.moves_every = {"reptile": config.reptile.every, "lgtm": config.lgtm.every}.get(role, 1)
        mu_until = config.reptile.mu_until if role == "reptile" else 1.0
        self.schedules = build_schedules(self.optimizers, self.train, config.train, mu_until=mu_until)
        setup.processes.seed_dropout(config.seed)
        frozen = copy.deepcopy(teacher)
        if components.epochs:
            frozen.model.load_state_dict(epoch_weights(components.epochs, setup.task)[-1]())
        weights = class_weights(config, self.train.features.labelled, setup.task.label_names, setup.device)
        # The method's own where it has weights, which the student's optimizer holds.
        loss: Any = built.modules.get("loss")
        self.one_step = OneStepAudit(
            method=self.method,
            student=student,
            teacher=teacher,
            student_optimizer=self.optimizers["lr"],
            optimizers=list(self.optimizers.values()),
            loss=loss or build_loss(config, teacher.model, student.model, weights),
            max_grad_norm=config.train.max_grad_norm,
            micro_batch_size=config.train.micro_batch_size,
            frozen=frozen,
            other=other,
            takes_steps=role in TEACHER_MOVES and role != "checkpoints",
        )

    def run(self, report: Callable[[list[Stage]], None]) -> list[Stage]:
        """Trains from stage to stage, and measures at each."""
        stages: list[Stage] = []
        steps, done = steps_from(self.train, 0), 0
        for until in sorted({self._step_at(fraction) for fraction in self.settings.stages}):
            take_steps(self.method, steps, self.schedules, start=done, until=until, title=self.title)
            done = until
            with random_numbers_repeated(torch.device(self.train.device)):  # the run goes on as if unobserved
                stages.append(self._measure(until))
            report(stages)
        return stages

    def _step_at(self, fraction: float) -> int:
        """The steps before a stage: a multiple of those from one move of the teacher to the next."""
        return min(round(fraction * self.num_steps), self.num_steps - 1) // self.moves_every * self.moves_every

    def _measure(self, step: int) -> Stage:
        stage, ahead = Stage(step), steps_from(self.train, step)
        if not any(group["lr"] for group in self.one_step.student_optimizer.param_groups):
            logger.warning(
                "step %d: the learning rate is 0 there, so that no step changes the student: choose a later stage", step
            )
        for index in tqdm(range(self.settings.num_batches), desc=f"auditing at step {step}", disable=None, leave=False):
            rng = np.random.default_rng([step, index])
            rows = np.sort(rng.choice(self.probes.num_rows, size=self.settings.num_probe_rows, replace=False))
            stage.add(rows, self.one_step.measure_rows(next(ahead), self.probes.batch(rows), seed=index))
        return stage


def _check_probes(components: Components, settings: AuditSettings) -> None:
    num_rows = components.data[VALIDATION].num_rows
    if settings.num_probe_rows > num_rows:
        raise ConfigError(
            f"--probe-rows {settings.num_probe_rows}: only {num_rows} training rows are held out; ask for fewer, or "
            "raise data.validation_fraction"
        )


def _load_other(setup: Setup, name: str, components: Components) -> Teacher:
    # The model first: where there is none, its message says what lies there. The names are of a teacher from elsewhere;
    # a run's model says itself what its outputs mean.
    model = load_finetuned(name, setup.task, () if is_model_of_a_run(name) else setup.config.teacher.label_names)
    remedy = "give --other one that reads as the student does"
    check_same_tokenizer(name, load_tokenizer(name), student_source(setup.config), components.tokenizer, remedy=remedy)
    prepare_to_read(setup.config, setup.task, name, model, Tokenizers(components.tokenizer))
    teacher: Any = components.teacher
    compares_more = bool(build_loss(setup.config, teacher.model, components.model).needs)
    if compares_more and (own := _shape(teacher.model)) != (others := _shape(model)):
        raise ConfigError(
            f"--other {name}: it has {others}, the run's teacher {own}, and the loss compares more than logits: take "
            "one of the same shape, or leave the loss's terms on hidden states and attention out"
        )
    prepare_model(model, setup.config, setup.device)
    return Teacher(model, **forward_options(setup.config))


def _shape(model: Any) -> str:
    config = model.config
    return f"{config.num_hidden_layers} layers of width {config.hidden_size} with {config.num_attention_heads} heads"


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
