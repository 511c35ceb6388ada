"""From rows to batches and back to one prediction a row, and the models' agreement on them."""

import random

import datasets
import numpy as np
import pytest
import torch
import transformers

from reptile_distil.data import toy
from reptile_distil.data.batches import Batches, draw_rows, tokenize
from reptile_distil.data.features import Features
from reptile_distil.data.order import length_grouped_batches
from reptile_distil.errors import DataError
from reptile_distil.models.classifier import Classifier, Teacher
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.training.evaluation import agreement, predict_logits
from tests.helpers.models import bert

PAD, UNKNOWN, CLS, SEP = 0, 1, 2, 3
WORDS = ("a", "b", "c", "d", "e", "f", "g", "h")  # ids 5 to 12


@pytest.fixture(scope="module")
def tokenizer():
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate((*special, *WORDS))})


def dataset(**columns):
    return datasets.Dataset.from_dict(columns)


def numbered_rows(lengths):
    """A tokenised data set whose row i has the given length and the label i."""
    return dataset(
        input_ids=[[CLS, *[5 + i % 8] * (length - 2), SEP] for i, length in enumerate(lengths)],
        attention_mask=[[1] * length for length in lengths],
        label=list(range(len(lengths))),
    )


@pytest.fixture
def lengths():
    return np.random.default_rng(3).integers(3, 15, size=103)


# Rows to token ids


def test_a_single_text_is_tokenised_beside_its_label(tokenizer):
    features = tokenize(dataset(text=["a b", "h"], label=[1, 0]), tokenizer, 8)
    assert features.to_dict() == {
        "label": [1, 0],
        "input_ids": [[CLS, 5, 6, SEP], [CLS, 12, SEP]],
        "token_type_ids": [[0, 0, 0, 0], [0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1]],
    }


def test_a_pair_is_one_sequence_of_two_segments(tokenizer):
    features = tokenize(dataset(text=["a b"], text_pair=["c"], label=[2.5]), tokenizer, 8)
    assert features[0] == {
        "label": 2.5,
        "input_ids": [CLS, 5, 6, SEP, 7, SEP],
        "token_type_ids": [0, 0, 0, 0, 1, 1],
        "attention_mask": [1, 1, 1, 1, 1, 1],
    }


def test_a_test_split_has_no_label(tokenizer):
    assert "label" not in tokenize(dataset(text=["a"]), tokenizer, 8).column_names


def test_a_long_text_is_cut_and_keeps_its_end_token(tokenizer):
    features = tokenize(dataset(text=["a b c d e f g h"]), tokenizer, 5)
    assert features["input_ids"][0] == [CLS, 5, 6, 7, SEP]


def test_of_a_long_pair_the_longer_text_is_cut(tokenizer):
    features = tokenize(dataset(text=["a b c d e f"], text_pair=["g h"]), tokenizer, 8)
    assert features["input_ids"][0] == [CLS, 5, 6, 7, SEP, 11, 12, SEP]


def test_tokenising_does_not_pad(tokenizer):
    features = tokenize(dataset(text=["a", "a b c d"]), tokenizer, 8)
    assert [len(ids) for ids in features["input_ids"]] == [3, 6]


def test_tokenising_is_silent_and_leaves_the_progress_bars_as_they_were(tokenizer, capfd):
    shown = datasets.are_progress_bars_disabled()
    capfd.readouterr()
    tokenize(dataset(text=["a", "b"]), tokenizer, 8)
    assert capfd.readouterr() == ("", "")
    assert datasets.are_progress_bars_disabled() == shown


# Fewer rows


def test_the_drawn_rows_are_always_the_same_in_their_old_order_and_none_twice():
    rows = dataset(label=list(range(100)))
    np.random.seed(1)  # noqa: NPY002
    first = draw_rows(rows, 10)["label"][:]
    np.random.seed(2)  # noqa: NPY002
    assert draw_rows(rows, 10)["label"][:] == first
    assert first == sorted(set(first))
    assert len(first) == 10
    assert first != list(range(10))


