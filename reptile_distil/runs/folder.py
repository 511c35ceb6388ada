"""One run, one folder: what is in it, and when it counts as done.

config.yaml        the whole configuration
environment.json   versions, device, command line
metrics.jsonl      one line every few steps and one an epoch, written as the run goes
model/             the best student so far; loads with AutoModelForSequenceClassification.from_pretrained
predictions_*.json what that student says of each row of a dev split, beside the labels
epochs/            where the teacher's run is asked for them, the models of all its epochs
checkpoints/       where an unfinished run goes on
results.json       written last: the run is finished
events.out.tfevents.* and trackers.json, where trackers are asked for
curves.png         drawn from metrics.jsonl and results.json afterwards, where matplotlib is installed

Beside the folder lies .NAME.lock, held by the process that runs in it; the system frees it when that process ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
import transformers
from numpy.typing import ArrayLike, NDArray

from reptile_distil.errors import RunError, RunInUseError
from reptile_distil.models.loading import quiet_transformers
from reptile_distil.runs.records import Environment, PredictedSets, Predictions, Results, read_record, read_results
from reptile_distil.runs.settings import find_differences
from reptile_distil.runtime.files import (
    append_text,
    copy_files,
    describe_fault,
    finished_name,
    is_endless_link,
    make_folder,
    nearest_place,
    read_json,
    remove,
    remove_folder,
    replace_folder,
    sync_folder,
    write_bytes,
    write_text,
)
from reptile_distil.training.records import EpochRecord, StepRecord, nan_to_null

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What a file system answers that knows no locks."""

_WRITTEN = re.compile(
    r"(config\.yaml|environment\.json|metrics\.jsonl|predictions_\w+\.json|results\.json|trackers\.json|curves\.png)"
    r"|model|epochs|checkpoints"
)
"""What a run writes: a temporary file or folder of such a name is a run's own."""


