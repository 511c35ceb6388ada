"""A task of one's own through a whole run: sets of labels, class weights, held-out rows instead of a dev file."""

import csv
import io
import json

import numpy as np
import pytest
import torch
import transformers

from reptile_distil import Experiment
from reptile_distil.builders.loss import class_weights
from reptile_distil.config.config import load_config
from reptile_distil.data.features import Features
from reptile_distil.errors import ConfigError, DataError, ModelError
from reptile_distil.experiments.teachers import TeacherLogits
from reptile_distil.losses.distillation import task_loss
from reptile_distil.models.pretrained import load_finetuned
from tests.helpers.experiments import weights_of
from tests.helpers.paths import TINY
from tests.helpers.saved_models import edit_config

LABELS = ("good", "film")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of rows whose label is a set of words of the text, or the first of them; the last file has no labels."""
    folder = tmp_path_factory.mktemp("data")
    texts = ["good film", "dull", "film", "good", "a bad film", "the plot is good", "a good film"]
    for split, times in {"train": 6, "dev": 2, "test": 1}.items():
        rows = []
        for number in range(times * len(texts)):
            text = texts[number % len(texts)]
            names = [name for name in LABELS if name in text]
            rows.append({"text": text, "tags": names, "first": (names or ["none"])[0], "score": len(names)})
            if split == "test":
                rows[-1] |= {"tags": None, "first": None, "score": None}
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def task_of(kind, files=("train", "dev", "test"), **changes):
    described = {
        "sets": {"label": "tags", "labels": [*LABELS], "multi_label": True, "metrics": ["f1_macro", "subset_accuracy"]},
        "classes": {"label": "first", "labels": ["none", *LABELS], "metrics": ["f1_macro", "balanced_accuracy"]},
        "regression": {"label": "score", "metrics": ["pearson"]},
    }[kind]
    named = {split: f"{split}.jsonl" for split in files}
    return "task=" + json.dumps({"name": "mine", "text": ["text"], "files": named, **described, **changes})


@pytest.fixture
def own(data, tmp_path):
    def own(kind, *overrides, **options):
        fixed = (f"runs_dir={tmp_path}/runs", f"data.path={data}", "data.max_train_rows=null", "data.cache_dir=false")
        return Experiment.from_yaml(TINY, task_of(kind, **options), *fixed, *overrides)

    return own


WAYS = {
    "finetune": ("method=finetune",),
    "kd": ("method=kd",),
    "reptile": ("method=reptile",),
    "student_first": ("method=reptile", "reptile.order=student_first"),
    "metadistil": ("method=metadistil", "metadistil.quiz_fraction=0.3"),
    "prokt": ("method=prokt",),
    "cotrain": ("method=cotrain", "cotrain.order=teacher_first"),
    "checkpoints": ("method=checkpoints",),
    "lgtm": ("method=lgtm", "lgtm.quiz_fraction=0.3"),
    "extra_rows": ("method=kd", "loss.extra_rows=0.5", "loss.extra_fraction=0.3"),
    "teacher_step": ("method=reptile", "reptile.task_lr=1e-3", "train.micro_batch_size=5", "loss.soft=mse"),
}


@pytest.mark.parametrize("way", WAYS)
def test_sets_of_labels_are_learned_by_every_method(own, way):
    experiment = own("sets", *WAYS[way], "loss.class_weights=balanced")
    results = experiment.fit()
    assert results["scores"]["dev"].keys() == {"f1_macro", "subset_accuracy"}
    assert experiment.evaluate() == results["scores"]
    saved = json.loads((experiment.folder.model / "config.json").read_text())
    assert saved["problem_type"] == "multi_label_classification"
    assert saved["id2label"] == {"0": "good", "1": "film"}
    predictions, labels = experiment.folder.read_predictions("dev", multi_label=True)
    assert predictions.shape == labels.shape == (14, 2)


@pytest.mark.parametrize(("second_row", "is_one"), [([2.0, 1.0], False), ([3.0, -2.0], True)])
def test_a_teacher_of_sets_says_one_thing_where_every_row_gets_the_same_set(own, monkeypatch, second_row, is_one):
    """In both cases the first label has the highest logit in every row, which says nothing of the sets."""

    def logits_of(self, batches, rows, title=None):
        said = np.tile(np.array([2.0, -1.0], np.float32), (batches.num_rows, 1))
        said[1::2] = second_row
        return said, 0.0

    monkeypatch.setattr(TeacherLogits, "of", logits_of)
    results = own("sets", "method=kd", "kd.keep_logits=false").fit()
    assert results["teacher"]["one_class"] == (["dev"] if is_one else [])


def test_a_pipeline_of_the_saved_student_gives_the_probability_of_each_label(own):
    experiment = own("sets", "method=finetune")
    experiment.fit()
    (prediction,) = experiment.predict(["good film"])
    classify = transformers.pipeline("text-classification", model=str(experiment.folder.model), top_k=None)
    found = {row["label"]: row["score"] for row in classify(["good film"])[0]}
    assert found == pytest.approx(prediction.probabilities, abs=1e-5)
    assert prediction.label == tuple(name for name in LABELS if prediction.probabilities[name] > 0.5)


@pytest.mark.parametrize("kind", ["sets", "classes", "regression"])
def test_a_split_without_labels_is_predicted_and_has_no_scores(own, kind):
    experiment = own(kind, "method=finetune")
    experiment.fit()
    predicted = experiment.predict_split("test")
    assert (len(predicted.predictions), predicted.labels, predicted.scores) == (7, None, None)


def test_predictions_of_sets_are_joined_by_the_separator_that_the_task_reads_them_with(own):
    experiment = own("sets", "method=finetune", label_separator=" | ")
    experiment.fit()
    predicted = experiment.predict_split("dev")
    joined = [" | ".join(prediction.label) for prediction in predicted.predictions]
    for kind in (".csv", ".tsv"):
        rows = list(csv.DictReader(io.StringIO(predicted.to_text(kind)), delimiter="," if kind == ".csv" else "\t"))
        assert [row["prediction"] for row in rows] == joined
        assert [row["label"] for row in rows[:3]] == ["good | film", "", "film"]


@pytest.mark.parametrize("kind", ["sets", "classes", "regression"])
def test_held_out_rows_choose_the_best_epoch_where_there_is_no_dev_file(own, kind):
    experiment = own(kind, "method=kd", "data.validation_fraction=0.3", files=("train",))
    results = experiment.fit()
    assert list(results["scores"]) == ["validation"]
    assert results["num_train_rows"] == 29
    assert own(kind, "method=kd", "data.validation_fraction=0.3", files=("train",)).fit() == results
    assert experiment.evaluate() == experiment.evaluate("validation") == results["scores"]


@pytest.mark.parametrize("kind", ["sets", "classes", "regression"])
def test_without_a_dev_file_and_held_out_rows_the_sentence_names_both_remedies(own, kind):
    with pytest.raises(
        ConfigError, match=r"task mine has no dev split to select a model on: .* data.validation_fraction"
    ):
        own(kind, "method=finetune", files=("train",)).fit()


# Class weights


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("sets", "finetune"),
        ("classes", "kd"),
        pytest.param("sets", "reptile", marks=pytest.mark.slow),
        pytest.param("classes", "finetune", marks=pytest.mark.slow),
        pytest.param("sets", "kd", marks=pytest.mark.slow),
        pytest.param("classes", "reptile", marks=pytest.mark.slow),
    ],
)
def test_class_weights_change_the_student_and_weights_of_1_do_not(own, tmp_path, kind, method):
    ones = [1.0] * (2 if kind == "sets" else 3)
    students = [
        own(kind, f"method={method}", f"runs_dir={tmp_path}/{number}", f"loss.class_weights={weights}")
        for number, weights in enumerate(["null", ones, "balanced"])
    ]
    for student in students:
        student.fit()
    plain, same, other = map(weights_of, students)
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert not torch.equal(plain["classifier.weight"], other["classifier.weight"])


def rows_of(labels):
    rows = torch.ones(len(labels), dtype=torch.long).numpy()
    return Features.end_to_end({"input_ids": rows}, rows, torch.tensor(labels).numpy())


def with_weights(kind, weights, data):
    return load_config(TINY, [task_of(kind), f"data.path={data}", f"loss.class_weights={weights}"])


def test_balanced_weights_are_rows_over_classes_times_rows_of_the_class(data):
    config = with_weights("classes", "balanced", data)
    weights = class_weights(config, rows_of([0, 0, 0, 1, 1, 2]), ("none", *LABELS), "cpu")
    assert weights.tolist() == pytest.approx([6 / 9, 6 / 6, 6 / 3])
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    assert weights[labels].mean().item() == pytest.approx(1.0)
    logits = torch.zeros(6, 3)
    assert task_loss(logits, labels, weights).item() == pytest.approx(task_loss(logits, labels).item())


def test_balanced_weights_of_sets_are_negatives_over_positives(data):
    config = with_weights("sets", "balanced", data)
    rows = rows_of([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert class_weights(config, rows, LABELS, "cpu").tolist() == pytest.approx([1 / 3, 3.0])


@pytest.mark.parametrize(
    ("kind", "weights", "message"),
    [
        ("regression", "balanced", "loss.class_weights: task mine is a regression, which has no classes"),
        ("regression", "[1.0, 2.0]", "loss.class_weights: task mine is a regression, which has no classes"),
        ("classes", "[1.0, 2.0]", "loss.class_weights: 2 weights, but task mine has 3 labels: none, good, film"),
        ("sets", "[1.0]", "loss.class_weights: 1 weights, but task mine has 2 labels: good, film"),
    ],
)
@pytest.mark.parametrize("method", ["finetune", "kd"])
def test_class_weights_that_do_not_fit_are_refused_before_anything_is_trained(
    own, tmp_path, kind, weights, message, method
):
    with pytest.raises(ConfigError, match=message):
        own(kind, f"method={method}", f"loss.class_weights={weights}").fit()
    assert not list(tmp_path.glob("runs/**/metrics.jsonl"))


@pytest.mark.parametrize(("kind", "labels", "rare"), [("classes", [0, 1, 1], "film"), ("sets", [[1.0, 0.0]], "film")])
def test_balanced_weights_need_a_row_of_each_class(data, kind, labels, rare):
    names = LABELS if kind == "sets" else ("none", *LABELS)
    with pytest.raises(ConfigError, match=f"balanced: no training row has the label {rare}; give a list of weights"):
        class_weights(with_weights(kind, "balanced", data), rows_of(labels), names, "cpu")


@pytest.mark.parametrize("role", ["finetune", "teacher", "kd", "reptile", "metadistil"])
def test_class_weights_decide_a_runs_result_and_their_absence_is_as_it_was(data, role):
    plain = with_weights("classes", "null", data)
    assert not {"loss.class_weights", "task.multi_label", "task.hub", "task.quoting"} & set(
        plain.defining_settings(role)
    )
    weighted = with_weights("classes", "balanced", data)
    assert weighted.defining_settings(role)["loss.class_weights"] == "balanced"


# Models of another kind of task


@pytest.mark.parametrize(
    ("kind", "problem_type", "is_refused"),
    [
        ("sets", "single_label_classification", True),
        ("sets", None, False),
        ("classes", "multi_label_classification", True),
        ("classes", None, False),
    ],
)
def test_a_teacher_whose_logits_mean_something_else_is_refused(own, kind, problem_type, is_refused):
    experiment = own(kind, "method=finetune")
    experiment.fit()
    edit_config(experiment.folder.model, problem_type=problem_type)
    if is_refused:
        with pytest.raises(ModelError, match=rf"says problem_type = {problem_type}, but task mine is a "):
            load_finetuned(str(experiment.folder.model), experiment.task)
    else:
        load_finetuned(str(experiment.folder.model), experiment.task)


# What contradicts itself in the configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}, "hub": None}, "give either files, the file of each split, or hub"),
        ({"hub": "me/mine"}, "give either files, the file of each split, or hub"),
        ({"revision": "main"}, "revision belongs to hub, but the task has files"),
        ({"splits": {"train": "train"}}, "splits belongs to hub, but the task has files"),
        ({"files": {}, "hub": "../mine"}, "task.hub = '../mine'"),
        ({"files": {}, "hub": "me/mine", "splits": {"valid": "x"}}, "'valid' is no split: expected train, dev or test"),
        ({"label": ["good"]}, "label: give one column, or a list of two or more different ones"),
        ({"label": ["good", "film", "plot"]}, "labels names 2 labels, but label names 3 columns"),
        ({"metrics": ["macro_f1"]}, "its metrics are f1_macro, f1_micro, f1_weighted, subset_accuracy; did you mean"),
        ({"quoting": "double"}, "task.quoting = 'double'"),
    ],
)
def test_a_task_that_contradicts_itself_is_one_sentence(changes, message):
    described = json.loads(task_of("sets").removeprefix("task="))
    with pytest.raises(ConfigError) as caught:
        load_config(TINY, ["task=" + json.dumps({**described, **changes})])
    assert message in str(caught.value)


SMALL = (
    "data.max_length=32",
    "teacher.pretrained=toy-bert-2L-16H",
    "student.num_layers=1",
    "train.epochs=1",
    "teacher.train.epochs=1",
)
MESSY = '\ufefftext,label\n"Good, and ""long"" too",positive\n\nplain,negative\n"two\nlines",positive\n\n'


@pytest.fixture
def my_task(tmp_path, monkeypatch):
    """An empty folder to work in, and in it my_task/ with files as people keep them: quotes, empty lines, a BOM."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my_task"
    folder.mkdir()
    for name in ("train.csv", "dev.csv"):
        (folder / name).write_text(MESSY, encoding="utf-8")
    return folder


