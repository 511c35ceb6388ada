"""The training loop: a method's steps over the batches, an evaluation after each epoch, the best model kept."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reptile_distil.data.batches import Batches, StepBatches
from reptile_distil.errors import CallbackError, DivergedError, RunError
from reptile_distil.methods.step import Logs
from reptile_distil.runtime.interrupts import Interrupted, Interrupts
from reptile_distil.runtime.measuring import Stopwatch, wait_for
from reptile_distil.runtime.text_tables import list_scores, percent
from reptile_distil.training.callbacks import RunCallbacks
from reptile_distil.training.divergence import DivergenceWatch
from reptile_distil.training.progress_bar import progress_bar
from reptile_distil.training.records import EpochRecord, Evaluation, StepRecord

logger = logging.getLogger(__name__)


class Method(Protocol):
    """Anything that learns from one batch at a time."""

    @property
    def step(self) -> Callable[..., Logs]:
        """Updates the models from a batch and, for some methods, extra batches (see `StepBatches`).

        Returns scalars on the device, `loss` and `grad_norm` among them.
        """
        ...


class CheckpointWriter(Protocol):
    """Writes a run's checkpoints."""

    def is_due(self, progress: Progress) -> bool:
        """Whether it is time for a checkpoint in the middle of an epoch."""
        ...

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint."""
        ...


class RunActions(Protocol):
    """What the loop asks of the run that it belongs to."""

    def evaluate(self) -> Evaluation:
        """Evaluates the models as they are; a `score` of NaN counts as minus infinity.

        Raises `DivergedError` for a model whose logits are not finite.
        """
        ...

    def keep_best(self) -> None:
        """Saves the model just evaluated: its score is the highest so far, or it is the first."""
        ...

    def keep_epoch(self, epoch: int) -> None:
        """Saves the model just evaluated where that is done after every epoch, counted from 1."""
        ...

    def log(self, record: StepRecord | EpochRecord) -> None:
        """Writes the record of a step or an epoch."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long a loop trains and what it shows of that."""

    num_epochs: int
    max_steps: int | None = None
    """Ends training in mid-epoch; the last evaluation comes all the same."""
    patience: int | None = None
    """Epochs without a higher score after which training stops; None: it goes on."""
    log_every: int = 50
    """Steps from one log record to the next."""
    show_progress: bool = True
    title: str = "training"
    """Names the run in error messages."""


@dataclass
class Progress:
    """How far a run is: what the loop itself needs to resume it."""

    epochs_done: int = 0
    """Epochs trained and evaluated."""
    batches_done: int = 0
    """Batches of the epoch under way; all of them while its evaluation is still to come."""
    step: int = 0
    num_examples: int = 0
    """Examples seen, each time counted."""
    train_seconds: float = 0.0
    """Seconds spent in steps, evaluation not counted."""
    best: EpochRecord | None = None
    """The epoch record with the highest score."""
    last: EpochRecord | None = None
    """The latest epoch's record."""
    sums: Logs = field(default_factory=dict)
    """Sums of the logs over the epoch under way, on the device: it is waited for once an epoch only."""
    last_gap: Tensor | None = None
    """The latest step's `gap`, for a method that logs one."""
    stopped_by: str | None = None
    """The callback that asked for the end of training: no further step is taken."""

    def add_step(self, logs: Logs, num_rows: int) -> None:
        """Counts a step over `num_rows` rows."""
        self.step += 1
        self.batches_done += 1
        self.num_examples += num_rows
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in logs.items()}
        self.last_gap = logs.get("gap")

    def close_epoch(self, record: EpochRecord) -> None:
        """Ends the epoch under way with the record of its evaluation."""
        self.epochs_done += 1
        self.batches_done = 0
        self.sums = {}
        self.last = record

    def means(self) -> Logs:
        """Means of the logs over the steps of the epoch under way."""
        return {name: value / self.batches_done for name, value in self.sums.items()}

    def is_over(self, num_epochs: int, num_steps: int, patience: int | None) -> bool:
        """Whether training ends: no epoch or step is left, a callback stopped it, or `patience` has run out."""
        if self.batches_done:
            return False
        without_better = 0 if self.best is None else self.epochs_done - self.best.epoch
        return (
            self.epochs_done >= num_epochs
            or self.step >= num_steps
            or self.stopped_by is not None
            or (patience is not None and without_better >= patience)
        )


