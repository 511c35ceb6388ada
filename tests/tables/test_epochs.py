"""The tidy CSV that a table's numbers come from."""

import csv
import io

from reptile_distil.data.tasks import GLUE
from reptile_distil.tables.data import TableData
from reptile_distil.tables.formats import FIELDS, to_epochs_csv
from tests.helpers import records as helper

RTE = GLUE["rte"]
EPOCHS = [
    {"event": "step", "epoch": 1, "step": 5, "loss": 1.0},
    helper.epoch_dict(
        1,
        train_seconds=2.04,
        scores={"validation": {"accuracy": 0.5}},
        teacher_scores={"validation": {"accuracy": 0.75}},
        agreement=0.625,
        last_gap=12.5,
        teacher_drift=0.25,
    ),
    helper.epoch_dict(
        2,
        train_seconds=4.0,
        scores={"validation": {"accuracy": None}},
        teacher_scores={"validation": {"accuracy": 0.7}},
        agreement=0.5,
        last_gap=None,
        teacher_drift=0.5,
    ),
]
RESULTS = helper.results(
    scores={"validation": {"accuracy": 0.5}, "dev": {"accuracy": 0.4}},
    teacher={
        "scores_at_start": {"validation": {"accuracy": 0.8}, "dev": {"accuracy": 0.9}},
        "scores_at_end": {"validation": {"accuracy": 0.7}, "dev": {"accuracy": 0.6}},
    },
)


def table(records):
    key = ("rte", "reptile", 7)
    epochs = helper.metrics(records).epochs
    return TableData((RTE,), ("reptile",), (7,), {key: RESULTS}, epochs={key: epochs})


def test_every_score_of_every_epoch_is_a_line_and_unseen_splits_have_theirs_where_they_were_looked_at():
    text = to_epochs_csv(table(EPOCHS))
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


def test_a_run_without_its_metrics_has_its_final_scores_alone():
    lines = list(csv.DictReader(io.StringIO(to_epochs_csv(table([])))))
    assert [(line["epoch"], line["split"], line["value"]) for line in lines] == [
        ("", "validation", "0.5"),
        ("", "dev", "0.4"),
    ]


def test_an_undefined_agreement_has_no_line():
    text = to_epochs_csv(table([{**EPOCHS[1], "agreement": None}]))
    assert "gap" in text
    assert "agreement" not in text
