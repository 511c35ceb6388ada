"""An interrupted run ends as one that never stopped, bit for bit; what it cannot go on from it refuses."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from reptile_distil import Experiment, cli
from reptile_distil.data import toy
from reptile_distil.data.extra_batches import BatchStream
from reptile_distil.errors import OutOfMemoryError, RunError
from reptile_distil.methods.finetune import FineTuner
from reptile_distil.methods.reptile import ReptileDistiller
from reptile_distil.models.toy import toy_config, toy_tokenizer
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.resume import Recovery
from reptile_distil.training.evaluation import Evaluator
from tests.helpers.paths import ROOT, TINY

METHODS = ("finetune", "kd", "reptile")
# Its third epoch is its best: with until=0.3 the turns are over at steps 4, 8 and 12.
TEACHER_OF_THREE_EPOCHS = (
    "data.max_train_rows=200",
    "teacher.train.lr=2e-2",
    "teacher.train.batch_size=8",
    "teacher.train.epochs=3",
)
LAST = "step-00000015-evaluated"  # 3 epochs of 5 steps

WALL_CLOCK = re.compile(
    rb'"(train_seconds|examples_per_second|wall_seconds|peak_memory_bytes|teacher_ms|student_ms|rounds)": [^,\n}]+'
)
"""All that may differ between a run that was interrupted and one that was not."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Overrides for a run with dropout, micro-batches, a checkpoint every two steps, and all of them kept."""
    folder = tmp_path_factory.mktemp("teacher")
    config = toy_config("toy-bert-2L-16H")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.2
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return [
        f"teacher.pretrained={folder}",
        "train.epochs=3",
        "train.micro_batch_size=5",
        "checkpoint.every_steps=2",
        "checkpoint.keep_when_finished=true",
    ]


@pytest.fixture(scope="module")
def crash(tmp_path_factory):
    """Runs runs one after the other in child processes of one that has imported everything; a line about each."""
    command, errors = [sys.executable, "-m", "tests.helpers.crash"], tmp_path_factory.mktemp("crash") / "stderr"

    def crash(runs):
        lines = []
        for run in runs:
            server.stdin.write(json.dumps(run) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, errors.read_text()
            lines.append(json.loads(answer))
        return lines

    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT
        ) as server,
    ):
        yield crash


def contents(runs, method, *, checkpoint=LAST):
    """All that a run leaves, wall-clock fields masked; its last checkpoint holds student, teacher and optimizers."""
    folder = runs / "toy-sentence" / f"{method}-seed42"
    tensors = folder / "checkpoints" / checkpoint / "tensors.safetensors"
    files = [*(folder / "model").iterdir(), folder / "metrics.jsonl", folder / "results.json", tensors]
    files += folder.glob("predictions_*.json")
    return {file.name: WALL_CLOCK.sub(b"masked", file.read_bytes()) for file in files}


