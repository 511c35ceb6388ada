"""What is asked of a tokenizer, and of two of them."""

import json

import pytest
import transformers

from reptile_distil.errors import ModelError
from reptile_distil.models.tokenizer import check_same_tokenizer, load_tokenizer
from reptile_distil.models.toy import toy_tokenizer
from tests.helpers.models import bert
from tests.helpers.saved_models import save


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path):
    folder = save(bert(2), tmp_path)
    with pytest.raises(ModelError, match=f"^{folder}: "):
        load_tokenizer(folder)


@pytest.mark.parametrize("changes", [{"pad_token": None}, {"unk_token": "nowhere"}])
def test_a_tokenizer_that_cannot_make_a_batch_is_refused(tmp_path, changes):
    toy_tokenizer().save_pretrained(tmp_path)
    save(bert(2), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=f"^{tmp_path}: its tokenizer cannot be used: "):
        load_tokenizer(str(tmp_path))


def tokenizer(words=("the", "don", "déjà", "deja", "STRASSE", "strasse"), **options):
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[OTHER]")
    options.setdefault("do_lower_case", True)  # the default is not the same in every transformers 5
    return transformers.BertTokenizer(vocab={word: index for index, word in enumerate((*special, *words))}, **options)


def test_tokenizers_that_agree_pass():
    check_same_tokenizer("big", tokenizer(), "small", tokenizer())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (lambda: tokenizer(words=("the", "cat")), "vocabularies"),
        (lambda: tokenizer(words=("don", "the", "déjà", "deja", "STRASSE", "strasse")), "vocabularies"),
        (lambda: tokenizer(unk_token="[OTHER]"), "special tokens"),
        (lambda: tokenizer(do_lower_case=False), "ways to lower-case and clean text"),
        (lambda: tokenizer(strip_accents=False), "ways to lower-case and clean text"),
    ],
)
def test_tokenizers_that_give_other_ids_are_refused_with_both_names(other, difference):
    message = f"^teacher big and student small have different {difference}: choose a pair that shares one tokenizer$"
    with pytest.raises(ModelError, match=message):
        check_same_tokenizer("big", tokenizer(), "small", other())


def test_a_tokenizer_comes_from_the_models_folder_or_for_a_toy_from_the_toy_world(tmp_path):
    save(bert(2), tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).get_vocab() == toy_tokenizer().get_vocab()
    assert load_tokenizer("toy-bert-4L-64H").get_vocab() == toy_tokenizer().get_vocab()


def test_a_tokenizer_that_knows_only_its_special_tokens_is_refused(tmp_path):
    transformers.BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        ModelError, match=f"^{tmp_path}: has no vocabulary; put the tokenizer's files beside the model's$"
    ):
        load_tokenizer(str(tmp_path))
