"""Teachers that are more than one model: the epochs of the teacher's own run."""

import json
import shutil

import pytest

from reptile_distil.errors import ConfigError, RunError
from reptile_distil.experiments.dry_run import plan_distillation
from reptile_distil.runs.records import read_results
from reptile_distil.tables.commands import commands
from reptile_distil.tables.config import load_table_config
from tests.helpers.experiments import epochs_of
from tests.helpers.paths import TINY_TABLE

# A teacher that is best in its third epoch.
TEACHER = ["teacher.train.lr=2e-2", "teacher.train.batch_size=8", "teacher.train.epochs=3", "data.max_train_rows=200"]


def test_the_teachers_epochs_teach_in_turn_from_its_first_to_its_best(tiny):
    experiment = tiny("method=checkpoints", *TEACHER, "train.epochs=3", "train.log_every=1")
    results = experiment.fit()
    of_teacher = read_results(experiment.teacher_folder.results, "")
    assert of_teacher.best_epoch == 3
    steps = [json.loads(line) for line in experiment.folder.metrics.read_text().splitlines()]
    turns = [step["teacher_epoch"] for step in steps if step["event"] == "step"]
    assert turns == [1] * 13 + [2] * 13 + [3] * 13
    scores = [record["scores"]["dev"] for record in epochs_of(experiment.teacher_folder)]
    assert [record["teacher_scores"]["dev"] for record in epochs_of(experiment.folder)] == scores
    assert results["teacher"]["scores_at_start"]["dev"] == scores[0]
    assert results["teacher"]["scores_at_end"]["dev"] == scores[-1]
    drifts = [record["teacher_drift"] for record in epochs_of(experiment.folder)]
    assert drifts[0] == 0
    assert 0 < drifts[1] < drifts[2]


def test_after_the_fraction_of_the_steps_that_until_says_the_best_epoch_teaches(tiny):
    experiment = tiny("method=checkpoints", *TEACHER, "train.epochs=3", "train.log_every=1", "checkpoints.until=0.4")
    experiment.fit()
    steps = [json.loads(line) for line in experiment.folder.metrics.read_text().splitlines()]
    assert [step["teacher_epoch"] for step in steps if step["event"] == "step"] == [1] * 6 + [2] * 5 + [3] * 28


def test_a_teacher_whose_epochs_were_not_kept_is_refused_with_the_remedy(tiny):
    tiny("method=kd", *TEACHER).fit()
    for refused in (lambda one: one.fit(), lambda one: plan_distillation(one.config)):
        with pytest.raises(RunError, match=r"does not hold the teacher's weights after epoch 1, .* --overwrite te"):
            refused(tiny("method=checkpoints", *TEACHER))
    assert not tiny("method=checkpoints").folder.path.exists()
    tiny("method=kd", *TEACHER, "teacher.keep_epochs=true").fit_teacher(overwrite=True)
    tiny("method=checkpoints", *TEACHER).fit()


def test_a_teacher_run_that_begins_anew_leaves_no_epochs_of_the_old_one(tiny):
    experiment = tiny("method=kd", *TEACHER, "teacher.keep_epochs=true")
    experiment.fit_teacher()
    kept = experiment.teacher_folder.epochs
    assert sorted(path.name for path in kept.iterdir()) == ["epoch-0001", "epoch-0002", "epoch-0003"]
    tiny("method=kd", *TEACHER).fit_teacher(overwrite=True)
    assert not kept.exists()


def test_an_epoch_that_has_changed_is_noticed(tiny):
    experiment = tiny("method=checkpoints", *TEACHER)
    experiment.fit()
    epochs = experiment.teacher_folder.epochs
    shutil.rmtree(epochs / "epoch-0002")
    shutil.copytree(epochs / "epoch-0001", epochs / "epoch-0002")
    with pytest.raises(RunError, match="the teacher's epoch 2 has changed since this run was made"):
        tiny("method=checkpoints", *TEACHER).fit()


def test_a_dry_run_knows_the_disk_that_the_epochs_take(tiny):
    plans = [plan_distillation(tiny(f"method={method}", *TEACHER).config) for method in ("kd", "checkpoints")]
    model = plans[0].runs[0].measured.trial.model_bytes
    assert plans[1].disk_needed - plans[0].disk_needed >= 3 * model
    assert [run.role for run in plans[1].runs] == ["teacher", "checkpoints"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.finetuned=x", "method checkpoints learns from the epochs of a teacher that is fine-tuned here"),
        ("distributed.shard=true", "checkpoints cannot be computed with distributed.shard: set it to false"),
        ("compute.cuda_graphs=true", "checkpoints cannot be computed with compute.cuda_graphs: set it to false"),
    ],
)
@pytest.mark.parametrize("where", ["method=checkpoints", "compare_with=[checkpoints]"])
def test_what_checkpoints_cannot_do_is_refused_wherever_it_is_asked_for(tiny, where, override, message):
    with pytest.raises(ConfigError, match=message):
        tiny(where, override)


