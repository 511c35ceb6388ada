"""The numbers of a table: means, averages, sizes, speed-ups and comparisons, worked out by hand."""

import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptile_distil.data.tasks import GLUE, Task
from reptile_distil.tables.comparisons import Comparison, compare, compare_over_tasks, pairs_for_a_point
from reptile_distil.tables.data import TableData, columns_of, glue_average, summarise_scores
from reptile_distil.tables.published import PUBLISHED
from reptile_distil.tables.statistics import pairs_needed
from reptile_distil.training.metrics import compute_scores
from tests.helpers import records as helper

RTE, STSB, MNLI, COLA = GLUE["rte"], GLUE["stsb"], GLUE["mnli"], GLUE["cola"]


def results(task, *scores, **more):
    splits = {}
    for column, score in zip(columns_of(task), scores, strict=True):
        splits.setdefault(column.split, {})[column.metric] = score
    return helper.results(task=task.name, scores=splits, num_parameters=10_000_000, **more)


def rte(**scores):
    """A table of RTE alone: accuracies by row, one per seed from 1 on; `...` where a run is missing."""
    runs = {
        ("rte", row, seed): results(RTE, score)
        for row, of_row in scores.items()
        for seed, score in enumerate(of_row, start=1)
        if score is not ...
    }
    return TableData((RTE,), tuple(scores), (1, 2, 3), runs)


def test_the_leaderboards_average_of_the_published_test_row_is_its_published_score():
    test_row = {
        "cola": (47.9,),
        "sst2": (92.8,),
        "mrpc": (89.2, 85.4),
        "stsb": (87.1, 85.9),
        "qqp": (71.0, 89.0),
        "mnli": (83.6, 82.9),
        "qnli": (90.4,),
        "rte": (73.5,),
        "wnli": (65.1,),
    }
    assert round(glue_average(test_row), 1) == 78.5


def test_the_average_of_the_published_dev_row_is_its_published_score():
    (row,) = [row for row in PUBLISHED if row.name == "ReptileDistil"]
    assert glue_average(row.scores) == pytest.approx(83.05, abs=0.005)
    assert row.average.startswith("83.05")


@given(
    st.dictionaries(st.text(min_size=1), st.lists(st.floats(-100, 100), min_size=1, max_size=3), min_size=1),
    st.floats(-50, 50),
)
def test_an_average_lies_among_the_scores_forgets_their_order_and_shifts_with_them(scores, shift):
    average = glue_average(scores)
    everything = [score for of_task in scores.values() for score in of_task]
    assert min(everything) - 1e-9 <= average <= max(everything) + 1e-9
    turned_round = {task: of_task[::-1] for task, of_task in reversed(scores.items())}
    assert glue_average(turned_round) == pytest.approx(average, abs=1e-9)
    shifted = {task: [score + shift for score in of_task] for task, of_task in scores.items()}
    assert glue_average(shifted) == pytest.approx(average + shift, abs=1e-9)


def test_mean_and_sample_standard_deviation():
    entry = summarise_scores({1: 62.0, 2: 65.0, 3: 65.0})
    assert (entry.mean, entry.n, entry.num_undefined) == (64.0, 3, 0)
    assert entry.std == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(("scores", "n", "undefined"), [({}, 0, 0), ({1: None}, 1, 1), ({1: 50.0, 2: None}, 2, 1)])
def test_no_score_and_an_undefined_one_have_no_mean_and_never_0(scores, n, undefined):
    entry = summarise_scores(scores)
    assert (entry.mean, entry.n, entry.num_undefined) == (None, n, undefined)
    assert math.isnan(entry.std)


def test_one_seed_has_no_standard_deviation():
    entry = summarise_scores({1: 50.0})
    assert entry.mean == 50.0
    assert math.isnan(entry.std)


def test_mnli_is_one_task_of_two_halves():
    data = TableData((MNLI,), ("kd",), (1,), {("mnli", "kd", 1): results(MNLI, 0.8, 0.9)})
    assert data.scores("kd", MNLI, columns_of(MNLI)) == {1: pytest.approx(85.0)}
    assert data.averages("kd") == {1: pytest.approx(85.0)}


