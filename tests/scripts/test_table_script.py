"""scripts/table.py as users run it: one worker, two at once, killed and started again, and cells that fail."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, TINY_TABLE

CELLS = {f"toy-{task} {row} seed 1" for task in ("sentence", "regression") for row in ("teacher", "finetune", "kd")}


def environment():
    """Of a process, which is guarded as this one is."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": path}


def start(runs, *arguments):
    """A worker, as a process of its own."""
    command = [sys.executable, "scripts/table.py", "--config", str(TINY_TABLE), f"runs_dir={runs}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run_here(stderr):
    """The cells that a worker ran itself: those for which it tells seconds."""
    return re.findall(r"^\[\d+/\d+\] (.+): \S+ \(\d+\.\d s\)$", stderr, flags=re.MULTILINE)


def untimed(runs):
    """A table's files without what is measured in milliseconds."""
    lines = list(csv.DictReader((runs / "table.csv").read_text().splitlines()))
    markdown = (runs / "table.md").read_text().split("\n\n")
    scores = [line.split("|")[:-3] for line in markdown[0].splitlines()]
    return [line for line in lines if not line["metric"].startswith("speedup")], scores, markdown[1:]


@pytest.fixture(scope="module")
def by_two_workers(tmp_path_factory):
    """The folder of a table, and what each of two workers said that were started at once."""
    runs = tmp_path_factory.mktemp("two") / "runs"
    workers = [start(runs), start(runs)]
    said = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    return runs, said


def test_two_workers_at_once_run_each_cell_exactly_once(by_two_workers):
    runs, said = by_two_workers
    ran = [run_here(stderr) for _, stderr in said]
    assert sorted(ran[0] + ran[1]) == sorted(CELLS)
    assert {path.parent.parent.name for path in runs.glob("*/*/results.json")} == {"toy-sentence", "toy-regression"}
    for own, (_, stderr) in zip(ran, said, strict=True):
        assert f"6 cells: {len(own)} run, {6 - len(own)} already finished, 0 failed" in stderr


def test_both_workers_end_in_the_same_four_files(by_two_workers):
    runs, said = by_two_workers
    assert said[0][0] == said[1][0] == (runs / "table.md").read_text()
    files = sorted(path.name for path in runs.iterdir() if path.is_file())
    assert files == ["table-epochs.csv", "table.csv", "table.md", "table.tex"]


def test_after_kill_9_no_finished_cell_runs_again_and_the_table_is_the_same(by_two_workers, call, tmp_path, caplog):
    whole, _ = by_two_workers
    runs = tmp_path / "runs"
    worker = start(runs, "--only-runs")
    while len(list(runs.glob("*/*/results.json"))) < 3:
        assert worker.poll() is None, worker.communicate()
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in runs.glob("*/*/results.json")}
    assert 3 <= len(before) < 6
    caplog.set_level("INFO", logger="reptile_distil")
    code, _, stderr = call("table", config=TINY_TABLE)
    assert code == 0, stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    finished = {f"{path.parts[-3]} {path.parts[-2].replace('-', ' ').replace('seed', 'seed ')}" for path in before}
    assert set(run_here("\n".join(caplog.messages))) == CELLS - finished
    assert untimed(runs) == untimed(whole)


