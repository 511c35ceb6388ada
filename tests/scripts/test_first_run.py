"""The first run on a new machine, and all that a cache may hold at a later one: as a user runs it, against a hub."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import huggingface_hub
import pytest

from tests.helpers import repositories
from tests.helpers.hub import Hub, may_be_asked
from tests.helpers.paths import ROOT

TEACHER, STUDENT, DATA = "google-bert/bert-base-uncased", "huawei-noah/TinyBERT_General_6L_768D", "nyu-mll/glue"
READ_OF_TEACHER = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
READ_OF_STUDENT = ["config.json", "pytorch_model.bin", "vocab.txt"]
READ_OF_DATA = [f"rte/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
SHORT = ("data.max_length=32", "data.max_train_rows=16", "teacher.train.max_steps=1")


class Machine:
    """A hub, and a home whose cache is empty at first."""

    def __init__(self, hub, home):
        self.hub, self.home = hub, home

    @property
    def cache(self):
        return self.home / "hub"

    def environment(self, **changes):
        ours = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.address, "HF_HUB_OFFLINE": "0"}
        # A script that another test called in this process has set it for a file.
        inherited = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
        return {**inherited, **ours, **changes}

    def command(self, script, *overrides, task="rte"):
        runs = f"runs_dir={self.home}/runs"
        config = ROOT / "configs" / f"{task}.yaml"
        options = (runs, *SHORT, *(["train.max_steps=1"] if script == "distil" else []), *overrides)
        return [sys.executable, ROOT / "scripts" / f"{script}.py", "--config", config, *options]

    def finetune(self, *overrides, task="rte", **environment):
        """Exit code and stderr of the teacher's fine-tuning, which needs one model and one data set."""
        command = self.command("finetune", "--overwrite", *overrides, task=task)
        return self.run(command, **environment)

    def run(self, command, **environment):
        self.hub.requests.clear()
        environment = self.environment(**environment)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.home, check=False)
        return done.returncode, done.stderr

    def keep(self, name, files, kind="model"):
        """Puts these files of a repository's newest revision into the cache, as a client does that needs no other."""
        for file in files:
            huggingface_hub.hf_hub_download(name, file, repo_type=kind, cache_dir=self.cache)

    def keep_whole(self, name, kind="model"):
        """Puts a whole repository into the cache, as `hf download` does."""
        return Path(huggingface_hub.snapshot_download(name, repo_type=kind, cache_dir=self.cache))


@pytest.fixture
def hub(monkeypatch):
    """The three repositories of configs/rte.yaml, which this process may ask too."""
    with Hub() as hub:
        may_be_asked(hub, monkeypatch)
        hub.publish(TEACHER, repositories.bert())
        hub.publish(STUDENT, repositories.tinybert())
        hub.publish(DATA, repositories.glue("rte", "mnli"), kind="datasets")
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def machine(hub, tmp_path):
    return Machine(hub, tmp_path)


@pytest.fixture
def supplied(machine):
    """A machine with the whole data set in its cache, whose runs lack a model alone."""
    machine.keep_whole(DATA, "dataset")
    return machine


def mostly_slow(first, *others):
    """Parameters of which the first alone is tried in every run of the tests: each is a run of seconds."""
    return [first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


def without_the_hub(machine, how):
    """The environment of a run that cannot ask the hub, or may not."""
    if how == "gone":
        machine.hub.stop()
        return {}
    return {how: "1"}


# From nothing


def test_from_an_empty_cache_distil_runs_and_downloads_each_file_once(machine):
    command = machine.command("distil", "reptile.layer_map=[1]")
    code, log = machine.run(command)
    assert code == 0, log
    assert "Fetching" not in log  # a bar in a file is a line for each of its steps
    assert sorted(machine.hub.sent()) == sorted([*READ_OF_TEACHER, *READ_OF_STUDENT, *READ_OF_DATA])


@pytest.mark.parametrize("how", mostly_slow("gone", None, "HF_HUB_OFFLINE"))
def test_a_second_run_downloads_nothing_and_needs_no_hub(machine, how):
    assert machine.finetune()[0] == 0
    environment = without_the_hub(machine, how) if how else {}
    assert machine.finetune(**environment)[0] == 0
    assert machine.hub.sent() == []


@pytest.mark.parametrize("is_cached", mostly_slow(False, True))
def test_a_data_set_is_one_line_of_the_log(machine, is_cached):
    if is_cached:
        machine.keep_whole(DATA, "dataset")
    _, log = machine.finetune("data.check_rows=false", task="mnli")
    lines = [line for line in log.splitlines() if "glue" in line.lower()]
    assert len(lines) == 1, log


def test_a_download_shows_its_progress_on_a_terminal(supplied):
    reading, writing = pty.openpty()
    termios.tcsetwinsize(writing, (24, 100))
    command, environment = supplied.command("finetune"), supplied.environment()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=writing, env=environment) as process:
        os.close(writing)
        shown = b""
        try:
            while part := os.read(reading, 65536):
                shown += part
        except OSError:  # the terminal's other end is closed
            pass
    os.close(reading)
    assert process.returncode == 0
    assert f"Fetching {len(READ_OF_TEACHER)} files: 100%".encode() in shown


