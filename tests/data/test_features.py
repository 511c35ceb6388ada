"""Flat rows against the lists they come from, and batches against the tokenizer's own padding."""

import datasets
import numpy as np
import pytest
import torch
import transformers

from reptile_distil.data.batches import Batches, tokenize
from reptile_distil.data.features import Features, Padding, pad_rows
from reptile_distil.errors import DataError, ModelError

WORDS = [f"w{i}" for i in range(300)]
ROWS = np.array([4, 0, 11, 7, 7])


def bert_tokenizer(special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), **options):
    vocabulary = {word: index for index, word in enumerate((*special, *WORDS))}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=True, **options)


def texts(num_rows=12, *, pair=True, labels=None):
    rng = np.random.default_rng(0)

    def text(longest):
        return " ".join(rng.choice(WORDS, size=rng.integers(1, longest)))

    columns = {"text": [text(20) for _ in range(num_rows)]}
    if pair:
        columns["text_pair"] = [text(9) for _ in range(num_rows)]
    if labels is not None:
        columns["label"] = labels
    return datasets.Dataset.from_dict(columns)


TOKENIZERS = {
    "bert": {},
    "pad id 1, as RoBERTa's": {"special": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")},
    "padding on the left": {"padding_side": "left"},
    "no token types": {"model_input_names": ["input_ids", "attention_mask"]},
    "no mask": {"model_input_names": ["input_ids"]},
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("labels", [None, list(range(12)), [0.1 * i for i in range(12)]])
def test_a_batch_is_what_the_tokenizers_own_padding_makes_of_the_rows(kind, pair, labels):
    tokenizer = bert_tokenizer(**TOKENIZERS[kind])
    rows = tokenize(texts(pair=pair, labels=labels), tokenizer, 16)
    lists = [rows[int(index)] for index in ROWS]
    expected = transformers.DataCollatorWithPadding(tokenizer)(lists).data
    batch = Batches(rows, tokenizer, batch_size=4).batch(ROWS)
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert batch[name].dtype == tensor.dtype, name
        assert torch.equal(batch[name], tensor), name


def test_the_padding_of_a_token_type_is_the_tokenizers():
    tokenizer = bert_tokenizer()
    tokenizer._pad_token_type_id = 7
    features = Features.from_dataset(
        datasets.Dataset.from_dict({"input_ids": [[5], [5, 6]], "token_type_ids": [[1], [1, 1]]})
    )
    assert pad_rows(features, np.array([0, 1]), Padding.of(tokenizer))["token_type_ids"].tolist() == [[1, 7], [1, 1]]


def test_a_row_without_a_mask_gets_one_behind_and_one_before():
    features = Features.from_dataset(datasets.Dataset.from_dict({"input_ids": [[5, 6, 7], [8]]}))
    for side, mask in (("right", [[1, 0, 0], [1, 1, 1]]), ("left", [[0, 0, 1], [1, 1, 1]])):
        batch = pad_rows(features, np.array([1, 0]), Padding.of(bert_tokenizer(padding_side=side)))
        assert batch["attention_mask"].tolist() == mask
        assert batch["attention_mask"].dtype == torch.int64


def test_a_mask_of_the_rows_own_is_kept():
    rows = datasets.Dataset.from_dict({"input_ids": [[5, 6], [7]], "attention_mask": [[0, 1], [1]]})
    batch = pad_rows(Features.from_dataset(rows), np.array([0, 1]), Padding.of(bert_tokenizer()))
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 0]]


def test_chosen_rows_are_those_rows_in_the_order_asked_for():
    rows = datasets.Dataset.from_dict({"input_ids": [[1], [2, 2], [3, 3, 3]], "label": [10, 20, 30]})
    chosen = Features.from_dataset(rows).select([2, 0]).select(range(2))
    assert (chosen["input_ids"], chosen["label"].tolist(), len(chosen)) == ([[3, 3, 3], [1]], [30, 10], 2)
    batch = pad_rows(chosen, np.array([1, 0]), Padding.of(bert_tokenizer()))
    assert batch["input_ids"].tolist() == [[1, 0, 0], [3, 3, 3]]
    assert batch["labels"].tolist() == [10, 30]


def test_a_data_set_of_which_rows_were_chosen_or_joined_is_taken_as_it_reads():
    part = datasets.Dataset.from_dict({"input_ids": [[1], [2, 2], [3, 3, 3]], "label": [10, 20, 30]})
    rows = datasets.concatenate_datasets([part.select([2, 1]), part]).select([4, 0, 1])
    features = Features.from_dataset(rows)
    assert features["input_ids"] == [[3, 3, 3], [3, 3, 3], [2, 2]]
    assert features["label"].tolist() == [30, 30, 20]
    assert features.column_names == ["input_ids", "label"]


def test_a_token_takes_as_few_bytes_as_its_ids_need():
    for largest, size in ((255, 1), (256, 2), (65535, 2), (65536, 4)):
        features = Features.from_dataset(datasets.Dataset.from_dict({"input_ids": [[0, largest]]}))
        assert features.columns["input_ids"].itemsize == size
        assert features["input_ids"] == [[0, largest]]


def test_what_cannot_be_part_of_a_batch_is_refused():
    rows = datasets.Dataset.from_dict({"input_ids": [[1]], "idx": [3]})
    with pytest.raises(DataError, match=r"^column 'idx' cannot be part of a batch: remove it, or tokenise the rows"):
        Features.from_dataset(rows)
    with pytest.raises(DataError, match="no column 'input_ids': tokenise them first"):
        Features.from_dataset(datasets.Dataset.from_dict({"label": [1]}))
    with pytest.raises(DataError, match="column 'attention_mask' has 2 values for 3 tokens"):
        Features.from_dataset(datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]}))


def test_a_tokenizer_that_cannot_pad_is_refused():
    tokenizer = bert_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"^the tokenizer \(BertTokenizer\) has no padding token"):
        Batches(datasets.Dataset.from_dict({"input_ids": [[1]]}), tokenizer, batch_size=1)


@pytest.mark.cuda
def test_on_cuda_a_batch_is_the_same_as_on_the_cpu():
    tokenizer = bert_tokenizer()
    rows = tokenize(texts(labels=list(range(12))), tokenizer, 16)
    there = Batches(rows, tokenizer, batch_size=4, device="cuda").batch(ROWS)
    for name, tensor in Batches(rows, tokenizer, batch_size=4).batch(ROWS).items():
        assert there[name].device.type == "cuda"
        assert torch.equal(there[name].cpu(), tensor)