def test_an_average_needs_every_task_of_the_seed():
    runs = {
        ("rte", "kd", 1): results(RTE, 0.6),
        ("rte", "kd", 2): results(RTE, 0.7),
        ("rte", "kd", 3): results(RTE, 0.7),
        ("stsb", "kd", 1): results(STSB, 0.8, 0.9),
        ("stsb", "kd", 2): results(STSB, None, 0.9),
    }
    data = TableData((RTE, STSB), ("kd",), (1, 2, 3), runs)
    assert data.averages("kd") == {1: pytest.approx((60 + 85) / 2), 2: None}


@pytest.mark.parametrize("undefined", [None, math.nan])
def test_a_task_with_one_undefined_score_has_no_mean(undefined):
    data = TableData((STSB,), ("kd",), (1,), {("stsb", "kd", 1): results(STSB, 0.5, undefined)})
    assert data.scores("kd", STSB, columns_of(STSB)) == {1: None}
    assert data.scores("kd", STSB, columns_of(STSB)[:1]) == {1: 50.0}


def latency(teacher, student):
    return {"length": 8, "device": "cpu", "batches": {"32": {"teacher_ms": teacher, "student_ms": student}}}


def test_speed_up_is_the_median_of_the_runs_that_measured_it():
    runs = {
        ("rte", "kd", 1): results(RTE, 0.5, latency=latency(10.0, 5.0)),
        ("rte", "kd", 2): results(RTE, 0.5, latency=latency(12.0, 4.0)),
        ("rte", "kd", 3): results(RTE, 0.5, latency=latency(50.0, 1.0)),
        ("rte", "kd", 4): results(RTE, 0.5, latency=None),
        ("rte", "kd", 5): results(RTE, 0.5, latency=latency(12.0, 4.0)),  # kept from the second run
        ("rte", "finetune", 1): results(RTE, 0.5),
    }
    data = TableData((RTE,), ("kd", "finetune"), (1, 2, 3, 4, 5), runs)
    assert data.speedup("kd", 32) == (3.0, 3)
    assert data.speedup("finetune", 32) == (None, 0)
    assert data.parameters("kd") == 10.0
    assert data.parameters("reptile") is None


def test_seeds_are_paired_and_tested_by_permutation():
    data = rte(kd=(0.62, 0.65, 0.65), finetune=(0.60, 0.62, 0.64))  # differences 2, 3, 1: p = 2 / 2^3
    found = compare(data, "kd", "finetune", task=RTE, columns=columns_of(RTE))
    assert found == Comparison(*map(pytest.approx, (2.0, 1.0, 3.0, 0.25)), 3, "seeds")


def test_only_seeds_that_both_have_are_compared():
    data = rte(kd=(0.62, ..., 0.65), finetune=(..., 0.62, 0.64))
    found = compare(data, "kd", "finetune", task=RTE, columns=columns_of(RTE))
    assert (found.difference, found.n, found.test) == (pytest.approx(1.0), 1, "")
    assert math.isnan(found.p_value)


@pytest.mark.parametrize("finetune", [(..., ..., ...), (None, 0.5, 0.5)])
def test_nothing_common_and_an_undefined_score_give_no_comparison(finetune):
    data = rte(kd=(0.6, 0.6, 0.6), finetune=finetune)
    assert compare(data, "kd", "finetune", task=RTE, columns=columns_of(RTE)) is None
    assert compare_over_tasks(data, "kd", "finetune") is None


def test_over_tasks_every_cell_that_both_have_is_a_pair():
    runs = {("rte", "kd", 1): results(RTE, 0.61), ("rte", "finetune", 1): results(RTE, 0.60)}
    runs |= {("stsb", "kd", 1): results(STSB, 0.83, 0.83), ("stsb", "finetune", 1): results(STSB, 0.80, 0.80)}
    runs |= {("stsb", "kd", 2): results(STSB, 0.90, 0.90)}
    data = TableData((RTE, STSB), ("kd", "finetune"), (1, 2), runs)
    found = compare_over_tasks(data, "kd", "finetune")
    assert found == Comparison(*map(pytest.approx, (2.0, 1.0, 3.0, 0.5)), 2, "cells")


def test_the_spread_over_cells_says_how_many_it_takes_to_show_a_point():
    kd, finetune = (0.61, 0.64, 0.62), (0.60, 0.60, 0.60)
    data = rte(kd=kd, finetune=finetune)
    assert pairs_for_a_point(data, "kd", "finetune") == pairs_needed(statistics.stdev([1, 4, 2]), 1.0) == 21
    assert pairs_for_a_point(rte(kd=kd[:2], finetune=finetune[:2]), "kd", "finetune") is None
    assert pairs_for_a_point(rte(kd=finetune, finetune=finetune), "kd", "finetune") is None


