"""The counts of a step, and what half-precision copies and one mask per batch save of it."""

import pytest

from reptile_distil.models import classifier
from tests.pretend_gpu.counts import METHODS, count

SMALL = {"depths": (4, 2), "width": 64}


@pytest.mark.parametrize("name", ["kd", *(pytest.param(n, marks=pytest.mark.slow) for n in METHODS if n != "kd")])
def test_a_step_has_fewer_launches_and_casts_than_with_autocast_alone_and_no_wait(gpu, monkeypatch, name):
    counts, waits = count(name, **SMALL)
    monkeypatch.setattr(classifier, "HalfPrecisionWeights", lambda model, dtype: None)
    alone, _ = count(name, **SMALL)
    assert waits == 0
    assert counts.num_casts < 0.5 * alone.num_casts
    assert counts.num_launches < 0.85 * alone.num_launches
    assert counts.num_bytes <= 1.01 * alone.num_bytes


def test_the_difference_of_two_models_is_a_few_launches(gpu):
    """In the step that takes the student first it is computed by itself."""
    counts, _ = count("student-first", **SMALL)
    by_lists = counts.launches["aten._foreach_sub.List"]
    assert 0 < by_lists < 5
    assert counts.launches["aten.sub.Tensor"] < 5  # of the loss
