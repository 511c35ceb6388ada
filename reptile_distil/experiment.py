"""One configuration, run: teacher, student, training, results; then scores and predictions."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from reptile_distil.builders import (
    VALIDATION,
    BuiltMethod,
    build_batches,
    build_lessons,
    build_method,
    build_schedules,
    build_student,
    build_task,
    check_pair,
    check_processes,
    choose_device,
    forward_options,
    prepare_model,
    student_source,
    wider_tokenizer,
)
from reptile_distil.callbacks import RunCallbacks, RunInfo, check_callbacks
from reptile_distil.compute import choose_precision, computing
from reptile_distil.config import Config, MethodName, TrainConfig, load_config
from reptile_distil.data import Batches, tokenize
from reptile_distil.display import RunResults, describe_scores, examination_html, to_html
from reptile_distil.errors import ConfigError, DataError, RunError, RunInUseError
from reptile_distil.evaluation import Examiner, examine_splits, predict_logits, score_logits
from reptile_distil.gradients import random_numbers_repeated
from reptile_distil.graphs import check_graphs
from reptile_distil.history import read_epochs, read_steps
from reptile_distil.interrupts import Interrupts
from reptile_distil.latency import compare_latency
from reptile_distil.memory import explain_out_of_memory, peak_memory
from reptile_distil.metrics import Scores, predictions_from_logits
from reptile_distil.models import (
    Classifier,
    Student,
    Teacher,
    check_length,
    check_same_tokenizer,
    check_vocabulary,
    count_parameters,
    load_finetuned,
    load_pretrained,
    load_tokenizer,
)
from reptile_distil.plots import draw_after_run
from reptile_distil.processes import start_processes
from reptile_distil.recovery import Fingerprints, Recovery
from reptile_distil.runs import Results, RunFolder
from reptile_distil.sharding import whole_copy
from reptile_distil.trackers import check_trackers, tracked
from reptile_distil.training import count_steps, train
from reptile_distil.training_state import weights_fingerprint

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

Role = MethodName | Literal["teacher"]
"""What a run does: one of the methods, or the teacher's fine-tuning."""
TEACHER_MOVES = ("reptile", "metadistil")
"""The methods that change their teacher."""


class Prediction(NamedTuple):
    """What a model says of one text or pair of texts."""

    label: str | float
    """Name of the most probable class; the number itself for regression."""
    probabilities: dict[str, float]
    """Probability by class name; empty for regression."""


class Examination(NamedTuple):
    """A model on a split, row by row and as a whole; `labels` and `scores` are None for a split without labels."""

    predictions: list[Prediction]
    labels: list[str | float] | None
    scores: Scores | None

    def to_tsv(self) -> str:
        """Lines of index, prediction, its probability (empty for regression) and label (empty where unknown)."""
        rows: list[tuple[Any, ...]] = [("index", "prediction", "probability", "label")]
        for index, prediction in enumerate(self.predictions):
            probability = prediction.probabilities.get(str(prediction.label), "")
            rows.append((index, prediction.label, probability, "" if self.labels is None else self.labels[index]))
        return "".join("\t".join(map(str, row)) + "\n" for row in rows)

    def __repr__(self) -> str:
        scores = "no labels" if self.scores is None else describe_scores(self.scores)
        return f"Examination({len(self.predictions):,} rows: {scores})"

    def _repr_html_(self) -> str:
        return examination_html(*self)


class Materials(NamedTuple):
    """What a run trains with."""

    settings: TrainConfig
    model: Any
    """The one that learns, at its start."""
    tokenizer: Any
    data: dict[str, Batches]
    """The training split and each dev split."""
    teacher: Teacher | None

    def fingerprints(self) -> Fingerprints:
        """What identifies each input: when one has changed, an unfinished run cannot go on."""
        fingerprints = {f"{split} split": batches.features.fingerprint() for split, batches in self.data.items()}
        if (companions := self.data["train"].companions) is not None:
            fingerprints["rows beside the train split"] = companions.features.fingerprint()
        if self.teacher is not None:
            fingerprints["teacher"] = weights_fingerprint(self.teacher)
        return fingerprints