def test_the_pictures_are_drawn_beside_the_table_and_named_in_one_line(by_two_workers, call, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("reptile_distil.tables.pictures.can_draw", lambda: True)
    runs, _ = by_two_workers
    code, out, err = call("table", "--only-table", f"runs_dir={runs}", f"output={tmp_path}/mine", config=TINY_TABLE)
    names = [f"{tmp_path}/mine-{name}.png" for name in ("scores", "time", "curves")]
    assert (code, out) == (0, (runs / "table.md").read_text())
    assert err.splitlines()[1:] == [f"drawn: {', '.join(names)}"]
    assert all(Path(name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert len(list(tmp_path.iterdir())) == 7


def test_without_matplotlib_one_hint_says_what_pictures_need(by_two_workers):
    _, said = by_two_workers
    for _, stderr in said:
        assert stderr.count("no pictures: they need pip install 'reptile-distil[plots]'") == 1


def test_without_a_finished_run_nothing_is_drawn_and_nothing_said_of_it(call, tmp_path, monkeypatch):
    monkeypatch.setattr("reptile_distil.tables.pictures.can_draw", lambda: True)
    code, _, err = call("table", "--only-table", config=TINY_TABLE)
    assert (code, err) == (0, f"written to {tmp_path}/runs/table.md, .tex, .csv and -epochs.csv\n")


def test_printed_commands_run_as_printed_in_any_order(call, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/table.py"])
    overrides = ["tasks=[toy-sentence]", "methods=[kd]", "train.lr=2e-3", "data.max_train_rows=64"]
    code, out, _ = call("table", "--print-commands", *overrides, config=TINY_TABLE)
    assert code == 0
    assert not (tmp_path / "runs").exists()
    teacher, student = out.splitlines()
    done = subprocess.run(
        ["bash", "-c", student], cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "2 cells: 2 run, 0 already finished, 0 failed" in done.stderr
    assert shlex.split(teacher)[:4] == ["python", "scripts/table.py", "--config", str(TINY_TABLE)]
    code, _, err = call("table", *shlex.split(teacher)[4:], config=TINY_TABLE)
    assert (code, err) == (0, "1 cell: 0 run, 1 already finished, 0 failed\n")
    decisive = json.loads((tmp_path / "runs/toy-sentence/kd-seed1/results.json").read_text())["decisive"]
    assert (decisive["train.lr"], decisive["data.max_train_rows"]) == (2e-3, 64)
    assert not (tmp_path / "runs/table.md").exists()


def test_a_failing_cell_is_named_the_others_are_done_and_the_exit_code_is_1(call, tmp_path):
    variant = "variants.deep={method: kd, student: {num_layers: 5}}"  # the teacher has 2 layers
    code, out, err = call("table", "tasks=[toy-sentence]", "methods=[deep, finetune]", variant, config=TINY_TABLE)
    assert code == 1
    file = tmp_path / "runs/toy-sentence/failed-deep-seed1.txt"
    (line,) = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: toy-sentence deep seed 1: ")
    assert line.endswith(f"(traceback in {file})")
    assert "Traceback" in file.read_text()
    assert "3 cells: 2 run, 0 already finished, 1 failed" in err
    assert re.search(r"^\| deep +\| +- \(n=0 of 1\) \|", out, flags=re.MULTILINE)
    assert "Not in the table: toy-sentence deep seed 1: not finished." in out
    code, out, err = call("table", "--only-table", "tasks=[toy-sentence]", "methods=[deep]", variant, config=TINY_TABLE)
    assert code == 0
    assert "cells:" not in err


def test_only_table_runs_nothing_and_shows_what_is_missing(call, tmp_path):
    code, out, _ = call("table", "--only-table", f"output={tmp_path}/elsewhere/mine", config=TINY_TABLE)
    assert code == 0
    assert not (tmp_path / "runs").exists()
    assert out.count("- (n=0 of 1)") == 3 * (2 + 1)  # rows * (tasks and their mean)
    files = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    assert files == ["mine-epochs.csv", "mine.csv", "mine.md", "mine.tex"]


def test_a_bad_configuration_is_one_sentence_and_exit_code_2(call):
    code, _, err = call("table", "metods=[kd]", config=TINY_TABLE)
    assert (code, err) == (2, "error: command line: unknown key 'metods'; did you mean 'methods'?\n")


def test_print_config_prints_a_table_that_loads_and_runs_nothing(call, tmp_path):
    code, out, _ = call("table", "--print-config", "seeds=[4]", config=TINY_TABLE)
    assert code == 0
    (tmp_path / "printed.yaml").write_text(out)
    code, again, _ = call("table", "--print-config", config=tmp_path / "printed.yaml")
    assert (code, again) == (0, out)
    assert "seeds: [4]" in out