@pytest.fixture(scope="module")
def uninterrupted(crash, settings, tmp_path_factory):
    """For each method, what an uninterrupted run leaves, and its moments and seconds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    lines = crash([{"overrides": [*settings, f"method={m}", f"runs_dir={folder}/{m}"]} for m in METHODS])
    assert [line["status"] for line in lines] == [0, 0, 0]
    return {
        method: (contents(folder / method, method), line["moments"], line["seconds"])
        for method, line in zip(METHODS, lines, strict=True)
    }


def check_kills(crash, uninterrupted, settings, tmp_path, kills):
    """Kills a run of each method at each of the moments that `kills` gives for it, and goes on."""
    runs = []
    for method in METHODS:
        for number, kill in enumerate(kills(*uninterrupted[method][1:])):
            # A cache of its own: what is kept in it, the run makes, and is killed as it does.
            cache = f"data.cache_dir={tmp_path}/cache-{method}{number}"
            overrides = [*settings, cache, f"method={method}", f"runs_dir={tmp_path}/{method}{number}"]
            runs += [{"overrides": overrides, **kill}, {"overrides": overrides}]
    lines = crash(runs)
    for run, line in zip(runs, lines, strict=True):
        # The clock may kill after the end.
        assert line["status"] in ((-9,) if "kill_at" in run else (-9, 0) if "kill_after" in run else (0,)), run
    for run in runs[1::2]:
        method, folder = run["overrides"][-2].partition("=")[2], Path(run["overrides"][-1].partition("=")[2])
        assert contents(folder, method) == uninterrupted[method][0], run


def test_the_uninterrupted_run_holds_what_is_compared(uninterrupted):
    for method in METHODS:
        files, moments, _ = uninterrupted[method]
        assert {"model.safetensors", "tensors.safetensors", "metrics.jsonl", "results.json"} <= files.keys()
        assert moments > 100
        # per epoch of 5 steps: a line every 2 steps and one of the epoch; the last step always
        assert len(files["metrics.jsonl"].splitlines()) == 7 + 1 + 3


def test_killed_at_any_moment_the_run_ends_as_if_nothing_had_happened(crash, uninterrupted, settings, tmp_path):
    chosen = random.Random(1)
    check_kills(
        crash,
        uninterrupted,
        settings,
        tmp_path,
        lambda moments, _: [{"kill_at": number} for number in sorted(chosen.sample(range(1, moments + 1), 3))],
    )


@pytest.mark.slow
def test_killed_at_any_of_twenty_moments_the_run_ends_as_if_nothing_had_happened(
    crash, uninterrupted, settings, tmp_path
):
    """And at five more by the clock."""
    chosen = random.Random(2)
    check_kills(
        crash,
        uninterrupted,
        settings,
        tmp_path,
        lambda moments, seconds: [
            *({"kill_at": number} for number in chosen.sample(range(1, moments + 1), 20)),
            *({"kill_after": chosen.uniform(0, seconds)} for _ in range(5)),
        ],
    )


class Died(BaseException):
    """Stands for the death of the process, for tests that need none."""


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def experiment(settings, runs):
    def experiment(*overrides):
        return Experiment.from_yaml(TINY, *settings, f"runs_dir={runs}", *overrides)

    return experiment


def die_after(experiment, step):
    """Runs it until it has written the checkpoint of that step; there is one every 2 steps."""
    save = Recovery.save

    def dying(self, progress):
        save(self, progress)
        if progress.step == step:
            raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recovery, "save", dying)
        with pytest.raises(Died):
            experiment.fit()


@pytest.fixture(scope="module")
def stopped_runs(settings, tmp_path_factory):
    """A run of `finetune` that has died; to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    die_after(Experiment.from_yaml(TINY, *settings, f"runs_dir={folder}", "method=finetune"), 8)
    return folder


@pytest.fixture
def stop(experiment, stopped_runs, runs):
    """The folder of a run that has died after step 8, or another."""

    def stop(*overrides, step=8):
        stopped = experiment(*overrides)
        if overrides == ("method=finetune",) and step == 8:
            shutil.copytree(stopped_runs, runs)
        else:
            die_after(stopped, step)
        return stopped.folder

    return stop


def damage(file, how):
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def test_a_run_that_died_between_an_epochs_last_step_and_its_evaluation_goes_on_there(
    stop, experiment, uninterrupted, runs, caplog
):
    stop("method=finetune", step=10)
    caplog.set_level("INFO")
    experiment("method=finetune").fit()
    assert "going on from the checkpoint of step 10" in caplog.text
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]


