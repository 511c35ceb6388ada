"""--dry-run: what it says, what it refuses, and that it leaves nothing behind."""

import re

import pytest
import transformers

from reptile_distil.config.config import load_config
from reptile_distil.data import toy
from reptile_distil.experiments.dry_run import Measured, ModelFacts, RunPlan, Status, disk_needed
from reptile_distil.experiments.dry_run_text import format_bytes, format_seconds
from reptile_distil.experiments.trial_steps import TrialSteps
from reptile_distil.models.pretrained import load_pretrained
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.runs.resume import Recovery
from reptile_distil.runtime.interrupts import Interrupted
from tests.helpers.paths import TINY

FOUR_TO_TWO = ["teacher.pretrained=toy-bert-4L-16H", "student.num_layers=2"]


def files(folder):
    """Every file under a folder, with its content and when it was written."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def table(out, first):
    """The lines of the table that begins with these words, as lists of cells, by their first cell."""
    (start,) = re.finditer(f"^{first} ", out, re.M)
    lines = out[start.start() :].split("\n\n")[0].splitlines()
    return {cells[0]: cells[1:] for cells in (re.split(r"  +", line) for line in lines)}


@pytest.fixture
def stopped(call, monkeypatch):
    """Runs distil.py until its third checkpoint, that of step 3, is written."""

    def stop(*arguments):
        saves = []

        def save(self, progress):
            write(self, progress)
            saves.append(progress.step)
            if progress.step == 3:
                raise Interrupted(15)

        write = Recovery.save
        with monkeypatch.context() as patch:
            patch.setattr(Recovery, "save", save)
            assert call("distil", "checkpoint.every_steps=1", *arguments)[0] == 143

    return stop


def test_a_dry_run_says_what_distil_would_do_and_writes_nothing(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(
        "distil", "--dry-run", "runs_dir=runs", "compare_with=[kd, finetune]", "train.epochs=3", *FOUR_TO_TWO
    )
    assert code == 0
    assert not (tmp_path / "runs").exists()
    assert "toy-sentence: classes negative, positive; accuracy" in out
    assert "train 70 rows; dev 500 rows; up to 32 tokens each" in out
    assert "46 tokens, the same for teacher and student" in out
    assert "on cpu in fp32; seed 42" in out
    models = table(out, "model")
    assert models["teacher"][:3] == ["toy-bert-4L-16H", "4", "16"]
    assert models["student"][:3] == ["layers of toy-bert-4L-16H", "2", "16"]
    assert "teacher  0  1  2  3\n         ·  ↑  ·  ↑\nstudent     0     1\n" in out
    assert "Also moved: embeddings, pooler, classifier." in out
    runs = table(out, "run")  # rows, steps of 16 rows an epoch, steps in all
    assert runs["teacher"][:3] == ["70", "5", "5"]
    assert [runs[method][:3] for method in ("reptile", "kd", "finetune")] == [["70", "5", "15"]] * 3
    assert re.search(r"^time +about \d\S* \w+ in all\. An estimate from two\s", out, re.M)
    assert re.search(r"^disk +about \d\S* MB in runs/toy-sentence, where \S+ [MG]B are free$", out, re.M)
    assert max(map(len, out.splitlines())) <= 80


def test_a_dry_run_says_what_finetune_would_do(call, tmp_path):
    code, out, _ = call("finetune", "--dry-run", "teacher.train.max_steps=3")
    assert code == 0
    assert table(out, "run")["teacher"][:3] == ["70", "5", "3"]
    assert "Layer map" not in out
    assert f"teacher  new  {tmp_path}/runs/toy-sentence/teacher-seed42" in out
    code, out, _ = call("finetune", "--dry-run", "--model", "student")
    assert code == 0
    assert f"finetune  new  {tmp_path}/runs/toy-sentence/finetune-seed42" in out


def test_the_run_after_a_dry_run_is_the_one_without_it(call, tmp_path):
    for runs in ("plain", "planned"):
        if runs == "planned":
            assert call("distil", "method=finetune", "--dry-run")[0] == 0
        call("distil", "method=finetune", f"runs_dir={tmp_path}/{runs}")
    weights = [path.read_bytes() for path in sorted(tmp_path.glob("*/*/*/model/model.safetensors"))]
    assert len(weights) == 2
    assert weights[0] == weights[1]


def test_finished_runs_are_named_and_not_measured(call, tmp_path, caplog):
    call("distil", "method=kd")
    before = files(tmp_path / "runs")
    caplog.clear()
    code, out, _ = call("distil", "method=kd", "compare_with=[finetune]", "--dry-run")
    assert code == 0
    runs = f"{tmp_path}/runs/toy-sentence"
    assert f"teacher   finished: not run again  {runs}/teacher-seed42\n" in out
    assert f"kd        finished: not run again  {runs}/kd-seed42\n" in out
    assert f"finetune  new                      {runs}/finetune-seed42\n" in out
    assert list(table(out, "run")) == ["run", "finetune"]
    assert caplog.messages[1:] == ["measuring a few steps: finetune on toy-sentence"]
    assert files(tmp_path / "runs") == before
    code, out, _ = call("distil", "method=kd", "--dry-run")
    assert code == 0
    assert "time " not in out


def test_an_unfinished_run_goes_on_from_its_step_and_is_left_as_it_is(call, stopped, tmp_path):
    stopped("method=finetune", "train.epochs=2")
    before = files(tmp_path / "runs")
    code, out, _ = call("distil", "method=finetune", "train.epochs=2", "--dry-run")
    assert code == 0
    assert f"finetune  goes on from step 3  {tmp_path}/runs/toy-sentence/finetune-seed42" in out
    assert files(tmp_path / "runs") == before
    code, out, _ = call("distil", "method=finetune", "train.epochs=2", "--dry-run", "--overwrite")
    assert code == 0
    assert "finetune  new" in out
    assert files(tmp_path / "runs") == before


def test_only_what_is_left_of_an_unfinished_run_is_counted():
    trial = TrialSteps(2.0, 30.0, 500.0, peak_memory=0, model_bytes=0, checkpoint_bytes=0)
    facts = ModelFacts("m", 1, 1, 1)
    measured = Measured(
        num_rows={},
        batches_per_epoch=10,
        epochs=3,
        num_steps=30,
        vocabulary=0,
        student=facts,
        teacher=None,
        layer_map=None,
        trial=trial,
    )
    assert measured.seconds_left(0) == 30 * 2 + 3 * 30 + 500
    assert measured.seconds_left(15) == 15 * 2 + 2 * 30 + 500
    assert measured.seconds_left(20) == 10 * 2 + 1 * 30 + 500


def test_a_run_with_other_settings_is_refused_by_name(call, stopped, tmp_path):
    call("distil", "method=finetune")
    code, out, err = call("distil", "method=finetune", "train.lr=2e-3", "--dry-run")
    assert (code, out) == (2, "")
    assert f"{tmp_path}/runs/toy-sentence/finetune-seed42: holds a finished run with train.lr = 0.001, not 0.002" in err
    assert err.count("\n") == 1
    stopped("method=finetune", "seed=7")
    code, _, err = call("distil", "method=finetune", "seed=7", "train.lr=2e-3", "--dry-run")
    assert code == 2
    assert "holds an unfinished run with train.lr" in err


def test_data_that_have_changed_since_an_unfinished_run_began_are_refused(call, stopped, tmp_path):
    rows = "text,label\n" + "a good film,up\nbad,down\n" * 40
    (tmp_path / "rows.csv").write_text(rows)
    own = "{name: mine, text: [text], labels: [down, up], metrics: [accuracy], files: {train: rows.csv, dev: rows.csv}}"
    arguments = ["method=finetune", f"task={own}", f"data.path={tmp_path}"]
    stopped(*arguments)
    (tmp_path / "rows.csv").write_text(rows + "bad,up\n")
    code, _, err = call("distil", *arguments, "--dry-run")
    assert code == 2
    assert "has changed since this run began" in err


def test_models_of_unequal_width_are_refused_for_reptile_and_not_for_kd(call):
    pair = ["student.init=pretrained", "student.num_layers=null", "student.pretrained=toy-bert-1L-32H"]
    code, _, err = call("distil", "--dry-run", *pair)
    assert code == 2
    assert "Reptile needs teacher and student of equal width" in err
    assert call("distil", "--dry-run", "method=kd", *pair)[0] == 0


@pytest.mark.parametrize("what", ["special tokens", "vocabularies"])
def test_models_with_different_tokenizers_are_refused_for_reptile_and_not_for_kd(call, tmp_path, what):
    load_pretrained("toy-bert-1L-16H", toy.TASKS["toy-sentence"], seed=0).save_pretrained(tmp_path / "student")
    tokenizer = toy_tokenizer()
    if what == "special tokens":
        tokenizer.unk_token = "the"
    else:
        words = {**tokenizer.get_vocab()}
        words["other"] = words.pop("the")
        tokenizer = transformers.BertTokenizer(vocab=words)
    tokenizer.save_pretrained(tmp_path / "student")
    pair = ["student.init=pretrained", "student.num_layers=null", f"student.pretrained={tmp_path}/student"]
    code, _, err = call("distil", "--dry-run", *pair)
    assert code == 2
    assert f"have different {what}: Reptile moves each of the teacher's embeddings" in err
    assert "choose a pair that shares one tokenizer, or method=kd" in err
    assert call("distil", "--dry-run", "method=kd", *pair)[0] == 0


def test_a_teacher_whose_labels_are_others_is_refused(call, tmp_path):
    call("finetune", "task=toy-threeway")
    folder = tmp_path / "runs/toy-threeway/teacher-seed42/model"
    code, _, err = call("distil", "--dry-run", f"teacher.finetuned={folder}")
    assert code == 2
    assert "has 3 outputs, but task toy-sentence needs 2" in err


def test_what_is_only_on_the_hub_is_one_sentence(call):
    code, out, err = call("distil", "--dry-run", "teacher.pretrained=some/model")
    assert (code, out) == (2, "")
    assert "error: some/model: neither a folder here nor usable in the local cache" in err
    code, out, err = call("distil", "--dry-run", "task=rte", "data.max_train_rows=null")
    assert (code, out) == (2, "")
    assert "error: GLUE's rte (nyu-mll/glue) is not in the local cache" in err


def test_a_full_disk_is_refused_before_the_run(call, monkeypatch, tmp_path):
    monkeypatch.setattr("reptile_distil.experiments.dry_run.free_bytes", lambda path: 1000)
    code, out, err = call("distil", "--dry-run", "method=finetune")
    assert (code, out) == (2, "")
    assert f"error: {tmp_path}/runs/toy-sentence: about 0.00 GB are needed, but only 0.00 GB are free" in err


def test_a_place_that_cannot_be_written_is_refused(call, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = call("distil", "--dry-run", f"runs_dir={tmp_path}/file/runs")
    assert code == 2
    assert f"error: {tmp_path}/file: is a file; give another runs_dir or output_dir" in err


@pytest.mark.parametrize("key", ["runs_dir", "output_dir"])
@pytest.mark.parametrize(
    ("name", "lack"),
    [("afile", "is a file"), ("broken", "is a link to nothing"), ("loopa", "is a link that leads to itself")],
)
def test_run_and_dry_run_say_the_same_of_a_place_where_no_folder_can_be(call, tmp_path, key, name, lack):
    (tmp_path / "afile").touch()
    (tmp_path / "broken").symlink_to("nothing")
    (tmp_path / "loopa").symlink_to("loopb")
    (tmp_path / "loopb").symlink_to("loopa")
    for options in (["--dry-run"], []):
        code, out, err = call("distil", *options, f"{key}={tmp_path}/{name}")
        assert (code, out) == (2, "")
        assert f"error: {tmp_path}/{name}: {lack}; give another runs_dir or output_dir\n" in err
    assert not (tmp_path / "runs").exists()


def test_a_teacher_that_is_a_link_to_itself_is_refused(call, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for options in (["--dry-run"], []):
        code, _, err = call("distil", *options, "method=kd", f"teacher.finetuned={tmp_path}/loop")
        assert code == 2
        assert f"error: {tmp_path}/loop: is a link that leads to itself; give another folder as the teacher\n" in err


def test_several_processes_are_refused(call, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call("distil", "--dry-run")
    assert code == 2
    assert "--dry-run takes one process: start it with python" in err


def run_plan(model_bytes, checkpoint_bytes, *, state="new", folder, role="kd", epochs=1, options=()):
    trial = TrialSteps(0, 0, 0, peak_memory=0, model_bytes=model_bytes, checkpoint_bytes=checkpoint_bytes)
    facts = ModelFacts("m", 1, 1, 1)
    measured = Measured({}, 1, epochs, 1, 0, facts, None, None, trial)
    return RunPlan(role, Status(folder, state), None if state == "finished" else measured, load_config(TINY, options))


@pytest.mark.parametrize(
    ("keep", "stays", "needed"),
    [
        (1, False, 5 + 2 * (60 + 20)),  # the second run's two checkpoints, beside the first one's model
        (2, False, 5 + 3 * (60 + 20)),
        (2, True, 5 + 2 * (15 + 5) + 3 * (60 + 20)),  # and its checkpoints
    ],
)
def test_disk_is_needed_for_checkpoints_while_a_run_goes_on_and_for_its_model_afterwards(tmp_path, keep, stays, needed):
    options = [f"checkpoint.keep={keep}", f"checkpoint.keep_when_finished={str(stays).lower()}"]
    states = [(5, 15, "new"), (9, 9, "finished"), (20, 60, "new")]
    runs = [run_plan(*sizes, state=state, folder=tmp_path, options=options) for *sizes, state in states]
    assert disk_needed(runs) == needed


def test_disk_is_needed_for_a_teachers_epochs_whatever_the_other_runs_keep(tmp_path):
    teacher = run_plan(20, 60, folder=tmp_path, role="teacher", epochs=3, options=["teacher.keep_epochs=true"])
    student = run_plan(5, 15, folder=tmp_path, options=["checkpoint.keep=1"])
    assert disk_needed([teacher, student]) == 3 * 20 + (teacher.config.checkpoint.keep + 1) * 80


def test_what_an_unfinished_run_has_written_is_not_needed_again(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 30)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    runs = [run_plan(20, 60, state="unfinished", folder=tmp_path, options=["checkpoint.keep=1"])]
    assert disk_needed(runs) == 2 * 80 - 30


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (42, "42 s"),
        (100, "1.7 min"),
        (5000, "83 min"),
        (7200, "2.0 h"),
        (200_000, "2.3 days"),
    ],
)
def test_times_are_said_in_the_unit_that_suits_them(seconds, said):
    assert format_seconds(seconds) == said


def test_sizes_are_said_in_the_unit_that_suits_them():
    assert [format_bytes(size) for size in (2_340_000, 12_345_678_901)] == ["2.3 MB", "12.3 GB"]


def test_a_teacher_that_is_finished_is_told_once(call, caplog):
    call("distil", "method=kd")
    assert not [line for line in caplog.messages if "is finished" in line]
    caplog.clear()
    call("distil", "compare_with=[kd]")
    finished = [line.split()[0].rpartition("/")[2] for line in caplog.messages if "is finished" in line]
    assert finished == ["teacher-seed42", "kd-seed42"]


@pytest.mark.parametrize("method", ["prokt", "cotrain", "checkpoints", "lgtm"])
def test_a_dry_run_measures_the_steps_of_every_method(call, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("distil", "--dry-run", "runs_dir=runs", f"method={method}", "train.epochs=3")
    assert code == 0
    assert not (tmp_path / "runs").exists()
    assert re.search(rf"^{method} +\S", out, re.M)
