"""What results look like at a prompt and in a notebook."""

import csv
import io
import json
import pickle
import re
from html.parser import HTMLParser

import pytest

from reptile_distil import Experiment
from reptile_distil.runs.results import Prediction, RunResults, SplitPredictions
from reptile_distil.runtime.text_tables import html_table
from tests.helpers.paths import TINY
from tests.helpers.records import results_dict

RESULTS = results_dict(
    task="toy-<b>pair</b>",
    method="reptile",
    seed=7,
    scores={"dev": {"f1": 0.91234, "accuracy": None}},
    best_epoch=2,
    num_steps=1200,
    num_train_rows=2490,
    num_parameters=66956546,
    train_seconds=12.34,
    examples_per_second=1234.5,
    stopped_by="Mine.on_epoch_end",
    teacher={
        "scores_at_start": {"dev": {"f1": 0.95, "accuracy": 0.9}},
        "scores_at_end": {"dev": {"f1": 0.25, "accuracy": float("nan")}},
    },
)
FACTS = {
    "best epoch": "2",
    "steps": "1,200",
    "training rows": "2,490",
    "parameters": "66,956,546",
    "seconds of training": "12.3",
    "examples a second": "1,234",
    "stopped by": "Mine.on_epoch_end",
}


class Cells(HTMLParser):
    """Rows of cells; checks that every tag is closed, and that nothing is fetched or run."""

    def __init__(self, text):
        super().__init__()
        self.open, self.rows = [], []
        self.feed(text)
        assert self.open == []
        assert not re.search(r"src=|href=|url\(|<script|<style|<link", text)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()  # a browser shows no blanks at either end


def test_results_stay_a_dict():
    results = RunResults(RESULTS)
    assert isinstance(results, dict)
    assert results == RESULTS
    assert json.loads(json.dumps({**results, "teacher": 1})) == {**RESULTS, "teacher": 1}
    loaded = pickle.loads(pickle.dumps(RunResults(a=1)))
    assert (loaded, type(loaded)) == ({"a": 1}, RunResults)


def test_results_at_a_prompt_are_a_few_aligned_lines():
    assert repr(RunResults(RESULTS)).splitlines() == [
        "reptile on toy-<b>pair</b>, seed 7",
        "                  student  teacher at start  teacher at end",
        "dev f1 (%)          91.23             95.00           25.00",
        "dev accuracy (%)        -             90.00               -",
        *(f"{name:19}  {value:>17}" for name, value in FACTS.items()),
        f"dict of {', '.join(RESULTS)}",
    ]


def test_results_in_a_notebook_are_tables_with_the_same_values():
    rows = Cells(RunResults(RESULTS)._repr_html_()).rows
    assert rows == [
        ["", "student", "teacher at start", "teacher at end"],
        ["dev f1 (%)", "91.23", "95.00", "25.00"],
        ["dev accuracy (%)", "-", "90.00", "-"],
        *map(list, FACTS.items()),
    ]


@pytest.mark.parametrize("results", [{}, {"scores": {}}, {**RESULTS, "scores": {"dev": {}}}, {**RESULTS, "seed": "a"}])
def test_results_that_a_user_has_changed_into_something_else_are_shown_as_any_dict(results):
    assert repr(RunResults(results)) == repr(results)
    assert RunResults(results)._repr_html_() is None  # a notebook then shows the repr


def test_what_a_user_names_is_escaped():
    hostile = "<script>alert(1)</script>&\"'"
    assert Cells(html_table([(hostile, "1")], title=hostile)).rows == [[hostile, "1"]]
    assert "<b>pair" not in RunResults(RESULTS)._repr_html_()
    prediction = Prediction(hostile, {hostile: 0.5})
    rows = Cells(SplitPredictions([prediction], [hostile], {"accuracy": 1.0})._repr_html_()).rows
    assert rows == [
        ["accuracy (%)", "100.00"],
        ["row", "prediction", "probability", "label"],
        ["0", hostile, "0.500", hostile],
    ]


