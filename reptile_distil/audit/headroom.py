"""How much would better targets be worth? The same student from several, from labels alone to an oracle's.

All students have one start and take the same number of steps, those with a teacher on the same batches in the same
order; that of the labels alone has batches of labelled rows only. What they learn from is computed before, once for
each training row. They are scored on training rows that are held out, at fixed points of the run, so that no student's
score is the best of several; the teachers' epochs are chosen by the same rows, as in every run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reptile_distil.audit.one_step import steps_from, take_steps
from reptile_distil.config.config import Config
from reptile_distil.config.data_section import TransferConfig
from reptile_distil.data.features import Features
from reptile_distil.errors import ConfigError, DataError
from reptile_distil.experiments.build_method import build_schedules
from reptile_distil.experiments.build_task import VALIDATION, load_rows, warn_of_rows
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.experiments.finished_run import digest_inputs
from reptile_distil.experiments.setup import Components
from reptile_distil.experiments.teachers import TeacherLogits, student_source
from reptile_distil.models.classifier import Teacher, mean_logits
from reptile_distil.models.tokenizer import Tokenizers, load_tokenizer
from reptile_distil.runs.state import weights_fingerprint
from reptile_distil.training.evaluation import predict_logits, predictions_of, score_logits
from reptile_distil.training.loop import count_steps
from reptile_distil.training.metrics import Scores

LABELS, FROZEN, AVERAGED, MORE, ORACLE = "labels", "frozen", "averaged", "more_labels", "oracle"

_ONLY_OF = {"times": MORE, "num_teachers": AVERAGED}
"""Of `HeadroomSettings`, those that matter to the students of one kind of targets alone."""

Logits = NDArray[np.float32]


class HeadroomSettings(NamedTuple):
    """Which targets there are besides the frozen teacher's, and where students are scored."""

    times: int = 8
    """The better informed teacher is fine-tuned on so many times the labels, in as many times the steps; on rows that
    the student has without labels, so that it was told what it says of these."""
    num_teachers: int = 3
    """How many teachers are averaged: the frozen one, and those of the next seeds."""
    num_points: int = 5
    """At how many points of the run, evenly spread, the student is scored; the last one counts."""


class Point(NamedTuple):
    """A student at one point of its run."""

    step: int
    train_seconds: float
    """Spent on steps so far; on targets and scores apart from these."""
    scores: Scores
    """On the held-out rows, as fractions."""


@dataclass(frozen=True)
class Measured:
    """The student of one kind of targets."""

    targets: str
    """labels, frozen, averaged, more_labels or oracle."""
    num_labelled_rows: int
    num_transfer_rows: int
    teacher_scores: Scores | None
    """Of whoever gave the targets, on the held-out rows; None for labels and oracle."""
    points: tuple[Point, ...]
    predictions: NDArray[Any]
    """(N,) or (N, C) what the student says of each held-out row at the end."""
    references: NDArray[Any]
    """Their labels."""

    def to_json(self) -> dict[str, Any]:
        """As values of JSON."""
        arrays = {"predictions": self.predictions.tolist(), "references": self.references.tolist()}
        return dataclasses.asdict(self) | {"points": [point._asdict() for point in self.points]} | arrays

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Measured:
        """From what `to_json` gave. Raises `ValueError`, `TypeError` and `KeyError` for anything else."""
        points = tuple(Point(**point) for point in values["points"])
        steps = [point.step for point in points]
        if not steps or steps != sorted(set(steps)):
            raise ValueError("points: expected at least one, and ascending steps")
        of_teacher = values["teacher_scores"]
        for scores in (*(point.scores for point in points), *(() if of_teacher is None else (of_teacher,))):
            if not scores or not all(type(score) in (int, float) for score in dict(scores).values()):
                raise ValueError("scores: expected a number by each name")
        arrays = {name: np.asarray(values[name]) for name in ("predictions", "references")}
        predictions, references = arrays.values()
        if predictions.shape != references.shape or not references.ndim or not references.size:
            raise ValueError("predictions and references: expected one of each for every row")
        if any(array.dtype.kind not in "biuf" for array in arrays.values()):
            raise ValueError("predictions and references: expected numbers")
        return cls(**{**values, "points": points, **arrays})


