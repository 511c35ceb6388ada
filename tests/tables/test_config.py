"""A table's YAML: which cells it stands for, with which settings, and what it refuses."""

import re
import shlex
from pathlib import Path

import pytest

from reptile_distil.config.config import load_config
from reptile_distil.errors import ConfigError
from reptile_distil.tables.commands import commands
from reptile_distil.tables.config import METHODS, describe_table, load_table_config
from tests.helpers.paths import CONFIGS, TINY_TABLE

START = ("python", "scripts/table.py")


@pytest.fixture
def write(tmp_path):
    """Writes a table of toy tasks on top of tiny.yaml."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(f"extends: {TINY_TABLE.with_name('tiny.yaml')}\n{text}")
        return path

    return write


def cell(table, task, row, seed):
    (found,) = [cell for cell in table.cells if (cell.task.name, cell.row, cell.seed) == (task, row, seed)]
    return found


def test_the_shipped_glue_table_has_nine_tasks_three_methods_and_five_seeds():
    table = load_table_config(CONFIGS / "table.yaml")
    assert {task.name for task in table.tasks} == set("cola sst2 mrpc stsb qqp mnli qnli rte wnli".split())
    assert table.rows == ("teacher", "finetune", "kd", "reptile")
    assert table.seeds == (42, 43, 44, 45, 46)
    assert len(table.cells) == 9 * 5 * 4


def test_the_shipped_toy_table_has_four_tasks_three_methods_and_three_seeds():
    table = load_table_config(CONFIGS / "table-toy.yaml")
    assert len(table.tasks) == 4
    assert table.seeds == (42, 43, 44)
    assert len(table.cells) == 4 * 3 * 4
    assert {cell.config.num_threads for cell in table.cells} == {1}


def test_the_shipped_ablations_are_a_table_of_thirty_eight_methods_and_variants():
    table = load_table_config(CONFIGS / "ablation.yaml")
    assert len(table.rows) == 1 + 38  # the teacher
    assert len(table.cells) == 4 * 3 * 39
    persistent = cell(table, "rte", "inner-persistent-adamw", 43).config
    assert (persistent.method, persistent.reptile.inner_optimizer) == ("reptile", "persistent_adamw")
    assert cell(table, "rte", "metadistil-mse", 43).config.loss.soft == "mse"


def test_the_shipped_toy_ablations_choose_by_training_rows_and_run_every_variant():
    table = load_table_config(CONFIGS / "toy" / "ablation.yaml")
    assert set(table.rows) == {"teacher", "finetune", "kd", "reptile", "metadistil", *table.keys.variants}
    assert {cell.config.data.validation_fraction for cell in table.cells} == {0.1}


def test_the_shipped_table_of_methods_has_all_of_them_and_teachers_that_keep_their_epochs():
    table = load_table_config(CONFIGS / "toy" / "methods.yaml")
    assert set(table.rows) == {"teacher", *METHODS, *table.keys.variants}
    assert table.seeds == (42, 43, 44)
    assert {cell.config.data.validation_fraction for cell in table.cells} == {0.1}
    assert {cell.config.teacher.keep_epochs for cell in table.cells if cell.row == "teacher"} == {True}


def test_the_shipped_study_chooses_by_training_rows_in_every_cell():
    table = load_table_config(CONFIGS / "minilm" / "table.yaml")
    assert {cell.config.data.validation_fraction for cell in table.cells} == {0.1}
    assert {cell.config.seed for cell in table.cells} == {42, 43, 44}


def test_two_shipped_tables_in_one_runs_dir_share_runs_and_not_the_tables_files():
    ablations, glue = (load_table_config(CONFIGS / f"{name}.yaml", ["runs_dir=x"]) for name in ("ablation", "table"))
    assert (ablations.output, glue.output) == (Path("x/ablation"), Path("x/table"))
    shared = {cell.folder: cell for cell in glue.cells}
    common = [cell for cell in ablations.cells if cell.folder in shared]
    assert {cell.row for cell in common} == {"teacher", "finetune", "kd", "reptile"}
    assert all(cell.decisive == shared[cell.folder].decisive for cell in common)
    assert load_table_config(CONFIGS / "ablation.yaml", ["output=y/mine"]).output == Path("y/mine")


def test_metadistil_is_a_method_of_a_table_with_the_tables_own_teacher():
    table = load_table_config(TINY_TABLE, ["methods=[metadistil]", "metadistil.teacher_lr=1e-4"])
    assert table.rows == ("teacher", "metadistil")
    students = [cell for cell in table.cells if cell.row == "metadistil"]
    assert {(cell.config.method, cell.config.metadistil.teacher_lr) for cell in students} == {("metadistil", 1e-4)}
    assert all(cell.needs_teacher for cell in students)


def test_an_option_of_reptile_holds_for_its_rows_and_variants_and_is_none_of_the_others():
    variants = "variants={slow: {method: reptile, reptile: {update: interpolate}}}"
    table = load_table_config(TINY_TABLE, ["methods=[kd, reptile, slow]", variants, "reptile.mu=0.25"])
    assert {cell.config.reptile.mu for cell in table.cells if cell.row in ("reptile", "slow")} == {0.25}
    assert not any("reptile.mu" in cell.decisive for cell in table.cells if cell.row == "kd")


@pytest.mark.parametrize("task", ["rte", "stsb"])
@pytest.mark.parametrize("method", ["finetune", "kd", "reptile"])
def test_a_cell_is_the_run_of_the_tasks_own_file(task, method):
    """So that distil.py's runs are the table's, and the other way round."""
    table = load_table_config(CONFIGS / "table.yaml")
    alone = load_config(CONFIGS / f"{task}.yaml", [f"method={method}", "seed=43"])
    assert cell(table, task, method, 43).config == alone
    assert cell(table, task, method, 43).folder == Path(f"runs/{task}/{method}-seed43")
    assert cell(table, task, "teacher", 43).decisive == alone.defining_settings("teacher")
    assert cell(table, task, "teacher", 43).folder == Path(f"runs/{task}/teacher-seed43")


def test_teachers_come_first_and_once_per_task_and_seed():
    table = load_table_config(TINY_TABLE, ["methods=[kd,reptile]", "seeds=[1,2]"])
    assert [cell.row for cell in table.cells] == ["teacher"] * 4 + ["kd", "reptile"] * 4


def test_finetuning_from_the_fine_tuned_teachers_layers_waits_for_the_teacher(write):
    student = "student: {init: finetuned_layers, num_layers: 1}\n"
    table = load_table_config(write(f"{student}tasks: [toy-sentence]\nmethods: [finetune]\nseeds: [1]\n"))
    assert table.rows == ("teacher", "finetune")
    assert cell(table, "toy-sentence", "finetune", 1).needs_teacher


def test_finetuning_alone_needs_no_teacher():
    table = load_table_config(TINY_TABLE, ["methods=[finetune]"])
    assert {cell.row for cell in table.cells} == {"finetune"}
    assert table.rows == ("finetune",)


def test_a_teacher_from_elsewhere_is_not_fine_tuned_but_is_a_row():
    table = load_table_config(TINY_TABLE, ["methods=[kd]", "teacher.finetuned=./somewhere"])
    assert {cell.row for cell in table.cells} == {"kd"}
    assert table.rows == ("teacher", "kd")
    assert not any(cell.needs_teacher for cell in table.cells)


def test_a_variant_is_a_row_with_settings_and_a_folder_of_its_own(write):
    text = "tasks: [toy-pair]\nmethods: [reptile, slow]\nseeds: [3]\n"
    text += "variants:\n  slow: {method: reptile, reptile: {update: interpolate, mu: 1e-3}}\n"
    table = load_table_config(write(text), ["runs_dir=elsewhere"])
    slow = cell(table, "toy-pair", "slow", 3)
    assert (slow.config.method, slow.config.reptile.update, slow.config.reptile.mu) == ("reptile", "interpolate", 1e-3)
    assert slow.folder == Path("elsewhere/toy-pair/slow-seed3")
    assert slow.config.output_dir == str(slow.folder)
    assert slow.needs_teacher
    plain = cell(table, "toy-pair", "reptile", 3)
    assert (plain.config.reptile.update, plain.config.output_dir) == ("adamw", None)


def test_settings_of_a_task_are_laid_over_the_files_and_a_variants_over_those(write):
    text = "tasks: [toy-pair, toy-sentence]\nmethods: [kd, hot]\nseeds: [1]\nloss: {alpha: 0.1}\n"
    text += "per_task:\n  toy-pair: {loss: {alpha: 0.2, temperature: 2}}\n"
    text += "variants:\n  hot: {method: kd, loss: {temperature: 9}}\n"
    table = load_table_config(write(text))
    losses = {(cell.task.name, cell.row): cell.config.loss for cell in table.cells}
    assert (losses["toy-sentence", "kd"].alpha, losses["toy-sentence", "kd"].temperature) == (0.1, 5.0)
    assert (losses["toy-pair", "kd"].alpha, losses["toy-pair", "kd"].temperature) == (0.2, 2.0)
    assert (losses["toy-pair", "hot"].alpha, losses["toy-pair", "hot"].temperature) == (0.2, 9.0)


def test_the_command_line_goes_above_everything(write):
    text = "tasks: [toy-pair]\nmethods: [hot]\nseeds: [1]\n"
    text += "per_task:\n  toy-pair: {loss: {alpha: 0.2}}\nvariants:\n  hot: {method: kd, loss: {temperature: 9}}\n"
    table = load_table_config(write(text), ["loss.alpha=0.7", "loss.temperature=3", "seeds=[5]"])
    loss = cell(table, "toy-pair", "hot", 5).config.loss
    assert (loss.alpha, loss.temperature) == (0.7, 3.0)


def test_an_own_task_may_stand_among_the_tasks():
    own = "{name: mine, text: [text], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}}"
    table = load_table_config(TINY_TABLE, [f"tasks=[toy-pair, {own}]", "per_task.mine.train.lr=1e-2"])
    assert cell(table, "mine", "kd", 1).config.train.lr == 1e-2
    assert cell(table, "mine", "kd", 1).folder.parts[-2:] == ("mine", "kd-seed1")


def test_the_command_line_names_own_tasks_of_the_file(write, tmp_path):
    own = "text: [text], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}"
    text = f"tasks: [{{name: mine, {own}}}, {{name: qqp, {own}}}, toy-pair]\nmethods: [kd]\nseeds: [1]\n"
    text += "per_task:\n  mine: {loss: {alpha: 0.2}}\n  qqp: {loss: {alpha: 0.3}}\n"
    table = load_table_config(write(text), ["tasks=[qqp]"])
    assert [task.name for task in table.tasks] == ["qqp"]
    assert table.tasks[0].is_own
    assert cell(table, "qqp", "kd", 1).config.loss.alpha == 0.3
    printed = tmp_path / "printed.yaml"
    printed.write_text(describe_table(table))
    assert load_table_config(printed) == table


def test_a_name_that_is_no_tasks_is_said_with_its_file_and_where_its_own_task_belongs(write, tmp_path):
    own = "{name: t, text: [text], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}}"
    write(f"task: {own}\n").rename(tmp_path / "run.yaml")
    path = tmp_path / "table.yaml"
    path.write_text("extends: run.yaml\ntasks: [toy-pair, t]\nmethods: [kd]\nseeds: [1]\n")
    with pytest.raises(ConfigError) as caught:
        load_table_config(path)
    assert str(caught.value) == (
        f"{path}: tasks: 't' is described under task, in {tmp_path / 'run.yaml'}, which a table does not read: "
        "describe a task of your own in the list tasks itself, beside the names of others: "
        "tasks: [toy-sentence, {name: t, text: [...], labels: [...], metrics: [...], files: {...}}]"
    )
    assert load_table_config(path, [f"tasks=[{own}]"]).tasks[0].is_own
    with pytest.raises(ConfigError, match=r"^command line: tasks: unknown task 'u', known: cola, .*, toy-regression$"):
        load_table_config(path, ["tasks=[u]"])


def test_an_own_task_under_task_in_a_tables_own_file_is_told_where_it_belongs(write):
    own = "{name: t, text: [text], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}}"
    path = write(f"task: {own}\ntasks: [toy-pair, t]\nmethods: [kd]\nseeds: [1]\n")
    with pytest.raises(ConfigError) as caught:
        load_table_config(path)
    assert str(caught.value).startswith(f"{path}: task = {{'name': 't', ")
    assert str(caught.value).endswith(
        "a table has no task, describe a task of your own in the list tasks itself, beside the names of others: "
        "tasks: [toy-sentence, {name: t, text: [...], labels: [...], metrics: [...], files: {...}}]"
    )


def test_an_unknown_task_is_told_the_own_tasks_of_the_file(write):
    own = "{name: my-task, text: [text], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}}"
    path = write(f"tasks: [toy-pair, {own}]\nmethods: [kd]\nseeds: [1]\n")
    with pytest.raises(
        ConfigError, match=r"'my-tsk', known: cola, .*, toy-regression, my-task; did you mean 'my-task'\?$"
    ):
        load_table_config(path, ["tasks=[my-tsk]"])


def test_commands_of_cells_load_where_other_own_tasks_have_settings(write):
    own = "text: [text], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}"
    text = f"tasks: [{{name: mine, {own}}}, {{name: yours, {own}}}]\nmethods: [kd]\nseeds: [1]\n"
    path = write(text + "per_task:\n  mine: {loss: {alpha: 0.2}}\n  yours: {loss: {alpha: 0.3}}\n")
    table = load_table_config(path)
    for wanted, words in zip(table.cells, commands(table, START, path, []), strict=True):
        table_of_one = load_table_config(path, words[4:-1])
        assert cell(table_of_one, wanted.task.name, wanted.row, 1).config == wanted.config


def test_the_printed_configuration_loads_and_says_the_same(write, tmp_path):
    text = "tasks: [toy-pair, toy-regression]\nmethods: [kd, hot]\nseeds: [1]\n"
    text += "per_task:\n  toy-pair: {loss: {alpha: 0.2}}\nvariants:\n  hot: {method: kd, loss: {temperature: 9}}\n"
    table = load_table_config(write(text), ["loss.alpha=0.7", "train.lr=5e-5"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(describe_table(table))
    assert load_table_config(printed) == table


def test_commands_name_one_cell_each_and_keep_the_other_overrides():
    overrides = ["methods=[kd]", "data.path=a folder"]
    table = load_table_config(TINY_TABLE, [*overrides, "tasks=[toy-pair]"])
    lines = [shlex.join(words) for words in commands(table, START, Path("x y.yaml"), overrides)]
    start = "python scripts/table.py --config 'x y.yaml' 'data.path=a folder' 'tasks=[toy-pair]'"
    assert lines == [
        f"{start} 'methods=[teacher]' 'seeds=[1]' --only-runs",
        f"{start} 'methods=[kd]' 'seeds=[1]' --only-runs",
    ]


def test_a_command_has_only_the_options_that_its_cell_takes():
    overrides = ["methods=[kd, reptile]", "reptile.mu=0.1", "kd.keep_logits=false", "train.lr=1e-3"]
    table = load_table_config(TINY_TABLE, overrides)
    for one, words in zip(table.cells, commands(table, START, TINY_TABLE, overrides), strict=True):
        loaded = load_table_config(TINY_TABLE, words[4:-1]).cells[-1]
        assert (loaded.name, loaded.decisive) == (one.name, one.decisive)
        assert ("reptile.mu=0.1" in words) == (one.row != "kd")


def test_an_option_of_some_cells_start_is_none_of_the_others(write):
    text = "tasks: [toy-pair, toy-sentence]\nmethods: [kd, random]\nseeds: [1]\n"
    text += "variants: {random: {method: kd, student: {init: random}}}\n"
    text += "per_task: {toy-pair: {student: {init: pretrained, num_layers: null}}}\n"
    path, overrides = write(text), ["student={pretrained: toy-bert-1L-32H}", "variants.random.student.num_layers=1"]
    table = load_table_config(path, overrides)
    for one, words in zip(table.cells, commands(table, START, path, overrides), strict=True):
        assert load_table_config(path, words[4:-1]).cells[-1] == one
    with pytest.raises(
        ConfigError, match=r"student.pretrained has no effect with student.init = teacher_layers; leave"
    ):
        load_table_config(path, [overrides[0], "tasks=[toy-sentence]", "methods=[kd]"])


def test_options_of_the_teachers_tuning_need_a_teacher_that_is_fine_tuned():
    kept = ["teacher.keep_epochs=true", "teacher.train.epochs=2"]
    with pytest.raises(ConfigError, match=r"teacher.keep_epochs has no effect with teacher.finetuned = x; leave"):
        load_table_config(TINY_TABLE, ["teacher.finetuned=x", *kept])
    overrides = ["methods=[teacher, kd]", "teacher.finetuned=x", *kept]
    table = load_table_config(TINY_TABLE, overrides)
    for one, words in zip(table.cells, commands(table, START, TINY_TABLE, overrides), strict=True):
        assert load_table_config(TINY_TABLE, words[4:-1]).cells[-1] == one


def test_names_of_a_teachers_outputs_need_a_teacher_from_elsewhere():
    names = "teacher.label_names=[negative, positive]"
    message = (
        r"teacher.label_names has no effect with a teacher that is fine-tuned here; leave it out, or give teacher.f"
    )
    with pytest.raises(ConfigError, match=message):
        load_table_config(TINY_TABLE, [names])
    for elsewhere in ("teacher.finetuned=x", "teachers=[x, y]"):
        load_table_config(TINY_TABLE, [names, elsewhere, "tasks=[toy-sentence]"])


def test_whichever_command_comes_first_the_teacher_keeps_the_epochs_that_a_row_needs():
    overrides = ["methods=[kd, checkpoints]", "tasks=[toy-pair, toy-sentence]"]
    table = load_table_config(TINY_TABLE, overrides)
    for words in commands(table, START, TINY_TABLE, overrides):
        (teacher, *_) = load_table_config(TINY_TABLE, words[4:-1]).cells
        assert teacher.row == "teacher"
        assert teacher.config.teacher.keep_epochs


@pytest.mark.parametrize("name", ["0.5", "null", "1e-3", "-", "---", "true", "2001-01-01", "plain"])
def test_a_row_may_be_called_like_a_number(write, name):
    path = write(f'tasks: [toy-pair]\nmethods: ["{name}"]\nseeds: [1]\nvariants: {{"{name}": {{method: kd}}}}\n')
    table = load_table_config(path)
    for one, words in zip(table.cells, commands(table, START, path, []), strict=True):
        assert load_table_config(path, words[4:-1]).cells[-1] == one


@pytest.mark.parametrize("own", ["loss.extra_rows=1", "teachers=[a, b]"])
def test_options_of_kd_stand_in_a_table_without_another_method(own):
    table = load_table_config(TINY_TABLE, ["methods=[kd, finetune]", "tasks=[toy-pair]", own])
    (kd,) = (cell for cell in table.cells if cell.row == "kd")
    assert kd.config.loss.extra_rows or kd.config.teachers


def test_the_command_of_a_cell_means_that_cell_and_its_teacher(write):
    text = "tasks: [toy-pair]\nmethods: [finetune, hot]\nseeds: [1, 2]\n"
    path = write(text + "variants:\n  hot: {method: kd, loss: {temperature: 9}}\n")
    own = "tasks=[toy-pair, {name: mine, text: [t], labels: [a, b], metrics: [f1], files: {train: t.csv, dev: d.csv}}]"
    table = load_table_config(path, [own])
    for one, words in zip(table.cells, commands(table, START, path, [own]), strict=True):
        cells = load_table_config(path, words[4:-1]).cells
        assert cells[-1] == one
        assert [cell.row for cell in cells[:-1]] == ["teacher"] * one.needs_teacher


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tasks=[rte,rte]"], "command line: tasks: 'rte' is given twice"),
        (["seeds=[1,1]"], "command line: seeds: 1 is given twice"),
        (["tasks=[]"], "command line: tasks = []: list should have at least 1 item"),
        (["tasks=rte"], "command line: tasks = 'rte': expected a valid list"),
        (["tasks=[rtee]"], "wnli, ax, toy-sentence, toy-pair, toy-threeway, toy-regression; did you mean 'rte'?"),
        (["tasks=[ax]"], "command line: tasks: ax has no train split"),
        (["seeds=[-1]"], "command line: seeds.0 = -1: expected greater than or equal to 0"),
        (["seeds=[a]"], "command line: seeds.0 = 'a': expected"),
        (
            ["methods=[kdd]"],
            "unknown method 'kdd', known: finetune, kd, reptile, metadistil, prokt, cotrain, checkpoints, lgtm, "
            "teacher; did you mean 'kd'?",
        ),
        (["seed=0"], "command line: seed = 0: a table has no seed, give seeds="),
        (["method=kd"], "a table has no method, give methods="),
        (["task=rte"], "a table has no task, give tasks="),
        (["compare_with=[kd]"], "a table has no compare_with, give methods="),
        (["name=a/b"], "command line: name = 'a/b'"),
        (["output_dir=x"], "a table has no output_dir, give runs_dir="),
        (["metods=[kd]"], "command line: unknown key 'metods'; did you mean 'methods'?"),
        (["train.lrr=1"], "command line: unknown key 'train.lrr'; did you mean 'train.lr'?"),
        (["train.lr=fast"], "command line: train.lr = 'fast'"),
        (["per_task.stbs.loss.alpha=1"], "per_task: unknown task 'stbs'; did you mean 'stsb'?"),
        (["per_task.toy-sentence.los.alpha=1"], "per_task.toy-sentence: unknown key 'los'; did you mean 'loss'?"),
        (["per_task.toy-sentence.seed=1"], "per_task.toy-sentence: seed is the table's affair"),
        (["per_task.toy-sentence.method=kd"], "per_task.toy-sentence: method is the table's affair"),
        (["per_task=3"], "command line: per_task = 3: expected"),
        (["variants.x.loss.alpha=1"], "variants.x.method = None: expected one of finetune, kd, reptile"),
        (["variants.kd.method=kd"], "variants.kd: expected a name"),
        (["variants.teacher.method=kd"], "variants.teacher: expected a name"),
        (["variants.a/b.method=kd"], "variants.a/b: expected a name"),
        (["variants.x={method: kd, output_dir: y}"], "variants.x: output_dir is the table's affair"),
        (["variants.x={method: kd, loss: {alpha: 5}}", "methods=[x]"], "variants.x: loss.alpha = 5: expected less"),
        (["per_task.toy-sentence.seeds=[1]"], "per_task.toy-sentence: seeds is the table's affair"),
        (["variants.x={method: kd, name: y}"], "variants.x: name is the table's affair"),
        (["variants.own={method: kd}", "methods=[my_pkg:Own, own]"], "the runs of my_pkg:Own and own would lie in the"),
        (["methods=[a.b:Own, b.c:Own]"], "the runs of a.b:Own and b.c:Own would lie in the same folders"),
        (["output=."], "command line: output = '.': expected the start of the names of the table's files"),
        (["output=/"], "output = '/': expected the start of the names of the table's files, for example /table"),
        (
            ["methods=[kd, finetune]", "reptile.mu=0.1"],
            "reptile.mu has no effect on method finetune or kd; leave",
        ),
        (["methods=[finetune]", "kd.keep_logits=true"], "give methods=[kd]"),
        (["methods=[kd]", "method_options.x=1"], "give a method of your own, methods=[package.module:Name]"),
        (["methods=[finetune]", "data.transfer={ratio: 2, fraction: 0.5}", "data.transfer.ratio=3"], "labels alone"),
        (
            ["search={keys: {train.lr: {low: 1e-4, high: 1e-3}}, trialz: 3}"],
            "unknown key 'search.trialz'; did you",
        ),
        (["search={keys: {train.lr: {low: 1e-4, hihg: 1e-3}}}"], "unknown key 'search.keys.train.lr.hihg'"),
        (
            ["variants={slow: {method: kd, loss: {alpha: 0.1}}}"],
            "command line: variants.slow is none of the rows, finetune, kd: name it in methods=[...], or leave it out",
        ),
        (
            ["methods=[slow]", "variants={slow: {method: kd, reptile: {mu: 0.9}}}"],
            "command line: variants.slow: reptile.mu has no effect on kd; leave it out",
        ),
        (["variants={slow: {method: finetune, loss: {alpha: 0.9}}}"], "loss.alpha has no effect on finetune; leave"),
        (["variants={slow: {method: finetune, teachers: [x]}}"], "teachers has no effect on finetune; leave"),
        (
            ["methods=[slow]", "variants={slow: {method: kd, student: {pretrained: x}}}"],
            "variants.slow: student.pretrained has no effect with student.init = teacher_layers; leave it out, or give",
        ),
        (
            ["methods=[slow]", "variants={slow: {method: kd, teacher: {finetuned: x, train: {epochs: 2}}}}"],
            "variants.slow: teacher.train.epochs has no effect with teacher.finetuned = x; leave it out, or give",
        ),
        (["precision=auto"], "precision = 'auto': differs from machine to machine"),
    ],
)
def test_what_no_table_can_have_is_refused_in_one_sentence(overrides, message):
    with pytest.raises(ConfigError) as caught:
        load_table_config(TINY_TABLE, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("loss: {alhpa: 0.1}", "mine.yaml, variants.slow: unknown key 'loss.alhpa'; did you mean 'loss.alpha'?"),
        ("los: {alpha: 0.1}", "mine.yaml, variants.slow: unknown key 'los'; did you mean 'loss'?"),
        ("loss: {alpha: 7}", "mine.yaml, variants.slow: loss.alpha = 7: expected less than or equal to 1"),
        ("student: {init: random}, loss: 3", "variants.slow: loss = 3: expected a section of `key: value` lines"),
        ("reptile: {mu: 0.9}", "mine.yaml: variants.slow: reptile.mu has no effect on kd; leave it out"),
    ],
)
def test_a_variant_that_is_no_row_is_checked_too(write, variant, message):
    path = write(f"tasks: [toy-pair]\nmethods: [kd]\nseeds: [1]\nvariants: {{slow: {{method: kd, {variant}}}}}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_table_config(path)


def test_a_variant_of_a_file_may_be_no_row_and_not_fit_the_rest(write):
    text = "tasks: [toy-pair]\nmethods: [slow, kd]\nseeds: [1]\nvariants: {slow: {method: lgtm, lgtm: {every: 2}}}\n"
    path = write(text)
    assert load_table_config(path, ["methods=[kd]", "loss.alpha=0"]).rows == ("teacher", "kd")
    with pytest.raises(ConfigError, match=r"command line: variants\.slow is none of the rows, kd: name it in methods="):
        load_table_config(path, ["methods=[kd]", "variants.slow.lgtm.every=3"])


@pytest.mark.parametrize("of_both", [True, False])
def test_a_command_has_the_variant_of_its_cell_alone(of_both):
    slow, fast = "{method: kd, train: {lr: 1e-5}}", "{method: reptile, reptile: {mu: 1e-3}}"
    given = (
        [f"variants={{slow: {slow}, fast: {fast}}}"] if of_both else [f"variants.slow={slow}", f"variants.fast={fast}"]
    )
    overrides = ["methods=[kd, slow, fast]", "tasks=[toy-pair]", *given]
    table = load_table_config(TINY_TABLE, overrides)
    for one, words in zip(table.cells, commands(table, START, TINY_TABLE, overrides), strict=True):
        assert load_table_config(TINY_TABLE, words[4:-1]).cells[-1] == one


@pytest.mark.parametrize("key", ["tasks", "methods", "seeds"])
def test_a_table_without_tasks_methods_or_seeds_is_refused(write, key):
    lines = {"tasks": "tasks: [toy-pair]\n", "methods": "methods: [kd]\n", "seeds": "seeds: [1]\n"}
    text = "".join(line for name, line in lines.items() if name != key)
    with pytest.raises(ConfigError, match=f"mine.yaml: the key '{key}' is missing"):
        load_table_config(write(text))


def test_a_tables_own_file_cannot_give_the_seed_of_all_cells(write):
    path = write("tasks: [toy-pair]\nmethods: [kd]\nseeds: [1]\nseed: 7\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: seed = 7: a table has no seed"):
        load_table_config(path)


def test_a_task_of_ones_own_without_a_dev_split_is_refused(tmp_path):
    files = "files: {train: t.csv}"
    task = f"{{name: mine, text: [text], labels: [a, b], metrics: [accuracy], {files}}}"
    with pytest.raises(ConfigError, match="task mine has no dev split, whose scores a table is made of: give it one"):
        load_table_config(CONFIGS / "table-toy.yaml", [f"tasks=[{task}]", "data.validation_fraction=0.1"])
