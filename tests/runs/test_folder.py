"""The run folder: what counts as finished, and what is never lost or trusted."""

import json
import math
import subprocess
import sys
import threading

import pytest

from reptile_distil.errors import RunError, RunInUseError
from reptile_distil.runs.folder import RunFolder
from reptile_distil.training.records import EpochRecord, StepRecord
from tests.helpers.records import epoch_dict, results

CONFIG = "task: rte\n"


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.start(CONFIG, "cpu")
    return folder


def test_a_run_is_finished_when_its_results_are_written(folder):
    assert folder.read_results({"seed": 1}) is None
    folder.finish(results(score=0.75, decisive={"seed": 1}))
    assert folder.read_results({"seed": 1}).score == 0.75


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"seed": 2}, r"seed = 1, not 2"),
        ({"seed": 1, "train.lr": 0.1}, r"train.lr = null, not 0.1"),
        ({}, r"seed = 1, not null"),
    ],
)
def test_a_finished_run_with_other_values_is_refused_naming_the_key(folder, wanted, message):
    folder.finish(results(decisive={"seed": 1}))
    with pytest.raises(RunError, match=message + ".*--overwrite"):
        folder.read_results(wanted)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"score": 1}', "null", '{"decisive": 3}', '{"decisive": [1]}', "[" * 100_000, "\x00"]
)
def test_damaged_results_are_refused_not_trusted(folder, content):
    folder.results.write_text(content)
    with pytest.raises(RunError, match=r"results\.json: cannot be read"):
        folder.read_results({})


@pytest.mark.parametrize("name", ["model", "model.old", "model.new", "metrics.jsonl"])
def test_a_link_in_the_folder_is_refused_and_what_it_points_to_stays(folder, tmp_path, name):
    (tmp_path / "precious").mkdir()
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=f"{name}: is a symbolic link, which a run does not follow; remove it"):
        folder.start(CONFIG, "cpu")
    assert (tmp_path / "precious").is_dir()


def test_a_link_that_comes_up_later_is_removed_and_what_it_points_to_is_not(folder, tmp_path):
    (tmp_path / "precious").mkdir()
    for name in ("model", "model.old", "model.new"):
        (folder.path / name).symlink_to(tmp_path / "precious")
    folder.save_model(FakeModel("new"), FakeModel("tokenizer"))
    assert (folder.model / "new.txt").exists()
    assert not folder.model.is_symlink()
    assert list((tmp_path / "precious").iterdir()) == []


def test_an_undefined_score_is_null_in_every_file(folder):
    scores = {"dev": {"f1": math.nan, "accuracy": 1.0}}
    folder.log(StepRecord(epoch=1, step=1, loss=math.inf, lr=0.5))
    folder.log(EpochRecord.model_validate(epoch_dict(1, scores=scores, score=-math.inf)))
    folder.finish(results(scores=scores, score=-math.inf))
    step, epoch = map(json.loads, (folder.path / "metrics.jsonl").read_text().splitlines())
    assert step == {"event": "step", "epoch": 1, "step": 1, "loss": None, "lr": 0.5}
    for written in (epoch, json.loads(folder.results.read_text())):
        assert written["scores"] == {"dev": {"f1": None, "accuracy": 1.0}}
        assert written["score"] is None


def test_a_new_start_removes_what_an_earlier_run_left(folder):
    folder.log(StepRecord(epoch=1, step=1, loss=0.5))
    folder.model.mkdir()
    folder.finish(results())
    folder.start(CONFIG, "cpu")
    assert not folder.results.exists()
    assert not folder.model.exists()
    assert (folder.path / "metrics.jsonl").read_text() == ""


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        RunFolder(tmp_path).start(CONFIG, "cpu")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunError, match=f"^{tmp_path}/run: is a file; give another runs_dir"):
        RunFolder(tmp_path / "run" / "deeper").start(CONFIG, "cpu")


class FakeModel:
    def __init__(self, text, *, fails=False):
        self.text, self.fails = text, fails

    def save_pretrained(self, path):
        path.mkdir(exist_ok=True)
        if self.fails:
            raise OSError(28, "No space left on device")
        (path / f"{self.text}.txt").write_text(self.text)


def test_saving_replaces_the_model_as_a_whole(folder):
    folder.save_model(FakeModel("old"), FakeModel("tokenizer"))
    folder.save_model(FakeModel("new"), FakeModel("tokenizer"))
    assert {path.name for path in folder.model.iterdir()} == {"new.txt", "tokenizer.txt"}
    left = {path.name for path in folder.path.iterdir()}
    assert left == {"model", "config.yaml", "environment.json", "metrics.jsonl"}


