"""Each script, run as a user runs it: end to end, offline, on a model of a few thousand weights."""

import json
import os
import re
import resource
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from reptile_distil import Experiment, cli
from reptile_distil.runs.resume import Recovery
from reptile_distil.runtime.interrupts import Interrupted
from tests.helpers.paths import CONFIGS, ROOT, TINY


def test_finetune_trains_the_teacher(call, tmp_path):
    code, out, _ = call("finetune")
    assert code == 0
    assert "| teacher |" in out
    assert (tmp_path / "runs/toy-sentence/teacher-seed42/results.json").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("runs/toy-sentence/kd-seed99", "no such folder; for a model of the hub, give --config too"),
        ("elsewhere", "lies in no run folder; give --config too, which says task and data"),
    ],
)
def test_evaluate_says_what_lies_where_it_finds_no_configuration(call, tmp_path, monkeypatch, name, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    code, _, err = call("evaluate", "--model", name, config=None)
    assert code == 2
    assert err.startswith(f"error: --model {name}: {sentence}")


def test_audit_prints_a_row_for_each_stage_and_writes_every_value(call, tmp_path):
    few = ("--batches", "2", "--probe-rows", "8", "--json", str(tmp_path / "audit.json"), "--stages", "0.2", "0.6")
    code, out, _ = call("audit", "data.validation_fraction=0.3", *few, "train.epochs=2")
    assert code == 0
    assert len(out.strip().splitlines()) == 4
    written = json.loads((tmp_path / "audit.json").read_text())
    assert [len(stage["batches"]) for stage in written["stages"]] == [2, 2]
    assert (written["method"], written["num_probe_rows"]) == ("reptile", 8)


def test_headroom_prints_a_row_for_each_kind_of_targets_of_a_run(call, tmp_path):
    few = ("--times", "2", "--teachers", "2", "--points", "1", "train.max_steps=2")
    hidden = ("method=kd", "data.validation_fraction=0.3", "data.transfer.labelled_rows=14")
    code, out, _ = call("headroom", *few, *hidden)
    assert code == 0
    assert [line.split("|")[3].strip() for line in out.strip().splitlines()[2:]] == [
        "frozen teacher",
        "the labels alone",
        "2 teachers averaged",
        "teacher of 2 times the labels",
        "frozen teacher and true labels averaged",
    ]
    assert (tmp_path / "runs/toy-sentence/headroom-seed42.md").read_text() == out
    assert (tmp_path / "runs/toy-sentence/headroom-seed42.csv").read_text().startswith("task,row,seed,targets,")


def test_headroom_of_a_table_asks_for_no_dev_split_and_says_a_file_in_its_way_first(call, tmp_path):
    rows = [json.dumps({"text": f"a {'good' if n % 2 else 'bad'} film", "label": str(n % 2)}) for n in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    own = "name: own, text: [text], label: label, labels: ['0', '1'], metrics: [accuracy], files: {train: train.jsonl}"
    (tmp_path / "table.yaml").write_text(
        f"extends: {TINY}\ntasks: [{{{own}}}]\nmethods: [kd]\nseeds: [1]\n"
        f"data: {{path: '{tmp_path}', max_train_rows: null, validation_fraction: 0.3}}\n"
    )
    few = ("--config", str(tmp_path / "table.yaml"), "--teachers", "2", "--points", "1", "train.max_steps=2")
    assert call("table", *few[:2])[0] == 2
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/table-headroom").touch()
    code, _, err = call("headroom", *few)
    assert code == 2
    assert err.strip().endswith("table-headroom is no folder")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["table-headroom"]
    (tmp_path / "runs/table-headroom").unlink()
    code, out, _ = call("headroom", *few)
    assert code == 0
    assert "| own " in out


def test_finetune_trains_the_student_alone_when_asked(call, tmp_path):
    code, out, _ = call("finetune", "--model", "student")
    assert code == 0
    assert "| finetune |" in out
    assert not (tmp_path / "runs/toy-sentence/teacher-seed42").exists()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("train.epochs=3", "for the teacher give teacher.train.epochs, for the student alone --model student"),
        ("train={lr: 1e-3}", "for the teacher give teacher.train.lr, for the student alone --model student"),
        ("output_dir=here", "is the student's run folder: give runs_dir"),
        ("teacher.finetuned=there", "leave it out to fine-tune teacher.pretrained"),
        ("teacher.label_names=[negative, positive]", "leave it out to fine-tune teacher.pretrained"),
    ],
)
def test_finetune_refuses_what_is_no_matter_of_the_teachers(call, tmp_path, override, reason):
    code, _, error = call("finetune", override)
    assert (code, len(error.splitlines())) == (2, 1)
    assert error.startswith(f"error: command line: {re.split('[={]', override)[0]}")
    assert reason in error
    assert not (tmp_path / "runs").exists()
    # The student takes it; and a configuration is printed for either of the two.
    assert call("finetune", "--print-config", override)[0] == 0
    if override.startswith("train"):
        assert call("finetune", "--model", "student", "--dry-run", override)[0] == 0


