"""A user's own files as users have them: other programs' dialects and formats, rows without labels, sets of labels."""

import csv
import gzip
import json
import logging

import datasets
import pandas as pd
import pytest

from reptile_distil.data.features import Features
from reptile_distil.data.tasks import Task
from reptile_distil.errors import ConfigError, DataError
from reptile_distil.sources.splits import load_split, own_label_names

ROWS = [("a good film", "yes"), ("dull", "no"), ("it is, well", "yes")]


def own_task(file="train.csv", split="train", **changes):
    fields = {
        "name": "mine",
        "text_columns": ("text",),
        "label_names": ("no", "yes"),
        "metrics": ("accuracy",),
        "splits": {split: ()},
        "files": {split: file},
    }
    return Task(**{**fields, **changes})


def load(folder, file, split="train", **changes):
    return load_split(own_task(file, split, **changes), split, folder).to_dict()


def table(rows=ROWS, **columns):
    return pd.DataFrame({"text": [text for text, _ in rows], "label": [label for _, label in rows], **columns})


def test_empty_texts_are_counted(tmp_path, caplog):
    (tmp_path / "train.csv").write_text("text,label\ngood,yes\n,no\nbad,no\n \t,no\n")
    assert len(load(tmp_path, "train.csv")["text"]) == 4
    (line,) = caplog.messages
    assert line.endswith("train.csv: lines with an empty text: 2, the first is 3")


@pytest.mark.parametrize("name", ["train.jsonl", "lines.json"])
def test_blank_lines_between_rows_of_json_are_left_out_and_counted(tmp_path, caplog, name):
    rows = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
    (tmp_path / name).write_text(f"\n{rows[0]}\n \t\n{rows[1]}\n{rows[2]}\n\n\n")
    assert load(tmp_path, name)["text"] == [text for text, _ in ROWS]
    (line,) = caplog.messages
    assert line.endswith(f"{name}: empty lines left out: 2, the first is line 1")


CAFE = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("content", "label", "reason"),
    [
        (f"text,label\na,{CAFE[1]}\n", CAFE[0], f"; '{CAFE[1]}' and '{CAFE[0]}' look alike, but differ in Unicode"),
        (f"text,label\na,{CAFE[0]}\n", CAFE[1], f"; '{CAFE[0]}' and '{CAFE[1]}' look alike, but differ in Unicode"),
        (
            "text,label\na, yes\n",
            "yes",
            "unknown label ' yes', allowed: no, yes; ' yes' has a blank before it; correct",
        ),
        ("text,label\na,yes\n", "yes ", "; 'yes ' has a blank behind it; correct"),
        ("text, label\na,yes\n", "yes", r"the columns are 'text', ' label'; ' label' has a blank before it$"),
        ("text,labels\na,yes\n", "yes", r"the columns are 'text', 'labels'$"),
    ],
)
def test_a_name_that_looks_like_the_wanted_one_is_told_from_it(tmp_path, content, label, reason):
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(DataError, match=reason):
        load(tmp_path, "train.csv", label_names=("no", label))


def test_a_key_of_json_that_looks_like_the_wanted_one_is_told_from_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "yes"}\n{"text ": "b", "label": "no"}\n')
    with pytest.raises(
        DataError, match=r"no key 'text', the keys are 'text ', 'label'; 'text ' has a blank behind it$"
    ):
        load(tmp_path, "a.jsonl")


# Formats