@pytest.mark.slow
def test_code_in_a_repository_is_never_downloaded(supplied):
    files = {**repositories.bert(), "modeling.py": b"raise SystemExit(7)", "more/tool.py": b""}
    supplied.hub.publish(TEACHER, files)
    assert supplied.finetune()[0] == 0
    assert sorted(supplied.hub.sent()) == READ_OF_TEACHER


@pytest.mark.slow
def test_weights_in_several_files_are_all_downloaded(supplied):
    supplied.hub.publish(TEACHER, repositories.sharded_bert())
    assert supplied.finetune()[0] == 0


# A model that is there in part


PARTS = [
    ["config.json", "model.safetensors"],  # what loading the model alone leaves
    ["config.json"],
    ["tokenizer_config.json", "vocab.txt", "tokenizer.json"],
    ["config.json", "model.safetensors", "vocab.txt"],
]


@pytest.mark.parametrize("part", mostly_slow(*PARTS), ids=",".join)
def test_a_model_that_is_there_in_part_is_completed(supplied, part):
    supplied.keep(TEACHER, part)
    assert supplied.finetune()[0] == 0
    assert sorted(supplied.hub.sent()) == sorted(set(READ_OF_TEACHER) - set(part))


@pytest.mark.slow
def test_a_student_whose_weights_are_there_alone_is_completed(supplied):
    supplied.keep(STUDENT, ["config.json", "pytorch_model.bin"])
    assert supplied.finetune(f"teacher.pretrained={STUDENT}")[0] == 0
    assert supplied.hub.sent() == ["vocab.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("part", [["config.json", "model.safetensors"], ["config.json"], []], ids=",".join)
def test_without_the_hub_a_model_that_is_there_in_part_is_one_sentence(supplied, part):
    supplied.keep(TEACHER, part)
    code, log = supplied.finetune(HF_HUB_OFFLINE="1")
    assert code == 2
    assert log.splitlines()[-1].startswith(f"error: {TEACHER}: neither a folder here nor usable in the local cache")
    assert "has no vocabulary" not in log


@pytest.mark.slow
def test_a_download_that_breaks_off_is_one_sentence_and_the_next_run_goes_on(supplied):
    supplied.hub.cut("model.safetensors", at=20_000, times=99)
    code, log = supplied.finetune()
    assert (code, log.splitlines()[-1][:6]) == (2, "error:")
    supplied.hub.cuts.clear()
    assert supplied.finetune()[0] == 0
    assert supplied.hub.sent() == ["model.safetensors"]


@pytest.mark.slow
def test_a_download_that_breaks_off_once_goes_on_by_itself(supplied):
    supplied.hub.cut("model.safetensors", at=20_000)
    assert supplied.finetune()[0] == 0


@pytest.mark.slow
def test_a_newer_revision_that_is_there_in_part_is_completed(supplied):
    supplied.keep_whole(TEACHER)
    newer = supplied.hub.publish(TEACHER, repositories.bert(seed=5))
    supplied.keep(TEACHER, ["config.json"])
    assert supplied.finetune()[0] == 0
    (folder,) = supplied.cache.glob(f"models--*/snapshots/{newer}")
    assert (folder / "model.safetensors").read_bytes() == repositories.bert(seed=5)["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "gone"])
def test_without_the_hub_an_older_revision_that_is_whole_is_used(supplied, how):
    older = supplied.keep_whole(TEACHER)
    supplied.hub.publish(TEACHER, repositories.bert(seed=5))
    supplied.keep(TEACHER, ["config.json"])
    code, log = supplied.finetune(**without_the_hub(supplied, how))
    assert code == 0
    assert f"{TEACHER}: the newest revision in the cache is not whole, so this one is used: {older}" in log


@pytest.mark.slow
def test_a_newer_revision_on_the_hub_changes_nothing_for_who_has_a_whole_one(supplied):
    supplied.keep_whole(TEACHER)
    supplied.hub.publish(TEACHER, repositories.bert(seed=5))
    assert supplied.finetune()[0] == 0
    assert supplied.hub.sent() == []


# A data set that is there in part


def test_a_data_set_that_is_there_in_part_is_completed(machine):
    machine.keep_whole(TEACHER)
    machine.keep(DATA, ["README.md", "rte/train-00000-of-00001.parquet"], "dataset")
    assert machine.finetune()[0] == 0
    assert sorted(machine.hub.sent()) == ["rte/test-00000-of-00001.parquet", "rte/validation-00000-of-00001.parquet"]


@pytest.mark.slow
def test_without_the_hub_a_data_set_that_is_there_in_part_is_one_sentence(machine):
    machine.keep_whole(TEACHER)
    machine.keep(DATA, ["README.md", "rte/train-00000-of-00001.parquet"], "dataset")
    code, log = machine.finetune(HF_HUB_OFFLINE="1")
    assert code == 2
    assert log.splitlines()[-1].startswith(f"error: the dev split of GLUE's rte ({DATA}) is not in the local cache")


@pytest.mark.slow
def test_without_the_hub_the_splits_that_are_read_are_enough(machine):
    machine.keep_whole(TEACHER)
    machine.keep(DATA, READ_OF_DATA[1:], "dataset")
    assert machine.finetune(HF_HUB_OFFLINE="1")[0] == 0


@pytest.mark.parametrize("how", mostly_slow("HF_HUB_OFFLINE", "gone"))
def test_a_snapshot_of_the_data_set_is_used_without_the_hub_and_without_a_path(machine, how):
    machine.keep_whole(DATA, "dataset")
    machine.keep_whole(TEACHER)
    code, log = machine.finetune(**without_the_hub(machine, how))
    assert code == 0, log


# What is not available


def test_a_model_that_does_not_exist_is_one_sentence(supplied):
    code, log = supplied.finetune("teacher.pretrained=some/nothing")
    assert (code, len(log.splitlines())) == (2, 2)
    assert log.splitlines()[0] == "task rte, seed 42: fine-tuning the teacher"
    assert log.splitlines()[1].startswith(
        "error: some/nothing: the hub has no model of this name that is open to all: check the name,"
    )


def test_a_model_that_needs_a_login_is_one_sentence(supplied):
    supplied.hub.publish("some/closed", repositories.bert(), gated=True)
    code, log = supplied.finetune("teacher.pretrained=some/closed")
    assert code == 2
    sentence = "error: some/closed: the hub gives this model only to those who have asked for it: ask on its page, then"
    assert log.splitlines()[-1] == f"{sentence} log in with `hf auth login`"


@pytest.mark.slow
def test_a_login_opens_a_closed_model(supplied):
    supplied.hub.publish("some/closed", repositories.bert(), gated=True)
    assert supplied.finetune("teacher.pretrained=some/closed", HF_TOKEN="hf_any")[0] == 0


@pytest.mark.slow
def test_a_model_without_weights_is_one_sentence(supplied):
    supplied.hub.publish("some/tokenizer", {"config.json": b"{}", "vocab.txt": repositories.VOCABULARY})
    code, log = supplied.finetune("teacher.pretrained=some/tokenizer")
    assert code == 2
    assert "error: some/tokenizer: the hub gives no whole model.safetensors or pytorch_model.bin" in log


# A task of one's own on a data set of the hub


@pytest.mark.slow
def test_a_task_on_a_data_set_of_the_hub_runs_from_an_empty_cache_and_then_without_the_hub(machine):
    machine.hub.publish("me/reviews", repositories.reviews(), kind="datasets")
    task = "{name: mine, text: [text], metrics: [f1_macro], hub: me/reviews, config: small}"
    command = machine.command("distil", "reptile.layer_map=[1]", f"task={task}")
    code, log = machine.run(command)
    assert code == 0, log
    assert not any(file.startswith("large/") for file in machine.hub.sent())
    code, log = machine.run([*command, "--overwrite"], **without_the_hub(machine, "HF_HUB_OFFLINE"))
    assert code == 0, log
    assert machine.hub.sent() == []
