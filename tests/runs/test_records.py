"""results.json and metrics.jsonl: what is written comes back letter by letter, and nothing damaged is read as a run."""

import json
import math
import os

import pytest

from reptile_distil import Experiment
from reptile_distil.errors import RunError
from reptile_distil.experiments.dry_run import plan_distillation
from reptile_distil.experiments.finished_run import open_run_folder
from reptile_distil.export.report import make_report
from reptile_distil.plots.learning import draw_learning_curves
from reptile_distil.plots.run import draw_curves
from reptile_distil.plots.table import draw_score_against_time, draw_table, draw_teacher_change
from reptile_distil.runs.folder import RunFolder
from reptile_distil.runs.history import read_epochs, read_run, read_steps
from reptile_distil.runs.records import as_results, read_metrics, read_results
from reptile_distil.runs.results import RunResults, comparison_table
from tests.helpers.paths import FIXTURES, TINY
from tests.helpers.records import epoch_dict, results_dict, write_run

FINISHED = FIXTURES / "finished-run"  # as version 0.1.0 has written it before there were typed records
WHOLE = results_dict(teacher={}, latency={"length": 8, "device": "cpu", "batches": {}})

DAMAGED = {
    "empty": b"",
    "list": b"[]",
    "null": b"null",
    "number": b"1",
    "text": b'"results"',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"task":' * 100_000,
    "no UTF-8": b'{"task": "\xff"}',
    "NUL bytes": b"\x00" * 512,
    "cut short": json.dumps(WHOLE).encode()[:-20],
    "number of 5000 digits": json.dumps(WHOLE).replace('"num_steps": 10', f'"num_steps": {"1" * 5000}').encode(),
    "two objects": json.dumps(WHOLE).encode() * 2,
}


def test_a_file_from_before_comes_back_letter_by_letter():
    text = (FINISHED / "results.json").read_text()
    assert json.dumps(read_results(FINISHED / "results.json").to_dict(), indent=2) + "\n" == text
    metrics = read_metrics(FINISHED)
    lines = (FINISHED / "metrics.jsonl").read_text().splitlines()
    in_order = sorted((*metrics.epochs, *metrics.steps), key=lambda record: (record.step, "score" in record.to_dict()))
    assert [json.dumps(record.to_dict()) for record in in_order] == lines
    assert (len(metrics.epochs), len(metrics.steps)) == (3, 8)


