"""How one worker goes through the cells: what it runs, passes over, reports and leaves behind."""

import logging
from pathlib import Path

import pytest
import torch

from reptile_distil.engines import engine
from reptile_distil.errors import ConfigError, ModelError, RunInUseError
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.runs.folder import RunFolder
from reptile_distil.tables import grid
from reptile_distil.tables.config import load_table_config
from reptile_distil.tables.grid import Grid
from tests.helpers.paths import TINY_TABLE
from tests.helpers.records import results


@pytest.fixture
def table(tmp_path):
    def table(*overrides):
        return load_table_config(TINY_TABLE, [f"runs_dir={tmp_path}/runs", *overrides])

    return table


class World:
    """Stands in for `Experiment`: notes what is run, writes results.json, and does what a test has planned first."""

    def __init__(self):
        self.ran = []
        self.plans = {}

    def __call__(self, config):
        return FakeExperiment(config, self)

    def run(self, folder, decisive):
        name = f"{folder.path.parent.name}/{folder.path.name}"
        self.ran.append(name)
        if plans := self.plans.get(name):
            plans.pop(0)()
        self.finish(folder, decisive)
        return {"score": 0.5}

    def finish(self, folder, decisive):
        folder.path.mkdir(parents=True, exist_ok=True)
        (role,) = [role for role in ("teacher", "finetune", "kd") if folder.path.name.startswith(role)]
        metrics = ("pearson", "spearmanr") if decisive["task"] == "toy-regression" else ("accuracy",)
        scores = {"dev": dict.fromkeys(metrics, 0.5)}
        folder.finish(results(task=decisive["task"], method=role, scores=scores, decisive=decisive))


class FakeExperiment:
    def __init__(self, config, world):
        self.config, self.world = config, world
        folder = Path(config.runs_dir, config.task_name)
        self.folder = RunFolder(config.output_dir or folder / f"{config.method}-seed{config.seed}")
        self.teacher_folder = RunFolder(folder / f"teacher-seed{config.seed}")

    def fit(self):
        return self.world.run(self.folder, self.config.defining_settings(self.config.method))

    def fit_teacher(self):
        return self.world.run(self.teacher_folder, self.config.defining_settings("teacher"))


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(grid, "Experiment", world)
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.0)
    return world


def raises(error):
    def plan():
        raise error

    return plan


ALL = [
    "toy-sentence/teacher-seed1",
    "toy-regression/teacher-seed1",
    "toy-sentence/finetune-seed1",
    "toy-sentence/kd-seed1",
    "toy-regression/finetune-seed1",
    "toy-regression/kd-seed1",
]


def test_every_cell_is_run_once_teachers_first(world, table):
    worker = Grid(table().cells)
    worker.run()
    assert world.ran == ALL
    assert worker.failures == {}
    assert worker.report() == "6 cells: 6 run, 0 already finished, 0 failed"


def test_what_is_finished_is_not_run_again(world, table):
    Grid(table().cells).run()
    world.ran.clear()
    worker = Grid(table("seeds=[1, 2]", "tasks=[toy-sentence]").cells)
    worker.run()
    assert world.ran == ["toy-sentence/teacher-seed2", "toy-sentence/finetune-seed2", "toy-sentence/kd-seed2"]
    assert worker.report() == "6 cells: 3 run, 3 already finished, 0 failed"


def test_progress_names_cell_score_and_seconds(world, table, caplog):
    caplog.set_level(logging.INFO)
    Grid(table("tasks=[toy-sentence]", "methods=[finetune]").cells).run()
    assert caplog.messages[-1].startswith("[1/1] toy-sentence finetune seed 1: 50.0 (")
    assert caplog.messages[-1].endswith(" s)")


