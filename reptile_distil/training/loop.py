"""The training loop: batches through a method's `step`, an evaluation each epoch, the best model kept."""

from __future__ import annotations

import itertools
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reptile_distil.data.batches import Batch, Batches
from reptile_distil.errors import CallbackError, RunError
from reptile_distil.methods.step import Logs
from reptile_distil.runtime.interrupts import Interrupted, Interrupts
from reptile_distil.training.callbacks import RunCallbacks

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Method(Protocol):
    """Anything that learns from one batch at a time."""

    def step(self, batch: Batch) -> Logs:
        """Updates the models; returns scalars, `loss` and `grad_norm` among them."""
        ...


class CheckpointWriter(Protocol):
    """Writes a run's checkpoints."""

    def is_due(self, progress: Progress) -> bool:
        """Whether it is time for one in the middle of an epoch."""
        ...

    def save(self, progress: Progress) -> None:
        """Writes one."""
        ...


@dataclass
class Progress:
    """Where a run stands: what the loop itself must remember to go on from there."""

    epochs_done: int = 0
    """Epochs trained and evaluated."""
    batches_done: int = 0
    """Batches of the epoch under way; all of them while its evaluation is still to come."""
    step: int = 0
    num_examples: int = 0
    """Examples seen, each time counted."""
    train_seconds: float = 0.0
    """Seconds spent in steps, evaluation not counted."""
    best: Record | None = None
    """The epoch record with the highest score."""
    last: Record | None = None
    """The latest epoch's record."""
    sums: Logs = field(default_factory=dict)
    """Sums of the logs over the epoch under way, on the device: reading them only once an epoch keeps it busy."""
    last_gap: Tensor | None = None
    """The latest step's gap, for a method that has one."""
    stopped_by: str | None = None
    """The callback that asked for the end of training: no further step is taken."""

    def add_step(self, logs: Logs, num_rows: int) -> None:
        """Counts a step over `num_rows` rows."""
        self.step += 1
        self.batches_done += 1
        self.num_examples += num_rows
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in logs.items()}
        self.last_gap = logs.get("gap")

    def close_epoch(self, record: Record) -> None:
        """Ends the epoch under way with the record of its evaluation."""
        self.epochs_done += 1
        self.batches_done = 0
        self.sums = {}
        self.last = record

    def means(self) -> Logs:
        """Means of the logs over the steps of the epoch under way."""
        return {name: value / self.batches_done for name, value in self.sums.items()}

    def is_over(self, num_epochs: int, num_steps: int, patience: int | None) -> bool:
        """Whether no epoch or step is left, a callback has had enough, or `patience` epochs brought no better one."""
        if self.batches_done:
            return False
        without_better = 0 if self.best is None else self.epochs_done - int(self.best["epoch"])
        return (
            self.epochs_done >= num_epochs
            or self.step >= num_steps
            or self.stopped_by is not None
            or (patience is not None and without_better >= patience)
        )


@dataclass(frozen=True)
class Outcome:
    """What a training run came to."""

    best: Record
    """The epoch record with the highest score."""
    last: Record
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


