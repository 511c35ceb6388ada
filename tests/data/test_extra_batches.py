"""Rows held out of training, and the batches that travel beside a training batch."""

import datasets
import numpy as np
import pytest
import torch

from reptile_distil.data.batches import Batches
from reptile_distil.data.extra_batches import BatchGroups, BatchStream, hold_out
from reptile_distil.data.features import Features
from reptile_distil.errors import DataError
from reptile_distil.models.toy import toy_tokenizer


def rows(count=20):
    """Row i holds 2 to 8 tokens, each of them i, and the label i; it is row 100 + i of its split."""
    columns = {"input_ids": [[i] * (i % 7 + 2) for i in range(count)], "label": [float(i) for i in range(count)]}
    return Features.from_dataset(datasets.Dataset.from_dict(columns), np.arange(count) + 100)


def batches(count=20, batch_size=3, seed=0):
    return Batches(rows(count), toy_tokenizer(), batch_size=batch_size, seed=seed)


def labels(batch):
    return sorted(batch["labels"].tolist())


@pytest.mark.parametrize(("fraction", "held_out"), [(0.1, 2), (0.25, 5), (0.9, 18), (0.05, 1)])
def test_every_row_is_either_trained_on_or_held_out(fraction, held_out):
    kept, quiz = hold_out(rows(), fraction, key="a.fraction")
    assert len(quiz) == held_out
    assert sorted([*kept["label"], *quiz["label"]]) == list(range(20))


def test_both_parts_know_which_rows_of_the_split_they_hold():
    """So that a step that is not finite names the right ones."""
    for part in hold_out(rows(), 0.25, key="a.fraction"):
        assert part.row_ids.tolist() == [100 + label for label in part["label"]]
        train = Batches(part, toy_tokenizer(), batch_size=3)
        for number, batch in enumerate(train.epoch(2)):
            assert train.row_ids(2, number) == [100 + label for label in batch["labels"]]


def test_the_held_out_rows_are_always_the_same_and_not_simply_the_first_or_last():
    first, again = (hold_out(rows(), 0.25, key="a.fraction")[1]["label"].tolist() for _ in range(2))
    assert first == again
    assert first not in ([0, 1, 2, 3, 4], [15, 16, 17, 18, 19])
    assert first == sorted(first)


@pytest.mark.parametrize(("fraction", "held_out", "remedy"), [(0.01, 0, "larger"), (0.99, 20, "smaller")])
def test_a_fraction_that_is_no_row_or_all_of_them_is_refused(fraction, held_out, remedy):
    sentence = f"a.fraction = {fraction}: of 20 training rows it holds out {held_out}; give a {remedy} fraction"
    with pytest.raises(DataError, match=sentence):
        hold_out(rows(), fraction, key="a.fraction")


def test_a_stream_is_epoch_after_epoch_and_can_be_entered_anywhere():
    expected = [labels(batch) for epoch in (1, 2, 3) for batch in batches().epoch(epoch)]
    stream = BatchStream(batches())
    assert [labels(stream[number]) for number in range(21)] == expected
    for number in (20, 3, 7, 0, 13):
        assert labels(BatchStream(batches())[number]) == expected[number]
        assert labels(stream[number]) == expected[number]


def test_held_out_batches_are_used_up_one_after_another():
    stream = BatchStream(batches())
    groups = BatchGroups(stream, num_batches=2)
    assert [len(groups[step]) for step in range(3)] == [2, 2, 2]
    seen = [row for step in range(3) for batch in groups[step] for row in batch["labels"].tolist()]
    assert seen == [row for number in range(6) for row in stream[number]["labels"].tolist()]


def test_overlapping_groups_are_the_training_batch_and_those_that_follow():
    train = batches()
    train.extra_batches = BatchGroups(BatchStream(batches()), num_batches=3, overlapping=True)
    order = [labels(batch) for epoch in (1, 2) for batch in train.epoch(epoch)]
    for step, (batch, (inner_batches,)) in enumerate(train.steps(1)):
        assert labels(batch) == order[step]
        assert [labels(inner) for inner in inner_batches] == order[step : step + 3]


def test_extra_batches_leave_the_training_batches_as_they_are():
    train = batches()
    train.extra_batches = BatchStream(batches(seed=5, batch_size=4))
    for (batch, (quiz,)), plain, (no_extra, nothing) in zip(
        train.steps(1), batches().epoch(1), batches().steps(1), strict=True
    ):
        assert batch.keys() == plain.keys() == quiz.keys() == no_extra.keys()
        assert all(torch.equal(batch[name], plain[name]) and torch.equal(no_extra[name], plain[name]) for name in plain)
        assert nothing == ()
        assert len(quiz["labels"]) == 4


def test_the_extra_batches_of_a_step_depend_on_seed_and_step_alone():
    def quizzes(epochs, seed=0, skip=0):
        train = batches(seed=seed)
        train.extra_batches = BatchStream(batches(count=9, seed=seed))
        return [quiz["labels"].tolist() for epoch in epochs for _, (quiz,) in train.steps(epoch, skip=skip)]

    whole = quizzes((1, 2, 3))
    assert quizzes((2,), skip=4) == whole[7 + 4 : 14]  # resumed within epoch 2
    assert quizzes((3,)) == whole[14:]  # resumed in epoch 3
    assert quizzes((1, 2, 3), seed=1) != whole
    per_round = [sorted(np.concatenate(whole[start : start + 3])) for start in range(0, 21, 3)]
    assert all(round_ == list(range(9)) for round_ in per_round)