def test_finetune_trains_the_teacher_of_a_file_that_has_one_from_elsewhere(call, tmp_path):
    path = tmp_path / "elsewhere.yaml"
    path.write_text(f"extends: {TINY}\nteacher: {{finetuned: there}}\n")
    code, out, _ = call("finetune", "teacher.train.max_steps=1", config=path)
    assert code == 0
    assert "| teacher |" in out
    _, printed, _ = call("finetune", "--print-config", "teacher.finetuned=here", config=path)
    assert "\n  finetuned: here\n" in printed


def test_distil_ends_in_a_table_of_teacher_and_all_methods(call):
    code, out, _ = call("distil", "compare_with=[kd, finetune]")
    assert code == 0
    header, rule, *rows = out.strip().splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][:3] == ["run", "dev accuracy", "teacher at end"]
    assert [row.split("|")[1].strip() for row in rows] == ["teacher", "reptile", "kd", "finetune"]
    assert len({len(line) for line in (header, rule, *rows)}) == 1


@pytest.mark.parametrize(
    "overrides", [("reptile.layer_map=[0,5]",), ("method=kd", "compare_with=[reptile]", "reptile.layer_map=[0,5]")]
)
def test_a_pair_that_does_not_fit_is_refused_before_the_teacher_is_fine_tuned(call, tmp_path, overrides):
    code, _, error = call("distil", *overrides)
    assert code == 2
    assert "layer map [0, 5]: 2 entries" in error
    assert not (tmp_path / "runs" / "toy-sentence" / "teacher-seed42").exists()


def test_another_teacher_than_the_one_there_is_refused_with_advice_that_helps(call):
    assert call("distil")[0] == 0
    change = "teacher.train.warmup_ratio=0.5"
    code, _, error = call("distil", change, "--overwrite")
    assert code == 2
    assert "teacher-seed42: holds a finished run with teacher.train.warmup_ratio = 0.0, not 0.5; give another" in error
    assert error.endswith("runs_dir, or fine-tune the teacher again with scripts/finetune.py --overwrite\n")
    assert call("finetune", change, "--overwrite")[0] == 0
    assert call("distil", change, "--overwrite")[0] == 0


def test_evaluate_gives_the_score_that_the_run_gave(call, tmp_path):
    call("distil", "method=finetune")
    folder = tmp_path / "runs/toy-sentence/finetune-seed42"
    code, out, _ = call("evaluate", "--model", folder / "model", config=None)
    assert code == 0
    split, metric, score = out.removesuffix(" %\n").split()
    saved = json.loads((folder / "results.json").read_text())["scores"]["dev"]["accuracy"]
    assert (split, metric, float(score)) == ("dev", "accuracy", pytest.approx(100 * saved, abs=0.005))


def test_evaluate_finds_the_run_of_a_model_however_it_is_named(call, tmp_path, monkeypatch):
    results = Experiment.from_yaml(TINY, "method=finetune", f"runs_dir={tmp_path}/runs").fit()
    model = tmp_path / "runs" / "toy-sentence" / "finetune-seed42" / "model"
    (tmp_path / "link").symlink_to(model)
    monkeypatch.chdir(model)
    for name in (".", "./", "..", "../model", f"{model}/", f"{model}/../model", tmp_path / "link"):
        code, out, _ = call("evaluate", "--model", name, config=None)
        assert (name, code) == (name, 0)
        assert out == f"dev\taccuracy\t{100 * results['scores']['dev']['accuracy']:.2f} %\n"


