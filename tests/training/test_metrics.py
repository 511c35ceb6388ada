"""Scores worked out by hand, and an `evaluate.Metric` that never leaves the machine."""

import math
from functools import partial
from pathlib import Path

import evaluate
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from reptile_distil.training.glue_metric import GlueMetric
from reptile_distil.training.metrics import chance_scores, compute_scores, predictions_from_logits, selection_score

pytestmark = pytest.mark.smoke

# 2 true positives, 1 true negative, 1 false positive, 1 false negative.
PREDICTIONS = [1, 1, 0, 1, 0]
REFERENCES = [1, 0, 1, 1, 0]


def score(metric, predictions, references):
    return compute_scores(predictions, references, [metric])[metric]


def test_accuracy_is_the_fraction_of_right_answers():
    assert score("accuracy", [1, 0, 1, 1], [1, 0, 0, 1]) == 0.75
    assert score("accuracy", [0, 1, 2], [2, 1, 2]) == pytest.approx(2 / 3)


def test_f1_is_that_of_class_1():
    """2 * 2 / (2 * 2 + 1 + 1); that of class 0 would be 1/2."""
    assert score("f1", PREDICTIONS, REFERENCES) == pytest.approx(2 / 3)


def test_precision_and_recall_are_not_the_same_thing_and_f1_weighs_both():
    """Precision 1/3, recall 1: 2 / (3 + 1)."""
    assert score("f1", [1, 1, 1], [1, 0, 0]) == pytest.approx(1 / 2)


def test_matthews_correlation():
    """(2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2)."""
    assert score("matthews_correlation", PREDICTIONS, REFERENCES) == pytest.approx(1 / 6)
    assert score("matthews_correlation", [1, 0], [0, 1]) == pytest.approx(-1)


def test_matthews_correlation_of_three_classes():
    """3 of 4 right; 4 * 3 - (1 * 1 + 1 * 2 + 2 * 1) = 7, over sqrt(16 - 6) * sqrt(16 - 6)."""
    assert score("matthews_correlation", [0, 1, 2, 2], [0, 1, 2, 1]) == pytest.approx(0.7)


