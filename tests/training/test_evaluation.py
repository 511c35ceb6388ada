"""What an epoch's split_predictions says of the student and of the teacher."""

import logging
import math
import re

import datasets
import numpy as np
import pytest
import torch

from reptile_distil.config.config import load_config
from reptile_distil.config.defining_settings import flatten
from reptile_distil.data import toy
from reptile_distil.data.batches import Batches, tokenize
from reptile_distil.errors import DivergedError
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.training.evaluation import Evaluator, agreement, predict_logits
from tests.helpers.paths import TINY


class Oracle(torch.nn.Module):
    """Says a fixed answer for each row of the dev split, looked up by its tokens."""

    def __init__(self, answers, batches):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.table = {tuple(ids): answer for ids, answer in zip(batches.features["input_ids"], answers, strict=True)}

    def forward(self, batch):
        rows = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        return torch.nn.functional.one_hot(torch.tensor([self.table[row] for row in rows]), 2).float()


@pytest.fixture(scope="module")
def dev():
    rows = toy.load_split(toy.TASKS["toy-sentence"], "dev").select(range(50))
    return Batches(tokenize(rows, toy_tokenizer(), 32), toy_tokenizer(), batch_size=16)


@pytest.fixture(scope="module")
def labels(dev):
    return np.array(dev.features["label"])


def wrong_on(labels, count):
    return np.where(np.arange(len(labels)) < count, 1 - labels, labels)


def test_a_student_alone_is_scored_alone(dev, labels):
    record = Evaluator(Oracle(wrong_on(labels, 5), dev), {"dev": dev}, ["accuracy"]).evaluate()
    assert record.to_dict() == {"scores": {"dev": {"accuracy": 0.9}}, "score": 0.9}


def test_the_first_split_decides_and_every_split_is_reported(dev, labels):
    student = Oracle(wrong_on(labels, 5), dev)
    half = Batches(dev.features.select(range(10)), toy_tokenizer(), batch_size=4)
    record = Evaluator(student, {"dev_matched": dev, "dev_mismatched": half}, ["accuracy"]).evaluate()
    assert record.scores == {"dev_matched": {"accuracy": 0.9}, "dev_mismatched": {"accuracy": 0.5}}
    assert record.score == 0.9


def test_agreement_is_between_the_two_not_with_the_labels(dev, labels):
    student, teacher = Oracle(wrong_on(labels, 5), dev), Oracle(wrong_on(labels, 15), dev)
    evaluator = Evaluator(student, {"dev": dev}, ["accuracy"], teacher=teacher)
    evaluator.score_teacher_at_start()
    record = evaluator.evaluate()
    assert record.teacher_scores == {"dev": {"accuracy": 0.7}}
    assert record.agreement == pytest.approx(0.8)


def test_a_moving_teacher_is_evaluated_anew_and_its_drift_measured(dev, labels):
    student, teacher = Oracle(labels, dev), Oracle(labels, dev)
    evaluator = Evaluator(student, {"dev": dev}, ["accuracy"], teacher=teacher, teacher_moves=True)
    assert evaluator.score_teacher_at_start() == {"dev": {"accuracy": 1.0}}
    with torch.no_grad():
        teacher.weight += torch.tensor([0.0, 3.0, 4.0])
    teacher.table = Oracle(wrong_on(labels, 10), dev).table
    record = evaluator.evaluate()
    assert record.teacher_score == 0.8
    assert record.teacher_drift == pytest.approx(5.0)
    assert evaluator.teacher_start == {"dev": {"accuracy": 1.0}}
    assert evaluator.teacher_scores == {"dev": {"accuracy": 0.8}}


