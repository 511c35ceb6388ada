"""One damaged file of a run: each script says so in a sentence, no table is lost, and a checkpoint is left to go on."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.disk_faults import COMPILER, KILLED, Fault
from tests.helpers.paths import TINY, TINY_TABLE

DISTIL = ("distil", "--config", TINY, "method=finetune", "data.cache_dir=false", "runs_dir=runs")
TABLE = ("table", "--config", TINY_TABLE, "tasks=[toy-sentence]", "seeds=[42]")
TABLE = (*TABLE, "runs_dir=runs", "data.cache_dir=false", "--only-table")
RUN = "toy-sentence/finetune-seed42"
MODEL = f"runs/{RUN}/model"
COMMANDS = {
    "distil": DISTIL,
    "evaluate": ("evaluate", "--model", MODEL, "--split", "dev", "data.cache_dir=false"),
    "report": ("report", "--model", MODEL, "--seconds", "0", "--lengths", "4", "--batch-sizes", "1"),
    "submit": ("submit", "--runs", f"runs/{RUN}", "--fill-missing"),
    "dry run": (*DISTIL, "--dry-run"),
}
CONTENTS = {
    "empty": b"",
    "list": b"[]",
    "list of lists": b"[[], [1]]",
    "null": b"null",
    "number": b"1",
    "text": b'"x"',
    "empty object": b"{}",
    "huge number": b'{"score": 1e999, "seed": -1}',
    "not a number": b"NaN",
    "deep list": b"[" * 50_000 + b"]" * 50_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "NULs": b"\x00" * 500,
    "no UTF-8": b'{"method": "\xff\xfe"}',
    "lone surrogate": b'{"method": "\\ud800"}',
    "long number": b"1" * 5000,
}
FILES = ("results.json", "config.yaml", "environment.json", "metrics.jsonl", "predictions_dev.json")


@pytest.fixture(scope="module")
def finished_runs(script, tmp_path_factory):
    """The runs folder of a finished fine-tuning and of a finished distillation with its teacher."""
    folder = tmp_path_factory.mktemp("finished")
    for method in ("finetune", "kd"):
        assert script(*DISTIL, f"method={method}", cwd=folder).code == 0
    return folder / "runs"


@pytest.fixture
def run(finished_runs, tmp_path):
    """The folder of the finished fine-tuning, a copy of this test's own, in `tmp_path`/runs."""
    shutil.copytree(finished_runs, tmp_path / "runs")
    return tmp_path / "runs" / RUN


def faults(done):
    """What is wrong with how a script took a damaged file; None for nothing."""
    try:
        done.assert_done_or_refused()
    except AssertionError as error:
        return str(error)[-300:]
    return None


