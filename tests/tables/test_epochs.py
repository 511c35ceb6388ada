"""The tidy CSV that a table's numbers come from."""

import csv
import io
import json

import pytest

from reptile_distil.data.tasks import GLUE
from reptile_distil.errors import RunError
from reptile_distil.tables.data import TableData
from reptile_distil.tables.formats import FIELDS, to_epochs_csv

RTE = GLUE["rte"]
EPOCHS = [
    {"event": "step", "step": 5, "loss": 1.0},
    {
        "event": "epoch",
        "epoch": 1,
        "step": 10,
        "train_seconds": 2.04,
        "scores": {"validation": {"accuracy": 0.5}},
        "teacher_scores": {"validation": {"accuracy": 0.75}},
        "agreement": 0.625,
        "last_gap": 12.5,
        "teacher_drift": 0.25,
    },
    {
        "event": "epoch",
        "epoch": 2,
        "step": 20,
        "train_seconds": 4.0,
        "scores": {"validation": {"accuracy": None}},
        "teacher_scores": {"validation": {"accuracy": 0.7}},
        "agreement": 0.5,
        "last_gap": None,
        "teacher_drift": 0.5,
    },
]
RESULTS = {
    "best_epoch": 1,
    "scores": {"validation": {"accuracy": 0.5}, "dev": {"accuracy": 0.4}},
    "teacher": {
        "scores_at_start": {"validation": {"accuracy": 0.8}, "dev": {"accuracy": 0.9}},
        "scores_at_end": {"validation": {"accuracy": 0.7}, "dev": {"accuracy": 0.6}},
    },
}


def table(folder):
    return TableData((RTE,), ("reptile",), (7,), {("rte", "reptile", 7): RESULTS}, {("rte", "reptile", 7): folder})


def write(folder, records):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_every_score_of_every_epoch_is_a_line_and_unseen_splits_have_theirs_where_they_were_looked_at(tmp_path):
    write(tmp_path, EPOCHS)
    text = to_epochs_csv(table(tmp_path))
    assert text.splitlines()[0] == ",".join(FIELDS)
    assert text.splitlines()[1:] == [
        "rte,reptile,7,0,0,0.0,teacher,validation,accuracy,0.8",
        "rte,reptile,7,0,0,0.0,teacher,dev,accuracy,0.9",
        "rte,reptile,7,1,10,2.0,student,validation,accuracy,0.5",
        "rte,reptile,7,1,10,2.0,student,dev,accuracy,0.4",
        "rte,reptile,7,1,10,2.0,teacher,validation,accuracy,0.75",
        "rte,reptile,7,1,10,2.0,,,agreement,0.625",
        "rte,reptile,7,1,10,2.0,,,gap,12.5",
        "rte,reptile,7,1,10,2.0,,,teacher_drift,0.25",
        "rte,reptile,7,1,10,2.0,,,chosen,1",
        "rte,reptile,7,2,20,4.0,student,validation,accuracy,",
        "rte,reptile,7,2,20,4.0,teacher,validation,accuracy,0.7",
        "rte,reptile,7,2,20,4.0,teacher,dev,accuracy,0.6",
        "rte,reptile,7,2,20,4.0,,,agreement,0.5",
        "rte,reptile,7,2,20,4.0,,,teacher_drift,0.5",
        "rte,reptile,7,2,20,4.0,,,chosen,0",
    ]


def test_a_run_without_its_metrics_has_its_final_scores_alone(tmp_path):
    lines = list(csv.DictReader(io.StringIO(to_epochs_csv(table(tmp_path)))))
    assert [(line["epoch"], line["split"], line["value"]) for line in lines] == [
        ("", "validation", "0.5"),
        ("", "dev", "0.4"),
    ]


@pytest.mark.parametrize("text", ["{\n", "[1]\n", "7\n"])
def test_damaged_metrics_are_named(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read"):
        to_epochs_csv(table(tmp_path))
