"""Searches: what is drawn, resumed, shared between processes and refused; and that dev has no part in it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from reptile_distil.config.config import load_config
from reptile_distil.config.data_section import DataConfig
from reptile_distil.errors import (
    ConfigError,
    DataError,
    DivergedError,
    LayerMapError,
    MissingExtraError,
    ModelError,
    OutOfMemoryError,
    RunError,
)
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.sweeps import faults, search
from reptile_distil.sweeps.inputs import digest_all_inputs
from reptile_distil.sweeps.search import RowSearch, run_search
from reptile_distil.sweeps.space import CHOOSE_HELD_OUT_ROWS, check_search, with_values
from reptile_distil.tables.config import load_table_config
from tests.helpers.paths import TINY

pytest.importorskip("optuna")

FILE = """
extends: {base}
tasks: [toy-sentence]
methods: [finetune]
seeds: [1, 2]
data: {{validation_fraction: 0.3}}
search:
  trials: 6
  keys:
    train.lr: {{low: 1e-4, high: 1e-2, log: true}}
    train.batch_size: {{low: 8, high: 32}}
    student.num_layers: {{choices: [1, 2]}}
"""


class Killed(BaseException):
    """Stands in for what ends a process: nothing behind it is run."""


class World:
    """Stands in for `Experiment`: its score is a function of what was drawn; a test plans what else happens."""

    def __init__(self):
        self.ran = []
        self.plans = {}
        self.load_fault = lambda config: None
        self.num_loads = 0

    def load(self, config, task):
        """What `faults.load` does: fails as a run with these values would before it trains."""
        assert task.dev_splits == ()
        self.num_loads += 1
        if fault := self.load_fault(config):
            raise fault

    def __call__(self, config, *, task):
        assert task.dev_splits == ()
        return FakeExperiment(config, self)


class FakeExperiment:
    def __init__(self, config, world):
        self.config, self.world = config, world

    def fit(self):
        name = Path(self.config.output_dir).name
        self.world.ran.append(name)
        if plan := self.world.plans.pop(name, None):
            plan()
        if fault := self.world.load_fault(self.config):
            raise fault
        return {"score": self.config.train.lr * 50 + self.config.seed / 10}


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(search, "Experiment", world)
    monkeypatch.setattr(faults, "load", world.load)
    monkeypatch.setattr(search, "POLL_SECONDS", 0.0)
    return world


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(FILE.format(base=TINY))

    def table(*overrides, runs="runs"):
        return load_table_config(file, [f"runs_dir={tmp_path}/{runs}", *overrides])

    table.file = file
    return table


def raises(error):
    def plan():
        raise error

    return plan


def trials(table):
    """What was drawn, by number, and the scores."""
    cells = [cell for cell in table.cells if cell.row == table.keys.methods[0]]
    row = RowSearch(cells, table.keys.search, Path(table.common.runs_dir, "table-search"))
    return {one.trial.number: (dict(one.trial.values), one.score) for one in row._study.ended()}


def test_each_trial_is_run_with_each_seed_once_and_scored_by_their_mean(world, table):
    run_search(table(), table.file)
    assert world.ran == [f"trial-{number:04d}-seed{seed}" for number in range(6) for seed in (1, 2)]
    for values, score in trials(table()).values():
        assert 1e-4 <= values["train.lr"] <= 1e-2
        assert values["train.batch_size"] in range(8, 33)
        assert values["student.num_layers"] in (1, 2)
        assert score == pytest.approx(values["train.lr"] * 50 + 0.15)


def test_the_best_trial_is_a_configuration_on_top_of_what_the_table_extends(world, table):
    said = run_search(table(), table.file)
    folder = Path(table().common.runs_dir, "table-search/toy-sentence/finetune")
    best = max(trials(table()).values(), key=lambda one: one[1])[0]
    config = load_config(folder / "best.yaml")
    assert config == with_values(table().cells[0].config, {**best, "output_dir": str(folder / "best-seed{seed}")})
    text = (folder / "best.yaml").read_text()
    assert f"extends: {TINY}" in text
    assert "eval_batch_size" not in text  # what that file says is not repeated
    assert str(folder / "best.yaml") in said


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("when", ["trial-0000-seed1", "trial-0003-seed2", "trial-0005-seed1"])
def test_a_killed_search_ends_as_one_that_never_stopped(world, table, sampler, when):
    option = f"search.sampler={sampler}"
    run_search(table(option, runs="whole"), table.file)
    world.ran.clear()
    world.plans[when] = raises(Killed())
    with pytest.raises(Killed):
        run_search(table(option), table.file)
    run_search(table(option), table.file)
    assert trials(table(option)) == trials(table(option, runs="whole"))
    assert set(world.ran) == {f"trial-{number:04d}-seed{seed}" for number in range(6) for seed in (1, 2)}


def test_another_sampler_seed_draws_other_values_and_more_trials_go_on(world, table):
    run_search(table("search.trials=3"), table.file)
    first = trials(table("search.trials=3"))
    run_search(table(), table.file)
    assert {number: one for number, one in trials(table()).items() if number < 3} == first
    run_search(table("search.sampler_seed=1", runs="other"), table.file)
    assert trials(table("search.sampler_seed=1", runs="other"))[0] != first[0]


def test_two_processes_share_the_trials(world, table):
    """While one trial runs, another process takes the next, and neither runs more than were asked for."""
    seen = []

    def another_process():
        settings = table()
        other = RowSearch(settings.cells[:2], settings.keys.search, Path(settings.common.runs_dir, "table-search"))
        with other._study.next_trial() as trial:
            seen.append(trial.number)
            other._run(trial)

    world.plans["trial-0001-seed1"] = another_process
    world.plans["trial-0005-seed2"] = lambda: seen.append(taken_at_the_end())

    def taken_at_the_end():
        settings = table()
        other = RowSearch(settings.cells[:2], settings.keys.search, Path(settings.common.runs_dir, "table-search"))
        with other._study.next_trial() as trial:
            return trial, other._study.is_over

    run_search(table(), table.file)
    assert seen == [2, (None, False)]
    assert sorted(world.ran) == [f"trial-{number:04d}-seed{seed}" for number in range(6) for seed in (1, 2)]


OF_VALUES = [
    DivergedError("loss is nan"),
    ConfigError("cannot be"),
    LayerMapError("5 layers of 2"),
    DataError("too few rows"),
    ModelError("no such model"),
    OutOfMemoryError("out of memory: lower train.eval_batch_size"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OF_VALUES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("number", [0, 1])
def test_a_trial_that_its_values_have_failed_is_noted_and_the_others_go_on(world, table, error, number):
    options = ("seeds=[1]", "search.trials=2")
    world.plans[f"trial-000{number}-seed1"] = raises(error)
    said = run_search(table(*options), table.file)
    (line,) = [line for line in said.splitlines() if " failed: " in line]
    assert line.startswith(f"trial {number + 1} failed: ")
    assert str(error) in line
    assert {other: score is None for other, (_, score) in trials(table(*options)).items()} == {
        number: True,
        1 - number: False,
    }


def test_values_that_cannot_be_run_cost_their_trials_even_if_they_are_the_tables_own(world, table):
    """The first trials are such, so that nothing has a score yet."""
    options = (
        "search.keys={student.num_layers: {choices: [5, 1, 2]}}",
        "student.num_layers=5",
        "search.trials=8",
        "search.sampler_seed=2",
    )
    world.load_fault = lambda config: LayerMapError("5 of 2") if config.student.num_layers == 5 else None
    run_search(table(*options), table.file)
    found = [trials(table(*options))[number] for number in range(8)]
    assert found[0][0]["student.num_layers"] == 5
    assert {values["student.num_layers"] for values, score in found if score is None} == {5}
    assert {values["student.num_layers"] for values, score in found if score is not None} == {1, 2}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("error", [ModelError("no such folder"), DataError("no such file"), ConfigError("no plugin")])
def test_what_is_wrong_for_all_trials_ends_the_search_and_costs_none(world, table, error, number):
    def lose():
        world.load_fault = lambda config: error

    options = ("seeds=[1]", "search.trials=3")
    world.plans[f"trial-000{number}-seed1"] = lose
    for _ in range(2):
        with pytest.raises(type(error), match=str(error)):
            run_search(table(*options), table.file)
    world.load_fault = lambda config: None
    run_search(table(*options), table.file)
    assert all(score is not None for _, score in trials(table(*options)).values())


@pytest.mark.parametrize("error", [RunError("not writable"), OSError("disk"), ZeroDivisionError()])
def test_what_is_no_fault_of_values_ends_the_search_without_trying_others(world, table, error):
    world.plans["trial-0002-seed1"] = raises(error)
    with pytest.raises(type(error)):
        run_search(table(), table.file)
    assert world.num_loads == 0
    run_search(table(), table.file)
    assert all(score is not None for _, score in trials(table()).values())


def test_a_trial_that_has_ended_leaves_neither_model_nor_checkpoints(world, table):
    folder = Path(table().common.runs_dir, "table-search/toy-sentence/finetune")

    def write(error):
        def plan():
            for part in ("model", "checkpoints/step-1"):
                (folder / name / part).mkdir(parents=True)
            if error is not None:
                raise error

        name = f"trial-000{len(world.plans)}-seed2"
        world.plans[name] = plan

    for error in (None, DivergedError("loss is nan"), DataError("too few rows"), Killed()):
        write(error)
    with pytest.raises(Killed):
        run_search(table(), table.file)
    assert [file.parent.name for file in folder.glob("*/checkpoints")] == ["trial-0003-seed2"]  # goes on from there
    run_search(table(), table.file)
    assert not [*folder.glob("*/checkpoints"), *folder.glob("*/model")]


def test_a_search_does_not_go_on_with_other_inputs(world, table, tmp_path):
    """Nor does it while it runs; what was put back is as before."""
    files = tmp_path / "files"
    files.mkdir()
    rows = "text,label\n" + "".join(f"a film {number},{('bad', 'good')[number % 2]}\n" for number in range(20))
    (files / "train.csv").write_text(rows)
    columns = "text: [text], label: label, labels: [bad, good], metrics: [accuracy]"
    task = f"{{name: mine, {columns}, files: {{train: train.csv}}}}"
    options = (f"tasks=[{task}]", f"data.path={files}", "search.keys={train.lr: {low: 1e-4, high: 1e-2}}")

    def change():
        (files / "train.csv").write_text(rows + "another,good\n")

    world.plans["trial-0002-seed1"] = change
    for _ in range(2):
        with pytest.raises(RunError, match=r"/mine/finetune: the train split has changed since this search began"):
            run_search(table(*options), table.file)
        assert world.ran[-1] == "trial-0002-seed2"
    (files / "train.csv").write_text(rows)
    run_search(table(*options), table.file)
    change()
    with pytest.raises(RunError, match="the train split has changed"):  # also of a finished search
        run_search(table(*options), table.file)


def test_inputs_are_files_models_that_are_drawn_and_the_users_own_code(table, tmp_path, monkeypatch):
    models = [tmp_path / "a", tmp_path / "b"]
    plugin = tmp_path / "plugins/own_methods_of_a_search.py"
    plugin.parent.mkdir()
    plugin.write_text("class Own:\n    def __init__(self, *_, **__): ...\n    def step(self, batch): ...\n")
    monkeypatch.syspath_prepend(plugin.parent)
    for number, model in enumerate(models):
        model.mkdir()
        (model / "config.json").write_text(str(number))
    choices = ", ".join(map(str, models))
    settings = table(
        "methods=[own_methods_of_a_search:Own]",
        "student={init: pretrained, num_layers: null}",
        f"search.keys={{student.pretrained: {{choices: [{choices}]}}}}",
        f"student.pretrained={models[0]}",
    )
    cells = [cell for cell in settings.cells if cell.row != "teacher"]

    def digests():
        return digest_all_inputs(cells, search.without_dev(cells[0].task), settings.keys.search)

    before = digests()
    for file in (models[1] / "config.json", plugin):
        file.write_text(file.read_text() + " ")
    after = digests()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert "code of own_methods_of_a_search:Own" in changed
    of_student = {name for name in before if name.startswith("model that the student starts as")}
    assert {name for name in of_student if name not in changed} == {"model that the student starts as"}
    assert any(str(models[1]) in name for name in of_student & changed)


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_of_the_trials_whose_writing_was_cut_short_is_cut_off(world, table, cut):
    run_search(table(runs="whole"), table.file)
    file = Path(table().common.runs_dir, "table-search/toy-sentence/finetune/trials.log")

    def fill_disk():
        whole = file.read_bytes()
        file.write_bytes(whole + whole.splitlines()[-1][:-cut])

    def fill_disk_and_die():
        fill_disk()
        raise Killed

    world.plans["trial-0001-seed1"] = fill_disk  # another process's: this one goes on
    world.plans["trial-0003-seed1"] = fill_disk_and_die
    with pytest.raises(Killed):
        run_search(table(), table.file)
    run_search(table(), table.file)
    assert trials(table()) == trials(table(runs="whole"))
    assert [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("damage", ["not JSON\n", "[]\n", "\0\0\0\0\n", '{"op_code": 6}\n', "\xff\n"])
def test_a_damaged_file_of_trials_is_one_sentence(world, table, damage):
    run_search(table("search.trials=2"), table.file)
    file = Path(table().common.runs_dir, "table-search/toy-sentence/finetune/trials.log")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:-1], damage.encode("latin-1"), lines[-1]]))
    with pytest.raises(RunError, match=r"trials\.log: is damaged .* remove "):
        run_search(table(), table.file)


REFUSED = {
    "search.keys={train.epoch: {low: 1, high: 2}}": "did you mean 'train.epochs'",
    "search.keys={seed: {low: 1, high: 2}}": "only keys of a section",
    "search.keys={train: {low: 1, high: 2}}": "give the key of one value",
    "search.keys={train.epochs: {low: 1.5, high: 2}}": "takes whole numbers",
    "search.keys={train.adamw: {low: 1, high: 2}}": "takes no numbers",
    "search.keys={train.weight_decay: {low: 2, high: 1}}": "expected low < high",
    "search.keys={train.weight_decay: {low: 0, high: 1, log: true}}": "log needs low > 0",
    "search.keys={train.lr: {choices: [1, 2]}}": "choices stand alone",
    "search.keys={train.weight_decay: {choices: [1, 1]}}": "different values",
    "search.keys={train.weight_decay: {low: -1, high: 1}}": "train.weight_decay",
    "search.keys={reptile.mu: {low: 0, high: 1}}": "has no effect on finetune",
    "search.keys={train.log_every: {low: 1, high: 2}}": "has no effect on finetune",
    "data.validation_fraction=null": "never by the dev split",
    "methods=[teacher, finetune]": "leave teacher out",
    "engine.name=ray": "cannot be made by engine ray: give --engine local",
    "search.keys={data.max_train_rows: {low: 10, high: 20}}": "data.max_train_rows decides which rows are held out",
    "search.keys={data.validation_fraction: {low: 0.1, high: 0.2}}": "validation_fraction decides which rows",
    "search.keys={data.path: {choices: [a, b]}}": "data.path decides which rows are held out",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_search_that_could_not_mean_anything_is_refused_before_it_starts(world, table, override):
    with pytest.raises(ConfigError) as refused:
        run_search(table(override), table.file)
    assert REFUSED[override] in str(refused.value)
    assert world.ran == []


def test_of_each_key_of_data_it_is_known_whether_it_chooses_the_held_out_rows():
    """What these change is how rows are read and computed, or which of the other rows are trained on."""
    harmless = {"max_length", "check_rows", "packing", "cache_dir", "transfer"}
    assert {key.removeprefix("data.") for key in CHOOSE_HELD_OUT_ROWS} == DataConfig.model_fields.keys() - harmless


def test_keys_that_need_a_teacher_of_their_own_are_refused(table):
    settings = table("methods=[kd]", "search.keys={teacher.train.lr: {low: 1e-4, high: 1e-3}}")
    with pytest.raises(ConfigError, match="all trials share one"):
        check_search(settings, settings.keys.search)


def test_another_search_in_the_same_folder_is_refused_by_key(world, table):
    run_search(table(), table.file)
    with pytest.raises(RunError, match=r"holds a search with train\.epochs = 1, not 2"):
        run_search(table("train.epochs=2"), table.file)


def test_without_the_package_one_sentence_names_the_extra(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'reptile-distil\[sweep\]'"):
        run_search(table(), table.file)


@pytest.mark.parametrize("option", ["--only-runs", "--only-table", "--print-commands", "--dry-run"])
def test_options_of_tables_are_refused(call, table, option):
    code, _, err = call("table", option, config=table.file)
    assert (code, err) == (2, f"error: {option} is for a table: give search=null to make one\n")


def test_a_search_never_scores_dev(table, tmp_path):
    """No file of a trial names dev; the run of the winner scores it, once."""
    options = ("methods=[kd]", "seeds=[1]", "search.trials=2", "search.keys={loss.alpha: {low: 0.1, high: 1}}")
    run_search(table(*options), table.file)
    folder = tmp_path / "runs/table-search/toy-sentence/kd"
    for number in range(2):
        results = json.loads((folder / f"trial-000{number}-seed1/results.json").read_text())
        assert set(results["scores"]) == {"validation"}
        assert set(results["teacher"]["scores_at_start"]) == {"validation"}
        assert not (folder / f"trial-000{number}-seed1/model").exists()

    best = load_config(folder / "best.yaml")
    scores = Experiment(best).fit()["scores"]
    assert set(scores) == {"validation", "dev"}
    assert scores["validation"]["accuracy"] == max(score for _, score in trials(table(*options)).values())
    assert [file.parent.name for file in folder.glob("**/predictions_dev.json")] == ["best-seed1"]
    Experiment(load_config(folder / "best.yaml", ["seed=7"])).fit()
    assert (folder / "best-seed7/results.json").exists()
