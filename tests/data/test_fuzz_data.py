"""Whatever stands in a data file: every row of it is read, or one sentence names the file and what is wrong with it."""

import csv
import dataclasses
import io
import json
import math
import re
import shutil

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptile_distil.data.batches import quiet_datasets
from reptile_distil.data.tasks import GLUE, Task
from reptile_distil.errors import DataError
from reptile_distil.sources.splits import load_split
from tests.helpers.fuzzing import assert_one_sentence, examples

# Task, split, file, header, which columns hold the texts and the label, and how labels are spelled; as published.
OFFICIAL = [
    ("cola", "train", "train.tsv", None, (3,), 1, ["0", "1"]),
    ("cola", "test", "test.tsv", "index sentence", (1,), None, None),
    ("sst2", "dev", "dev.tsv", "sentence label", (0,), 1, ["0", "1"]),
    ("mrpc", "train", "train.tsv", "Quality #1_ID #2_ID #1_String #2_String", (3, 4), 0, ["0", "1"]),
    ("stsb", "train", "train.tsv", "index genre sentence1 sentence2 score", (2, 3), 4, ["0", "3.8", "5.000"]),
    ("qqp", "train", "train.tsv", "id qid1 qid2 question1 question2 is_duplicate", (3, 4), 5, ["0", "1"]),
    (
        "mnli",
        "dev_mismatched",
        "dev_mismatched.tsv",
        "index sentence1 sentence2 label1 gold_label",
        (1, 2),
        4,
        ["entailment", "neutral", "contradiction"],
    ),
    ("qnli", "train", "train.tsv", "index question sentence label", (1, 2), 3, ["entailment", "not_entailment"]),
    ("rte", "dev", "dev.tsv", "index sentence1 sentence2 label", (1, 2), 3, ["entailment", "not_entailment"]),
    ("wnli", "train", "train.tsv", "index sentence1 sentence2 label", (1, 2), 3, ["0", "1"]),
    ("ax", "test", "diagnostic.tsv", "index sentence1 sentence2", (1, 2), None, None),
]
ODD_TEXTS = [
    "",
    '"',
    '""',
    "'",
    "null",
    "NaN",
    "n/a",
    "#",
    "\\",
    "\\N",
    "\x00",
    "a\rb",
    "\x0b",
    "\x85",
    "\u2028",
    "\ufeff",
]
ODD_TEXTS += ["é", "中", "🙂", " padded ", ",", '",', "{}", "x" * 2000, "\x1b[31m", "=1+1", "-1", "1e5"]
# Of the surrogates, which are halves of characters, none can stand in a UTF-8 file.
texts = st.sampled_from(ODD_TEXTS) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\t\n"), max_size=9
)

ODD_BYTES = [
    b"",
    b"\n",
    b"\n\n",
    b"\r",
    b"\r\n",
    b"\t",
    b'"',
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xc3",
]
ODD_BYTES += [
    b"nan",
    b"inf",
    b"-1",
    b"9" * 400,
    b"1e400",
    b"label",
    b"\n-1\t-1\n",
    b"x" * 100_000,
    b"{",
    b"\\ud800",
    b"}{",
]
damages = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(ODD_BYTES) | st.binary(max_size=3), st.integers(0, 8)), max_size=2
)
cuts = st.none() | st.integers(0, 10**6)


def damaged(content, changes, cut):
    """The bytes with some replaced by others, and cut off."""
    for position, insert, num_removed in changes:
        position %= len(content) + 1
        content = content[:position] + insert + content[position + num_removed :]
    return content if cut is None else content[: cut % (len(content) + 1)]


def assert_rows(rows, task):
    """Every text is a text and every label one of the task's."""
    for name in ("text", "text_pair")[: len(task.text_columns)]:
        assert all(isinstance(text, str) for text in rows[name])
    if "label" in rows.column_names:
        if task.is_regression:
            assert all(math.isfinite(label) for label in rows["label"])
        else:
            assert set(rows["label"]) <= set(range(task.num_labels))


