"""What a run has written: metrics.jsonl as tables, one row an epoch or one every few steps, and results.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reptile_distil.errors import RunError
from reptile_distil.runtime.files import read_json, read_text

if TYPE_CHECKING:
    import pandas as pd
if TYPE_CHECKING:
    pass


Record = Mapping[str, Any]

_NAMES = {"scores": "", "teacher_scores": "teacher", "train": "train", "last_gap": "gap"}
"""What a value of an epoch's record is called in the table; any other has its own name."""


def read_epochs(run_folder: str | Path) -> pd.DataFrame:
    """One row for each epoch that the run has finished, by number (counted from 1).

    Columns: `step`, `train_seconds`; `score`, that chooses the best epoch, and each one of a dev split
    (`dev_accuracy`); `train_loss` and the other logs' means over the epoch; with a teacher `teacher_score`,
    `teacher_dev_accuracy`, `agreement` and `teacher_drift`; for Reptile `gap`, the last step's. An undefined score is
    NaN. Raises `RunError` where there is no run.
    """
    return _table(run_folder, "epoch", "epoch")


def read_steps(run_folder: str | Path) -> pd.DataFrame:
    """One row for each logged step (`train.log_every`), by number (counted from 1).

    Columns: `epoch`, the step's logs (`loss`, `grad_norm`, ...) and learning rates (`lr`, `teacher_lr`). Raises
    `RunError` where there is no run.
    """
    return _table(run_folder, "step", "step")


def _table(run_folder: str | Path, event: str, index: str) -> pd.DataFrame:
    import pandas as pd  # takes a second, which a run need not wait for

    records = [dict(_flat(record)) for record in read_records(Path(run_folder)) if record["event"] == event]
    frame = pd.DataFrame(records, columns=list(dict.fromkeys(name for record in records for name in record)))
    if frame.empty:
        frame = pd.DataFrame(columns=[index])
    numbers = {name: "int64" if name in ("epoch", "step") else "float64" for name in frame.columns}
    return frame.astype(numbers).set_index(index)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises `RunError` where there is no run, or the file is damaged."""
    file = folder / "metrics.jsonl"
    try:
        text = read_text(file)
        # What follows the last line's end is what a run that died was writing, or one that lives is.
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except FileNotFoundError:
        raise RunError(f"{folder}: no run yet; run fit() or scripts/distil.py first") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from None
    if not all(isinstance(record, dict) and "event" in record for record in records):
        raise RunError(f"{file}: cannot be read: a line is no record of a run")
    return records


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    """Names of columns and their values."""
    for key, value in record.items():
        name = _NAMES.get(key, key)
        if isinstance(value, Mapping):
            for inner, number in _flat(value):
                yield f"{name}_{inner}".lstrip("_"), number
        elif key != "event" and not (key == "last_gap" and value is None):
            yield name, value


def read_run(run_folder: str | Path) -> tuple[Record, list[Record]]:
    """What is in a run's results.json, and in each line of its metrics.jsonl. Raises `RunError`."""
    folder = Path(run_folder)
    try:
        results = read_json(folder / "results.json")
        lines = read_text(folder / "metrics.jsonl").splitlines()
        return results, [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: holds no finished run to draw: {error}") from None
