import logging

import pytest

from reptile_distil.data.tasks import GLUE
from reptile_distil.errors import DataError
from reptile_distil.sources.glue_files import find_official_file, read_official_file


def read(folder, task, split, **files):
    """Rows of a split; each keyword is a file name without suffix, in its official form."""
    for name, content in files.items():
        suffix = ".txt" if name.startswith("msr_") else ".tsv"
        path = folder / f"{name.replace('diagnostic_full', 'diagnostic-full')}{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    file = find_official_file(GLUE[task], split, folder)
    assert file is not None
    return read_official_file(GLUE[task], split, file)


SST2 = "sentence\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
MRPC = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
STSB = "index\tgenre\tsentence1\tsentence2\tscore\n"
MNLI = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
PAIR = "index\tsentence1\tsentence2\tlabel\n"


@pytest.mark.parametrize(
    ("task", "split", "files", "columns", "labels"),
    [
        ("cola", "train", {"train": "gj04\t1\t\tA b.\ngj04\t0\t*\tB a.\n"}, (("A b.", "B a."),), [1, 0]),
        ("cola", "dev", {"dev": "gj04\t1\t\tA b."}, (("A b.",),), [1]),
        ("cola", "test", {"test": "index\tsentence\n0\tA b.\n"}, (("A b.",),), None),
        ("sst2", "train", {"train": SST2 + "good \t1\nbad \t0\n"}, (("good ", "bad "),), [1, 0]),
        ("sst2", "test", {"test": "index\tsentence\n0\tgood\n"}, (("good",),), None),
        ("mrpc", "train", {"train": MRPC + "1\t7\t8\ta\tb\n"}, (("a",), ("b",)), [1]),
        ("mrpc", "dev", {"dev": MRPC + "0\t7\t8\ta\tb\n"}, (("a",), ("b",)), [0]),
        (
            "mrpc",
            "test",
            {"test": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n"},
            (("a",), ("b",)),
            None,
        ),
        ("mrpc", "test", {"msr_paraphrase_test": MRPC + "1\t7\t8\ta\tb\n"}, (("a",), ("b",)), [1]),
        ("stsb", "train", {"train": STSB + "0\tnews\ta\tb\t3.800\n"}, (("a",), ("b",)), [3.8]),
        ("stsb", "test", {"test": "index\tsentence1\tsentence2\n0\ta\tb\n"}, (("a",), ("b",)), None),
        ("qqp", "train", {"train": QQP + "1\t2\t3\ta?\tb?\t1\n"}, (("a?",), ("b?",)), [1]),
        ("qqp", "test", {"test": "id\tquestion1\tquestion2\n0\ta?\tb?\n"}, (("a?",), ("b?",)), None),
        (
            "mnli",
            "dev_mismatched",
            {"dev_mismatched": MNLI + "0\ta\tb\tneutral\tcontradiction\n"},
            (("a",), ("b",)),
            [2],
        ),
        (
            "mnli",
            "test_matched",
            {"test_matched": "index\tsentence1\tsentence2\n0\ta\tb\n"},
            (("a",), ("b",)),
            None,
        ),
        (
            "qnli",
            "dev",
            {"dev": "index\tquestion\tsentence\tlabel\n0\tq?\ts\tnot_entailment\n"},
            (("q?",), ("s",)),
            [1],
        ),
        ("rte", "train", {"train": PAIR + "0\ta\tb\tentailment\n"}, (("a",), ("b",)), [0]),
        ("wnli", "train", {"train": PAIR + "0\ta\tb\t1\n"}, (("a",), ("b",)), [1]),
        ("ax", "test", {"diagnostic": "index\tsentence1\tsentence2\n0\ta\tb\n"}, (("a",), ("b",)), None),
    ],
)
def test_each_official_file_is_read(tmp_path, task, split, files, columns, labels):
    rows = read(tmp_path, task, split, **files)
    assert rows.columns == columns
    assert rows.labels == labels


def test_mnli_labels_are_read_by_name_into_the_hubs_order(tmp_path):
    content = MNLI + "0\ta\tb\t-\tcontradiction\n1\ta\tb\t-\tentailment\n2\ta\tb\t-\tneutral\n"
    assert read(tmp_path, "mnli", "train", train=content).labels == [2, 0, 1]


@pytest.mark.parametrize("name", ["AX.tsv", "diagnostic/diagnostic.tsv", "diagnostic/diagnostic-full.tsv"])
def test_the_diagnostic_set_is_found_under_each_of_its_names(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("index\tsentence1\tsentence2\n")
    assert find_official_file(GLUE["ax"], "test", tmp_path) == tmp_path / name


def test_the_labelled_diagnostic_file_is_preferred(tmp_path):
    rows = read(
        tmp_path,
        "ax",
        "test",
        diagnostic="index\tsentence1\tsentence2\n0\tx\ty\n",
        diagnostic_full="Logic\tDomain\tPremise\tHypothesis\tLabel\n\tNews\ta\tb\tneutral\n",
    )
    assert (rows.columns, rows.labels) == ((("a",), ("b",)), [1])


def test_quotes_in_a_tsv_lose_no_row_and_stay_text(tmp_path):
    content = SST2 + 'he said " yes\t1\n"\t0\n" no\t0\n""\t1\n'
    rows = read(tmp_path, "sst2", "train", train=content)
    assert rows.columns == (('he said " yes', '"', '" no', '""'),)
    assert rows.labels == [1, 0, 0, 1]


@pytest.mark.parametrize("word", ["null", "n/a", "None", "NaN", "NA", '"', "", "#", " padded "])
def test_words_in_a_tsv_that_look_like_missing_values_stay_text(tmp_path, word):
    assert read(tmp_path, "sst2", "train", train=f"{SST2}{word}\t1\n").columns == ((word,),)


@pytest.mark.parametrize("mark", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\ufeff"])
def test_only_a_line_feed_ends_a_line(tmp_path, mark):
    assert read(tmp_path, "sst2", "train", train=f"{SST2}a{mark}b\t1\n").columns == ((f"a{mark}b",),)


@pytest.mark.parametrize("content", ["sentence\tlabel\r\na\t1\r\n", "\ufeffsentence\tlabel\na\t1", SST2 + "a\t1\n\n\n"])
def test_windows_line_ends_a_byte_order_mark_and_empty_lines_at_the_end_are_fine(tmp_path, content):
    rows = read(tmp_path, "sst2", "train", train=content)
    assert (rows.columns, rows.labels) == ((("a",),), [1])


@pytest.mark.parametrize(
    ("task", "content", "place", "reason"),
    [
        ("sst2", "", "train.tsv", "is empty"),
        ("sst2", "\n\n", "train.tsv", "is empty"),
        ("sst2", SST2, "train.tsv", "has no rows"),
        ("sst2", "\n" + SST2 + "a\t1\n", "train.tsv, line 1", "empty line"),
        (
            "sst2",
            "text\tlabel\na\t1\n",
            "train.tsv, line 1",
            "no column 'sentence', the columns are 'text', 'label'",
        ),
        ("sst2", "sentence\tlabel\tlabel\na\t1\t0\n", "train.tsv, line 1", "column 'label' is there 2 times"),
        ("sst2", SST2 + "a\t1\nb\t2\n", "train.tsv, line 3", "unknown label '2', allowed: 0, 1"),
        ("sst2", SST2 + "a\tpositive\n", "train.tsv, line 2", "unknown label 'positive', allowed: 0, 1"),
        ("sst2", SST2 + "a\t-1\n", "train.tsv, line 2", "unknown label '-1'"),
        ("sst2", SST2 + "a\t1\nb\n", "train.tsv, line 3", "expected 2 fields, found 1"),
        ("sst2", SST2 + "a\tb\t1\n", "train.tsv, line 2", "expected 2 fields, found 3"),
        ("sst2", SST2 + "a\t1\n\nb\t0\n", "train.tsv, line 3", "empty line"),
        ("sst2", SST2.encode() + b"ab\xff\t1\n", "train.tsv, line 2", "not UTF-8 at byte 3 of the line"),
        ("sst2", (SST2 + "a\t1\n").encode("utf-16"), "train.tsv, line 1", "not UTF-8 at byte 1"),
        ("cola", "", "train.tsv", "has no rows"),
        ("cola", "index\tsentence\n", "train.tsv, line 1", "expected 4 fields, found 2"),
        ("cola", "gj04\t1\t\n", "train.tsv, line 1", "expected 4 fields, found 3"),
        ("stsb", STSB + "0\tnews\ta\tb\tnan\n", "train.tsv, line 2", "score 'nan' is not a finite number"),
        ("stsb", STSB + "0\tnews\ta\tb\tinf\n", "train.tsv, line 2", "score 'inf' is not a finite number"),
        ("stsb", STSB + "0\tnews\ta\tb\t0_1\n", "train.tsv, line 2", "score '0_1' is not a finite number"),
        ("stsb", STSB + "0\tnews\ta\tb\t٣\n", "train.tsv, line 2", "score '٣' is not a finite number"),
        ("stsb", STSB + "0\tnews\ta\tb\t1e999\n", "train.tsv, line 2", "score '1e999' is not a finite number"),
        ("stsb", STSB + "0\tnews\ta\tb\thigh\n", "train.tsv, line 2", "score 'high' is not a finite number"),
        ("stsb", STSB + "0\tnews\ta\tb\t5.001\n", "train.tsv, line 2", r"score '5.001' is not in \[0, 5\]"),
        ("stsb", STSB + "0\tnews\ta\tb\t-0.1\n", "train.tsv, line 2", r"score '-0.1' is not in \[0, 5\]"),
        ("stsb", STSB + "0\tnews\ta\tb\t1\tx\n", "train.tsv, line 2", "expected 5 fields, found 6"),
        (
            "mnli",
            MNLI + "0\ta\tb\tneutral\t-\n",
            "train.tsv, line 2",
            "unknown label '-', allowed: entailment, neutral, contradiction",
        ),
        ("rte", PAIR + "0\ta\tb\t1\n", "train.tsv, line 2", "unknown label '1', allowed: entailment"),
        ("qqp", QQP + "1\t2\t3\ta\tb\tx\n", "train.tsv, line 2", "unknown label 'x', allowed: 0, 1"),
        ("qqp", QQP + "1\t2\t3\ta\n", "train.tsv", "has no rows"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, task, content, place, reason):
    with pytest.raises(DataError, match=f"{place}.*{reason}"):
        read(tmp_path, task, "train", train=content)


def test_a_long_line_with_control_characters_makes_a_message_of_one_short_line(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, "sst2", "train", train="a\x1b[31m\u2028" * 100_000 + "\tlabel\nx\t1\n")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1600


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train\.tsv cannot be read: No such file"):
        read_official_file(GLUE["sst2"], "train", tmp_path / "train.tsv")


@pytest.mark.parametrize("split", ["train", "dev"])
def test_qqp_alone_leaves_out_short_rows_and_says_so(tmp_path, caplog, split):
    content = QQP + "1\t2\t3\ta\tb\t0\n4\t5\t6\tbroken\n\nin pieces\t1\n7\t8\t9\tc\td\t1\n"
    rows = read(tmp_path, "qqp", split, **{split: content})
    assert (rows.columns, rows.labels) == ((("a", "c"), ("b", "d")), [0, 1])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "left out 3 rows with too few fields, the first at line 3" in caplog.text


def test_a_short_row_of_qqps_test_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"test\.tsv, line 2: expected 3 fields, found 2"):
        read(tmp_path, "qqp", "test", test="id\tquestion1\tquestion2\n0\ta?\n")


def msr_rows(count):
    return MRPC + "".join(f"{i % 2}\t{i}\t{i + 1000}\ta{i}\tb{i}\r\n" for i in range(count))


def test_mrpc_is_divided_by_the_official_dev_ids(tmp_path, caplog):
    files = {"msr_paraphrase_train": msr_rows(4), "dev_ids": "1\t1001\r\n3\t1003\r\n"}
    dev = read(tmp_path, "mrpc", "dev", **files)
    train = read(tmp_path, "mrpc", "train")
    assert (dev.columns, dev.labels) == ((("a1", "a3"), ("b1", "b3")), [1, 1])
    assert (train.columns, train.labels) == ((("a0", "a2"), ("b0", "b2")), [0, 0])
    assert not caplog.records


def test_mrpc_without_dev_ids_gets_a_dev_split_of_408_rows_and_a_warning(tmp_path, caplog):
    dev = read(tmp_path, "mrpc", "dev", msr_paraphrase_train=msr_rows(4076))
    train = read(tmp_path, "mrpc", "train")
    assert (len(dev.columns[0]), len(train.columns[0])) == (408, 3668)
    assert set(dev.columns[0]).isdisjoint(train.columns[0])
    assert "dev_ids.tsv is missing: made a dev split that is not the official one" in caplog.text


def test_mrpcs_own_dev_split_is_the_same_on_every_machine(tmp_path):
    dev = read(tmp_path, "mrpc", "dev", msr_paraphrase_train=msr_rows(20))
    assert dev.columns[0] == ("a10", "a11")


def test_mrpcs_own_dev_split_is_never_made_beside_a_train_file(tmp_path):
    (tmp_path / "train.tsv").write_text(MRPC + "1\t7\t8\ta\tb\n")
    (tmp_path / "msr_paraphrase_train.txt").write_text(msr_rows(20))
    assert find_official_file(GLUE["mrpc"], "dev", tmp_path) is None


@pytest.mark.parametrize("task", list(GLUE))
def test_a_folder_without_the_file_holds_nothing(tmp_path, task):
    assert find_official_file(GLUE[task], next(iter(GLUE[task].splits)), tmp_path) is None