def load(folder, name, content, task, split):
    """The rows that `content` gives, or None where it is refused as it should be."""
    file = folder / name
    file.write_bytes(content)
    try:
        rows = load_split(task, split, folder, check_rows=False)
    except DataError as error:
        message = str(error)
        assert_one_sentence(message, str(file))
        of_a_row = re.search(r"field|label|score|UTF-8|JSON|CSV", message) and "no column" not in message
        assert not of_a_row or re.search(rf"{name}, line \d+: ", message)
        return None
    assert_rows(rows, task)
    return rows


@st.composite
def official_files(draw):
    """Task, split, file name, the file's bytes, and the rows that stand in it."""
    task, split, name, header, text_columns, label_column, labels = draw(st.sampled_from(OFFICIAL))
    num_columns = 4 if header is None else len(header.split())
    lines = [] if header is None else [header.replace(" ", "\t").replace("_", " " if "#" in header else "_")]
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        fields = [draw(texts) for _ in range(num_columns)]
        if label_column is not None:
            fields[label_column] = draw(st.sampled_from(labels))
        fields[-1] = fields[-1].rstrip("\r")
        lines.append("\t".join(fields))
        rows.append(tuple(fields[column] for column in text_columns))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    content = (end.join(lines) + draw(st.sampled_from(["", end, end * 3]))).encode()
    return GLUE[task], split, name, draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + content, rows


def num_lines(content):
    """Lines of a file but for the empty ones at its end."""
    lines = [line.removesuffix(b"\r") for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return len(lines)


def check_sound_official_file(folder, file):
    task, split, name, content, expected = file
    for leftover in folder.iterdir():
        leftover.unlink()
    rows = load(folder, name, content, task, split)
    if rows is None:
        # No row at all, or one of CoLA's whose only field is empty is none.
        assert not expected
    else:
        columns = [rows[column][:] for column in ("text", "text_pair")[: len(task.text_columns)]]
        assert list(zip(*columns, strict=True)) == expected


def check_damaged_official_file(folder, file, changes, cut):
    task, split, name, content, _ = file
    content = damaged(content, changes, cut)
    for leftover in folder.iterdir():
        leftover.unlink()
    rows = load(folder, name, content, task, split)
    if rows is not None and task.name != "qqp":  # which alone has rows in pieces, left out with a warning
        has_header = (task.name, split) != ("cola", "train")
        assert len(rows) == num_lines(content) - has_header


@given(official_files())
@examples(150)
def test_every_row_of_a_sound_official_file_is_read(tmp_path, file):
    check_sound_official_file(tmp_path, file)


@given(official_files(), damages, cuts)
@examples(250)
def test_a_damaged_official_file_loses_no_row_or_is_refused_in_one_sentence(tmp_path, file, changes, cut):
    check_damaged_official_file(tmp_path, file, changes, cut)


def own_task(name, *, regression):
    return Task(
        name="mine",
        text_columns=("text", "other text"),
        label_names=() if regression else ("no", "yes"),
        metrics=("pearson",) if regression else ("accuracy",),
        splits={"train": ()},
        files={"train": name},
        quoting="none" if name.endswith("tsv") else None,
    )


def to_csv(header, rows):
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([header, *rows])
    return stream.getvalue()


def to_tsv(header, rows):
    return "".join("\t".join(row) + "\n" for row in [header, *rows])


def to_jsonl(header, rows):
    return "".join(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)


@st.composite
def own_files(draw):
    """Task, file name, the file's bytes, and the pairs of texts that stand in it."""
    kind, write = draw(st.sampled_from([("csv", to_csv), ("tsv", to_tsv), ("jsonl", to_jsonl)]))
    regression = draw(st.booleans())
    labels = ["0", "-3.5", "1e3"] if regression else ["no", "yes"]
    cells = (
        texts
        if kind == "tsv"
        else st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=9)
    )
    rows = draw(
        st.lists(st.tuples(cells, st.sampled_from(labels), texts.map(lambda text: text.replace("\r", ""))), max_size=4)
    )
    content = write(["text", "label", "other text"], rows).encode()
    return own_task(f"train.{kind}", regression=regression), f"train.{kind}", content, [(a, b) for a, _, b in rows]


