"""One run of a method, from its components to the results in its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from reptile_distil.config.sections import TEACHER_MOVES, Role
from reptile_distil.data.batches import Batches
from reptile_distil.errors import RunError
from reptile_distil.experiments.build_method import build_schedules
from reptile_distil.experiments.input_digests import digest_inputs
from reptile_distil.experiments.setup import VALIDATION, Components, Setup
from reptile_distil.models.classifier import Classifier, count_parameters
from reptile_distil.models.cost import compare_latency
from reptile_distil.plots.run import draw_after_run
from reptile_distil.runs.folder import Results
from reptile_distil.runs.resume import Recovery
from reptile_distil.runtime.interrupts import Interrupts
from reptile_distil.runtime.measuring import explain_out_of_memory, peak_memory
from reptile_distil.training.callbacks import RunCallbacks, RunInfo
from reptile_distil.training.evaluation import Evaluator, evaluate_splits
from reptile_distil.training.loop import Outcome, count_steps, train
from reptile_distil.training.metrics import Scores
from reptile_distil.training.trackers import tracked

logger = logging.getLogger(__name__)


class Run:
    """A run, ready to go on from its start or from its newest checkpoint.

    Args:
        setup: configuration, task, device and processes.
        role: what the run does.
        prepare: returns what it trains with, read from its files.
        recovery: its folder and checkpoints.

    Raises `RunError` where a file was replaced while it was read.
    """

    def __init__(self, setup: Setup, role: Role, prepare: Callable[[], Components], recovery: Recovery) -> None:
        self.setup, self.role, self.recovery = setup, role, recovery
        self.inputs = setup.processes.on_main(lambda: digest_inputs(setup.config, setup.task, role))
        self.components = components = prepare()
        setup.processes.on_main(self._check_inputs)
        self.config, self.task, self.processes = setup.config, setup.task, setup.processes
        self.folder = recovery.folder
        self.batches = components.data["train"]
        dev = {split: components.data[split] for split in self.task.dev_splits}
        # What is looked at after each epoch, and chooses the best one; without validation rows the dev splits.
        watched = {VALIDATION: components.data[VALIDATION]} if VALIDATION in components.data else dev
        self.watched = watched
        self.unseen = {} if watched is dev else dev
        self._predictions_are_kept = False
        self.num_steps = count_steps(self.batches, components.settings.epochs, components.settings.max_steps)
        self.student, (self.method, optimizers) = setup.assemble(role, components)
        recovery.start(self.config.to_yaml(), components.fingerprints())
        self._announce()
        # The teacher is examined as it was at the start, before a checkpoint moves it.
        self.evaluator = Evaluator(
            self.student,
            watched,
            self.task.metrics,
            teacher=components.teacher,
            teacher_moves=role in TEACHER_MOVES,
            processes=self.processes,
        )
        self.teacher_start = self.evaluator.teacher_start | self._score(components.teacher, self.unseen)
        self.processes.seed_dropout(self.config.seed)
        mu_until = self.config.reptile.mu_until if role == "reptile" else 1.0
        self.schedules = build_schedules(optimizers, self.batches, components.settings, mu_until=mu_until)
        modules: dict[str, Any] = {"student": self.student}
        if components.teacher is not None and role in TEACHER_MOVES:
            modules["teacher"] = components.teacher
        self.progress = recovery.restore(modules, optimizers, self.schedules)

    def _check_inputs(self) -> None:
        """Raises `RunError` where a file is no longer what it was before it was read: the results would not be its."""
        now = digest_inputs(self.setup.config, self.setup.task, self.role)
        for name, digest in self.inputs.items():
            if now.get(name) != digest:
                raise RunError(f"the {name} has changed while it was read; run the same command again")

    def run(self, interrupts: Interrupts, callbacks: Sequence[object] = ()) -> Results:
        """Trains to the end, reporting to `callbacks`, and finishes the run folder; returns its results."""
        run = RunInfo(
            task=self.task.name,
            method=self.role,
            seed=self.config.seed,
            folder=self.folder.path,
            num_steps=self.num_steps,
            config=self.config.model_dump(mode="json"),
        )
        trackers = self.config.trackers if self.processes.is_main else ()
        key = "teacher.train" if self.role == "teacher" else "train"
        sparing = explain_out_of_memory(f"{key}.micro_batch_size or data.max_length")
        with sparing, tracked(trackers, run, step=self.progress.step) as tracker_callbacks:
            reported = RunCallbacks(
                (*callbacks, *tracker_callbacks), run, device=self.setup.device, processes=self.processes
            )
            outcome = self._train(key, interrupts, reported)
        results = self.recovery.finish(self._results_of(outcome))
        if self.processes.is_main:
            draw_after_run(self.folder.path)
        reported.on_train_end(results)
        return results

    def _announce(self) -> None:
        logger.info(
            "%s on %s: %s parameters, %d training rows, %d steps, into %s",
            "fine-tuning the teacher" if self.role == "teacher" else self.role,
            self.task.name,
            f"{count_parameters(self.components.model):,}",
            self.batches.num_rows,
            self.num_steps,
            self.folder.path,
        )

    def _train(self, key: str, interrupts: Interrupts, callbacks: RunCallbacks) -> Outcome:
        settings = self.components.settings
        return train(
            self.method,
            self.batches,
            num_epochs=settings.epochs,
            max_steps=settings.max_steps,
            schedules=self.schedules,
            evaluate=explain_out_of_memory(f"{key}.eval_batch_size")(self.evaluator.evaluate),
            keep_best=self._keep_best,
            log=lambda record: self.folder.log(record) if self.processes.is_main else None,
            patience=settings.patience,
            log_every=settings.log_every,
            show_progress=self.processes.is_main,
            title=f"{self.role} on {self.task.name}",
            progress=self.progress,
            checkpoints=self.recovery,
            interrupts=interrupts,
            callbacks=callbacks,
        )

    def _keep_best(self) -> None:
        self.setup.save_model(self.folder, self.components.model, self.components.tokenizer)
        self.processes.on_main(lambda: self._save_predictions(self.evaluator.predictions))
        self._predictions_are_kept = True

    def _save_predictions(self, predictions: Mapping[str, NDArray[Any]]) -> None:
        for split, of_split in predictions.items():
            self.folder.save_predictions(split, of_split, self.components.data[split].features["label"])

    def _results_of(self, outcome: Outcome) -> Results:
        device = self.setup.device
        peak = peak_memory(device)  # the training's, before the best student and the latency are measured
        results: Results = {
            "task": self.task.name,
            "method": self.role,
            "seed": self.config.seed,
            "scores": outcome.best["scores"] | self._score_best(),
            "score": outcome.best["score"],
            "best_epoch": outcome.best["epoch"],
            "num_steps": outcome.num_steps,
            "num_train_rows": self.batches.num_rows,
            "num_parameters": count_parameters(self.components.model),
            "train_seconds": outcome.train_seconds,
            "examples_per_second": outcome.num_examples / outcome.train_seconds,
            "num_processes": self.processes.count,
            "peak_memory_bytes": peak,
            "inputs": self.inputs,
        }
        if outcome.stopped_by is not None:
            results["stopped_by"] = outcome.stopped_by
        teacher = self.components.teacher
        if teacher is not None:
            results["teacher"] = {
                "num_parameters": count_parameters(teacher),
                "scores_at_start": self.teacher_start,
                "scores_at_end": outcome.last["teacher_scores"] | self._score(teacher, self.unseen),
            }
            if not self.config.distributed.shard:  # a process cannot time what it has only a part of
                length = self.config.data.max_length
                results["latency"] = compare_latency(teacher, self.student, length=length, device=device)
        return results

    def _score_best(self) -> dict[str, Scores]:
        """The best student's scores on the splits that nothing has looked at so far, and its predictions, kept.

        Those on the other splits were kept in the best epoch; where that lies before a checkpoint that this run went on
        from, what lies there may be a later student's, and they are made again.
        """
        splits = self.unseen if self._predictions_are_kept else {**self.watched, **self.unseen}
        if not splits:
            return {}
        best, _ = self.setup.load_trained(str(self.folder.model))
        scores, predictions = evaluate_splits(best, splits, self.task.metrics, self.processes)
        self.processes.on_main(lambda: self._save_predictions(predictions))
        return {split: scores[split] for split in self.unseen}

    def _score(self, model: Classifier | None, splits: Mapping[str, Batches]) -> dict[str, Scores]:
        """The model's scores by split; none where there is no model."""
        return {} if model is None else evaluate_splits(model, splits, self.task.metrics, self.processes)[0]
