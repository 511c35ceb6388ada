"""Which rows lose their labels, how rows are joined, and the batches in which both kinds are mixed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from reptile_distil.data.batches import Batches
from reptile_distil.data.extra_batches import BatchGroups, BatchStream
from reptile_distil.data.features import Features
from reptile_distil.data.order import length_grouped_batches, mixed_batches, transfer_rows_of_epoch
from reptile_distil.data.transfer import hide_labels, join_rows, without_labels
from reptile_distil.errors import DataError
from reptile_distil.models.toy import toy_tokenizer


def rows(num_rows=60, *, kind="classes", seed=0, columns=("input_ids",)):
    """Rows of 3 to 12 tokens, each of which is the row's number."""
    lengths = np.random.default_rng(seed).integers(3, 13, num_rows)
    ids = np.repeat(np.arange(num_rows), lengths)
    labels = {
        "classes": np.arange(num_rows) % 3,
        "scores": np.arange(num_rows) / 7,
        "sets": np.eye(3)[np.arange(num_rows) % 3],
    }[kind]
    return Features.end_to_end(dict.fromkeys(columns, ids), lengths, labels)


def texts(features):
    """The number of each row, from its tokens."""
    return [ids[0] for ids in features["input_ids"]]


@pytest.mark.parametrize("num_labelled", [1, 7, 59])
def test_labels_are_hidden_of_all_rows_but_so_many(num_labelled):
    labelled, hidden = hide_labels(rows(), num_labelled=num_labelled, seed=0)
    assert len(labelled) == num_labelled
    assert sorted(texts(labelled) + texts(hidden)) == list(range(60))
    assert labelled["label"].tolist() == [number % 3 for number in texts(labelled)]
    assert labelled.row_ids.tolist() == sorted(texts(labelled))


def test_the_draw_depends_on_a_rows_number_and_the_seed_alone():
    """Not on which other rows are there: rows held out for validation leave the others' places as they were."""
    everything = rows()
    some = everything.select(np.flatnonzero(np.arange(60) % 4 != 1))
    of_all, of_some = (hide_labels(part, num_labelled=20, seed=3)[0].row_ids.tolist() for part in (everything, some))
    assert set(of_all) - {row for row in of_all if row % 4 == 1} <= set(of_some)
    assert hide_labels(everything, num_labelled=20, seed=3)[0].row_ids.tolist() == of_all
    assert hide_labels(everything, num_labelled=20, seed=4)[0].row_ids.tolist() != of_all


def test_fewer_labelled_rows_are_among_more():
    chosen = [set(hide_labels(rows(), num_labelled=number, seed=0)[0].row_ids) for number in (5, 20, 40)]
    assert chosen[0] < chosen[1] < chosen[2]


def test_rows_that_are_skipped_leave_their_labels_to_others():
    """The labelled rows of one draw, cut in two: none in both, and no label of the skipped ones is left."""
    whole = set(hide_labels(rows(), num_labelled=30, seed=0)[0].row_ids)
    first = set(hide_labels(rows(), num_labelled=10, seed=0)[0].row_ids)
    labelled, hidden = hide_labels(rows(), num_labelled=20, seed=0, skip=10)
    assert set(labelled.row_ids) == whole - first
    assert labelled["label"].tolist() == [number % 3 for number in texts(labelled)]
    assert sorted([*labelled.row_ids, *hidden.row_ids]) == list(range(60))
    assert set(hidden["label"]) == {-1}
    assert len(hide_labels(rows(), num_labelled=20, seed=0, skip=40)[0]) == 20
    with pytest.raises(DataError, match="20 of 60 training rows are to keep their labels, but 41 are skipped"):
        hide_labels(rows(), num_labelled=20, seed=0, skip=41)


@pytest.mark.parametrize("num_labelled", [0, 60, 61])
def test_neither_none_nor_all_rows_keep_their_labels(num_labelled):
    with pytest.raises(DataError, match=f"^data.transfer: {num_labelled} of 60 training rows would keep their labels"):
        hide_labels(rows(), num_labelled=num_labelled, seed=0)