def slow(*overrides):
    return pytest.param(list(overrides), marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "overrides",
    [
        slow(
            "method=reptile",
            "reptile.inner_optimizer=persistent_adamw",
            "reptile.share_forward=false",
            "reptile.every=2",
        ),
        ["method=reptile", "reptile.inner_batch=held_out", "reptile.inner_steps=2", "reptile.share_forward=false"],
        ["method=reptile", "reptile.task_lr=1e-3", "reptile.pull=0.1"],
        ["method=reptile", "reptile.order=student_first", "reptile.every=2"],
        slow("method=metadistil", "train.micro_batch_size=null", "metadistil.teacher_lr=1e-2"),
        ["method=prokt", "prokt.order=teacher_first", "prokt.teacher_lr=1e-3"],
        slow("method=cotrain", "cotrain.teacher_lr=1e-3"),
        ["method=lgtm", "lgtm.teacher_lr=1e-3", "lgtm.every=2"],
        slow("method=checkpoints", "checkpoints.until=0.3", *TEACHER_OF_THREE_EPOCHS),
    ],
    ids=[
        "persistent inner AdamW, every second step",
        "held-out inner batches",
        "regularized teacher",
        "student first, every second step",
        "metadistil",
        "prokt",
        "cotrain",
        "lgtm, every second step",
        "checkpoints",
    ],
)
def test_a_method_that_remembers_more_ends_as_if_nothing_had_happened(settings, tmp_path, overrides):
    """Stopped within an epoch, after an odd number of steps: before one in which the teacher would rest."""
    method = overrides[0].removeprefix("method=")

    def experiment(name):
        changes = [*overrides, "checkpoint.every_steps=3", f"runs_dir={tmp_path / name}"]
        return Experiment.from_yaml(TINY, *settings, *changes)

    experiment("whole").fit()
    shutil.copytree(tmp_path / "whole/toy-sentence/teacher-seed42", tmp_path / "parts/toy-sentence/teacher-seed42")
    die_after(experiment("parts"), 9)
    experiment("parts").fit()
    last = f"step-{3 * count_batches(tmp_path / 'parts', method):08d}-evaluated"
    whole, parts = (contents(tmp_path / name, method, checkpoint=last) for name in ("whole", "parts"))
    assert whole == parts
    if method == "checkpoints":  # nothing is proved of a teacher with one epoch
        assert len(list((tmp_path / "parts").glob("*/teacher-seed42/epochs/*"))) == 3
        assert '"teacher_epoch": 3.0' in (tmp_path / "parts/toy-sentence/checkpoints-seed42/metrics.jsonl").read_text()


def count_batches(runs, method):
    """Steps of an epoch."""
    results = json.loads((runs / "toy-sentence" / f"{method}-seed42" / "results.json").read_text())
    return results["num_steps"] // 3


def test_rows_held_out_that_changed_between_the_runs_are_refused(settings, tmp_path, monkeypatch):
    overrides = [*settings, f"runs_dir={tmp_path}", "method=metadistil", "train.micro_batch_size=null"]
    die_after(Experiment.from_yaml(TINY, *overrides), 8)
    quiz = BatchStream.features.fget
    monkeypatch.setattr(BatchStream, "features", property(lambda self: quiz(self).select([0, 0, 1, 2, 3, 4, 5])))
    with pytest.raises(RunError, match="the rows beside the train split has changed since this run began"):
        Experiment.from_yaml(TINY, *overrides).fit()


def test_a_run_leaves_checkpoints_only_while_it_is_not_finished(stop, experiment):
    folder = stop("method=finetune", "checkpoint.keep_when_finished=false")
    assert {path.name for path in folder.checkpoints.iterdir()} == {"step-00000006", "step-00000008"}
    experiment("method=finetune", "checkpoint.keep_when_finished=false").fit()
    assert {path.name for path in folder.path.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "model",
        "predictions_dev.json",
        "results.json",
    }


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("tensors.safetensors", "truncated"),
        ("tensors.safetensors", "flipped"),
        ("state.json", "missing"),
        ("best/model.safetensors", "flipped"),
        ("manifest.json", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_never_loaded_the_one_before_is(
    stop, experiment, uninterrupted, runs, caplog, name, how
):
    folder = stop("method=finetune")
    damage(folder.checkpoints / "step-00000008" / name, how)
    caplog.set_level("INFO")
    experiment("method=finetune").fit()
    assert "step-00000008" in caplog.text
    assert "the checkpoint before it is tried" in caplog.text
    assert "going on from the checkpoint of step 6" in caplog.text
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]


