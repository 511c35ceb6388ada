"""Tokenizers written in Python, which have no `backend_tokenizer`: through training, saving and use."""

import json

import pytest
import transformers
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from reptile_distil.data import toy
from reptile_distil.errors import ModelError
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.models.tokenizer import check_same_tokenizer, load_tokenizer
from tests.helpers.paths import TINY

WORDS = toy.VOCABULARY[5:]


def japanese(folder):
    (folder / "vocab.txt").write_text("\n".join(toy.VOCABULARY))
    file = str(folder / "vocab.txt")
    return transformers.BertJapaneseTokenizer(file, word_tokenizer_type="basic", subword_tokenizer_type="wordpiece")


def esm(folder):
    (folder / "vocab.txt").write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *WORDS, "<mask>"]))
    return transformers.EsmTokenizer(str(folder / "vocab.txt"))


def phobert(folder):
    (folder / "vocab.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
    (folder / "bpe.codes").write_text("#version: 0.2\n")
    return transformers.PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def byt5(folder):
    return transformers.ByT5Tokenizer()


SLOW = pytest.mark.parametrize("make", [japanese, esm, phobert, byt5])


def save(folder, make, num_layers):
    """A BERT of this depth, and the tokenizer, in a folder; its name."""
    folder.mkdir()
    tokenizer = make(folder)
    config = transformers.BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@SLOW
def test_distillation_from_one_model_to_another_works_and_the_student_can_be_used(tmp_path, make):
    teacher, student = save(tmp_path / "teacher", make, 2), save(tmp_path / "student", make, 1)
    experiment = Experiment.from_yaml(
        TINY,
        f"runs_dir={tmp_path}/runs",
        f"teacher.pretrained={teacher}",
        *("student.init=pretrained", f"student.pretrained={student}", "student.num_layers=null"),
        *("train.max_steps=2", "teacher.train.max_steps=2"),
    )
    assert experiment.fit()["num_steps"] == 2
    assert len(experiment.predict(["the film was good"])) == 1
    saved = load_tokenizer(str(experiment.folder.model))
    assert not saved.is_fast
    assert saved.get_vocab() == load_tokenizer(student).get_vocab()


@SLOW
def test_a_slow_tokenizer_agrees_with_itself_and_not_with_one_of_other_words(tmp_path, make):
    one, other = (load_tokenizer(save(tmp_path / name, make, 1)) for name in ("one", "other"))
    check_same_tokenizer("big", one, "small", other)
    other.add_tokens(["somethingelse"])
    with pytest.raises(ModelError, match=r"^teacher big and student small have different vocabularies: choose a pair"):
        check_same_tokenizer("big", one, "small", other)


def test_a_slow_tokenizer_that_keeps_capitals_differs_from_one_that_does_not(tmp_path):
    folder = save(tmp_path / "one", japanese, 1)
    one = load_tokenizer(folder)
    path = tmp_path / "one" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "subword_tokenizer_type": "character"}))
    with pytest.raises(ModelError, match="have different ways to cut text"):
        check_same_tokenizer("big", one, "small", load_tokenizer(folder))


def test_a_slow_and_a_fast_tokenizer_that_give_the_same_ids_are_a_pair(tmp_path):
    save(tmp_path / "one", japanese, 1)
    vocabulary = str(tmp_path / "one" / "vocab.txt")
    slow = BertTokenizerLegacy(vocabulary, do_lower_case=True)
    check_same_tokenizer("big", slow, "small", transformers.BertTokenizer(vocabulary, do_lower_case=True))
