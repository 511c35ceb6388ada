"""Callbacks: a user's own objects that are called while a run goes on, and what their exceptions do to the run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reptile_distil.errors import CallbackError, did_you_mean
from reptile_distil.methods.step import Logs
from reptile_distil.runtime.interrupts import STEPS_BETWEEN_AGREEMENTS
from reptile_distil.runtime.processes import ALONE, Processes
from reptile_distil.runtime.randomness import random_numbers_repeated
from reptile_distil.training.records import EpochRecord

HOOKS: Mapping[str, tuple[str, ...]] = {
    "on_step_end": ("run", "step", "logs", "rates"),
    "on_evaluate": ("run", "record"),
    "on_epoch_end": ("run", "record"),
    "on_train_end": ("run", "results"),
}
"""What a callback may have, and what it is called with, by position."""


class StopTraining(Exception):  # noqa: N818  # not an error: how a callback says that it has seen enough
    """Raised in a callback's hook, ends training as `patience` does: normally, with an evaluation and results.

    Args:
        reason: stands in the results under `stopped_by`.
    """


@dataclass(frozen=True)
class RunInfo:
    """The run that a callback is called for."""

    task: str
    method: str
    """The method's name; `teacher` while the teacher is fine-tuned."""
    seed: int
    folder: Path
    """The run's folder. model/ in it is the best student so far, from the first `on_evaluate` on."""
    num_steps: int
    """Optimizer steps, if nothing stops it early."""
    config: dict[str, Any]
    """The whole configuration as plain values."""


class Callback:
    """The hooks that a callback may have. To inherit from this class saves no work and is not required.

    Give objects to `Experiment(config, callbacks=[...])`. `fit` may fine-tune the teacher first, so a callback can see
    two runs, one after the other: `run.method` says which.

    Order: each step ends with `on_step_end`; each epoch with its evaluation, its line in metrics.jsonl and, if it is
    the best, its model in the run folder, then `on_evaluate`, then `on_epoch_end`, then the checkpoint. Several
    callbacks are called in the order given, each hook by all of them before the next hook. `on_train_end` comes last,
    when the run folder is complete. Time spent here is not counted as training time.

    A finished run that is only read again calls nothing. One that goes on from a checkpoint does not tell again what
    lies before it; what an abrupt end has lost behind it is computed and reported once more.

    Of several processes the main one alone calls, while the others wait at each epoch's end. A stop or a fault in
    `on_step_end` then takes effect at the next step that 10 divides.

    Each gets copies, and may draw random numbers: nothing it does to them changes the run. `StopTraining` ends the
    training. Any other exception ends the run with a `CallbackError`, raised from it, after a checkpoint is written:
    the same run, started again, goes on after the call that failed. Ctrl-C is no fault and passes through.

    >>> class StopBelow:  # needs no base class
    ...     def __init__(self, loss):
    ...         self.loss = loss
    ...
    ...     def on_epoch_end(self, run, record):
    ...         if record["train"]["loss"] < self.loss:
    ...             raise StopTraining(f"loss below {self.loss}")
    >>> from reptile_distil import Experiment
    >>> options = ("method=finetune", "data.max_train_rows=32", "train.epochs=5")
    >>> results = Experiment.from_yaml("configs/quickstart.yaml", *options, callbacks=[StopBelow(10.0)]).fit()
    >>> results["num_steps"], results["stopped_by"]
    (2, 'StopBelow.on_epoch_end: loss below 10.0')
    """

    def on_step_end(self, run: RunInfo, step: int, logs: Logs, rates: dict[str, float]) -> None:
        """Called after each optimizer step, counted from 1 over the whole run.

        Args:
            run: the run.
            step: its number.
            logs: scalars on the device, `loss` and `grad_norm` among them. To read one waits for the device.
            rates: the learning rates of this step: `lr`, and those of the teacher and the inner step where they are.
        """

    def on_evaluate(self, run: RunInfo, record: dict[str, Any]) -> None:
        """Called after each evaluation with `epoch`, `step`, `scores` by dev split and the `score` that chooses.

        With a teacher also `teacher_scores`, `teacher_score`, `agreement` and `teacher_drift`.
        """

    def on_epoch_end(self, run: RunInfo, record: dict[str, Any]) -> None:
        """Called after each epoch with its line of metrics.jsonl: as `on_evaluate`, and `train`, the mean logs."""

    def on_train_end(self, run: RunInfo, results: dict[str, Any]) -> None:
        """Called once, with what results.json holds. There is nothing left to stop here."""


def check_callbacks(callbacks: Sequence[object]) -> tuple[object, ...]:
    """The callbacks, if they can be called. Raises `CallbackError`, naming what is wrong and what is expected."""
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise CallbackError(f"callbacks: expected a list of objects, got {_kind(callbacks)}")
    for callback in callbacks:
        if isinstance(callback, type):
            raise CallbackError(f"callback {callback.__name__}: is a class; give an object: {callback.__name__}()")
        owner = type(callback).__name__
        for name in (name for name in dir(callback) if name.startswith("on_") and name not in HOOKS):
            if callable(getattr(callback, name)):
                hint = did_you_mean(name, HOOKS) or f"; there are {', '.join(HOOKS)}"
                raise CallbackError(f"callback {owner}.{name}: is never called{hint}")
        hooks = _hooks_of(callback)
        if not hooks:
            raise CallbackError(f"callback {owner}: has none of {', '.join(HOOKS)}")
        for name, hook in hooks.items():
            _check_hook(f"{owner}.{name}", hook, HOOKS[name])
    return tuple(callbacks)


