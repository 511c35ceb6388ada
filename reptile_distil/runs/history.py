"""What a run has recorded, whole or as pandas tables: one row for each epoch, or for each logged step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptile_distil.errors import RunError
from reptile_distil.runs.records import Metrics, Results, read_metrics, read_results

if TYPE_CHECKING:
    import pandas as pd

_NAMES = {"scores": "", "teacher_scores": "teacher", "train": "train", "last_gap": "gap"}
"""What a value of an epoch's record is called in the table; any other has its own name."""


def read_epochs(run_folder: str | Path) -> pd.DataFrame:
    """One row for each epoch that the run has finished, by number (counted from 1).

    Columns: `step`, `train_seconds`; `score`, that chooses the best epoch, and each one of a dev split
    (`dev_accuracy`); `train_loss` and the other logs' means over the epoch; with a teacher `teacher_score`,
    `teacher_dev_accuracy`, `agreement` and `teacher_drift`; for Reptile `gap`, the last step's. An undefined score is
    NaN. Raises `RunError` where there is no run.
    """
    epochs = read_metrics(Path(run_folder)).epochs
    return _table([record.to_dict() for record in epochs], "epoch")


def read_steps(run_folder: str | Path) -> pd.DataFrame:
    """One row for each logged step (`train.log_every`), by number (counted from 1).

    Columns: `epoch`, the step's logs (`loss`, `grad_norm`, ...) and learning rates (`lr`, `teacher_lr`). Raises
    `RunError` where there is no run.
    """
    steps = read_metrics(Path(run_folder)).steps
    return _table([record.to_dict() for record in steps], "step")


def _table(records: Sequence[Mapping[str, Any]], index: str) -> pd.DataFrame:
    import pandas as pd  # takes a second, which a run need not wait for

    rows = [dict(_flat(record)) for record in records]
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)))
    if frame.empty:
        frame = pd.DataFrame(columns=[index])
    numbers = {name: "int64" if name in ("epoch", "step") else "float64" for name in frame.columns}
    return frame.astype(numbers).set_index(index)


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Names of columns and their values."""
    for key, value in record.items():
        name = _NAMES.get(key, key)
        if isinstance(value, Mapping):
            for inner, number in _flat(value):
                yield f"{name}_{inner}".lstrip("_"), number
        elif key != "event" and not (key == "last_gap" and value is None):
            yield name, value


def read_run(run_folder: str | Path) -> tuple[Results, Metrics]:
    """Results and metrics of a finished run, of one epoch or more. Raises `RunError` where there is none."""
    folder = Path(run_folder)
    if not (folder / "results.json").exists():
        raise RunError(f"{folder}: holds no finished run to draw")
    results, metrics = read_results(folder / "results.json"), read_metrics(folder)
    if not metrics.epochs:
        raise RunError(f"{folder / 'metrics.jsonl'}: holds no epoch to draw; run again with --overwrite")
    return results, metrics
