"""Tokenised splits on disk: the same features without reading again, never a wrong or a damaged one."""

import json
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers

from reptile_distil.config.config import load_config
from reptile_distil.data import cache as feature_cache
from reptile_distil.data.cache import default_folder, load_features
from reptile_distil.data.tasks import GLUE, Task
from reptile_distil.errors import DataError
from reptile_distil.experiments.build_task import build_task
from reptile_distil.experiments.setup import build_batches
from reptile_distil.sources.splits import open_split
from tests.helpers.paths import CONFIGS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BASE = CONFIGS / "base.yaml"
TASK = Task(
    name="mine",
    text_columns=("first", "second"),
    label_names=("no", "yes"),
    metrics=("accuracy",),
    splits={"train": (), "dev": ()},
    files={"train": "train.tsv", "dev": "dev.tsv"},
)


def tokenizer(words="a b c d", *, special=SPECIAL, lower=True, **options):
    vocabulary = {word: index for index, word in enumerate((*special, *words.split()))}
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lower, **options)


TOKENIZER = tokenizer()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("first\tsecond\tlabel\na b\tc\tno\nB\td a\tyes\na a a\tb\tyes\n")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


class Loader:
    """Loads with some values changed, and counts how often the source was read."""

    def __init__(self, data, cache):
        self.data, self.cache, self.num_reads = data, cache, 0

    def __call__(self, *, task=TASK, split="train", tokenizer=TOKENIZER, max_length=8, **options):
        source = open_split(task, split, self.data)

        def read():
            self.num_reads += 1
            return source.read()

        options = {"cache": self.cache, **options}
        return load_features(replace(source, read=read), tokenizer, max_length=max_length, **options)


@pytest.fixture
def load(data, cache):
    return Loader(data, cache)


def contents(features):
    return {
        name: np.asarray(features[name]).tolist() if name == "label" else features[name]
        for name in features.column_names
    }


TRAIN = {
    "input_ids": [[2, 5, 6, 3, 7, 3], [2, 6, 3, 8, 5, 3], [2, 5, 5, 5, 3, 6, 3]],
    "token_type_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]],
    "attention_mask": [[1] * 6, [1] * 6, [1] * 7],
    "label": [0, 1, 1],
}


def entries(cache):
    return sorted(folder.name for folder in cache.iterdir())


# The same again


def test_the_second_time_nothing_is_read_and_the_features_are_the_same(load):
    assert contents(load()) == TRAIN
    assert contents(load()) == TRAIN
    assert load.num_reads == 1
    assert len(entries(load.cache)) == 1


def test_what_comes_from_the_cache_is_memory_mapped(load):
    for features in (load(), load()):
        array = features.columns["input_ids"]
        while not isinstance(array, np.memmap):
            array = array.base
            assert array is not None
        assert array.mode == "r"


def test_an_unlabelled_split_and_scores_come_back_as_they_were(load):
    (load.data / "dev.tsv").write_text("first\tsecond\tlabel\na\tb\t2.5\nb\tc\t0.1\n")
    scores = replace(TASK, label_names=(), metrics=("pearson",))
    for _ in range(2):
        labels = load(task=scores, split="dev")["label"]
        assert (labels.tolist(), labels.dtype) == ([2.5, 0.1], np.float64)
    (load.data / "dev.tsv").write_text("first\tsecond\na\tb\n")
    test_task = replace(TASK, splits={"test": ()}, files={"test": "dev.tsv"})
    for _ in range(2):
        assert "label" not in load(task=test_task, split="test").column_names
    assert load.num_reads == 2


def test_a_use_of_the_tokenizer_in_between_changes_nothing(load):
    used = tokenizer()
    load(tokenizer=used)
    used("a b c", truncation=True, max_length=3, padding="max_length")
    load(tokenizer=used)
    load(tokenizer=tokenizer(padding_side="left"))
    assert load.num_reads == 1


def test_the_same_file_elsewhere_is_the_same_data(load, tmp_path):
    load()
    load.data = load.data.rename(tmp_path / "moved")
    load()
    assert load.num_reads == 1


# Never a wrong one