def test_of_an_examination_the_first_ten_rows_are_shown_and_the_rest_counted():
    predictions = [Prediction("no", {"yes": 0.25, "no": 0.75})] * 1234
    split_predictions = SplitPredictions(predictions, None, None)
    html = split_predictions._repr_html_()
    assert Cells(html).rows == [["row", "prediction", "probability"], *([str(i), "no", "0.750"] for i in range(10))]
    assert "and 1,224 more rows" in html
    assert repr(split_predictions) == "SplitPredictions(1,234 rows: no labels)"
    assert (
        repr(SplitPredictions(predictions, ["no"] * 1234, {"accuracy": 1.0}))
        == "SplitPredictions(1,234 rows: accuracy 100.00 %)"
    )


def test_an_examination_of_numbers_is_shown_too():
    rows = Cells(SplitPredictions([Prediction(2.34567, {})], [3.0], {"pearson": None})._repr_html_()).rows
    assert rows == [["pearson (%)", "-"], ["row", "prediction", "probability", "label"], ["0", "2.346", "-", "3.000"]]


def test_an_experiment_says_how_far_it_is(tmp_path):
    experiment = Experiment.from_yaml(TINY, "method=finetune", f"runs_dir={tmp_path}")
    start = "Experiment(finetune on toy-sentence, seed 42: "
    assert repr(experiment) == f"{start}not run yet)"
    states = []

    class Looks:
        def on_epoch_end(self, run, record):
            states.append(repr(experiment))

    experiment.callbacks = (Looks(),)
    results = experiment.fit()
    assert states == [f"{start}unfinished)"]
    assert repr(experiment) == f"{start}dev accuracy {100 * results['score']:.2f} %)"
    assert type(results) is type(experiment.fit()) is RunResults
    rows = dict(Cells(experiment._repr_html_()).rows)
    assert rows["state"] == f"dev accuracy {100 * results['score']:.2f} %"
    assert rows["folder"] == str(tmp_path / "toy-sentence" / "finetune-seed42")
    other = Experiment.from_yaml(TINY, "method=finetune", f"runs_dir={tmp_path}", "train.lr=1e-2")
    assert "holds a finished run with train.lr = 0.001, not 0.01" in repr(other)
    experiment.folder.results.write_text("{")
    assert "cannot be read" in Cells(experiment._repr_html_()).rows[-1][1]


# Predictions as files

KINDS = {
    "classes": (
        [Prediction("no", {"no": 0.75, 'a, "b"': 0.25}), Prediction('a, "b"', {"no": 0.125, 'a, "b"': 0.875})],
        ["no", "no"],
    ),
    "sets": (
        [Prediction((), {"no": 0.25, "yes": 0.25}), Prediction(("no", "yes"), {"no": 0.75, "yes": 0.625})],
        [("no",), ()],
    ),
    "regression": ([Prediction(1.5, {}), Prediction(-2.0, {})], [1.0, 2.0]),
}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_as_csv_hold_all_probabilities(kind, labelled):
    predictions, labels = KINDS[kind]
    text = SplitPredictions(predictions, labels if labelled else None, None).to_text(".csv")
    header, *rows = csv.reader(io.StringIO(text))
    names = list(predictions[0].probabilities)
    assert header == ["index", "prediction", "label", *(f"probability_{name}" for name in names)]
    for index, row in enumerate(rows):
        said = [
            value if isinstance(value, tuple) else (str(value),) for value in (predictions[index].label, labels[index])
        ]
        joined = [",".join(value) for value in said]
        assert row[:3] == [str(index), joined[0], joined[1] if labelled else ""]
        assert list(map(float, row[3:])) == list(predictions[index].probabilities.values())
    assert len(rows) == len(predictions)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_as_jsonl_are_an_object_a_line(kind, labelled):
    predictions, labels = KINDS[kind]
    text = SplitPredictions(predictions, labels if labelled else None, None).to_text(".jsonl")
    for index, (line, prediction) in enumerate(zip(text.splitlines(), predictions, strict=True)):
        plain = [list(value) if isinstance(value, tuple) else value for value in (prediction.label, labels[index])]
        assert json.loads(line) == {
            "index": index,
            "prediction": plain[0],
            "label": plain[1] if labelled else None,
            "probabilities": prediction.probabilities,
        }


@pytest.mark.parametrize("kind", ["", ".tsv", ".txt"])
def test_predictions_under_another_name_are_tab_separated(kind):
    assert SplitPredictions(*KINDS["sets"], None).to_text(kind) == (
        "index\tprediction\tprobability\tlabel\n0\t\t\tno\n1\tno,yes\t\t\n"
    )
