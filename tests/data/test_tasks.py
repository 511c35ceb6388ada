import copy
import pickle
import subprocess
import sys

import pytest

from reptile_distil.data.tasks import GLUE, Task, get_task
from reptile_distil.errors import ConfigError

pytestmark = pytest.mark.smoke


def own_task(**changes):
    fields = {
        "name": "mine",
        "text_columns": ("text",),
        "label_names": ("no", "yes"),
        "metrics": ("accuracy",),
        "splits": {"train": (), "dev": ()},
        "files": {"train": "train.csv", "dev": "dev.csv"},
    }
    return Task(**{**fields, **changes})


def test_the_ten_glue_tasks_are_there():
    assert list(GLUE) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax"]


def test_each_task_is_filed_under_its_own_name():
    assert all(task.name == name for name, task in GLUE.items())


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("cola", ("unacceptable", "acceptable")),
        ("sst2", ("negative", "positive")),
        ("mrpc", ("not_equivalent", "equivalent")),
        ("stsb", ()),
        ("qqp", ("not_duplicate", "duplicate")),
        ("qnli", ("entailment", "not_entailment")),
        ("rte", ("entailment", "not_entailment")),
        ("wnli", ("not_entailment", "entailment")),
    ],
)
def test_label_names_stand_in_the_published_order(name, labels):
    assert get_task(name).label_names == labels


@pytest.mark.parametrize("name", ["mnli", "ax"])
def test_mnli_and_ax_have_the_hubs_label_order(name):
    assert get_task(name).label_names == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cola", {"train": (8551,), "dev": (1043,), "test": (1063,)}),
        ("sst2", {"train": (67349,), "dev": (872,), "test": (1821,)}),
        ("mrpc", {"train": (3668,), "dev": (408,), "test": (1725,)}),
        ("stsb", {"train": (5749,), "dev": (1500,), "test": (1379,)}),
        ("qqp", {"train": (363846, 363849), "dev": (40430,), "test": (390965,)}),
        ("qnli", {"train": (104743,), "dev": (5463,), "test": (5463,)}),
        ("rte", {"train": (2490,), "dev": (277,), "test": (3000,)}),
        ("wnli", {"train": (635,), "dev": (71,), "test": (146,)}),
        ("ax", {"test": (1104,)}),
    ],
)
def test_row_counts_are_the_published_ones(name, counts):
    assert get_task(name).splits == counts


def test_mnli_has_two_dev_and_two_test_splits():
    assert get_task("mnli").splits == {
        "train": (392702,),
        "dev_matched": (9815,),
        "dev_mismatched": (9832,),
        "test_matched": (9796,),
        "test_mismatched": (9847,),
    }
    assert get_task("mnli").dev_splits == ("dev_matched", "dev_mismatched")
    assert get_task("mnli").test_splits == ("test_matched", "test_mismatched")


@pytest.mark.parametrize(("name", "split"), [("cola", "dev"), ("mnli", "dev_matched")])
def test_a_model_is_selected_on_dev_and_for_mnli_on_the_matched_one(name, split):
    assert get_task(name).selection_split == split


def test_ax_has_nothing_to_select_a_model_on():
    assert get_task("ax").dev_splits == ()
    with pytest.raises(ConfigError, match="task ax has no dev split"):
        _ = get_task("ax").selection_split


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("cola", ("matthews_correlation",)),
        ("sst2", ("accuracy",)),
        ("mrpc", ("f1", "accuracy")),
        ("stsb", ("pearson", "spearmanr")),
        ("qqp", ("f1", "accuracy")),
        ("mnli", ("accuracy",)),
        ("ax", ("matthews_correlation",)),
    ],
)
def test_metrics_are_the_published_ones(name, metrics):
    assert get_task(name).metrics == metrics


@pytest.mark.parametrize(("name", "width"), [("stsb", 1), ("sst2", 2), ("mnli", 3)])
def test_num_labels_is_the_width_of_the_last_layer(name, width):
    assert get_task(name).num_labels == width


def test_stsb_alone_is_a_regression():
    assert [name for name, task in GLUE.items() if task.is_regression] == ["stsb"]


def test_cola_and_sst2_alone_are_single_sentences():
    assert [name for name, task in GLUE.items() if not task.is_pair] == ["cola", "sst2"]


@pytest.mark.parametrize(("typed", "meant"), [("sst", "sst2"), ("SST-2", "sst2"), ("mnlii", "mnli")])
def test_an_unknown_task_is_answered_with_a_suggestion(typed, meant):
    with pytest.raises(ConfigError, match=f"unknown task '{typed}', known: cola, .*did you mean '{meant}'"):
        get_task(typed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"text_columns": ()}, "text_columns needs one or two columns"),
        ({"text_columns": ("a", "b", "c")}, "text_columns needs one or two columns"),
        ({"label_names": ("only",)}, "two or more different names"),
        ({"label_names": ("a", "b", "a")}, "two or more different names"),
        ({"folder": "X"}, "folder is for GLUE and files for a task of your own, not both"),
        ({"files": {"train": "train.csv"}}, r"files names the splits \['train'\]"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=f"task mine: .*{reason}"):
        own_task(**changes)


def test_a_task_survives_copying_and_pickling():
    assert copy.deepcopy(GLUE["mnli"]) == pickle.loads(pickle.dumps(GLUE["mnli"])) == GLUE["mnli"]


def test_the_table_imports_nothing_heavy():
    code = "import sys, reptile_distil.data.tasks; assert not {'datasets', 'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("labels", "metric", "kind"),
    [
        ((), "accuracy", "a regression task"),
        ((), "f1", "a regression task"),
        (("no", "yes"), "pearson", "a task with 2 classes"),
        (("a", "b", "c"), "f1", "a task with 3 classes"),
    ],
)
def test_a_metric_that_the_labels_do_not_have_is_refused(labels, metric, kind):
    with pytest.raises(ConfigError, match=f"^task mine: {metric} is no metric of {kind}[,;].* its metrics are "):
        own_task(label_names=labels, metrics=(metric,))