def test_a_folder_writes_the_records_as_they_were_written_before(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics.touch()
    results, metrics = read_run(FINISHED)
    folder.finish(results)
    folder.log(metrics.steps[0])
    folder.log(metrics.epochs[0])
    assert folder.results.read_bytes() == (FINISHED / "results.json").read_bytes()
    lines = (FINISHED / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert folder.metrics.read_text() == lines[0] + lines[2]


def test_an_undefined_score_is_nan_in_memory_and_null_in_the_file(tmp_path):
    scores = {"dev": {"f1": None, "accuracy": 0.5}}
    (tmp_path / "results.json").write_text(json.dumps(results_dict(scores=scores, score=None)))
    results = read_results(tmp_path / "results.json")
    assert math.isnan(results.score)
    assert math.isnan(results.scores["dev"]["f1"])
    assert (results.to_dict()["score"], results.to_dict()["scores"]) == (None, scores)


def test_keys_of_a_newer_version_are_kept_and_an_older_file_needs_none_of_the_newest():
    values = results_dict(note={"by": "a newer version"}, teacher={"num_layers": 12})
    assert as_results(values).to_dict() == values
    for name in ("num_processes", "peak_memory_bytes", "inputs"):
        del values[name]
    assert as_results(values).to_dict() == values
    assert as_results(values).inputs == {}


def test_records_cannot_be_changed():
    results = as_results(WHOLE)
    with pytest.raises(ValueError, match="frozen"):
        results.score = 1.0
    with pytest.raises(ValueError, match="frozen"):
        results.teacher.num_parameters = 1


def damaged_file(path, kind):
    """Puts something that is no file of a run at `path`."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(DAMAGED[kind])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A real run without a teacher."""
    experiment = Experiment.from_yaml(TINY, f"runs_dir={tmp_path_factory.mktemp('runs')}", "method=finetune")
    experiment.fit()
    return experiment


@pytest.fixture
def whole(finished):
    """The run, whose files are put back afterwards."""
    files = [finished.folder.path / name for name in ("results.json", "metrics.jsonl", "environment.json")]
    before = {file: file.read_bytes() for file in files}
    yield finished
    for file, content in before.items():
        if file.is_dir():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_bytes(content)


READERS = {
    "read_results": lambda run: read_results(run.folder.results),
    "fit": lambda run: run.fit(),
    "history": lambda run: run.history,
    "dry run": lambda run: plan_distillation(run.config),
    "report and submission": lambda run: open_run_folder(run.folder.path),
    "report": lambda run: make_report(run.folder.model),
    "curves": lambda run: draw_curves(run.folder.path),
    "learning curves": lambda run: draw_learning_curves([run.folder.path], run.folder.path / "learning.png"),
}


def check_sentence(error, file, *remedies):
    text = str(error.value)
    assert text.startswith(f"{file}: cannot be read (")
    assert "\n" not in text
    assert any(remedy in text for remedy in (remedies or ("--overwrite", "give another")))


@pytest.mark.parametrize("kind", [*DAMAGED, "folder", "pipe"])
def test_damaged_results_are_one_sentence_wherever_they_are_read(whole, kind):
    damaged_file(whole.folder.results, kind)
    for read in READERS.values():
        with pytest.raises(RunError) as error:
            read(whole)
        check_sentence(error, whole.folder.results)
    assert "cannot be read" in repr(whole)
    assert "cannot be read" in whole._repr_html_()


def test_results_that_the_system_does_not_give_are_one_sentence(whole, monkeypatch):
    def refuses(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("reptile_distil.runtime.files.open_regular", refuses)
    with pytest.raises(RunError, match=r"results\.json: cannot be read \(Permission denied\); .*--overwrite"):
        whole.fit()


@pytest.mark.parametrize("kind", ["nested lists", "no UTF-8", "list", "folder"])
def test_a_damaged_environment_is_one_sentence(whole, kind):
    file = whole.folder.path / "environment.json"
    damaged_file(file, kind)
    with pytest.raises(RunError) as error:
        make_report(whole.folder.model)
    check_sentence(error, file, "; remove it to do without the versions that it names")


def test_a_report_on_damaged_results_names_the_command_that_trains_again(whole):
    damaged_file(whole.folder.results, "list")
    with pytest.raises(RunError, match=r"; train it again with scripts/distil\.py --overwrite \(or finetune\.py\)$"):
        make_report(whole.folder.path)


REQUIRED = [
    name for name in WHOLE if name not in ("num_processes", "peak_memory_bytes", "inputs", "teacher", "latency")
]
WRONG = {
    "task": 1,
    "method": None,
    "seed": -1,
    "scores": {"dev": {"accuracy": "0.5"}},
    "score": True,
    "best_epoch": 1.0,
    "num_steps": "10",
    "num_train_rows": [],
    "num_parameters": None,
    "train_seconds": -1.0,
    "examples_per_second": "fast",
    "num_processes": 0,
    "peak_memory_bytes": {},
    "inputs": {"teacher": 1},
    "wall_seconds": None,
    "device": 0,
    "decisive": [],
    "teacher": [],
    "latency": {"length": 8, "device": "cpu", "batches": {"1": {"teacher_ms": 1.0, "student_ms": ""}}},
}


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(tmp_path, key):
    write_run(tmp_path, {name: value for name, value in WHOLE.items() if name != key})
    with pytest.raises(RunError, match=rf"results\.json: cannot be read \({key}: Field required\); "):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("key", WRONG)
def test_a_value_of_another_type_is_named_with_its_path(tmp_path, key):
    write_run(tmp_path, {**WHOLE, key: WRONG[key]})
    with pytest.raises(RunError, match=rf"results\.json: cannot be read \({key}(\.[\w.]+)?: Input should be "):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"scores": {}}, "scores"),
        ({"scores": {"dev": {}}}, r"scores\.dev"),
        ({"teacher": {**WHOLE["teacher"], "scores_at_end": {}}}, r"teacher\.scores_at_end"),
        (
            {"teacher": {**WHOLE["teacher"], "scores_at_start": {"dev": {"f1": "x"}}}},
            r"teacher\.scores_at_start\.dev\.f1",
        ),
    ],
)
def test_scores_that_hold_none_are_named_with_their_path(tmp_path, change, path):
    write_run(tmp_path, {**WHOLE, **change})
    with pytest.raises(RunError, match=rf"\({path}: "):
        read_results(tmp_path / "results.json")
    for draw in (draw_table, draw_score_against_time, draw_teacher_change):
        with pytest.raises(RunError, match=rf"^results: {path}: .*; give the contents of a results.json"):
            draw([{**WHOLE, **change}], tmp_path / "picture.png")
    with pytest.raises(RunError, match=rf"^results: {path}: "):
        comparison_table([{**WHOLE, **change}])