def test_where_all_checkpoints_are_damaged_the_run_is_refused_and_overwrite_starts_afresh(
    stop, experiment, uninterrupted, runs, caplog
):
    folder = stop("method=finetune")
    for checkpoint in folder.checkpoints.iterdir():
        damage(checkpoint / "tensors.safetensors", "flipped")
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"none of the 2 checkpoints can be used; .*--overwrite"):
        experiment("method=finetune").fit()
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    caplog.clear()
    caplog.set_level("INFO")
    experiment("method=finetune").fit(overwrite=True)
    assert "going on" not in caplog.text
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(experiment, uninterrupted, runs, monkeypatch):
    def dies(self, progress):
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "save", dies)
        with pytest.raises(Died):
            experiment("method=finetune").fit()
    assert (experiment("method=finetune").folder.path / "metrics.jsonl").read_text()
    experiment("method=finetune").fit()
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]


def test_an_unfinished_run_with_another_setting_is_refused_by_key_with_both_values(stop, experiment):
    stop("method=finetune")
    with pytest.raises(RunError, match=r"unfinished run with train\.lr = 0\.001, not 0\.5; .*--overwrite"):
        experiment("method=finetune", "train.lr=0.5").fit()


def test_a_setting_without_effect_on_the_result_may_change(stop, experiment, caplog):
    stop("method=finetune")
    caplog.set_level("INFO")
    changes = ["train.eval_batch_size=7", "train.log_every=1", "checkpoint.every_steps=3"]
    assert experiment("method=finetune", *changes).fit()["num_steps"] == 15
    assert "going on from the checkpoint of step 8" in caplog.text


@pytest.fixture
def own_task(tmp_path):
    """Overrides for a task of the user's own: 20 training rows and 4 of the dev split, in CSV files."""
    rows = [f"the film was {'good' if i % 2 else 'bad'},{'yes' if i % 2 else 'no'}\n" for i in range(20)]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(rows))
    (tmp_path / "dev.csv").write_text("text,label\n" + "".join(rows[:4]))
    files = "{train: train.csv, dev: dev.csv}"
    return [
        f"task={{name: films, text: [text], labels: [no, yes], metrics: [accuracy], files: {files}}}",
        f"data.path={tmp_path}",
        "data.max_train_rows=null",
        "train.batch_size=4",
    ]


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("train.csv", "good,yes", "great,yes", r"the train split has changed since this run began; put"),
        ("train.csv", "good,yes", "good,no", r"the train split has changed since this run began; put"),
        (
            "dev.csv",
            "text,label\n",
            "text,label\na story,no\n",
            r"the dev split has changed .*\(4 rows then, 5 rows now",
        ),
    ],
)
def test_a_data_file_that_changed_between_the_runs_is_refused(
    stop, experiment, own_task, tmp_path, name, old, new, message
):
    stop("method=finetune", *own_task)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace(old, new, 1))
    with pytest.raises(RunError, match=message):
        experiment("method=finetune", *own_task).fit()
    (tmp_path / name).write_text(text)
    assert experiment("method=finetune", *own_task).fit()["num_steps"] == 15


def test_a_teacher_that_changed_between_the_runs_is_refused(stop, experiment, runs):
    stop("method=kd")
    shutil.rmtree(runs / "toy-sentence" / "teacher-seed42")
    other = experiment("teacher.train.lr=1e-2")
    other.fit_teacher()
    path = other.teacher_folder.results
    results = json.loads(path.read_text())
    results["decisive"]["teacher.train.lr"] = 1e-3
    path.write_text(json.dumps(results))
    with pytest.raises(RunError, match="the teacher has changed since this run began"):
        experiment("method=kd").fit()