@pytest.mark.parametrize(("kind", "missing"), [("classes", -1), ("scores", np.nan), ("sets", np.nan)])
def test_a_transfer_row_has_a_label_that_no_loss_can_use(kind, missing):
    labelled, hidden = hide_labels(rows(kind=kind), num_labelled=20, seed=0)
    np.testing.assert_array_equal(hidden.labels, np.full_like(hidden.labels, missing))
    joined = join_rows([labelled, hidden])
    np.testing.assert_array_equal(joined.labels[:20], labelled.labels)
    assert (joined.num_transfer_rows, len(joined.labelled)) == (40, 20)
    np.testing.assert_array_equal(joined.labelled.labels, labelled.labels)
    assert joined.select([3, 25]).is_labelled.tolist() == [True, False]


@pytest.mark.parametrize("file_has_labels", [True, False])
def test_rows_of_two_files_are_joined_with_what_their_teacher_reads(file_has_labels):
    first, second = (rows(size, seed=size) for size in (10, 7))
    first, second = (part.beside(rows(len(part), seed=1)) for part in (first, second))
    if not file_has_labels:
        second = replace(second, labels=None, of_teacher=replace(second.of_teacher, labels=None))
    joined = join_rows([first.select([4, 2]), without_labels(second, like=first)])
    assert texts(joined) == [4, 2, *range(7)]
    assert texts(joined.of_teacher) == [4, 2, *range(7)]
    assert joined.of_teacher.lengths.tolist() == [
        *first.of_teacher.lengths[[4, 2]],
        *second.of_teacher.lengths,
    ]
    assert joined.of_teacher.labels is None


def test_rows_of_one_split_are_joined_without_a_copy():
    labelled, hidden = hide_labels(rows(), num_labelled=20, seed=0)
    assert join_rows([labelled, hidden]).columns is labelled.columns


def test_rows_with_other_columns_are_not_joined():
    with pytest.raises(DataError, match="rows with input_ids, token_type_ids cannot be joined to rows with input_ids"):
        join_rows([rows(), rows(columns=("input_ids", "token_type_ids"))])


MIXTURES = pytest.mark.parametrize(
    ("num_labelled", "num_all", "batch_size", "num_transfer"),
    [(40, 200, 8, 4), (41, 200, 8, 6), (30, 33, 8, 4), (5, 400, 16, 15), (3, 8, 8, 4), (31, 40, 32, 2), (1, 9, 32, 2)],
)


