"""One run of a method, from its components to the results in its folder."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from reptile_distil.builders.plugins import describe_plugin, plugins_of
from reptile_distil.config.sections import Role
from reptile_distil.errors import RunError
from reptile_distil.experiments.build_method import build_schedules
from reptile_distil.experiments.build_task import VALIDATION
from reptile_distil.experiments.finished_run import digest_inputs
from reptile_distil.experiments.setup import Components, Setup
from reptile_distil.experiments.teachers import TeacherLogits, keeps_training_logits, measure_latency
from reptile_distil.models.classifier import Classifier, Student, Teacher, count_parameters
from reptile_distil.plots.run import draw_after_run
from reptile_distil.runs.records import Results
from reptile_distil.runs.results import weak_teacher
from reptile_distil.runs.resume import Fingerprints, Recovery
from reptile_distil.runs.state import weights_fingerprint
from reptile_distil.runtime.interrupts import Interrupts
from reptile_distil.runtime.measuring import explain_out_of_memory, free_memory, peak_memory, reset_peak_memory
from reptile_distil.training.callbacks import RunCallbacks, RunInfo
from reptile_distil.training.evaluation import Evaluator, predict_splits, predictions_of, score_splits
from reptile_distil.training.loop import LoopSettings, Method, Outcome, Progress, TrainingLoop, count_steps
from reptile_distil.training.metrics import Scores, chance_scores
from reptile_distil.training.records import EpochRecord, Evaluation, StepRecord
from reptile_distil.training.trackers import tracked

logger = logging.getLogger(__name__)


class Run:
    """A run of a method in its folder, from its start or from its newest checkpoint.

    Args:
        setup: configuration, task, device and processes.
        role: what the run does.
        prepare: returns what it trains with, read from its files.
        recovery: its folder and checkpoints.

    Raises `RunError` where a file was replaced while it was read.
    """

    # Made by `run`, in this order.
    student: Student
    method: Method
    optimizers: dict[str, Optimizer]
    modules: Mapping[str, Any]
    moves_teacher: bool
    fingerprints: Fingerprints
    plugins: dict[str, dict[str, str | None]]
    evaluator: Evaluator
    teacher_start: dict[str, Scores]
    teacher_facts: dict[str, Any]
    schedules: dict[str, LRScheduler]
    progress: Progress

    def __init__(self, setup: Setup, role: Role, prepare: Callable[[], Components], recovery: Recovery) -> None:
        self.setup, self.role, self.recovery = setup, role, recovery
        self.inputs = setup.processes.on_main(lambda: digest_inputs(setup.config, setup.task, role))
        self.components = components = prepare()
        setup.processes.on_main(self._check_inputs)
        self.config, self.task, self.processes = setup.config, setup.task, setup.processes
        self.folder = recovery.folder
        self.batches = components.data["train"]
        dev = {split: components.data[split] for split in self.task.dev_splits}
        # Evaluated after each epoch, and chooses the best one: the validation rows, or else the dev splits.
        self.watched = {VALIDATION: components.data[VALIDATION]} if VALIDATION in components.data else dev
        self.unseen = {} if self.watched is dev else dev
        self._section = "teacher.train" if role == "teacher" else "train"
        self._predictions_are_kept = False
        self._best_weights: dict[str, Any] = {}
        self._best_logits: dict[str, NDArray[np.float32]] = {}
        self.latency: dict[str, Any] | None = None

    def _check_inputs(self) -> None:
        """Raises `RunError` where a file is no longer what it was before it was read: the results would not be its."""
        now = digest_inputs(self.setup.config, self.setup.task, self.role)
        for name, digest in self.inputs.items():
            if now.get(name) != digest:
                raise RunError(f"the {name} has changed while it was read; run the same command again")

    def run(self, interrupts: Interrupts, callbacks: Sequence[object] = ()) -> Results:
        """Trains to the end, calling the callbacks, and finishes the run folder; returns its results."""
        self._assemble()
        self._prepare_folder()
        seconds = self._ask_teacher()  # as it is at the start, before a checkpoint moves it
        self._restore()
        self.progress.train_seconds += seconds
        with self._reported_to(callbacks) as reports:
            outcome = self._train(interrupts, reports)
        results = self._finish(outcome)
        reports.on_train_end(results.to_dict())
        return results

    def evaluate(self) -> Evaluation:
        """Evaluates student and teacher as they are."""
        with explain_out_of_memory(f"{self._section}.eval_batch_size"):
            return self.evaluator.evaluate()

    def keep_best(self) -> None:
        """Saves the student just evaluated, and its predictions, as the best so far."""
        self.setup.save_model(self.folder, self.components.model, self.components.tokenizer)
        logits = dict(self.evaluator.logits)
        self.processes.on_main(lambda: self._save_predictions(logits))
        self._predictions_are_kept = True
        if self._leaves_logits:
            self._best_weights, self._best_logits = weights_fingerprint(self.student), logits

    def keep_epoch(self, epoch: int) -> None:
        """Saves the teacher just evaluated, in its own run, where its epochs are to teach a student."""
        if self.role == "teacher" and self.config.teacher.keep_epochs:
            self.setup.save_model(self.folder, self.components.model, self.components.tokenizer, epoch=epoch)

    def log(self, record: StepRecord | EpochRecord) -> None:
        """Writes a record to metrics.jsonl."""
        if self.processes.is_main:
            self.folder.log(record)

    def _assemble(self) -> None:
        self.student, built = self.setup.assemble(self.role, self.components)
        self.method, self.optimizers, self.modules = built.method, built.optimizers, built.modules
        self.moves_teacher = built.moves_teacher

    def _prepare_folder(self) -> None:
        """Makes the run folder, or sets it back to the checkpoint."""
        self.plugins = {key: describe_plugin(name) for key, name in plugins_of(self.config, self.role).items()}
        code = {f"code of {own['name']}": {"sha256": own["sha256"]} for own in self.plugins.values()}
        self.fingerprints = {**self.components.fingerprints(), **code}
        self.recovery.start(self.config.to_yaml(), self.fingerprints)
        logger.info(
            "%s on %s: %s parameters, %s, %d steps, into %s",
            "fine-tuning the teacher" if self.role == "teacher" else self.role,
            self.task.name,
            f"{count_parameters(self.components.model):,}",
            self.batches.describe_rows(),
            self._num_steps(),
            self.folder.path,
        )

    def _ask_teacher(self) -> float:
        """Scores the teacher, and keeps its logits where it stays as it is; returns the seconds that training owes."""
        teacher = self.components.teacher
        self.evaluator = Evaluator(
            self.student,
            self.watched,
            self.task.metrics,
            teacher=teacher,
            teacher_moves=self.moves_teacher,
            method=self.role,
            processes=self.processes,
        )
        self.teacher_start = {}
        if teacher is None:
            return 0.0
        kept = TeacherLogits(self.setup, teacher, self.fingerprints["teacher"])
        with explain_out_of_memory(f"{self._section}.eval_batch_size"):
            logits = {
                split: kept.of(batches, self.fingerprints[f"{split} split"])[0]
                for split, batches in {**self.watched, **self.unseen}.items()
            }
        of_watched = {split: logits[split] for split in self.watched}
        of_unseen = {split: logits[split] for split in self.unseen}
        self.teacher_start = self.evaluator.score_teacher_at_start(of_watched)
        self.teacher_start = self.teacher_start | score_splits(of_unseen, self.unseen, self.task.metrics)
        self._look_for_weakness(logits)
        if not keeps_training_logits(self.config, self.role, self.batches):
            return 0.0
        seconds = kept.for_training(self.batches, self.fingerprints["train split"])
        self._let_go_of(teacher)
        return seconds

    def _let_go_of(self, teacher: Teacher) -> None:
        """Frees the memory of a teacher that is asked nothing more, once its latency is known."""
        if self.config.distributed.shard:
            return
        self.latency = self._measure_latency(teacher)
        teacher.to("meta")
        free_memory()
        reset_peak_memory(self.setup.device)  # the peak is to be the training's

    def _measure_latency(self, teacher: Teacher) -> dict[str, Any] | None:
        """Milliseconds of both models, by the main process."""
        return self.processes.on_main(partial(measure_latency, self.setup, teacher, self.student))

    def _look_for_weakness(self, logits: Mapping[str, NDArray[Any]]) -> None:
        """Warns of a teacher that does not know the task it is to teach."""
        said = {split: predictions_of(logits[split], self.components.data[split]) for split in logits}
        labels = {split: self.components.data[split].features["label"] for split in logits}
        self.teacher_facts = {
            "chance": {split: chance_scores(labels[split], self.task.metrics) for split in logits},
            "one_class": [split for split in logits if len(np.unique(said[split], axis=0)) == 1],
        }
        for sentence in weak_teacher(self.teacher_start, **self.teacher_facts):
            logger.warning("%s", sentence)

    def _restore(self) -> None:
        """Starts dropout and schedules, then sets models, optimizers and all else as they were at the checkpoint."""
        self.processes.seed_dropout(self.config.seed)
        mu_until = self.config.reptile.mu_until if self.role == "reptile" else 1.0
        self.schedules = build_schedules(self.optimizers, self.batches, self.components.settings, mu_until=mu_until)
        modules: dict[str, Any] = {"student": self.student, **self.modules}
        if self.components.teacher is not None and self.moves_teacher:
            modules["teacher"] = self.components.teacher
        self.progress = self.recovery.restore(modules, self.optimizers, self.schedules)

    @contextlib.contextmanager
    def _reported_to(self, callbacks: Sequence[object]) -> Iterator[RunCallbacks]:
        """The callbacks, and the configured trackers while inside."""
        run = RunInfo(
            task=self.task.name,
            method=self.role,
            seed=self.config.seed,
            folder=self.folder.path,
            num_steps=self._num_steps(),
            config=self.config.model_dump(mode="json"),
        )
        trackers = self.config.trackers if self.processes.is_main else ()
        sparing = explain_out_of_memory(f"{self._section}.micro_batch_size or data.max_length")
        with sparing, tracked(trackers, run, step=self.progress.step) as tracker_callbacks:
            yield RunCallbacks(
                callbacks, run, trackers=tracker_callbacks, device=self.setup.device, processes=self.processes
            )

    def _train(self, interrupts: Interrupts, callbacks: RunCallbacks) -> Outcome:
        settings = LoopSettings(
            num_epochs=self.components.settings.epochs,
            max_steps=self.components.settings.max_steps,
            patience=self.components.settings.patience,
            log_every=self.components.settings.log_every,
            show_progress=self.processes.is_main,
            title=f"{self.role} on {self.task.name}",
        )
        loop = TrainingLoop(
            self.method,
            self.batches,
            self.schedules,
            settings,
            self,
            progress=self.progress,
            checkpoints=self.recovery,
            interrupts=interrupts,
            callbacks=callbacks,
            device=self.setup.device,
        )
        return loop.run()

    def _num_steps(self) -> int:
        return count_steps(self.batches, self.components.settings.epochs, self.components.settings.max_steps)

    def _finish(self, outcome: Outcome) -> Results:
        """Writes the results and draws the run's pictures: from now on the run is finished."""
        results = self.recovery.finish(self._results_of(outcome))
        if self._leaves_logits:
            self._leave_logits()
        if self.processes.is_main:
            draw_after_run(self.folder.path)
        return results

    @property
    def _leaves_logits(self) -> bool:
        """Whether the best model's dev logits are kept, as those of the teacher that it is to its students' runs."""
        return self.role == "teacher" and not self.config.distributed.shard and not self.config.compute.compile

    def _leave_logits(self) -> None:
        kept = TeacherLogits(self.setup, self.student, self._best_weights)
        for split, logits in self._best_logits.items():
            kept.keep(self.components.data[split], self.fingerprints[f"{split} split"], logits)

    def _save_predictions(self, logits: Mapping[str, NDArray[Any]]) -> None:
        for split, of_split in logits.items():
            batches = self.components.data[split]
            self.folder.save_predictions(split, predictions_of(of_split, batches), batches.features["label"])

    def _results_of(self, outcome: Outcome) -> dict[str, Any]:
        """The values of the run's `Results` but for those that `Recovery.finish` adds."""
        device = self.setup.device
        # The training's, before the best student and the latency are measured.
        peak = peak_memory(device, with_graphs=self.config.compute.cuda_graphs)
        results: dict[str, Any] = {
            "task": self.task.name,
            "method": self.role,
            "seed": self.config.seed,
            "scores": outcome.best.scores | self._score_best(),
            "score": outcome.best.score,
            "best_epoch": outcome.best.epoch,
            "num_steps": outcome.num_steps,
            "num_train_rows": self.batches.num_labelled_rows,
            "num_parameters": count_parameters(self.components.model),
            "train_seconds": outcome.train_seconds,
            "examples_per_second": outcome.num_examples / outcome.train_seconds,
            "num_processes": self.processes.count,
            "peak_memory_bytes": peak,
            "inputs": self.inputs,
        }
        if self.plugins:
            results["plugins"] = self.plugins
        if self.batches.num_transfer_rows:
            results["num_transfer_rows"] = self.batches.num_transfer_rows
        if outcome.stopped_by is not None:
            results["stopped_by"] = outcome.stopped_by
        teacher = self.components.teacher
        if teacher is not None:
            self._compare_with_student(results["scores"])
            results["teacher"] = {
                "num_parameters": count_parameters(teacher),
                "scores_at_start": self.teacher_start,
                **self.teacher_facts,
                "scores_at_end": (outcome.last.teacher_scores or {}) | self._score_unseen(teacher),
            }
            if not self.config.distributed.shard:  # a process cannot time what it has only a part of
                results["latency"] = self.latency or self._measure_latency(teacher)
        return results

    def _score_best(self) -> dict[str, Scores]:
        """The best student's scores on the splits not evaluated so far; saves its predictions on them.

        Its predictions on the other splits were saved in the best epoch. Where that epoch came before the checkpoint
        that this run was resumed from, those on disk may be a later student's, and are made again.
        """
        splits = self.unseen if self._predictions_are_kept else {**self.watched, **self.unseen}
        if not splits:
            return {}
        best, _ = self.setup.load_trained(str(self.folder.model))
        logits = predict_splits(best, splits, self.processes)
        self.processes.on_main(lambda: self._save_predictions(logits))
        if self._leaves_logits:
            self._best_weights, self._best_logits = weights_fingerprint(best), self._best_logits | logits
        return score_splits({split: logits[split] for split in self.unseen}, self.unseen, self.task.metrics)

    def _compare_with_student(self, scores: Mapping[str, Scores]) -> None:
        """Warns of a teacher that was weaker than the student it has taught."""
        for sentence in weak_teacher(self.teacher_start, student=scores):
            logger.warning("%s", sentence)

    def _score_unseen(self, teacher: Classifier) -> dict[str, Scores]:
        """The teacher's scores, as it is at the end, on the splits not evaluated so far."""
        if not self.moves_teacher:
            return {split: self.teacher_start[split] for split in self.unseen}
        return score_splits(predict_splits(teacher, self.unseen, self.processes), self.unseen, self.task.metrics)
