"""From YAML to results on the offline world, with models of a few thousand weights."""

import json
import logging
import math
import shutil

import pytest
import torch
import transformers

from reptile_distil import Experiment
from reptile_distil.config.config import load_config
from reptile_distil.data import toy
from reptile_distil.errors import ConfigError, DataError, LayerMapError, ModelError, ReptileDistilError, RunError
from reptile_distil.experiments import run as run_module
from reptile_distil.experiments.setup import build_batches, build_student, build_task, build_training_batches
from reptile_distil.models.classifier import Teacher
from reptile_distil.models.packing import packed_logits
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.models.toy import toy_config, toy_tokenizer
from reptile_distil.runtime.compute import choose_device
from reptile_distil.runtime.processes import Processes
from tests.helpers.models import bert
from tests.helpers.paths import TINY


@pytest.fixture
def tiny(tmp_path):
    """An experiment of about a second, in a folder of its own."""

    def tiny(*overrides):
        return Experiment.from_yaml(TINY, f"runs_dir={tmp_path}/runs", *overrides)

    return tiny


def weights_of(experiment):
    from safetensors.torch import load_file

    return load_file(experiment.folder.model / "model.safetensors")


def epochs_of(folder):
    records = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == "epoch"]


def test_reptile_trains_a_missing_teacher_first_and_writes_a_whole_run_folder(tiny):
    experiment = tiny()
    results = experiment.fit()
    assert {path.name for path in experiment.folder.path.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "model",
        "predictions_dev.json",
        "results.json",
    }
    assert experiment.teacher_folder.results.exists()
    assert results == json.loads(experiment.folder.results.read_text())
    assert results["num_parameters"] == sum(tensor.numel() for tensor in weights_of(experiment).values())
    assert results["teacher"]["num_parameters"] > results["num_parameters"]
    for key in ("wall_seconds", "train_seconds", "examples_per_second", "peak_memory_bytes", "num_steps"):
        assert results[key] > 0
    assert load_config(experiment.folder.path / "config.yaml") == experiment.config


def test_every_epoch_shows_what_happens_to_the_teacher(tiny):
    experiment = tiny("train.epochs=2")
    results = experiment.fit()
    epochs = epochs_of(experiment.folder)
    assert [record["epoch"] for record in epochs] == [1, 2]
    for record in epochs:
        assert 0 <= record["teacher_scores"]["dev"]["accuracy"] <= 1
        assert 0 <= record["agreement"] <= 1
        assert record["last_gap"] > 0
        assert record["teacher_drift"] > 0
    assert results["teacher"]["scores_at_end"] == epochs[-1]["teacher_scores"]


def test_metadistil_trains_on_the_rows_that_are_not_in_the_quiz_and_moves_the_teacher(tiny):
    experiment = tiny("method=metadistil", "train.epochs=2", "metadistil.quiz_fraction=0.2")
    results = experiment.fit()
    assert results["num_train_rows"] == 56
    assert results["num_steps"] == 8
    for record in epochs_of(experiment.folder):
        assert {"quiz_loss", "assumed_loss", "teacher_grad_norm"} < record["train"].keys()
        assert record["teacher_drift"] > 0
        assert record["teacher_scores"]["dev"]["accuracy"] > 0


def test_the_quiz_is_made_of_training_rows_that_no_lesson_has_and_never_of_dev_rows(tiny):
    config = tiny("method=metadistil", "train.epochs=2", "data.max_train_rows=300").config
    task, tokenizer = build_task(config), toy_tokenizer()

    def texts(batch):
        return [tuple(row[row != tokenizer.pad_token_id].tolist()) for row in batch["input_ids"]]

    lessons, quizzes = [], []
    batches = build_training_batches(config, task, tokenizer)
    for epoch in (1, 2):
        for batch, (quiz_batch,) in batches.steps(epoch):
            lessons += texts(batch)
            quizzes += texts(quiz_batch)
    plain = build_batches(config, task, "train", tokenizer, config.train, for_training=True)
    trained_on = [row for batch in plain.epoch(1) for row in texts(batch)]
    assert len(set(quizzes)) == 30
    assert len(lessons) == 2 * 270
    assert sorted(lessons[:270] + list(set(quizzes))) == sorted(trained_on)