def _hooks_of(callback: object) -> dict[str, Callable[..., Any]]:
    """The hooks that a callback has; one that is only inherited from `Callback` does nothing."""
    hooks = {}
    for name in HOOKS:
        hook = getattr(callback, name, None)
        if hook is not None and getattr(hook, "__func__", hook) is not getattr(Callback, name):
            hooks[name] = hook
    return hooks


def _check_hook(name: str, hook: Callable[..., Any], parameters: Sequence[str]) -> None:
    if not callable(hook):
        raise CallbackError(f"callback {name}: expected a method, got {_kind(hook)}")
    if inspect.iscoroutinefunction(hook):
        raise CallbackError(f"callback {name}: is asynchronous, and nothing would await it")
    try:
        signature = inspect.signature(hook)
    except (TypeError, ValueError):  # not written in Python: its first call will show
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        raise CallbackError(f"callback {name}{signature}: is called with ({', '.join(parameters)})") from None


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r}"


class RunCallbacks:
    """The callbacks of one run.

    Args:
        callbacks: checked ones. Of several processes the main one's count.
        run: what each hook gets first.
        trackers: called after them. They read the logs only in those steps in which the run has read them.
        device: where the run computes.
        processes: those of the run; each must create one of these and call it alike.
    """

    def __init__(
        self,
        callbacks: Sequence[object],
        run: RunInfo,
        *,
        trackers: Sequence[object] = (),
        device: str = "cpu",
        processes: Processes = ALONE,
    ) -> None:
        self.run = run
        self._processes = processes
        self._device = torch.device(device)
        self._hooks: dict[str, list[tuple[str, Callable[..., Any]]]] = {name: [] for name in HOOKS}
        self._may_read_steps = any("on_step_end" in _hooks_of(callback) for callback in callbacks)
        for callback in (*callbacks, *trackers):
            for name, hook in _hooks_of(callback).items():
                self._hooks[name].append((f"{type(callback).__name__}.{name}", hook))
        self._called = processes.on_main(lambda: {name for name in HOOKS if self._hooks[name]})
        self._stopped_by: str | None = None
        self._fault: CallbackError | None = None

    def may_wait(self, step: int) -> bool:
        """Whether `on_step_end` may wait for the device after this step, for logs or for the other processes."""
        return self._may_read_steps or ("on_step_end" in self._called and self._settles_after(step))

    def on_step_end(self, step: int, logs: Logs, rates: Mapping[str, float]) -> str | None:
        """Reports a step; returns which callback has asked for the end of training, if any. Raises `CallbackError`."""
        if "on_step_end" not in self._called:
            return None
        # Copies: `total = logs["loss"]` followed by `total += ...` writes into the tensor itself.
        self._call_hook("on_step_end", f"after step {step}", lambda: (step, _copies(logs), dict(rates)))
        if self._processes.count > 1 and not self._settles_after(step):
            return None
        return self._settle()

    def on_epoch_end(self, record: EpochRecord) -> str | None:
        """Reports an epoch's evaluation, then the epoch; returns and raises as `on_step_end`."""
        if not self._called:
            return None
        when = f"after epoch {record.epoch}"
        self._call_hook("on_evaluate", when, lambda: (record.evaluation_to_dict(),))  # a new dict each time
        self._call_hook("on_epoch_end", when, lambda: (record.to_dict(),))
        return self._settle()

    def on_train_end(self, results: Mapping[str, Any]) -> None:
        """Reports the run's end. Raises `CallbackError`."""
        if "on_train_end" in self._called:
            self._call_hook("on_train_end", "at the end", lambda: (copy.deepcopy(dict(results)),))
            self._settle()

    def _call_hook(self, name: str, when: str, arguments: Callable[[], tuple[Any, ...]]) -> None:
        """Calls a hook of each callback on the main process, and notes what comes of it."""
        if not self._processes.is_main or self._fault is not None:
            return
        for owner, hook in self._hooks[name]:
            try:
                with random_numbers_repeated(self._device):
                    hook(self.run, *arguments())
            except StopTraining as stop:
                self._stopped_by = self._stopped_by or (f"{owner}: {stop}" if str(stop) else owner)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                run = f"{self.run.method} on {self.run.task}"
                self._fault = CallbackError(f"callback {owner} failed {when} of {run}: {reason}")
                self._fault.__cause__ = error
                return

    def _settles_after(self, step: int) -> bool:
        """Whether several processes settle then."""
        return self._processes.count > 1 and step % STEPS_BETWEEN_AGREEMENTS == 0

    def _settle(self) -> str | None:
        """On every process, what the main one's callbacks have asked for; raises what they have raised."""
        return self._processes.on_main(self._outcome)

    def _outcome(self) -> str | None:
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault
        return self._stopped_by


def _copies(logs: Logs) -> Logs:
    return {name: value.clone() for name, value in logs.items()}