@MIXTURES
def test_every_batch_has_the_same_composition_but_for_one(num_labelled, num_all, batch_size, num_transfer):
    is_labelled = np.arange(num_all) < num_labelled
    lengths = np.random.default_rng(1).integers(3, 60, num_all)
    of_labelled = length_grouped_batches(lengths[:num_labelled], batch_size - num_transfer, seed=5, epoch=2)
    batches = mixed_batches(is_labelled, lengths, batch_size, num_transfer, seed=5, epoch=2)
    assert len(batches) == -(-num_labelled // (batch_size - num_transfer))
    for batch, ours in zip(batches, of_labelled, strict=True):
        # The rows with labels come as they would alone, then the others, in proportion.
        assert batch[: len(ours)].tolist() == ours.tolist()
        in_proportion = round(num_transfer * len(ours) / (batch_size - num_transfer))
        assert len(batch) - len(ours) == max(1, in_proportion)
        assert not is_labelled[batch[len(ours) :]].any()
    assert sum(len(batch) < batch_size for batch in batches) <= 1


@pytest.mark.parametrize(("num_rows", "per_epoch"), [(50, 8), (50, 50), (7, 20), (1, 3)])
def test_transfer_rows_go_on_from_epoch_to_epoch_each_once_before_any_again(num_rows, per_epoch):
    epochs = [transfer_rows_of_epoch(num_rows, per_epoch, seed=4, epoch=epoch) for epoch in range(1, 12)]
    assert all(len(epoch) == per_epoch for epoch in epochs)
    stream = np.concatenate(epochs)
    for start in range(0, len(stream) - num_rows, num_rows):
        assert sorted(stream[start : start + num_rows]) == list(range(num_rows))
    # An epoch's rows do not depend on which were asked for before.
    assert transfer_rows_of_epoch(num_rows, per_epoch, seed=4, epoch=3).tolist() == epochs[2].tolist()


def mixed(num_labelled=21, num_all=60, batch_size=8, num_transfer=4, seed=5):
    labelled, hidden = hide_labels(rows(num_all), num_labelled=num_labelled, seed=0)
    features = join_rows([labelled, hidden])
    return Batches(features, toy_tokenizer(), batch_size=batch_size, num_transfer=num_transfer, seed=seed)


def test_a_batch_says_how_much_each_row_counts_in_the_task_loss():
    batches = mixed()
    for batch in batches.epoch(1):
        has_label = batch["labels"] >= 0
        expected = has_label * len(has_label) / has_label.sum()
        torch.testing.assert_close(batch["task_weights"], expected.float())
        assert batch["labels"][has_label].tolist() == [number % 3 for number in batch["input_ids"][has_label, 0]]
    assert "task_weights" not in next(Batches(rows(), toy_tokenizer(), batch_size=8).epoch(1))


def test_the_order_depends_on_seed_and_epoch_alone():
    def epoch(number, seed=5, skip=0):
        return [batch["input_ids"][:, 0].tolist() for batch in mixed(seed=seed).epoch(number, skip=skip)]

    assert epoch(3) == epoch(3)
    assert epoch(3, skip=2) == epoch(3)[2:]
    assert epoch(3) != epoch(4)
    assert epoch(3) != epoch(3, seed=6)


def test_rows_of_a_batch_are_of_similar_length():
    """Padding stays far below that of batches in random order."""
    lengths = np.random.default_rng(0).integers(3, 120, 3000)
    is_labelled = np.arange(3000) < 600
    grouped = mixed_batches(is_labelled, lengths, 16, 8, seed=0, epoch=1)
    padded = sum(lengths[batch].max() * len(batch) for batch in grouped) / sum(
        lengths[batch].sum() for batch in grouped
    )
    assert padded < 1.15


def test_an_epoch_is_a_pass_over_the_rows_with_labels():
    batches = mixed()
    assert (batches.num_rows, batches.num_labelled_rows, batches.num_transfer_rows) == (60, 21, 39)
    sizes = [len(batch["labels"]) for batch in batches.epoch(1)]
    assert (batches.num_batches, sorted(sizes)) == (6, [2, 8, 8, 8, 8, 8])
    assert (batches.transfer_rows_per_epoch, batches.count_examples(6), batches.count_examples(8)) == (21, 42, 58)


def test_all_rows_are_seen_when_the_transfer_rows_have_all_come():
    """39 of them, 21 in an epoch of 6 steps, 4 in each step after it."""
    assert [steps for steps in range(1, 20) if mixed().sees_every_row(steps)] == list(range(11, 20))
    plain = Batches(rows(), toy_tokenizer(), batch_size=8)
    assert [steps for steps in range(1, 12) if plain.sees_every_row(steps)] == [8, 9, 10, 11]


def test_rows_are_named_by_their_kind():
    batches = mixed()
    labelled, transfer = batches.name_rows(2, 0).split("; transfer rows: ")
    ids = [int(number) for number in (*labelled.split(", "), *transfer.split(", "))]
    assert ids == batches.row_ids(2, 0)
    assert set(map(int, labelled.split(", "))) <= set(batches.features.labelled.row_ids.tolist())


def test_further_inner_batches_are_the_mixed_ones_that_follow():
    batches = mixed()
    batches.extra_batches = BatchGroups(BatchStream(batches.with_nothing_beside()), num_batches=2, overlapping=True)
    steps = [*batches.steps(1), *batches.steps(2)]
    for step, following in itertools.pairwise(steps):
        (inner,) = step.extra
        for one, other in zip(inner, (step.batch, following.batch), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in other)


def test_passes_over_all_rows_have_each_once():
    """As a teacher's logits are kept of them."""
    passes = mixed().in_batches_of(7)
    seen = np.concatenate([ids for ids, _ in passes.in_length_order()])
    assert sorted(seen) == list(range(60))