@pytest.mark.parametrize("task", ["toy-pair", "toy-threeway", "toy-regression"])
def test_metadistil_runs_on_every_kind_of_task(tiny, task):
    results = tiny(f"task={task}", "method=metadistil", "metadistil.assumed_optimizer=adamw", "loss.soft=mse").fit()
    assert math.isfinite(results["score"])


@pytest.mark.parametrize(
    ("options", "num_train_rows"),
    [
        (["inner_steps=3", "share_forward=false"], 70),
        (["inner_batch=held_out", "held_out_fraction=0.2", "share_forward=false"], 56),
        (["inner_batch=held_out", "inner_steps=2", "share_forward=false"], 63),
        (["inner_optimizer=persistent_adamw", "share_forward=false"], 70),
        (["every=3", "move_head=false", "move_embeddings=false"], 70),
        (["task_lr=1e-3", "pull=0.1", "mu_until=0.5"], 70),
    ],
)
def test_reptiles_ablations_run_by_configuration_alone(tiny, options, num_train_rows):
    experiment = tiny("train.epochs=2", *(f"reptile.{option}" for option in options))
    assert experiment.fit()["num_train_rows"] == num_train_rows
    for epoch in epochs_of(experiment.folder):
        assert epoch["last_gap"] > 0
        assert epoch["teacher_drift"] > 0


def test_more_inner_steps_take_the_batches_that_follow(tiny):
    config = tiny("reptile.inner_steps=2", "reptile.share_forward=false").config
    task, tokenizer = build_task(config), toy_tokenizer()
    batches = build_training_batches(config, task, tokenizer)
    plain = build_batches(config, task, "train", tokenizer, config.train, for_training=True)
    order = [batch["input_ids"] for epoch in (1, 2) for batch in plain.epoch(epoch)]
    for step, (batch, (inner_batches,)) in enumerate(batches.steps(1)):
        assert torch.equal(batch["input_ids"], order[step])
        for inner, expected in zip(inner_batches, order[step : step + 2], strict=True):
            assert torch.equal(inner["input_ids"], expected)


def test_held_out_inner_batches_never_have_a_row_of_equation_3(tiny):
    config = tiny("reptile.inner_batch=held_out", "reptile.share_forward=false", "data.max_train_rows=300").config
    rows = {"own": set(), "inner": set()}
    for batch, ((inner_batch,),) in build_training_batches(config, build_task(config), toy_tokenizer()).steps(1):
        for name, part in (("own", batch), ("inner", inner_batch)):
            rows[name] |= {tuple(ids[ids != toy_tokenizer().pad_token_id].tolist()) for ids in part["input_ids"]}
    assert (len(rows["own"]), len(rows["inner"])) == (270, 30)
    assert not rows["own"] & rows["inner"]


def test_a_persistent_inner_adamw_keeps_its_learning_rate(tiny):
    options = ["reptile.inner_optimizer=persistent_adamw", "reptile.share_forward=false", "reptile.inner_lr=0.01"]
    experiment = tiny(*options, "train.log_every=1")
    experiment.fit()
    records = [json.loads(line) for line in (experiment.folder.path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    assert {record["inner_lr"] for record in steps} == {0.01}
    assert steps[0]["teacher_lr"] > steps[-1]["teacher_lr"]


def test_mu_falls_to_0_after_the_fraction_of_the_steps_that_mu_until_says(tiny):
    experiment = tiny("reptile.mu_until=0.5", "reptile.mu=0.01", "train.epochs=2", "train.log_every=1")
    experiment.fit()
    records = [json.loads(line) for line in (experiment.folder.path / "metrics.jsonl").read_text().splitlines()]
    rates = [record["teacher_lr"] for record in records if record["event"] == "step"]
    assert rates == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002, 0, 0, 0, 0, 0])
    lr = [record["lr"] for record in records if record["event"] == "step"]
    assert lr[-1] == pytest.approx(1e-3 / 10), "the student's falls to the end"


