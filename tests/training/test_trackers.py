"""Trackers: told of what metrics.jsonl is told, off unless asked for, closed however a run ends."""

import importlib.util
import json
import logging
import sys
import types
from pathlib import Path

import pytest
import torch

from reptile_distil import Experiment
from reptile_distil.config.config import load_config
from reptile_distil.errors import ConfigError, MissingExtraError, RunError
from reptile_distil.runs.resume import Recovery
from reptile_distil.runtime.interrupts import Interrupted
from tests.helpers.paths import TINY


class Board:
    """A stand-in for wandb and trackio: notes how it is called, and keeps runs apart as they do."""

    def __init__(self, name, monkeypatch):
        self.inits, self.logged, self.finished, self.names = [], [], [], set()
        self.fails_at = None
        module = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
        module.init = self.init
        monkeypatch.setitem(sys.modules, name, module)

    def init(self, **options):
        self.inits.append(options)
        self.name = options["name"]
        if options["resume"] == "never" and self.name in self.names:  # as trackio does
            self.name += "-2"
        self.names.add(self.name)
        return self

    def log(self, values, step):
        if step == self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.logged.append((step, values))

    def finish(self, **options):
        self.finished.append(options)


def experiment(tmp_path, *overrides, method="finetune"):
    return Experiment(
        load_config(TINY, [f"runs_dir={tmp_path}/runs", f"method={method}", "train.epochs=2", *overrides])
    )


def stop_at(monkeypatch, step):
    """Makes a run end as by a signal when the checkpoint of this step is written."""
    write = Recovery.save

    def save(self, progress):
        write(self, progress)
        if progress.step == step:
            raise Interrupted(15)

    monkeypatch.setattr(Recovery, "save", save)