@pytest.mark.parametrize("change", [lambda text: text.replace("loss", "lost", 1), lambda text: text[:50], None])
def test_metrics_that_no_longer_begin_as_they_did_are_put_back_as_they_were(
    stop, experiment, uninterrupted, runs, change
):
    metrics = stop("method=finetune").metrics
    metrics.write_text(change(metrics.read_text())) if change else metrics.unlink()
    experiment("method=finetune").fit()
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]


def made_by_an_earlier_version(folder):
    """Checkpoints as they were before each had a copy of metrics.jsonl."""
    for checkpoint in (folder / "checkpoints").iterdir():
        content = (checkpoint / "metrics.jsonl").read_bytes()
        (checkpoint / "metrics.jsonl").unlink()
        state = json.loads((checkpoint / "state.json").read_text())
        state |= {"metrics_size": len(content), "metrics_sha256": hashlib.sha256(content).hexdigest()}
        (checkpoint / "state.json").write_text(json.dumps(state))
        (checkpoint / "manifest.json").unlink()
        files = {
            file.relative_to(checkpoint).as_posix(): {
                "size": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in checkpoint.rglob("*")
            if file.is_file()
        }
        (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))


def test_a_run_of_an_earlier_version_goes_on_where_its_metrics_are_as_they_were(stop, experiment, uninterrupted, runs):
    folder = stop("method=finetune")
    made_by_an_earlier_version(folder.path)
    before = folder.metrics.read_text()
    folder.metrics.write_text(before.replace("loss", "lost", 1))
    with pytest.raises(RunError, match="none of the 2 checkpoints can be used"):
        experiment("method=finetune").fit()
    folder.metrics.write_text(before)
    experiment("method=finetune").fit()
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]


def test_the_best_model_is_the_checkpoints_though_a_later_one_was_on_disk_and_is_not_reached_again(
    stop, experiment, monkeypatch
):
    """As on a device that rounds differently each time."""
    scores = iter([0.5, 0.9, 0.1, 0.2])
    evaluate = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", lambda self: evaluate(self).model_copy(update={"score": next(scores)}))
    models, save_model = [], RunFolder.save_model

    def saved(self, model, tokenizer, *, epoch=None):
        save_model(self, model, tokenizer, epoch=epoch)
        models.append((self.model / "model.safetensors").read_bytes())
        if len(models) == 2:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_model", saved)
        with pytest.raises(Died):
            experiment("method=finetune").fit()
    folder = experiment("method=finetune").folder
    assert (folder.model / "model.safetensors").read_bytes() == models[1] != models[0]
    assert experiment("method=finetune").fit()["best_epoch"] == 1
    assert (folder.model / "model.safetensors").read_bytes() == models[0]


@pytest.mark.parametrize("fraction", ["null", "0.2"])
def test_predictions_are_the_best_models_though_a_later_ones_were_on_disk(experiment, monkeypatch, fraction):
    scores = iter([0.5, 0.9, 0.1, 0.2])
    evaluate = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", lambda self: evaluate(self).model_copy(update={"score": next(scores)}))
    save_predictions, last_split = RunFolder.save_predictions, "dev" if fraction == "null" else "validation"
    kept = []

    def saved(self, split, predictions, labels):
        save_predictions(self, split, 1 - predictions if kept else predictions, labels)
        kept.append((self.path / f"predictions_{split}.json").read_bytes())
        if len(kept) == 2:
            raise Died

    options = ("method=finetune", f"data.validation_fraction={fraction}")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_predictions", saved)
        with pytest.raises(Died):
            experiment(*options).fit()
    assert kept[0] != kept[1]
    again = experiment(*options)
    results = again.fit()
    assert results["best_epoch"] == 1
    assert (again.folder.path / f"predictions_{last_split}.json").read_bytes() == kept[0]
    predictions, labels = again.folder.read_predictions("dev")
    assert results["scores"]["dev"]["accuracy"] == pytest.approx((predictions == labels).mean())


