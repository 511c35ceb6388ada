"""Several processes, other file systems, clocks and people at work in the same folders as a run."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.helpers.disk_faults import COMPILER, KILLED, PAUSED, Fault
from tests.helpers.paths import ROOT, TINY, TINY_TABLE

DISTIL = ("distil", "--config", TINY, "data.cache_dir=false", "runs_dir=runs")
TABLE = ("table", "--config", TINY_TABLE, "tasks=[toy-sentence]", "runs_dir=runs")
TABLE = (*TABLE, "data.cache_dir=false", "--only-runs")
TASK = Path("runs/toy-sentence")
RUN = TASK / "finetune-seed42"

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@contextlib.contextmanager
def held(script, folder, seconds=0.0):
    """Holds the lock of a run folder, as a process that runs in it, until the script has said that it waits."""
    lock = folder.with_name(f".{folder.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    script.err.write_text("")

    def release_when_waited_for():
        for _ in range(3000):
            if ended.wait(0.01) or "waiting for" in script.err.read_text():
                break
        ended.wait(seconds)
        file.close()

    ended = threading.Event()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=release_when_waited_for)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def test_a_student_waits_for_its_teacher_that_another_process_is_training_and_says_so(script, tmp_path):
    with held(script, tmp_path / TASK / "teacher-seed42"):
        done = script(*DISTIL, "method=kd", cwd=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"waiting for .*teacher-seed42", done.err)


def test_a_student_whose_folder_another_process_has_is_refused(script, tmp_path):
    with held(script, tmp_path / RUN):
        script(*DISTIL, "method=finetune", cwd=tmp_path).assert_refused("another process is running", RUN)


@pytest.mark.parametrize("row", ["teacher", "kd", "finetune"])
def test_a_worker_of_a_table_that_waits_says_for_which_folder(script, tmp_path, row):
    with held(script, tmp_path / TASK / f"{row}-seed1"):
        done = script(*TABLE, cwd=tmp_path)
    assert done.code == 0, done.err
    waiting = [line for line in done.err.splitlines() if "waiting" in line and f"{row}-seed1" in line]
    assert len(waiting) == 1, done.err


@pytest.mark.slow
def test_of_several_methods_started_at_once_each_ends_its_run(tmp_path):
    methods = ("kd", "reptile", "metadistil")
    arguments = [str(value) for value in DISTIL[1:]]
    command = [sys.executable, str(ROOT / "scripts" / "distil.py"), *arguments, "train.micro_batch_size=null"]
    runs = [
        subprocess.Popen([*command, f"method={method}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for method in methods
    ]
    said = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], said
    assert sum(len(re.findall("^fine-tuning the teacher", text, flags=re.MULTILINE)) for text in said) == 1


NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


@needs_compiler
@pytest.mark.parametrize("number", NO_LOCKS, ids=lambda number: errno.errorcode[number])
def test_a_file_system_without_locks_is_one_sentence_and_no_lock_stays_behind(script, tmp_path, number):
    fault = Fault(tmp_path, "lock", at=1, errno=number, stays=True)
    for _ in range(2):
        done = script(*DISTIL, "method=finetune", cwd=tmp_path, fault=fault)
        done.assert_refused(RUN, "lock")
        assert len(done.err.splitlines()) == 2, "what starts, and the sentence"
    assert script(*DISTIL, "method=finetune", cwd=tmp_path).code == 0


@pytest.fixture(scope="module")
def finished_runs(script, tmp_path_factory):
    """The folder `runs` of a finished fine-tuning with its checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    keep = ("checkpoint.keep_when_finished=true", "checkpoint.every_steps=2")
    assert script(*DISTIL, "method=finetune", *keep, cwd=folder).code == 0
    return folder / "runs"


@pytest.fixture
def finished(finished_runs, tmp_path):
    """A copy of this test's own: the run's folder."""
    shutil.copytree(finished_runs, tmp_path / "runs")
    return tmp_path / RUN


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints.old", ".old-checkpoints"])
def test_checkpoints_that_a_finished_run_died_over_are_removed_when_it_is_looked_at(script, finished, tmp_path, name):
    config = (finished / "config.yaml").read_text()
    assert "keep_when_finished: true" in config
    (finished / "config.yaml").write_text(config.replace("keep_when_finished: true", "keep_when_finished: false"))
    (finished / "checkpoints").rename(finished / name)
    done = script(*DISTIL, "method=finetune", cwd=tmp_path)
    assert done.code == 0
    assert "is finished" in done.err
    assert not [path.name for path in finished.iterdir() if "checkpoints" in path.name]