def try_all(script, run, cwd, damages, commands):
    """Each damage under each command; the faults are told all at once."""
    wrong = []
    for name, kind, content in damages:
        before = (run / name).read_bytes()
        for command in commands:
            (run / name).write_bytes(content)
            if fault := faults(script(*COMMANDS[command], cwd=cwd, timeout=20)):
                wrong.append(f"{command}, {name}: {kind}: {fault}")
        (run / name).write_bytes(before)
    assert not wrong, "\n".join([f"{len(wrong)} of {len(damages) * len(commands)}", *wrong])


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=pytest.mark.slow) if c == "evaluate" else c for c in COMMANDS]
)
def test_a_damaged_file_of_a_run_is_said_in_a_sentence_by(script, run, tmp_path, command):
    chosen = random.Random(command).sample(sorted(CONTENTS), 3)
    damages = [("results.json", kind, CONTENTS[kind]) for kind in CONTENTS]
    damages += [(name, kind, CONTENTS[kind]) for name in FILES[1:] for kind in chosen]
    try_all(script, run, tmp_path, damages, [command])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_a_file_of_a_run_is_said_in_a_sentence_by_every_script(script, run, tmp_path, name):
    content = (run / name).read_bytes()
    cuts = [(name, f"cut at {at}", content[:at]) for at in range(1, len(content), max(1, len(content) // 20))]
    try_all(script, run, tmp_path, [*cuts, *((name, *damage) for damage in CONTENTS.items())], COMMANDS)


WRONG_TYPES = (None, [], {}, 1, "x", -1e308, [{}], {"dev": None}, {"dev": {"accuracy": "high"}}, {"dev": {}})


def replacements(results, of=()):
    """Every value of results.json replaced by one of another type, and every key left out."""
    for key in results:
        path = ".".join((*of, key))
        yield f"without {path}", {k: v for k, v in results.items() if k != key}
        for value in WRONG_TYPES:
            if type(value) is not type(results[key]):
                yield f"{path} = {json.dumps(value)}", {**results, key: value}
        if isinstance(results[key], dict):
            for what, inner in replacements(results[key], (*of, key)):
                yield what, {**results, key: inner}


def of_other_types(run, number):
    results = json.loads((run / "results.json").read_text())
    every = [("results.json", what, json.dumps(changed).encode()) for what, changed in replacements(results)]
    return random.Random(1).sample(every, number) if number else every


@pytest.mark.parametrize("command", ["distil", "report"])
def test_results_of_another_type_are_said_in_a_sentence_by(script, run, tmp_path, command):
    try_all(script, run, tmp_path, of_other_types(run, 12), [command])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distil", "report"])
def test_results_of_any_other_type_are_said_in_a_sentence_by(script, run, tmp_path, command):
    try_all(script, run, tmp_path, of_other_types(run, 0), [command])


def check_table(script, run, cwd, damages):
    """With each damage to the fine-tuning's results the table still says what the distillation came to."""
    sound = script(*TABLE, cwd=cwd)
    assert sound.code == 0
    assert re.search(r"\| *kd ", sound.out)
    wrong = []
    for name, kind, content in damages:
        (run / name).write_bytes(content)
        done = script(*TABLE, cwd=cwd, timeout=20)
        if done.code != 0 or "Traceback" in done.err or not re.search(r"\| *kd ", done.out):
            wrong.append(f"{name}: {kind}: {done.code} {done.err[-300:]}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(damages)}", *wrong])


def test_a_damaged_results_json_costs_a_table_one_cell(script, run, tmp_path):
    damages = [("results.json", kind, content) for kind, content in CONTENTS.items()]
    check_table(script, run, tmp_path, [*damages, *of_other_types(run, 10)])


@pytest.mark.slow
def test_any_damage_to_a_results_json_costs_a_table_one_cell(script, run, tmp_path):
    check_table(script, run, tmp_path, of_other_types(run, 0))


WALL_CLOCK = re.compile(rb'"(train_seconds|examples_per_second|wall_seconds|peak_memory_bytes)": [^,\n}]+')
EPOCHS = ("train.epochs=3", "checkpoint.every_steps=4")


def contents(run):
    """The files of a finished run, without what differs from run to run."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "environment.json"]
    return {path.relative_to(run).as_posix(): WALL_CLOCK.sub(b"", path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def stopped(script, tmp_path_factory):
    """A folder with `runs`, where a run with two checkpoints has died, and with the same run undisturbed in `whole`."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "whole").mkdir()
    fault = Fault(folder / "whole", trace=folder / "trace")
    assert script(*DISTIL, *EPOCHS, cwd=folder / "whole", fault=fault).code == 0
    lines = [line for line in (folder / "trace").read_text().splitlines() if line.startswith("rename ")]
    (last,) = (at for at, line in enumerate(lines, 1) if line.endswith("/step-00000012"))
    done = script(*DISTIL, *EPOCHS, cwd=folder, fault=Fault(folder / "runs", "rename", at=last, errno=KILLED))
    assert done.code == -9
    checkpoints = sorted(path.name for path in (folder / "runs" / RUN / "checkpoints").iterdir())
    assert checkpoints == ["step-00000008", "step-00000010-evaluated", "step-00000012.new"]
    return folder


def check_flips(script, stopped, folder, names):
    """After one flipped byte in each of the files, alone, the same command goes on and ends as it would have."""
    wrong = []
    for name in names:
        shutil.rmtree(folder, ignore_errors=True)
        # With the links that there are between files.
        shutil.copytree(stopped / "runs", folder / "runs", copy_function=LinkingCopy())
        content = bytearray((folder / "runs" / RUN / name).read_bytes())
        content[len(content) // 3] ^= 1
        with (folder / "runs" / RUN / name).open("r+b") as file:
            file.write(content)
        done = script(*DISTIL, *EPOCHS, cwd=folder)
        if done.code != 0 or "going on from the checkpoint" not in done.err:
            wrong.append(f"{name}: {done.code} {done.err[-300:]}")
        elif contents(folder / "runs" / RUN) != contents(stopped / "whole" / "runs" / RUN):
            wrong.append(f"{name}: ends with other files")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(names)}", *wrong])


class LinkingCopy:
    """Copies files; those that were one file under two names stay one."""

    def __init__(self):
        self.copies = {}

    def __call__(self, source, target):
        inode = Path(source).stat().st_ino
        if inode in self.copies:
            Path(target).hardlink_to(self.copies[inode])
        else:
            self.copies[inode] = shutil.copy2(source, target)


def names_of(stopped):
    run = stopped / "runs" / RUN
    return [
        path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size
    ]


needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@needs_compiler
@pytest.mark.parametrize(
    "part", ["model/", "checkpoints/step-00000008/best", "metrics.jsonl", "environment.json", "config.yaml"]
)
def test_one_flipped_byte_leaves_a_checkpoint_to_go_on_from(script, stopped, tmp_path, part):
    names = [name for name in names_of(stopped) if name.startswith(part)]
    check_flips(script, stopped, tmp_path / "flipped", names[:2])


@needs_compiler
@pytest.mark.slow
def test_one_flipped_byte_in_any_file_leaves_a_checkpoint_to_go_on_from(script, stopped, tmp_path):
    check_flips(script, stopped, tmp_path / "flipped", names_of(stopped))
