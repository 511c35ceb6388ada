"""Whole results and records, of which a test states only what it is about."""

import json

from reptile_distil.runs.records import Metrics, Results
from reptile_distil.training.records import EpochRecord, StepRecord


def results_dict(**changes):
    """What a results.json holds; a `teacher` needs only what differs from one that never changes."""
    values = {
        "task": "rte",
        "method": "kd",
        "seed": 1,
        "scores": {"dev": {"accuracy": 0.5}},
        "score": 0.5,
        "best_epoch": 1,
        "num_steps": 10,
        "num_train_rows": 70,
        "num_parameters": 1000,
        "train_seconds": 1.0,
        "examples_per_second": 70.0,
        "num_processes": 1,
        "peak_memory_bytes": 1,
        "inputs": {},
        "wall_seconds": 2.0,
        "device": "cpu",
        "decisive": {},
        **changes,
    }
    if values.get("teacher") is not None:
        scores = {"scores_at_start": values["scores"], "scores_at_end": values["scores"]}
        values["teacher"] = {"num_parameters": 2000, **scores, **values["teacher"]}
    return values


def results(**changes):
    """The record of `results_dict`."""
    return Results.model_validate(results_dict(**changes))


def epoch_dict(number=1, **changes):
    """An epoch's line of metrics.jsonl."""
    values = {"event": "epoch", "epoch": number, "step": 10 * number, "train": {"loss": 1.0}, "last_gap": None}
    scores = {"train_seconds": float(number), "scores": {"dev": {"accuracy": 0.5}}, "score": 0.5}
    return {**values, **scores, **changes}


def metrics(records):
    """The records of lines of metrics.jsonl, given as dicts."""
    epochs = [EpochRecord.model_validate(record) for record in records if record["event"] == "epoch"]
    steps = [StepRecord.model_validate(record) for record in records if record["event"] == "step"]
    return Metrics(tuple(epochs), tuple(steps))


def write_run(folder, values, records=()):
    """Writes results.json and metrics.jsonl into a folder that is made for them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(values))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder
