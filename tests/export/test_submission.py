"""The leaderboard's zip: what is written, what is refused, and what a check finds in anybody's file."""

import dataclasses
import io
import random
import runpy
import shutil
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from reptile_distil import Experiment, cli
from reptile_distil.data import toy
from reptile_distil.errors import DataError, RunError
from reptile_distil.export import submission
from reptile_distil.export.submission import (
    FILES,
    check_submission,
    find_runs,
    majority_prediction,
    predict_files,
    to_predictions,
    write_submission,
)
from reptile_distil.runs.results import Prediction, SplitPredictions
from tests.helpers.paths import ROOT, TINY

# Three rows of each file: the classes as a model's labels name them, and the file as the leaderboard wants it.
GOLDEN = {
    "CoLA.tsv": (["acceptable", "unacceptable", "acceptable"], "index\tprediction\n0\t1\n1\t0\n2\t1\n"),
    "SST-2.tsv": (["negative", "positive", "positive"], "index\tprediction\n0\t0\n1\t1\n2\t1\n"),
    "MRPC.tsv": (["equivalent", "not_equivalent", "equivalent"], "index\tprediction\n0\t1\n1\t0\n2\t1\n"),
    "STS-B.tsv": ([-0.2, 3.14159, 5.3], "index\tprediction\n0\t0.000\n1\t3.142\n2\t5.000\n"),
    "QQP.tsv": (["duplicate", "duplicate", "not_duplicate"], "index\tprediction\n0\t1\n1\t1\n2\t0\n"),
    "MNLI-m.tsv": (
        ["contradiction", "entailment", "neutral"],
        "index\tprediction\n0\tcontradiction\n1\tentailment\n2\tneutral\n",
    ),
    "MNLI-mm.tsv": (
        ["neutral", "neutral", "entailment"],
        "index\tprediction\n0\tneutral\n1\tneutral\n2\tentailment\n",
    ),
    "QNLI.tsv": (
        ["not_entailment", "entailment", "entailment"],
        "index\tprediction\n0\tnot_entailment\n1\tentailment\n2\tentailment\n",
    ),
    "RTE.tsv": (
        ["entailment", "not_entailment", "entailment"],
        "index\tprediction\n0\tentailment\n1\tnot_entailment\n2\tentailment\n",
    ),
    "WNLI.tsv": (["not_entailment", "entailment", "entailment"], "index\tprediction\n0\t0\n1\t1\n2\t1\n"),
    "AX.tsv": (
        ["entailment", "contradiction", "contradiction"],
        "index\tprediction\n0\tentailment\n1\tcontradiction\n2\tcontradiction\n",
    ),
}
TEXTS = {name: text for name, (_, text) in GOLDEN.items()}


@pytest.fixture
def three_rows(monkeypatch):
    """Test sets of three rows each."""
    small = {name: dataclasses.replace(file, num_rows=3) for name, file in FILES.items()}
    monkeypatch.setattr(submission, "FILES", small)


def split_predictions(labels):
    """What a model says; the probabilities stand in an order that says nothing about the label's number."""
    return SplitPredictions(
        [Prediction(label, {} if isinstance(label, float) else {label: 1.0}) for label in labels], None, None
    )


def golden_predictions():
    return {name: to_predictions(name, split_predictions(labels)) for name, (labels, _) in GOLDEN.items()}


def zip_of(path, texts, method=zipfile.ZIP_DEFLATED):
    """A zip of (name, content) pairs or of a mapping."""
    pairs = texts.items() if isinstance(texts, dict) else texts
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice is meant
        for name, text in pairs:
            archive.writestr(name, text)
    return path


def test_the_eleven_files_have_the_official_names_rows_and_predictions():
    three = ["entailment", "neutral", "contradiction"]
    assert {name: (file.num_rows, list(file.spelling.values())) for name, file in FILES.items()} == {
        "CoLA.tsv": (1063, ["0", "1"]),
        "SST-2.tsv": (1821, ["0", "1"]),
        "MRPC.tsv": (1725, ["0", "1"]),
        "STS-B.tsv": (1379, []),
        "QQP.tsv": (390965, ["0", "1"]),
        "MNLI-m.tsv": (9796, three),
        "MNLI-mm.tsv": (9847, three),
        "QNLI.tsv": (5463, ["entailment", "not_entailment"]),
        "RTE.tsv": (3000, ["entailment", "not_entailment"]),
        "WNLI.tsv": (146, ["0", "1"]),
        "AX.tsv": (1104, three),
    }