WRITERS = {
    "train.csv": lambda data, path: data.to_csv(path, index=False),
    "train.tsv": lambda data, path: data.to_csv(path, index=False, sep="\t", quoting=csv.QUOTE_NONE),
    "train.jsonl": lambda data, path: data.to_json(path, orient="records", lines=True),
    "lines.json": lambda data, path: data.to_json(path, orient="records", lines=True),
    "records.json": lambda data, path: data.to_json(path, orient="records"),
    "pretty.json": lambda data, path: data.to_json(path, orient="records", indent=2),
    "columns.json": lambda data, path: data.to_json(path),
    "lists.json": lambda data, path: path.write_text(json.dumps(data.to_dict(orient="list"))),
    "UPPER.CSV": lambda data, path: data.to_csv(path, index=False),
    "train.parquet": lambda data, path: data.to_parquet(path, index=False),
    "index.parquet": lambda data, path: data.to_parquet(path),
}
TEXT_FILES = [name for name in WRITERS if not name.endswith(".parquet")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_pandas_writes_is_read(tmp_path, name):
    WRITERS[name](table(more=[1, 2, 3]), tmp_path / name)
    assert load(tmp_path, name) == {"text": [text for text, _ in ROWS], "label": [1, 0, 1]}


@pytest.mark.parametrize("name", TEXT_FILES)
def test_a_text_file_may_be_packed(tmp_path, name):
    WRITERS[name](table(), tmp_path / name)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert load(tmp_path, f"{name}.gz") == load(tmp_path, name)


CUT_OFF = gzip.compress(b"text,label\n" + b"a,yes\n" * 99, mtime=0)[:-9]  # the hour would be in the test's name


@pytest.mark.parametrize("content", [b"text,label\na,yes\n", CUT_OFF, b""], ids=["plain", "cut off", "empty"])
def test_a_packed_file_that_is_none_or_cut_off_is_one_sentence(tmp_path, content):
    (tmp_path / "a.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"^[^\n]*a\.csv\.gz[^\n]*(cannot be unpacked|is empty)[^\n]*$"):
        load(tmp_path, "a.csv.gz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"text": 3, "label": "yes"}', "expected a list of objects, or an object with a list of values for 'text'"),
        ('{"data": [{"text": "a", "label": "yes"}]}', "its keys are 'data'"),
        ('{"text": ["a", "b"], "label": ["yes"]}', "the columns 'text' and 'label' do not have the same rows"),
        ('{"text": {"0": "a"}, "label": {"1": "yes"}}', "the columns 'text' and 'label' do not have the same rows"),
        ('[["a", "yes"]]', r"row 1: expected an object, found \["),
        ('"text"', 'expected a list of objects, found "text"'),
        ('[{"text": "a", "label": "yes"}, {"text": "b", "label": "x"}]', "row 2: unknown label 'x'"),
        ('[{"text": "a", "label": "yes"}, {"label": "no"}]', "row 2: no key 'text'"),
        ("[{", "not JSON"),
        ("[]", "is empty"),
        ("", "is empty"),
    ],
)
def test_a_json_file_of_another_shape_is_one_sentence(tmp_path, content, reason):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=f"^[^\n]*a.json.*{reason}[^\n]*$"):
        load(tmp_path, "a.json")


# A folder that `datasets` has saved


def saved(names=("no", "yes"), labels=(1, 0, 1)):
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    return datasets.Dataset.from_dict(
        {"text": [text for text, _ in ROWS], "label": list(labels)},
        features=datasets.Features({"text": datasets.Value("string"), "label": label}),
    )


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("theirs", ["dev", "validation"])
def test_a_saved_data_set_or_dictionary_of_them_is_read(tmp_path, split, theirs):
    named = {"train": saved(labels=(1, 1, 1)), theirs: saved(labels=(0, 0, 0)), "test": saved(labels=(0, 1, 1))}
    datasets.DatasetDict(named).save_to_disk(tmp_path / "all")
    named[theirs if split == "dev" else split].save_to_disk(tmp_path / "one")
    both = [load(tmp_path, name, split) for name in ("all", "one")]
    assert both[0] == both[1]
    assert both[0]["label"] == {"train": [1, 1, 1], "dev": [0, 0, 0], "test": [0, 1, 1]}[split]


@pytest.mark.parametrize("place", ["saved", "file.parquet"])
def test_class_names_of_the_data_are_the_label_names(tmp_path, place):
    data = saved(("yes", "no"))
    data.to_parquet(tmp_path / place) if place.endswith("parquet") else data.save_to_disk(tmp_path / place)
    task = own_task(place, label_names=(), metrics=())
    assert own_label_names(task, tmp_path) == ("yes", "no")
    assert load(tmp_path, place)["label"] == [0, 1, 0]  # matched by name where they are given in another order