def check_own_file(folder, file, changes, cut):
    task, name, content, expected = file
    now = damaged(content, changes, cut)
    rows = load(folder, name, now, task, "train")
    if now == content:
        assert (rows is None) == (not expected)
        if rows is not None:
            assert list(zip(rows["text"], rows["text_pair"], strict=True)) == expected
    elif rows is not None and not name.endswith("csv"):  # whose rows may span lines
        assert len(rows) == num_lines(now) - name.endswith("tsv")


@given(own_files(), damages, cuts)
@examples(250)
def test_an_own_file_loses_no_row_or_is_refused_in_one_sentence(tmp_path, file, changes, cut):
    check_own_file(tmp_path, file, changes, cut)


@given(own_files())
@examples(100)
def test_every_row_of_a_sound_own_file_is_read(tmp_path, file):
    check_own_file(tmp_path, file, [], None)


quoted_texts = st.text(st.sampled_from('"" ab\t\n,'), max_size=7)


@given(
    st.lists(st.tuples(quoted_texts, st.sampled_from(["no", "yes"]), quoted_texts), min_size=1, max_size=4),
    st.booleans(),
)
@examples(250)
def test_a_tsv_file_is_read_as_it_was_written_or_refused(tmp_path, rows, with_quotes):
    """Raw, or with quotes as pandas and spreadsheets write them: without an option, never in the wrong one."""
    if not with_quotes:
        rows = [tuple(text.replace("\t", "").replace("\n", "") for text in row) for row in rows]
    stream = io.StringIO()
    csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([["text", "label", "other text"], *rows])
    content = stream.getvalue() if with_quotes else to_tsv(["text", "label", "other text"], rows)
    task = dataclasses.replace(own_task("train.tsv", regression=False), quoting=None)
    found = load(tmp_path, "train.tsv", content.encode(), task, "train")
    if found is not None:
        assert list(zip(found["text"], found["text_pair"], strict=True)) == [(a, b) for a, _, b in rows]


# A `datasets` folder and Parquet files

SOUND = {"sentence": ["good", "bad é"] * 8, "label": [1, 0] * 8}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with one split as Parquet, and one with it as `save_to_disk` leaves it."""
    folder = tmp_path_factory.mktemp("sound")
    features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    rows = datasets.Dataset.from_dict(SOUND, features=datasets.Features(features))
    with quiet_datasets():
        (folder / "parquet").mkdir()
        rows.to_parquet(folder / "parquet" / "train-00000-of-00001.parquet")
        datasets.DatasetDict(train=rows).save_to_disk(folder / "saved")
    return folder


def check_damaged_folder(sound, folder, kind, which, changes, cut):
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound / kind, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    file = files[which % len(files)]
    content = damaged(file.read_bytes(), changes, cut)
    file.unlink()  # an earlier example may have the old one in memory
    file.write_bytes(content)
    try:
        rows = load_split(GLUE["sst2"], "train", copy, check_rows=False)
    except DataError as error:
        assert_one_sentence(error, str(copy))
    else:
        assert_rows(rows, GLUE["sst2"])
        if not changes and cut is None:
            assert rows.to_dict() == {"text": SOUND["sentence"], "label": SOUND["label"]}


flips = st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=1), st.just(1)), max_size=2)


@given(st.sampled_from(["parquet", "saved"]), st.integers(0, 3), flips | damages, cuts)
@examples(150)
def test_a_damaged_datasets_folder_is_read_or_refused_in_one_sentence(sound, tmp_path, kind, which, changes, cut):
    check_damaged_folder(sound, tmp_path, kind, which, changes, cut)


@pytest.mark.slow
@given(official_files(), damages, cuts, own_files())
@examples(5000)
def test_ten_thousand_data_files_lose_no_row_or_are_refused_in_one_sentence(tmp_path, file, changes, cut, own):
    check_sound_official_file(tmp_path, file)
    check_damaged_official_file(tmp_path, file, changes, cut)
    check_own_file(tmp_path, own, changes, cut)


@pytest.mark.slow
@given(st.sampled_from(["parquet", "saved"]), st.integers(0, 3), flips | damages, cuts)
@examples(5000)
def test_five_thousand_damaged_folders_are_read_or_refused_in_one_sentence(sound, tmp_path, kind, which, changes, cut):
    check_damaged_folder(sound, tmp_path, kind, which, changes, cut)