@pytest.mark.usefixtures("three_rows")
class TestWriting:
    @pytest.mark.parametrize("name", GOLDEN)
    def test_each_file_is_what_the_leaderboard_wants(self, tmp_path, name):
        write_submission(tmp_path / "a.zip", golden_predictions())
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert archive.namelist() == list(GOLDEN)
            assert archive.read(name).decode() == GOLDEN[name][1]

    def test_what_is_written_has_no_fault(self, tmp_path):
        write_submission(tmp_path / "a.zip", golden_predictions())
        assert check_submission(tmp_path / "a.zip") == []

    def test_the_same_predictions_give_the_same_bytes_at_another_time(self, tmp_path, monkeypatch):
        write_submission(tmp_path / "a.zip", golden_predictions())
        monkeypatch.setattr("time.time", lambda: 2e9)
        write_submission(tmp_path / "b.zip", dict(reversed(golden_predictions().items())))
        assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()

    def test_a_missing_folder_is_made(self, tmp_path):
        write_submission(tmp_path / "new" / "a.zip", golden_predictions())
        assert (tmp_path / "new" / "a.zip").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"AX.tsv": None, "CoLA.tsv": None}, "no predictions for CoLA.tsv, AX.tsv"),
            ({"SNLI.tsv": ["0"]}, "SNLI.tsv: no file of a submission"),
            ({"RTE.tsv": ["entailment"] * 2}, "RTE.tsv: expected 3 rows, found 2"),
            ({"RTE.tsv": ["entailment"] * 4}, "RTE.tsv: expected 3 rows, found 4"),
            ({"RTE.tsv": ["0"] * 3}, "RTE.tsv, line 2: expected one of entailment, not_entailment, found '0'"),
            ({"CoLA.tsv": ["0", "1", "1\n3\t1"]}, "CoLA.tsv: expected 3 rows, found 4"),
            ({"STS-B.tsv": ["1", "nan", "2"]}, "STS-B.tsv, line 3: expected a finite number, found 'nan'"),
        ],
    )
    def test_what_the_leaderboard_would_refuse_is_not_written(self, tmp_path, change, message):
        predictions = {**golden_predictions(), **change}
        predictions = {name: rows for name, rows in predictions.items() if rows is not None}
        with pytest.raises(DataError) as error:
            write_submission(tmp_path / "a.zip", predictions)
        assert str(error.value).startswith(message)
        assert list(tmp_path.iterdir()) == []

    def test_a_student_that_predicts_no_number_is_refused(self, tmp_path):
        """min and max must not turn NaN into a score."""
        predictions = {
            **golden_predictions(),
            "STS-B.tsv": to_predictions("STS-B.tsv", split_predictions([float("nan")] * 3)),
        }
        with pytest.raises(DataError, match="expected a finite number, found 'nan'"):
            write_submission(tmp_path / "a.zip", predictions)

    def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        (tmp_path / "a.zip").write_text("old")
        monkeypatch.setattr(zipfile.ZipFile, "writestr", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(DataError, match=r"a\.zip: cannot be written: No space left"):
            write_submission(tmp_path / "a.zip", golden_predictions())
        monkeypatch.undo()
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.zip", "old")]

    @pytest.mark.parametrize("path", ["file/a.zip", "folder"])
    def test_a_place_that_cannot_be_written_is_named(self, tmp_path, path):
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        with pytest.raises(DataError, match=f"{path}: cannot be written"):
            write_submission(tmp_path / path, golden_predictions())


def test_a_whole_submission_of_official_size_is_written_and_checked(tmp_path):
    predictions = {name: [next(iter(file.spelling.values()), "2.5")] * file.num_rows for name, file in FILES.items()}
    write_submission(tmp_path / "a.zip", predictions)
    assert check_submission(tmp_path / "a.zip") == []
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("QQP.tsv").endswith(b"\n390964\t0\n")
        assert max(member.file_size for member in archive.infolist()) < submission.MAX_BYTES / 4


COLA, RTE, STSB = TEXTS["CoLA.tsv"], TEXTS["RTE.tsv"], TEXTS["STS-B.tsv"]
DAMAGES = {
    "no header": ("CoLA.tsv", "0\t1\n1\t0\n2\t1\n", "line 1: expected 'index\\tprediction', found '0\\t1'"),
    "another header": ("CoLA.tsv", COLA.replace("index", "id"), "line 1: expected 'index\\tprediction', found 'id\\t"),
    "a byte order mark": ("CoLA.tsv", "\ufeff" + COLA, "line 1: expected 'index\\tprediction', found '\\ufeffindex"),
    "commas": ("CoLA.tsv", COLA.replace("\n1\t", "\n1,"), "line 3: expected an index and a prediction, found 1 fields"),
    "a field too many": (
        "CoLA.tsv",
        COLA.replace("0\t1", "0\t1\t1"),
        "line 2: expected an index and a prediction, foun",
    ),
    "a row too few": ("CoLA.tsv", COLA[:-4], "CoLA.tsv: expected 3 rows, found 2"),
    "a row too many": ("CoLA.tsv", COLA + "3\t1\n", "CoLA.tsv: expected 3 rows, found 4"),
    "no row": ("CoLA.tsv", "index\tprediction\n", "CoLA.tsv: expected 3 rows, found 0"),
    "nothing": ("CoLA.tsv", "", "CoLA.tsv: is empty, expected the header"),
    "a blank row": ("CoLA.tsv", COLA.replace("\n1", "\n\n1"), "CoLA.tsv, line 3: is blank"),
    "a blank end": ("CoLA.tsv", COLA + " \n\n", "CoLA.tsv, line 5: is blank (and 1 more line)"),
    "rows in another order": (
        "CoLA.tsv",
        "index\tprediction\n1\t0\n0\t1\n2\t1\n",
        "line 2: expected index 0, found '1'",
    ),
    "a row twice": ("CoLA.tsv", "index\tprediction\n0\t1\n0\t1\n2\t1\n", "index 1, found '0', which was there before"),
    "indices from 1": ("CoLA.tsv", "index\tprediction\n1\t1\n2\t0\n3\t1\n", "index 0, found '1' (and 2 more lines)"),
    "an index of another kind": ("CoLA.tsv", COLA.replace("\n2", "\n2.0"), "line 4: expected index 2, found '2.0'"),
    "a name for a number": ("CoLA.tsv", COLA.replace("\t0", "\tunacceptable"), "expected one of 0, 1, found 'unaccept"),
    "a number for a name": (
        "RTE.tsv",
        RTE.replace("\tnot_entailment", "\t1"),
        "expected one of entailment, not_entailm",
    ),
    "a label of another task": (
        "RTE.tsv",
        RTE.replace("\tnot_entailment", "\tneutral"),
        "line 3: expected one of entail",
    ),
    "a class there is not": ("WNLI.tsv", TEXTS["WNLI.tsv"].replace("\t0", "\t2"), "expected one of 0, 1, found '2'"),
    "a space": ("CoLA.tsv", COLA.replace("\t0", "\t0 "), "line 3: expected one of 0, 1, found '0 '"),
    "no prediction": ("STS-B.tsv", STSB.replace("3.142", ""), "line 3: expected a finite number, found ''"),
    "NaN": ("STS-B.tsv", STSB.replace("3.142", "nan"), "line 3: expected a finite number, found 'nan'"),
    "infinity": ("STS-B.tsv", STSB.replace("3.142", "inf"), "line 3: expected a finite number, found 'inf'"),
    "1e999": ("STS-B.tsv", STSB.replace("3.142", "1e999"), "line 3: expected a number from 0 to 5, found 1e999"),
    "too high": ("STS-B.tsv", STSB.replace("3.142", "5.001"), "line 3: expected a number from 0 to 5, found 5.001"),
    "too low": ("STS-B.tsv", STSB.replace("3.142", "-0.1"), "line 3: expected a number from 0 to 5, found -0.1"),
    "digits of another script": ("STS-B.tsv", STSB.replace("3.142", "\u0663"), "a finite number, found '\\u0663'"),
    "digits without end": ("STS-B.tsv", STSB.replace("3.142", "1" * 10**6), "a finite number, found '1111"),
    "carriage returns": (
        "CoLA.tsv",
        COLA.replace("\n", "\r\n"),
        "line 1: ends in a carriage return (and 3 more lines)",
    ),
    "another encoding": ("CoLA.tsv", COLA.encode().replace(b"\t0", b"\t\xe9"), "CoLA.tsv, line 3: is not UTF-8"),
    "UTF-16": ("CoLA.tsv", COLA.encode("utf-16"), "CoLA.tsv, line 1: is not UTF-8"),
}


@pytest.mark.usefixtures("three_rows")
class TestChecking:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_a_damaged_file_is_found_named_and_told_from_the_others(self, tmp_path, damage):
        name, content, message = DAMAGES[damage]
        problems = check_submission(zip_of(tmp_path / "a.zip", {**TEXTS, name: content}))
        assert any(message in problem for problem in problems), problems
        assert all(problem.startswith(name) and "\n" not in problem for problem in problems)

    @pytest.mark.parametrize("damage", ["blank row", "row twice", "carriage returns", "too high", "another encoding"])
    def test_one_damage_is_one_problem(self, tmp_path, damage):
        (found,) = [value for key, value in DAMAGES.items() if key.removeprefix("a ") == damage]
        assert len(check_submission(zip_of(tmp_path / "a.zip", {**TEXTS, found[0]: found[1]}))) == 1

    def test_every_problem_is_told_not_the_first_alone(self, tmp_path):
        texts = {**TEXTS, "RTE.tsv": RTE.replace("index", "id") + "3\tentailment\n", "STS-B.tsv": STSB[:-1] + "9\n"}
        del texts["AX.tsv"]
        assert check_submission(zip_of(tmp_path / "a.zip", {**texts, "notes.txt": ""})) == [
            "'notes.txt' does not belong in a submission",
            "STS-B.tsv, line 4: expected a number from 0 to 5, found 5.0009",
            "RTE.tsv, line 1: expected 'index\\tprediction', found 'id\\tprediction'",
            "RTE.tsv: expected 3 rows, found 4",
            "AX.tsv is missing",
        ]

    @pytest.mark.parametrize("number", ["0", "5", "5.", ".5", "0.30000000000000004", "1e-05", "+2", "-0.000"])
    def test_numbers_of_any_usual_form_are_fine(self, tmp_path, number):
        texts = {**TEXTS, "STS-B.tsv": STSB.replace("3.142", number)}
        assert check_submission(zip_of(tmp_path / "a.zip", texts)) == []

    def test_a_missing_last_line_feed_and_a_stored_zip_are_fine(self, tmp_path):
        texts = {name: text.rstrip("\n") for name, text in TEXTS.items()}
        assert check_submission(zip_of(tmp_path / "a.zip", texts, zipfile.ZIP_STORED)) == []

    def test_a_folder_in_the_zip_is_one_problem_and_its_files_are_checked(self, tmp_path):
        inside = {f"glue/{name}": text for name, text in TEXTS.items()}
        problems = check_submission(zip_of(tmp_path / "a.zip", {**inside, "glue/RTE.tsv": RTE.replace("0", "7")}))
        assert problems == [
            "'glue/CoLA.tsv' lies in a folder, but a submission is flat (and 10 more files)",
            "RTE.tsv, line 2: expected index 0, found '7'",
        ]

    @pytest.mark.parametrize(
        ("more", "problem"),
        [
            ([("QQP.tsv", "")], "QQP.tsv is there 2 times"),
            ([("/tmp/QQP.tsv", ""), ("../QQP.tsv", "")], "'/tmp/QQP.tsv' lies in a folder"),
            ([("empty/", "")], "'empty/' does not belong"),
            ([("cola.tsv", "")], "'cola.tsv' does not belong"),
            (
                [("__MACOSX/._CoLA.tsv", ""), ("a", ""), ("b", "")],
                "'__MACOSX/._CoLA.tsv' does not belong in a submission (and 2",
            ),
            ([("\x1b[31m\n", "")], r"'\x1b[31m\n' does not belong"),
            ([("n" * 60000, "")], "n...' does not belong"),
        ],
    )
    def test_what_is_there_beside_the_eleven_is_named(self, tmp_path, more, problem):
        problems = check_submission(zip_of(tmp_path / "a.zip", [*TEXTS.items(), *more]))
        assert problem in problems[0]
        assert problems[0].isprintable()
        assert len(problems[0]) < 200

    def test_a_thousand_strange_files_are_one_problem(self, tmp_path):
        more = [(f"{folder}{number}", "") for number in range(1000) for folder in ("", f"{number}/CoLA.tsv/")]
        assert len(check_submission(zip_of(tmp_path / "a.zip", [*TEXTS.items(), *more]))) == 1

    @pytest.mark.parametrize("content", [b"", b"index\tprediction\n", b"PK\x05\x06", b"PK\x03\x04" + bytes(100)])
    def test_what_is_no_zip_is_said_to_be_none(self, tmp_path, content):
        (tmp_path / "a.zip").write_bytes(content)
        (problem,) = check_submission(tmp_path / "a.zip")
        assert "a.zip: is no zip that can be read" in problem

    def test_a_file_that_is_not_there_and_a_folder_are_said_to_be_no_file(self, tmp_path):
        assert check_submission(tmp_path / "none.zip") == [f"{tmp_path}/none.zip: no such file"]
        assert check_submission(tmp_path) == [f"{tmp_path}: no such file"]

    def test_a_file_too_large_to_be_a_submission_is_not_opened(self, tmp_path):
        with (tmp_path / "a.zip").open("wb") as file:
            file.truncate(2**40)  # takes no room on the disk
        assert "1099511627776 bytes, more than 16777216; not read" in check_submission(tmp_path / "a.zip")[0]

    def test_a_bomb_is_refused_by_what_its_header_says(self, tmp_path):
        zip_of(tmp_path / "a.zip", {**TEXTS, "AX.tsv": bytes(submission.MAX_BYTES + 1)})
        assert check_submission(tmp_path / "a.zip") == [
            "AX.tsv cannot be read: it has 16777217 bytes, more than 16777216"
        ]

    def test_a_bomb_with_a_modest_header_takes_no_more_memory_than_is_allowed(self, tmp_path):
        path, size = tmp_path / "a.zip", 6 * submission.MAX_BYTES
        zip_of(path, {**TEXTS, "AX.tsv": bytes(size)})
        content = path.read_bytes()
        assert content.count(struct.pack("<L", size)) == 2  # in the member's own header and in the zip's directory
        path.write_bytes(content.replace(struct.pack("<L", size), struct.pack("<L", 100)))
        tracemalloc.start()
        (problem,) = check_submission(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert problem == "AX.tsv cannot be read: Bad CRC-32 for file 'AX.tsv'"
        assert peak < 3 * submission.MAX_BYTES

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_packers_whose_output_has_no_bound_are_refused(self, tmp_path, method):
        problems = check_submission(zip_of(tmp_path / "a.zip", TEXTS, method))
        assert problems[0] == f"CoLA.tsv cannot be read: it is packed by method {method}, use deflate"

    def test_an_encrypted_file_is_said_to_be_encrypted(self, tmp_path):
        content = bytearray(zip_of(tmp_path / "a.zip", TEXTS).read_bytes())
        content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of the first file in the zip's directory
        content[content.index(b"PK\x03\x04") + 6] |= 1
        (tmp_path / "a.zip").write_bytes(content)
        (problem,) = check_submission(tmp_path / "a.zip")
        assert problem.startswith("CoLA.tsv cannot be read: ")
        assert "encrypted" in problem

    def test_a_damaged_zip_is_a_problem_and_never_an_exception_and_nothing_is_unpacked(self, tmp_path, monkeypatch):
        """300 copies with three random bytes changed or the end cut off."""
        monkeypatch.chdir(tmp_path)
        good = zip_of(tmp_path / "a.zip", TEXTS).read_bytes()
        rng, num_found = random.Random(0), 0
        for number in range(300):
            content = bytearray(good)
            for _ in range(3):
                content[rng.randrange(len(content))] = rng.randrange(256)
            (tmp_path / "a.zip").write_bytes(content[: rng.randrange(len(content))] if number % 6 == 0 else content)
            num_found += bool(check_submission(tmp_path / "a.zip"))
        assert num_found > 200  # a changed date, for one, hurts nobody
        assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


COLA_TRAIN = "x\t1\t\tgood\nx\t0\t*\tbad\nx\t0\t*\tbad\n"
PAIRS = "index\tsentence1\tsentence2\t{}\n"


class TestMajority:
    @pytest.mark.parametrize(
        ("name", "file", "content", "prediction", "words"),
        [
            ("CoLA.tsv", "CoLA/train.tsv", COLA_TRAIN, "0", "filled with 0 (unacceptable): majority class of the 3"),
            (
                "RTE.tsv",
                "RTE/train.tsv",
                PAIRS.format("label") + "0\ta\tb\tnot_entailment\n",
                "not_entailment",
                "filled with not_entailment: majority class of the 1 training rows in",
            ),
            (
                "WNLI.tsv",
                "WNLI/train.tsv",
                PAIRS.format("label") + "0\ta\tb\t1\n1\ta\tb\t0\n2\ta\tb\t1\n",
                "1",
                "filled with 1 (entailment): majority",
            ),
            (
                "STS-B.tsv",
                "STS-B/train.tsv",
                PAIRS.format("score") + "0\ta\tb\t4.5\n1\ta\tb\t1.0\n2\ta\tb\t1.0\n",
                "2.167",
                "filled with 2.167: mean score of the 3 training rows",
            ),
            *(
                (
                    name,
                    "MNLI/train.tsv",
                    PAIRS.format("gold_label") + "0\ta\tb\tneutral\n1\ta\tb\tneutral\n2\ta\tb\tentailment\n",
                    "neutral",
                    "filled with neutral: majority class of the 3 training rows",
                )
                for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")
            ),
        ],
    )
    def test_a_filled_file_says_what_the_training_set_says_most(self, tmp_path, name, file, content, prediction, words):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(content)
        found, said = majority_prediction(name, tmp_path, check_rows=False)
        assert found == prediction
        assert said.startswith(words)
        assert str(tmp_path) in said

    @pytest.mark.parametrize(
        ("name", "prediction"),
        {
            "CoLA.tsv": "1",
            "SST-2.tsv": "1",
            "MRPC.tsv": "1",
            "STS-B.tsv": "2.701",
            "QQP.tsv": "0",
            "MNLI-m.tsv": "entailment",
            "MNLI-mm.tsv": "entailment",
            "QNLI.tsv": "entailment",
            "RTE.tsv": "entailment",
            "WNLI.tsv": "0",
            "AX.tsv": "entailment",
        }.items(),
    )
    @pytest.mark.parametrize("on_disk", [True, False])
    def test_without_a_training_set_it_is_the_official_ones(self, tmp_path, name, prediction, on_disk, monkeypatch):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
        found, said = majority_prediction(name, tmp_path if on_disk else None)
        assert found == prediction
        assert "of the official training set, for want of one in" in said

    def test_a_broken_training_set_is_an_error_and_not_passed_over(self, tmp_path):
        (tmp_path / "CoLA").mkdir()
        (tmp_path / "CoLA" / "train.tsv").write_text(COLA_TRAIN)
        with pytest.raises(DataError, match="expected 8551 rows for cola train, found 3"):
            majority_prediction("CoLA.tsv", tmp_path)


# From run folders to the zip ---------------------------------------------------------------------------------------


def tsv(folder, name, rows, header=None):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join("\t".join(map(str, row)) + "\n" for row in ([header] if header else []) + rows))


def toy_rows(task, split, count):
    rows = toy.load_split(toy.TASKS[task], split)
    return [tuple(row.values()) for row in rows][:count]


NUM_ROWS = {"CoLA.tsv": 23, "STS-B.tsv": 11, "MNLI-m.tsv": 19, "MNLI-mm.tsv": 17, "AX.tsv": 13}


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """GLUE's folders with the toy tasks' rows, as small as can be: CoLA, STS-B, MNLI, AX, and RTE's training set."""
    folder = tmp_path_factory.mktemp("glue")
    pair = ("index", "sentence1", "sentence2")
    for split, count in (("train", 64), ("dev", 20)):
        rows = toy_rows("toy-sentence", split, count)
        tsv(folder / "CoLA", f"{split}.tsv", [("x", label, "", text) for text, label in rows])
        rows = toy_rows("toy-regression", split, count)
        tsv(folder / "STS-B", f"{split}.tsv", [(i, *row) for i, row in enumerate(rows)], (*pair, "score"))
    names = ("entailment", "neutral", "contradiction")
    for split, source, count in (("train", "train", 64), ("dev_matched", "dev", 20), ("dev_mismatched", "dev", 20)):
        rows = [(i, a, b, names[label]) for i, (a, b, label) in enumerate(toy_rows("toy-threeway", source, count))]
        tsv(folder / "MNLI", f"{split}.tsv", rows, (*pair, "gold_label"))
    rows = [(i, text) for i, (text, _) in enumerate(toy_rows("toy-sentence", "test", NUM_ROWS["CoLA.tsv"]))]
    tsv(folder / "CoLA", "test.tsv", rows, ("index", "sentence"))
    rows = [(i, a, b) for i, (a, b, _) in enumerate(toy_rows("toy-regression", "test", NUM_ROWS["STS-B.tsv"]))]
    tsv(folder / "STS-B", "test.tsv", rows, pair)
    pairs = [(a, b) for a, b, _ in toy_rows("toy-threeway", "test", 100)]
    for file, start, path in (
        ("MNLI-m.tsv", 0, "MNLI/test_matched.tsv"),
        ("MNLI-mm.tsv", 30, "MNLI/test_mismatched.tsv"),
        ("AX.tsv", 60, "AX/diagnostic.tsv"),
    ):
        rows = [(i, *row) for i, row in enumerate(pairs[start : start + NUM_ROWS[file]])]
        tsv((folder / path).parent, (folder / path).name, rows, pair)
    tsv(folder / "RTE", "train.tsv", [(0, "a", "b", "not_entailment")], (*pair, "label"))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, glue):
    """The folder of finished runs on CoLA, STS-B and MNLI, of students that say more than one thing."""
    runs = tmp_path_factory.mktemp("runs")
    data = [f"data.path={glue}", "data.check_rows=false", "data.max_train_rows=null"]
    for task in ("cola", "stsb", "mnli"):
        Experiment.from_yaml(TINY, *data, "method=finetune", f"runs_dir={runs}", f"task={task}").fit()
    balance(runs / "cola" / "finetune-seed42" / "model", glue / "CoLA" / "test.tsv")
    balance(runs / "mnli" / "finetune-seed42" / "model", glue / "MNLI" / "test_matched.tsv")
    return runs