def with_predictions(tmp_path, task, labels, **said):
    """One seed of each row, with the predictions of each split beside its results."""
    runs, folders = {}, {}
    for row, of_row in said.items():
        folder = folders[task.name, row, 1] = tmp_path / row
        folder.mkdir()
        scores = []
        for column in columns_of(task):
            predictions = of_row[column.split]
            values = {"predictions": predictions, "labels": labels[column.split]}
            (folder / f"predictions_{column.split}.json").write_text(json.dumps(values))
            scores.append(compute_scores(predictions, labels[column.split], [column.metric])[column.metric])
        runs[task.name, row, 1] = results(task, *scores)
    return TableData((task,), tuple(said), (1,), runs, folders)


def test_one_seed_of_accuracy_is_tested_by_mcnemar_over_the_rows(tmp_path):
    # kd alone is right on 5 of 8 rows, finetune alone on none: p = 2 / 2^5.
    data = with_predictions(tmp_path, RTE, {"dev": [1] * 8}, kd={"dev": [1] * 8}, finetune={"dev": [0] * 5 + [1] * 3})
    found = compare(data, "kd", "finetune", task=RTE, columns=columns_of(RTE))
    assert (found.difference, found.p_value, found.n, found.test) == (62.5, pytest.approx(0.0625), 8, "McNemar")
    assert math.isnan(found.low)


def test_one_seed_of_mnli_is_tested_over_the_rows_of_both_halves(tmp_path):
    labels = {"dev_matched": [2, 2], "dev_mismatched": [0, 0, 0]}
    said = {"kd": labels, "finetune": {"dev_matched": [2, 1], "dev_mismatched": [0, 1, 1]}}
    data = with_predictions(tmp_path, MNLI, labels, **said)
    found = compare(data, "kd", "finetune", task=MNLI, columns=columns_of(MNLI))
    # 1/2 and 2/3 of the rows, three discordant ones in all.
    assert (found.difference, found.p_value) == (pytest.approx((50 + 200 / 3) / 2), pytest.approx(0.25))
    assert (found.n, found.test) == (5, "McNemar")


def test_one_seed_of_another_score_is_tested_by_bootstrap_over_the_rows(tmp_path):
    labels = [0, 1] * 50
    said = {"kd": {"dev": labels}, "finetune": {"dev": [0, 0] * 25 + [0, 1] * 25}}
    data = with_predictions(tmp_path, COLA, {"dev": labels}, **said)
    found = compare(data, "kd", "finetune", task=COLA, columns=columns_of(COLA))
    # tp 25, fn 25, tn 50, fp 0: MCC = 25 * 50 / sqrt(25 * 50 * 75 * 50) = 1 / sqrt(3)
    assert found.difference == pytest.approx(100 * (1 - 1 / math.sqrt(3)))
    assert (found.n, found.test) == (100, "bootstrap")
    assert found.low < found.difference < found.high
    assert found.p_value == pytest.approx(1 / 1001)


def test_one_seed_of_sets_of_labels_is_tested_by_bootstrap_over_the_rows(tmp_path):
    labels = [[0, 1], [1, 1]] * 50
    said = {"kd": {"dev": labels}, "finetune": {"dev": [[0, 1], [1, 0]] * 25 + labels[:50]}}
    task = Task(
        name="mine",
        text_columns=("text",),
        label_names=("a", "b"),
        multi_label=True,
        metrics=("subset_accuracy",),
        splits={"dev": ()},
        files={"dev": "dev.csv"},
    )
    data = with_predictions(tmp_path, task, {"dev": labels}, **said)
    found = compare(data, "kd", "finetune", task=task, columns=columns_of(task))
    assert (found.difference, found.n, found.test) == (pytest.approx(25.0), 100, "bootstrap")
    assert found.low < found.difference < found.high


def test_predictions_of_other_labels_are_not_compared(tmp_path):
    data = with_predictions(tmp_path, RTE, {"dev": [1, 0]}, kd={"dev": [1, 0]}, finetune={"dev": [0, 0]})
    values = {"predictions": [0, 0], "labels": [0, 1]}
    (tmp_path / "finetune" / "predictions_dev.json").write_text(json.dumps(values))
    assert compare(data, "kd", "finetune", task=RTE, columns=columns_of(RTE)).test == ""
