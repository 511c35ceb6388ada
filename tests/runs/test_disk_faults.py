"""A disk that fails or a machine that dies, at any moment of a run: one sentence, and the same command ends the run."""

import random
import re
import shutil

import pytest

from tests.helpers.disk_faults import COMPILER, FAULTS, KILLED, Fault
from tests.helpers.paths import TINY

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

WALL_CLOCK = re.compile(
    rb'"(train_seconds|examples_per_second|wall_seconds|peak_memory_bytes|teacher_ms|student_ms|rounds)": [^,\n}]+'
)
"""All that may differ between a run that was disturbed and one that was not."""

ROWS = [f"the film was {'good' if i % 2 else 'bad'},{i % 2}.5\n" for i in range(16)]
TASK = "{name: films, text: [text], metrics: [pearson], files: {train: train.csv, dev: dev.csv}}"
RUN = "films/finetune-seed1"


@pytest.fixture(scope="module")
def distil(script, tmp_path_factory):
    """Runs in `folder`, on a disk with a fault: 2 epochs of 4 steps, and the second one's model is better."""
    data = tmp_path_factory.mktemp("data")
    for name, rows in (("train.csv", ROWS), ("dev.csv", ROWS[:4])):
        (data / name).write_text("text,label\n" + "".join(rows))
    options = ["--config", TINY, "method=finetune", "seed=1", f"task={TASK}", f"data.path={data}"]
    options += ["data.max_train_rows=null", "train.batch_size=4", "train.epochs=2", "train.lr=1e-2"]
    options += ["checkpoint.every_steps=3", "data.cache_dir=false"]

    def distil(folder, **fault):
        return script("distil", *options, f"runs_dir={folder}", fault=Fault(folder, **fault))

    return distil


@pytest.fixture(scope="module")
def undisturbed(distil, tmp_path_factory):
    """What an undisturbed run leaves, and the operations on the disk that it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = distil(folder / "runs", trace=folder / "trace")
    assert (done.code, done.err.count("\nepoch ")) == (0, 2)
    lines = (folder / "trace").read_text().splitlines()
    assert any("model.old" in line for line in lines)
    return contents(folder / "runs"), [name for line in lines if (name := line.split()[0]) in FAULTS]


def contents(folder):
    """Every file below a folder and what is in it, without what differs from run to run."""
    return {
        path.relative_to(folder).as_posix(): WALL_CLOCK.sub(b"", path.read_bytes()).replace(bytes(folder), b"")
        if path.is_file() and path.name != "environment.json"
        else b""
        for path in sorted(folder.rglob("*"))
    }


def faults_of_a_sentence(done, folder):
    """What is wrong with how a run ended that a fault has hit."""
    if "Traceback" in done.err or done.code not in (0, 2):
        return f"exit code {done.code}: {done.err[-300:]}"
    *_, last = ["", *done.err.splitlines()]
    if done.code == 2 and not (last.startswith("error: ") and str(folder) in last):
        return f"no sentence with the full path: {last}"
    return None


def disturb(distil, undisturbed, folder, **fault):
    """What is wrong with a run on such a disk, or with the same command on a sound one afterwards; None: nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    hit = distil(folder, **fault)
    killed = fault["errno"] == KILLED
    wrong = [(None if hit.code == -9 else f"not killed: {hit}") if killed else faults_of_a_sentence(hit, folder)]
    again = distil(folder)
    if again.code != 0:
        wrong.append(f"the same command fails: {again.err[-300:]}")
    else:
        wrong += differences(contents(folder), undisturbed[0])
    wrong = [fault for fault in wrong if fault]
    return f"{fault}: {'; '.join(wrong)}" if wrong else None


def differences(left, expected):
    """What a run has left that an undisturbed one has not, what it has not, and what is not the same."""
    names = {
        "left behind": left.keys() - expected.keys(),
        "missing": expected.keys() - left.keys(),
        "not the same": {name for name in left.keys() & expected.keys() if left[name] != expected[name]},
    }
    return [f"{what}: {sorted(found)[:3]}" for what, found in names.items() if found]


def test_the_undisturbed_run_takes_every_operation_and_leaves_what_is_compared(undisturbed):
    files, operations = undisturbed
    assert set(operations) == set(FAULTS)
    expected = "config.yaml environment.json metrics.jsonl model predictions_dev.json results.json"
    assert {name.split("/")[2] for name in files if name.startswith(f"{RUN}/")} == set(expected.split())
    assert {f"{RUN}/model/model.safetensors", f"{RUN}/model/tokenizer.json"} <= files.keys()


@pytest.mark.parametrize("operation", FAULTS)
def test_one_failed_operation_costs_a_sentence_and_the_same_command_ends_the_run(
    distil, undisturbed, tmp_path, operation
):
    at = random.Random(operation).randint(1, undisturbed[1].count(operation))
    fault = {"operation": operation, "at": at, "errno": FAULTS[operation]}
    assert disturb(distil, undisturbed, tmp_path / "runs", **fault) is None


@pytest.mark.parametrize("part", [0.02, 0.4, 0.97])
def test_killed_within_an_operation_the_same_command_ends_the_run(distil, undisturbed, tmp_path, part):
    at = int(part * len(undisturbed[1]))
    assert disturb(distil, undisturbed, tmp_path / "runs", at=at, errno=KILLED) is None


def test_a_disk_that_stays_full_costs_a_sentence_and_with_room_the_same_command_ends_the_run(
    distil, undisturbed, tmp_path
):
    at = undisturbed[1].count("write") // 2
    fault = {"operation": "write", "at": at, "errno": FAULTS["write"], "stays": True}
    assert disturb(distil, undisturbed, tmp_path / "runs", **fault) is None


def check_all(distil, undisturbed, folder, faults):
    """Every one of the faults; they are told all at once."""
    wrong = [fault for of in faults if (fault := disturb(distil, undisturbed, folder, **of))]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(faults)}", *wrong])


@pytest.mark.slow
@pytest.mark.parametrize("operation", [*FAULTS, "write from then on"])
def test_any_failed_operation_costs_a_sentence_and_the_same_command_ends_the_run(
    distil, undisturbed, tmp_path, operation
):
    name, _, stays = operation.partition(" ")
    fault = {"operation": name, "errno": FAULTS[name], "stays": bool(stays)}
    moments = range(1, undisturbed[1].count(name) + 1)
    check_all(distil, undisturbed, tmp_path / "runs", [{**fault, "at": at} for at in moments])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_killed_within_any_operation_the_same_command_ends_the_run(distil, undisturbed, tmp_path, part):
    moments = range(1 + part, len(undisturbed[1]) + 1, 4)
    check_all(distil, undisturbed, tmp_path / "runs", [{"at": at, "errno": KILLED} for at in moments])
