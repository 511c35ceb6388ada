"""What training knew is in the saved folder, however the student starts: task, labels, and the length it can take."""

import json

import pytest
import transformers

from reptile_distil.data import toy
from reptile_distil.experiments.experiment import Experiment
from reptile_distil.models.toy import toy_config, toy_tokenizer
from tests.helpers.paths import TINY

KINDS = {
    "toy-regression": ("regression", ["score"]),
    "toy-sentence": ("single_label_classification", ["negative", "positive"]),
    "toy-threeway": ("single_label_classification", ["entailment", "neutral", "contradiction"]),
}


def save(folder, num_layers, num_labels):
    """A model as older libraries leave one: no task, no names of labels that mean something, no longest text."""
    config = toy_config(f"toy-bert-{num_layers}L-16H")
    config.num_labels = num_labels
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    saved = json.loads((folder / "config.json").read_text())
    saved.pop("problem_type", None)
    (folder / "config.json").write_text(json.dumps(saved))
    return str(folder)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("start", ["pretrained", "teacher_layers", "finetuned_layers", "random"])
def test_the_saved_student_says_what_it_is_and_works_in_a_pipeline(tmp_path, start, task):
    problem, labels = KINDS[task]
    teacher = save(tmp_path / "teacher", 2, len(labels))
    student = save(tmp_path / "student", 1, len(labels))
    depth, source = "student.num_layers=1", f"teacher.pretrained={teacher}"
    if start == "pretrained":
        depth, source = "student.num_layers=null", f"student.pretrained={student}"
    names = [f"teacher.label_names=[{', '.join(labels)}]"] if len(labels) > 1 else []
    experiment = Experiment.from_yaml(
        TINY,
        *(f"runs_dir={tmp_path}/runs", f"task={task}", "method=kd", "train.max_steps=1", "data.max_length=24"),
        *(f"teacher.finetuned={teacher}", f"student.init={start}", depth, source, *names),
    )
    experiment.fit()
    config = json.loads((experiment.folder.model / "config.json").read_text())
    assert config["problem_type"] == problem
    assert [config["id2label"][str(index)] for index in range(len(labels))] == labels
    classify = transformers.pipeline("text-classification", model=str(experiment.folder.model))
    assert classify.tokenizer.model_max_length == 24
    (said,) = classify("good film " * 100, truncation=True)
    assert said["label"] in labels
    texts = ("good film", "the plot was bad") if toy.TASKS[task].is_pair else ("good film",)
    said = classify(dict(zip(("text", "text_pair"), texts, strict=False)))
    (row,) = experiment.predict([texts if len(texts) == 2 else texts[0]])
    if problem == "regression":
        assert said["score"] == pytest.approx(row.label)
    else:
        assert said["label"] == row.label


@pytest.mark.parametrize("task", ["toy-regression", "toy-sentence"])
def test_a_fine_tuned_teacher_says_what_it_is_too(tmp_path, task):
    problem, labels = KINDS[task]
    teacher = save(tmp_path / "teacher", 2, len(labels))
    overrides = (f"runs_dir={tmp_path}/runs", f"task={task}", f"teacher.pretrained={teacher}")
    experiment = Experiment.from_yaml(TINY, *overrides, "teacher.train.max_steps=1")
    experiment.fit_teacher()
    config = json.loads((experiment.teacher_folder.model / "config.json").read_text())
    assert (config["problem_type"], list(config["id2label"].values())) == (problem, labels)
    saved = transformers.AutoTokenizer.from_pretrained(experiment.teacher_folder.model)
    assert saved.model_max_length == experiment.config.data.max_length