@pytest.mark.parametrize("option", ["checkpoint.keep_when_finished=true", "checkpoint.keep_when_finished=false"])
def test_checkpoints_that_are_to_stay_stay_when_a_finished_run_is_looked_at(script, finished, tmp_path, option):
    """Where that was said when the run was made, it need not be said again."""
    assert script(*DISTIL, "method=finetune", option, cwd=tmp_path).code == 0
    assert list((finished / "checkpoints").iterdir())


@needs_compiler
@pytest.mark.parametrize("operation", ["rename", "unlink", "rmdir"])
def test_checkpoints_of_a_finished_run_that_cannot_be_removed_cost_a_warning(script, tmp_path, operation):
    trace = tmp_path / "trace"
    fault = Fault(tmp_path / "runs", trace=trace)
    assert script(*DISTIL, "method=finetune", cwd=tmp_path, fault=fault).code == 0
    lines = trace.read_text().splitlines()
    (end,) = (number for number, line in enumerate(lines) if line == f"rename {tmp_path / RUN}/results.json")
    at = 1 + sum(line.startswith(f"{operation} ") for line in lines[: end + 1])
    shutil.rmtree(tmp_path / "runs")
    fault = Fault(tmp_path / "runs", operation, at=at, errno=errno.EACCES, stays=True)
    done = script(*DISTIL, "method=finetune", cwd=tmp_path, fault=fault)
    assert done.code == 0, done.err
    assert re.search(rf"{RUN}\S*checkpoints", done.err)
    assert script(*DISTIL, "method=finetune", cwd=tmp_path).code == 0
    assert not [path.name for path in (tmp_path / RUN).iterdir() if "checkpoints" in path.name]


def test_looking_at_a_finished_cell_costs_less_than_a_twentieth_of_a_second(script, tmp_path):
    few, many = ("seeds=[1]", f"seeds={list(range(1, 9))}")
    table = (*TABLE, "methods=[finetune]")
    assert script(*table, many, cwd=tmp_path).code == 0
    seconds = [min(script(*table, seeds, cwd=tmp_path).cpu_seconds for _ in range(3)) for seeds in (few, many)]
    assert (seconds[1] - seconds[0]) / 7 < 0.05


def test_a_worker_that_waits_costs_little(script, tmp_path):
    table = (*TABLE, "methods=[finetune]", "seeds=[1,2]")
    assert script(*table, cwd=tmp_path).code == 0
    whole = script(*table, cwd=tmp_path).cpu_seconds
    shutil.rmtree(tmp_path / TASK / "finetune-seed1")
    run = script(*table, cwd=tmp_path).cpu_seconds
    shutil.rmtree(tmp_path / TASK / "finetune-seed1")
    with held(script, tmp_path / TASK / "finetune-seed1", seconds=5):
        waited = script(*table, cwd=tmp_path)
    assert waited.code == 0
    assert waited.seconds > 5
    assert waited.cpu_seconds < max(whole, run) + 0.5


@pytest.fixture(scope="module")
def operations(script, tmp_path_factory):
    """The lines of a run's operations on the disk."""
    folder = tmp_path_factory.mktemp("traced")
    options = ("method=finetune", "checkpoint.every_steps=2", "train.epochs=2")
    fault = Fault(folder / "runs", trace=folder / "trace")
    assert script(*DISTIL, *options, cwd=folder, fault=fault).code == 0
    return (folder / "trace").read_text().replace(f" {folder}/", " ").splitlines()


def assert_in_order(lines, *wanted):
    """The wanted lines are there, each after the one before it."""
    rest = iter(lines)
    for line in wanted:
        assert line in rest, f"no {line!r}, or not after {wanted[: wanted.index(line)]}"


@needs_compiler
def test_a_model_is_on_the_disk_before_it_replaces_the_one_before(operations):
    replaced = operations.index(f"rename {RUN}/model")
    before, after = operations[:replaced], operations[replaced:]
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    missing = [file for file in files if f"fsync {RUN}/model.new/{file}" not in before]
    assert not missing
    assert f"fsync {RUN}/model.new" in before
    assert f"fsync {RUN}" in after[: after.index(f"mkdir {RUN}/checkpoints/step-00000005-evaluated.new")]