@pytest.mark.parametrize("names", [("no", "maybe"), ("no", "yes", "more"), ("No", "Yes")])
def test_label_names_that_contradict_those_of_the_data_are_refused(tmp_path, names):
    saved().save_to_disk(tmp_path / "saved")
    with pytest.raises(
        DataError, match=r"has the classes no, yes in label, but task\.labels says .*: leave task.labels"
    ):
        load(tmp_path, "saved", label_names=names)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "x.txt").touch()])
def test_a_folder_without_a_data_set_is_named_with_what_it_holds(tmp_path, make):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    with pytest.raises(
        DataError, match=r"empty: no train split saved by datasets in this folder, which holds (nothing|x)"
    ):
        load(tmp_path, "empty")


def test_a_missing_split_of_a_dictionary_is_named(tmp_path):
    datasets.DatasetDict(train=saved()).save_to_disk(tmp_path / "all")
    with pytest.raises(DataError, match="no test split saved by datasets in this folder"):
        load(tmp_path, "all", "test")


# Dialects of CSV and TSV


@pytest.mark.parametrize("where", ["text", "label of a column that is not read", "header"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_a_field_may_be_longer_than_131072_characters(tmp_path, name, where):
    long = "x" * 140_000
    data = table([(long if where == "text" else "a", "yes")])
    data[long if where == "header" else "more"] = [long]
    WRITERS[name.replace("a.", "train.")](data, tmp_path / name)
    assert len(load(tmp_path, name)["text"][0]) == (140_000 if where == "text" else 1)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("text;label\na, b;yes\n", "a, b"),
        ('\ufefftext;label\r\n"a; ""b""";yes\r\n', 'a; "b"'),
        ("id;text;label\n1;a;yes\n", "a"),
        ("label|text\nyes|a; b\n", "a; b"),
        ("text\tlabel\na, b\tyes\n", "a, b"),
        ('"text","label"\n"a","yes"\n', "a"),
        ("text,label\ra,yes\r", None),
    ],
)
def test_the_delimiter_of_a_csv_file_is_the_one_that_its_columns_are_told_apart_by(tmp_path, content, text):
    (tmp_path / "a.csv").write_text(content, encoding="utf-8", newline="")
    if text is None:
        with pytest.raises(DataError, match=r"^[^\n]*a\.csv, line 1: [^\n]*$"):
            load(tmp_path, "a.csv")
    else:
        assert load(tmp_path, "a.csv") == {"text": [text], "label": [1]}


# Texts that pandas writes in quotes, and what a reader that takes the quotes for text would make of them.
QUOTED = ["a\tb", "a\nb", 'he said\t"no"', '"\t"', "\n\n"]


@pytest.mark.parametrize("text", QUOTED)
@pytest.mark.parametrize("quoting", [None, "csv"])
def test_a_tsv_file_of_pandas_with_quoted_fields_is_read_without_the_quotes(tmp_path, caplog, text, quoting):
    caplog.set_level(logging.INFO)
    data = table([(text, "yes"), ("plain", "no")])
    data.to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    assert load(tmp_path, "a.tsv", quoting=quoting) == {"text": [text, "plain"], "label": [1, 0]}
    assert ("in quotation marks are read without them" in caplog.text) == (quoting is None)


RAW = ['a "good" film', 'it ends with "', "it's", 'a " b', '"it begins', 'no"']


@pytest.mark.parametrize("text", RAW)
def test_a_quotation_mark_in_a_raw_text_stays_where_it_is(tmp_path, text):
    (tmp_path / "a.tsv").write_text(f"text\tlabel\n{text}\tyes\nplain\tno\n")
    assert load(tmp_path, "a.tsv") == {"text": [text, "plain"], "label": [1, 0]}


