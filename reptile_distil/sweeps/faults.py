"""Whether a trial has failed by the values that it has drawn, or by what every trial would fail by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reptile_distil.config.config import Config
from reptile_distil.config.table_sections import RangeConfig
from reptile_distil.data.tasks import Task
from reptile_distil.errors import DivergedError, OutOfMemoryError, ReptileDistilError, RunError, first_sentence
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.runtime.measuring import free_memory, is_out_of_memory
from reptile_distil.sweeps.space import Values, ends, with_values


def is_of_values(error: Exception) -> bool | None:
    """Whether it can only come of the values; None where others must be tried, to know.

    A run that diverges or finds no memory does so by its values. What is wrong with a run folder, or no fault that a
    user can mend, is never theirs.
    """
    if isinstance(error, DivergedError | OutOfMemoryError) or is_out_of_memory(error):
        return True
    return None if isinstance(error, ReptileDistilError) and not isinstance(error, RunError) else False


def sentence(error: Exception) -> str:
    """What the error says, on one line."""
    return str(error) if isinstance(error, ReptileDistilError) else first_sentence(error)


def others(keys: Mapping[str, RangeConfig], best: Values | None) -> list[Values]:
    """Values to try in the place of a trial's: those of the best trial, or else none, all lowest and all highest."""
    if best is not None:
        return [best]
    first, last = ({key: ends(drawn)[end] for key, drawn in keys.items()} for end in (0, -1))
    return [{}, first, last]


def raise_if_of_all(said: str, candidates: Iterable[Values], config: Config, task: Task) -> None:
    """Raises the error of which `said` is the sentence where it comes with all other values too.

    Model, teacher and data are loaded, as for a run, and nothing is trained.
    """
    found: ReptileDistilError | None = None
    for values in candidates:
        free_memory()
        try:
            load(with_values(config, values), task)
        except ReptileDistilError as error:
            if str(error) != said:
                return
            found = error
        else:
            return
    if found is not None:
        raise found


def load(config: Config, task: Task) -> Any:
    """All that a run trains with. Raises whatever the run would raise before it trains."""
    experiment = Experiment(config, task=task)
    experiment.check_plugins()
    with experiment.own_settings():
        return experiment.setup.assemble(config.method, experiment.prepare(config.method)[0])