def test_evaluate_writes_predictions_whose_accuracy_is_the_score(call, tmp_path):
    call("distil", "method=finetune")
    model, file = tmp_path / "runs/toy-sentence/finetune-seed42/model", tmp_path / "predictions.tsv"
    code, out, _ = call("evaluate", "--model", model, "--split", "test", "--predictions", file, config=None)
    assert code == 0
    header, *rows = [line.split("\t") for line in file.read_text().splitlines()]
    assert header == ["index", "prediction", "probability", "label"]
    assert [int(row[0]) for row in rows] == list(range(500))
    accuracy = sum(row[1] == row[3] for row in rows) / 500
    assert f"test\taccuracy\t{100 * accuracy:.2f} %" in out


def test_evaluate_predicts_a_split_without_labels(call, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na good film,up\nbad,down\n")
    (tmp_path / "test.csv").write_text("text\ngood\nthe bad plot\nfilm\n")
    files = "{train: rows.csv, dev: rows.csv, test: test.csv}"
    task = f"task={{name: mine, text: [text], labels: [down, up], metrics: [accuracy], files: {files}}}"
    options = [task, f"data.path={tmp_path}", "data.max_train_rows=null"]
    assert call("distil", "method=finetune", *options)[0] == 0
    model, file = tmp_path / "runs/mine/finetune-seed42/model", tmp_path / "predictions.tsv"
    code, out, _ = call("evaluate", "--model", model, "--split", "test", "--predictions", file, *options)
    assert code == 0
    assert "no labels, so no scores" in out
    assert len(file.read_text().splitlines()) == 4


def test_a_three_way_student_is_evaluated_on_another_task_of_the_same_labels(call, tmp_path):
    """As MNLI's student is on AX: the labels are the same by name."""
    call("distil", "method=finetune", "task=toy-threeway")
    (tmp_path / "AX").mkdir()
    rows = "".join(f"{index}\tthe film was good\tthe film was bad\n" for index in range(1104))
    (tmp_path / "AX" / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n" + rows)
    model, file = tmp_path / "runs/toy-threeway/finetune-seed42/model", tmp_path / "ax.tsv"
    options = ["--split", "test", "--predictions", file, "task=ax", f"data.path={tmp_path}"]
    code, _, err = call("evaluate", "--model", model, *options)
    assert code == 0, err
    assert len(file.read_text().splitlines()) == 1105


def write_mnli(folder):
    """The three splits of MNLI that a run needs, in the official format: 12 rows each."""
    columns = (
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
    )
    columns = [*columns.split(), "sentence1", "sentence2", "label1", "gold_label"]
    labels = ["contradiction", "entailment", "neutral"]
    folder.mkdir()
    for name in ("train", "dev_matched", "dev_mismatched"):
        rows = [
            ["x"] * 8 + [f"the film was {'not ' * (row % 2)}good", "it was bad", "x", labels[row % 3]]
            for row in range(12)
        ]
        (folder / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]))


AX_COLUMNS = ("Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain")


def test_mnlis_student_has_both_halves_in_one_results_json_and_is_scored_on_ax(call, tmp_path):
    write_mnli(tmp_path / "MNLI")
    (tmp_path / "AX").mkdir()
    data = [f"data.path={tmp_path}", "data.check_rows=false"]
    code, _, err = call("distil", "method=finetune", "task=mnli", "data.max_train_rows=null", *data)
    assert code == 0, err
    run = tmp_path / "runs/mnli/finetune-seed42"
    scores = json.loads((run / "results.json").read_text())["scores"]
    assert list(scores) == ["dev_matched", "dev_mismatched"]
    code, out, _ = call("evaluate", "--model", run / "model", *data, config=None)
    assert out.splitlines() == [
        f"{split}\taccuracy\t{100 * of_split['accuracy']:.2f} %" for split, of_split in scores.items()
    ]

    rows = [
        ("the film was good", "it was bad"),
        ("it was bad", "the film was good"),
        ("good", "bad"),
        ("bad", "not good"),
    ]
    lines = ["index\tsentence1\tsentence2", *(f"{i}\t{a}\t{b}" for i, (a, b) in enumerate(rows))]
    (tmp_path / "AX" / "diagnostic.tsv").write_text("\n".join(lines) + "\n")
    evaluate = ["evaluate", "--model", run / "model", "task=ax", *data]
    code, out, _ = call(*evaluate, config=None)
    assert (code, out) == (0, "test\tno labels, so no scores\n")

    code, _, _ = call(*evaluate, "--split", "test", "--predictions", tmp_path / "ax.tsv", config=None)
    said = [line.split("\t")[1] for line in (tmp_path / "ax.tsv").read_text().splitlines()[1:]]
    others = ["neutral" if label == "entailment" else "entailment" for label in said]
    for labels, mcc in ((said, 1.0 if len(set(said)) > 1 else 0.0), (others, None)):
        lines = ["\t".join([*AX_COLUMNS, "Premise", "Hypothesis", "Label"])]
        lines += ["\t".join(["x"] * 5 + [*row, label]) for row, label in zip(rows, labels, strict=True)]
        (tmp_path / "AX" / "diagnostic-full.tsv").write_text("\n".join(lines) + "\n")
        code, out, _ = call(*evaluate, config=None)
        split, metric, score = out.removesuffix(" %\n").split()
        assert (code, split, metric) == (0, "test", "matthews_correlation")
        assert float(score) == 100 * mcc if mcc is not None else float(score) <= 0


