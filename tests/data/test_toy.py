"""The offline world is fixed, balanced, and right but for its training noise: by rules that share no code with it."""

import functools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from reptile_distil.data import toy
from reptile_distil.data.cache import load_features
from reptile_distil.data.tasks import Task, get_task
from reptile_distil.errors import DataError, ModelError
from reptile_distil.models.toy import is_toy_model, toy_config, toy_tokenizer
from reptile_distil.sources.splits import load_split, open_split

NAMES = ("toy-sentence", "toy-pair", "toy-threeway", "toy-regression")
CLASSIFICATION = ("toy-sentence", "toy-pair", "toy-threeway")


@functools.cache
def load(name, split):
    return toy.load_split(toy.TASKS[name], split)


def texts(name, split):
    rows = load(name, split)
    return [text for column in ("text", "text_pair") if column in rows.column_names for text in rows[column][:]]


def opinions(text):
    """1 for each positive and -1 for each negative opinion; a negator turns the word behind it round."""
    words = text.split()
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word in toy._POSITIVE or word in toy._NEGATIVE:
            found.append(1 if (word in toy._POSITIVE) != (before in toy._NEGATORS) else -1)
    return found


def is_positive(row):
    return int(sum(opinions(row["text"])) > 0)


def is_better(row):
    return int(sum(opinions(row["text_pair"])) > sum(opinions(row["text"])))


def comparison(row):
    first, second = sum(opinions(row["text"])), sum(opinions(row["text_pair"]))
    return 0 if second > first else 1 if second == first else 2


def positive_share(row):
    both = opinions(row["text"]) + opinions(row["text_pair"])
    return 5 * both.count(1) / len(both)


RULES = {
    "toy-sentence": is_positive,
    "toy-pair": is_better,
    "toy-threeway": comparison,
    "toy-regression": positive_share,
}


@pytest.mark.parametrize(
    ("name", "columns", "labels", "metrics"),
    [
        ("toy-sentence", ("sentence",), ("negative", "positive"), ("accuracy",)),
        ("toy-pair", ("sentence1", "sentence2"), ("worse", "better"), ("f1", "accuracy")),
        ("toy-threeway", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)),
        ("toy-regression", ("sentence1", "sentence2"), (), ("pearson", "spearmanr")),
    ],
)
def test_there_is_a_toy_for_each_kind_of_glue_task(name, columns, labels, metrics):
    task = toy.TASKS[name]
    assert (task.name, task.text_columns, task.label_names, task.metrics) == (name, columns, labels, metrics)
    assert list(toy.TASKS) == list(NAMES)


def test_the_threeway_labels_stand_in_mnlis_order():
    assert toy.TASKS["toy-threeway"].label_names == get_task("mnli").label_names


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_each_split_has_its_rows_and_columns(name, split):
    rows = load(name, split)
    assert len(rows) == {"train": 2000, "dev": 500, "test": 500}[split]
    assert toy.TASKS[name].splits[split] == (len(rows),)
    pair = [] if name == "toy-sentence" else ["text_pair"]
    assert rows.column_names == ["text", *pair, "label"]


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_are_the_same_each_time_whatever_the_global_random_numbers(name):
    first = load(name, "train").to_dict()
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    toy._make_columns.cache_clear()
    assert toy.load_split(toy.TASKS[name], "train").to_dict() == first


def test_the_rows_are_the_same_in_another_process():
    code = "from reptile_distil.data import toy; print(toy.load_split(toy.TASKS['toy-pair'], 'train')[1999])"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(load("toy-pair", "train")[1999])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("toy-sentence", {"text": "never dull never bad very music very seemed music never cold music", "label": 1}),
        (
            "toy-pair",
            {
                "text": "stupid music and ending never lovely story",
                "text_pair": "very ending very clumsy honest a lovely the with",
                "label": 1,
            },
        ),
        (
            "toy-threeway",
            {
                "text": "actor plot film very stupid this rather ugly cruel",
                "text_pair": "honest dull the bad seemed seemed scene very",
                "label": 0,
            },
        ),
        (
            "toy-regression",
            {
                "text": "very ending quite scene ending bad this",
                "text_pair": "story film music clumsy looked",
                "label": 0.0,
            },
        ),
    ],
)
def test_the_first_dev_row_is_this_one(name, row):
    """A change here changes every published toy number."""
    assert load(name, "dev")[0] == row


@pytest.mark.parametrize("name", NAMES)
def test_the_splits_differ(name):
    assert load(name, "train")["text"][:20] != load(name, "dev")["text"][:20]
    assert load(name, "dev")["text"][:20] != load(name, "test")["text"][:20]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("name", CLASSIFICATION)
def test_the_labels_are_roughly_balanced(name, split):
    labels = load(name, split)["label"][:]
    num_classes = len(toy.TASKS[name].label_names)
    for label in range(num_classes):
        assert labels.count(label) / len(labels) == pytest.approx(1 / num_classes, abs=0.06)


@pytest.mark.parametrize("split", ["dev", "test"])
@pytest.mark.parametrize("name", NAMES)
def test_dev_and_test_labels_follow_the_rule_without_exception(name, split):
    rows = load(name, split)
    assert [RULES[name](row) for row in rows] == pytest.approx(rows["label"][:], abs=1e-3)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_about_one_training_label_in_ten_is_wrong(name):
    rows = load(name, "train")
    wrong = [row["label"] != RULES[name](row) for row in rows]
    assert np.mean(wrong) == pytest.approx(toy.LABEL_NOISE, abs=0.025)
    assert toy.LABEL_NOISE > 0