def test_the_teachers_own_task_step_has_its_own_learning_rate_and_loss_in_the_log(tiny):
    experiment = tiny("reptile.task_lr=1e-3", "train.log_every=1")
    experiment.fit()
    records = [json.loads(line) for line in (experiment.folder.path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["event"] == "step"]
    assert steps[0]["teacher_task_lr"] == pytest.approx(1e-3)
    assert all(step["teacher_task_loss"] > 0 for step in steps)


@pytest.mark.parametrize("method", ["kd", "reptile", "metadistil"])
def test_terms_on_hidden_states_are_logged_by_name(tiny, method):
    layers = ["teacher.pretrained=toy-bert-4L-16H", "student.num_layers=2"]
    experiment = tiny(f"method={method}", *layers, "loss.patient=1", "loss.hidden=0.1", "loss.layer_map=last")
    experiment.fit()
    (epoch,) = epochs_of(experiment.folder)
    assert epoch["train"]["patient_loss"] > 0
    assert epoch["train"]["hidden_loss"] > 0


def test_unequal_widths_are_fine_for_metadistil_but_not_for_terms_on_hidden_states(tiny, tmp_path):
    start = ["student.init=pretrained", "student.num_layers=null", "student.pretrained=toy-bert-1L-32H"]
    with pytest.raises(ModelError, match=r"the student's is 32 and the teacher's 16: set both to 0"):
        tiny("method=metadistil", *start, "loss.hidden=1").fit()
    with pytest.raises(ModelError, match=r"loss\.patient leaves the student's last layer out"):
        tiny("method=metadistil", "loss.patient=1").fit()
    assert not tiny().teacher_folder.path.exists()
    assert tiny("method=metadistil", *start).fit()["score"] > 0


def test_a_frozen_teacher_does_not_drift(tiny):
    experiment = tiny("method=kd", "train.epochs=2")
    results = experiment.fit()
    assert results["teacher"]["scores_at_start"] == results["teacher"]["scores_at_end"]
    assert [record["teacher_drift"] for record in epochs_of(experiment.folder)] == [0.0, 0.0]


def test_the_same_seed_gives_the_same_student_bit_for_bit_and_another_seed_another(tiny, tmp_path):
    students = []
    for number, seed in enumerate((1, 1, 2)):
        experiment = tiny(f"seed={seed}", f"runs_dir={tmp_path}/{number}")
        experiment.fit()
        students.append(weights_of(experiment))
    first, again, other = students
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_seed_decides_the_dropout_masks_whatever_was_drawn_before(tiny, tmp_path):
    config = toy_config("toy-bert-1L-16H")
    config.hidden_dropout_prob = 0.3
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "student")
    toy_tokenizer().save_pretrained(tmp_path / "student")
    start = ["student.init=pretrained", "student.num_layers=null", f"student.pretrained={tmp_path}/student"]
    students = []
    for number in range(2):
        torch.manual_seed(number)
        experiment = tiny("method=finetune", f"runs_dir={tmp_path}/{number}", *start)
        experiment.fit()
        students.append(weights_of(experiment))
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_all_methods_start_from_the_same_student_and_see_the_same_batches(tiny):
    starts, orders = [], []
    for method in ("finetune", "kd", "reptile"):
        config = tiny(f"method={method}").config
        torch.manual_seed(len(starts))  # what was drawn before must not matter
        model, tokenizer = build_student(config, build_task(config))
        starts.append(model.state_dict())
        batches = build_batches(config, build_task(config), "train", tokenizer, config.train, for_training=True)
        orders.append([batch["input_ids"] for epoch in (1, 2) for batch in batches.epoch(epoch)])
    for start, order in zip(starts[1:], orders[1:], strict=True):
        assert all(torch.equal(start[name], starts[0][name]) for name in starts[0])
        assert all(torch.equal(a, b) for a, b in zip(order, orders[0], strict=True))


def test_another_seed_gives_another_order_of_the_same_rows(tiny):
    orders = []
    for seed in (1, 2):
        config = tiny(f"seed={seed}").config
        batches = build_batches(config, build_task(config), "train", toy_tokenizer(), config.train, for_training=True)
        orders.append([row for batch in batches.epoch(1) for row in batch["input_ids"][:, 1:3].tolist()])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_file_name_is_no_configuration():
    with pytest.raises(TypeError, match=r"takes a Config, not 'tiny.yaml': for a file Experiment.from_yaml\(path\)"):
        Experiment("tiny.yaml")


def test_a_folder_with_a_slash_at_its_end_is_the_same_folder(tiny, tmp_path):
    first = tiny("method=finetune", f"data.path={tmp_path}").fit()
    assert tiny("method=finetune", f"data.path={tmp_path}//").fit() == first