def test_a_failed_save_leaves_the_model_before_it(folder):
    folder.save_model(FakeModel("old"), FakeModel("tokenizer"))
    with pytest.raises(RunError, match="model: cannot be written: No space left on device"):
        folder.save_model(FakeModel("new", fails=True), FakeModel("tokenizer"))
    assert (folder.model / "old.txt").read_text() == "old"
    folder.save_model(FakeModel("newer"), FakeModel("tokenizer"))
    assert (folder.model / "newer.txt").exists()


HOLD = """
import sys
from reptile_distil.runs.folder import RunFolder
with RunFolder(sys.argv[1]).claimed():
    print("claimed", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed tmp_path/run."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_folder_in_use_is_refused_by_name(tmp_path, holder):
    with pytest.raises(RunInUseError, match="run: another process is running"), RunFolder(tmp_path / "run").claimed():
        pass


def test_the_claim_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    with RunFolder(tmp_path / "run").claimed():
        pass


def test_a_claim_can_wait_for_the_process_that_has_it(tmp_path, holder, caplog):
    caplog.set_level("INFO")
    threading.Timer(0.5, holder.stdin.close).start()  # lets the other process end
    with RunFolder(tmp_path / "run").claimed(wait=True):
        assert holder.wait() == 0
    assert "waiting for the process that is running in" in caplog.text


def test_a_claim_alone_leaves_no_folder(tmp_path):
    with RunFolder(tmp_path / "run").claimed():
        pass
    assert not (tmp_path / "run").exists()


def test_a_folder_with_strangers_files_is_not_claimed(tmp_path):
    (tmp_path / "letters.txt").touch()
    with pytest.raises(RunError, match="is not empty and holds no run"), RunFolder(tmp_path).claimed():
        pass


def test_a_file_in_the_place_of_a_folder_is_not_claimed(tmp_path):
    (tmp_path / "run").touch()
    with (
        pytest.raises(RunError, match=r"run: is a file; give another runs_dir or output_dir"),
        RunFolder(tmp_path / "run").claimed(),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_not_claimed(tmp_path):
    folder = RunFolder(tmp_path / ("x" * 300) / "run")
    with pytest.raises(RunError, match="/run: cannot be claimed for this run: "), folder.claimed():
        pass


WRONG_PLACES = {
    "afile": "afile: is a file; give another runs_dir or output_dir",
    "broken": "broken: is a link to nothing; give another runs_dir or output_dir",
    "loopa": "loopa: is a link that leads to itself; give another runs_dir or output_dir",
}


@pytest.mark.parametrize("part", ["", "mine/run"])
@pytest.mark.parametrize(("name", "sentence"), WRONG_PLACES.items())
def test_where_no_folder_can_be_the_run_is_refused_with_the_place(tmp_path, name, sentence, part):
    (tmp_path / "afile").touch()
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "loopa").symlink_to("loopb")
    (tmp_path / "loopb").symlink_to("loopa")
    with pytest.raises(RunError, match=f"^{tmp_path}/{sentence}$"), RunFolder(tmp_path / name / part).claimed():
        pass
    assert not (tmp_path / f".{name}.lock").exists()


def test_predictions_come_back_as_they_were_kept_and_go_with_a_new_start(folder):
    folder.start("task: rte\n", "cpu")
    folder.save_predictions("dev", [0.5, 2.25], [1.0, 2.0])
    predictions, labels = folder.read_predictions("dev")
    assert (predictions.tolist(), labels.tolist()) == ([0.5, 2.25], [1.0, 2.0])
    assert folder.read_predictions("dev_matched") is None
    folder.start("task: rte\n", "cpu")
    assert folder.read_predictions("dev") is None


@pytest.mark.parametrize(
    ("predictions", "labels", "multi_label"),
    [
        (None, None, False),
        (None, None, True),
        ([0, 1], [0], False),
        ([[0]], [[0]], False),
        ([0], [0], True),
        ([[0, 1], [1, 1]], [[0, 1]], True),
        ([[0, 1], [1]], [[0, 1], [1, 1]], True),
        ([[0, 1]], [[0, 2]], True),
    ],
)
def test_damaged_predictions_are_refused_not_trusted(folder, predictions, labels, multi_label):
    folder.start("task: rte\n", "cpu")
    content = {} if predictions is None else {"predictions": predictions, "labels": labels}
    (folder.path / "predictions_dev.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"predictions_dev.json: cannot be read \((?!Value error)"):
        folder.read_predictions("dev", multi_label=multi_label)


def test_a_folder_that_another_process_is_starting_in_is_in_use_and_not_strange(tmp_path):
    """Between its first write and its second, a new run's folder holds nothing by which a run is known."""
    other, folder = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with other.claimed():
        folder.path.mkdir()
        (folder.path / "config.yaml.new").write_text("task: r")
        with pytest.raises(RunInUseError), folder.claimed():
            pass