class Experiment:
    """One configuration, run.

    Several may live in one process, and one may run inside a callback of another: number format, threads and random
    numbers are set while an experiment computes, and put back. Two at the same time, in two threads, would share them.

    Args:
        config: the configuration.
        callbacks: objects that are told what happens (see `Callback`).

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

    def __init__(self, config: Config, *, callbacks: Sequence[object] = ()) -> None:
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
        self.task = build_task(config)
        runs = Path(config.runs_dir, config.task_name)
        self.folder = RunFolder(config.output_dir or runs / f"{config.method}-seed{config.seed}")
        self.teacher_folder = RunFolder(runs / f"teacher-seed{config.seed}")

    @classmethod
    def from_yaml(cls, path: str | Path, *overrides: str, callbacks: Sequence[object] = ()) -> Experiment:
        """The experiment of a YAML file with `key=value` overrides."""
        return cls(load_config(path, overrides), callbacks=callbacks)

    def fit(self, *, overwrite: bool = False) -> Results:
        """Trains the student with the configured method; returns the results of its run folder.

        A finished run is not run again unless `overwrite`; an unfinished one goes on from its newest valid checkpoint.
        A signal (SIGTERM, Ctrl-C, SIGUSR1) writes a checkpoint and raises `Interrupted`. Where a teacher is needed and
        missing, it is fine-tuned first, into a run folder of its own that all methods share; where another process is
        at that already, this one waits. Raises `RunInUseError` where another process is running in the student's own
        folder.
        """
        return RunResults(self._run_once(self.folder, self.config.method, self._fit_student, overwrite=overwrite))

    def fit_teacher(self, *, overwrite: bool = False, wait: bool = False) -> Results:
        """Fine-tunes `teacher.pretrained`; returns the results of its run folder, as `fit` does.

        Raises `RunInUseError` where another process is running in the teacher's folder; with `wait`, waits for it.
        """
        folder, run = self.teacher_folder, self._fit_teacher
        return RunResults(self._run_once(folder, "teacher", run, overwrite=overwrite, wait=wait))

    def evaluate(self, split: str | None = None, *, model: str | Path | None = None) -> dict[str, Scores]:
        """Scores by split of the trained student, or of `model` (a folder or hub name), on all dev splits or one.

        Raises `DataError` for a split without labels.
        """
        scores = {}
        for name in self.task.dev_splits if split is None else (split,):
            examination = self.examine(name, model=model)
            if examination.scores is None:
                raise DataError(f"task {self.task.name}: split {name} has no labels to score against")
            scores[name] = examination.scores
        return scores

    def examine(self, split: str, *, model: str | Path | None = None) -> Examination:
        """What the trained student, or `model`, says of each row of a split, and its scores where there are labels."""
        classifier, tokenizer = self._load_trained(model)
        batches = build_batches(self.config, self.task, split, tokenizer, self.config.train)
        logits = self._logits(classifier, batches)
        labels = scores = None
        if "label" in batches.features.column_names:
            labels = [self._name_label(label) for label in batches.features["label"]]
            scores = score_logits(logits, batches, self.task.metrics)
        return Examination(self._name_predictions(logits), labels, scores)

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Prediction]:
        """What the trained student says of texts, or of pairs of texts for a pair task, in order."""
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        if any(len(row) != len(self.task.text_columns) for row in rows):
            wanted = "pairs of texts" if self.task.is_pair else "single texts"
            raise DataError(f"task {self.task.name}: expected {wanted}")
        if not rows:
            return []
        classifier, tokenizer = self._load_trained(None)
        columns = dict(zip(("text", "text_pair"), map(list, zip(*rows, strict=True)), strict=False))
        features = tokenize(datasets.Dataset.from_dict(columns), tokenizer, self.config.data.max_length)
        batches = Batches(features, tokenizer, batch_size=self.config.train.eval_batch_size, device=self.device)
        return self._name_predictions(self._logits(classifier, batches))

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
        return to_html([(name, str(value)) for name, value in zip(names, (*own, self._state()), strict=True)])

    def _state(self) -> str:
        """How far the run is, in words."""
        try:
            results = self.folder.read_results(self.config.decisive_values(self.config.method))
        except RunError as error:
            return str(error)
        if results is None:
            return "unfinished" if self.folder.metrics.exists() else "not run yet"
        return "; ".join(f"{split} {describe_scores(scores)}" for split, scores in results["scores"].items())

    def _of_own_run(self, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame:
        self.folder.read_results(self.config.decisive_values(self.config.method))  # another configuration's is refused
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
        decisive = self.config.decisive_values(role)
        finished = partial(self.processes.on_main, lambda: None if overwrite else folder.read_results(decisive))
        results = finished()
        if not results:
            check_trackers(self.config.trackers)
            claimed = self._claimed(folder, wait=wait)
            with self.own_settings(), Interrupts(self.processes, self.device) as interrupts, claimed:
                # Another run may have finished it since.
                results = finished()
                if not results:
                    return run(self.recovery(folder, role, afresh=overwrite), interrupts)
        folder.check_complete(results)
        if not quiet:
            logger.info("%s is finished: nothing to run", folder.path)
        return results

    def recovery(self, folder: RunFolder, role: Role, *, afresh: bool) -> Recovery:
        """Where a run stands in its folder: reads, and writes nothing yet. Raises `RunError` as `Recovery` does."""
        options = self.config.checkpoint.model_dump() | {"device": self.device, "processes": self.processes}
        return Recovery(folder, self.config.decisive_values(role), afresh=afresh, **options)

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
            while self.processes.count > 1:
                try:
                    self.processes.on_main(lambda: held.enter_context(folder.claimed()))
                    break
                except RunInUseError:
                    if not wait:
                        raise
                    time.sleep(1.0)  # the others ask again with it: none may wait longer than processes.TIMEOUT
            yield

    def _fit_student(self, recovery: Recovery, interrupts: Interrupts) -> Results:
        method, config = self.config.method, self.config
        teacher_name = None
        if config.needs_teacher(method):
            if config.teacher.finetuned is None:
                if not self.processes.on_main(self.teacher_folder.results.exists):
                    check_pair(config, self.task)
                self._run_once(
                    self.teacher_folder, "teacher", self._fit_teacher, overwrite=False, wait=True, quiet=True
                )
            teacher_name = config.teacher.finetuned or str(self.teacher_folder.model)
        recovery.start_clock()
        return self._train(method, recovery, interrupts, self.prepare_student(teacher_name))

    def _fit_teacher(self, recovery: Recovery, interrupts: Interrupts) -> Results:
        recovery.start_clock()
        return self._train("teacher", recovery, interrupts, self.prepare_teacher())

    def prepare_student(self, teacher_name: str | None, *, stand_in: bool = False) -> Materials:
        """What the configured method trains with, checked: student and teacher at their start, and data for both.

        `teacher_name` is the folder or hub name of the fine-tuned teacher, None where neither the method nor the
        student's start needs one. As a `stand_in`, it is that of a model which is not fine-tuned yet, and gets a new
        head.
        """
        config = self.config
        model, tokenizer = build_student(config, self.task, None if stand_in else teacher_name)
        teacher, batch_tokenizer = None, tokenizer
        if teacher_name is not None and config.method != "finetune":
            teacher_tokenizer = load_tokenizer(teacher_name)
            check_same_tokenizer(teacher_name, teacher_tokenizer, student_source(config), tokenizer)
            batch_tokenizer = wider_tokenizer(teacher_tokenizer, tokenizer)
            teacher = self._load_teacher(teacher_name, stand_in=stand_in)
            check_vocabulary(teacher_name, teacher.model, teacher_tokenizer)
        data = self._load_data(batch_tokenizer, config.train, for_student=True)
        return Materials(config.train, model, tokenizer, data, teacher)

    def prepare_teacher(self) -> Materials:
        """What the teacher is fine-tuned with, checked."""
        name, settings = self.config.teacher.pretrained, self.config.teacher.train
        model, tokenizer = load_pretrained(name, self.task, seed=self.config.seed), load_tokenizer(name)
        check_vocabulary(name, model, tokenizer)
        return Materials(settings, model, tokenizer, self._load_data(tokenizer, settings, for_student=False), None)

    def assemble(self, role: Role, materials: Materials) -> tuple[Student, BuiltMethod]:
        """The model that learns, on the device, and the method that teaches it."""
        settings, model, _, _, teacher = materials
        check_length(role, model, self.config.data.max_length)
        student = Student(self._placed(model), **forward_options(self.config))
        return student, build_method(self.config, student, teacher, settings, role=role, processes=self.processes)

    def _train(
        self,
        role: Role,
        recovery: Recovery,
        interrupts: Interrupts,
        materials: Materials,
    ) -> Results:
        """Trains the model, from its start or from a checkpoint, and finishes the run folder."""
        settings, model, tokenizer, data, teacher = materials
        folder, settings_key = recovery.folder, "teacher.train" if role == "teacher" else "train"
        batches, dev = data["train"], {split: data[split] for split in self.task.dev_splits}
        # What is looked at after each epoch, and chooses the best one; without validation rows the dev splits.
        watched = {VALIDATION: data[VALIDATION]} if VALIDATION in data else dev
        student, (method, optimizers) = self.assemble(role, materials)
        teacher_moves = role in TEACHER_MOVES
        recovery.start(self.config.to_yaml(), materials.fingerprints())
        logger.info(
            "%s on %s: %s parameters, %d training rows, %d steps, into %s",
            "fine-tuning the teacher" if role == "teacher" else role,
            self.task.name,
            f"{count_parameters(model):,}",
            batches.num_rows,
            count_steps(batches, settings.epochs, settings.max_steps),
            folder.path,
        )
        # The teacher is examined as it was at the start, before a checkpoint moves it.
        examiner = Examiner(
            student, watched, self.task.metrics, teacher=teacher, teacher_moves=teacher_moves, processes=self.processes
        )
        unseen = {} if watched is dev else dev
        teacher_start = examiner.teacher_start | self._score(teacher, unseen)
        self.processes.seed_dropout(self.config.seed)
        mu_until = self.config.reptile.mu_until if role == "reptile" else 1.0
        schedules = build_schedules(optimizers, batches, settings, mu_until=mu_until)
        modules = {"student": student, **({"teacher": teacher} if teacher is not None and teacher_moves else {})}
        progress = recovery.restore(modules, optimizers, schedules)
        run = RunInfo(
            task=self.task.name,
            method=role,
            seed=self.config.seed,
            folder=folder.path,
            num_steps=count_steps(batches, settings.epochs, settings.max_steps),
            config=self.config.model_dump(mode="json"),
        )
        trackers = self.config.trackers if self.processes.is_main else ()

        def save_predictions(predictions: Mapping[str, NDArray[Any]]) -> None:
            for split, of_split in predictions.items():
                folder.save_predictions(split, of_split, data[split].features["label"])

        def keep_best() -> None:
            self._save_model(folder, model, tokenizer)
            self.processes.on_main(lambda: save_predictions(examiner.predictions))

        sparing = explain_out_of_memory(f"{settings_key}.micro_batch_size or data.max_length")
        with sparing, tracked(trackers, run, step=progress.step) as tellers:
            told = (*self.callbacks, *tellers)
            callbacks = RunCallbacks(told, run, device=self.device, processes=self.processes)
            outcome = train(
                method,
                batches,
                num_epochs=settings.epochs,
                max_steps=settings.max_steps,
                schedules=schedules,
                evaluate=explain_out_of_memory(f"{settings_key}.eval_batch_size")(examiner.examine),
                keep_best=keep_best,
                log=lambda record: folder.log(record) if self.processes.is_main else None,
                patience=settings.patience,
                log_every=settings.log_every,
                show_progress=self.processes.is_main,
                title=f"{role} on {self.task.name}",
                progress=progress,
                checkpoints=recovery,
                interrupts=interrupts,
                callbacks=callbacks,
            )
        peak = peak_memory(self.device)  # the training's, before the best student and the latency are measured
        scores = outcome.best["scores"]
        if unseen:
            best, _ = self._load_trained(folder.model)
            dev_scores, predictions = examine_splits(best, unseen, self.task.metrics, self.processes)
            self.processes.on_main(lambda: save_predictions(predictions))
            scores = scores | dev_scores
        results: Results = {
            "task": self.task.name,
            "method": role,
            "seed": self.config.seed,
            "scores": scores,
            "score": outcome.best["score"],
            "best_epoch": outcome.best["epoch"],
            "num_steps": outcome.num_steps,
            "num_train_rows": batches.num_rows,
            "num_parameters": count_parameters(model),
            "train_seconds": outcome.train_seconds,
            "examples_per_second": outcome.num_examples / outcome.train_seconds,
            "num_processes": self.processes.count,
            "peak_memory_bytes": peak,
        }
        if outcome.stopped_by is not None:
            results["stopped_by"] = outcome.stopped_by
        if teacher is not None:
            results["teacher"] = {
                "num_parameters": count_parameters(teacher),
                "scores_at_start": teacher_start,
                "scores_at_end": outcome.last["teacher_scores"] | self._score(teacher, unseen),
            }
            if not self.config.distributed.shard:  # a process cannot time what it has only a part of
                length = self.config.data.max_length
                results["latency"] = compare_latency(teacher, student, length=length, device=self.device)
        results = recovery.finish(results)
        if self.processes.is_main:
            draw_after_run(folder.path)
        callbacks.on_train_end(results)
        return results

    def _load_data(self, tokenizer: Any, settings: TrainConfig, *, for_student: bool) -> dict[str, Batches]:
        """Batches of the training split and of each dev split."""
        if "train" not in self.task.splits:
            raise DataError(f"task {self.task.name} has no train split to train on")
        if for_student:
            train = build_lessons(self.config, self.task, tokenizer)
        else:
            train = build_batches(self.config, self.task, "train", tokenizer, settings, for_training=True)
        splits = (self.task.selection_split, *self.task.dev_splits[1:])
        if self.config.data.validation_fraction is not None:
            splits = (VALIDATION, *splits)
        dev = {split: build_batches(self.config, self.task, split, tokenizer, settings) for split in splits}
        return {"train": train, **dev}

    def _score(self, model: Classifier | None, splits: Mapping[str, Batches]) -> dict[str, Scores]:
        """The model's scores by split; none where there is no model."""
        return {} if model is None else examine_splits(model, splits, self.task.metrics, self.processes)[0]

    def _placed(self, model: Any) -> Any:
        """The model on the device, the same on every process, or this process's part of it."""
        self.processes.share_weights(model, self.device)
        prepare_model(model, self.config, self.device)
        return model

    def _save_model(self, folder: RunFolder, model: Any, tokenizer: Any) -> None:
        whole = whole_copy(model) if self.config.distributed.shard else model
        self.processes.on_main(lambda: folder.save_model(whole, tokenizer))

    def _load_teacher(self, name: str, *, stand_in: bool) -> Teacher:
        if stand_in:
            model = load_pretrained(name, self.task, seed=self.config.seed)
        else:
            model = load_finetuned(name, self.task, self.config.teacher.label_names)
        check_length(name, model, self.config.data.max_length)
        return Teacher(self._placed(model), **forward_options(self.config))

    def _load_trained(self, model: str | Path | None) -> tuple[Classifier, Any]:
        if model is None and not self.folder.model.is_dir():
            raise RunError(f"{self.folder.path}: no trained model yet; run fit() or scripts/distil.py first")
        name = str(model or self.folder.model)
        classifier = load_finetuned(name, self.task, self.config.teacher.label_names)
        prepare_model(classifier, self.config, self.device, may_compile=False)
        tokenizer = load_tokenizer(name)
        check_vocabulary(name, classifier, tokenizer)
        return Classifier(classifier, **forward_options(self.config)), tokenizer

    def _name_predictions(self, logits: NDArray[np.float32]) -> list[Prediction]:
        if self.task.is_regression:
            return [Prediction(float(number), {}) for number in predictions_from_logits(logits)]
        probabilities = torch.from_numpy(logits).softmax(dim=1).tolist()
        named = [dict(zip(self.task.label_names, row, strict=True)) for row in probabilities]
        return [Prediction(max(row, key=row.__getitem__), row) for row in named]

    def _name_label(self, label: float) -> str | float:
        return float(label) if self.task.is_regression else self.task.label_names[int(label)]