@pytest.mark.parametrize(("max_steps", "shown"), [(2, "epoch 1/1:"), (7, "epoch 1/2:"), ("null", "epoch 1/4:")])
def test_the_log_counts_the_epochs_that_will_be_run(tiny, caplog, max_steps, shown):
    caplog.set_level(logging.INFO)
    tiny("method=finetune", "train.epochs=4", f"train.max_steps={max_steps}").fit()
    assert next(message for message in caplog.messages if message.startswith("epoch 1/")).startswith(shown)


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
    assert isinstance(prediction.label, float)
    assert prediction.probabilities == {}


@pytest.mark.parametrize(("task", "texts"), [("toy-pair", ["alone"]), ("toy-sentence", [("one", "two")])])
def test_texts_of_the_wrong_kind_are_refused(tiny, task, texts):
    with pytest.raises(DataError, match=r"expected (pairs of texts|single texts)"):
        tiny(f"task={task}").predict(texts)


def test_an_untrained_experiment_says_what_to_run(tiny):
    with pytest.raises(RunError, match=r"no trained model yet; run fit\(\)"):
        tiny().evaluate()


def test_two_experiments_in_one_process_do_not_touch_each_other(tiny, tmp_path):
    alone = tiny("method=kd", f"runs_dir={tmp_path}/alone")
    alone.fit()
    first = tiny("method=kd", f"runs_dir={tmp_path}/both")
    second = tiny("task=toy-pair", "seed=7", "student.num_layers=2")
    second.fit()
    first.fit()
    a, b = weights_of(alone), weights_of(first)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_micro_batches_do_not_change_the_scores_beyond_rounding(tiny, tmp_path):
    """Accumulation inside a whole run: the same batches in parts of 3 rows, the last one ragged."""
    students = []
    for number, size in enumerate(("null", "3")):
        experiment = tiny("method=finetune", f"runs_dir={tmp_path}/{number}", f"train.micro_batch_size={size}")
        experiment.fit()
        students.append(weights_of(experiment))
    for name, weight in students[0].items():
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding
            torch.testing.assert_close(weight, students[1][name], rtol=0, atol=2e-4, msg=name)


def test_auto_precision_is_resolved_before_the_run_and_written_down(tiny):
    experiment = tiny("precision=auto", "device=cpu")
    assert experiment.config.precision == "fp32"
    assert experiment.config.defining_settings("reptile")["precision"] == "fp32"


def test_attention_written_out_learns_the_same(tiny):
    # eps as in test_reptile: the key biases' gradient is 0 but for rounding, which a smaller one would blow up.
    fused = tiny("method=finetune", "train.adam_eps=1e-4")
    fused.fit()
    expected = weights_of(fused)
    eager = tiny("method=finetune", "train.adam_eps=1e-4", "compute.attention=eager")
    eager.fit(overwrite=True)
    for name, weight in weights_of(eager).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-5, msg=name)


def test_bf16_trains_and_keeps_float32_weights(tiny):
    experiment = tiny("precision=bf16")
    assert experiment.fit()["num_steps"] > 0
    assert {tensor.dtype for tensor in weights_of(experiment).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["student.num_layers=3"], LayerMapError, "the student may not be deeper"),
        (["teacher.pretrained=no/such/model"], ModelError, "no/such/model"),
        (["teacher.pretrained=./nowhere"], ModelError, r"\./nowhere: no such folder"),
        (["data.max_length=128"], ModelError, "64 positions, but data.max_length is 128"),
        (["data.max_train_rows=5000"], DataError, "only 2000 rows"),
        (["task=toy-sentense"], ConfigError, "unknown task 'toy-sentense'"),
        (["task=ax"], DataError, "no train split"),
    ],
)
def test_what_cannot_work_is_refused_before_a_run_folder_is_made(tiny, overrides, error, message):
    with pytest.raises(error, match=message):
        tiny("method=finetune", *overrides).fit()
    with pytest.raises(error, match=message):
        tiny("method=finetune", *overrides).fit()  # and the second time too


def test_unequal_widths_are_refused_for_reptile_and_fine_for_kd(tiny, tmp_path):
    other = tiny(f"runs_dir={tmp_path}/other", "teacher.pretrained=toy-bert-2L-32H")
    other.fit_teacher()
    teacher = f"teacher.finetuned={other.teacher_folder.model}"
    with pytest.raises(LayerMapError, match="equal width, vocabulary and classes; otherwise use method: kd"):
        tiny(teacher).fit()
    assert not tiny().folder.path.exists()
    assert tiny(teacher, "method=kd").fit()["score"] > 0


