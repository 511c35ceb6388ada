"""What the audit's losses come to."""

import json
import math

import numpy as np
import pytest

from reptile_distil.audit.one_step import Stage
from reptile_distil.audit.summary import Draws, mean_with_interval, ratio_of_means, summarise, to_json, to_markdown


def stage(num_batches=100, *, gain=0.01, one_move=0.001, noise=0.002, **more):
    rng = np.random.default_rng(1)
    measured = []
    for _ in range(num_batches):
        frozen = 1.0 - gain + noise * rng.normal()
        measured.append({"before": 1.0, "frozen": frozen, "so_far": frozen, "moved": frozen - one_move, **more})
    return Stage(7, measured)


def test_effects_are_fractions_of_what_a_step_of_kd_gains():
    summary = summarise(stage())
    assert summary.effects["one_move"].value == pytest.approx(0.1, rel=0.1)
    assert summary.effects["so_far"] == (0.0, 0.0, 0.0)
    assert summary.gain.low < 0.01 < summary.gain.high
    assert summary.knows is None
    assert "other" not in summary.effects


def test_where_a_step_gains_nothing_for_sure_a_difference_is_that_of_the_loss():
    summary = summarise(stage(gain=0.0))
    assert summary.effects["one_move"] is None
    assert "| +1.0e-03 [+1.0e-03, +1.0e-03] of the loss |" in to_markdown([summary])
    assert summary.differences["one_move"].value == pytest.approx(1e-3)


def test_the_interval_of_a_ratio_holds_the_true_one_about_as_often_as_it_says():
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        bottom = rng.normal(2.0, 1.0, size=80)
        top = 0.5 * bottom + rng.normal(0.0, 1.0, size=80)
        _, low, high = ratio_of_means(top, bottom, num_resamples=500)
        held += low <= 0.5 <= high
    assert 0.88 < held / 200 < 0.99


def of_batches_and_rows(rng, num_batches=40, num_held_out=60, num_probe_rows=30):
    """A stage whose gain, 0 in the long run, hangs on the batch and on the held-out row."""
    of_batches, of_rows = rng.normal(size=num_batches), 1.5 * rng.normal(size=num_held_out)
    measured = Stage(7)
    for of_batch in of_batches:
        rows = rng.choice(num_held_out, size=num_probe_rows, replace=False)
        losses = 1.0 + of_batch + of_rows[rows] + rng.normal(size=num_probe_rows)
        measured.add(rows, {"before": np.ones(num_probe_rows), "frozen": losses, "so_far": losses})
    return measured


@pytest.mark.parametrize(("knows_rows", "least", "most"), [(True, 0.92, 1.0), (False, 0.6, 0.88)])
def test_an_interval_is_for_other_rows_as_for_other_batches(knows_rows, least, most):
    """Over batches alone it is for these rows, and holds the long run's value less often than it says."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        measured = of_batches_and_rows(rng)
        gain = summarise(measured if knows_rows else Stage(7, measured.measured)).gain
        held += gain.low <= 0 <= gain.high
    assert least < held / 300 <= most


def test_of_few_batches_an_interval_is_wider_than_their_percentiles():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        _, low, high = mean_with_interval(rng.normal(size=6))
        held += low <= 0 <= high
    assert 0.91 < held / 300 < 0.98
    assert mean_with_interval([1.0, 2.0])[1:] == (1.0, 2.0)


def test_a_batch_and_a_row_count_as_often_as_both_are_drawn(monkeypatch):
    """Against sums written out, for draws that are known."""
    times = iter([np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [2.0, 1.0], [0.0, 2.0]])])
    monkeypatch.setattr("reptile_distil.audit.summary._times_drawn", lambda *_: next(times))
    draws = Draws(np.array([0, 0, 1, 1]), np.array([0, 5, 5, 9]), num_resamples=2)
    # First: batch 0 twice, row 0 once and row 5 twice. Second: batch 1 twice, row 5 once and row 9 twice.
    expected = [[15.0, 2 * (1 * 1 + 2 * 2), 2 * (1 * 4 + 2 * 8)]]
    assert draws.sums(np.array([[1.0, 2.0, 4.0, 8.0]])).tolist() == expected


def test_what_was_measured_row_by_row_is_written_as_means():
    measured = Stage(7)
    for rows in ([3, 1], [1, 2]):
        losses = {"before": np.array([1.0, 2.0]), "frozen": np.array([0.5, 1.0]), "knows": np.asarray(0.25)}
        measured.add(np.array(rows), losses)
    assert measured.measured == 2 * [{"before": 1.5, "frozen": 0.75, "knows": 0.25}]
    assert [of.losses.keys() for of in measured.by_row] == 2 * [{"before", "frozen"}]
    assert summarise(measured).gain.value == 0.75


def test_what_is_written_is_json_whatever_was_measured():
    written = to_json([Stage(7, 3 * [{"before": 1.0, "frozen": math.inf, "so_far": 1.0}])])
    json.dumps(written, allow_nan=False)
    assert written[0]["batches"][0] == {"before": 1.0, "frozen": None, "so_far": 1.0}


def test_a_mean_lies_in_its_interval():
    value, low, high = mean_with_interval([1.0, 2.0, 3.0, 6.0])
    assert value == 3.0
    assert 1.0 <= low < 3.0 < high <= 6.0


def test_the_table_has_a_row_for_each_stage_and_a_column_for_what_was_measured():
    lines = to_markdown([summarise(stage(other=0.98, knows=0.05))]).splitlines()
    headings = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    assert headings == [
        "after step",
        "batches",
        "a step of kd gains",
        "one move, % of it",
        "moved so far, % of it",
        "the other teacher, % of it",
        "knows the batch, %",
    ]
    assert lines[2].split("|")[-2].strip() == "5.00"
    assert len(lines) == 3


def test_what_is_written_has_every_value():
    (written,) = to_json([stage(3, knows=0.05)])
    assert written["step"] == 7
    assert len(written["batches"]) == 3
    assert written["batches"][0].keys() == {"before", "frozen", "so_far", "moved", "knows"}
    assert written["effects"]["one_move"].keys() == {"value", "low", "high"}