def test_a_cell_that_fails_is_reported_and_the_others_go_on(world, table, tmp_path):
    world.plans["toy-sentence/kd-seed1"] = [raises(ModelError("no layers left"))]
    worker = Grid(table().cells)
    worker.run()
    assert world.ran == ALL
    file = tmp_path / "runs/toy-sentence/failed-kd-seed1.txt"
    reason = f"no layers left (traceback in {file})"
    assert worker.failures == {"toy-sentence kd seed 1": reason}
    assert worker.report().splitlines() == [
        "6 cells: 5 run, 0 already finished, 1 failed",
        f"failed: toy-sentence kd seed 1: {reason}",
    ]
    assert "ModelError: no layers left" in file.read_text()
    assert "Traceback" in file.read_text()


def test_an_error_of_ours_is_one_sentence_with_its_type(world, table):
    world.plans["toy-sentence/kd-seed1"] = [raises(ZeroDivisionError("division\nby zero"))]
    worker = Grid(table().cells)
    worker.run()
    (reason,) = worker.failures.values()
    assert reason.startswith("ZeroDivisionError: division by zero (traceback in ")


def test_the_report_of_a_failure_goes_when_the_cell_succeeds(world, table, tmp_path):
    world.plans["toy-sentence/kd-seed1"] = [raises(ValueError("once"))]
    Grid(table().cells).run()
    file = tmp_path / "runs/toy-sentence/failed-kd-seed1.txt"
    assert file.exists()
    Grid(table().cells).run()
    assert not file.exists()


def test_students_of_a_failed_teacher_fail_with_its_reason_and_are_not_run(world, table):
    world.plans["toy-regression/teacher-seed1"] = [raises(ModelError("too small"))]
    worker = Grid(table().cells)
    worker.run()
    assert world.ran == [name for name in ALL if name != "toy-regression/kd-seed1"]
    assert set(worker.failures) == {"toy-regression teacher seed 1", "toy-regression kd seed 1"}
    assert worker.failures["toy-regression kd seed 1"].startswith("its teacher failed: too small")


def test_ctrl_c_is_no_failure_of_a_cell(world, table):
    world.plans["toy-sentence/teacher-seed1"] = [raises(KeyboardInterrupt())]
    with pytest.raises(KeyboardInterrupt):
        Grid(table().cells).run()
    assert world.ran == ALL[:1]


def test_a_cell_that_another_worker_has_is_come_back_to(world, table):
    world.plans["toy-sentence/finetune-seed1"] = [raises(RunInUseError("in use"))] * 2
    worker = Grid(table().cells)
    worker.run()
    assert world.ran == [*ALL, "toy-sentence/finetune-seed1", "toy-sentence/finetune-seed1"]
    assert worker.failures == {}


def test_a_student_whose_teacher_another_worker_has_is_passed_over_not_waited_for(world, table):
    world.plans["toy-sentence/teacher-seed1"] = [raises(RunInUseError("in use"))]
    worker = Grid(table().cells)
    worker.run()
    # The second round: the teacher, which that worker has left unfinished, and then the student.
    assert world.ran == [name for name in ALL if name != "toy-sentence/kd-seed1"] + [ALL[0], "toy-sentence/kd-seed1"]
    assert worker.failures == {}


def test_what_another_worker_finishes_meanwhile_is_taken(world, table):
    cells = table().cells
    kd = cells[3]

    def finished_elsewhere():
        world.finish(RunFolder(kd.folder), kd.decisive)

    world.plans["toy-sentence/finetune-seed1"] = [finished_elsewhere]
    worker = Grid(cells)
    worker.run()
    assert "toy-sentence/kd-seed1" not in world.ran
    assert worker.report() == "6 cells: 5 run, 1 already finished, 0 failed"