AMBIGUOUS = {
    '"a good film"': "a good film",  # all fields quoted, or a text that is a quotation
    '"she said ""no"""': 'she said "no"',
    '""': "",
}


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_a_tsv_file_that_can_be_read_in_two_ways_is_refused_and_an_option_says_which(tmp_path, text):
    (tmp_path / "a.tsv").write_text(f"text\tlabel\nplain\tno\n{text}\tyes\n")
    with pytest.raises(DataError, match=r"^[^\n]*a\.tsv, line 3: .* task\.quoting=none or task\.quoting=csv$"):
        load(tmp_path, "a.tsv")
    assert load(tmp_path, "a.tsv", quoting="none")["text"] == ["plain", text]
    assert load(tmp_path, "a.tsv", quoting="csv")["text"] == ["plain", AMBIGUOUS[text]]


def test_quotation_marks_of_a_csv_file_can_be_text(tmp_path):
    (tmp_path / "a.csv").write_text('text;label\n"a" b;yes\n')
    assert load(tmp_path, "a.csv", quoting="none") == {"text": ['"a" b'], "label": [1]}
    with pytest.raises(DataError, match="not CSV"):
        load(tmp_path, "a.csv")


# Rows without labels

NO_LABEL = {
    "a.csv": ["", "-1", "null", "None", "NaN", "nan"],
    "a.tsv": ["", "-1", "NULL", "None"],
    "a.jsonl": [None, -1, "", "-1", float("nan"), -1.0],
    "a.json": [None, -1, float("nan")],
    "a.parquet": [None, "-1", ""],
    "number.parquet": [-1, float("nan"), -1.0],
    "class": [-1, None],
}
CASES = [(file, value) for file, values in NO_LABEL.items() for value in values]


def write_labels(folder, file, values):
    texts = [f"text {number}" for number in range(len(values))]
    if file == "class":
        saved_labels = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        )
        datasets.Dataset.from_dict({"text": texts, "label": values}, features=saved_labels).save_to_disk(folder / file)
    elif file.endswith(".parquet"):
        pd.DataFrame({"text": texts, "label": values}).to_parquet(folder / file, index=False)
    elif file.endswith((".csv", ".tsv")):
        separator = "," if file.endswith("csv") else "\t"
        lines = [f"{text}{separator}{value}" for text, value in zip(texts, values, strict=True)]
        (folder / file).write_text("\n".join([f"text{separator}label", *lines]))
    else:
        rows = [{"text": text, "label": value} for text, value in zip(texts, values, strict=True)]
        (folder / file).write_text(json.dumps(rows) if file == "a.json" else "\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(("file", "value"), CASES)
@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_a_test_split_without_a_label_in_any_row_is_unlabelled_and_says_so(tmp_path, caplog, file, value, kind):
    if kind == "regression" and file == "class":
        pytest.skip("a class label is no number")
    caplog.set_level(logging.INFO)
    write_labels(tmp_path, file, [value, value])
    options = {} if kind == "classes" else {"label_names": (), "metrics": ("pearson",)}
    assert load(tmp_path, file, "test", **options) == {"text": ["text 0", "text 1"]}
    assert f"{tmp_path / file}: no row has a label, so there are no scores" in caplog.text


@pytest.mark.parametrize(("file", "value"), CASES)
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_row_without_a_label_among_others_is_refused_with_its_place(tmp_path, file, value, split):
    yes = 1 if file == "class" else "yes"
    if file == "number.parquet":
        value, yes = str(value), "yes"
    write_labels(tmp_path, file, [yes, value])
    why = "others have: label all rows of a test file, or none" if split == "test" else "training needs one"
    with pytest.raises(DataError, match=rf"^[^\n]*(line [23]|row [12]).*: has no label \(found .*\), and {why}$"):
        load(tmp_path, file, split)


@pytest.mark.parametrize("name", ["-1", "none", "nan", "null"])
def test_a_label_of_such_a_name_is_a_label(tmp_path, name):
    write_labels(tmp_path, "a.csv", [name, name])
    assert load(tmp_path, "a.csv", "test", label_names=(name, "yes"))["label"] == [0, 0]


def test_minus_one_is_a_number_where_other_rows_have_others(tmp_path):
    write_labels(tmp_path, "a.csv", ["-1", "2.5"])
    assert load(tmp_path, "a.csv", "test", label_names=(), metrics=("pearson",))["label"] == [-1.0, 2.5]


def test_a_score_whose_squared_error_float32_cannot_hold_is_refused_with_its_line(tmp_path):
    write_labels(tmp_path, "a.csv", ["1e15", "-1e300"])
    with pytest.raises(DataError, match=r"a\.csv, line 3: score '-1e300' is too large .*: give the scores in another"):
        load(tmp_path, "a.csv", label_names=(), metrics=("pearson",))


@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz"])
def test_a_test_file_may_lack_the_label_column(tmp_path, file):
    data = table()[["text"]]
    plain = file.removesuffix(".gz")
    write = WRITERS["records.json"] if plain == "a.json" else WRITERS[plain.replace("a.", "train.")]
    write(data, tmp_path / plain)
    if file.endswith(".gz"):
        (tmp_path / file).write_bytes(gzip.compress((tmp_path / plain).read_bytes()))
    assert load(tmp_path, file, "test") == {"text": [text for text, _ in ROWS]}
    with pytest.raises(DataError, match="no column 'label'"):
        load(tmp_path, file, "train")


# Sets of labels

SETS = [["fun"], [], ["fun", "sad"], ["sad"]]
ONE_HOT = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]
MULTI = {"label_names": ("fun", "sad"), "metrics": ("f1_macro",), "multi_label": True}


