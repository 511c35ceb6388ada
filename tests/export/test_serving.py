"""The programs that answer with a saved student, run as the model card has them."""

import ast
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import transformers

from reptile_distil import Experiment
from reptile_distil.export import model_card, report
from reptile_distil.export.onnx_export import export_onnx, quantize_int8
from reptile_distil.export.serving import onnx_program, pipeline_program
from reptile_distil.runtime.measuring import Timing
from tests.helpers.paths import ROOT, TINY

KINDS = ("toy-sentence", "toy-pair", "toy-regression", "sets")
TEXTS = ["a text", "another text"]
PAIRS = [("a text", "its partner"), ("another text", "its own")]
FILES = ("model.onnx", "model_int8.onnx")
MAX_LENGTH = 32
SETS = {
    **{"name": "sets", "text": ["text"], "label": "tags", "labels": ["good", "film"], "multi_label": True},
    **{"metrics": ["f1_macro"], "files": {"train": "rows.jsonl", "dev": "rows.jsonl"}},
}


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """By kind of task, a fine-tuned student with both ONNX files beside it."""
    folder = tmp_path_factory.mktemp("students")
    rows = [("good film", ["good", "film"]), ("dull", []), ("film", ["film"]), ("another text", ["film"])] * 20
    lines = (json.dumps({"text": text, "tags": tags}) + "\n" for text, tags in rows)
    (folder / "rows.jsonl").write_text("".join(lines))
    found = {}
    for kind in KINDS:
        task = f"task={json.dumps(SETS)}" if kind == "sets" else f"task={kind}"
        own = (f"data.path={folder}",) if kind == "sets" else ()
        fixed = (f"runs_dir={folder}/runs", "method=finetune", "data.cache_dir=false")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("reptile_distil.experiments.run.draw_after_run", lambda folder: None)
            found[kind] = Experiment.from_yaml(TINY, task, *own, *fixed)
            found[kind].fit()
    return found


@pytest.fixture(scope="module")
def answers(students):
    """What the ONNX programs print, line by line, by kind and file: in one process, which cannot import torch."""
    pytest.importorskip("onnxruntime")
    programs = []
    for kind, experiment in students.items():
        folder = experiment.folder.model
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        export_onnx(model, transformers.AutoTokenizer.from_pretrained(folder), folder / "onnx" / "model.onnx")
        quantize_int8(folder / "onnx" / "model.onnx", folder / "onnx" / "model_int8.onnx")
        for file in FILES:
            program = onnx_program(experiment.task, max_length=MAX_LENGTH, folder=str(folder), file=file)
            programs.append([kind, file, program])
    runner = (
        "import contextlib, io, json, sys\n"
        "sys.modules['torch'] = None\n"
        "found = []\n"
        "for kind, file, program in json.load(sys.stdin):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as printed:\n"
        "        exec(program, {})\n"
        "    found.append([kind, file, printed.getvalue().splitlines()])\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", runner], input=json.dumps(programs), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {(kind, file): [ast.literal_eval(line) for line in lines] for kind, file, lines in json.loads(done.stdout)}


def expected_of(experiment, prediction):
    """The library's own prediction, as the program of an ONNX file gives it."""
    if experiment.task.is_regression:
        return prediction.label
    if experiment.task.multi_label:
        return {label: prediction.probabilities[label] for label in prediction.label}
    return prediction.label, prediction.probabilities[prediction.label]