def test_print_config_prints_yaml_that_loads_and_trains_nothing(call, tmp_path):
    code, out, _ = call("distil", "--print-config", "seed=7")
    assert code == 0
    (tmp_path / "printed.yaml").write_text(out)
    code, again, _ = call("distil", "--print-config", config=tmp_path / "printed.yaml")
    assert again == out
    assert "seed: 7" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", ["distil", "finetune", "evaluate"])
@pytest.mark.parametrize("overrides", [(), ("seed=7", "method=kd"), ("train.lr=1e-3", "student.init=random")])
def test_a_recipe_without_a_task_is_printed_with_the_task_marked_as_missing(call, tmp_path, script, overrides):
    model = ["--model", "some/model"] if script == "evaluate" else []
    depth = ["student.num_layers=2", "student.pretrained=null"] if "student.init=random" in overrides else []
    base = CONFIGS / "base.yaml"
    code, out, error = call(script, *model, "--print-config", *overrides, *depth, config=base)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    marked = "# task: is missing; give it here, or as task=... on the command line"
    assert [line for line in lines if re.match(r"#? ?task:", line)] == [marked]
    _, with_task, _ = call(script, *model, "--print-config", *overrides, *depth, "task=rte", config=base)
    assert with_task.splitlines() == ["task: rte" if line == marked else line for line in lines]
    (tmp_path / "printed.yaml").write_text(out)
    code, _, error = call("distil", config=tmp_path / "printed.yaml")
    assert (code, error.splitlines()[-1]) == (2, f"error: {tmp_path}/printed.yaml: the key 'task' is missing")