def train(
    method: Method,
    batches: Batches,
    *,
    num_epochs: int,
    max_steps: int | None,
    schedules: Mapping[str, LRScheduler],
    evaluate: Callable[[], Record],
    keep_best: Callable[[], None],
    log: Callable[[Record], None],
    patience: int | None = None,
    log_every: int = 50,
    show_progress: bool = True,
    title: str = "training",
    progress: Progress | None = None,
    checkpoints: CheckpointWriter | None = None,
    interrupts: Interrupts | None = None,
    callbacks: RunCallbacks | None = None,
) -> Outcome:
    """Trains for `num_epochs`, or `max_steps` steps if that is less, from the start or from where `progress` stands.

    `progress` is kept up to date in place. After each epoch, `evaluate()` gives a record with a `score` (NaN counts as
    minus infinity); `keep_best()` is called when it is the highest so far, and always for the first. Training stops
    early after `patience` epochs without a higher one. `log` gets a record every `log_every` steps and one an epoch.
    `schedules` are stepped after each step; their learning rates are logged under their names. `checkpoints` are
    written when they are due, at the end of each epoch, and where a signal (`Interrupted`) or a callback's
    fault (`CallbackError`) ends the run; never with weights that are not finite. `callbacks` are told of each step and
    epoch, and may ask for the end. Raises `RunError` when a loss is not finite; `title` is what it calls the run.
    """
    progress, interrupts = progress or Progress(), interrupts or Interrupts()
    num_steps = count_steps(batches, num_epochs, max_steps)
    num_epochs = min(num_epochs, -(-num_steps // batches.num_batches))
    watch = _Watch(batches, title)

    def save() -> None:
        watch.check(progress)
        if checkpoints is not None:
            checkpoints.save(progress)

    with logging_redirect_tqdm(), _progress_bar(batches, num_steps, progress.num_examples, show=show_progress) as bar:
        while not progress.is_over(num_epochs, num_steps, patience):
            epoch = progress.epochs_done + 1
            clock = _Stopwatch()
            bar.set_description(f"epoch {epoch}/{num_epochs}", refresh=False)
            try:
                todo = batches.epoch(epoch, skip=progress.batches_done)
                for batch in itertools.islice(todo, 0 if progress.stopped_by else num_steps - progress.step):
                    with interrupts.held():
                        logs, rates = _take_step(method, batch, schedules)
                        progress.add_step(logs, len(batch["labels"]))
                        watch.look(progress, logs, rates)
                        if progress.step % log_every == 0 or progress.step == num_steps:
                            watch.check(progress)
                            values = _read(logs)
                            log({"event": "step", "epoch": epoch, "step": progress.step, **values, **rates})
                            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
                        progress.train_seconds += clock.lap()
                        if callbacks is not None:
                            progress.stopped_by = callbacks.on_step_end(progress.step, logs, rates)
                            clock.lap()
                        if checkpoints is not None and checkpoints.is_due(progress):
                            save()
                            clock.lap()
                    interrupts.agree(progress.step)
                    bar.update(len(batch["labels"]))
                    if progress.stopped_by:
                        break
                watch.check(progress)
                train_means = _read(progress.means())
                progress.train_seconds += clock.lap()
                record = {
                    "event": "epoch",
                    "epoch": epoch,
                    "step": progress.step,
                    "train": train_means,
                    "last_gap": None if progress.last_gap is None else float(progress.last_gap),
                    "train_seconds": progress.train_seconds,
                    **evaluate(),
                }
                with interrupts.held():
                    log(record)
                    logger.info("%s", describe_epoch(record, num_epochs))
                    if progress.best is None or _rank(record) > _rank(progress.best):
                        keep_best()
                        progress.best = record
                    progress.close_epoch(record)
                    if callbacks is not None:
                        progress.stopped_by = callbacks.on_epoch_end(record) or progress.stopped_by
                    save()
                interrupts.agree()
            except (Interrupted, CallbackError) as ended:
                save()
                if isinstance(ended, Interrupted):
                    ended.saved_step = None if checkpoints is None else progress.step
                raise
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


def _take_step(method: Method, batch: Batch, schedules: Mapping[str, LRScheduler]) -> tuple[Logs, dict[str, float]]:
    """One step of the method, then of the schedules; the logs, and the learning rates that the step used."""
    rates = {name: float(schedule.get_last_lr()[0]) for name, schedule in schedules.items()}
    logs = method.step(batch)
    for schedule in schedules.values():
        schedule.step()
    return logs, rates


def describe_epoch(record: Record, num_epochs: int) -> str:
    """One line about an epoch, for the terminal."""
    parts = [f"epoch {record['epoch']}/{num_epochs}: loss {record['train']['loss']:.4f}"]
    parts += [f"{split} {_list_scores(scores)}" for split, scores in record["scores"].items()]
    if "teacher_scores" in record:
        parts += [f"teacher's {split} {_list_scores(scores)}" for split, scores in record["teacher_scores"].items()]
        parts.append(f"agreement {record['agreement']:.3f}")
    if record["last_gap"] is not None:
        parts.append(f"gap {record['last_gap']:.3f}, teacher moved {record['teacher_drift']:.3f}")
    return "; ".join(parts)


def _list_scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items())


def _rank(record: Record) -> float:
    score: float = record["score"]
    return -math.inf if math.isnan(score) else score


def _progress_bar(batches: Batches, num_steps: int, num_examples: int, *, show: bool) -> Any:
    """Counts examples, so that it shows examples per second and the time left.

    Silent where there is neither a terminal nor a notebook.
    """
    epochs, steps = divmod(num_steps, batches.num_batches)
    total = epochs * batches.num_rows + min(steps * batches.batch_size, batches.num_rows)
    disable = not show or (None if "ipykernel.zmqshell" not in sys.modules else False)
    return tqdm(total=total, initial=num_examples, unit="ex", disable=disable, dynamic_ncols=True, leave=False)


def _read(logs: Mapping[str, Tensor]) -> dict[str, float]:
    """The logs as numbers. This waits for the device."""
    return {name: float(value) for name, value in logs.items()}


class _Stopwatch:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


class _Watch:
    """Notices the first step with a log that is not finite, on the device: only `check` waits for it."""

    def __init__(self, batches: Batches, title: str) -> None:
        self._batches = batches
        self._title = title
        self._bad_step: Tensor | None = None  # 0: none so far
        self._bad_values: Tensor | None = None
        self._names: list[str] = []
        self._rates: dict[int, Mapping[str, float]] = {}

    def look(self, progress: Progress, logs: Logs, rates: Mapping[str, float]) -> None:
        values = torch.stack([value.detach().float() for value in logs.values()])
        if self._bad_step is None or self._bad_values is None:
            self._bad_step, self._bad_values = torch.zeros((), dtype=torch.long, device=values.device), values
        is_first = ~values.isfinite().all() & (self._bad_step == 0)
        self._bad_step = torch.where(is_first, progress.step, self._bad_step)
        self._bad_values = torch.where(is_first, values, self._bad_values)
        self._names = list(logs)
        self._rates[progress.step] = rates

    def check(self, progress: Progress) -> None:
        """Raises `RunError` where a step of the epoch under way was not finite; forgets those that were."""
        step = 0 if self._bad_step is None else int(self._bad_step)
        if not step or self._bad_values is None:
            self._rates.clear()
            return
        name, value = next(
            (name, value)
            for name, value in zip(self._names, self._bad_values.tolist(), strict=True)
            if not math.isfinite(value)
        )
        batch = progress.batches_done - 1 - (progress.step - step)
        rows = ", ".join(map(str, self._batches.row_ids(progress.epochs_done + 1, batch)))
        rates = ", ".join(f"{name} {rate:.2e}" for name, rate in self._rates[step].items())
        raise RunError(
            f"{self._title}: step {step}: {name} is {value} (learning rates: {rates}; training rows, counted from 0: "
            f"{rows}); the weights have diverged: lower the learning rate, or check these rows"
        )