@dataclass(frozen=True)
class Outcome:
    """The end of a training run."""

    best: EpochRecord
    """The epoch record with the highest score."""
    last: EpochRecord
    """The last epoch's record."""
    num_steps: int
    num_examples: int
    """Examples seen, each time counted."""
    train_seconds: float
    """Seconds spent in steps, evaluation not counted."""
    stopped_by: str | None = None
    """The callback that asked for the end of training."""


def count_steps(batches: Batches, num_epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a run, early stopping aside."""
    steps = batches.num_batches * num_epochs
    return steps if max_steps is None else min(steps, max_steps)


class TrainingLoop:
    """Trains a method from its start, or from where `progress` stands: steps, evaluations, the best model kept.

    Args:
        method: takes the steps.
        batches: the training batches, with the extra batches that the method takes.
        schedules: stepped after each step; their learning rates are logged under their names.
        settings: how long to train.
        actions: evaluate, keep the best model and log.
        progress: where to start; kept up to date in place.
        checkpoints: written when they are due, at the end of each epoch, and where a signal (`Interrupted`) or a
            callback's fault (`CallbackError`) ends the run; never with weights that are not finite.
        interrupts: hold signals back while something must not be left half done.
        callbacks: called after each step and epoch; they may end training.
        device: where the method computes. It is waited for only where something follows that is not training.
    """

    def __init__(
        self,
        method: Method,
        batches: Batches,
        schedules: Mapping[str, LRScheduler],
        settings: LoopSettings,
        actions: RunActions,
        *,
        progress: Progress | None = None,
        checkpoints: CheckpointWriter | None = None,
        interrupts: Interrupts | None = None,
        callbacks: RunCallbacks | None = None,
        device: str = "cpu",
    ) -> None:
        self.method = method
        self.batches = batches
        self.schedules = schedules
        self.settings = settings
        self.actions = actions
        self.progress = progress or Progress()
        self.checkpoints = checkpoints
        self.interrupts = interrupts or Interrupts()
        self.callbacks = callbacks
        self.device = device
        self._watch = DivergenceWatch(batches, settings.title)
        self._clock = Stopwatch()
        self._bar: Any = tqdm(disable=True)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, early stopping aside."""
        return count_steps(self.batches, self.settings.num_epochs, self.settings.max_steps)

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole run, early stopping aside; `max_steps` may end the last one in its middle."""
        return min(self.settings.num_epochs, -(-self.num_steps // self.batches.num_batches))

    def run(self) -> Outcome:
        """Trains to the end. Raises `RunError` where a loss or logits are not finite, or there is no batch."""
        progress = self.progress
        with logging_redirect_tqdm(), self._progress_bar() as self._bar:
            while not progress.is_over(self.num_epochs, self.num_steps, self.settings.patience):
                try:
                    self.run_epoch()
                except (Interrupted, CallbackError) as ended:
                    self.save()
                    if isinstance(ended, Interrupted):
                        ended.saved_step = None if self.checkpoints is None else progress.step
                    raise
        return _outcome_of(progress)

    def run_epoch(self) -> None:
        """Takes the steps that are left of the epoch under way, evaluates, and writes a checkpoint."""
        self._bar.set_description(f"epoch {self.progress.epochs_done + 1}/{self.num_epochs}", refresh=False)
        self._clock.lap()
        try:
            self._take_steps()
        except Interrupted:
            self._count_seconds()
            raise
        record = self._evaluate()
        with self.interrupts.held():
            self._close_epoch(record)
        self.interrupts.agree()

    def _take_steps(self) -> None:
        for batches in self._steps_left():
            with self.interrupts.held():
                self.take_step(batches)
            self.interrupts.agree(self.progress.step)
            self._bar.update(len(batches.batch["labels"]))
            if self.progress.stopped_by:
                break

    def take_step(self, batches: StepBatches) -> None:
        """Takes one step of the method, then of the schedules; logs, calls back and saves where that is due."""
        progress = self.progress
        rates = {name: float(schedule.get_last_lr()[0]) for name, schedule in self.schedules.items()}
        logs = self.method.step(batches.batch, *batches.extra)
        for schedule in self.schedules.values():
            schedule.step()
        progress.add_step(logs, len(batches.batch["labels"]))
        self._watch.look(progress, logs, rates)
        if progress.step % self.settings.log_every == 0 or progress.step == self.num_steps:
            self._log_step(logs, rates)
        if self.callbacks is not None:
            self._count_seconds(wait=self.callbacks.may_wait(progress.step))
            progress.stopped_by = self.callbacks.on_step_end(progress.step, logs, rates)
            self._clock.lap()  # neither a callback nor a checkpoint is training
        if self.checkpoints is not None and self.checkpoints.is_due(progress):
            self._count_seconds()
            self.save()
            self._clock.lap()

    def save(self) -> None:
        """Writes a checkpoint. Raises `RunError` where a step of the epoch under way was not finite."""
        self._watch.check(self.progress)
        if self.checkpoints is not None:
            self.checkpoints.save(self.progress)

    def _count_seconds(self, *, wait: bool = True) -> None:
        """Counts the time since the last lap as training; with `wait`, what the device has still to do of it, too."""
        if wait:
            wait_for(self.device)
        self.progress.train_seconds += self._clock.lap()

    def _steps_left(self) -> Iterator[StepBatches]:
        """The batches of the epoch under way that no step was taken on yet; none after a callback has stopped it."""
        progress = self.progress
        num_left = 0 if progress.stopped_by else self.num_steps - progress.step
        steps = self.batches.steps(progress.epochs_done + 1, skip=progress.batches_done)
        return itertools.islice(steps, num_left)

    def _log_step(self, logs: Logs, rates: Mapping[str, float]) -> None:
        self._watch.check(self.progress)
        values = _read(logs)
        epoch, step = self.progress.epochs_done + 1, self.progress.step
        self.actions.log(StepRecord.of({**values, **rates}, epoch=epoch, step=step))
        self._bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)

    def _evaluate(self) -> EpochRecord:
        """The record of the epoch, all of whose steps are taken."""
        progress = self.progress
        self._watch.check(progress)
        train_means = _read(progress.means())
        self._count_seconds(wait=False)  # whoever has read them has waited
        epoch = progress.epochs_done + 1
        try:
            evaluation = self.actions.evaluate()
        except DivergedError as error:
            raise DivergedError(f"{self.settings.title}: after epoch {epoch}, step {progress.step}: {error}") from None
        return evaluation.in_epoch(
            epoch=epoch,
            step=progress.step,
            train=train_means,
            last_gap=None if progress.last_gap is None else float(progress.last_gap),
            train_seconds=progress.train_seconds,
        )

    def _close_epoch(self, record: EpochRecord) -> None:
        """Logs the epoch, keeps its model where it is the best so far, calls back, and writes a checkpoint."""
        progress = self.progress
        self.actions.log(record)
        logger.info("%s", describe_epoch(record, self.num_epochs))
        if progress.best is None or _rank(record) > _rank(progress.best):
            self.actions.keep_best()
            progress.best = record
        self.actions.keep_epoch(record.epoch)
        progress.close_epoch(record)
        if self.callbacks is not None:
            progress.stopped_by = self.callbacks.on_epoch_end(record) or progress.stopped_by
        self.save()

    def _progress_bar(self) -> Any:
        """Counts examples, so that it shows examples per second and the time left."""
        total = self.batches.count_examples(self.num_steps)
        return progress_bar(total=total, initial=self.progress.num_examples, shown=self.settings.show_progress)


def _outcome_of(progress: Progress) -> Outcome:
    if progress.best is None or progress.last is None:
        raise RunError("the training set has no batch to train on")
    return Outcome(
        progress.best,
        progress.last,
        progress.step,
        progress.num_examples,
        progress.train_seconds,
        progress.stopped_by,
    )


def describe_epoch(record: EpochRecord, num_epochs: int) -> str:
    """An epoch's losses and scores in one line, for the terminal."""
    parts = [f"epoch {record.epoch}/{num_epochs}: loss {record.train['loss']:.4f}"]
    parts += [f"{split} {list_scores(scores)}" for split, scores in record.scores.items()]
    if record.teacher_scores is not None:
        parts += [f"teacher's {split} {list_scores(scores)}" for split, scores in record.teacher_scores.items()]
        parts.append(f"agreement {percent(record.agreement)} %")
    if record.last_gap is not None:
        parts.append(f"gap {record.last_gap:.3f}, teacher moved {record.teacher_drift:.3f}")
    return "; ".join(parts)


def _rank(record: EpochRecord) -> float:
    return -math.inf if math.isnan(record.score) else record.score


def _read(logs: Mapping[str, Tensor]) -> dict[str, float]:
    """The logs as numbers. This waits for the device."""
    return {name: float(value) for name, value in logs.items()}