def test_none_draws_all_rows_and_so_does_their_number():
    rows = dataset(label=[3, 1, 2])
    assert draw_rows(rows, None)["label"][:] == [3, 1, 2]
    assert draw_rows(rows, 3)["label"][:] == [3, 1, 2]


def test_more_rows_than_there_are_is_refused():
    with pytest.raises(DataError, match=r"data\.max_train_rows is 4, but the training set has only 3 rows"):
        draw_rows(dataset(label=[3, 1, 2]), 4)


# Rows to batches


def labels_of(batches, epoch):
    return [batch["labels"].tolist() for batch in batches.epoch(epoch)]


def test_a_batch_is_padded_to_its_own_longest_row(tokenizer):
    batch = Batches(numbered_rows([3, 5, 9]), tokenizer, batch_size=2).batch(np.array([1, 0]))
    assert batch["input_ids"].tolist() == [[CLS, 6, 6, 6, SEP], [CLS, 5, SEP, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [1, 0]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_class_labels_are_integers_and_scores_are_float32(tokenizer):
    for labels, dtype in (([0, 1], torch.int64), ([0.5, 1.5], torch.float32)):
        features = tokenize(dataset(text=["a", "b"], label=labels), tokenizer, 8)
        batch = Batches(features, tokenizer, batch_size=2).batch(np.array([0, 1]))
        assert batch["labels"].dtype == dtype
        assert batch["labels"].tolist() == labels


@pytest.mark.parametrize("batch_size", [1, 4, 8, 32, 103, 200])
def test_an_epoch_has_every_row_once_the_ragged_last_batch_included(tokenizer, lengths, batch_size):
    batches = Batches(numbered_rows(lengths), tokenizer, batch_size=batch_size)
    epoch = labels_of(batches, 0)
    assert sorted(label for batch in epoch for label in batch) == list(range(103))
    sizes = sorted(map(len, epoch), reverse=True)
    assert sizes == [batch_size] * (103 // batch_size) + [103 % batch_size] * (103 % batch_size > 0)
    assert batches.num_batches == len(epoch)
    assert batches.num_rows == 103


def test_no_batch_of_an_epoch_is_padded_beyond_its_longest_row(tokenizer, lengths):
    for batch in Batches(numbered_rows(lengths), tokenizer, batch_size=8).epoch(0):
        assert batch["input_ids"].shape[1] == lengths[batch["labels"].numpy()].max()
        assert batch["attention_mask"].sum(dim=1).tolist() == lengths[batch["labels"].numpy()].tolist()


def test_the_order_of_batches_is_a_function_of_seed_and_epoch_alone(tokenizer, lengths):
    rows = numbered_rows(lengths)
    first = Batches(rows, tokenizer, batch_size=8, seed=5)
    in_sequence = [labels_of(first, epoch) for epoch in range(3)]
    np.random.seed(99)  # noqa: NPY002
    torch.manual_seed(99)
    random.seed(99)
    taken_up_again = Batches(rows, tokenizer, batch_size=8, seed=5)
    assert labels_of(taken_up_again, 2) == in_sequence[2]
    assert labels_of(taken_up_again, 0) == in_sequence[0]


def test_another_epoch_and_another_seed_have_another_order(tokenizer, lengths):
    rows = numbered_rows(lengths)
    orders = [
        labels_of(Batches(rows, tokenizer, batch_size=8, seed=seed), epoch) for seed, epoch in ((5, 0), (5, 1), (6, 0))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[1] != orders[2]


def test_batches_are_mixed_anew_in_each_epoch_not_only_reordered(lengths):
    def as_sets(epoch):
        return {frozenset(map(int, rows)) for rows in length_grouped_batches(lengths, 8, seed=5, epoch=epoch)}

    assert len(as_sets(0) & as_sets(1)) <= 1


def test_seed_and_epoch_cannot_stand_for_each_other(lengths):
    def order(seed, epoch):
        return np.concatenate(length_grouped_batches(lengths, 8, seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) != order(2, 1)
    assert order(0, 3) != order(3, 0)


@pytest.mark.parametrize("skip", [0, 1, 5, 13])
def test_skipped_batches_leave_the_others_as_they_are_and_are_not_built(tokenizer, lengths, monkeypatch, skip):
    batches = Batches(numbered_rows(lengths), tokenizer, batch_size=8, seed=5)
    whole = labels_of(batches, 2)
    built, build = [], Batches.batch
    monkeypatch.setattr(Batches, "batch", lambda self, rows: built.append(rows) or build(self, rows))
    assert [batch["labels"].tolist() for batch in batches.epoch(2, skip=skip)] == whole[skip:]
    assert len(built) == 13 - skip


def test_the_rows_of_a_batch_are_known_by_their_place_in_the_data_file(tokenizer, lengths):
    batches = Batches(numbered_rows(lengths), tokenizer, batch_size=8, seed=5)
    assert [batches.row_ids(2, index) for index in range(13)] == labels_of(batches, 2)
    features = Features.from_dataset(numbered_rows([3, 3]), np.array([7, 40]))
    drawn = Batches(features, tokenizer, batch_size=1)
    assert [[drawn.row_ids(1, index)[0], batch["labels"].item()] for index, batch in enumerate(drawn.epoch(1))] in (
        [[7, 0], [40, 1]],
        [[40, 1], [7, 0]],
    )


def test_the_same_rows_have_one_fingerprint_and_any_others_another():
    def fingerprint(ids, labels):
        rows = dataset(input_ids=ids, attention_mask=[[1] * len(row) for row in ids], label=labels)
        return Features.from_dataset(rows).fingerprint()

    first = fingerprint([[2, 5, 3], [2, 3]], [0, 1])
    assert first["num_rows"] == 2
    assert fingerprint([[2, 5, 3], [2, 3]], [0, 1]) == first
    others = [
        fingerprint([[2, 6, 3], [2, 3]], [0, 1]),
        fingerprint([[2, 5, 3], [2, 3]], [1, 1]),
        fingerprint([[2, 3], [2, 5, 3]], [0, 1]),
        fingerprint([[2, 5], [3, 2, 3]], [0, 1]),
        fingerprint([[2, 5, 3], [2, 3]], [0.5, 1.0]),
        fingerprint([[2, 5, 3]], [0]),
    ]
    assert len({other["sha256"] for other in [first, *others]}) == 7


def test_drawn_rows_keep_their_numbers_and_have_the_fingerprint_of_those_rows_alone():
    ids = [[2, 5, 3], [2, 3], [2, 7, 7, 3]]
    rows = dataset(input_ids=ids, attention_mask=[[1] * len(row) for row in ids], label=[0, 1, 0])
    chosen = Features.from_dataset(rows).select([2, 0])
    assert chosen.row_ids.tolist() == [2, 0]
    assert chosen.fingerprint() == Features.from_dataset(rows.select([2, 0])).fingerprint()


def padding(batches, lengths):
    return sum(len(rows) * lengths[rows].max() - lengths[rows].sum() for rows in batches)


def test_rows_of_a_batch_are_of_similar_length_so_padding_is_less_than_half_that_of_a_random_order():
    lengths = np.random.default_rng(0).integers(5, 100, size=2000)
    grouped = padding(length_grouped_batches(lengths, 16, seed=0, epoch=0), lengths)
    shuffled = np.random.default_rng(1).permutation(2000)
    assert grouped < padding(np.split(shuffled, 125), lengths) / 2


def test_batches_do_not_come_in_order_of_length():
    lengths = np.random.default_rng(0).integers(5, 100, size=2000)
    means = [lengths[rows].mean() for rows in length_grouped_batches(lengths, 16, seed=0, epoch=0)]
    assert 0.3 < np.mean(np.diff(means) > 0) < 0.7


@pytest.mark.parametrize("batch_size", [1, 7, 16, 200])
def test_in_length_order_every_row_comes_once_the_longest_first(tokenizer, lengths, batch_size):
    seen = []
    for rows, batch in Batches(numbered_rows(lengths), tokenizer, batch_size=batch_size).in_length_order():
        assert batch["labels"].tolist() == rows.tolist()
        seen.extend(rows.tolist())
    assert sorted(seen) == list(range(103))
    assert lengths[seen].tolist() == sorted(lengths.tolist(), reverse=True)


# Batches to logits


@pytest.mark.parametrize("batch_size", [1, 7, 16, 103, 200])
def test_each_row_has_one_prediction_in_the_data_sets_order(tokenizer, lengths, batch_size):
    model = Classifier(bert(2)).eval()
    rows = numbered_rows(lengths)
    with torch.no_grad():
        expected = torch.cat([model({"input_ids": torch.tensor([ids])}) for ids in rows["input_ids"]])
    logits = predict_logits(model, Batches(rows, tokenizer, batch_size=batch_size))
    assert logits.shape == (103, 3)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_prediction_is_in_eval_mode_and_leaves_the_mode_as_it_was(tokenizer, training):
    model = Classifier(bert(2, dropout=0.5)).train(training)
    batches = Batches(numbered_rows([4, 5, 6, 7, 8]), tokenizer, batch_size=2)
    assert np.array_equal(predict_logits(model, batches), predict_logits(model, batches))
    assert model.training == training
    assert model.model.training == training


def test_a_teacher_is_still_in_eval_mode_after_a_prediction(tokenizer):
    teacher = Teacher(bert(2))
    predict_logits(teacher, Batches(numbered_rows([4, 5]), tokenizer, batch_size=2))
    assert not teacher.training


def test_prediction_builds_no_graph_and_leaves_no_gradient(tokenizer):
    model = Classifier(bert(2))
    predict_logits(model, Batches(numbered_rows([4, 5]), tokenizer, batch_size=2))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_logits_under_autocast_come_back_in_float32(tokenizer):
    model = Classifier(bert(2), autocast_dtype=torch.bfloat16)
    assert predict_logits(model, Batches(numbered_rows([4, 5]), tokenizer, batch_size=2)).dtype == np.float32


def test_a_toy_task_goes_all_the_way(tokenizer):
    rows = toy.load_split(toy.TASKS["toy-pair"], "dev").select(range(10))
    batches = Batches(tokenize(rows, toy_tokenizer(), 16), toy_tokenizer(), batch_size=4)
    assert sorted(label for batch in labels_of(batches, 0) for label in batch) == sorted(rows["label"])


# Agreement


def test_agreement_is_the_fraction_of_rows_with_the_same_class():
    student = np.array([[0.0, 1.0], [9.0, 1.0], [0.1, 0.2], [1.0, 0.0]])
    teacher = np.array([[0.0, 5.0], [0.3, 0.2], [0.5, 0.2], [3.0, 2.0]])
    assert agreement(student, teacher) == 0.75
    assert agreement(student, student) == 1.0


def test_agreement_in_regression_is_the_correlation():
    """Pearson's of (1, 2, 3) and (1, 2, 4)."""
    student, teacher = np.array([[1.0], [2.0], [3.0]]), np.array([[1.0], [2.0], [4.0]])
    assert agreement(student, teacher) == pytest.approx(3 / (28 / 3) ** 0.5)


@pytest.mark.cuda
def test_on_a_gpu_a_batch_is_copied_without_waiting(no_waits, tokenizer):
    lengths = np.array([3, 5, 2])
    features = Features.end_to_end({"input_ids": np.arange(10)}, lengths, labels=np.zeros(3, dtype=np.int64))
    batches = Batches(features, tokenizer, batch_size=3, device="cuda")
    batches.batch(np.arange(3))
    with no_waits():
        given = batches.batch(np.arange(3))
    assert given["input_ids"].tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 6, 7], [8, 9, 0, 0, 0]]