def metrics(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def expected(folder):
    """What the lines of metrics.jsonl should have become: by name, the values by step."""
    points = {}
    for record in metrics(folder):
        prefix = record.pop("event")
        step = record.pop("step")
        for name, value in record.items():
            if prefix == "step":
                flat = {f"step/{name}": value} if name != "epoch" else {}
            elif name == "scores":
                flat = {f"epoch/scores/{s}/{m}": v for s, scores in value.items() for m, v in scores.items()}
            elif name == "teacher_scores":
                flat = {f"epoch/teacher_scores/{s}/{m}": v for s, scores in value.items() for m, v in scores.items()}
            elif name == "train":
                flat = {f"epoch/train/{part}": v for part, v in value.items()}
            else:
                flat = {f"epoch/{name}": value} if value is not None else {}
            for key, number in flat.items():
                points.setdefault(key, []).append((step, number))
    return points


def events(folder):
    """What TensorBoard shows of a run: by name, value by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {name: [(event.step, event.value) for event in board.Scalars(name)] for name in board.Tags()["scalars"]}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert found[name] == [(step, pytest.approx(value, rel=1e-5)) for step, value in points], name


def test_by_default_nobody_is_told_and_nothing_is_imported(tmp_path):
    before = set(sys.modules)
    run = experiment(tmp_path)
    assert run.config.trackers == ()
    run.fit()
    assert not {"wandb", "trackio", "torch.utils.tensorboard"} & (set(sys.modules) - before)
    assert not list(run.folder.path.glob("events*"))
    assert not (run.folder.path / "trackers.json").exists()


def test_tensorboard_shows_every_line_of_metrics_jsonl(tmp_path):
    pytest.importorskip("tensorboard")
    run = experiment(tmp_path, "trackers=[tensorboard]", method="reptile")
    run.fit()
    for folder in (run.folder.path, run.teacher_folder.path):
        same(events(folder), expected(folder))
    assert {
        "step/loss",
        "step/lr",
        "step/gap",
        "epoch/scores/dev/accuracy",
        "epoch/teacher_scores/dev/accuracy",
    } <= set(events(run.folder.path))
    assert [step for step, _ in events(run.folder.path)["step/loss"]] == [2, 4, 6, 8, 10]  # log_every: 2


def test_tensorboard_has_the_configuration(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = experiment(tmp_path, "trackers=[tensorboard]")
    run.fit()
    board = EventAccumulator(str(run.folder.path)).Reload()
    (text,) = board.Tensors("config/text_summary")
    assert '"lr": 0.001' in text.tensor_proto.string_val[0].decode()


def test_tensorboard_shows_a_resumed_run_whole_and_nothing_twice(tmp_path, monkeypatch):
    """Killed after step 8, behind the checkpoint of step 7: what was told of step 8 is told again in its place."""
    pytest.importorskip("tensorboard")
    plain = experiment(tmp_path / "plain", "trackers=[tensorboard]")
    plain.fit()
    run = experiment(tmp_path, "trackers=[tensorboard]", "checkpoint.every_steps=7", "checkpoint.every_minutes=null")

    class Die:
        def on_step_end(self, run, step, logs, rates):
            if step == 9:
                raise KeyboardInterrupt

    run.callbacks = (Die(),)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert [step for step, _ in events(run.folder.path)["step/loss"]] == [2, 4, 6, 8]
    run.callbacks = ()
    run.fit()
    found = events(run.folder.path)
    wanted = expected(plain.folder.path)
    for points in (found, wanted):
        points.pop("epoch/train_seconds")
    same(found, wanted)


def test_overwriting_a_run_leaves_none_of_the_old_points(tmp_path):
    pytest.importorskip("tensorboard")
    experiment(tmp_path, "trackers=[tensorboard]").fit()
    run = experiment(tmp_path, "trackers=[tensorboard]", "train.epochs=1")
    run.fit(overwrite=True)
    assert [step for step, _ in events(run.folder.path)["step/loss"]] == [2, 4, 5]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_run_is_told_to_the_board_under_its_name_with_its_configuration(tmp_path, monkeypatch, name):
    board = Board(name, monkeypatch)
    run = experiment(tmp_path, f"trackers=[{name}]")
    run.fit()
    (options,) = board.inits
    assert options["project"] == "reptile_distil"
    assert options["name"] == "toy-sentence/finetune-seed42"
    assert options["config"] == run.config.model_dump(mode="json")
    told = {}
    for step, values in board.logged:
        for key, value in values.items():
            told.setdefault(key, []).append((step, value))
    wanted = expected(run.folder.path)
    told.pop("epoch/epoch")
    wanted.pop("epoch/epoch")
    same(told, wanted)
    assert board.finished == ([{"exit_code": 0}] if name == "wandb" else [{}])


def test_wandbs_project_may_come_from_the_environment(tmp_path, monkeypatch):
    board = Board("wandb", monkeypatch)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    experiment(tmp_path, "trackers=[wandb]").fit()
    assert board.inits[0]["project"] == "mine"


def test_teacher_and_student_are_two_runs(tmp_path, monkeypatch):
    board = Board("wandb", monkeypatch)
    experiment(tmp_path, "trackers=[wandb]", "train.epochs=1", method="kd").fit()
    assert [options["name"] for options in board.inits] == ["toy-sentence/teacher-seed42", "toy-sentence/kd-seed42"]
    assert len({options["id"] for options in board.inits}) == 2
    assert len(board.finished) == 2


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_is_the_same_run_there_and_loses_no_point(tmp_path, monkeypatch, name):
    board = Board(name, monkeypatch)
    board.names.add("toy-sentence/finetune-seed42")  # another run's, so that trackio gives this one another name
    run = experiment(tmp_path, f"trackers=[{name}]", "checkpoint.every_steps=3", "checkpoint.every_minutes=null")
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(Interrupted):
            run.fit()
    assert board.finished == ([{"exit_code": 1}] if name == "wandb" else [{}])
    run.fit()
    first, second = board.inits
    if name == "wandb":
        assert first["id"] == second["id"]
        assert (first["resume"], second["resume"]) == ("allow", "allow")
    else:
        assert (second["name"], second["resume"]) == ("toy-sentence/finetune-seed42-2", "allow")
    steps = [step for step, values in board.logged if "step/loss" in values]
    assert steps == [2, 4, 6, 8, 10]
    run.fit(overwrite=True)
    third = board.inits[2]
    assert third["id"] != first["id"] if name == "wandb" else third["resume"] == "never"


def test_a_run_that_fails_is_closed_as_failed(tmp_path, monkeypatch):
    board = Board("wandb", monkeypatch)
    run = experiment(tmp_path, "trackers=[wandb]")

    class Broken:
        def on_step_end(self, run, step, logs, rates):
            raise ValueError("mine")

    run.callbacks = (Broken(),)
    with pytest.raises(Exception, match="mine"):
        run.fit()
    assert board.finished == [{"exit_code": 1}]


def test_a_board_that_fails_is_left_out_and_the_run_is_the_same(tmp_path, monkeypatch, caplog):
    plain = experiment(tmp_path / "plain")
    plain.fit()
    wandb, trackio = Board("wandb", monkeypatch), Board("trackio", monkeypatch)
    wandb.fails_at = 4
    run = experiment(tmp_path, "trackers=[wandb, trackio]")
    run.fit()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["tracker wandb failed, and gets no further records: ConnectionError: the server is gone"]
    assert [step for step, values in wandb.logged] == [2]
    assert wandb.finished == []
    assert trackio.finished == [{}]
    weights = "model/model.safetensors"
    assert (run.folder.path / weights).read_bytes() == (plain.folder.path / weights).read_bytes()


def test_a_board_that_does_not_start_ends_the_run_in_one_sentence_and_closes_the_others(tmp_path, monkeypatch):
    wandb, trackio = Board("wandb", monkeypatch), Board("trackio", monkeypatch)

    def init(**_):
        raise RuntimeError("no\nkey")

    sys.modules["trackio"].init = init
    with pytest.raises(RunError, match=r"^tracker trackio cannot be started: RuntimeError: no key$"):
        experiment(tmp_path, "trackers=[wandb, trackio]").fit()
    assert wandb.finished == [{"exit_code": 1}]
    assert trackio.logged == []


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("tensorboard", r"pip install 'reptile-distil\[tensorboard\]'"),
        ("wandb", "pip install wandb"),
        ("trackio", "pip install trackio"),
    ],
)
def test_a_missing_package_is_one_sentence_before_anything_is_run(call, tmp_path, monkeypatch, name, remedy):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *rest: None if wanted == name else find(wanted))
    with pytest.raises(MissingExtraError, match=f"^trackers: {name} is not installed; {remedy}, or leave it out$"):
        experiment(tmp_path, f"trackers=[{name}]").fit()
    assert not list(tmp_path.glob("runs/*/*seed42"))
    code, _, err = call("distil", "--dry-run", "method=finetune", f"trackers=[{name}]")
    assert code == 2
    assert f"trackers: {name} is not installed" in err


def test_trackers_do_not_decide_a_result(tmp_path, monkeypatch):
    experiment(tmp_path).fit()
    board = Board("wandb", monkeypatch)
    again = experiment(tmp_path, "trackers=[wandb]")
    again.fit()  # finished: not run, and nobody is told
    assert board.inits == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[tensorbord]", "expected 'tensorboard', 'wandb' or 'trackio'"),
        ("[wandb, wandb]", "one is given twice"),
        ("wandb", "expected a list"),
    ],
)
def test_what_is_no_list_of_trackers_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        load_config(TINY, [f"trackers={value}"])


def test_undefined_scores_and_words_are_left_out():
    from reptile_distil.training.trackers import _flat

    values = {"a": 1, "b": {"c": float("nan"), "d": 2.5, "e": None}, "f": "word", "g": float("inf")}
    assert dict(_flat(values, "epoch")) == {"epoch/a": 1.0, "epoch/b/d": 2.5}


def test_the_device_is_read_only_when_the_run_reads_it_too(tmp_path, monkeypatch):
    from reptile_distil.training.callbacks import RunInfo
    from reptile_distil.training.trackers import TrackerCallback

    class Read(torch.Tensor):
        reads = 0

        def __float__(self):
            Read.reads += 1
            return 1.0

    config = {"train": {"log_every": 3}, "teacher": {"train": {"log_every": 5}}}
    for method, steps in (("kd", [3, 6, 7]), ("teacher", [5, 7])):
        run = RunInfo("task", method, 1, tmp_path, num_steps=7, config=config)
        board = Board("wandb", monkeypatch)
        callback = TrackerCallback({"wandb": board}, run)
        Read.reads = 0
        for step in range(1, 8):
            callback.on_step_end(run, step, {"loss": torch.ones(()).as_subclass(Read)}, {"lr": 0.5})
        assert [step for step, _ in board.logged] == steps
        assert Read.reads == len(steps)
