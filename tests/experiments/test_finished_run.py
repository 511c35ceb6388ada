"""A finished run is not taken for one on other files, however the folder's settings agree."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from reptile_distil import Experiment
from reptile_distil.errors import CallbackError, ModelError, RunError
from reptile_distil.experiments.setup import Setup
from reptile_distil.export.report import make_report
from reptile_distil.models.loading import find_folder
from reptile_distil.tables.config import load_table_config
from reptile_distil.tables.data import collect
from reptile_distil.tables.grid import Grid
from tests.helpers.paths import TINY, TINY_TABLE

OWN = "{name: mine, text: [text], labels: [down, up], metrics: [accuracy], files: {train: train.csv, dev: dev.csv}}"
TRAIN, DEV = ("text,label\n" + "a good film,up\nbad,down\n" * count for count in (40, 10))


@pytest.fixture
def own(tmp_path):
    """A tiny experiment on files of its own."""
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "dev.csv").write_text(DEV)

    def own(*overrides):
        paths = (f"runs_dir={tmp_path}/runs", f"data.path={tmp_path}")
        return Experiment.from_yaml(TINY, f"task={OWN}", *paths, *overrides)

    return own


@pytest.fixture
def teacher(own, tmp_path):
    """Folder of a fine-tuned teacher outside the runs."""
    own().fit_teacher()
    shutil.copytree(own().teacher_folder.model, tmp_path / "teacher")
    return tmp_path / "teacher"


def change_weights(folder):
    file = folder / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("split", ["train", "dev"])
def test_rows_that_have_changed_since_are_noticed(own, tmp_path, split):
    own("method=finetune").fit()
    file = tmp_path / f"{split}.csv"
    before = file.read_text()
    file.write_text(before.replace("bad,down", "bad,up", 1))
    with pytest.raises(RunError, match=rf"finetune-seed42: the {split} split has changed since this run was made; put"):
        own("method=finetune").fit()
    file.write_text(before)
    own("method=finetune").fit()


@pytest.mark.parametrize("split", ["train", "dev"])
def test_rows_that_are_replaced_while_they_are_read_are_noticed(own, tmp_path, split, monkeypatch):
    load_data = Setup.load_data

    def replaced(*args, **options):
        data = load_data(*args, **options)
        (tmp_path / f"{split}.csv").write_text("text,label\na bad film,down\n")
        return data

    monkeypatch.setattr(Setup, "load_data", replaced)
    with pytest.raises(RunError, match=rf"the {split} split has changed while it was read; run the same command again"):
        own("method=finetune").fit()


def test_another_teacher_under_the_same_name_is_noticed(own, teacher):
    arguments = ("method=kd", f"teacher.finetuned={teacher}")
    own(*arguments).fit()
    assert own(*arguments).fit()["method"] == "kd"
    change_weights(teacher)
    with pytest.raises(RunError, match="kd-seed42: the teacher has changed since this run was made"):
        own(*arguments).fit()
    assert own(*arguments).fit(overwrite=True)["method"] == "kd"


def test_a_teacher_fine_tuned_again_to_other_weights_is_noticed(own):
    own("method=kd").fit()
    change_weights(own().teacher_folder.model)
    with pytest.raises(RunError, match="the teacher has changed since this run was made"):
        own("method=kd").fit()


def test_advice_about_a_teacher_is_advice_that_helps(own, tmp_path):
    own("method=kd").fit()
    (tmp_path / "dev.csv").write_text(TRAIN)
    with pytest.raises(RunError, match=r"teacher-seed42: the dev split has changed .* scripts/finetune.py --overwrite"):
        own("method=kd", f"output_dir={tmp_path}/other").fit()


def test_another_start_of_the_student_is_noticed(own, teacher):
    arguments = ("method=finetune", "student.init=pretrained", "student.num_layers=null")
    own(*arguments, f"student.pretrained={teacher}").fit()
    change_weights(teacher)
    with pytest.raises(RunError, match="the model that the student starts as has changed"):
        own(*arguments, f"student.pretrained={teacher}").fit()


def test_a_finished_run_is_still_read_where_its_inputs_are_gone(own, tmp_path):
    results = own("method=kd").fit()
    (tmp_path / "train.csv").unlink()
    shutil.rmtree(own().teacher_folder.path)
    assert results["inputs"].keys() == {"train split", "dev split", "teacher"}
    assert own("method=kd").fit() == results


def test_a_table_does_not_count_runs_on_other_rows(tmp_path):
    (tmp_path / "toy.csv").write_text(TRAIN)
    own = OWN.replace("train.csv", "toy.csv").replace("dev.csv", "toy.csv")
    arguments = [f"runs_dir={tmp_path}/runs", f"data.path={tmp_path}", f"tasks=[{own}]", "methods=[finetune]"]
    cells = load_table_config(TINY_TABLE, arguments).cells
    first = Grid(cells)
    first.run()
    assert first.failures == {}
    (tmp_path / "toy.csv").write_text(TRAIN + "bad,down\n")
    table = collect(load_table_config(TINY_TABLE, arguments))
    assert table.runs == {}
    assert all("split has changed since this run was made" in problem for problem in table.problems)
    assert all("give another runs_dir, or remove this folder" in problem for problem in table.problems)
    second = Grid(cells)
    second.run()
    assert list(second.failures) == [cell.name for cell in cells]
    assert all("split has changed since this run was made" in reason for reason in second.failures.values())


def test_a_dry_run_notices_too(call, tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "dev.csv").write_text(DEV)
    arguments = ("method=finetune", f"task={OWN}", f"data.path={tmp_path}")
    assert call("distil", *arguments)[0] == 0
    (tmp_path / "dev.csv").write_text(TRAIN)
    code, _, err = call("distil", *arguments, "--dry-run")
    assert code == 2
    assert "the dev split has changed since this run was made" in err


def test_a_finished_run_stands_for_its_model(own, tmp_path):
    own().fit_teacher()
    run = own().teacher_folder.path
    by_run = own("method=kd", f"teacher.finetuned={run}", f"output_dir={tmp_path}/a").fit()
    by_model = own("method=kd", f"teacher.finetuned={run}/model", f"output_dir={tmp_path}/b").fit()
    assert by_run["teacher"]["scores_at_start"] == by_model["teacher"]["scores_at_start"]
    assert by_run["inputs"] == by_model["inputs"]
    assert own().evaluate(model=run) == own().evaluate(model=run / "model")


def test_every_script_takes_a_finished_run_for_its_model(call, own, tmp_path):
    own("method=kd").fit()
    run, teacher = own("method=kd").folder.path, own().teacher_folder.path
    said = [call("evaluate", "--model", model, config=None) for model in (run, run / "model")]
    assert said[0][:2] == said[1][:2]  # exit code and scores
    assert said[0][0] == 0
    reports = [make_report(run, teacher=name, lengths=[8], seconds=0.01) for name in (teacher, teacher / "model")]
    assert reports[0].weights["teacher"] == reports[1].weights["teacher"]
    assert reports[0].teacher_scores == reports[1].teacher_scores is not None


def test_a_run_does_not_go_on_from_another_start(own, teacher, tmp_path):
    arguments = ("student.init=pretrained", "student.num_layers=null", f"student.pretrained={teacher}")
    arguments = ("method=finetune", "train.epochs=2", *arguments)

    class Stop:
        def on_epoch_end(self, run, record):
            raise ValueError("enough")

    stopped = own(*arguments)
    stopped.callbacks = [Stop()]
    with pytest.raises(CallbackError):
        stopped.fit()
    change_weights(teacher)
    with pytest.raises(RunError, match="the model that it starts with has changed since this run began"):
        own(*arguments).fit()


@pytest.mark.parametrize("damage", [None, "abc", 5, [1]])
def test_damaged_inputs_are_said_in_a_sentence(own, damage):
    own("method=finetune").fit()
    results = own("method=finetune").folder.results
    results.write_text(json.dumps({**json.loads(results.read_text()), "inputs": damage}))
    with pytest.raises(RunError, match=r"results\.json: cannot be read"):
        own("method=finetune").fit()


def test_a_folder_with_a_model_in_it_that_is_no_run_is_left_as_it_is(own, tmp_path):
    own().fit_teacher()
    shutil.copytree(own().teacher_folder.model, tmp_path / "mine" / "model")
    assert find_folder(str(tmp_path / "mine")) == tmp_path / "mine"
    assert find_folder(str(tmp_path / "mine" / "model")) == tmp_path / "mine" / "model"
    assert find_folder(str(tmp_path / "nothing")) is None


def test_an_unfinished_run_does_not(own):
    own().fit_teacher()
    run = own().teacher_folder
    run.results.unlink()
    with pytest.raises(ModelError, match="this run is not finished; its best model so far is"):
        own().evaluate(model=run.path)


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_is_not_written_over_its_own_teacher_whatever_is_overwritten(own, tmp_path, part):
    own("method=kd").fit()
    student = tmp_path / "runs/mine/kd-seed42" / part
    again = own("method=kd", f"teacher.finetuned={student}", "student.init=random", "student.num_layers=1")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"kd-seed42: holds the teacher of this run, which would be written over it"):
            again.fit(overwrite=overwrite)
    assert load_file(tmp_path / "runs/mine/kd-seed42/model/model.safetensors")


def test_a_run_is_not_written_where_its_teacher_is_fine_tuned(own, tmp_path):
    place = f"output_dir={tmp_path}/runs/mine/teacher-seed42"
    for _ in range(2):  # before the teacher is there, and then
        with pytest.raises(RunError, match=r"teacher-seed42: holds the teacher of this run"):
            own("method=kd", place).fit(overwrite=True)
        own().fit_teacher()


def test_another_methods_run_is_said_to_be_that(own, tmp_path):
    own("method=finetune", f"output_dir={tmp_path}/runs/one").fit()
    with pytest.raises(RunError, match=r"one: holds a finished run of finetune, not of kd; give another output_dir"):
        own("method=kd", f"output_dir={tmp_path}/runs/one").fit()


@pytest.mark.parametrize("hidden", [(), ("data.transfer.labelled_rows=12",)])
def test_held_out_rows_that_are_trained_on_too_are_said(own, caplog, tmp_path, hidden):
    """Each text stands there twice: of a held-out row the other is held out too, or trained on, hidden or not."""
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"film {n},{'up down'.split()[n % 2]}\n" for n in range(20)) * 2
    )
    held_out = own("method=kd", "data.max_train_rows=null", "data.validation_fraction=0.2", *hidden)
    held_out.fit_teacher()
    caplog.clear()
    data = held_out.setup.prepare_student(str(held_out.teacher_folder.model)).data
    known = {tuple(ids) for ids in data["train"].features["input_ids"]}
    shared = sum(tuple(ids) in known for ids in data["validation"].features["input_ids"])
    assert 0 < shared <= 8
    (said,) = caplog.messages
    assert said.startswith(f"{shared} of the 8 rows of validation are in the training rows too")
    assert said.endswith("unseen rows: keep each text once")


def test_rows_of_dev_that_are_trained_on_and_missing_classes_are_said(own, caplog, tmp_path):
    said = [
        "10 of the 10 rows of dev are in the training rows too, so that its scores are not those of unseen rows: leave "
        "them out of one of the two",
        "no training row has the label down: no student can learn it",
        "all rows of dev have the label up: its scores say little",
    ]
    (tmp_path / "train.csv").write_text("text,label\n" + "a good film,up\n" * 40)
    (tmp_path / "dev.csv").write_text("text,label\n" + "a good film,up\n" * 10)
    experiment = own("method=finetune", "data.max_train_rows=null")
    experiment.setup.prepare_student(None)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == said
    caplog.clear()
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "dev.csv").write_text("text,label\nfine,up\nnot fine,down\n")
    experiment.setup.prepare_student(None)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_a_students_folder_is_compared_before_its_teacher_is_touched(call, tmp_path):
    place = ("method=kd", f"output_dir={tmp_path}/one")
    assert call("distil", *place)[0] == 0
    refused = f"{tmp_path}/one: holds a finished run with seed = 42, not 7"
    teacher = tmp_path / "runs/toy-sentence/teacher-seed7"
    for option in ((), ("--dry-run",)):
        code, _, err = call("distil", *place, "seed=7", *option)
        assert code == 2
        assert refused in err
        assert "fine-tuning" not in err
        assert "measuring" not in err
        assert not teacher.exists()
    assert call("distil", *place, "seed=7", "--overwrite")[0] == 0
    assert teacher.exists()


def test_a_folder_of_other_files_is_refused_before_a_teacher_is_fine_tuned(call, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("precious")
    for option in ((), ("--overwrite",)):
        code, _, err = call("distil", "method=kd", f"output_dir={tmp_path}/mine", *option)
        assert (code, "mine: is not empty and holds no run; give another output_dir" in err) == (2, True)
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_that_has_lost_its_model_is_said(call, tmp_path):
    assert call("distil", "method=kd")[0] == 0
    runs = tmp_path / "runs/toy-sentence"
    shutil.rmtree(runs / "kd-seed42/model")
    lost = "is finished, but its model/ is gone; put it back, give another"
    for option in ((), ("--dry-run",)):
        code, out, err = call("distil", "method=kd", *option)
        assert (code, out) == (2, "")
        assert f"{runs}/kd-seed42: {lost} output_dir (or runs_dir), or run again with --overwrite" in err
    shutil.rmtree(runs / "teacher-seed42/model")
    again = "or fine-tune the teacher again with scripts/finetune.py --overwrite"
    for name, *arguments in (("distil",), ("distil", "--dry-run"), ("finetune",)):
        code, out, err = call(name, *arguments)
        assert (code, out) == (2, "")
        assert f"{runs}/teacher-seed42: {lost} runs_dir, {again}" in err
        assert "nothing to run" not in err
    assert not (runs / "reptile-seed42").exists()
    assert call("finetune", "--overwrite")[0] == 0
    assert call("distil", "method=kd", "--overwrite")[0] == 0


def test_the_spelling_and_the_place_of_the_same_rows_do_not_matter(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = own("method=finetune", "data.path=.").fit()
    for name in ("same", "other"):
        (tmp_path / name).mkdir()
        for file in ("train.csv", "dev.csv"):
            shutil.copy(tmp_path / file, tmp_path / name)
    (tmp_path / "other/dev.csv").write_text(TRAIN)
    monkeypatch.chdir(tmp_path / "same")  # from where `.` is another folder
    for path in (tmp_path, "..", ".", "../same"):
        again = own("method=finetune", f"data.path={path}")
        assert again.fit() == first
        assert len(again.history) == 1
    assert again.evaluate().keys() == {"dev"}
    other = own("method=finetune", "data.path=../other")
    for ask in (other.fit, other.evaluate, lambda: other.history):
        with pytest.raises(RunError, match=r'holds a finished run with data.path = "\.", not "\.\./other"'):
            ask()


def test_the_same_teacher_elsewhere_is_the_same_and_another_is_not(own, teacher, tmp_path):
    first = own("method=kd", f"teacher.finetuned={teacher}").fit()
    shutil.copytree(teacher, tmp_path / "copy")
    again = own("method=kd", f"teacher.finetuned={tmp_path}/copy")
    assert again.fit() == first
    change_weights(tmp_path / "copy")
    with pytest.raises(RunError, match=r"holds a finished run with teacher\.finetuned = "):
        again.fit()
