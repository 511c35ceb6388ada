"""Reports the numbers of metrics.jsonl to TensorBoard, Weights & Biases and trackio; to none unless asked for.

Their own libraries are called, and imported only where they are asked for. accelerate's trackers would do as well, but
for a run of one process they need a state of accelerate's that nothing else here needs, they close a run that failed as
one that did not, and newer versions of them must be started otherwise than older ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from reptile_distil.errors import MissingExtraError, RunError, first_sentence
from reptile_distil.methods.step import Logs
from reptile_distil.runtime.files import read_json, write_text
from reptile_distil.training.callbacks import RunInfo

logger = logging.getLogger(__name__)

PROJECT = "reptile_distil"
"""What runs are filed under in wandb (unless WANDB_PROJECT says otherwise) and trackio."""
NAMES_FILE = "trackers.json"
"""In the run folder: what a tracker calls the run, for when it goes on."""

Numbers = Mapping[str, float]


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, values: Numbers, step: int) -> None:
        """Takes the values of a step of the run."""
        ...

    def close(self, *, failed: bool) -> None:
        """Writes what is not written yet, and ends the run there."""
        ...


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir runs` calls a run `task/method-seed`."""

    def __init__(self, run: RunInfo, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # After an abrupt end, what comes after the checkpoint is reported again and replaces the first report.
        purge = {"purge_step": step + 1} if step else {}
        self._writer: Any = SummaryWriter(str(run.folder), **purge)
        self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2)}\n```", global_step=step)
        self._writer.flush()

    def log(self, values: Numbers, step: int) -> None:
        """Writes them at once: an abrupt end loses nothing."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Closes the event file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; the same one when it goes on."""

    def __init__(self, run: RunInfo, *, step: int) -> None:
        import wandb

        key = _remembered(run, "wandb") if step else None
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=_name(run),
            id=_remember(run, "wandb", key or uuid.uuid4().hex),
            resume="allow",
            config=run.config,
        )

    def log(self, values: Numbers, step: int) -> None:
        """Hands them over."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run as finished or as failed."""
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of trackio; the same one when it goes on."""

    def __init__(self, run: RunInfo, *, step: int) -> None:
        import trackio

        name = _remembered(run, "trackio") if step else None
        resume = "allow" if name else "never"
        self._run: Any = trackio.init(project=PROJECT, name=name or _name(run), config=run.config, resume=resume)
        _remember(run, "trackio", str(self._run.name))  # another one where the name was taken

    def log(self, values: Numbers, step: int) -> None:
        """Hands them over."""
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run; trackio does not tell a failed one."""
        self._run.finish()


_KINDS: Mapping[str, Callable[..., Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


class TrackerCallback:
    """Reports what is written to metrics.jsonl: `step/...` each `train.log_every` steps, `epoch/...` each epoch.

    A tracker that fails is left out from then on, with a warning: it is no reason to lose a run.
    """

    def __init__(self, trackers: Mapping[str, Tracker], run: RunInfo) -> None:
        self._trackers = dict(trackers)
        settings = run.config["teacher"]["train"] if run.method == "teacher" else run.config["train"]
        self._log_every: int = settings["log_every"]

    def on_step_end(self, run: RunInfo, step: int, logs: Logs, rates: dict[str, float]) -> None:
        """Reads the logs, which waits for the device, in those steps alone in which the run reads them too."""
        if step % self._log_every == 0 or step == run.num_steps:
            self._log({**{name: float(value) for name, value in logs.items()}, **rates}, "step", step)

    def on_epoch_end(self, run: RunInfo, record: dict[str, Any]) -> None:
        """Tells of an epoch: the scores, and the means over its steps."""
        self._log(
            {name: value for name, value in record.items() if name not in ("event", "step")}, "epoch", record["step"]
        )

    def close(self, *, failed: bool) -> None:
        """Closes every tracker."""
        for name in list(self._trackers):
            self._call(name, lambda tracker: tracker.close(failed=failed))

    def _log(self, values: Mapping[str, Any], prefix: str, step: int) -> None:
        numbers = dict(_flat(values, prefix))
        for name in list(self._trackers):
            self._call(name, lambda tracker: tracker.log(numbers, step))

    def _call(self, name: str, act: Callable[[Tracker], None]) -> None:
        try:
            act(self._trackers[name])
        except Exception as error:  # whatever it is, the run does not depend on it
            del self._trackers[name]
            logger.warning("tracker %s failed, and gets no further records: %s", name, first_sentence(error))


def check_trackers(names: Sequence[str]) -> None:
    """Raises `MissingExtraError` where a tracker's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            extra = "pip install 'reptile-distil[tensorboard]'" if name == "tensorboard" else f"pip install {name}"
            raise MissingExtraError(f"trackers: {name} is not installed; {extra}, or leave it out")


@contextlib.contextmanager
def tracked(names: Sequence[str], run: RunInfo, *, step: int) -> Iterator[list[TrackerCallback]]:
    """A callback for the trackers of these names, if there are any; they are closed at the end, whatever ends it.

    `step` is the one from which the run goes on, 0 for a new run. Raises `RunError` where a tracker does not start.
    """
    if not names:
        yield []
        return
    trackers: dict[str, Tracker] = {}
    callback = None
    failed = True
    try:
        for name in names:
            try:
                trackers[name] = _KINDS[name](run, step=step)
            except Exception as error:
                raise RunError(f"tracker {name} cannot be started: {first_sentence(error)}") from error
        callback = TrackerCallback(trackers, run)
        yield [callback]
        failed = False
    finally:
        (callback or TrackerCallback(trackers, run)).close(failed=failed)


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers in nested mappings, by path; what is undefined or no number is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}/{name}")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}/{name}", float(value)


def _name(run: RunInfo) -> str:
    return f"{run.task}/{run.folder.name}"


def _remember(run: RunInfo, tracker: str, name: str) -> str:
    """Notes what a tracker calls the run; returns it."""
    names = {**_names(run), tracker: name}
    write_text(run.folder / NAMES_FILE, json.dumps(names))
    return name


def _remembered(run: RunInfo, tracker: str) -> str | None:
    name = _names(run).get(tracker)
    return name if isinstance(name, str) else None


def _names(run: RunInfo) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        names = read_json(run.folder / NAMES_FILE)
        return names if isinstance(names, dict) else {}
    return {}
