"""The trials of one row on one task, in a file that several processes share, and from which a killed search goes on.

A trial is written with its values in one line before it is run, and its folder has a lock that the system frees when
its process dies: whoever comes next takes up such a trial first. What the sampler draws depends on its seed, the
trial's number and the finished trials alone, so that a search which was killed goes on as one that never stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np

from reptile_distil.config.table_sections import SearchConfig
from reptile_distil.errors import MissingExtraError, RunError, first_sentence
from reptile_distil.runtime.files import make_folder
from reptile_distil.sweeps.space import Values, is_whole

_SETTINGS, _INPUTS = "settings", "inputs"
_NAME = "trials"
_UNREADABLE = (ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What Optuna raises for a file whose lines are not what it has written."""


class Trial(NamedTuple):
    """A trial's number, from 0 on, and what it has drawn."""

    number: int
    values: Values


class Ended(NamedTuple):
    """A trial that has ended."""

    trial: Trial
    score: float | None
    """The mean over seeds; None where it failed."""
    reason: str
    """Why it failed."""


class _JournalLock:
    """The lock of the file of trials: one that a process which is killed does not leave behind.

    Whoever has it finds whole lines: one whose writing was cut short (a full disk, a machine that died) is cut off.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = filelock.FileLock(journal.with_name(".trials.lock"), fallback_to_soft=False)

    def acquire(self) -> bool:
        """Waits for the lock."""
        self._lock.acquire()
        try:
            self._cut_unfinished_line()
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        """Frees it."""
        self._lock.release()

    def _cut_unfinished_line(self) -> None:
        if not self._journal.exists() or not self._journal.stat().st_size:
            return
        with self._journal.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


class Study:
    """The trials in `folder`. Raises `RunError` where they are of another search, `MissingExtraError` without Optuna.

    Args:
        search: what is drawn, how often and how.
        settings: what else decides a trial's score, by dotted key.
    """

    def __init__(self, folder: Path, search: SearchConfig, settings: Mapping[str, Any]) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise MissingExtraError("search needs the package optuna: pip install 'reptile-distil[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self.folder, self._search = folder, search
        make_folder(folder)
        self._turn = filelock.FileLock(folder / ".turn.lock", fallback_to_soft=False)
        self._journal = folder / "trials.log"
        lock: Any = _JournalLock(self._journal)
        with self._turn:
            with self._reading():
                lock.acquire()  # which cuts off an unfinished line
                lock.release()
                backend = JournalFileBackend(str(self._journal), lock_obj=lock)
                self._storage: Any = optuna.storages.JournalStorage(backend)
                self._study: Any = optuna.create_study(
                    storage=self._storage, study_name=_NAME, direction="maximize", load_if_exists=True
                )
                old = self._study.user_attrs.get(_SETTINGS)
            self._check(settings, old)

    def check_inputs(self, digests: Mapping[str, str]) -> None:
        """Raises `RunError` where what the trials are made from is not what it was at the first one.

        What is not there now, or was not there then, is not compared.
        """
        with self._turn:
            with self._reading():
                old = self._study.user_attrs.get(_INPUTS)
            if old is None:
                self._study.set_user_attr(_INPUTS, dict(digests))
                return
        for name in sorted(old.keys() & digests.keys()):
            if old[name] != digests[name]:
                raise RunError(
                    f"{self.folder}: the {name} has changed since this search began; put the old one back, give "
                    "another name, or remove this folder"
                )

    @contextlib.contextmanager
    def next_trial(self) -> Iterator[Trial | None]:
        """A trial for this process to run, kept from others inside; None where there is none (now): see `is_over`."""
        with contextlib.ExitStack() as held:
            with self._turn:
                trials = self._trials()
                trial = self._left_behind(trials, held)
                if trial is None and len(trials) < self._search.trials:
                    trial = Trial(len(trials), self._draw(trials))
                    held.enter_context(self._lock(trial.number))
                    self._write(trial)
            yield trial

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended."""
        trials = self._trials()
        return len(trials) >= self._search.trials and all(trial.state.is_finished() for trial in trials)

    def end(self, trial: Trial, score: float | None, reason: str = "") -> None:
        """Notes how a trial has ended: with this score, or, without one, for this reason."""
        states = self._optuna.trial.TrialState
        with self._turn:
            if score is None:
                study = self._storage.get_study_id_from_name(_NAME)
                number = self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)
                self._storage.set_trial_user_attr(number, "reason", reason)
                self._study.tell(trial.number, state=states.FAIL)
            else:
                self._study.tell(trial.number, score)

    def ended(self) -> list[Ended]:
        """The trials that have ended, the best first, those that failed last."""
        found = [
            Ended(Trial(one.number, one.params), one.value, one.user_attrs.get("reason", ""))
            for one in self._trials()
            if one.state.is_finished()
        ]
        return sorted(found, key=lambda one: (one.score is None, -(one.score or 0.0), one.trial.number))

    def _trials(self) -> list[Any]:
        with self._reading():
            trials: list[Any] = self._study.get_trials(deepcopy=False)
            return trials

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Where the file of trials cannot be read inside, raises `RunError`."""
        try:
            yield
        except _UNREADABLE as error:
            raise RunError(
                f"{self._journal}: is damaged ({first_sentence(error)}); put back a copy of it, or remove {self.folder}"
            ) from None

    def _check(self, settings: Mapping[str, Any], old: Mapping[str, Any] | None) -> None:
        keys = {key: drawn.model_dump(mode="json") for key, drawn in self._search.keys.items()}
        sampler = {"sampler": self._search.sampler, "sampler_seed": self._search.sampler_seed}
        new: dict[str, Any] = json.loads(json.dumps({**settings, **sampler, "search.keys": keys}))
        if old is None:
            self._study.set_user_attr(_SETTINGS, new)
            return
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                raise RunError(
                    f"{self.folder}: holds a search with {key} = {json.dumps(old.get(key))}, not "
                    f"{json.dumps(new.get(key))}; give another name, or remove this folder"
                )

    def _left_behind(self, trials: list[Any], held: contextlib.ExitStack) -> Trial | None:
        """A trial whose process has died, now held by this one."""
        for one in trials:
            if not one.state.is_finished():
                with contextlib.suppress(filelock.Timeout):
                    held.enter_context(self._lock(one.number))
                    return Trial(one.number, one.params)
        return None

    def _lock(self, number: int) -> Any:
        """Held at once; raises `filelock.Timeout` where another process has it."""
        return filelock.FileLock(self.folder / f".trial-{number}.lock", timeout=0, fallback_to_soft=False)

    def _draw(self, trials: list[Any]) -> Values:
        """What the sampler draws after the trials that have a score."""
        samplers = self._optuna.samplers
        seed = int(np.random.SeedSequence([self._search.sampler_seed, len(trials)]).generate_state(1)[0])
        sampler = samplers.TPESampler if self._search.sampler == "tpe" else samplers.RandomSampler
        study = self._optuna.create_study(sampler=sampler(seed=seed), direction="maximize")
        complete = self._optuna.trial.TrialState.COMPLETE
        study.add_trials([one for one in trials if one.state == complete])
        values: Values = study.ask(self._distributions()).params
        return values

    def _write(self, trial: Trial) -> None:
        running = self._optuna.trial.TrialState.RUNNING
        distributions, params = self._distributions(), dict(trial.values)
        new = self._optuna.trial.create_trial(state=running, params=params, distributions=distributions)
        self._study.add_trial(new)

    def _distributions(self) -> dict[str, Any]:
        kinds = self._optuna.distributions
        found = {}
        for key, drawn in self._search.keys.items():
            if drawn.choices:
                found[key] = kinds.CategoricalDistribution(drawn.choices)
            else:
                kind = kinds.IntDistribution if is_whole(key) else kinds.FloatDistribution
                found[key] = kind(drawn.low, drawn.high, log=drawn.log)
        return found
