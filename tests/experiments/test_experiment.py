"""An experiment: what it runs and what it finds finished, evaluates and predicts."""

import math

import pandas as pd
import pytest
import torch

from reptile_distil import Experiment
from reptile_distil.errors import DataError, RunError
from tests.helpers.experiments import weights_of


def test_the_same_seed_gives_the_same_student_bit_for_bit_and_another_seed_another(tiny, tmp_path):
    students = []
    for number, seed in enumerate((1, 1, 2)):
        experiment = tiny(f"seed={seed}", f"runs_dir={tmp_path}/{number}")
        experiment.fit()
        students.append(weights_of(experiment))
    first, again, other = students
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_a_file_name_is_no_configuration():
    with pytest.raises(TypeError, match=r"takes a Config, not 'tiny.yaml': for a file Experiment.from_yaml\(path\)"):
        Experiment("tiny.yaml")


def test_a_folder_with_a_slash_at_its_end_is_the_same_folder(tiny, tmp_path):
    first = tiny("method=finetune", f"data.path={tmp_path}").fit()
    assert tiny("method=finetune", f"data.path={tmp_path}//").fit() == first


def test_a_finished_run_is_not_run_again(tiny):
    experiment = tiny("method=finetune")
    first = experiment.fit()
    stamp = experiment.folder.results.stat().st_mtime_ns
    assert tiny("method=finetune").fit() == first
    assert experiment.folder.results.stat().st_mtime_ns == stamp


def test_overwrite_runs_again(tiny):
    experiment = tiny("method=finetune")
    experiment.fit()
    stamp = experiment.folder.results.stat().st_mtime_ns
    experiment.fit(overwrite=True)
    assert experiment.folder.results.stat().st_mtime_ns > stamp


def test_a_finished_run_with_another_setting_is_refused_not_reused(tiny):
    tiny("method=finetune").fit()
    with pytest.raises(RunError, match=r"train\.lr = 0\.001, not 0\.5.*--overwrite"):
        tiny("method=finetune", "train.lr=0.5").fit()


def test_a_teacher_trained_otherwise_is_refused_not_reused(tiny):
    tiny().fit_teacher()
    with pytest.raises(RunError, match=r"teacher\.train\.lr = 0\.001, not 0\.5"):
        tiny("teacher.train.lr=0.5").fit()


