"""One configuration, run: teacher, student, training, results; then scores and predictions."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from reptile_distil.builders.plugins import check_plugins
from reptile_distil.config.config import Config, load_config
from reptile_distil.config.sections import Role
from reptile_distil.data.batches import Batches, tokenize
from reptile_distil.data.features import text_rows
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError, DataError, RunError, RunInUseError
from reptile_distil.experiments.build_method import check_processes
from reptile_distil.experiments.build_task import build_task, scored_splits
from reptile_distil.experiments.finished_run import (
    check_model,
    check_place,
    open_finished_run,
    read_finished_run,
    tidy_finished_run,
)
from reptile_distil.experiments.run import Run
from reptile_distil.experiments.setup import Components, Setup, build_batches, check_named_teachers, check_pair
from reptile_distil.experiments.teachers import teacher_epochs
from reptile_distil.models.classifier import Classifier
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.history import read_epochs, read_steps
from reptile_distil.runs.records import Results
from reptile_distil.runs.results import (
    Prediction,
    RunResults,
    SplitPredictions,
    name_label,
    name_predictions,
)
from reptile_distil.runs.resume import Recovery
from reptile_distil.runtime.compute import choose_device, choose_precision, computing
from reptile_distil.runtime.interrupts import Interrupts
from reptile_distil.runtime.processes import start_processes
from reptile_distil.runtime.randomness import random_numbers_repeated
from reptile_distil.runtime.text_tables import html_table, list_scores
from reptile_distil.training.callbacks import check_callbacks
from reptile_distil.training.cuda_graphs import check_graphs
from reptile_distil.training.evaluation import predict_logits, score_logits
from reptile_distil.training.metrics import Scores
from reptile_distil.training.trackers import check_trackers

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class Experiment:
    """One configuration, run.

    Several may live in one process, and one may run inside a callback of another: number format, threads and random
    numbers are set while an experiment computes, and put back. Two at the same time, in two threads, would share them.

    Args:
        config: the configuration.
        callbacks: objects whose hooks are called as the runs go (see `Callback`).
        task: what the configuration describes, where some of its splits are not to be looked at; None: all of it.

    >>> experiment = Experiment.from_yaml("configs/quickstart.yaml", "method=finetune", "train.max_steps=3")
    >>> experiment
    Experiment(finetune on toy-sentence, seed 42: not run yet)
    >>> results = experiment.fit()  # writes runs/toy-sentence/finetune-seed42
    >>> results["num_steps"]
    3
    >>> experiment.history.columns[:3].tolist()
    ['step', 'train_loss', 'train_task_loss']
    >>> experiment.evaluate() == results["scores"]
    True
    >>> experiment.predict(["a good film"])[0].probabilities.keys()
    dict_keys(['negative', 'positive'])
    """

    def __init__(self, config: Config, *, callbacks: Sequence[object] = (), task: Task | None = None) -> None:
        if not isinstance(config, Config):
            raise TypeError(f"Experiment takes a Config, not {config!r}: for a file Experiment.from_yaml(path)")
        self.callbacks = check_callbacks(callbacks)
        self.device = choose_device(config.device)
        self.processes = start_processes(self.device)
        if config.distributed.shard and self.processes.count == 1:
            raise ConfigError(
                "distributed.shard = True: takes several processes to cut the models over; "
                "start them with torchrun or accelerate launch"
            )
        check_processes(config, self.processes)
        if config.compute.cuda_graphs:
            check_graphs(self.device, self.processes.count)
        self._precision = precision = choose_precision(config.precision, self.device)
        # A run's files say what `auto` came to.
        self.config = config = config.with_values(precision=precision) if config.precision == "auto" else config
        self.task = task or build_task(config)
        self.setup = Setup(config, self.task, self.device, self.processes)
        self.folder = RunFolder(config.student_run)
        self.teacher_folder = RunFolder(
            config.teacher_run,
            remedy="give another runs_dir, or fine-tune the teacher again with scripts/finetune.py --overwrite",
        )

    @classmethod
    def from_yaml(cls, path: str | Path, *overrides: str, callbacks: Sequence[object] = ()) -> Experiment:
        """The experiment of a YAML file with `key=value` overrides."""
        return cls(load_config(path, overrides), callbacks=callbacks)

    def fit(self, *, overwrite: bool = False) -> RunResults:
        """Trains the student with the configured method; returns what results.json in its run folder holds.

        A finished run is not run again unless `overwrite`; an unfinished one goes on from its newest valid checkpoint.
        A signal (SIGTERM, Ctrl-C, SIGUSR1) writes a checkpoint and raises `Interrupted`. Where a teacher is needed and
        missing, it is fine-tuned first, into a run folder of its own that all methods share; where another process is
        at that already, this one waits. Raises `RunInUseError` where another process is running in the student's own
        folder, and `RunError` where a finished run has lost its model.
        """
        results = self._run_once(self.folder, self.config.method, self._fit_student, overwrite=overwrite)
        return RunResults(results.to_dict())

    def fit_teacher(self, *, overwrite: bool = False, wait: bool = False) -> RunResults:
        """Fine-tunes `teacher.pretrained`; returns what results.json in its run folder holds, as `fit` does.

        Raises `RunInUseError` where another process is running in the teacher's folder; with `wait`, waits for it.
        """
        folder, run = self.teacher_folder, self._fit_teacher
        return RunResults(self._run_once(folder, "teacher", run, overwrite=overwrite, wait=wait).to_dict())

    def check_run(self, *, overwrite: bool = False) -> None:
        """As `check_pair`, and that what lies in the student's folder is a run that `fit` would go on with or read.

        Raises `RunError` where it is not, before a teacher is fine-tuned for hours.
        """
        folder, method = self.folder, self.config.method
        check_place(folder, self.config, method)
        if overwrite or self.processes.on_main(lambda: self.open_whole(folder, method)) is None:
            self.recovery(folder, method, afresh=overwrite)
        self.check_pair()

    def check_pair(self) -> None:
        """Checks, before a teacher is fine-tuned for hours, that teacher and student are available and fit each other.

        So is the place of the student's run. Code of the user's own is imported. Where no teacher is to be
        fine-tuned, only those that are named are looked for, unless the student's run is finished; of one that is
        finished, asks for its model, and for its epochs if they are to teach. Raises `RunError` as `check_place` does,
        and `ModelError`, `LayerMapError` and whatever else `fit` would raise for such a pair once the teacher is
        trained.
        """
        check_place(self.folder, self.config, self.config.method)
        self.check_plugins()
        is_needed = self.config.needs_teacher(self.config.method) and self.config.teacher.finetuned is None
        if is_needed and not self.processes.on_main(self.teacher_folder.results.exists):
            check_pair(self.config, self.task)
        elif is_needed:
            self.processes.on_main(lambda: check_model(self.teacher_folder))
            self.processes.on_main(lambda: teacher_epochs(self.config, stand_in=False))
        elif not self.processes.on_main(lambda: self.folder.is_finished):
            check_named_teachers(self.config, self.task)

    def check_plugins(self) -> None:
        """Imports the method and the loss where they are the user's own. Raises `ConfigError` as `load_method` does."""
        check_plugins(self.config, self.processes.count)

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The dev splits; without any, the training rows that are held out (`data.validation_fraction`)."""
        return scored_splits(self.config, self.task)

    def evaluate(self, split: str | None = None, *, model: str | Path | None = None) -> dict[str, Scores]:
        """Scores by split of the trained student, or of `model` (a folder or hub name), on all dev splits or one.

        Raises `DataError` for a split without labels; without a `model`, `RunError` where this experiment's own run is
        not finished, or was made with other settings.
        """
        scores = {}
        for name in self.scored_splits if split is None else (split,):
            split_predictions = self.predict_split(name, model=model)
            if split_predictions.scores is None:
                raise DataError(f"task {self.task.name}: split {name} has no labels to score against")
            scores[name] = split_predictions.scores
        return scores

    def predict_split(self, split: str, *, model: str | Path | None = None) -> SplitPredictions:
        """Predictions of the trained student, or of `model`, for each row of a split; scores where there are labels.

        Raises `RunError` as `evaluate` does.
        """
        classifier, tokenizer = self._load_trained(model)
        batches = build_batches(self.config, self.task, split, tokenizer, self.config.train)
        logits = self._logits(classifier, batches)
        labels = scores = None
        if "label" in batches.features.column_names:
            labels = [name_label(label, self.task) for label in batches.features["label"]]
            scores = score_logits(logits, batches, self.task.metrics)
        return SplitPredictions(name_predictions(logits, self.task), labels, scores, self.task.label_separator)

    def predict(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], *, model: str | Path | None = None
    ) -> list[Prediction]:
        """Predictions of the trained student, or of `model`, for texts, or for pairs of them for a pair task, in order.

        Raises `DataError` for anything else, and `RunError` as `evaluate` does.
        """
        import datasets

        rows = text_rows(texts, self.task)
        if not rows:
            return []
        classifier, tokenizer = self._load_trained(model)
        columns = dict(zip(("text", "text_pair"), map(list, zip(*rows, strict=True)), strict=False))
        features = tokenize(datasets.Dataset.from_dict(columns), tokenizer, self.config.data.max_length)
        batches = Batches(features, tokenizer, batch_size=self.config.train.eval_batch_size, device=self.device)
        return name_predictions(self._logits(classifier, batches), self.task)

    @property
    def history(self) -> pd.DataFrame:
        """One row for each epoch of the run so far, by number: `dev_accuracy`, `train_loss` and so on.

        With a teacher also `teacher_dev_accuracy` and `agreement`. See `history.read_epochs`, which reads any run's.
        Raises `RunError` where there is no run yet, or one of another configuration.
        """
        return self._of_own_run(read_epochs)

    @property
    def step_history(self) -> pd.DataFrame:
        """One row for each logged step (`train.log_every`): its losses and learning rates. Raises as `history`."""
        return self._of_own_run(read_steps)

    def __repr__(self) -> str:
        return f"Experiment({self.config.method} on {self.task.name}, seed {self.config.seed}: {self._state()})"

    def _repr_html_(self) -> str:
        names = ("method", "task", "seed", "folder", "device", "precision", "state")
        own = (self.config.method, self.task.name, self.config.seed, self.folder.path, self.device, self._precision)
        return html_table([(name, str(value)) for name, value in zip(names, (*own, self._state()), strict=True)])

    def _state(self) -> str:
        """How far the run is, in words; the reason where its folder cannot be read."""
        try:
            results = read_finished_run(self.folder, self.config, self.task, self.config.method)
        except RunError as error:
            return str(error)
        if results is None:
            return "unfinished" if self.folder.metrics.exists() else "not run yet"
        return "; ".join(f"{split} {list_scores(scores)}" for split, scores in results.scores.items())

    def _of_own_run(self, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
        # Refuses a run of another configuration.
        read_finished_run(self.folder, self.config, self.task, self.config.method)
        return read(self.folder.path)

    def _logits(self, classifier: Classifier, batches: Batches) -> NDArray[np.float32]:
        with self.own_settings():
            return predict_logits(classifier, batches, self.processes)

    def _run_once(
        self,
        folder: RunFolder,
        role: Role,
        run: Callable[[Recovery, Interrupts], Results],
        *,
        overwrite: bool,
        wait: bool = False,
        quiet: bool = False,
    ) -> Results:
        """The results of a finished run, or else those of `run`, with the folder kept from other processes.

        A finished run is worth a line in the log, unless `quiet`.
        """
        look = partial(self.open_whole, folder, role)
        check_place(folder, self.config, role)
        finished = partial(self.processes.on_main, lambda: None if overwrite else look())
        results = finished()
        if results is None:
            check_trackers(self.config.trackers)
            if role != "teacher":
                self.check_plugins()
            claimed = self._claimed(folder, wait=wait)
            with self.own_settings(), Interrupts(self.processes, self.device) as interrupts, claimed:
                # Another run may have finished it since.
                results = finished()
                if results is None:
                    return run(self.recovery(folder, role, afresh=overwrite), interrupts)
        self.processes.on_main(lambda: tidy_finished_run(folder, self.config))
        if not quiet:
            logger.info("%s is finished: nothing to run", folder.path)
        return results

    def open_whole(self, folder: RunFolder, role: Role) -> Results | None:
        """As `open_finished_run`. Raises `RunError` for a run without its model, too."""
        results = open_finished_run(folder, self.config, self.task, role)
        if results is not None:
            check_model(folder)
        return results

    def folder_for(self, role: Role) -> RunFolder:
        """The folder that a run of this role is written into."""
        return self.teacher_folder if role == "teacher" else self.folder

    def prepare(self, role: Role) -> tuple[Components, bool]:
        """What a run trains with, and whether the pretrained teacher stands in for one that is not fine-tuned yet."""
        config, teacher = self.config, self.teacher_folder
        if role == "teacher":
            return self.setup.prepare_teacher(), False
        if not config.needs_teacher(role):
            return self.setup.prepare_student(None), False
        if config.teacher.finetuned is not None:
            return self.setup.prepare_student(config.teacher.finetuned), False
        if self.open_whole(teacher, "teacher") is not None:
            return self.setup.prepare_student(str(teacher.model)), False
        return self.setup.prepare_student(config.teacher.pretrained, stand_in=True), True

    def recovery(self, folder: RunFolder, role: Role, *, afresh: bool) -> Recovery:
        """Where a run stands in its folder: reads, and writes nothing yet. Raises `RunError` as `Recovery` does."""
        options = self.config.checkpoint.model_dump() | {"device": self.device, "processes": self.processes}
        options["with_graphs"] = self.config.compute.cuda_graphs
        return Recovery(folder, self.config.defining_settings(role), afresh=afresh, **options)

    @contextlib.contextmanager
    def own_settings(self) -> Iterator[None]:
        """What this experiment sets for the whole process, and afterwards the process's own: other experiments' too."""
        random = random_numbers_repeated(torch.device(self.device))
        with computing(self._precision, self.config.num_threads), random:
            yield

    @contextlib.contextmanager
    def _claimed(self, folder: RunFolder, *, wait: bool) -> Iterator[None]:
        """`folder.claimed` by the main process for all of this run's."""
        with contextlib.ExitStack() as held:
            if self.processes.count == 1:
                held.enter_context(folder.claimed(wait=wait))
            said = False
            while self.processes.count > 1:
                try:
                    self.processes.on_main(lambda: held.enter_context(folder.claimed()))
                    break
                except RunInUseError:
                    if not wait:
                        raise
                    if not said:
                        logger.info("waiting for the process that is running in %s", folder.path)
                    said = True
                    time.sleep(1.0)  # the others ask again with it: none may wait longer than processes.TIMEOUT
            yield

    def _fit_student(self, recovery: Recovery, interrupts: Interrupts) -> Results:
        method, config = self.config.method, self.config
        teacher_name = None
        if config.needs_teacher(method):
            if config.teacher.finetuned is None:
                self.check_pair()
                folder, run = self.teacher_folder, self._fit_teacher
                self._run_once(folder, "teacher", run, overwrite=False, wait=True, quiet=True)
            teacher_name = config.teacher.finetuned or str(self.teacher_folder.model)
        recovery.start_clock()
        prepare = partial(self.setup.prepare_student, teacher_name)
        return Run(self.setup, method, prepare, recovery).run(interrupts, self.callbacks)

    def _fit_teacher(self, recovery: Recovery, interrupts: Interrupts) -> Results:
        recovery.start_clock()
        return Run(self.setup, "teacher", self.setup.prepare_teacher, recovery).run(interrupts, self.callbacks)

    def _load_trained(self, model: str | Path | None) -> tuple[Classifier, Any]:
        if model is None:
            self._check_trained()
        return self.setup.load_trained(str(model or self.folder.model))

    def _check_trained(self) -> None:
        """Raises `RunError` where the student is not the one that this configuration trains to the end."""
        model = self.folder.model
        own = RunFolder(self.folder.path, remedy=f"its model is used all the same with model={str(model)!r}")
        if read_finished_run(own, self.config, self.task, self.config.method) is not None:
            check_model(self.folder)
            return
        if model.is_dir():
            raise RunError(
                f"{own.path}: this run is not finished; its best model so far is {model}, which model= takes"
            )
        raise RunError(f"{own.path}: no trained model yet; run fit() or scripts/distil.py first")