@needs_compiler
@pytest.mark.parametrize(
    ("made", "parent"),
    [(f"mkdir {RUN}", TASK), (f"mkdir {TASK}", "runs"), (f"mkdir {RUN}/checkpoints", RUN)],
)
def test_the_entry_of_a_new_folder_is_on_the_disk_before_anything_counts_on_it(operations, made, parent):
    first = operations.index(f"rename {RUN}/checkpoints/step-00000002")
    assert f"fsync {parent}" in operations[operations.index(made) : first]


@needs_compiler
def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(operations):
    new, name = f"{RUN}/checkpoints/step-00000002.new", f"{RUN}/checkpoints/step-00000002"
    for file in ("state.json", "tensors.safetensors", "metrics.jsonl", "manifest.json"):
        order = (f"fsync {new}/{file}", f"fsync {new}", f"rename {name}", f"fsync {RUN}/checkpoints")
        assert_in_order(operations, *order)


PLACES = ("checkpoints/step-00000004", "predictions_dev.json", "results.json")
STEPS = ("method=finetune", "checkpoint.every_steps=2")


def pause_at(script, folder, place, act, **options):
    """Runs the run in `folder`, acting just before `place` in it gets its name."""
    trace = folder / "trace"
    fault = Fault(folder / "runs", trace=trace)
    assert script(*DISTIL, *STEPS, cwd=folder, fault=fault, **options).code == 0
    names = [line for line in trace.read_text().splitlines() if line.startswith("rename ")]
    at = 1 + names.index(f"rename {folder / RUN}/{place}")
    (folder / "runs").rename(folder / "whole")
    fault = Fault(folder / "runs", "rename", at=at, errno=PAUSED)
    return script(*DISTIL, *STEPS, cwd=folder, fault=fault, while_paused=act, **options)


@needs_compiler
@pytest.mark.parametrize("place", PLACES)
def test_a_run_folder_moved_while_it_runs_is_a_sentence_and_moved_back_it_goes_on(script, tmp_path, place):
    moved = tmp_path / "moved"
    done = pause_at(script, tmp_path, place, lambda: (tmp_path / RUN).rename(moved))
    done.assert_refused(RUN)
    assert not (tmp_path / RUN).exists()
    moved.rename(tmp_path / RUN)
    again = script(*DISTIL, *STEPS, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "going on from the checkpoint" in again.err
    for name in ("model/model.safetensors", "metrics.jsonl", "predictions_dev.json"):
        ours, theirs = (
            untimed((tmp_path / runs / RUN.relative_to("runs") / name).read_bytes()) for runs in ("runs", "whole")
        )
        assert ours == theirs


def untimed(content):
    return re.sub(rb'"(train_seconds|examples_per_second)": [^,\n}]+', b"", content)


ROWS = [f"the film was {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}\n" for i in range(20)]


@needs_compiler
@pytest.mark.parametrize("name", ["train.csv", "dev.csv"])
def test_a_data_file_replaced_while_a_run_is_on_is_told_when_the_run_is_looked_at(script, tmp_path, name):
    """The results must not vouch for a file that they do not come from."""
    for file, rows in (("train.csv", ROWS), ("dev.csv", ROWS[:4])):
        (tmp_path / file).write_text("text,label\n" + "".join(rows))
    files = "{train: train.csv, dev: dev.csv}"
    task = f"task={{name: films, text: [text], labels: [no, yes], metrics: [accuracy], files: {files}}}"
    command = (*DISTIL, "method=finetune", task, "data.path=.", "data.max_train_rows=null")

    def replace():
        (tmp_path / name).write_text("text,label\n" + "".join(reversed(ROWS[:6])))

    # The rows have been read by then, and the first file of the run folder is being written.
    fault = Fault(tmp_path / "runs", "rename", at=1, errno=PAUSED)
    done = script(*command, cwd=tmp_path, fault=fault, while_paused=replace)
    if done.code == 0:
        done = script(*command, cwd=tmp_path)
    done.assert_refused("has changed")


@needs_compiler
@pytest.mark.parametrize("when", [0, 4e9], ids=["1970", "2096"])
def test_a_clock_that_was_wrong_keeps_no_run_from_going_on(script, tmp_path, when):
    fault = Fault(tmp_path / "runs", "rename", at=6, errno=KILLED)
    assert script(*DISTIL, *STEPS, cwd=tmp_path, fault=fault).code == -9
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (when, when))
    done = script(*DISTIL, *STEPS, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "going on from the checkpoint" in done.err
    for path in (tmp_path / "runs").rglob("*"):
        os.utime(path, (when, when))
    assert "is finished" in script(*DISTIL, *STEPS, cwd=tmp_path).err