def test_a_model_that_was_just_being_replaced_is_put_back(stop, experiment, uninterrupted, runs):
    folder = stop("method=finetune")
    folder.model.rename(folder.path / "model.old")
    (folder.path / "model.new").mkdir()
    experiment("method=finetune").fit()
    assert contents(runs, "finetune") == uninterrupted["finetune"][0]
    assert not (folder.path / "model.old").exists()
    assert not (folder.path / "model.new").exists()


def test_a_run_that_died_between_its_last_epoch_and_its_results_takes_no_step_again(
    experiment, uninterrupted, runs, monkeypatch, caplog
):
    finish = RunFolder.finish

    def dies(self, results):
        if results.method == "reptile":
            raise Died
        finish(self, results)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", dies)
        with pytest.raises(Died):
            experiment("method=reptile").fit()
    checkpoint = experiment("method=reptile").folder.checkpoints / LAST
    state = json.loads((checkpoint / "state.json").read_text())
    state["position"]["last"]["teacher_scores"] = {"dev": {"accuracy": 0.125}}  # told apart from the one at the start
    seal_state(checkpoint, state)
    monkeypatch.setattr(ReptileDistiller, "step", dies)
    caplog.set_level("INFO")
    results = experiment("method=reptile").fit()
    assert results["num_steps"] == 15
    assert results["teacher"]["scores_at_end"] == {"dev": {"accuracy": 0.125}}
    assert "going on from the checkpoint of step 15" in caplog.text
    left, expected = contents(runs, "reptile"), uninterrupted["reptile"][0]
    assert {name for name in left if left[name] != expected[name]} == {"results.json"}


def test_the_times_of_all_parts_add_up(stop, experiment):
    folder = stop("method=finetune")
    state = json.loads((folder.checkpoints / "step-00000008" / "state.json").read_text())
    state |= {"wall_seconds": 1000.0, "peak_memory": 10**15}
    state["position"]["train_seconds"] = 500.0
    seal_state(folder.checkpoints / "step-00000008", state)
    results = experiment("method=finetune").fit()
    assert results["wall_seconds"] > 1000
    assert 500 < results["train_seconds"] < 600
    assert results["peak_memory_bytes"] == 10**15


def seal_state(folder, state):
    """Writes state.json with a manifest that vouches for it."""
    from tests.runs.test_checkpoints import seal

    (folder / "state.json").write_text(json.dumps(state))
    seal(folder)


def test_where_a_run_went_on_is_in_its_environment(stop, experiment):
    folder = stop("method=finetune")
    experiment("method=finetune").fit()
    environment = json.loads((folder.path / "environment.json").read_text())
    (gone_on,) = environment.pop("gone_on")
    assert gone_on == environment


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["position"].update(step=-1),
        lambda state: state["position"].update(step="8"),
        lambda state: state["position"].pop("best"),
        lambda state: state["position"].update(best={"epoch": 1}),
        lambda state: state.update(extra=1),
        lambda state: state.update(decisive=[]),
        lambda state: state["schedules"].update(other={}),
        lambda state: state["schedules"]["lr"].update(step="x"),
        lambda state: state["schedules"]["lr"].update(base_lrs=["x"]),
        lambda state: state["optimizers"]["lr"][0].update(lr="fast"),
        lambda state: state["optimizers"]["lr"].pop(),
    ],
)
def test_a_state_of_another_form_is_refused_in_one_sentence(stop, experiment, change):
    folder = stop("method=finetune")
    checkpoint = folder.checkpoints / "step-00000008"
    shutil.rmtree(folder.checkpoints / "step-00000006")
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    seal_state(checkpoint, state)
    with pytest.raises(RunError) as error:
        experiment("method=finetune").fit()
    assert "\n" not in str(error.value)