def test_whoever_comes_to_fine_tune_the_teacher_keeps_its_epochs(tiny):
    """The runs of a comparison and a table's teachers know that method checkpoints will ask."""
    both = tiny("method=kd", "compare_with=[checkpoints]").config
    assert both.with_values(compare_with=()).teacher.keep_epochs
    assert not tiny("method=kd").config.teacher.keep_epochs
    for methods, keeps in (("kd, checkpoints", True), ("kd, reptile", False)):
        table = load_table_config(TINY_TABLE, [f"methods=[{methods}]"])
        (teacher, *_) = (cell for cell in table.cells if cell.row == "teacher")
        assert teacher.config.teacher.keep_epochs == keeps
        first = next(commands(table, ["python", "table.py"], TINY_TABLE, []))
        assert ("teacher.keep_epochs=true" in first) == keeps
    kept = tiny("method=kd", "teacher.keep_epochs=true").config
    assert kept.defining_settings("teacher") == tiny("method=kd").config.defining_settings("teacher")


def test_kd_learns_from_the_mean_of_several_teachers(tiny, tmp_path):
    for seed in (1, 2):
        tiny(f"seed={seed}", "method=kd", *TEACHER).fit_teacher()
    folders = [f"{tmp_path}/runs/toy-sentence/teacher-seed{seed}" for seed in (1, 2)]
    several = f"teachers=[{', '.join(folders)}]"
    plan = plan_distillation(tiny("method=kd", several).config)
    assert [run.role for run in plan.runs] == ["kd"]
    experiment = tiny("method=kd", several, "train.epochs=2")
    results = experiment.fit()
    assert not experiment.teacher_folder.path.exists()
    assert results["teacher"]["num_parameters"] == 2 * 8690
    assert results["teacher"]["scores_at_start"] == results["teacher"]["scores_at_end"]
    assert {"teacher 1", "teacher 2"} <= results["inputs"].keys()
    with pytest.raises(RunError, match="holds a finished run with teachers = "):
        tiny("method=kd", f"teachers=[{folders[0]}]", "train.epochs=2").fit()


@pytest.mark.parametrize("several", [True, False], ids=["one there", "none there"])
def test_teachers_that_are_missing_are_noticed_before_another_one_is_fine_tuned(call, tiny, tmp_path, several):
    there = tiny("method=kd", *TEACHER)
    if several:
        there.fit_teacher()
    start = ("student.init=finetuned_layers", "student.num_layers=1", "seed=7")
    named = f"teachers=[{there.teacher_folder.path}, {tmp_path}/nowhere]"
    code, out, err = call("distil", "method=kd", named, *start)
    assert (code, out) == (2, "")
    missing = "nowhere" if several else "teacher-seed42"
    assert f"error: {tmp_path}/" in err
    assert f"{missing}: no such folder" in err
    assert not (tmp_path / "runs/toy-sentence/teacher-seed7").exists()


@pytest.mark.parametrize("key", ["teachers", "teacher.finetuned"])
def test_a_teacher_that_is_missing_is_noticed_before_what_its_student_is_compared_with_is_run(call, tmp_path, key):
    named = f"{key}=[{tmp_path}/nowhere]" if key == "teachers" else f"{key}={tmp_path}/nowhere"
    code, out, err = call("distil", "method=finetune", "compare_with=[kd]", named)
    assert (code, out) == (2, "")
    assert f"error: {tmp_path}/nowhere: no such folder" in err
    assert not (tmp_path / "runs").exists()


def test_kd_with_extra_rows_holds_out_the_rows_of_a_quiz_and_says_their_loss(tiny):
    experiment = tiny("method=kd", "loss.extra_rows=0.5", "loss.extra_fraction=0.2", "train.epochs=2")
    assert experiment.fit()["num_train_rows"] == 56
    for record in epochs_of(experiment.folder):
        train = record["train"]
        assert train["extra_rows_loss"] > 0
        parts = 0.5 * train["task_loss"] + 0.5 * train["distillation_loss"] + 0.5 * train["extra_rows_loss"]
        assert train["loss"] == pytest.approx(parts, rel=1e-5)
    lgtm = tiny("method=lgtm", "lgtm.quiz_fraction=0.2")
    quizzes = [one.prepare(one.config.method)[0].data["train"].extra_batches.features for one in (experiment, lgtm)]
    assert quizzes[0].fingerprint() == quizzes[1].fingerprint()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=reptile", "teachers=[a, b]"], "teachers belongs to method kd alone, but reptile is to be run, too"),
        (
            ["method=kd", "compare_with=[lgtm]", "loss.extra_rows=1"],
            "loss.extra_rows belongs to method kd alone, but",
        ),
        (["method=kd", "teachers=[a]", "teacher.finetuned=b"], "teachers takes the place of teacher.finetuned"),
        (["method=kd", "teachers=[a]", "loss.hidden=1"], "has no hidden states for loss.patient, loss.hidden"),
        (["method=kd", "loss.extra_fraction=0.2"], "extra_fraction belongs to extra_rows, which is 0"),
        (["method=kd", "loss.extra_rows=1", "compute.cuda_graphs=true"], "loss.extra_rows cannot be used with compute"),
    ],
)
def test_options_of_kd_are_refused_where_they_have_no_use(tiny, overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny(*overrides)


def test_runs_from_before_several_teachers_and_extra_rows_are_still_the_same_runs(tiny):
    settings = tiny("method=kd").config.defining_settings("kd")
    assert not {"teachers", "loss.extra_rows", "loss.extra_fraction"} & settings.keys()
    for override in ("teachers=[a]", "loss.extra_rows=1"):
        assert tiny("method=kd", override).config.defining_settings("kd") != settings