@pytest.mark.parametrize(("mistakes", "warned"), [(9, False), (11, True)])
def test_a_teacher_that_falls_below_four_fifths_of_its_start_is_warned_of(dev, labels, caplog, mistakes, warned):
    teacher = Oracle(labels, dev)
    evaluator = Evaluator(Oracle(labels, dev), {"dev": dev}, ["accuracy"], teacher=teacher, teacher_moves=True)
    evaluator.score_teacher_at_start()
    teacher.table = Oracle(wrong_on(labels, mistakes), dev).table
    with caplog.at_level(logging.WARNING):
        evaluator.evaluate()
    assert ("score on dev has fallen from 100.00 % to" in caplog.text) == warned


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ("reptile", "; try a smaller reptile.mu (or reptile.update=interpolate)"),
        ("prokt", "; try a smaller prokt.teacher_lr"),
        ("mine:Own", ""),
        (
            "",
            "; try a smaller value of its method's setting: reptile.mu (or reptile.update=interpolate), "
            "metadistil.teacher_lr, prokt.teacher_lr, cotrain.teacher_lr, lgtm.teacher_lr",
        ),
    ],
)
def test_a_teacher_that_has_fallen_is_said_in_percent_with_settings_that_there_are(dev, labels, caplog, method, remedy):
    teacher, metrics = Oracle(labels, dev), ["accuracy", "f1_micro"]
    options = {"teacher": teacher, "teacher_moves": True, "method": method}
    evaluator = Evaluator(Oracle(labels, dev), {"dev": dev}, metrics, **options)
    evaluator.score_teacher_at_start()
    teacher.table = Oracle(wrong_on(labels, 20), dev).table
    evaluator.evaluate()
    assert caplog.messages[-1] == (
        "the teacher's own score on dev, the mean of accuracy and f1_micro, has fallen from 100.00 % to 60.00 %: it no "
        f"longer knows the task it teaches{remedy}"
    )
    values = flatten(load_config(TINY).model_dump())
    assert set(re.findall(r"\w+\.\w+", remedy)) <= set(values)


def test_agreement_on_sets_of_labels_is_the_fraction_of_rows_with_equal_sets():
    """Of two rows one is equal; of six decisions five are; the largest logits are at the same places in both."""
    student = np.array([[1.0, -1.0, 2.0], [-3.0, 1.0, -1.0]], dtype=np.float32)
    teacher = np.array([[2.0, -2.0, 9.0], [-1.0, 2.0, 0.5]], dtype=np.float32)
    assert agreement(student, teacher, multi_label=True) == 0.5
    assert agreement(student, teacher) == 1.0


class SaysLogits(torch.nn.Module):
    """Says the same logits for the rows of each batch."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, batch):
        return self.logits


def test_evaluation_compares_the_sets_that_both_models_say():
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [[1, 0, 1], [0, 1, 0]]})
    dev = Batches(tokenize(rows, toy_tokenizer(), 8), toy_tokenizer(), batch_size=2)
    student = SaysLogits([[1.0, -1.0, 2.0], [-3.0, 1.0, -1.0]])
    teacher = SaysLogits([[2.0, -2.0, 9.0], [-1.0, 2.0, 0.5]])
    evaluator = Evaluator(student, {"dev": dev}, ["subset_accuracy"], teacher=teacher)
    evaluator.score_teacher_at_start()
    record = evaluator.evaluate()
    assert record.agreement == 0.5
    assert record.scores == {"dev": {"subset_accuracy": 1.0}}
    assert record.teacher_scores == {"dev": {"subset_accuracy": 0.5}}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("num_logits", [1, 2])
def test_logits_that_are_not_finite_are_no_predictions(wrong, num_logits):
    """Each row's largest would be: of two NaN, that of class 0."""
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    dev = Batches(tokenize(rows, toy_tokenizer(), 8), toy_tokenizer(), batch_size=3)
    logits = torch.zeros(3, num_logits)
    logits[1:, -1] = wrong
    model = SaysLogits(logits.tolist())
    said = r"2 of 3 rows have logits that are not finite, the first one row 1, counted from 0: .* lower learning rate$"
    with pytest.raises(DivergedError, match=rf"^dev: {said}"):
        Evaluator(model, {"dev": dev}, ["accuracy"]).evaluate()
    with pytest.raises(DivergedError, match=rf"^{said}"):
        predict_logits(model, dev)


def test_agreement_in_regression_is_a_correlation():
    student = np.array([[1.0], [2.0], [3.0]], dtype=np.float32)
    assert agreement(student, 2 * student + 1) == pytest.approx(1.0)
    assert math.isnan(agreement(student, np.zeros_like(student)))