@pytest.mark.parametrize(
    ("override", "message"),
    [("trian.lr=1", "unknown key 'trian'"), ("seed=x", "seed = 'x'"), ("metadistil.quiz_fraction=0.2", "no effect")],
)
def test_what_else_is_wrong_with_a_recipe_without_a_task_is_still_refused(call, override, message):
    code, out, error = call("distil", "--print-config", override, config=CONFIGS / "base.yaml")
    assert (code, out) == (2, "")
    assert message in error


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("distil", ["train.lrr=1"], "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("distil", ["train.lr=fast"], "train.lr = 'fast'"),
        ("distil", ["task=sst3", "data.path=."], "unknown task 'sst3'"),
        ("distil", ["task=sst2", "data.path=no-such-folder", "method=finetune"], "no-such-folder"),
        ("distil", ["teacher.pretrained=./none"], "./none: no such folder"),
        ("finetune", ["student.num_layers=0"], "student.num_layers = 0"),
        ("finetune", ["device=cuda"], "device = 'cuda'"),
        ("evaluate", ["--model", "./none"], "./none: no such folder"),
        ("evaluate", ["--model", "./none", "--split", "train2"], "./none"),
    ],
)
def test_a_users_fault_is_one_sentence_and_exit_code_2(call, script, arguments, message):
    if "device=cuda" in arguments and __import__("torch").cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = call(script, *arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_missing_configuration_is_one_sentence(call):
    code, _, err = call("distil", config="nowhere.yaml")
    assert (code, err) == (2, "error: nowhere.yaml: no such file\n")


def test_ctrl_c_pressed_twice_says_what_is_left_and_exits_130(capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    assert cli.run(interrupted) == 130
    assert "stopped at once; the same command goes on from the last checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_is_one_sentence_and_the_exit_code_that_shells_give(capsys, number, code):
    def interrupted(_):
        raise Interrupted(number)

    assert cli.run(interrupted) == code
    assert capsys.readouterr().err.startswith(f"interrupted by {number.name}")


def masked(folder):
    """What a finished run leaves, without its seconds and peak memory."""
    wall_clock = re.compile(rb'"(train_seconds|examples_per_second|wall_seconds|peak_memory_bytes)": [^,\n}]+')
    files = [folder / "metrics.jsonl", folder / "results.json", folder / "model" / "model.safetensors"]
    return [wall_clock.sub(b"", file.read_bytes()) for file in files]


LONG = ["method=finetune", "train.epochs=12"]


def wait_for(file, text, process):
    while not (file.exists() and text in file.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow),
    ],
)
def test_as_a_process_a_signal_ends_the_run_within_seconds_and_the_same_command_goes_on(call, tmp_path, number, code):
    command = [sys.executable, str(ROOT / "scripts" / "distil.py"), "--config", str(TINY), *LONG]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "runs/toy-sentence/finetune-seed42"
    with subprocess.Popen(
        [*command, f"runs_dir={tmp_path}/runs"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background jobs
    ) as process:
        wait_for(folder / "metrics.jsonl", '"epoch": 2', process)
        process.send_signal(number)
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30  # well under a second where nothing else runs
    assert (process.returncode, out) == (code, "")
    last = err.splitlines()[-1]
    assert re.fullmatch(rf"interrupted by {number.name}; a checkpoint of step \d+ was written, and the same .*", last)
    assert "Traceback" not in err
    assert call("distil", *LONG)[0] == 0
    assert call("distil", *LONG, f"runs_dir={tmp_path}/other")[0] == 0
    assert masked(folder) == masked(tmp_path / "other/toy-sentence/finetune-seed42")


def test_a_full_disk_in_the_middle_of_a_run_is_one_sentence_and_the_run_goes_on_later(call, tmp_path, monkeypatch):
    """The disk takes no file larger than 20 kB from step 6 on; a checkpoint has 60 kB or more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    is_due = Recovery.is_due

    def fill(self, progress):
        if progress.step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        return is_due(self, progress)

    command = ["distil", "method=finetune", "train.epochs=3", "checkpoint.every_steps=2"]
    folder = tmp_path / "runs/toy-sentence/finetune-seed42"
    with monkeypatch.context() as patch:
        patch.setattr(Recovery, "is_due", fill)
        try:
            code, _, err = call(*command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        f"error: {folder}/checkpoints/step-00000006: the checkpoint cannot be written: File too large; "
        "step-00000005-evaluated is intact: mend that, and the same command goes on"
    ]
    assert "Traceback" not in err
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"step-00000004", "step-00000005-evaluated"}
    assert call(*command)[0] == 0
    assert call(*command, f"runs_dir={tmp_path}/other")[0] == 0
    assert masked(folder) == masked(tmp_path / "other/toy-sentence/finetune-seed42")


@pytest.mark.parametrize(("number", "text"), [(28, "No space left on device"), (13, "Permission denied")])
def test_a_full_disk_or_a_forbidden_folder_is_one_sentence(capsys, number, text):
    def fails(_):
        raise OSError(number, text, "runs/x")

    assert cli.run(fails) == 2
    assert capsys.readouterr().err == f"error: runs/x: {text}\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_which_settings_to_lower(capsys, error):
    def fails(_):
        raise error

    assert cli.run(fails) == 2
    assert "out of memory: lower train.micro_batch_size" in capsys.readouterr().err


BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}  # an output that is written at the very end fails there once more


def print_config(environment=BUFFERED):
    """The process of a script that prints its configuration."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "distil.py"),
        "--config",
        str(TINY),
        "--print-config",
        "data.path=é",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


PRINTS_LITTLE = "import sys; from reptile_distil import cli; sys.exit(cli.run(lambda _: print('one line')))"


def run_printing_little(stdout):
    """Exit code and stderr."""
    command = [sys.executable, "-c", PRINTS_LITTLE]
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=BUFFERED)
    return done.returncode, done.stderr


