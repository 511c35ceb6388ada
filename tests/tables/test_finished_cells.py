"""Finished cells of a table: what one look at them costs, and that a damaged one leaves the others as they are."""

import gc
import json
import time

import pytest

from reptile_distil.errors import RunError
from reptile_distil.experiments import experiment, finished_run
from reptile_distil.runtime import files
from reptile_distil.tables import dry_run, grid
from reptile_distil.tables.config import load_table_config
from reptile_distil.tables.data import collect
from reptile_distil.tables.formats import write_table
from reptile_distil.tables.grid import Grid
from tests.helpers.paths import TINY_TABLE
from tests.helpers.records import epoch_dict, results_dict, write_run

OWN = "{name: mine, text: [text], labels: [down, up], metrics: [accuracy], files: {train: train.csv, dev: dev.csv}}"
SEEDS = 5


@pytest.fixture
def table(tmp_path):
    """Fine-tuning and kd on a task of its own with some seeds, all finished."""
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("text,label\ngood,up\nbad,down\n")
    overrides = [f"runs_dir={tmp_path}/runs", f"tasks=[{OWN}]", f"data.path={tmp_path}", f"seeds={[*range(SEEDS)]}"]
    table = load_table_config(TINY_TABLE, overrides)
    for cell in table.cells:
        inputs = finished_run.digest_inputs(cell.config, cell.task, cell.role)
        values = results_dict(task="mine", method=cell.role, seed=cell.seed, decisive=cell.decisive, inputs=inputs)
        write_run(cell.folder, values, [epoch_dict(1)])
        predictions = {"predictions": [0, 1], "labels": [0, 1]}
        (cell.folder / "predictions_dev.json").write_text(json.dumps(predictions))
        (cell.folder / "config.yaml").write_text(cell.config.to_yaml())
    return table


@pytest.fixture
def costs(monkeypatch):
    """How often what is dear was done: a full garbage collection, a file hashed, an `Experiment` made."""
    counts = {"collections": 0, "hashes": 0, "experiments": 0}

    def counted(name, function):
        def call(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(gc, "collect", counted("collections", gc.collect))
    monkeypatch.setattr(files, "hash_file", counted("hashes", files.hash_file))
    init = counted("experiments", experiment.Experiment.__init__)
    monkeypatch.setattr(experiment.Experiment, "__init__", init)
    return counts


@pytest.mark.parametrize("look", [collect, dry_run.plan_table, lambda table: Grid(table.cells).run()])
def test_one_look_at_all_finished_cells_reads_each_input_once_and_makes_and_collects_nothing(table, costs, look):
    started = time.process_time()
    look(table)
    assert costs == {"collections": 0, "hashes": 2, "experiments": 0}
    assert (time.process_time() - started) / len(table.cells) < 0.05


def test_a_worker_that_waits_for_another_collects_nothing(table, costs, monkeypatch):
    waiting = table.cells[-1]
    finished = waiting.folder / "results.json"
    finished.rename(finished.with_name("later"))
    polls = []

    def sleep(seconds):
        polls.append(seconds)
        if len(polls) == 3:
            finished.with_name("later").rename(finished)

    monkeypatch.setattr(grid.time, "sleep", sleep)
    with waiting.run.claimed():
        worker = Grid(table.cells)
        worker.run()
    assert (len(polls), worker.failures) == (3, {})
    assert costs["collections"] == 0


def test_the_cells_are_what_the_costs_say_they_are(table):
    data = collect(table)
    assert len(data.runs) == len(data.epochs) == len(table.cells) == 3 * SEEDS
    assert data.problems == []


def test_a_file_that_changes_while_a_worker_waits_is_noticed(table, monkeypatch, tmp_path):
    """What was hashed at one look is not taken for what is there at the next."""
    late = table.cells[-1].folder / "results.json"
    late.rename(late.with_name("later"))

    def sleep(_):
        (tmp_path / "train.csv").write_text("text,label\ngood,down\n")
        late.with_name("later").rename(late)

    monkeypatch.setattr(grid.time, "sleep", sleep)
    with table.cells[-1].run.claimed():
        worker = Grid(table.cells)
        worker.run()
    (reason,) = worker.failures.values()
    assert "the train split has changed since this run was made" in reason


DAMAGES = {
    "list": "[]",
    "null": "null",
    "nested": "[" * 100_000,
    "wrong type": json.dumps(results_dict(num_parameters="many")),
    "cut short": '{"task": "mine"',
}


def damaged_values(cell, **changes):
    values = json.loads((cell.folder / "results.json").read_text())
    return json.dumps({**values, **changes})


@pytest.mark.parametrize("damage", [*DAMAGES, "score of another metric", "another method's"])
def test_a_damaged_cell_is_a_problem_and_the_others_stand(table, damage, tmp_path):
    cell = table.cells[-1]
    own = {
        "score of another metric": {"scores": {"dev": {"f1": 0.5}}},
        "another method's": {"method": "reptile"},
    }
    text = DAMAGES[damage] if damage in DAMAGES else damaged_values(cell, **own[damage])
    (cell.folder / "results.json").write_text(text)
    data = collect(table)
    (problem,) = data.problems
    place = cell.folder if damage == "another method's" else cell.run.results
    assert problem.startswith(f"{cell.name}: {place}: ")
    assert len(data.runs) == len(table.cells) - 1
    assert problem in write_table(data, tmp_path / "table")
    plan = dry_run.plan_table(table)
    assert list(plan.faults) == [cell.name]
    with pytest.raises(RunError, match="could not be run"):
        plan.check()
    worker = Grid(table.cells)
    worker.run()
    assert list(worker.failures) == [cell.name]


@pytest.mark.parametrize("text", ["{\n", "[1]\n", "7\n"])
def test_damaged_metrics_are_a_problem_and_the_run_keeps_its_scores(table, text, tmp_path):
    cell = table.cells[-1]
    cell.run.metrics.write_text(text)
    data = collect(table)
    (problem,) = data.problems
    assert problem.startswith(f"epochs of {cell.name}: {cell.run.metrics}: cannot be read (line 1: ")
    assert problem in write_table(data, tmp_path / "table")
    epochs = (tmp_path / "table-epochs.csv").read_text().splitlines()
    assert sum(line.startswith(f"mine,{cell.row},{cell.seed},") for line in epochs) == 1


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"predictions": [0], "labels": ["a"]}', '{"predictions": [[0]], "labels": [[0]]}', "[" * 9999]
)
def test_damaged_predictions_are_a_problem_and_the_difference_has_no_test(table, text, tmp_path):
    one_seed = load_table_config(
        TINY_TABLE, [f"runs_dir={tmp_path}/runs", f"tasks=[{OWN}]", f"data.path={tmp_path}", "seeds=[0]"]
    )
    kd = one_seed.cells[-1]
    assert "McNemar" in write_table(collect(one_seed), tmp_path / "table")
    (kd.folder / "predictions_dev.json").write_text(text)
    markdown = write_table(collect(one_seed), tmp_path / "table")
    assert "McNemar, " not in markdown
    assert f"predictions of {kd.name}: {kd.folder}/predictions_dev.json: cannot be read" in markdown