def test_a_killed_run_is_no_finished_run(tiny, monkeypatch):
    experiment = tiny("method=finetune")
    monkeypatch.setattr(type(experiment.folder), "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        experiment.fit()
    monkeypatch.undo()
    assert not experiment.folder.results.exists()
    assert tiny("method=finetune").fit()["num_steps"] > 0


def test_the_saved_student_scores_what_its_results_say(tiny):
    for task in ("toy-sentence", "toy-pair", "toy-threeway", "toy-regression"):
        experiment = tiny(f"task={task}", "method=finetune")
        results = experiment.fit()
        for name, score in experiment.evaluate()["dev"].items():
            saved = results["scores"]["dev"][name]
            assert math.isclose(score, saved, rel_tol=1e-6), (task, name)


def test_a_teacher_fine_tuned_elsewhere_is_used_as_it_is(tiny, tmp_path):
    folder = tiny().teacher_folder
    tiny().fit_teacher()
    results = tiny(f"runs_dir={tmp_path}/other", f"teacher.finetuned={folder.model}", "method=kd").fit()
    assert not (tmp_path / "other" / "toy-sentence" / "teacher-seed42").exists()
    assert results["score"] > 0


def test_an_examination_covers_every_row_of_the_training_split_though_training_saw_some(tiny):
    experiment = tiny("method=finetune")
    assert experiment.fit()["num_train_rows"] == 70
    assert len(experiment.predict_split("train").predictions) == 2000


def test_predictions_name_labels_and_their_probabilities_sum_to_1(tiny):
    experiment = tiny("method=finetune")
    experiment.fit()
    predictions = experiment.predict(["a good film", "not good", "the the the"])
    assert len(predictions) == 3
    for prediction in predictions:
        assert set(prediction.probabilities) == {"negative", "positive"}
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert prediction.label == max(prediction.probabilities, key=prediction.probabilities.get)
    assert experiment.predict([]) == []


def test_predictions_come_in_the_order_asked_and_do_not_depend_on_their_neighbours(tiny):
    experiment = tiny("method=finetune", "task=toy-pair", "train.eval_batch_size=2")
    experiment.fit()
    pairs = [("a good film", "a bad film and the plot felt awful"), ("the plot", "good"), ("bad", "a b c d e f g")]
    together = experiment.predict(pairs)
    for pair, prediction in zip(pairs, together, strict=True):
        alone = experiment.predict([pair])[0].probabilities
        assert prediction.probabilities == pytest.approx(alone, abs=1e-5)


def test_regression_predicts_numbers(tiny):
    experiment = tiny("method=finetune", "task=toy-regression")
    experiment.fit()
    (prediction,) = experiment.predict([("good", "bad")])
    assert experiment.predict(pd.DataFrame([("good", "bad")]).to_numpy()) == [prediction]
    assert isinstance(prediction.label, float)
    assert prediction.probabilities == {}


@pytest.mark.parametrize(("task", "row"), [("toy-pair", ("good", "bad \ud83d")), ("toy-sentence", "\ud83d")])
def test_a_text_with_half_of_a_character_is_refused_with_its_place(tiny, task, row):
    whole = ("good", "bad \U0001f600") if task == "toy-pair" else "\U0001f600"
    with pytest.raises(DataError, match=rf"^task {task}: number 1, counted from 0, has half of a character .*\\ud83d"):
        tiny(f"task={task}").predict([whole, row])


@pytest.mark.parametrize(("task", "texts"), [("toy-pair", ["alone"]), ("toy-sentence", [("one", "two")])])
def test_texts_of_the_wrong_kind_are_refused(tiny, task, texts):
    with pytest.raises(DataError, match=r"expected (pairs of texts|single texts)"):
        tiny(f"task={task}").predict(texts)


def test_an_untrained_experiment_says_what_to_run(tiny):
    with pytest.raises(RunError, match=r"no trained model yet; run fit\(\)"):
        tiny().evaluate()


def test_only_the_student_of_this_configuration_is_evaluated(tiny):
    trained = tiny("method=finetune")
    trained.fit()
    computed_otherwise = tiny("method=finetune", "train.eval_batch_size=2", "num_threads=1")
    assert computed_otherwise.evaluate()["dev"] == pytest.approx(trained.evaluate()["dev"])
    other = tiny("method=finetune", "train.lr=0.5")
    model = trained.folder.model
    for ask in (other.evaluate, lambda: other.predict_split("dev"), lambda: other.predict(["good"])):
        with pytest.raises(RunError) as error:
            ask()
        assert str(error.value) == (
            f"{trained.folder.path}: holds a finished run with train.lr = 0.001, not 0.5; "
            f"its model is used all the same with model='{model}'"
        )
    assert other.evaluate(model=model) == trained.evaluate()
    assert other.predict(["good"], model=model) == trained.predict(["good"])


def test_the_best_model_so_far_of_an_unfinished_run_is_evaluated_only_where_it_is_named(tiny):
    experiment = tiny("method=finetune")
    experiment.fit()
    experiment.folder.results.unlink()
    model = experiment.folder.model
    for ask in (experiment.evaluate, lambda: experiment.predict(["good"])):
        with pytest.raises(RunError) as error:
            ask()
        said = f"{model.parent}: this run is not finished; its best model so far is {model}, which model= takes"
        assert str(error.value) == said
    assert experiment.evaluate(model=model)


def test_two_experiments_in_one_process_do_not_touch_each_other(tiny, tmp_path):
    alone = tiny("method=kd", f"runs_dir={tmp_path}/alone")
    alone.fit()
    first = tiny("method=kd", f"runs_dir={tmp_path}/both")
    second = tiny("task=toy-pair", "seed=7", "student.num_layers=2")
    second.fit()
    first.fit()
    a, b = weights_of(alone), weights_of(first)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_auto_precision_is_resolved_before_the_run_and_written_down(tiny):
    experiment = tiny("precision=auto", "device=cpu")
    assert experiment.config.precision == "fp32"
    assert experiment.config.defining_settings("reptile")["precision"] == "fp32"


def test_a_split_without_labels_has_no_score(tiny, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\ngood,up\nbad,down\n")
    (tmp_path / "test.csv").write_text("text\ngood\n")
    files = "{train: rows.csv, dev: rows.csv, test: test.csv}"
    task = f"task={{name: mine, text: [text], labels: [down, up], metrics: [accuracy], files: {files}}}"
    experiment = tiny("method=finetune", task, f"data.path={tmp_path}", "data.max_train_rows=null")
    experiment.fit()
    with pytest.raises(DataError, match=r"^task mine: split test has no labels to score against$"):
        experiment.evaluate("test")


def test_one_text_is_not_taken_for_a_list_of_letters(tiny):
    with pytest.raises(DataError, match=r"a list of texts, not one text: predict\(\['good'\]\)"):
        tiny("method=finetune").predict("good")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (pd.DataFrame({"text": ["a", "b"]}), r"a list of texts, not a table: predict\(list\(table\['text'\]\)\)"),
        ({"text": ["a"]}, "a list of texts, not a table"),
        (["a", None], "expected single texts, but number 1, counted from 0, is None"),
        (pd.Series(["a", float("nan")]), "number 1, counted from 0, is nan"),
        ([3], "number 0, counted from 0, is 3"),
        ([("a", "b")], r"expected single texts, but number 0, counted from 0, is \('a', 'b'\)"),
    ],
)
def test_what_is_no_text_is_not_predicted(tiny, texts, message):
    with pytest.raises(DataError, match=message):
        tiny("method=finetune").predict(texts)


def test_a_validation_split_is_there_only_where_training_rows_are_held_out(tiny):
    experiment = tiny("method=finetune")
    experiment.fit()
    with pytest.raises(DataError, match="no split 'validation', only train, dev, test"):
        experiment.predict_split("validation")