def test_wrong_labels_are_any_of_the_others():
    rows = load("toy-threeway", "train")
    mistakes = {(RULES["toy-threeway"](row), row["label"]) for row in rows}
    assert mistakes == {(true, given) for true in range(3) for given in range(3)}


def test_training_scores_are_noisy_but_stay_in_their_range_and_keep_their_sense():
    rows = load("toy-regression", "train")
    given, true = np.array(rows["label"]), np.array([positive_share(row) for row in rows])
    assert given.min() >= 0
    assert given.max() <= 5
    assert np.mean(np.abs(given - true) > 1e-3) > 0.05
    assert np.corrcoef(given, true)[0, 1] > 0.9


def test_scores_take_many_values_from_the_lowest_to_the_highest():
    scores = load("toy-regression", "dev")["label"][:]
    assert (min(scores), max(scores)) == (0, 5)
    assert len(set(scores)) >= 4


def test_a_pair_is_never_as_good_as_its_other_half_unless_that_is_an_answer():
    assert all(sum(opinions(row["text"])) != sum(opinions(row["text_pair"])) for row in load("toy-pair", "train"))


@pytest.mark.parametrize("name", NAMES)
def test_every_text_has_an_opinion_and_some_are_said_by_their_opposite(name):
    assert all(opinions(text) for text in texts(name, "dev"))
    assert any(set(text.split()) & set(toy._NEGATORS) for text in texts(name, "dev"))


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_word_is_in_the_vocabulary_and_is_one_token(split):
    tokenizer = toy_tokenizer()
    words = sorted({word for name in NAMES for text in texts(name, split) for word in text.split()})
    assert len(words) > 30
    for word, ids in zip(words, tokenizer(words)["input_ids"], strict=True):
        assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", word, "[SEP]"]


@pytest.mark.parametrize("name", NAMES)
def test_every_row_fits_into_the_toy_models_positions(name):
    longest = max(len(text.split()) for text in texts(name, "train"))
    pair = len(toy.TASKS[name].text_columns)
    positions = toy_config("toy-bert-2L-32H").max_position_embeddings
    assert 1 + pair * (longest + 1) <= positions  # [CLS], and each text with its [SEP]
    assert toy_tokenizer().model_max_length <= positions


def test_no_word_has_two_senses():
    words = [*toy._POSITIVE, *toy._NEGATIVE, *toy._NEGATORS, *toy._FILLERS]
    assert len(words) == len(set(words))


def test_a_toy_models_name_says_its_depth_and_width():
    config = toy_config("toy-bert-4L-64H")
    assert (config.num_hidden_layers, config.hidden_size) == (4, 64)
    config = toy_config("toy-bert-12L-128H")
    assert (config.num_hidden_layers, config.hidden_size) == (12, 128)


def test_toy_models_of_any_depth_share_the_vocabulary():
    assert toy_config("toy-bert-2L-32H").vocab_size == len(toy_tokenizer().get_vocab())


@pytest.mark.parametrize(
    ("name", "is_toy"),
    [
        ("toy-bert-4L-64H", True),
        ("toy-bert-12L-128H", True),
        ("toy-bert-4L", False),
        ("toy-bert-4L-64H-v2", False),
        ("./toy-bert-4L-64H", False),
        ("toy-bert-xL-64H", False),
        ("bert-base-uncased", False),
    ],
)
def test_only_such_names_are_toy_models(name, is_toy):
    assert is_toy_model(name) == is_toy


@pytest.mark.parametrize("name", ["toy-bert-0L-64H", "toy-bert-2L-0H", "toy-bert-2L-30H"])
def test_a_shape_that_cannot_be_built_is_refused(name):
    with pytest.raises(ModelError, match="a layer or more and a width that is a multiple of its 4 heads"):
        toy_config(name)


def test_another_name_is_refused_with_an_example():
    with pytest.raises(ModelError, match="'bert-base' is no toy model: expected a name such as toy-bert-4L-64H"):
        toy_config("bert-base")


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match="task toy-pair: no split 'dev_matched'; it has train, dev, test"):
        load("toy-pair", "dev_matched")


# As any other task's


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_toy_split_is_a_source_like_any_other_and_leaves_nothing_in_the_cache(tmp_path, name, split):
    source = open_split(toy.TASKS[name], split, tmp_path / "no-such-folder")
    assert source.load().to_dict() == load(name, split).to_dict()
    assert source.load().features == load(name, split).features
    features = load_features(source, toy_tokenizer(), max_length=32, max_rows=7, cache=tmp_path / "cache")
    assert len(features) == 7
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_own_task_may_have_a_toys_name(tmp_path, name):
    (tmp_path / "train.csv").write_text("sentence,label\nmine,a\n")
    own = Task(
        name=name,
        text_columns=("sentence",),
        label_names=("a", "b"),
        metrics=("accuracy",),
        splits={"train": ()},
        files={"train": "train.csv"},
    )
    assert load_split(own, "train", tmp_path).to_dict() == {"text": ["mine"], "label": [0]}


@pytest.mark.parametrize("name", NAMES)
def test_a_toy_split_that_there_is_not_is_refused_as_any_other(name):
    with pytest.raises(DataError, match=f"^task {name} has no split 'dev_matched', only train, dev, test$"):
        open_split(toy.TASKS[name], "dev_matched", None)