def save_distilbert(folder):
    from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertTokenizer

    vocabulary = load_tokenizer("toy-bert-2L-16H").get_vocab()
    shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=len(vocabulary), **shape))
    model.save_pretrained(folder)
    DistilBertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return folder


def test_a_bert_teacher_gets_its_segments_though_the_students_tokenizer_gives_none(tiny, tmp_path, monkeypatch):
    save_distilbert(tmp_path / "student")
    segments = []
    targets = Teacher.targets
    monkeypatch.setattr(
        Teacher,
        "targets",
        lambda self, b, **asked: segments.append(b["token_type_ids"].max()) or targets(self, b, **asked),
    )
    start = ["student.init=pretrained", "student.num_layers=null", f"student.pretrained={tmp_path}/student"]
    experiment = tiny("task=toy-pair", "method=kd", *start)
    results = experiment.fit()
    assert segments
    assert all(segment == 1 for segment in segments)
    saved = results["scores"]["dev"]["accuracy"]
    assert experiment.evaluate()["dev"]["accuracy"] == pytest.approx(saved)


@pytest.mark.parametrize(
    "overrides",
    [
        ["student.num_layers=3"],
        ["reptile.layer_map=[0, 1]"],
        ["student.init=pretrained", "student.num_layers=null", "student.pretrained=toy-bert-1L-32H"],
        ["output_dir=."],
        ["data.max_length=65"],
        ["data.packing=true", "method=kd", "student.init=pretrained", "student.num_layers=null", "{distilbert}"],
    ],
)
def test_what_the_students_run_would_refuse_is_refused_before_the_teacher_is_fine_tuned(tiny, tmp_path, overrides):
    distilbert = f"student.pretrained={save_distilbert(tmp_path / 'student')}"
    experiment = tiny(*(override.format(distilbert=distilbert) for override in overrides))
    with pytest.raises(ReptileDistilError):
        experiment.fit()
    assert not experiment.teacher_folder.path.exists()


def test_another_tokenizer_is_refused_with_both_names(tiny, tmp_path):
    tiny().fit_teacher()
    model = tiny().teacher_folder.model
    file = model / "tokenizer.json"
    file.write_text(file.read_text().replace('"good"', '"goood"'))
    with pytest.raises(ModelError, match=r"teacher .*model and student toy-bert-2L-16H have different vocabularies"):
        tiny("method=kd", f"teacher.finetuned={model}").fit()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(device):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if there[device]:
        pytest.skip("it is there")
    with pytest.raises(ConfigError, match=f"device = '{device}': PyTorch finds none here"):
        choose_device(device)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_an_own_task_needs_files_and_yaml_alone(tiny, tmp_path, suffix):
    rows = [("the film was good", "up"), ("a bad plot", "down"), ("lovely music", "up"), ("dull scene", "down")] * 4
    render = {
        "csv": "review,side\n" + "".join(f'"{text}",{label}\n' for text, label in rows),
        "tsv": "review\tside\n" + "".join(f"{text}\t{label}\n" for text, label in rows),
        "jsonl": "".join(json.dumps({"review": text, "side": label}) + "\n" for text, label in rows),
    }[suffix]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.{suffix}").write_text(render)
    files = f"{{train: train.{suffix}, dev: dev.{suffix}}}"
    own = f"{{name: mine, text: [review], label: side, labels: [down, up], metrics: [f1], files: {files}}}"
    experiment = tiny(f"task={own}", f"data.path={tmp_path}", "data.max_train_rows=null")
    assert "f1" in experiment.fit()["scores"]["dev"]
    assert experiment.predict(["good"])[0].label in ("up", "down")
    assert experiment.folder.path.parent.name == "mine"


def write_mnli(folder):
    """MNLI in its official layout, with a handful of rows of toy words; the halves of dev differ in length."""
    folder.mkdir()
    head = "index promptID pairID genre s1b s2b s1p s2p sentence1 sentence2".split()
    labels = ["contradiction", "entailment", "neutral"]
    for name, count in {"train": 30, "dev_matched": 9, "dev_mismatched": 6}.items():
        lines = ["\t".join([*head, "label1", "gold_label"])]
        for row in range(count):
            cells = [str(row), "p", "q", "g", "", "", "", "", "the film was good", "a bad plot", "x"]
            lines.append("\t".join([*cells, labels[row % 3]]))
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")