def write_sets(folder, file, separator=","):
    texts, flags = list("abcd"), {name: [int(row[i]) for row in ONE_HOT] for i, name in enumerate(("fun", "sad"))}
    joined = [separator.join(names) for names in SETS]
    if file == "sets":
        names = datasets.List(datasets.ClassLabel(names=["fun", "sad"]))
        features = datasets.Features({"text": datasets.Value("string"), "label": names})
        datasets.Dataset.from_dict({"text": texts, "label": SETS}, features=features).save_to_disk(folder / file)
    else:
        label = joined if file.endswith(("csv", "tsv")) else SETS
        write = WRITERS.get(file.replace("a.", "train."), WRITERS["records.json"])
        write(pd.DataFrame({"text": texts, "label": label, **flags}), folder / file)


@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "sets"])
def test_a_set_of_labels_is_a_list_or_a_text_with_a_separator(tmp_path, file):
    write_sets(tmp_path, file)
    assert load(tmp_path, file, **MULTI)["label"] == ONE_HOT


@pytest.mark.parametrize("separator", ["|", " ", "; "])
def test_the_separator_of_labels_can_be_another(tmp_path, separator):
    write_sets(tmp_path, "a.csv", separator)
    assert load(tmp_path, "a.csv", label_separator=separator, **MULTI)["label"] == ONE_HOT


@pytest.mark.parametrize("file", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_a_set_of_labels_may_be_columns_of_0_and_1(tmp_path, file):
    write_sets(tmp_path, file)
    assert load(tmp_path, file, label_columns=("fun", "sad"), **MULTI)["label"] == ONE_HOT


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ('text,label\na,"fun,glad"\n', {}, "line 2: unknown label 'glad', allowed: fun, sad"),
        ("text,fun,sad\na,1,2\n", {"label_columns": ("fun", "sad")}, "'2' in the label column 'sad', expected 0 or 1"),
        ("text,fun\na,1\n", {"label_columns": ("fun", "sad")}, "no column 'sad', the columns are 'text', 'fun'"),
        ("text,fun,sad\na,1,\n", {"label_columns": ("fun", "sad")}, "'' in the label column 'sad'"),
    ],
)
def test_a_set_of_labels_that_is_none_is_refused_with_its_line(tmp_path, content, options, reason):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=reason):
        load(tmp_path, "a.csv", **MULTI, **options)


NUMBERS = {**MULTI, "label_names": ("0", "1")}


