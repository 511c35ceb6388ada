import json
import os
import re
import socket
import time
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets.arrow_writer import ArrowWriter

from reptile_distil.data.tasks import GLUE, Task
from reptile_distil.errors import DataError
from reptile_distil.runtime import hub
from reptile_distil.sources import splits as sources
from reptile_distil.sources.splits import load_split

SST2_NAMES = ["negative", "positive"]


@pytest.fixture(autouse=True)
def own_world(tmp_path, monkeypatch):
    """An empty working directory, an empty cache, and no network."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def sst2(sentences, labels, names=SST2_NAMES):
    """A data set with the hub's columns."""
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    return datasets.Dataset.from_dict(
        {"sentence": sentences, "label": labels, "idx": list(range(len(labels)))},
        features=datasets.Features(
            {"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
        ),
    )


def mnli(labels, names):
    """A data set with the hub's columns and one row per label."""
    texts = [f"text {i}" for i in range(len(labels))]
    features = {"premise": datasets.Value("string"), "hypothesis": datasets.Value("string")}
    return datasets.Dataset.from_dict(
        {"premise": texts, "hypothesis": texts, "label": labels},
        features=datasets.Features({**features, "label": datasets.ClassLabel(names=names)}),
    )


def stsb(labels):
    columns = {"sentence1": ["a"] * len(labels), "sentence2": ["b"] * len(labels), "label": labels}
    return datasets.Dataset.from_dict(columns)


def save_parquet(dataset, folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    dataset.to_parquet(folder / name)
    return folder


def save_to_cache(dataset, cache, task, split):
    """What `datasets.load_dataset("nyu-mll/glue", task)` leaves behind."""
    folder = cache / "nyu-mll___glue" / task / "0.0.0" / "bcdcba79d07bc864"
    folder.mkdir(parents=True)
    with ArrowWriter(path=str(folder / f"glue-{split}.arrow"), features=dataset.features) as writer:
        for row in dataset:
            writer.write(row)
        num_examples, num_bytes = writer.finalize()
    splits = datasets.SplitDict()
    splits.add(datasets.SplitInfo(split, num_bytes=num_bytes, num_examples=num_examples, dataset_name="glue"))
    info = datasets.DatasetInfo(features=dataset.features, splits=splits, dataset_name="glue", config_name=task)
    info.write_to_directory(str(folder))


def own_task(name="train.csv", split="train", **changes):
    fields = {
        "name": "mine",
        "text_columns": ("text",),
        "label_names": ("no", "yes"),
        "metrics": ("accuracy",),
        "splits": {split: ()},
        "files": {split: name},
    }
    return Task(**{**fields, **changes})


# GLUE's own files


@pytest.mark.parametrize("below", ["SST-2", "."])
def test_tsv_files_are_found_in_the_tasks_folder_or_in_the_path_itself(tmp_path, below):
    write(tmp_path / below, "train.tsv", "sentence\tlabel\ngood\t1\nbad\t0\n")
    rows = load_split(GLUE["sst2"], "train", tmp_path, check_rows=False)
    assert rows.to_dict() == {"text": ["good", "bad"], "label": [1, 0]}


def test_a_pair_task_has_text_pair(tmp_path):
    write(tmp_path, "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n")
    rows = load_split(GLUE["rte"], "dev", tmp_path, check_rows=False)
    assert rows.to_dict() == {"text": ["a"], "text_pair": ["b"], "label": [1]}


def test_a_regression_label_is_a_float(tmp_path):
    write(tmp_path, "train.tsv", "sentence1\tsentence2\tscore\na\tb\t4\n")
    label = load_split(GLUE["stsb"], "train", tmp_path, check_rows=False)[0]["label"]
    assert (type(label), label) == (float, 4.0)


def test_an_unlabelled_test_split_has_no_label_column(tmp_path):
    write(tmp_path, "test.tsv", "index\tsentence\n0\ta\n")
    assert load_split(GLUE["sst2"], "test", tmp_path, check_rows=False).column_names == ["text"]


def test_a_lost_row_is_noticed(tmp_path):
    write(tmp_path / "WNLI", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n" + "0\ta\tb\t1\n" * 70)
    with pytest.raises(DataError, match=r"dev\.tsv: expected 71 rows for wnli dev, found 70 .*data\.check_rows=false"):
        load_split(GLUE["wnli"], "dev", tmp_path)


def test_the_right_number_of_rows_passes(tmp_path):
    write(tmp_path / "WNLI", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n" + "0\ta\tb\t1\n" * 71)
    assert len(load_split(GLUE["wnli"], "dev", tmp_path)) == 71


def test_a_split_the_task_does_not_have_is_refused(tmp_path):
    with pytest.raises(DataError, match="task mnli has no split 'dev', only train, dev_matched"):
        load_split(GLUE["mnli"], "dev", tmp_path)


def test_a_path_with_nothing_in_it_is_refused_with_the_places_looked_at(tmp_path):
    with pytest.raises(DataError) as caught:
        load_split(GLUE["sst2"], "dev", tmp_path)
    for place in (str(tmp_path), str(tmp_path / "SST-2"), str(tmp_path / "sst2"), "validation-*.parquet"):
        assert place in str(caught.value)


def test_a_task_without_a_source_is_refused(tmp_path):
    with pytest.raises(DataError, match="task mine has neither files of its own nor a place in GLUE"):
        load_split(own_task(files=None), "train", tmp_path)


# A `datasets` folder and the hub's Parquet layout


@pytest.mark.parametrize("below", ["sst2", "."])
def test_a_saved_dataset_dict_is_read(tmp_path, below):
    saved = datasets.DatasetDict(validation=sst2(["good", "bad"], [1, 0]))
    saved.save_to_disk(tmp_path / "data" / below)
    rows = load_split(GLUE["sst2"], "dev", tmp_path / "data", check_rows=False)
    assert rows.to_dict() == {"text": ["good", "bad"], "label": [1, 0]}


@pytest.mark.parametrize("below", ["sst2", "."])
def test_the_hubs_parquet_layout_is_read(tmp_path, below):
    save_parquet(sst2(["good", "bad"], [1, 0]), tmp_path / below, "train-00000-of-00001.parquet")
    rows = load_split(GLUE["sst2"], "train", tmp_path, check_rows=False)
    assert rows.to_dict() == {"text": ["good", "bad"], "label": [1, 0]}


def sst2_table(**columns):
    """An Arrow table with the hub's columns for SST-2, some of them replaced."""
    return pa.table({"sentence": ["a"], "label": [0], **columns})


def with_features(table, features):
    """The table with `features`, or the text that stands for them, in its metadata, as `datasets` writes them."""
    text = features if isinstance(features, str) else json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": text})


TEXT = {"dtype": "string", "_type": "Value"}
NOT_UTF8 = pa.array([b"\xff"], pa.binary()).view(pa.string())


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (with_features(sst2_table(), "{"), "JSONDecodeError"),
        (with_features(sst2_table(), "null"), "TypeError"),
        (with_features(sst2_table(), '{"info": {"features": "x"}}'), "AttributeError"),
        (with_features(sst2_table(), {"sentence": TEXT, "label": {"_type": "Nope"}}), "Feature type 'Nope' not found"),
        (
            with_features(sst2_table(), {"sentence": TEXT, "label": {"names": [0, 1], "_type": "ClassLabel"}}),
            "found 0, 1",
        ),
        (
            with_features(
                sst2_table(), {"sentence": TEXT, "label": {"names": [*SST2_NAMES, "positive"], "_type": "ClassLabel"}}
            ),
            "",
        ),
        (sst2_table(label=[[0]]), "expected the classes"),
        (sst2_table(sentence=NOT_UTF8), "test cannot be read: ArrowInvalid"),
        (sst2_table(sentence=[{"x": 1}]), "row 0 of test has {'x': 1} for sentence, not a text"),
        (
            pa.Table.from_arrays([pa.array(["a"])] * 2 + [pa.array([1])], names=["sentence", "sentence", "label"]),
            "KeyError",
        ),
    ],
)
def test_a_parquet_file_of_another_kind_is_refused_in_one_line(tmp_path, table, reason):
    pa.parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=f"^[^\n]*{re.escape(reason)}[^\n]*$"):
        load_split(GLUE["sst2"], "test", tmp_path)


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{", "null", "[]", "1", '{"features": [1]}', "[" * 100_000, b"\xff"])
def test_a_damaged_datasets_folder_is_refused_in_one_line(tmp_path, name, content):
    datasets.DatasetDict(train=sst2(["good"], [1])).save_to_disk(tmp_path)
    write(tmp_path / "train", name, content)
    with pytest.raises(DataError, match=r"^[^\n]*: the train split cannot be read: [^\n]*$"):
        load_split(GLUE["sst2"], "train", tmp_path, check_rows=False)


def test_a_file_that_a_column_names_is_never_opened(tmp_path):
    """A column may say that its texts are the names of pictures; decoding it would open them."""
    features = {"sentence": {"_type": "Image"}, "label": {"names": SST2_NAMES, "_type": "ClassLabel"}}
    table = with_features(sst2_table(sentence=[{"bytes": None, "path": str(tmp_path / "picture")}]), features)
    pa.parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    os.mkfifo(tmp_path / "picture")  # who opens it waits for ever
    with pytest.raises(DataError, match=r"row 0 of train has .* for sentence, not a text"):
        load_split(GLUE["sst2"], "train", tmp_path)


def test_shards_are_read_in_order(tmp_path):
    save_parquet(sst2(["c"], [0]), tmp_path, "train-00001-of-00002.parquet")
    save_parquet(sst2(["a", "b"], [0, 1]), tmp_path, "train-00000-of-00002.parquet")
    rows = load_split(GLUE["sst2"], "train", tmp_path, check_rows=False)
    assert rows["text"][:] == ["a", "b", "c"]


def test_a_missing_shard_is_refused(tmp_path):
    save_parquet(sst2(["a"], [0]), tmp_path, "train-00000-of-00002.parquet")
    with pytest.raises(DataError, match=r"found 1 of the 2 files train-\*\.parquet"):
        load_split(GLUE["sst2"], "train", tmp_path, check_rows=False)


def test_a_broken_parquet_file_is_refused_in_one_line(tmp_path):
    write(tmp_path, "train-00000-of-00001.parquet", "not parquet")
    with pytest.raises(DataError, match=r"^[^\n]*the train split cannot be read: [^\n]+$"):
        load_split(GLUE["sst2"], "train", tmp_path)


@pytest.mark.parametrize(("split", "label"), [("dev_matched", 0), ("dev_mismatched", 2)])
def test_mnlis_two_dev_splits_are_the_hubs_two_validation_splits(tmp_path, split, label):
    names = ["entailment", "neutral", "contradiction"]
    save_parquet(mnli([0], names), tmp_path, "validation_matched-00000-of-00001.parquet")
    save_parquet(mnli([2], names), tmp_path, "validation_mismatched-00000-of-00001.parquet")
    assert load_split(GLUE["mnli"], split, tmp_path, check_rows=False)["label"][:] == [label]


def test_class_ids_in_another_order_are_permuted_by_name(tmp_path):
    dataset = mnli([0, 1, 2], ["contradiction", "entailment", "neutral"])
    save_parquet(dataset, tmp_path, "train-00000-of-00001.parquet")
    rows = load_split(GLUE["mnli"], "train", tmp_path, check_rows=False)
    assert rows["label"][:] == [2, 0, 1]


@pytest.mark.parametrize(
    ("names", "found"),
    [(["bad", "good"], "bad, good"), (["negative", "neutral", "positive"], "negative, neutral, positive")],
)
def test_other_class_names_are_refused(tmp_path, names, found):
    save_parquet(sst2(["a"], [0], names), tmp_path, "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=f"expected the classes negative, positive in label, found {found}"):
        load_split(GLUE["sst2"], "train", tmp_path)


def test_class_ids_without_names_are_refused(tmp_path):
    save_parquet(sst2(["a"], [0], names=None), tmp_path, "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="found numbers without class names"):
        load_split(GLUE["sst2"], "train", tmp_path)


@pytest.mark.parametrize(
    ("task", "dataset", "columns"),
    [("sst2", sst2(["a", "b"], [-1, -1]), ["text"]), ("stsb", stsb([-1.0]), ["text", "text_pair"])],
)
def test_a_test_split_with_the_label_minus_one_is_unlabelled(tmp_path, task, dataset, columns):
    save_parquet(dataset, tmp_path, "test-00000-of-00001.parquet")
    assert load_split(GLUE[task], "test", tmp_path, check_rows=False).column_names == columns


@pytest.mark.parametrize(
    ("task", "dataset", "reason"),
    [
        ("sst2", sst2(["a", "b"], [1, -1]), "row 1 of train: unknown label '-1', allowed: 0, 1"),
        ("sst2", sst2(["a", "b"], [1, None]), "row 1 of train: unknown label 'None'"),
        ("stsb", stsb([2.0, -1.0]), r"row 1 of train: score '-1.0' is not in \[0, 5\]"),
        ("sst2", sst2(["a", None], [1, 1]), "row 1 of train has None for sentence, not a text"),
        ("sst2", sst2([], []), "train has no rows"),
        ("rte", sst2(["a"], [1]), "no column 'sentence1' in train, the columns are 'sentence', 'label', 'idx'"),
        ("sst2", sst2(["a"], [1]).remove_columns("label"), "no column 'label' in train"),
    ],
)
def test_a_malformed_data_set_is_refused_with_its_row(tmp_path, task, dataset, reason):
    save_parquet(dataset, tmp_path, "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=reason):
        load_split(GLUE[task], "train", tmp_path)


@pytest.mark.parametrize("path", ["x" * 300, "file.txt/below"])
def test_a_path_that_no_folder_can_have_is_refused(tmp_path, path):
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=r"cannot be read: File name too long|below: no such folder \(started in "):
        load_split(GLUE["sst2"], "train", tmp_path / path)


# The cache and the hub


def test_the_local_cache_is_read_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "require_hub", lambda *_: pytest.fail("the network was asked"))
    save_to_cache(sst2(["good", "bad"], [1, 0]), tmp_path / "cache", "sst2", "validation")
    rows = load_split(GLUE["sst2"], "dev", None, check_rows=False)
    assert rows.to_dict() == {"text": ["good", "bad"], "label": [1, 0]}


def test_a_damaged_cache_is_named(tmp_path):
    save_to_cache(sst2(["good"], [1]), tmp_path / "cache", "sst2", "validation")
    (info,) = (tmp_path / "cache").rglob("dataset_info.json")
    info.write_text("[]")
    with pytest.raises(DataError, match=rf"^nyu-mll/glue sst2 in the cache {tmp_path}/cache is damaged: [^\n]+$"):
        load_split(GLUE["sst2"], "dev", None)


def test_another_task_in_the_cache_is_not_taken_for_this_one(tmp_path):
    save_to_cache(sst2(["good"], [1]), tmp_path / "cache", "sst2", "validation")
    with pytest.raises(DataError, match=r"GLUE's cola .* is not in the local cache"):
        load_split(GLUE["cola"], "dev", None, check_rows=False)


def test_a_failing_download_is_one_sentence(monkeypatch):
    monkeypatch.setattr(sources, "require_hub", lambda *_: None)
    with pytest.raises(DataError, match=r"^nyu-mll/glue: cannot be downloaded from the hub: [^\n]+$"):
        load_split(GLUE["sst2"], "train", None)


@pytest.mark.parametrize("place", ["nyu-mll/glue", "glue"])
def test_a_data_sets_script_in_the_working_directory_is_never_run(monkeypatch, place):
    monkeypatch.setattr(sources, "require_hub", lambda *_: None)
    write(Path(place), "glue.py", "import pathlib; pathlib.Path('executed').touch()")
    with pytest.raises(DataError):
        load_split(GLUE["sst2"], "train", None, check_rows=False)
    assert not Path("executed").exists()


@pytest.mark.parametrize("place", ["nyu-mll/glue", "glue"])
def test_data_in_the_working_directory_are_never_taken_for_the_hubs(monkeypatch, place):
    monkeypatch.setattr(sources, "require_hub", lambda *_: None)
    config = "configs:\n- config_name: sst2\n  data_files:\n  - split: train\n    path: train-*.parquet\n"
    folder = write(Path(place), "README.md", f"---\n{config}---\n")
    save_parquet(sst2(["planted"], [1]), folder, "train-00000-of-00001.parquet")
    with pytest.raises(DataError):
        load_split(GLUE["sst2"], "train", None, check_rows=False)


def test_without_a_network_one_sentence_says_how_to_get_the_data():
    with pytest.raises(DataError) as caught:
        load_split(GLUE["sst2"], "train", None)
    assert str(caught.value) == (
        "GLUE's sst2 (nyu-mll/glue) is not in the local cache and HF_HUB_OFFLINE=1 forbids a download: "
        "pass data.path=DIR with GLUE's TSV folder SST-2 in DIR, or call "
        "`hf download nyu-mll/glue --repo-type dataset` once with a network"
    )


def test_a_silent_hub_does_not_make_the_user_wait(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(DataError, match=r"cannot be reached .*: pass data\.path=DIR"):
            load_split(GLUE["sst2"], "train", None)
        assert time.monotonic() - start < 2.0


# A user's own files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", 'text,label\n"a, ""b""",yes\nc,no\n'),
        ("train.csv", '\ufefflabel,id,text\r\nyes,1,"a, ""b"""\r\nno,2,c\r\n\r\n'),
        ("train.tsv", 'text\tlabel\na, "b"\tyes\nc\tno\n'),
        ("train.jsonl", '{"text": "a, \\"b\\"", "label": "yes"}\n{"label": "no", "text": "c", "more": null}\n'),
    ],
)
def test_own_files_are_read_by_column_name(tmp_path, name, content):
    write(tmp_path, name, content)
    rows = load_split(own_task(name), "train", tmp_path)
    assert rows.to_dict() == {"text": ['a, "b"', "c"], "label": [1, 0]}


def test_a_quoted_csv_field_may_hold_a_line_end(tmp_path):
    write(tmp_path, "train.csv", 'text,label\n"a\nb",yes\n')
    assert load_split(own_task(), "train", tmp_path)["text"][:] == ["a\nb"]


def test_without_a_path_own_files_lie_in_the_working_directory():
    write(Path(), "train.csv", "text,label\na,yes\n")
    assert load_split(own_task(), "train", None).to_dict() == {"text": ["a"], "label": [1]}


def test_an_own_pair_task_with_other_column_names(tmp_path):
    write(tmp_path, "train.csv", "question,answer,grade\na,b,yes\n")
    task = own_task(text_columns=("question", "answer"), label_column="grade")
    assert load_split(task, "train", tmp_path).to_dict() == {"text": ["a"], "text_pair": ["b"], "label": [1]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,label\na,-3.5\nb,100\n"),
        ("train.jsonl", '{"text":"a","label":-3.5}\n{"text":"b","label":100}'),
    ],
)
def test_an_own_regression_label_is_any_finite_number(tmp_path, name, content):
    write(tmp_path, name, content)
    assert load_split(own_task(name, label_names=(), metrics=("pearson",)), "train", tmp_path)["label"][:] == [
        -3.5,
        100.0,
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", "text,label\na,1\n"), ("train.jsonl", '{"text": "a", "label": 1}\n')],
)
def test_numbers_are_labels_when_the_label_names_are_numbers(tmp_path, name, content):
    write(tmp_path, name, content)
    assert load_split(own_task(name, label_names=("1", "0")), "train", tmp_path)["label"][:] == [0]


@pytest.mark.parametrize(
    ("name", "content"),
    [("test.csv", "text\na\n"), ("test.tsv", "text\na\n"), ("test.jsonl", '{"text": "a"}\n')],
)
def test_an_own_test_file_may_lack_the_label_column(tmp_path, name, content):
    write(tmp_path, name, content)
    assert load_split(own_task(name, "test"), "test", tmp_path).to_dict() == {"text": ["a"]}


def test_an_own_test_file_may_have_labels(tmp_path):
    write(tmp_path, "test.csv", "text,label\na,yes\n")
    assert load_split(own_task("test.csv", "test"), "test", tmp_path)["label"][:] == [1]


def test_own_row_counts_are_checked_when_they_are_given(tmp_path):
    write(tmp_path, "train.csv", "text,label\na,yes\n")
    with pytest.raises(DataError, match=r"train\.csv: expected 2 rows for mine train, found 1"):
        load_split(own_task(splits={"train": (2,)}), "train", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.xlsx", "", "a.xlsx", "unknown kind of file, expected .csv, .tsv, .json, .jsonl"),
        ("a.csv", "", "a.csv", "is empty"),
        ("a.csv", "text,label\n", "a.csv", "has no rows"),
        ("a.csv", "text\na\n", "a.csv, line 1", "no column 'label', the columns are 'text'"),
        ("a.csv", "text,text,label\na,b,yes\n", "a.csv, line 1", "the column 'text' is there 2 times"),
        ("a.csv", "text,label\na,yes\nb\n", "a.csv, line 3", "expected 2 fields, found 1"),
        ("a.csv", "text,label\na,yes,x\n", "a.csv, line 2", "expected 2 fields, found 3"),
        ("a.csv", "\ntext,label\na,yes\n", "a.csv, line 1", "empty line"),
        ("a.csv", "text,label\n\nb,maybe\n", "a.csv, line 3", "unknown label 'maybe', allowed: no, yes"),
        ("a.tsv", "text\tlabel\na\tyes\n\nb\tno\n", "a.tsv, line 3", "empty line"),
        ("a.csv", 'text,label\n"a\nb",yes\nc,maybe\n', "a.csv, line 4", "unknown label 'maybe', allowed: no, yes"),
        ("a.csv", 'text,label\na,yes\n"b\nc,no\n', "a.csv, line 3", "not CSV"),
        ("a.csv", 'text,label\n"a"b,yes\n', "a.csv, line 2", "not CSV"),
        ("a.csv", "text,label\na,1\n", "a.csv, line 2", r"label '1' is a number, but .*names \(no, yes\)"),
        ("a.csv", b"text,label\na,yes\n\xff,no\n", "a.csv, line 3", "not UTF-8 at byte 1"),
        ("a.tsv", 'text\tlabel\n"a\tb\tyes\n', "a.tsv, line 2", "expected 2 fields, found 3"),
        ("a.jsonl", "", "a.jsonl", "is empty"),
        ("a.jsonl", '{"text": "a"}\n', "a.jsonl, line 1", "no column 'label', the columns are 'text'"),
        ("a.jsonl", '{"text": "a", "label": "yes"}\n{"text": "b"}\n', "a.jsonl, line 2", "no key 'label'"),
        ("a.jsonl", '{"text": "a", "label": "yes"}\n{\n', "a.jsonl, line 2", "not JSON"),
        ("a.jsonl", '{"text": "a", "text": "b", "label": "yes"}\n', "a.jsonl, line 1", "the key 'text' is given twice"),
        ("a.jsonl", '{"text": NaN, "label": "yes"}\n', "a.jsonl, line 1", "NaN is no JSON"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "a.jsonl, line 1", "too many values within values"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", "a.jsonl, line 1", "not JSON"),
        ("a.jsonl", '{"text": "a\\ud800", "label": "yes"}\n', "a.jsonl, line 1", "has half of a character"),
        ("a.jsonl", '["a", "yes"]\n', "a.jsonl, line 1", "expected an object, found"),
        ("a.jsonl", '{"text": null, "label": "yes"}\n', "a.jsonl, line 1", "null for 'text'"),
        (
            "a.jsonl",
            '{"text": "a", "label": null}\n',
            "a.jsonl, line 1",
            "has no label .found None., and training needs one",
        ),
        ("a.jsonl", '{"text": "a", "label": true}\n', "a.jsonl, line 1", "true for 'label'"),
        ("a.jsonl", '{"text": "a", "label": 1}\n', "a.jsonl, line 1", "label '1' is a number"),
        ("a.jsonl", '{"text": "a", "label": "no"}\n\n{"text": "a", "label": "x"}', "a.jsonl, line 3", "unknown label"),
        ("a.jsonl", "\n \n", "a.jsonl", "is empty"),
    ],
)
def test_a_malformed_own_file_is_refused_with_its_line(tmp_path, name, content, place, reason):
    write(tmp_path, name, content)
    with pytest.raises(DataError, match=f"{place}.*{reason}"):
        load_split(own_task(name), "train", tmp_path)


@pytest.mark.parametrize("name", ["nope.parquet", "nope.PARQUET", "saved"])
def test_a_parquet_file_or_folder_that_is_not_there_is_missing_and_not_unknown(tmp_path, name):
    sentence = (
        rf"^task\.files\.train: {tmp_path}/{name}: no such file or folder \(started in .*\): data\.path=DIR gives "
    )
    with pytest.raises(DataError, match=sentence):
        load_split(own_task(name), "train", tmp_path)
    with pytest.raises(DataError, match=sentence):
        sources.own_label_names(own_task(name, label_names=(), metrics=()), tmp_path)


def test_a_transfer_file_that_is_not_there_is_named_by_its_key(tmp_path):
    with pytest.raises(DataError, match=rf"^data\.transfer\.files: {tmp_path}/x\.parquet: no such file or folder$"):
        sources.open_transfer_file(own_task(), tmp_path / "x.parquet")


def test_a_file_that_the_system_refuses_to_look_for_is_named_and_not_the_folder_of_the_data(tmp_path):
    name = "x" * 300 + "/a.parquet"
    with pytest.raises(DataError, match=f"^{tmp_path}/{name}: cannot be read: File name too long$"):
        load_split(own_task(name), "train", tmp_path)


def test_an_own_regression_label_that_is_no_number_is_refused(tmp_path):
    write(tmp_path, "train.csv", "text,label\na,nan\n")
    with pytest.raises(DataError, match=r"train\.csv, line 2: has no label \(found 'nan'\), and training needs one"):
        load_split(own_task(label_names=(), metrics=("pearson",)), "train", tmp_path)


def test_an_own_file_that_is_no_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train\.csv cannot be read: it is no regular file"):
        load_split(own_task(), "train", tmp_path)


def test_an_own_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        load_split(own_task(), "train", tmp_path)
    assert str(caught.value) == (
        f"task.files.train: {tmp_path}/train.csv: no such file or folder (started in {Path.cwd()}): data.path=DIR "
        "gives another folder"
    )


@pytest.mark.parametrize("name", ["train.csv", "train.parquet"])
def test_an_own_file_in_a_folder_that_is_missing_is_said_with_the_folder_and_where_it_was_looked_for(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        load_split(own_task(name), "train", Path("my_task"))
    assert str(caught.value) == (
        f"data.path = my_task: no such folder (started in {tmp_path}), in which task.files.train = {name} is looked "
        "for: data.path=DIR gives another folder"
    )
    with pytest.raises(DataError, match=rf"^task\.files\.train: {name}: no such file .*data\.path=DIR gives another"):
        load_split(own_task(name), "train", None)
    with pytest.raises(DataError, match=rf"^task\.files\.train: {tmp_path}/{name}: no such file or folder$"):
        load_split(own_task(f"{tmp_path}/{name}"), "train", Path("my_task"))
