"""The table at the end of a run, on wide and narrow terminals."""

import pytest

from reptile_distil.runs.results import comparison_table
from tests.helpers.records import results_dict


def result(method, scores=None, **changes):
    values = {
        "method": method,
        "scores": scores or {"dev": {"accuracy": 0.8}},
        "num_parameters": 66_956_546,
        "best_epoch": 3,
        "train_seconds": 1234.56,
        "examples_per_second": 403.4,
    }
    return results_dict(**values, **changes)


TAUGHT = result("reptile", teacher={"scores_at_end": {"dev": {"accuracy": 0.886}}})
WIDE = """\
| run      | dev accuracy | teacher at end | parameters | best epoch | train s | examples/s |
|:---------|-------------:|---------------:|-----------:|-----------:|--------:|-----------:|
| reptile  |         80.0 |           88.6 | 66,956,546 |          3 |  1234.6 |        403 |
| finetune |         80.0 |              - | 66,956,546 |          3 |  1234.6 |        403 |"""
NARROW = """\
| run      | accuracy | teacher | parameters | epoch | train s | ex/s |
|:---------|---------:|--------:|-----------:|------:|--------:|-----:|
| reptile  |     80.0 |    88.6 | 66,956,546 |     3 |  1234.6 |  403 |
| finetune |     80.0 |       - | 66,956,546 |     3 |  1234.6 |  403 |"""


@pytest.mark.parametrize("width", [None, 200, 93])
def test_where_there_is_room_or_no_terminal_the_table_is_whole(width):
    assert comparison_table([TAUGHT, result("finetune")], width=width) == WIDE


@pytest.mark.parametrize("width", [92, 80, 72])
def test_on_80_columns_its_headings_are_short(width):
    assert comparison_table([TAUGHT, result("finetune")], width=width) == NARROW


def test_on_fewer_columns_the_last_ones_are_left_out_and_never_scores():
    assert comparison_table([TAUGHT], width=50).splitlines() == [
        "| run     | accuracy | teacher | parameters |",
        "|:--------|---------:|--------:|-----------:|",
        "| reptile |     80.0 |    88.6 | 66,956,546 |",
    ]
    assert comparison_table([TAUGHT], width=5).splitlines()[0] == "| run     | accuracy |"


def test_two_dev_splits_keep_their_names():
    scores = {"dev_matched": {"accuracy": 0.8}, "dev_mismatched": {"accuracy": 0.7}}
    header = comparison_table([result("kd", scores)], width=80).splitlines()[0]
    assert header == "| run | dev_matched accuracy | dev_mismatched accuracy | teacher | parameters |"


def test_a_long_metric_has_its_usual_name_where_there_is_little_room():
    scores = {"dev": {"matthews_correlation": None}}
    table = comparison_table([result("kd", scores)], width=80).splitlines()
    assert table[0] == "| run | MCC | teacher | parameters | epoch | train s | ex/s |"
    assert table[2].split("|")[2].strip() == "-"