@pytest.mark.parametrize("kind", KINDS)
def test_without_torch_the_onnx_file_answers_one_text_and_a_batch_as_the_student_does(students, answers, kind):
    experiment = students[kind]
    predictions = experiment.predict(PAIRS if experiment.task.is_pair else TEXTS)
    one, batch = answers[kind, "model.onnx"]
    assert len(one) == 1
    expected = [expected_of(experiment, prediction) for prediction in predictions]
    for answer, of_text in zip([*one, *batch], [expected[0], *expected], strict=True):
        assert type(answer) is type(of_text)
        assert answer == pytest.approx(of_text, abs=1e-4) if not isinstance(of_text, tuple) else answer[0] == of_text[0]
        if isinstance(of_text, tuple):
            assert answer[1] == pytest.approx(of_text[1], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_int8_file_answers_in_the_same_form_and_nearly_the_same(answers, kind):
    for exact, rounded in zip(*([*one, *batch] for one, batch in (answers[kind, file] for file in FILES)), strict=True):
        assert type(exact) is type(rounded)
        if isinstance(exact, float):
            assert rounded == pytest.approx(exact, abs=0.2)
        elif isinstance(exact, tuple):
            assert dict([rounded]).get(exact[0], 1 - rounded[1]) == pytest.approx(exact[1], abs=0.1)
        else:
            for label in {*exact, *rounded}:
                assert rounded.get(label, 0.5) == pytest.approx(exact.get(label, 0.5), abs=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_for_transformers_gives_the_students_predictions(students, capsys, kind):
    experiment = students[kind]
    predictions = experiment.predict(PAIRS if experiment.task.is_pair else TEXTS)
    exec(pipeline_program(experiment.task, max_length=MAX_LENGTH, model=str(experiment.folder.model)), {})
    found = ast.literal_eval(capsys.readouterr().out)
    for answer, prediction in zip(found, predictions, strict=True):
        if experiment.task.is_regression:
            assert answer["score"] == pytest.approx(prediction.label, abs=1e-5)
        elif experiment.task.multi_label:
            assert {item["label"]: item["score"] for item in answer} == pytest.approx(prediction.probabilities)
        else:
            assert answer["label"] == prediction.label
            assert answer["score"] == pytest.approx(prediction.probabilities[prediction.label], abs=1e-5)


def test_both_programs_cut_a_text_that_is_too_long_for_the_model(students):
    """As in training; without that, transformers gives the model positions that it does not have."""
    task = students["toy-sentence"].task
    for program in (pipeline_program(task, max_length=17), onnx_program(task, max_length=17)):
        assert "truncation=True, max_length=17" in program


@pytest.fixture(scope="module")
def weighed(students):
    return report.make_report(students["toy-sentence"].folder.path, lengths=(4,), batch_sizes=(1,), seconds=0.0)


def card_of(weighed, student, **forms):
    """A card where the student takes `student` seconds a batch, and its ONNX files, by contender, theirs."""
    seconds = {"student": student, **forms}
    timings = {name: Timing(value, value, value, 5) for name, value in seconds.items()}
    sizes = dict.fromkeys(forms, 1000)
    slow = {name: Timing(2 * value, 2 * value, 2 * value, 5) for name, value in seconds.items()}
    slow["student"] = Timing(4 * student, 4 * student, 4 * student, 5)
    speeds = [report.Speed("cpu", 1, 4, timings), report.Speed("cpu", 32, 4, slow)]
    return model_card.render_card(replace(weighed, speeds=speeds, onnx_bytes=sizes))


@pytest.mark.parametrize(
    ("seconds", "sentence", "file"),
    [
        ({"onnx": 2.0, "int8": 1.0}, "is `onnx/model_int8.onnx`: 4.00 to 8.00 times as fast", "model_int8.onnx"),
        ({"onnx": 1.0, "int8": 2.0}, "is `onnx/model.onnx`: 4.00 to 8.00 times as fast", "model.onnx"),
        ({"onnx": 2.0}, "is `onnx/model.onnx`: 2.00 to 4.00 times as fast", "model.onnx"),
        ({"onnx": 9.0, "int8": 8.0}, "is PyTorch: no ONNX file is faster", "model_int8.onnx"),
        ({}, None, None),
    ],
)
def test_the_card_names_the_fast_path_and_its_program_opens_it(weighed, seconds, sentence, file):
    card = card_of(weighed, 4.0, **seconds)
    assert card.count("**The fast path on cpu** ") == (sentence is not None)
    assert card.count("import onnxruntime") == (sentence is not None)
    assert pipeline_program(weighed.task, max_length=32) in card
    if sentence:
        assert f"**The fast path on cpu** {sentence}" in card
        assert onnx_program(weighed.task, max_length=32, file=file) in card


def test_the_program_of_the_readme_is_that_of_a_card(students):
    folder = "runs/toy-sentence/kd-seed42/model"
    program = onnx_program(students["toy-sentence"].task, max_length=32, folder=folder)
    assert program.partition("\nprint(")[0] in (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