def test_mnli_reports_both_halves_of_dev_and_chooses_by_the_matched_one(tiny, tmp_path):
    write_mnli(tmp_path / "MNLI")
    data = [f"data.path={tmp_path}", "data.check_rows=false", "data.max_train_rows=null"]
    experiment = tiny("task=mnli", "method=kd", *data)
    results = experiment.fit()
    assert list(results["scores"]) == ["dev_matched", "dev_mismatched"]
    assert results["score"] == results["scores"]["dev_matched"]["accuracy"]
    assert experiment.evaluate("dev_mismatched") == {"dev_mismatched": results["scores"]["dev_mismatched"]}
    saved = json.loads((experiment.folder.model / "config.json").read_text())
    assert list(saved["id2label"].values()) == ["entailment", "neutral", "contradiction"]


def test_a_packed_run_is_the_padded_run(tiny, monkeypatch):
    """The toy models have no dropout."""
    packed = []
    monkeypatch.setattr(
        "reptile_distil.models.classifier.packed_logits", lambda *inputs: packed.append(1) or packed_logits(*inputs)
    )
    runs = []
    for packing in ("false", "true"):
        experiment = tiny(f"data.packing={packing}", f"output_dir={tiny().folder.path}-{packing}")
        experiment.fit(overwrite=True)
        assert bool(packed) == (packing == "true")
        runs.append([record["train"]["loss"] for record in epochs_of(experiment.folder)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-3)


def test_the_saved_model_loads_with_plain_transformers(tiny):
    from transformers import pipeline

    experiment = tiny("method=finetune")
    experiment.fit()
    text = "the film was not good"
    classify = pipeline("text-classification", model=str(experiment.folder.model), device="cpu")
    (plain,) = classify([text])
    (ours,) = experiment.predict([text])
    assert plain["label"] == ours.label
    assert plain["score"] == pytest.approx(ours.probabilities[ours.label], abs=1e-5)


def test_the_tokenizer_travels_with_the_model(tiny):
    experiment = tiny("method=finetune")
    experiment.fit()
    saved, original = load_tokenizer(str(experiment.folder.model)), load_tokenizer("toy-bert-2L-16H")
    assert saved("the film was good")["input_ids"] == original("the film was good")["input_ids"]


def test_an_own_task_with_a_toys_name_reads_its_own_files(tiny, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\ngood,up\nbad,down\n")
    files = "{train: rows.csv, dev: rows.csv}"
    task = f"task={{name: toy-sentence, text: [text], labels: [down, up], metrics: [accuracy], files: {files}}}"
    results = tiny("method=finetune", task, f"data.path={tmp_path}", "data.max_train_rows=null").fit()
    assert results["num_train_rows"] == 2


def test_a_split_without_labels_has_no_score(tiny, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\ngood,up\nbad,down\n")
    (tmp_path / "test.csv").write_text("text\ngood\n")
    files = "{train: rows.csv, dev: rows.csv, test: test.csv}"
    task = f"task={{name: mine, text: [text], labels: [down, up], metrics: [accuracy], files: {files}}}"
    experiment = tiny("method=finetune", task, f"data.path={tmp_path}", "data.max_train_rows=null")
    experiment.fit()
    with pytest.raises(DataError, match=r"^task mine: split test has no labels to score against$"):
        experiment.evaluate("test")


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_trained(tiny, tmp_path):
    """Its ids would run past the embeddings in the middle of an epoch."""
    bert(2, num_labels=2).save_pretrained(tmp_path / "model")
    toy_tokenizer().save_pretrained(tmp_path / "model")
    experiment = tiny("data.max_length=16", f"teacher.pretrained={tmp_path}/model")
    for fit in (experiment.fit, experiment.fit_teacher):
        with pytest.raises(ModelError, match=r"its tokenizer gives ids up to .* but the model has only 30 embeddings"):
            fit()
    assert not (tmp_path / "runs" / "toy-sentence" / "teacher-seed42").exists()


def test_the_kept_predictions_are_those_of_the_best_student_and_score_what_the_results_say(tiny):
    experiment = tiny("method=kd", "train.epochs=3", "train.lr=3e-2")
    results = experiment.fit()
    kept = json.loads((experiment.folder.path / "predictions_dev.json").read_text())
    assert kept["labels"] == toy.load_split(toy.TASKS["toy-sentence"], "dev")["label"]
    right = sum(said == label for said, label in zip(kept["predictions"], kept["labels"], strict=True))
    assert right / 500 == results["scores"]["dev"]["accuracy"]
    names = toy.TASKS["toy-sentence"].label_names
    assert [names[said] for said in kept["predictions"]] == [
        row.label for row in experiment.predict_split("dev").predictions
    ]


def test_names_for_a_teacher_from_elsewhere_never_turn_round_what_runs_have_trained(tiny, tmp_path):
    plain = tiny("method=kd")
    named = tiny("method=kd", "teacher.label_names=[positive, negative]", f"output_dir={tmp_path}/named")
    assert named.fit()["scores"] == plain.fit()["scores"]
    assert named.evaluate("dev") == plain.evaluate("dev")


def test_latency_is_measured_where_teacher_and_student_are_in_memory(tiny):
    latency = tiny("method=kd").fit()["latency"]
    assert (latency["length"], latency["device"], list(latency["batches"])) == (32, "cpu", ["1", "32"])
    assert "latency" not in tiny("method=finetune").fit()


def test_metadistil_with_several_processes_is_refused_before_anything_is_trained(tiny, monkeypatch):
    monkeypatch.setattr("reptile_distil.experiments.experiment.start_processes", lambda _: Processes(0, 2))
    for overrides in (["method=metadistil"], ["method=kd", "compare_with=[metadistil]"]):
        with pytest.raises(ConfigError, match=r"^method metadistil takes one process, but 2 were started: start it"):
            tiny(*overrides)
    tiny("method=reptile")


def test_one_text_is_not_taken_for_a_list_of_letters(tiny):
    with pytest.raises(DataError, match=r"a list of texts, not one text: predict\(\['good'\]\)"):
        tiny("method=finetune").predict("good")


def test_a_validation_split_is_there_only_where_training_rows_are_held_out(tiny):
    experiment = tiny("method=finetune")
    experiment.fit()
    with pytest.raises(DataError, match="no split 'validation', only train, dev, test"):
        experiment.predict_split("validation")


def test_validation_rows_choose_and_the_dev_split_is_looked_at_once(tiny, monkeypatch):
    looks = []
    real = run_module.evaluate_splits

    def evaluate_splits(model, splits, *rest):
        looks.append(tuple(splits))
        return real(model, splits, *rest)

    monkeypatch.setattr(run_module, "evaluate_splits", evaluate_splits)
    experiment = tiny("data.validation_fraction=0.2", "train.epochs=2", "method=kd")
    teacher = experiment.fit_teacher()
    assert looks == [("dev",)]
    results = experiment.fit()
    assert looks[1:] == [("dev",)] * 3, "the teacher before and after, and the best student"
    assert results["num_train_rows"] == teacher["num_train_rows"] == 56
    for record in epochs_of(experiment.folder):
        assert record["scores"].keys() == record["teacher_scores"].keys() == {"validation"}
    best = max(epochs_of(experiment.folder), key=lambda record: record["score"])
    assert (results["best_epoch"], results["score"]) == (best["epoch"], best["score"])
    assert results["scores"]["validation"] == best["scores"]["validation"]
    for split, num_rows in {"validation": 14, "dev": len(toy.load_split(experiment.task, "dev"))}.items():
        predictions, labels = experiment.folder.read_predictions(split)
        assert len(labels) == num_rows
        assert results["scores"][split]["accuracy"] == pytest.approx(float((predictions == labels).mean()))
    assert results["scores"]["dev"] == experiment.evaluate("dev")["dev"]
    assert results["teacher"]["scores_at_start"].keys() == results["teacher"]["scores_at_end"].keys()
    assert results["teacher"]["scores_at_start"]["dev"] == teacher["scores"]["dev"]
    assert (experiment.folder.path / "config.yaml").exists()


def test_validation_rows_are_training_rows_that_no_lesson_has(tiny):
    experiment = tiny("data.validation_fraction=0.2", "method=metadistil", "metadistil.quiz_fraction=0.25")
    tokenizer = load_tokenizer("toy-bert-2L-16H")
    whole = build_batches(tiny().config, tiny().task, "train", tokenizer, tiny().config.train, for_training=True)
    validation = build_batches(experiment.config, experiment.task, "validation", tokenizer, experiment.config.train)
    lessons = build_training_batches(experiment.config, experiment.task, tokenizer)
    parts = [validation.features, lessons.features, lessons.extra_batches.features]
    assert [len(part) for part in parts] == [14, 42, 14]
    rows = [(*part["input_ids"][i], part["label"][i]) for part in parts for i in range(len(part))]
    expected = [(*whole.features["input_ids"][i], whole.features["label"][i]) for i in range(70)]
    assert sorted(rows) == sorted(expected)


def test_the_choice_by_validation_rows_does_not_depend_on_the_dev_split(tiny, tmp_path):
    for name, swap in (("a", False), ("b", True)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [f"{'good' if i % 3 else 'bad'} film number {i}\t{'pos' if i % 3 else 'neg'}" for i in range(60)]
        (folder / "train.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
        dev = [row.replace("pos", "x").replace("neg", "pos").replace("x", "neg") if swap else row for row in rows[:9]]
        (folder / "dev.tsv").write_text("\n".join(["text\tlabel", *dev]) + "\n")
    files = "{train: train.tsv, dev: dev.tsv}"
    task = f"task={{name: own, text: [text], labels: [neg, pos], metrics: [accuracy], files: {files}}}"
    results = [
        tiny(
            task,
            f"data.path={tmp_path}/{name}",
            "data.validation_fraction=0.3",
            "data.max_train_rows=null",
            "train.epochs=3",
            "method=finetune",
            f"output_dir={tmp_path}/run-{name}",
        ).fit()
        for name in ("a", "b")
    ]
    first, second = results
    assert first["scores"]["validation"] == second["scores"]["validation"]
    assert first["best_epoch"] == second["best_epoch"]
    assert first["scores"]["dev"]["accuracy"] == pytest.approx(1 - second["scores"]["dev"]["accuracy"])


def test_a_student_may_start_from_the_fine_tuned_teachers_layers_and_head(tiny):
    options = ["student.init=finetuned_layers", "student.num_layers=1", "method=finetune"]
    experiment = tiny(*options)
    assert experiment.fit()["method"] == "finetune"
    assert experiment.teacher_folder.results.exists(), "the teacher is needed for the start alone"
    teacher = load_finetuned(str(experiment.teacher_folder.model), experiment.task).state_dict()
    student, _ = build_student(experiment.config, experiment.task, str(experiment.teacher_folder.model))
    for name, weight in student.state_dict().items():
        # The `skip` map takes the teacher's second layer of two.
        assert torch.equal(weight, teacher[name.replace("layer.0.", "layer.1.")]), name
    assert experiment.config.defining_settings("finetune")["teacher.train.lr"] == 1e-3
    assert "teacher.train.lr" not in tiny("method=finetune").config.defining_settings("finetune")


def test_kd_from_the_fine_tuned_teachers_own_layers_begins_above_a_start_from_nothing(tiny):
    losses = {}
    for init in ("finetuned_layers", "teacher_layers"):
        options = [
            f"student.init={init}",
            "student.num_layers=2",
            "method=kd",
            "train.max_steps=1",
            "train.log_every=1",
        ]
        experiment = tiny(*options, f"output_dir={tiny().config.runs_dir}/{init}", "teacher.train.epochs=3")
        experiment.fit()
        lines = (experiment.folder.path / "metrics.jsonl").read_text().splitlines()
        losses[init] = json.loads(lines[0])["distillation_loss"]
    assert losses["finetuned_layers"] < losses["teacher_layers"]


@pytest.mark.slow  # the compiler takes minutes
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("method", ["reptile", "kd"])
def test_a_compiled_run_ends_as_one_that_is_not_and_compiles_once_for_all_lengths(tiny, tmp_path, method):
    """Within rounding, the teacher's fine-tuning included."""
    options = [f"method={method}", "train.epochs=3", "teacher.train.epochs=3"]
    plain = tiny(*options)
    expected = plain.fit()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = tiny(*options, "compute.compile=true", f"runs_dir={tmp_path}/compiled")
    results = compiled.fit()
    assert results["scores"] == expected["scores"]
    weights = weights_of(compiled)
    for name, weight in weights_of(plain).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5, msg=name)
    # The teacher and the student, each in training, in evaluation, and on the one row whose latency is measured.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 6
