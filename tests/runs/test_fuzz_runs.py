"""Whatever lies in a run folder or stands on a command line: a run, or one sentence and exit code 2."""

import json
import os
import runpy
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptile_distil import cli
from tests.helpers.fuzzing import examples
from tests.helpers.paths import ROOT, TINY

SCRIPTS = ("distil", "evaluate", "finetune", "submit")


@pytest.fixture(scope="module")
def mains():
    return {name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))["main"] for name in SCRIPTS}


@pytest.fixture
def call(mains, capsys):
    """Runs a script's main in this process: its exit code and stderr."""

    def call(name, *arguments):
        try:
            code = cli.run(mains[name], list(map(str, arguments)))
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().err

    return call


def assert_refused(code, err):
    """Exit code 2, and the last line says why: argparse prints its usage above it."""
    assert code == 2
    assert "Traceback" not in err
    assert "error: " in err.splitlines()[-1]


@pytest.fixture(scope="module")
def finished(mains, tmp_path_factory):
    """The run folder of a finished fine-tuning."""
    runs = tmp_path_factory.mktemp("finished")
    assert cli.run(mains["distil"], ["--config", str(TINY), f"runs_dir={runs}", "method=finetune"]) == 0
    return runs / "toy-sentence" / "finetune-seed42"


FILES = ("results.json", "config.yaml", "metrics.jsonl", "environment.json", "model")
CONTENTS = [
    b"",
    b"{",
    b"{}",
    b"[]",
    b"null",
    b"3",
    b"\xff\xfe",
    b"\x00" * 50,
    b"[" * 100_000,
    b'{"decisive": 3}',
    b"x" * 10**6,
]
CONTENTS += [
    b'{"decisive": {}}',
    b"task: toy-sentence\n",
    b"task: !!python/object/apply:os.system ['touch executed']\n",
]
damages = st.tuples(
    st.sampled_from(FILES),
    st.sampled_from(["replace", "cut", "remove", "folder", "loop", "outside", "edit"]),
    st.sampled_from(CONTENTS),
    st.integers(0, 10**6),
)


def damage(folder, name, kind, content, position):
    path = folder / name
    old = path.read_bytes() if path.is_file() else b"x"
    if kind == "edit" and name == "results.json":
        results = json.loads(old)
        key = sorted(results)[position % len(results)]
        path.write_text(json.dumps({**results, key: [None, 3, "x", [], {}, {"a": None}][position % 6]}))
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kind == "replace":
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(old[: position % len(old)])
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(name)
    elif kind == "outside":
        path.symlink_to("../../secret")


def check_damaged_run(finished, call, tmp_path, monkeypatch, of_what):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    folder = tmp_path / "runs" / "toy-sentence" / "finetune-seed42"
    shutil.copytree(finished, folder)
    (tmp_path / "runs" / "secret").mkdir()
    (tmp_path / "runs" / "secret" / "letter.txt").write_text("dear")
    damage(folder, *of_what)
    for name, arguments in (
        ("distil", ["--config", TINY, "runs_dir=runs", "method=finetune"]),
        ("evaluate", ["--model", folder / "model", "--split", "dev", "data.max_train_rows=null"]),
        ("submit", ["--runs", folder, "--output", "x.zip"]),
    ):
        code, err = call(name, *arguments)
        if code != 0:
            assert_refused(code, err)
    assert (tmp_path / "runs" / "secret" / "letter.txt").read_text() == "dear"
    assert not (tmp_path / "executed").exists()


@given(damages)
@examples(30)
def test_a_damaged_run_folder_is_run_anew_or_refused(finished, call, tmp_path, monkeypatch, of_what):
    check_damaged_run(finished, call, tmp_path, monkeypatch, of_what)


@pytest.mark.slow
@given(damages)
@examples(500)
def test_five_hundred_damaged_run_folders_are_run_anew_or_refused(finished, call, tmp_path, monkeypatch, of_what):
    check_damaged_run(finished, call, tmp_path, monkeypatch, of_what)


WORDS = [
    "--config",
    str(TINY),
    "--print-config",
    "--overwrite",
    "--model",
    "--split",
    "dev",
    "--predictions",
    "--runs",
    "--check",
]
WORDS += [
    "--output",
    "--fill-missing",
    "--nonsense",
    "-",
    "--",
    "-1",
    "",
    "=",
    "a=b",
    "seed=1",
    "seed=x",
    "train.lr=1e999",
    ".",
]
WORDS += [
    "x" * 300,
    "\udcff",
    "task=\udcff",
    "runs_dir=\n",
    "é=é",
    "@file",
    "/dev/null",
    "nowhere.yaml",
    "teacher",
    "data.path=",
]
words = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=5)


@given(st.sampled_from(SCRIPTS), words)
@examples(300)
def test_nonsense_on_the_command_line_is_refused(call, tmp_path, monkeypatch, name, arguments):
    monkeypatch.chdir(tmp_path)
    # Never a real run: what is left of the arguments cannot be one.
    code, err = call(name, *arguments, "train.no_such_key=1")
    assert code == 0 or (code == 2 and "error: " in err.splitlines()[-1])
    assert "Traceback" not in err
    assert code == 2 or {"--help", "-h"} & set(arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("distil", ["--config", str(TINY), b"task=\xff"]),
        ("evaluate", ["--model", "x" * 300]),
        (
            "evaluate",
            ["--config", str(TINY), "--model", "m", "--split", "dev", "--predictions", "no/such/folder/x.tsv"],
        ),
        ("submit", ["--check", "/dev/null"]),
    ],
)
def test_as_a_process_nonsense_is_one_sentence_and_exit_code_2(tmp_path, name, arguments):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert_refused(done.returncode, done.stderr)