def test_a_reader_that_goes_early_is_no_fault():
    with print_config() as process:
        process.stdout.close()  # as `| head -0` does
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_reader_that_goes_before_a_short_output_is_no_fault():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS_LITTLE], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device to write to")
def test_an_output_that_is_full_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        assert run_printing_little(full) == (2, "error: the run folder or the output: No space left on device\n")


def test_a_terminal_without_a_letter_is_no_fault():
    with print_config({**BUFFERED, "PYTHONIOENCODING": "ascii"}) as process:
        assert r"path: \xe9" in process.stdout.read()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_scripts_load_nothing_heavy_before_they_catch_ctrl_c():
    code = (
        "import sys, reptile_distil.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


WRITING = {
    "evaluate": ("--config", str(TINY), "--model", "./none", "--split", "dev", "--predictions"),
    "submit": ("--runs", "./none", "--output"),
    "benchmark --json": ("--lengths", "none", "--json"),
    "benchmark --plot": ("--lengths", "none", "--plot"),
    "audit": ("--config", str(TINY), "data.validation_fraction=0.3", "--json"),
}


def fault_at(path, fault):
    """Makes of `path` one that cannot be written, and says how."""
    if fault == "folder":
        path.mkdir()
        return "it is a folder"
    if fault == "link":
        path.symlink_to(path.with_name("elsewhere"))
        return "it is a symbolic link"
    if fault == "fifo":
        os.mkfifo(path)
        return "it is no regular file"
    path.parent.rmdir()
    if fault == "in a file":
        path.parent.write_text("")
    return "Not a directory" if fault == "in a file" else "is no folder"


@pytest.mark.parametrize("fault", ["folder", "link", "fifo", "in a file", "in no folder"])
@pytest.mark.parametrize("command", WRITING)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(capsys, tmp_path, command, fault):
    path = tmp_path / "outputs" / "x.tsv"
    path.parent.mkdir()
    if (command, fault) == ("submit", "in no folder"):
        pytest.skip("it makes the folder")
    said = fault_at(path, fault)
    main = runpy.run_path(str(ROOT / "scripts" / f"{command.split()[0]}.py"))["main"]
    assert cli.run(main, [*WRITING[command], str(path)]) == 2
    err = capsys.readouterr().err
    assert f"{path}: cannot be written: " in err
    assert said in err or f"{path.parent} is no folder" in err


@pytest.mark.parametrize(
    "changes", [{"method": 3}, {"scores": []}, {"num_parameters": "x"}, {"teacher": {}}, {"best_epoch": None}, None]
)
def test_a_finished_run_with_incomplete_results_is_refused_not_shown(call, tmp_path, changes):
    call("distil", "method=finetune")
    path = tmp_path / "runs/toy-sentence/finetune-seed42/results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps({**results, **changes} if changes else {"decisive": results["decisive"]}))
    code, _, err = call("distil", "method=finetune")
    assert code == 2
    assert "results.json: cannot be read (" in err
    assert err.endswith("; give another output_dir (or runs_dir), or run again with --overwrite\n")


def test_a_fault_of_ours_keeps_its_traceback():
    def broken(_):
        raise FileNotFoundError(2, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        cli.run(broken)


def test_a_link_to_itself_on_the_import_path_is_no_fault(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path / "loop")])
    assert cli.run(lambda _: None) == 0
    assert sys.path[-1] == str(tmp_path / "loop")


def test_as_a_process_the_evaluate_script_does_not_hide_the_evaluate_package(tmp_path):
    """`python scripts/evaluate.py` puts scripts/ first on the import path, where evaluate.py waits to be imported."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "--config", str(TINY), "--model", "./none"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ./none: no such folder")


def test_importing_the_package_prints_nothing_and_loads_nothing_heavy():
    code = "import sys, reptile_distil; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_public_name_can_be_imported():
    import reptile_distil

    assert all(getattr(reptile_distil, name) is not None for name in reptile_distil.__all__)
    assert set(reptile_distil.__all__) <= set(dir(reptile_distil))
    with pytest.raises(AttributeError, match="no attribute 'Reptile'"):
        _ = reptile_distil.Reptile