def balance(model, file):
    """Shifts a barely trained model's bias so that the mean of its logits over the rows of `file` is 0."""
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    with torch.no_grad():
        classifier.classifier.bias -= plain_logits(model, file).mean(dim=0)
    classifier.save_pretrained(model)


@pytest.fixture
def small(monkeypatch):
    """Test sets as `glue` has them; those it has not, of 5 rows."""
    files = {name: dataclasses.replace(file, num_rows=NUM_ROWS.get(name, 5)) for name, file in FILES.items()}
    monkeypatch.setattr(submission, "FILES", files)


@pytest.fixture
def call(tmp_path, capsys, monkeypatch):
    """Runs scripts/submit.py in this process and an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        main = runpy.run_path(str(ROOT / "scripts" / "submit.py"))["main"]
        try:
            code = cli.run(main, [*map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def column(path, name):
    """The predictions of one file of a zip."""
    with zipfile.ZipFile(path) as archive:
        return [line.split("\t")[1] for line in archive.read(name).decode().splitlines()[1:]]


def plain_logits(model, file):
    """Logits (N, C) of a saved model on a TSV file, by plain transformers, one row at a time."""
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    rows = [tokenizer(*line.split("\t")[1:], return_tensors="pt") for line in file.read_text().splitlines()[1:]]
    with torch.no_grad():
        return torch.cat([classifier(**row).logits for row in rows])


def plain_labels(model, file):
    names = transformers.AutoConfig.from_pretrained(model).id2label
    return [names[index] for index in plain_logits(model, file).argmax(dim=1).tolist()]


@pytest.mark.usefixtures("small")
def test_runs_become_the_zip_that_their_models_say_and_the_rest_is_filled(call, glue, trained, tmp_path):
    runs = [trained / task / "finetune-seed42" for task in ("cola", "stsb", "mnli")]
    code, out, err = call("--runs", *runs, "--fill-missing", "--output", "out/sub.zip")
    assert code == 0, err
    zipped = tmp_path / "out" / "sub.zip"
    assert check_submission(zipped) == []

    said = plain_labels(runs[0] / "model", glue / "CoLA" / "test.tsv")
    assert len(set(said)) == 2
    assert column(zipped, "CoLA.tsv") == [{"unacceptable": "0", "acceptable": "1"}[label] for label in said]
    numbers = plain_logits(runs[1] / "model", glue / "STS-B" / "test.tsv").flatten().tolist()
    assert len(set(numbers)) > 5
    clipped = [min(max(number, 0), 5) for number in numbers]
    assert [float(number) for number in column(zipped, "STS-B.tsv")] == pytest.approx(clipped, abs=6e-4)
    for name, file in (
        ("MNLI-m.tsv", "MNLI/test_matched.tsv"),
        ("MNLI-mm.tsv", "MNLI/test_mismatched.tsv"),
        ("AX.tsv", "AX/diagnostic.tsv"),
    ):
        said = plain_labels(runs[2] / "model", glue / file)
        assert len(set(said)) > 1
        assert column(zipped, name) == said

    lines = dict(line.split("\t", 1) for line in out.splitlines()[:-1])
    assert list(lines) == list(FILES)
    assert lines["CoLA.tsv"] == f"23 rows\tfrom {runs[0]}"
    assert lines["AX.tsv"] == f"13 rows\tfrom {runs[2]}"
    assert lines["RTE.tsv"] == f"5 rows\tfilled with not_entailment: majority class of the 1 training rows in {glue}"
    assert lines["QQP.tsv"].startswith("5 rows\tfilled with 0 (not_duplicate): majority class of the official training")
    assert column(zipped, "RTE.tsv") == ["not_entailment"] * 5

    code, out, _ = call("--check", zipped)
    assert (code, out) == (0, f"{zipped}: eleven files, all as the leaderboard wants them\n")


@pytest.mark.usefixtures("small")
def test_a_model_with_its_labels_in_another_order_predicts_the_same_names(trained, tmp_path):
    """The order of the old processors: contradiction, entailment, neutral."""
    run = tmp_path / "run"
    shutil.copytree(trained / "mnli" / "finetune-seed42", run)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model")
    order = [2, 0, 1]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    names = [model.config.id2label[index] for index in order]
    assert names == ["contradiction", "entailment", "neutral"]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    model.save_pretrained(run / "model")
    before = predict_files(find_runs([trained / "mnli" / "finetune-seed42"]), fill_missing=True)
    after = predict_files(find_runs([run]), fill_missing=True)
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"):
        assert after[name].predictions == before[name].predictions
        assert len(set(after[name].predictions)) > 1


def test_missing_runs_are_all_named_before_anything_is_predicted(call, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "predict_split", lambda *_, **__: pytest.fail("predicted"))
    code, out, err = call("--runs", trained / "mnli" / "finetune-seed42", trained / "cola" / "finetune-seed42")
    assert (code, out) == (2, "")
    assert err.startswith("error: no run for SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv, QNLI.tsv, RTE.tsv, WNLI.tsv: ")
    assert "--fill-missing" in err
    assert list(tmp_path.iterdir()) == []


def test_a_test_set_of_another_size_than_the_official_one_is_refused(call, trained):
    """Although the run was allowed to train on any number of rows."""
    code, _, err = call("--runs", trained / "cola" / "finetune-seed42", "--fill-missing")
    assert code == 2
    assert err.splitlines()[-1] == "error: CoLA.tsv: expected 1063 rows, found 23"


@pytest.mark.parametrize("place", [["{run}", "--fill-missing", "{over}"], ["{run}", "{over}", "--fill-missing"]])
def test_overrides_are_applied_to_each_run_wherever_they_stand(call, trained, place):
    run = trained / "cola" / "finetune-seed42"
    code, _, err = call("--runs", *[part.format(run=run, over="data.path=no-such-folder") for part in place])
    assert code == 2
    assert "no-such-folder" in err.splitlines()[-1]


NO_RUN = "is neither the folder of a finished run nor the model/ folder in one"


@pytest.mark.parametrize("part", ["config.yaml", "results.json", "model"])
def test_a_folder_without_a_finished_run_is_one_sentence(call, trained, tmp_path, part):
    shutil.copytree(trained / "cola" / "finetune-seed42", tmp_path / "run")
    (tmp_path / "run" / part).rename(tmp_path / "elsewhere")
    code, _, err = call("--runs", "run", "--fill-missing")
    assert (code, err) == (2, f"error: run: {NO_RUN}: there is no {part}\n")


def test_a_run_may_be_named_by_its_model(trained):
    run = trained / "cola" / "finetune-seed42"
    assert find_runs([run / "model"]) == find_runs([run])


def test_a_folder_that_is_not_there_is_one_sentence(call):
    assert call("--runs", "no")[::2] == (2, f"error: no: {NO_RUN}: there is no config.yaml\n")


def test_two_runs_of_a_task_are_refused_with_both_names(call, trained):
    run = trained / "cola" / "finetune-seed42"
    code, _, err = call("--runs", run, f"{run}/", "--fill-missing")
    assert (code, err) == (2, f"error: {run} and {run}: two runs of task cola; give one of them\n")


@pytest.mark.parametrize("task", ["toy-sentence", "{name: cola, text: [a], metrics: [f1], files: {train: a.tsv}}"])
def test_a_task_that_is_not_on_the_leaderboard_is_refused(tmp_path, task):
    (tmp_path / "model").mkdir()
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.yaml").write_text(f"task: {task}\n")
    with pytest.raises(RunError, match=r"task (toy-sentence|cola) has no test set on the GLUE leaderboard"):
        find_runs([tmp_path])


def test_the_output_may_not_be_a_folder(call, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Experiment, "predict_split", lambda *_, **__: pytest.fail("predicted"))
    code, _, err = call("--runs", trained / "cola" / "finetune-seed42", "--fill-missing", "--output", tmp_path)
    assert (code, err) == (2, f"error: --output {tmp_path}: cannot be written: it is a folder\n")


def test_check_prints_each_problem_and_ends_with_code_2(call):
    buffer = io.BytesIO()
    zip_of(buffer, {"a": "", "QQP.tsv": "index\tprediction\n"})
    Path("bad.zip").write_bytes(buffer.getvalue())
    code, out, err = call("--check", "bad.zip")
    assert code == 2
    assert len(out.splitlines()) == 12
    assert out.splitlines()[:2] == ["'a' does not belong in a submission", "CoLA.tsv is missing"]
    assert err == "error: bad.zip: 12 problems, as said above\n"


@pytest.mark.parametrize("arguments", [[], ["--check", "a.zip", "--runs", "b"], ["--check", "a.zip", "--fill-missing"]])
def test_options_that_do_not_go_together_are_refused(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2
    assert "usage:" in err