def test_pearson():
    """Covariance 3, variances 2 and 14/3, all times 3."""
    assert score("pearson", [1.0, 2.0, 3.0], [1.0, 2.0, 4.0]) == pytest.approx(3 / math.sqrt(28 / 3))
    assert score("pearson", [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(-1)


def test_spearman_is_of_ranks():
    """Ranks 1, 3, 2, 4: 1 - 6 * (1² + 1²) / (4 * 15)."""
    assert score("spearmanr", [1.0, 2.0, 3.0, 4.0], [1.0, 100.0, 50.0, 200.0]) == pytest.approx(0.8)


def test_spearman_gives_ties_their_mean_rank():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5."""
    assert score("spearmanr", [1.0, 2.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(4.5 / math.sqrt(22.5))


def test_scores_stand_under_their_names_in_the_order_asked_for():
    scores = compute_scores(PREDICTIONS, REFERENCES, ("f1", "accuracy"))
    assert list(scores) == ["f1", "accuracy"]
    assert scores == pytest.approx({"f1": 2 / 3, "accuracy": 3 / 5})
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize("metric", ["pearson", "spearmanr"])
@pytest.mark.parametrize(
    ("predictions", "references"),
    [([2.0, 2.0, 2.0], [0.0, 1.0, 2.0]), ([0.0, 1.0, 2.0], [2.0, 2.0, 2.0]), ([1.0], [1.0])],
)
def test_a_correlation_with_constants_is_nan_without_a_warning(metric, predictions, references):
    assert math.isnan(score(metric, predictions, references))


@pytest.mark.parametrize("metric", ["pearson", "spearmanr"])
def test_a_correlation_with_nan_is_nan(metric):
    assert math.isnan(score(metric, [1.0, math.nan, 3.0], [0.0, 1.0, 2.0]))


@pytest.mark.parametrize("metric", ["matthews_correlation", "f1"])
@pytest.mark.parametrize("references", [[0, 1, 0], [1, 1, 0]])
def test_a_constant_class_0_scores_0(metric, references):
    assert score(metric, [0, 0, 0], references) == 0


def test_f1_without_any_class_1_is_0_without_a_warning():
    assert score("f1", [0, 0], [0, 0]) == 0


def test_one_class_on_both_sides_scores_0_without_a_warning():
    assert score("matthews_correlation", [0, 0], [0, 0]) == 0


@pytest.mark.parametrize(
    ("metric", "num_classes", "oracle"),
    [
        ("accuracy", 3, sklearn.metrics.accuracy_score),
        ("f1", 2, partial(sklearn.metrics.f1_score, zero_division=0.0)),
        ("matthews_correlation", 2, sklearn.metrics.matthews_corrcoef),
        ("matthews_correlation", 3, sklearn.metrics.matthews_corrcoef),
    ],
)
@pytest.mark.filterwarnings("ignore:A single label was found")
@given(data=st.data())
def test_scores_of_classes_are_scikit_learns_to_the_last_bit(metric, num_classes, oracle, data):
    classes = st.lists(st.integers(0, num_classes - 1), min_size=6, max_size=6)
    predictions, references = data.draw(classes), data.draw(classes)
    assert score(metric, predictions, references) == oracle(references, predictions)


MEANS = {
    mean: partial(sklearn.metrics.f1_score, average=mean, zero_division=0.0) for mean in ("macro", "micro", "weighted")
}


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize(
    ("metric", "oracle"),
    [
        *((f"f1_{mean}", oracle) for mean, oracle in MEANS.items()),
        ("balanced_accuracy", sklearn.metrics.balanced_accuracy_score),
    ],
)
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@given(data=st.data())
def test_means_over_classes_are_scikit_learns(metric, oracle, num_classes, data):
    classes = st.lists(st.integers(0, num_classes - 1), min_size=6, max_size=6)
    predictions, references = data.draw(classes), data.draw(classes)
    assert score(metric, predictions, references) == pytest.approx(oracle(references, predictions), abs=1e-12)


@pytest.mark.parametrize(
    ("metric", "oracle"),
    [*((f"f1_{mean}", oracle) for mean, oracle in MEANS.items()), ("subset_accuracy", sklearn.metrics.accuracy_score)],
)
@given(data=st.data())
def test_scores_of_sets_of_labels_are_scikit_learns(metric, oracle, data):
    sets = st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=5, max_size=5)
    predictions, references = np.array(data.draw(sets)), np.array(data.draw(sets))
    assert score(metric, predictions, references) == pytest.approx(oracle(references, predictions), abs=1e-12)


def test_a_label_is_predicted_where_its_probability_is_above_a_half():
    logits = np.array([[0.1, -0.1, 5.0], [0.0, -3.0, -1.0]])
    assert predictions_from_logits(logits, multi_label=True).tolist() == [[1, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_class_indices_may_be_stored_as_floats(metric):
    assert score(metric, np.array(PREDICTIONS), np.array(REFERENCES, float)) == score(metric, PREDICTIONS, REFERENCES)


def test_the_selection_score_is_the_mean():
    assert selection_score({"f1": 0.9, "accuracy": 0.8}) == pytest.approx(0.85)
    assert selection_score({"accuracy": 0.9}) == 0.9


@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_an_undefined_score_is_never_chosen(undefined):
    assert selection_score({"pearson": undefined, "spearmanr": 0.9}) == -math.inf


def test_a_score_below_0_is_better_than_an_undefined_one():
    assert selection_score({"matthews_correlation": -0.2}) > selection_score({"matthews_correlation": math.nan})


def test_class_indices_come_from_the_largest_logit():
    logits = np.array([[0.1, 0.9, 0.3], [5.0, -1.0, 4.9], [-3.0, -2.0, -1.0]])
    assert predictions_from_logits(logits).tolist() == [1, 0, 2]


def test_one_logit_is_the_prediction_itself():
    assert predictions_from_logits(np.array([[0.5], [-2.25]])).tolist() == [0.5, -2.25]


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([1, 0], [1]), ([], []), ([[1, 0]], [[1, 0]]), (1, 1)],
)
def test_rows_that_do_not_match_are_refused_with_their_shapes(predictions, references):
    with pytest.raises(
        ValueError, match=r"predictions have shape \(.*\), references \(.*\): expected two equal, non-e"
    ):
        compute_scores(predictions, references, ["accuracy"])


def test_an_unknown_metric_is_refused_with_the_known_ones():
    message = "metric 'bleu': expected one of accuracy, balanced_accuracy, f1_macro, .*, pearson, spearmanr"
    with pytest.raises(ValueError, match=message):
        compute_scores([1], [1], ["bleu"])


# As an evaluate.Metric


@pytest.fixture
def asked(monkeypatch):
    """The addresses that anything has tried to reach."""
    addresses = []
    monkeypatch.setattr("socket.socket.connect", lambda *address: addresses.append(address))
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: addresses.append(address) or [])
    return addresses


def test_the_metric_computes_what_compute_scores_does(asked):
    metric = GlueMetric(["f1", "accuracy"])
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == pytest.approx(
        {"f1": 2 / 3, "accuracy": 0.6}
    )
    assert asked == []


def test_the_metric_collects_batches(asked):
    metric = GlueMetric(["accuracy"])
    for rows in (slice(0, 3), slice(3, 5)):
        metric.add_batch(predictions=PREDICTIONS[rows], references=REFERENCES[rows])
    assert metric.compute() == {"accuracy": 0.6}
    assert asked == []


def test_the_metric_can_be_used_again_and_starts_anew():
    metric = GlueMetric(["accuracy"])
    assert metric.compute(predictions=[1, 1], references=[1, 0]) == {"accuracy": 0.5}
    assert metric.compute(predictions=[1, 1], references=[1, 1]) == {"accuracy": 1.0}


def test_the_metric_takes_numbers_for_regression():
    scores = GlueMetric(["pearson", "spearmanr"]).compute(predictions=[0.5, 1.5, 2.5], references=[1.0, 2.0, 4.0])
    assert scores == pytest.approx({"pearson": 3 / math.sqrt(28 / 3), "spearmanr": 1.0})


SETS = [[1, 0, 1], [0, 0, 1]], [[1, 0, 1], [0, 1, 1]]
OF_SETS = {"subset_accuracy": 1 / 2, "f1_micro": 6 / 7, "f1_macro": (1 + 0 + 1) / 3, "f1_weighted": 3 / 4}


@pytest.mark.parametrize("names", [list(OF_SETS), *([name] for name in OF_SETS)], ids="-".join)
@pytest.mark.parametrize("as_given", [list, np.array])
def test_the_metric_takes_sets_of_labels(names, as_given, asked):
    predictions, references = map(as_given, SETS)
    metric = GlueMetric(names)
    expected = {name: OF_SETS[name] for name in names}
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)
    for row in range(2):
        metric.add_batch(predictions=predictions[row : row + 1], references=references[row : row + 1])
    assert metric.compute() == pytest.approx(expected)
    assert asked == []


@pytest.mark.parametrize("as_given", [list, np.array])
def test_the_metric_takes_sets_of_one_label(as_given):
    metric = GlueMetric("subset_accuracy")
    assert metric.compute(predictions=as_given([[1], [0]]), references=as_given([[1], [1]])) == {"subset_accuracy": 0.5}


@pytest.mark.parametrize("name", ["f1_macro", "subset_accuracy"])
def test_a_metric_that_knows_sets_still_takes_classes(name):
    metric = GlueMetric(name)
    expected = {"f1_macro": (2 / 3 + 2 / 3 + 0) / 3, "subset_accuracy": 0.6}[name]
    for as_given in (list, np.array):
        predictions, references = as_given([0, 1, 0, 1, 1]), as_given([0, 1, 1, 1, 2])
        assert metric.compute(predictions=predictions, references=references) == {name: pytest.approx(expected)}


def test_sets_are_refused_where_a_metric_does_not_know_them():
    with pytest.raises(ValueError, match="Predictions and/or references don't match the expected format"):
        GlueMetric(["accuracy", "f1_micro"]).compute(predictions=SETS[0], references=SETS[1])


def test_two_metrics_at_a_time_do_not_mix_their_rows():
    first, second = GlueMetric(["accuracy"]), GlueMetric(["accuracy"])
    first.add_batch(predictions=[1, 1], references=[1, 1])
    second.add_batch(predictions=[1, 1], references=[0, 0])
    assert first.compute() == {"accuracy": 1.0}
    assert second.compute() == {"accuracy": 0.0}


@pytest.mark.parametrize("place", ["glue/glue.py", "glue.py", "evaluate-metric/glue/glue.py"])
def test_a_metrics_script_in_the_working_directory_is_never_run(tmp_path, monkeypatch, asked, place):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / place
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("import pathlib; pathlib.Path('executed').touch(); raise SystemExit('executed')")
    metric = GlueMetric(["accuracy"])
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    assert metric.compute() == {"accuracy": 0.5}
    assert not Path("executed").exists()
    assert asked == []


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 1], {"accuracy": 2 / 3, "f1": 0.0, "matthews_correlation": 0.0}),
        ([1, 0, 1, 1], {"accuracy": 3 / 4, "f1": 6 / 7, "matthews_correlation": 0.0}),
        ([2, 2, 1, 0], {"accuracy": 1 / 2, "matthews_correlation": 0.0}),
        ([0.5, 1.5, 1.5, 4.0], {"pearson": 0.0, "spearmanr": 0.0}),
        # Labels that 60, 50 and 10 % of the rows have: who says the first one for every row is right twice in ten.
        (
            [[1, 1, 0]] * 3 + [[1, 0, 0]] * 2 + [[1, 0, 1]] + [[0, 1, 0]] * 2 + [[0, 0, 0]] * 2,
            {"subset_accuracy": 2 / 10, "f1_micro": 2 * 6 / (10 + 12), "f1_macro": (2 * 6 / (10 + 6)) / 3},
        ),
    ],
)
def test_chance_is_whoever_says_the_most_frequent_class(labels, expected):
    assert chance_scores(labels, list(expected)) == pytest.approx(expected)