def check_headroom(config: Config, settings: HeadroomSettings) -> None:
    """Raises `ConfigError` for what cannot be measured, before anything is loaded."""
    if config.method != "kd":
        raise ConfigError(
            f"method = {config.method!r}: headroom is that of kd, whose teacher stays; give method=kd, or in a table "
            "methods=[kd]"
        )
    if config.output_dir is not None:
        raise ConfigError("output_dir has no effect on headroom, which has several students: give runs_dir")
    if config.data.validation_fraction is None:
        raise ConfigError(
            "data.validation_fraction is not set: students are scored on training rows that are held out, never on the "
            "dev split; set it, for example to 0.2"
        )
    if config.teachers or config.teacher.finetuned is not None:
        name = "teachers" if config.teachers else "teacher.finetuned"
        raise ConfigError(f"{name}: headroom fine-tunes its teachers itself, on known labels; leave it out")
    if config.loss.hidden_terms or config.loss.name is not None:
        terms = " and ".join(config.loss.hidden_terms or ("loss.name",))
        raise ConfigError(f"{terms}: an oracle has logits alone; leave out what compares more")
    for name, is_on in {
        "loss.extra_rows": config.loss.extra_rows > 0,
        "compute.cuda_graphs": config.compute.cuda_graphs,
        "distributed.shard": config.distributed.shard,
    }.items():
        if is_on:
            raise ConfigError(f"{name}: headroom is measured in plain steps of one process; leave it out")
    if config.train.patience is not None:
        raise ConfigError("train.patience: all students take the same number of steps; set it to null")
    if config.seed + settings.num_teachers > 2**63:
        raise ConfigError(f"seed = {config.seed}: the averaged teachers have the next seeds; give a smaller one")
    if not config.loss.alpha:
        raise ConfigError("loss.alpha = 0 leaves the targets out of the loss: there is nothing to compare")
    for option, number, least in (
        ("--times", settings.times, 2),
        ("--teachers", settings.num_teachers, 2),
        ("--points", settings.num_points, 1),
    ):
        if number < least:
            raise ConfigError(f"{option} {number}: expected at least {least}")