class RunFolder:
    """The files of one run under `path`; `remedy` says what to do where another run than the wanted one is there."""

    def __init__(
        self, path: str | Path, *, remedy: str = "give another output_dir (or runs_dir), or run again with --overwrite"
    ) -> None:
        self.path = Path(path)
        self.remedy = remedy
        self.model = self.path / "model"
        self.results = self.path / "results.json"
        self.checkpoints = self.path / "checkpoints"
        self.epochs = self.path / "epochs"
        self.config = self.path / "config.yaml"
        self._environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self._lock = self.path.absolute().parent / f".{self.path.absolute().name}.lock"

    @contextlib.contextmanager
    def claimed(self, *, wait: bool = False) -> Iterator[None]:
        """Keeps other processes, on this or another machine, from running in the folder.

        Raises `RunInUseError` where another process has it, unless `wait`; `RunError` where the folder's parent cannot
        be written or its file system knows no locks, and as `check_reachable` does.
        """
        # The other kind of lock that the library knows is a file that a process which is killed leaves behind for ever.
        lock = filelock.FileLock(self._lock, fallback_to_soft=False)
        check_reachable(self.path)
        try:
            make_folder(self._lock.parent)
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if not wait:
                raise RunInUseError(f"{self.path}: another process is running in this folder") from None
            logger.info("waiting for the process that is running in %s", self.path)
            lock.acquire(poll_interval=1.0)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise RunError(f"{self.path}: cannot be claimed for this run: {error}") from None
            raise RunError(
                f"{self.path}: lies on a file system without locks ({describe_fault(error) or error}), where two "
                "processes could run in one folder; give an output_dir or runs_dir on another one"
            ) from None
        try:
            # Not before: a folder in which another process is just starting holds no run yet.
            self.check_usable()
            yield
        finally:
            lock.release()

    def read_results(self, decisive: Mapping[str, Any]) -> Results | None:
        """The results of a finished run; None where there is none.

        Raises `RunError` where results.json is damaged, or the run was made with other values of the settings that
        decide its result (`decisive`: flat, by dotted key).
        """
        if not self.is_finished:
            return None
        results = read_results(self.results, self.remedy)
        self.check_same("a finished run", results.decisive, decisive)
        return results

    @property
    def is_finished(self) -> bool:
        """Whether there is a results.json, whatever it holds. Raises `RunError` where the folder cannot be read."""
        try:
            return self.results.exists()
        except OSError as error:
            raise RunError(f"{self.results}: cannot be read ({error.strerror}); {self.remedy}") from None

    def check_same(
        self,
        run: str,
        old: Mapping[str, Any],
        decisive: Mapping[str, Any],
        reads_the_same: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Raises `RunError` where `run` was made with other decisive values, naming the first.

        `reads_the_same` says of a key with another value whether the files that it names are the same all the same.
        """
        new = json.loads(json.dumps(decisive))
        for key in find_differences(old, new):
            if not reads_the_same(key):
                was, wanted = (json.dumps(values.get(key), ensure_ascii=False) for values in (old, new))
                raise RunError(f"{self.path}: holds {run} with {key} = {was}, not {wanted}; {self.remedy}")

    def check_usable(self) -> None:
        """Raises `RunError` where the folder holds something else than a run, which a run would mix with."""
        check_reachable(self.path)
        entries = list(self.path.iterdir()) if self.path.exists() else []
        if not self.config.exists() and not all(map(_is_leftover, entries)):
            raise RunError(f"{self.path}: is not empty and holds no run; give another output_dir")
        for entry in entries:
            if entry.is_symlink():  # what is written through it would land outside
                raise RunError(f"{entry}: is a symbolic link, which a run does not follow; remove it")

    def remove_leftovers(self) -> None:
        """Removes what a write or a removal that was cut short has left. Raises `RunError`."""
        with _writing(self.path):
            for entry in self._leftovers():
                remove(entry)

    def _leftovers(self) -> list[Path]:
        return [entry for entry in self.path.iterdir() if finished_name(entry.name) and _is_leftover(entry)]

    def is_tidy(self) -> bool:
        """Whether the folder holds neither checkpoints nor what a write or a removal that was cut short has left."""
        return not os.path.lexists(self.checkpoints) and not self._leftovers()

    def tidy(self, *, keep_checkpoints: bool) -> None:
        """Removes what a finished run needs no more; a warning says what cannot be removed."""
        try:
            self.remove_leftovers()
            if not keep_checkpoints:
                remove_folder(self.checkpoints)
        except (RunError, OSError) as error:
            logger.warning("not all of a finished run's checkpoints could be removed: %s", error)

    def start(self, config_yaml: str, device: str) -> None:
        """An empty folder for a new run: what an earlier run left here is removed. Raises `RunError`."""
        self.check_usable()
        with _writing(self.path):
            make_folder(self.path)
            self.remove_leftovers()
            # results.json first: while it exists, the folder counts as a finished run.
            leftovers = (self.results, self.metrics, self.path / "curves.png", *self.path.glob("predictions_*.json"))
            of_trackers = (self.path / "trackers.json", *self.path.glob("events.out.tfevents.*"))
            for path in (*leftovers, *of_trackers, self.model, self.epochs):
                remove(path)
            write_text(self.config, config_yaml)
            write_text(self._environment, _to_json(describe_environment(device)))
            self.metrics.touch()
            sync_folder(self.path)

    def go_on(self, config_yaml: str, device: str, *, metrics: bytes, best: Path) -> None:
        """The folder as it was at a checkpoint: with these bytes of metrics.jsonl, and the model in `best`."""
        self.check_usable()
        with _writing(self.path):
            self.remove_leftovers()
            write_bytes(self.metrics, metrics)
            if best.is_dir():
                replace_folder(self.model, lambda new: copy_files(best, new))
            write_text(self.config, config_yaml)
            environment = describe_environment(device)
            with contextlib.suppress(OSError, ValueError):  # a damaged environment.json is no reason to stop
                first = read_json(self._environment)
                if isinstance(first, dict):
                    environment = {**first, "gone_on": [*first.get("gone_on", ()), environment]}
            write_text(self._environment, _to_json(environment))

    def log(self, record: EpochRecord | StepRecord) -> None:
        """Appends one line to metrics.jsonl. Raises `RunError` where it cannot."""
        with _writing(self.metrics):
            append_text(self.metrics, json.dumps(nan_to_null(record.to_dict())) + "\n")

    def epoch_model(self, epoch: int) -> Path:
        """Where the model of an epoch, counted from 1, lies if it was kept."""
        return self.epochs / f"epoch-{epoch:04d}"

    def save_model(self, model: Any, tokenizer: Any, *, epoch: int | None = None) -> None:
        """Replaces model/, or the model of an epoch, by these; a reader never sees half of either.

        Raises `RunError` where it cannot be written; what was there is then as it was.
        """
        place = self.model if epoch is None else self.epoch_model(epoch)

        def save(new: Path) -> None:
            with quiet_transformers():
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)

        with _writing(place):
            make_folder(place.parent)
            replace_folder(place, save)

    def save_predictions(self, split: str, predictions: ArrayLike, labels: ArrayLike) -> None:
        """Replaces what the best model says of each row (N,) of a dev split: class indices, or numbers.

        Raises `RunError` where that cannot be written.
        """
        values = {"predictions": np.asarray(predictions).tolist(), "labels": np.asarray(labels).tolist()}
        with _writing(self._predictions(split)):
            write_text(self._predictions(split), json.dumps(nan_to_null(values)) + "\n")

    def read_predictions(self, split: str, *, multi_label: bool = False) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Predictions and labels of a dev split, (N,), or (N, C) of a multi-label task; None where they were not kept.

        Raises `RunError` for whatever else the file holds.
        """
        file = self._predictions(split)
        if not file.exists():
            return None
        remedy = "run again with --overwrite"
        found = read_record(file, PredictedSets, remedy) if multi_label else read_record(file, Predictions, remedy)
        return np.asarray(found.predictions), np.asarray(found.labels)

    def read_environment(self) -> Environment | None:
        """The versions that the run was made with; None where the file is gone. Raises `RunError`."""
        if not os.path.lexists(self._environment):
            return None
        return read_record(self._environment, Environment, "remove it to do without the versions that it names")

    def _predictions(self, split: str) -> Path:
        return self.path / f"predictions_{split}.json"

    def finish(self, results: Results) -> None:
        """Writes results.json: from now on the run is finished. Raises `RunError` where it cannot be written."""
        with _writing(self.results):
            write_text(self.results, _to_json(results.to_dict()))


def check_reachable(path: Path) -> None:
    """Raises `RunError` where no folder can be made at `path`: a file, or a link to nothing, lies there or above it."""
    nearest = nearest_place(path)
    if nearest.is_dir():
        return
    if nearest.exists():
        lack = "is a file"
    else:
        lack = "is a link that leads to itself" if is_endless_link(nearest) else "is a link to nothing"
    raise RunError(f"{nearest}: {lack}; give another runs_dir or output_dir")


def check_writable(path: Path) -> None:
    """Raises `RunError` where no folder can be made at `path`, or nothing written into it."""
    check_reachable(path)
    nearest = nearest_place(path)
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"{nearest}: cannot be written; give another runs_dir or output_dir")


def describe_environment(device: str) -> dict[str, Any]:
    """Versions and hardware that a result may depend on."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "cpu_count": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
    }


def _is_leftover(entry: Path) -> bool:
    """Whether a write or a removal of a run that was cut short has left this entry of a run folder."""
    if entry.name == "checkpoints" and entry.is_dir():  # with no checkpoint in it yet
        return all(finished_name(inside.name) for inside in entry.iterdir())
    return _WRITTEN.fullmatch(finished_name(entry.name) or "") is not None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Where `path`, or something in it, cannot be written inside, raises `RunError` with what the system says."""
    try:
        yield
    except RunError:
        raise
    except Exception as error:
        reason = describe_fault(error)
        if reason is None:
            raise
        file = error.filename if isinstance(error, OSError) and error.filename else path
        raise RunError(f"{file}: cannot be written: {reason}") from None


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(nan_to_null(values), indent=2) + "\n"