CHANGES = {
    "words": {"tokenizer": tokenizer("a c b d")},
    "normaliser": {"tokenizer": tokenizer(lower=False)},
    "special tokens": {"tokenizer": tokenizer(special=("[PAD]", "[UNK]", "[SEP]", "[CLS]", "[MASK]"))},
    "inputs": {"tokenizer": tokenizer(model_input_names=["input_ids", "attention_mask"])},
    "end to cut": {"tokenizer": tokenizer(truncation_side="left")},
    "length": {"max_length": 5},
    "columns": {"task": replace(TASK, text_columns=("second", "first"))},
    "one column": {"task": replace(TASK, text_columns=("first",))},
    "label order": {"task": replace(TASK, label_names=("yes", "no"))},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another(change, load):
    load()
    changed = contents(load(**CHANGES[change]))
    assert load.num_reads == 2
    assert changed == contents(load(**CHANGES[change], cache=None))
    assert contents(load()) == TRAIN


def test_one_changed_byte_is_another_file_even_with_the_same_size_and_time(load):
    load()
    file = load.data / "train.tsv"
    stat = file.stat()
    file.write_text(file.read_text().replace("a b", "a c"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load()["input_ids"][0] == [2, 5, 7, 3, 7, 3]


def test_another_split_in_the_same_file_is_read_by_its_own_rules(load):
    load()
    test_task = replace(TASK, splits={"test": ()}, files={"test": "train.tsv"})
    assert contents(load(task=test_task, split="test")) == TRAIN
    assert load.num_reads == 2


def test_the_same_bytes_under_another_ending_are_parsed_by_its_own_rules(load):
    load()
    (load.data / "train.jsonl").write_bytes((load.data / "train.tsv").read_bytes())
    with pytest.raises(DataError, match="not JSON"):
        load(task=replace(TASK, files={**TASK.files, "train": "train.jsonl"}))


def mrpc(folder, *, dev_ids):
    folder.mkdir(exist_ok=True)
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    (folder / "msr_paraphrase_train.txt").write_text(header + "1\t1\t2\ta\tb\n0\t3\t4\tc\td\n")
    (folder / "dev_ids.tsv").write_text(dev_ids)
    return folder


def test_the_file_that_divides_mrpc_is_part_of_the_source(load, tmp_path):
    load.data = mrpc(tmp_path / "MRPC", dev_ids="1\t2\n")
    assert load(task=GLUE["mrpc"], check_rows=False)["input_ids"] == [[2, 7, 3, 8, 3]]
    mrpc(tmp_path / "MRPC", dev_ids="3\t4\n")
    assert load(task=GLUE["mrpc"], check_rows=False)["input_ids"] == [[2, 5, 3, 6, 3]]


def save_sst2(folder, texts, labels, names=("negative", "positive")):
    features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))}
    rows = datasets.Dataset.from_dict({"sentence": texts, "label": labels}, features=datasets.Features(features))
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / "train-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("changed", "reads"),
    [
        ((["a", "b c"], [0, 1]), 1),
        ((["a", "b d"], [0, 1]), 2),
        ((["a b", "c"], [0, 1]), 2),
        ((["b c", "a"], [1, 0]), 2),
        ((["a", "b c"], [1, 1]), 2),
        ((["a", "b c"], [0, 1], ("positive", "negative")), 2),
    ],
)
def test_a_data_set_is_known_by_its_rows_and_class_names(changed, reads, load, tmp_path):
    load.data = tmp_path / "sst2"
    sst2 = {"task": GLUE["sst2"], "check_rows": False}
    save_sst2(load.data, ["a", "b c"], [0, 1])
    load(**sst2)
    save_sst2(load.data, *changed)
    assert contents(load(**sst2)) == contents(load(**sst2, cache=None))
    assert load.num_reads == reads + 1


def test_rows_read_while_the_file_changed_are_not_kept(load, monkeypatch):
    tokenize = feature_cache.tokenize

    def slow(*arguments):
        (load.data / "train.tsv").write_text("first\tsecond\tlabel\nd\td\tno\n")
        return tokenize(*arguments)

    monkeypatch.setattr(feature_cache, "tokenize", slow)
    assert contents(load()) == TRAIN
    assert not load.cache.exists()


def test_a_tokenizer_with_python_code_of_its_own_is_not_cached(load):
    class Own(transformers.BertTokenizer):
        pass

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *"abcd"))}
    assert contents(load(tokenizer=Own(vocab=vocabulary, do_lower_case=True))) == TRAIN
    assert not load.cache.exists()


# Never a damaged one


