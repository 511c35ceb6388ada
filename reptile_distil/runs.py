"""One run, one folder: what is in it, and when it counts as done.

config.yaml        the whole configuration
environment.json   versions, device, command line
metrics.jsonl      one line every few steps and one an epoch, written as the run goes
model/             the best student so far; loads with AutoModelForSequenceClassification.from_pretrained
results.json       written last: the run is finished
curves.png         drawn from metrics.jsonl and results.json afterwards, where matplotlib is installed

Beside the folder lies .NAME.lock, held by the process that runs in it; the system frees it when that process ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch
import transformers
import yaml

from reptile_distil.errors import RunError, RunInUseError
from reptile_distil.models import quiet_transformers

logger = logging.getLogger(__name__)

Results = dict[str, Any]


class RunFolder:
    """The files of one run under `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.results = self.path / "results.json"
        self._config = self.path / "config.yaml"
        self._metrics = self.path / "metrics.jsonl"
        self._lock = self.path.absolute().parent / f".{self.path.absolute().name}.lock"

    @contextlib.contextmanager
    def claimed(self, *, wait: bool = False) -> Iterator[None]:
        """Keeps other processes, on this or another machine, from running in the folder.

        Raises `RunInUseError` where another process has it, unless `wait`; `RunError` where the folder's parent cannot
        be written or its file system knows no locks.
        """
        lock = filelock.FileLock(self._lock)
        try:
            self.check_usable()
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
            yield
        finally:
            lock.release()

    def read_results(self, decisive: Mapping[str, Any]) -> Results | None:
        """The results of a finished run; None where there is none.

        Raises `RunError` where the finished run was made with other decisive values (flat, by dotted key).
        """
        if not self.results.exists():
            return None
        try:
            results: Results = json.loads(self.results.read_text(encoding="utf-8"))
            old = results["decisive"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunError(
                f"{self.results}: cannot be read ({error}); remove the folder or run again with --overwrite"
            ) from None
        new = json.loads(json.dumps(decisive))
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise RunError(
                    f"{self.path}: holds a finished run with {key} = {old.get(key)!r}, not {new.get(key)!r}; "
                    "give another output_dir (or runs_dir), or run again with --overwrite"
                )
        return results

    def check_usable(self) -> None:
        """Raises `RunError` where the folder holds something else than a run, which a run would mix with."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file; give another output_dir")
        if self.path.exists() and any(self.path.iterdir()) and not self._config.exists():
            raise RunError(f"{self.path}: is not empty and holds no run; give another output_dir")

    def start(self, config_yaml: str, device: str) -> None:
        """An empty folder for a new run: what an earlier run left here is removed. Raises `RunError`."""
        self.check_usable()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # results.json first: while it exists, the folder counts as a finished run.
            for file in (self.results, self._metrics, self.path / "curves.png"):
                file.unlink(missing_ok=True)
            shutil.rmtree(self.model, ignore_errors=True)
            _write(self._config, config_yaml)
            _write(self.path / "environment.json", _to_json(describe_environment(device)))
            self._metrics.touch()
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line to metrics.jsonl."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_without_nan(record)) + "\n")

    def save_model(self, model: Any, tokenizer: Any) -> None:
        """Replaces model/ by this model and tokenizer; a reader never sees half of either."""
        new, old = self.path / "model.new", self.path / "model.old"
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        with quiet_transformers():
            model.save_pretrained(new)
            tokenizer.save_pretrained(new)
        if self.model.exists():
            self.model.rename(old)
        new.rename(self.model)
        shutil.rmtree(old, ignore_errors=True)

    def finish(self, results: Results) -> None:
        """Writes results.json: from now on the run is finished."""
        _write(self.results, _to_json(results))

    def read_config(self) -> dict[str, Any]:
        """The configuration that the run was started with, as plain values. Raises `RunError`."""
        try:
            values: dict[str, Any] = yaml.safe_load(self._config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
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


def _write(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(_without_nan(values), indent=2) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: an undefined score is null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