def test_a_pickle_where_tensors_are_expected_runs_no_code(stop, experiment, tmp_path):
    from tests.runs.test_checkpoints import Trap, seal

    folder = stop("method=finetune")
    for checkpoint in folder.checkpoints.iterdir():
        torch.save(Trap(tmp_path / "trapped"), checkpoint / "tensors.safetensors")
        seal(checkpoint)
    with pytest.raises(RunError, match="holds no tensors"):
        experiment("method=finetune").fit()
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "results.json.new", "checkpoints", "model"])
def test_a_link_in_the_run_folder_is_refused_and_nothing_is_written_through_it(stop, experiment, tmp_path, name):
    folder = stop("method=finetune")
    victim = tmp_path / "victim"
    source = folder.path / name
    if source.exists():
        source.rename(victim)
    else:
        victim.write_text("precious")
    before = sorted((path, path.stat().st_mtime_ns) for path in (victim, *victim.rglob("*")))
    source.symlink_to(victim)
    for overwrite in (False, True):
        with pytest.raises(RunError, match=f"{name}: is a symbolic link"):
            experiment("method=finetune").fit(overwrite=overwrite)
    assert sorted((path, path.stat().st_mtime_ns) for path in (victim, *victim.rglob("*"))) == before


def test_a_yaml_with_a_python_tag_in_a_run_folder_runs_no_code(stop, tmp_path):
    folder = stop("method=finetune")
    tag = f"task: !!python/object/apply:os.mkdir ['{tmp_path}/trapped']\n"
    (folder.path / "config.yaml").write_text(tag)
    assert cli.run(lambda _: Experiment.from_yaml(folder.path / "config.yaml")) == 2
    assert not (tmp_path / "trapped").exists()


def test_a_step_that_is_not_finite_stops_the_run_with_its_rows_and_leaves_model_and_checkpoints(
    experiment, monkeypatch
):
    step, seen, model = FineTuner.step, [], {}
    folder = experiment("method=finetune").folder

    def diverging(self, batch):
        seen.append(batch["input_ids"])
        if len(seen) == 7:
            model.update({file.name: file.read_bytes() for file in folder.model.iterdir()})
        return {**step(self, batch), **({"loss": torch.tensor(torch.nan)} if len(seen) == 7 else {})}

    monkeypatch.setattr(FineTuner, "step", diverging)
    with pytest.raises(
        RunError, match=r"^finetune on toy-sentence: step 7: loss is nan \(learning rates: lr "
    ) as error:
        experiment("method=finetune").fit()
    listed = re.search(r"counted from 0: ([\d, ]+)\)", str(error.value))[1]
    texts = toy.load_split(toy.TASKS["toy-sentence"], "train")[[int(row) for row in listed.split(", ")]]["text"]
    assert toy_tokenizer()(texts, padding=True, return_tensors="pt")["input_ids"].tolist() == seen[6].tolist()
    assert {file.name: file.read_bytes() for file in folder.model.iterdir()} == model
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-00000005-evaluated", "step-00000006"]


@pytest.mark.parametrize(
    ("method", "where", "setting"),
    [
        ("finetune", "step", "train.micro_batch_size or data.max_length"),
        ("finetune", "evaluate", "train.eval_batch_size"),
        ("kd", "step", "teacher.train.micro_batch_size or data.max_length"),
    ],
)
def test_where_memory_runs_out_the_setting_to_lower_is_named(experiment, monkeypatch, method, where, setting):
    owner = FineTuner if where == "step" else Evaluator
    monkeypatch.setattr(owner, where, lambda *_: torch.empty(1 << 60))
    with pytest.raises(OutOfMemoryError, match=f"out of memory .*: lower {setting}$") as error:
        experiment(f"method={method}").fit()
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(experiment, monkeypatch):
    def refuses(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(RunError, match="Read-only file system"):
        experiment("method=finetune").fit()