def test_a_student_that_loses_its_teacher_to_a_new_fine_tuning_comes_again_after_it(world, table, tmp_path):
    def teacher_is_taken_away():
        (tmp_path / "runs/toy-sentence/teacher-seed1/results.json").unlink()
        raise ModelError("no such folder")

    world.plans["toy-sentence/kd-seed1"] = [teacher_is_taken_away]
    worker = Grid(table("tasks=[toy-sentence]").cells)
    worker.run()
    assert world.ran == [ALL[0], ALL[2], ALL[3], ALL[0], ALL[3]]
    assert worker.failures == {}
    assert worker.report() == "3 cells: 3 run, 0 already finished, 0 failed"


def test_a_cell_does_not_inherit_the_number_of_threads_of_the_one_before(world, table):
    before, seen = torch.get_num_threads(), []
    world.plans["toy-sentence/finetune-seed1"] = [lambda: torch.set_num_threads(before + 1)]
    world.plans["toy-sentence/kd-seed1"] = [lambda: seen.append(torch.get_num_threads())]
    try:
        Grid(table().cells).run()
    finally:
        torch.set_num_threads(before)
    assert seen == [before]


def test_a_finished_run_with_other_settings_fails_by_key_and_is_not_touched(world, table, tmp_path):
    Grid(table().cells).run()
    file = tmp_path / "runs/toy-sentence/kd-seed1/results.json"
    before = file.read_bytes()
    world.ran.clear()
    worker = Grid(table("loss.alpha=0.25").cells)
    worker.run()
    assert world.ran == []
    assert set(worker.failures) == {"toy-sentence kd seed 1", "toy-regression kd seed 1"}
    assert "holds a finished run with loss.alpha = 0.5, not 0.25" in worker.failures["toy-sentence kd seed 1"]
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("shared", "variant", "message"),
    [
        ((), "teacher: {train: {lr: 0.002}}", r"teacher\.train\.lr = 0\.002 asks .* one, with 0\.001;"),
        ((), "data: {transfer: {labelled_rows: 20}}", r"data\.transfer\.labelled_rows = 20 asks .* one, with None;"),
        (
            ("data.transfer.labelled_rows=20",),
            "data: {transfer: {labelled_rows: null}}",
            r"data\.transfer\.labelled_rows = None asks .* one, with 20;",
        ),
        ((), "teacher: {train: {adamw: torch}}", r"teacher\.train\.adamw = 'torch' asks .* with 'transformers4';"),
    ],
)
def test_a_variant_that_needs_another_teacher_is_refused_by_key(table, shared, variant, message):
    """The teacher's folder is shared by all rows; without this the last of them would fail after hours."""
    overrides = ["tasks=[toy-sentence]", "methods=[kd, other]", *shared]
    with pytest.raises(ConfigError, match=rf"variants\.other: {message}"):
        table(*overrides, f"variants.other={{method: kd, {variant}}}")


@pytest.mark.parametrize(
    "variant", ["method: finetune, data: {max_length: 16}", "method: kd, data: {transfer: {ratio: 3}}"]
)
def test_a_variant_that_needs_no_other_teacher_is_taken(table, variant):
    overrides = ["tasks=[toy-sentence]", "methods=[kd, other]", "data.transfer.labelled_rows=20"]
    table(*overrides, f"variants.other={{{variant}}}")


def test_a_cells_scores_do_not_depend_on_the_cells_before_it(table, tmp_path):
    worker = Grid(table("methods=[reptile]").cells)
    worker.run()
    assert worker.failures == {}
    alone = table("tasks=[toy-regression]", "methods=[reptile]", f"runs_dir={tmp_path}/alone").cells[-1]
    results = Experiment(alone.config).fit()
    (in_the_grid,) = (tmp_path / "runs/toy-regression").glob("reptile-seed1")
    assert RunFolder(in_the_grid).read_results(alone.decisive).scores == results["scores"]
    for name in ("model/model.safetensors", "predictions_dev.json"):
        assert (in_the_grid / name).read_bytes() == (alone.folder / name).read_bytes()


def test_one_of_several_processes_is_no_worker(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start scripts/table\\.py with python"):
        Grid([])
