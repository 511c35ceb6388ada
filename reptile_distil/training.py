"""The training loop: batches through a method's `step`, an evaluation each epoch, the best model kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from reptile_distil.data import Batches
from reptile_distil.errors import RunError
from reptile_distil.gradients import Batch, Logs

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Method(Protocol):
    """Anything that learns from one batch at a time."""

    def step(self, batch: Batch) -> Logs:
        """Updates the models; returns scalars, `loss` and `grad_norm` among them."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a training run came to."""

    best: Record
    """The epoch record with the highest score."""
    num_steps: int
    num_examples: int
    """Examples seen, each time counted."""
    train_seconds: float
    """Seconds spent in steps, evaluation not counted."""


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
) -> Outcome:
    """Trains for `num_epochs`, or `max_steps` steps if that is less.

    After each epoch, `evaluate()` gives a record with a `score` (NaN counts as minus infinity); `keep_best()` is
    called when it is the highest so far, and always for the first. Training stops early after `patience` epochs
    without a higher one. `log` gets a record every `log_every` steps and one an epoch. `schedules` are stepped after
    each step; their learning rates are logged under their names. Raises `RunError` when a loss is not finite.
    """
    num_steps = count_steps(batches, num_epochs, max_steps)
    step = num_examples = 0
    train_seconds = 0.0
    best: Record | None = None
    with logging_redirect_tqdm(), _progress_bar(batches, num_steps, show_progress) as bar:
        for epoch in range(1, num_epochs + 1):
            started = time.perf_counter()
            means = _Means()
            for batch in batches.epoch(epoch):
                rates = {name: float(schedule.get_last_lr()[0]) for name, schedule in schedules.items()}
                logs = method.step(batch)
                for schedule in schedules.values():
                    schedule.step()
                step += 1
                num_examples += len(batch["labels"])
                means.add(logs)
                if step % log_every == 0 or step == num_steps:
                    values = _read(logs, step, rates)
                    log({"event": "step", "epoch": epoch, "step": step, **values, **rates})
                    bar.set_description(f"epoch {epoch}/{num_epochs}", refresh=False)
                    bar.set_postfix(loss=f"{values['loss']:.4f}", lr=f"{next(iter(rates.values())):.1e}", refresh=False)
                bar.update(len(batch["labels"]))
                if step == num_steps:
                    break
            train_means = _read(means.read(), step, rates)
            train_seconds += time.perf_counter() - started
            record = {
                "event": "epoch",
                "epoch": epoch,
                "step": step,
                "train": train_means,
                "last_gap": float(logs["gap"]) if "gap" in logs else None,
                "train_seconds": train_seconds,
                **evaluate(),
            }
            log(record)
            logger.info("%s", describe_epoch(record, num_epochs))
            if best is None or _rank(record) > _rank(best):
                best = record
                keep_best()
            if step == num_steps or (patience is not None and epoch - best["epoch"] >= patience):
                break
    if best is None:
        raise RunError("the training set has no batch to train on")
    return Outcome(best, step, num_examples, train_seconds)


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


def _progress_bar(batches: Batches, num_steps: int, show: bool) -> Any:
    """Counts examples, so that it shows examples per second and the time left; silent where there is no terminal."""
    epochs, steps = divmod(num_steps, batches.num_batches)
    total = epochs * batches.num_rows + min(steps * batches.batch_size, batches.num_rows)
    return tqdm(total=total, unit="ex", disable=None if show else True, dynamic_ncols=True, leave=False)


class _Means:
    """Running sums of the logs, on the device: reading them only once an epoch keeps it busy."""

    def __init__(self) -> None:
        self.sums: Logs = {}
        self.count = 0

    def add(self, logs: Logs) -> None:
        self.sums = {name: self.sums[name] + value if self.sums else value for name, value in logs.items()}
        self.count += 1

    def read(self) -> Logs:
        return {name: value / self.count for name, value in self.sums.items()}


def _read(logs: Mapping[str, Tensor], step: int, rates: Mapping[str, float]) -> dict[str, float]:
    """The logs as numbers. This waits for the device."""
    values = {name: float(value) for name, value in logs.items()}
    bad: Sequence[str] = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        listed = ", ".join(f"{name} {rate:.2e}" for name, rate in rates.items())
        raise RunError(
            f"step {step}: {bad[0]} is {values[bad[0]]} (learning rates: {listed}); the weights have diverged: "
            "lower the learning rate, or check the data"
        )
    return values