@pytest.mark.parametrize(
    ("file", "content", "options", "place"),
    [
        (
            "a.jsonl",
            '{"text": "a", "label": []}\n{"text": "b", "label": [1, 1]}\n',
            NUMBERS,
            "line 2: names the label '1' 2",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": [1, 0]}\n{"text": "b", "label": [0, 1]}\n',
            NUMBERS,
            "line 2: every row has",
        ),
        ("a.json", '[{"text": "a", "label": ["fun", "sad", "fun"]}]', MULTI, "row 1: names the label 'fun' 2 times"),
        (
            "a.csv",
            "text,label\na,fun;fun\n",
            {**MULTI, "label_separator": ";"},
            "line 2: names the label 'fun' 2 times",
        ),
        (
            "a.csv",
            'text,label\na,"0,1"\nb,"1,0"\n',
            NUMBERS,
            "line 3: every row has both labels, here as 1, 0, before as",
        ),
    ],
)
def test_zeros_and_ones_in_a_list_of_names_are_refused(tmp_path, file, content, options, place):
    (tmp_path / file).write_text(content)
    with pytest.raises(
        DataError, match=rf"{file}, {place}.*names of the labels that a text has, .* no 0 or 1 for each"
    ):
        load(tmp_path, file, **options)


def test_labels_that_are_called_0_and_1_may_be_listed(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": [1, 0]}\n{"text": "b", "label": [1]}\n')
    assert load(tmp_path, "a.jsonl", **NUMBERS)["label"] == [[1.0, 1.0], [0.0, 1.0]]


def test_a_list_of_labels_is_refused_where_a_row_has_one(tmp_path):
    write_sets(tmp_path, "a.jsonl")
    with pytest.raises(DataError, match=r"the label is a list, .*: a task with multi_label: true takes lists"):
        load(tmp_path, "a.jsonl", label_names=("fun", "sad"))


@pytest.mark.parametrize("options", [{}, {"label_columns": ("fun", "sad")}])
def test_a_test_split_without_sets_of_labels_is_unlabelled(tmp_path, options):
    (tmp_path / "a.csv").write_text("text,label,fun,sad\na,,,\nb,,-1,\n")
    assert load(tmp_path, "a.csv", "test", **MULTI, **options) == {"text": ["a", "b"]}


def test_sets_of_labels_are_a_table_of_features():
    rows = datasets.Dataset.from_dict({"input_ids": [[1], [2]], "label": [[1.0, 0.0], [1.0, 1.0]]})
    features = Features.from_dataset(rows)
    assert features.has_label_sets
    assert features.select([1]).labels.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("wrong", [2.0, -1.0, float("nan")])
def test_a_set_of_labels_that_holds_another_number_is_refused_with_its_row(wrong):
    rows = datasets.Dataset.from_dict({"input_ids": [[1], [2]], "label": [[1.0, 0.0], [wrong, 1.0]]})
    with pytest.raises(DataError, match=r"^row 1, counted from 0, has the labels .*: expected a 0 or 1 for each$"):
        Features.from_dataset(rows)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"multi_label": True, "label_names": (), "metrics": ("f1_macro",)}, "needs the names of its labels"),
        ({"label_columns": ("a", "b", "c")}, "has 3 label columns, but 2 label names"),
        (
            {"multi_label": True},
            "accuracy is no metric of a multi-label task; its metrics are f1_macro, .*did you mean",
        ),
        (
            {**MULTI, "label_names": ("a,b", "c")},
            "the label 'a,b' contains ',', .* also in files of predictions: give another task.label_separator",
        ),
        ({"metrics": ("macro_f1",)}, "macro_f1 is no metric of a task with 2 classes; .*did you mean 'f1_macro'"),
        ({"metrics": ("f1",), "label_names": ("a", "b", "c")}, "f1 is no metric of a task with 3 classes"),
        ({"metrics": ("f1_macro",), "label_names": ()}, "of a regression task, .*; its metrics are pearson, spearmanr"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused_with_what_it_may_have(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        own_task(**changes)