def damage(entry, name, how):
    file = entry / name
    content = file.read_bytes()
    middle = len(content) - 3
    if how == "missing":
        file.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.write_bytes({"half": content[: len(content) // 2], "empty": b"", "one bit": flipped}[how])


FILES = ("input_ids.npy", "token_type_ids.npy", "attention_mask.npy", "lengths.npy", "labels.npy", "entry.json")


@pytest.mark.parametrize("how", ["missing", "half", "empty", "one bit"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_entry_is_made_anew(name, how, load):
    load()
    (entry,) = load.cache.iterdir()
    assert {file.name for file in entry.iterdir()} == set(FILES)
    damage(entry, name, how)
    assert contents(load()) == TRAIN
    assert load.num_reads == 2
    assert contents(load()) == TRAIN
    assert load.num_reads == 2


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"key": 1, "hashes": 2}', '{"key": "", "hashes": {}}'])
def test_a_list_of_contents_that_is_none_is_not_believed(content, load):
    load()
    (entry,) = load.cache.iterdir()
    (entry / "entry.json").write_text(content)
    assert contents(load()) == TRAIN
    assert load.num_reads == 2


def test_an_entry_under_another_ones_name_is_not_believed(load):
    load(max_length=5)
    (short,) = load.cache.iterdir()
    load()
    (long,) = set(load.cache.iterdir()) - {short}
    content = {file.name: file.read_bytes() for file in short.iterdir()}
    for name, data in content.items():
        (long / name).write_bytes(data)
    assert contents(load()) == TRAIN


class Bomb:
    def __reduce__(self):
        return Path.write_text, (Path(os.environ["BOMB"]), "boom")


def test_nothing_in_an_entry_is_executed(load, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "bomb"))
    load()
    (entry,) = load.cache.iterdir()
    np.save(entry / "labels.npy", np.array([Bomb()] * 3, dtype=object), allow_pickle=True)
    listed = json.loads((entry / "entry.json").read_text())
    listed["hashes"]["labels"] = feature_cache.hash_file(entry / "labels.npy")
    (entry / "entry.json").write_text(json.dumps(listed))
    assert contents(load()) == TRAIN
    assert not (tmp_path / "bomb").exists()
    pickle.loads(pickle.dumps(Bomb()))  # the bomb is one
    assert (tmp_path / "bomb").exists()


# Others at work, and no room


def test_of_two_processes_that_make_the_same_entry_each_gets_it(data, cache, monkeypatch):
    tokenize, loads = feature_cache.tokenize, [Loader(data, cache), Loader(data, cache)]

    def meanwhile(*arguments):
        monkeypatch.setattr(feature_cache, "tokenize", tokenize)
        assert contents(loads[1]()) == TRAIN
        first.extend(entry.stat().st_ino for entry in cache.iterdir())
        return tokenize(*arguments)

    first = []
    monkeypatch.setattr(feature_cache, "tokenize", meanwhile)
    assert contents(loads[0]()) == TRAIN
    assert [entry.stat().st_ino for entry in cache.iterdir()] == first
    assert [load.num_reads for load in loads] == [1, 1]
    assert len(entries(cache)) == 1
    assert contents(loads[0]()) == TRAIN
    assert loads[0].num_reads == 1


def test_where_another_process_puts_its_entry_just_before_ours_that_one_serves(load, caplog, monkeypatch):
    rename = Path.rename

    def beaten(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        other = Loader(load.data, load.cache)
        assert contents(other()) == TRAIN
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    assert contents(load()) == TRAIN
    assert contents(load()) == TRAIN
    assert (load.num_reads, len(entries(load.cache)), caplog.messages) == (1, 1, [])


def test_features_in_use_outlive_their_entry(load):
    features = load()
    (entry,) = load.cache.iterdir()
    damage(entry, "entry.json", "empty")
    load()
    assert contents(features) == TRAIN


def test_a_cache_that_cannot_be_written_is_done_without_and_said_once(load, caplog):
    load.cache.write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert contents(load()) == TRAIN
        assert contents(load(split="dev")) == TRAIN
    assert caplog.messages == [f"{load.cache}: tokenised data cannot be kept there (Not a directory): going on without"]


@pytest.mark.parametrize("step", ["save", "rename"])
def test_a_full_disk_is_said_and_leaves_nothing_behind(load, caplog, monkeypatch, step):
    def full(*arguments, **options):
        raise OSError("400 requested and 12 written")  # as numpy says it

    monkeypatch.setattr(*((np, "save") if step == "save" else (Path, "rename")), full)
    with caplog.at_level(logging.WARNING):
        assert contents(load()) == TRAIN
    assert len(caplog.messages) == 1
    assert "tokenised data cannot be kept there (400 requested and 12 written)" in caplog.messages[0]
    assert entries(load.cache) == []


# What is asked of the rows


def test_the_number_of_rows_is_checked_on_what_comes_from_the_cache_too(load):
    load()
    counted = replace(TASK, splits={"train": (4,), "dev": ()})
    assert contents(load(task=counted, check_rows=False)) == TRAIN
    assert load.num_reads == 1
    with pytest.raises(
        DataError, match=r"train\.tsv: expected 4 rows for mine train, found 3 \(data\.check_rows=false"
    ):
        load(task=counted)


def test_rows_are_drawn_from_the_whole_split_in_the_cache(load):
    drawn = [contents(load(max_rows=2)), contents(load(max_rows=2)), contents(load(max_rows=2, cache=None))]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(drawn[0]["label"]) == 2
    assert contents(load()) == TRAIN
    assert len(entries(load.cache)) == 1
    with pytest.raises(DataError, match=r"data\.max_train_rows is 4, but the training set has only 3 rows"):
        load(max_rows=4)


def test_a_missing_file_is_said_as_without_a_cache(load):
    (load.data / "train.tsv").unlink()
    with pytest.raises(DataError, match=r"train\.tsv: no such file or folder"):
        load()


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ((0, 20, 100), "the mean 40 and the standard deviation 43.2"),
        ((31.0, 32.0, 33.0), "the mean 32 and the standard deviation 0.8165"),
        ((1.00, 1.01, 1.02), "the mean 1.01 and the standard deviation 0.008165"),
        ((0.0, 2.5, 5.0), None),
    ],
)
def test_scores_that_are_far_from_the_size_of_1_are_warned_of_once(load, caplog, scores, found):
    task = replace(TASK, label_names=(), metrics=("pearson",))
    for split in ("train", "dev"):
        rows = "".join(f"a\tb\t{score}\n" for score in scores)
        (load.data / f"{split}.tsv").write_text(f"first\tsecond\tlabel\n{rows}")
    for options in ({}, {}, {"cache": None}, {"split": "dev"}):
        load(task=task, **options)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == (0 if found is None else 1)
    if found is not None:
        assert said[0].startswith(f"{load.data}/train.tsv: the labels to train on have {found}: scale them to about 1 ")


# Where it lies


@pytest.mark.parametrize(
    ("hf_home", "xdg", "expected"),
    [("/h", "/x", "/h/reptile_distil"), ("", "/x", "/x/reptile_distil"), ("", "", "/me/.cache/reptile_distil")],
)
def test_the_cache_lies_beside_that_of_hugging_face_or_in_the_users(hf_home, xdg, expected, monkeypatch):
    monkeypatch.setenv("HF_HOME", hf_home)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", "/me")
    assert default_folder() == Path(expected)


def own_task_batches(data, *overrides):
    task = "name: mine, text: [first, second], labels: ['no', 'yes'], metrics: [accuracy], files: {train: train.tsv}"
    config = load_config(BASE, [f"task={{{task}}}", f"data.path={data}", "device=cpu", *overrides])
    return build_batches(config, build_task(config), "train", tokenizer(), config.train, for_training=True)


def test_a_run_keeps_its_tokenised_data_in_the_default_folder_or_where_it_is_told_or_nowhere(data, cache):
    assert contents(own_task_batches(data, "data.cache_dir=false").features) == TRAIN
    assert not default_folder().exists()
    own_task_batches(data)
    assert len(entries(default_folder())) == 1
    own_task_batches(data, f"data.cache_dir={cache}")
    assert len(entries(cache)) == 1


def test_the_batches_of_a_run_are_the_same_from_the_cache_and_without_it(data):
    epochs = [
        [{name: tensor.tolist() for name, tensor in batch.items()} for batch in own_task_batches(data, option).epoch(1)]
        for option in ("data.cache_dir=false", "data.cache_dir=null", "data.cache_dir=null")
    ]
    assert epochs[0] == epochs[1] == epochs[2]