def test_the_yaml_to_copy_runs_as_it_is_on_two_files_of_ones_own(my_task, caplog):
    experiment = Experiment.from_yaml("own-task", *SMALL)
    results = experiment.fit()
    assert "my_task/train.csv: empty lines left out: 1, the first is line 3" in caplog.text
    assert (results["task"], results["method"], results["num_train_rows"]) == ("my-task", "kd", 3)
    assert experiment.config.student.init == "finetuned_layers"
    assert experiment.config.loss.alpha > 0
    assert {prediction.label for prediction in experiment.predict(["plain"])} <= {"negative", "positive"}
    assert experiment.predict_split("dev").labels == ["positive", "negative", "positive"]


def test_a_label_in_dev_that_the_yaml_does_not_name_is_refused_with_file_and_line(my_task):
    with (my_task / "dev.csv").open("a", encoding="utf-8") as file:
        file.write("so so,neutral\n")
    with pytest.raises(DataError, match=r"my_task/dev\.csv, line 8: unknown label 'neutral'"):
        Experiment.from_yaml("own-task", *SMALL).fit()


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("{name: mine, text: [a, b], label: score, metrics: [pearson], files: {train: t.csv}}", ("a", "b")),
        ("{name: mine, text: [a], metrics: [f1_macro], hub: me/mine}\ndata: {path: null}", ("a",)),
        ("{name: my-task, text: [a]}", ("a",)),
        ("{label: score}", ("text",)),
    ],
)
def test_a_task_under_another_name_has_nothing_of_the_one_it_extends(tmp_path, task, expected):
    (tmp_path / "mine.yaml").write_text(f"extends: own-task.yaml\ntask: {task}\n")
    config = load_config(tmp_path / "mine.yaml")
    found = config.task
    assert tuple(found.text) == expected
    is_other = found.name == "mine"
    assert bool(found.labels) == (not is_other)
    assert ("dev" in found.files) == (not is_other)
    assert (config.method, config.student.init) == ("kd", "finetuned_layers")