class Headroom:
    """Measures one configuration, a student after the other.

    Raises `ConfigError` as `check_headroom` does, and for several processes.
    """

    def __init__(self, config: Config, settings: HeadroomSettings) -> None:
        check_headroom(config, settings)
        self.config, self.settings = config.with_values(compare_with=()), settings
        self.experiment = Experiment(self.config)
        if self.experiment.processes.count > 1:
            raise ConfigError(f"headroom takes one process, but {self.experiment.processes.count} were started")
        if self.experiment.task.is_regression and config.loss.regression == "none":
            raise ConfigError("loss.regression = none: the targets have no part in the loss of a regression; use mse")

    @property
    def targets(self) -> tuple[str, ...]:
        """What the students learn from: a teacher with more labels only where some are hidden from the others."""
        more = (MORE,) if self.config.data.transfer.hides_labels else ()
        return (FROZEN, LABELS, AVERAGED, *more, ORACLE)

    def fit_teacher(self) -> None:
        """Fine-tunes the frozen teacher where it is missing; comes before all else.

        Raises `DataError` where there are too few rows for a teacher with more labels.
        """
        self.experiment.check_pair()
        if lack := self.lack_of_rows():
            raise DataError(lack)
        self.experiment.fit_teacher(wait=True)

    def decisive_settings(self, targets: str) -> dict[str, Any]:
        """The settings that decide what is measured of the student of these targets."""
        return keep_decisive(self.config.defining_settings("kd") | self.settings._asdict(), targets)

    def inputs(self) -> dict[str, str]:
        """Digests of the files that decide what is measured, once the frozen teacher is there."""
        return digest_inputs(self.config, self.experiment.task, "kd")

    def measure(self, targets: str) -> Measured:
        """The student of these targets."""
        components, scores = self.prepare(targets)
        with self.experiment.own_settings():
            return self._train(targets, components, scores)

    def prepare(self, targets: str) -> tuple[Components, Scores | None]:
        """What the student of these targets trains with, and its teacher's scores on the held-out rows, if it has one.

        Teachers that are missing are fine-tuned, into run folders of their own. The training batches bring the targets
        as `teacher_logits`.
        """
        with self.experiment.own_settings():
            components = self._prepare(self.experiment)
            if targets == LABELS:
                return self._prepare(Experiment(self._of_labels(components))), None
        teachers = self._fit_teachers(targets, components)
        with self.experiment.own_settings():
            scores = self._give_logits(components, teachers, mix_in_labels=targets == ORACLE)
        return components, None if targets == ORACLE else scores

    def _prepare(self, experiment: Experiment) -> Components:
        """What a student of the configuration trains with; it starts as it would under the frozen teacher."""
        return experiment.setup.prepare_student(str(self.experiment.teacher_folder.model))

    def _of_labels(self, components: Components) -> Config:
        """The student without a teacher, for as many steps as with one."""
        num_steps = self._num_steps(components)  # an epoch has one at least, so that max_steps decides
        train = self.config.train.model_dump() | {"epochs": num_steps, "max_steps": num_steps}
        return self.config.with_values(method="finetune", train=train)

    def _num_steps(self, components: Components) -> int:
        return count_steps(components.data["train"], components.settings.epochs, components.settings.max_steps)

    def _fit_teachers(self, targets: str, components: Components) -> list[Experiment]:
        """The experiments whose teachers give the targets, each fine-tuned by now."""
        teachers = [self.experiment]
        if targets == MORE:
            teachers = [self._with_more_labels(components.data["train"].num_labelled_rows)]
        elif targets == AVERAGED:
            seeds = range(self.config.seed, self.config.seed + self.settings.num_teachers)
            teachers = [Experiment(self.config.with_values(seed=seed)) for seed in seeds]
        for teacher in teachers:
            teacher.fit_teacher(wait=True)
        return teachers

    def lack_of_rows(self) -> str:
        """A sentence where there are too few rows for a teacher with more labels; "" where there are enough.

        Held-out texts that some student or teacher learns from are named in the log.
        """
        transfer, times = self.config.data.transfer, self.settings.times
        if not transfer.hides_labels:
            return ""
        tokenizers = Tokenizers(load_tokenizer(self.config.teacher.pretrained))
        few, every = (self._load_rows(config, tokenizers) for config in (self.config, self._with_all_labels()))
        probes = load_rows(self.config, self.experiment.task, VALIDATION, tokenizers, for_training=False)
        warn_of_rows(self.config, self.experiment.task, every, {VALIDATION: probes})
        needed = transfer.skip + (1 + times) * len(few)
        if needed <= len(every):
            return ""
        return (
            f"--times {times}: {len(few)} labels, and {times} times as many on other rows, take {needed} training "
            f"rows, but there are {len(every)}: give a smaller --times, or fewer data.transfer.labelled_rows"
        )

    def _with_more_labels(self, num_labelled: int) -> Experiment:
        """The same on other rows, more of them with labels."""
        transfer, times = self.config.data.transfer, self.settings.times
        hidden = {"fraction": None, "labelled_rows": times * num_labelled, "skip": transfer.skip + num_labelled}
        data = self.config.data.model_dump() | {"transfer": transfer.model_dump() | hidden}
        runs = Path(self.config.runs_dir, f"labels-times-{times}")
        return Experiment(self.config.with_values(data=data, runs_dir=str(runs)))

    def _give_logits(self, components: Components, experiments: Sequence[Experiment], *, mix_in_labels: bool) -> Scores:
        """Gives the training batches the targets as logits; returns the teachers' scores on the held-out rows."""
        train, probes = components.data["train"], components.data[VALIDATION]
        of_train, of_probes = [], []
        for experiment in experiments:
            teacher = self._prepare_with(experiment)
            kept = TeacherLogits(self.experiment.setup, teacher, weights_fingerprint(teacher))
            passes = kept.passes_over(train)
            of_train.append(kept.of(passes, train.features.fingerprint(), title="teacher's logits")[0])
            of_probes.append(kept.of(probes, probes.features.fingerprint())[0])
        if mix_in_labels:
            of_train.append(label_logits(self._true_labels(train.features), of_train[0]))
        train.teacher_logits = self._mean(of_train, train.features)
        return score_logits(self._mean(of_probes, probes.features), probes, self.experiment.task.metrics)

    def _prepare_with(self, experiment: Experiment) -> Teacher:
        teacher = self.experiment.setup.prepare_student(str(experiment.teacher_folder.model)).teacher
        assert teacher is not None  # check_headroom has seen to the method
        return teacher

    def _mean(self, logits: Sequence[Logits], rows: Features) -> Logits:
        """(N, C) logits of the mean probabilities at the loss's temperature."""
        stacked = torch.from_numpy(np.stack(logits)).double()
        mean = mean_logits(stacked, temperature=self.config.loss.temperature, multi_label=rows.has_label_sets)
        averaged: Logits = mean.float().numpy()
        return averaged

    def _true_labels(self, rows: Features) -> NDArray[Any]:
        """The labels of the rows, those that are hidden too; of files, as missing as they are."""
        labels, hides = rows.labels, self.config.data.transfer.hides_labels
        assert labels is not None  # training rows have labels
        if rows.is_labelled is None or not hides:
            return labels
        every = self._load_rows(self._with_all_labels(), Tokenizers(load_tokenizer(student_source(self.config))))
        assert every.labels is not None
        place = {row: index for index, row in enumerate(every.row_ids.tolist())}
        true: NDArray[Any] = every.labels[[place[row] for row in rows.row_ids.tolist()]]
        return true

    def _with_all_labels(self) -> Config:
        return self.config.with_values(data={"transfer": TransferConfig()})

    def _load_rows(self, config: Config, tokenizers: Tokenizers) -> Features:
        return load_rows(config, self.experiment.task, "train", tokenizers, for_training=True)

    def _train(self, targets: str, components: Components, teacher_scores: Scores | None) -> Measured:
        """Trains the student on what the batches bring, and scores it on the way."""
        role = "finetune" if targets == LABELS else "kd"
        experiment, train, probes = self.experiment, components.data["train"], components.data[VALIDATION]
        student, built = experiment.setup.assemble(role, components)
        schedules = build_schedules(built.optimizers, train, components.settings)
        experiment.processes.seed_dropout(self.config.seed)
        title = f"the student of {targets} on {experiment.task.name}"
        num_steps, steps, points, done, seconds = self._num_steps(components), steps_from(train, 0), [], 0, 0.0
        for until in spread(num_steps, self.settings.num_points):
            started = time.perf_counter()
            take_steps(built.method, steps, schedules, start=done, until=until, title=title)
            done, seconds = until, seconds + time.perf_counter() - started
            logits = predict_logits(student, probes)
            points.append(Point(done, round(seconds, 1), score_logits(logits, probes, experiment.task.metrics)))
        return Measured(
            targets,
            train.num_labelled_rows,
            train.num_transfer_rows,
            teacher_scores,
            tuple(points),
            predictions_of(logits, probes),
            np.asarray(probes.features["label"]),
        )


def keep_decisive(settings: Mapping[str, Any], targets: str) -> dict[str, Any]:
    """Of settings, those that matter to the student of these targets."""
    return {key: value for key, value in settings.items() if _ONLY_OF.get(key, targets) == targets}


def spread(num_steps: int, num_points: int) -> list[int]:
    """Numbers of steps, evenly spread, the last one all of them.

    >>> spread(10, 4)
    [3, 5, 8, 10]
    """
    return sorted({-(-num_steps * point // num_points) for point in range(1, num_points + 1)})


def label_logits(labels: NDArray[Any], like: Logits) -> Logits:
    """Labels as the logits (N, C) of one who is sure: plus or minus infinity, or the values where C is 1.

    A row whose label is missing has those of `like`.
    """
    logits = np.array(like)
    if labels.ndim == 2:
        given = ~np.isnan(labels).any(axis=1)
        logits[given] = np.where(labels[given] > 0, np.inf, -np.inf)
    elif logits.shape[1] == 1:
        given = ~np.isnan(labels)
        logits[given, 0] = labels[given]
    else:
        given = labels >= 0
        logits[given] = np.where(np.arange(logits.shape[1]) == labels[given, None], 0.0, -np.inf)
    return logits
