"""What the audit's losses come to."""

import numpy as np
import pytest

from reptile_distil.audit.one_step import Stage
from reptile_distil.audit.summary import mean_with_interval, ratio_of_means, summarise, to_json, to_markdown


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
