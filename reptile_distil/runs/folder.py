"""One run, one folder: what is in it, and when it counts as done.

config.yaml        the whole configuration
environment.json   versions, device, command line
metrics.jsonl      one line every few steps and one an epoch, written as the run goes
model/             the best student so far; loads with AutoModelForSequenceClassification.from_pretrained
predictions_*.json what that student says of each row of a dev split, beside the labels
checkpoints/       where an unfinished run goes on
results.json       written last: the run is finished
events.out.tfevents.* and trackers.json, where trackers are asked for
curves.png         drawn from metrics.jsonl and results.json afterwards, where matplotlib is installed

Beside the folder lies .NAME.lock, held by the process that runs in it; the system frees it when that process ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
import transformers
import yaml
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError

from reptile_distil.errors import RunError, RunInUseError
from reptile_distil.models.loading import quiet_transformers
from reptile_distil.runs.records import Environment, Predictions, Results, read_record, read_results
from reptile_distil.runtime.files import describe_fault, share_files, sync_file, sync_folder
from reptile_distil.training.records import EpochRecord, StepRecord, nan_to_null

logger = logging.getLogger(__name__)


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
        self._config = self.path / "config.yaml"
        self._environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self._lock = self.path.absolute().parent / f".{self.path.absolute().name}.lock"

    @contextlib.contextmanager
    def claimed(self, *, wait: bool = False) -> Iterator[None]:
        """Keeps other processes, on this or another machine, from running in the folder.

        Raises `RunInUseError` where another process has it, unless `wait`; `RunError` where the folder's parent cannot
        be written or its file system knows no locks.
        """
        lock = filelock.FileLock(self._lock)
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if not wait:
                raise RunInUseError(f"{self.path}: another process is running in this folder") from None
            logger.info("waiting for the process that is running in %s", self.path)
            lock.acquire(poll_interval=1.0)
        except (OSError, NotImplementedError) as error:
            raise RunError(f"{self.path}: cannot be claimed for this run: {error}") from None
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
        results = read_results(self.results, f"remove the folder, {self.remedy}")
        self.check_same("a finished run", results.decisive, decisive)
        return results

    @property
    def is_finished(self) -> bool:
        """Whether there is a results.json, whatever it holds. Raises `RunError` where the folder cannot be read."""
        try:
            return self.results.exists()
        except OSError as error:
            raise RunError(f"{self.results}: cannot be read ({error.strerror}); {self.remedy}") from None

    def check_same(self, run: str, old: Mapping[str, Any], decisive: Mapping[str, Any]) -> None:
        """Raises `RunError` where `run` was made with other decisive values, naming the first."""
        new = json.loads(json.dumps(decisive))
        for key in sorted(old.keys() | new.keys()):
            # `glue/` is the folder `glue`.
            if _without_end_slash(old.get(key)) != _without_end_slash(new.get(key)):
                was, wanted = (json.dumps(values.get(key), ensure_ascii=False) for values in (old, new))
                raise RunError(f"{self.path}: holds {run} with {key} = {was}, not {wanted}; {self.remedy}")

    def check_usable(self) -> None:
        """Raises `RunError` where the folder holds something else than a run, which a run would mix with."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; give another output_dir")
        if self.path.exists() and any(self.path.iterdir()) and not self._config.exists():
            raise RunError(f"{self.path}: is not empty and holds no run; give another output_dir")
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.is_symlink():  # what is written through it would land outside
                raise RunError(f"{entry}: is a symbolic link, which a run does not follow; remove it")

    def start(self, config_yaml: str, device: str) -> None:
        """An empty folder for a new run: what an earlier run left here is removed. Raises `RunError`."""
        self.check_usable()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # results.json first: while it exists, the folder counts as a finished run.
            leftovers = (self.results, self.metrics, self.path / "curves.png", *self.path.glob("predictions_*.json"))
            of_trackers = (self.path / "trackers.json", *self.path.glob("events.out.tfevents.*"))
            for file in (*leftovers, *of_trackers):
                file.unlink(missing_ok=True)
            _remove(self.model)
            _write(self._config, config_yaml)
            _write(self._environment, _to_json(describe_environment(device)))
            self.metrics.touch()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None

    def go_on(self, config_yaml: str, device: str, *, metrics_size: int, best: Path) -> None:
        """The folder as it was at a checkpoint: with so many bytes of metrics.jsonl, and the model in `best`."""
        self.check_usable()
        try:
            os.truncate(self.metrics, metrics_size)
            if best.is_dir():
                self._replace_model(lambda new: share_files(best, new))
            _write(self._config, config_yaml)
            environment = describe_environment(device)
            with contextlib.suppress(OSError, ValueError):  # a damaged environment.json is no reason to stop
                first = json.loads(self._environment.read_text(encoding="utf-8"))
                environment = {**first, "gone_on": [*first.get("gone_on", ()), environment]}
            _write(self._environment, _to_json(environment))
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None

    def log(self, record: EpochRecord | StepRecord) -> None:
        """Appends one line to metrics.jsonl. Raises `RunError` where it cannot."""
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(nan_to_null(record.to_dict())) + "\n")
        except OSError as error:
            raise RunError(f"{self.metrics}: cannot be written: {error.strerror}") from None

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """Replaces model/ by this model and tokenizer; a reader never sees half of either.

        Raises `RunError` where it cannot be written; model/ is then as it was.
        """

        def save(new: Path) -> None:
            with quiet_transformers():
                model.save_pretrained(new)
                tokenizer.save_pretrained(new)

        try:
            self._replace_model(save)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(self.path / "model.new", ignore_errors=True)
            raise RunError(f"{self.model}: cannot be written: {describe_fault(error)}") from None

    def _replace_model(self, write: Callable[[Path], None]) -> None:
        new, old = self.path / "model.new", self.path / "model.old"
        for leftover in (new, old):
            _remove(leftover)
        write(new)
        if self.model.exists():
            self.model.rename(old)
        new.rename(self.model)
        _remove(old)

    def save_predictions(self, split: str, predictions: ArrayLike, labels: ArrayLike) -> None:
        """Replaces what the best model says of each row (N,) of a dev split: class indices, or numbers."""
        values = {"predictions": np.asarray(predictions).tolist(), "labels": np.asarray(labels).tolist()}
        _write(self._predictions(split), json.dumps(nan_to_null(values)) + "\n")

    def read_predictions(self, split: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Predictions (N,) and labels (N,) of a dev split; None where they were not kept. Raises `RunError`."""
        file = self._predictions(split)
        if not file.exists():
            return None
        found = read_record(file, Predictions, "run again with --overwrite")
        return np.asarray(found.predictions), np.asarray(found.labels)

    def read_environment(self) -> Environment:
        """The versions that the run was made with. Raises `RunError`."""
        return read_record(self._environment, Environment, "run again with --overwrite")

    def _predictions(self, split: str) -> Path:
        return self.path / f"predictions_{split}.json"

    def finish(self, results: Results) -> None:
        """Writes results.json: from now on the run is finished."""
        _write(self.results, _to_json(results.to_dict()))

    def read_config(self) -> dict[str, Any]:
        """The configuration that the run was started with, as plain values. Raises `RunError`."""
        try:
            values: dict[str, Any] = yaml.safe_load(self._config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise RunError(f"{self._config}: cannot be read: {error}") from None
        return values


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


def _without_end_slash(value: Any) -> Any:
    return value.rstrip("/") if isinstance(value, str) else value


def _remove(path: Path) -> None:
    """Removes a file, a link (not what it points to) or a folder, as far as that is allowed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    """Writes the whole file or nothing, and waits until it is on the disk."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    sync_file(temporary)
    temporary.replace(path)
    sync_folder(path.parent)


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(nan_to_null(values), indent=2) + "\n"