def test_scores_without_a_dev_split_are_not_drawn(tmp_path):
    with pytest.raises(RunError, match=r"^results: scores: has no dev split"):
        draw_table([results_dict(scores={"test": {"accuracy": 0.5}})], tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "Invalid JSON"),
        ("[1]", "Input should be an object"),
        ("7", "Input should be an object"),
        ("null", "Input should be an object"),
        ("[" * 100_000, "Invalid JSON"),
        ("{}", "event: Field required"),
        ('{"event": 1}', "event: Input should be a valid string"),
        ('{"event": "step", "epoch": 1}', "step: Field required"),
        ('{"event": "step", "epoch": 1, "step": 1, "loss": "low"}', "loss: Input should be a valid number"),
        (json.dumps(epoch_dict(scores={})), "scores: Dictionary should have at least 1 item"),
        (json.dumps(epoch_dict(train=None)), "train: Input should be an object"),
        (json.dumps(epoch_dict(step="x")), "step: Input should be a valid integer"),
    ],
)
def test_a_damaged_line_of_metrics_is_named_wherever_it_is_read(tmp_path, line, fault):
    write_run(tmp_path, results_dict(), [epoch_dict(1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    for read in (read_metrics, read_epochs, read_steps, read_run, draw_curves):
        with pytest.raises(RunError) as error:
            read(tmp_path)
        check_sentence(error, tmp_path / "metrics.jsonl")
        assert f"(line 2: {fault}" in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\n", b"\x00\n", b"\n"])
def test_metrics_that_are_no_text_are_refused(tmp_path, content):
    write_run(tmp_path, results_dict())
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be read \(line 1: "):
        read_epochs(tmp_path)


def test_a_line_that_was_cut_short_and_one_of_a_newer_version_are_left_out(tmp_path):
    write_run(tmp_path, results_dict(), [epoch_dict(1), {"event": "pause", "why": "a newer version"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epo')
    assert len(read_metrics(tmp_path).epochs) == 1


def test_a_finished_run_without_an_epoch_is_not_drawn(tmp_path):
    write_run(tmp_path, results_dict())
    with pytest.raises(RunError, match=r"metrics\.jsonl: holds no epoch to draw"):
        draw_curves(tmp_path)


def test_what_fit_returns_is_what_results_json_holds_also_of_a_run_that_is_only_read(tmp_path):
    """Pearson's correlation of a constant prediction is undefined."""
    options = ("task=toy-regression", "method=finetune", "train.lr=1e-30", f"runs_dir={tmp_path}")
    experiment = Experiment.from_yaml(TINY, *options)
    fresh = experiment.fit()
    file = json.loads(experiment.folder.results.read_text())
    assert dict(fresh) == file == dict(experiment.fit())
    assert isinstance(fresh, RunResults)
    assert fresh.get("stopped_by") is None
