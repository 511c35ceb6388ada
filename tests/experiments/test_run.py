"""One run, from its start to the files in its folder, with models of a few thousand weights."""

import copy
import json
import logging
import math
import os
import shutil
import stat

import numpy as np
import pytest
import torch
import transformers

from reptile_distil.config.config import load_config
from reptile_distil.data import toy
from reptile_distil.experiments import run as run_module
from reptile_distil.experiments.setup import build_batches
from reptile_distil.models.packing import packed_logits
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.models.toy import toy_config, toy_tokenizer
from tests.helpers.experiments import epochs_of, weights_of


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


@pytest.mark.parametrize("task", ["toy-pair", "toy-threeway", "toy-regression"])
def test_metadistil_runs_on_every_kind_of_task(tiny, task):
    results = tiny(f"task={task}", "method=metadistil", "metadistil.assumed_optimizer=adamw", "loss.soft=mse").fit()
    assert math.isfinite(results["score"])


def test_lgtm_trains_on_the_rows_that_are_not_in_the_quiz_and_says_how_large_the_influence_is(tiny):
    experiment = tiny("method=lgtm", "train.epochs=2", "lgtm.quiz_fraction=0.2", "train.micro_batch_size=5")
    assert experiment.fit()["num_train_rows"] == 56
    for record in epochs_of(experiment.folder):
        names = {"assumed_loss", "quiz_loss", "auxiliary_loss", "teacher_grad_norm", "influence_ratio"}
        assert all(record["train"][name] > 0 for name in names)
        assert record["teacher_drift"] > 0
        assert record["teacher_scores"]["dev"]["accuracy"] > 0


@pytest.mark.parametrize("task", ["toy-pair", "toy-regression"])
def test_lgtm_runs_on_every_kind_of_task(tiny, task):
    assert math.isfinite(tiny(f"task={task}", "method=lgtm", "lgtm.assumed_optimizer=adamw").fit()["score"])


@pytest.mark.parametrize("task", ["toy-sentence", "toy-regression"])
@pytest.mark.parametrize("method", ["prokt", "cotrain"])
def test_a_teacher_that_goes_on_learning_has_a_rate_a_loss_and_a_score_of_its_own(tiny, method, task):
    experiment = tiny(f"task={task}", f"method={method}", f"{method}.teacher_lr=1e-2", "train.epochs=2")
    assert math.isfinite(experiment.fit()["score"])
    records = [json.loads(line) for line in (experiment.folder.path / "metrics.jsonl").read_text().splitlines()]
    for record in epochs_of(experiment.folder):
        assert {"teacher_loss", "teacher_grad_norm"} < record["train"].keys()
        assert record["teacher_drift"] > 0
        assert record["teacher_scores"]["dev"]
    assert all(record["teacher_lr"] > 0 for record in records if record["event"] == "step")


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


@pytest.mark.parametrize("method", ["kd", "reptile", "metadistil", "prokt", "lgtm"])
def test_terms_on_hidden_states_are_logged_by_name(tiny, method):
    layers = ["teacher.pretrained=toy-bert-4L-16H", "student.num_layers=2"]
    experiment = tiny(f"method={method}", *layers, "loss.patient=1", "loss.hidden=0.1", "loss.layer_map=last")
    experiment.fit()
    (epoch,) = epochs_of(experiment.folder)
    assert epoch["train"]["patient_loss"] > 0
    assert epoch["train"]["hidden_loss"] > 0


def test_a_frozen_teacher_does_not_drift(tiny):
    experiment = tiny("method=kd", "train.epochs=2")
    results = experiment.fit()
    assert results["teacher"]["scores_at_start"] == results["teacher"]["scores_at_end"]
    assert [record["teacher_drift"] for record in epochs_of(experiment.folder)] == [0.0, 0.0]


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


@pytest.mark.parametrize(("max_steps", "shown"), [(2, "epoch 1/1:"), (7, "epoch 1/2:"), ("null", "epoch 1/4:")])
def test_the_log_counts_the_epochs_that_will_be_run(tiny, caplog, max_steps, shown):
    caplog.set_level(logging.INFO)
    tiny("method=finetune", "train.epochs=4", f"train.max_steps={max_steps}").fit()
    assert next(message for message in caplog.messages if message.startswith("epoch 1/")).startswith(shown)


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


def test_a_packed_run_is_the_padded_run(tiny, monkeypatch):
    """The toy models have no dropout."""
    packed = []
    monkeypatch.setattr(
        "reptile_distil.models.packing.packed_logits", lambda *inputs: packed.append(1) or packed_logits(*inputs)
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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_every_file_of_a_run_has_the_access_that_the_umask_leaves(tiny, umask):
    before = os.umask(umask)
    try:
        experiment = tiny("method=finetune", "checkpoint.keep_when_finished=true", "train.max_steps=2")
        experiment.fit()
    finally:
        os.umask(before)
    written = [path for path in experiment.folder.path.rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"model.safetensors", "tensors.safetensors", "results.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~umask}


def test_latency_is_measured_where_teacher_and_student_are_in_memory(tiny):
    latency = tiny("method=kd").fit()["latency"]
    assert (latency["length"], latency["device"], list(latency["batches"])) == (32, "cpu", ["1", "32"])
    assert "latency" not in tiny("method=finetune").fit()


def test_a_weak_teacher_is_said_as_training_starts_and_ends(tiny, caplog):
    """This one says the same class for every row, and its student learns more from the labels than it knows."""
    experiment = tiny("method=kd", "train.epochs=4", "train.lr=5e-3", "data.max_train_rows=1500")
    experiment.fit_teacher()
    caplog.clear()
    results = experiment.fit()
    teacher, labels = results["teacher"], experiment.predict_split("dev").labels
    share = max(labels.count(label) for label in set(labels)) / len(labels)
    assert teacher["chance"]["dev"]["accuracy"] == pytest.approx(share)
    assert teacher["one_class"] == ["dev"]
    own, student = teacher["scores_at_start"]["dev"]["accuracy"], results["scores"]["dev"]["accuracy"]
    assert f"on dev the teacher (accuracy {100 * own:.2f} %) says the same for every row" in caplog.text
    below = f"is below its student (accuracy {100 * student:.2f} %)"
    assert f"on dev the teacher (accuracy {100 * own:.2f} %) {below}" in caplog.text


def test_validation_rows_choose_and_the_dev_split_is_looked_at_once(tiny, monkeypatch):
    looks = []
    real = run_module.predict_splits

    def predict_splits(model, splits, *rest):
        looks.append(tuple(splits))
        return real(model, splits, *rest)

    monkeypatch.setattr(run_module, "predict_splits", predict_splits)
    experiment = tiny("data.validation_fraction=0.2", "train.epochs=2", "method=kd")
    teacher = experiment.fit_teacher()
    assert looks == [("dev",)]
    results = experiment.fit()
    assert looks[1:] == [("dev",)], "the best student; the teacher's scores are kept"
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


def test_a_teacher_that_moves_is_scored_on_the_dev_split_as_it_is_at_the_end(tiny, monkeypatch):
    weights = {}
    real = run_module.Run._train

    def train(run, *arguments):
        outcome = real(run, *arguments)
        weights[run.role] = copy.deepcopy(run.components.teacher)
        return outcome

    options = ("train.epochs=3", "train.lr=3e-2", "reptile.mu=0.5")  # so that it comes to say something else
    experiment = tiny("method=reptile", "data.validation_fraction=0.2", *options)
    experiment.fit_teacher()
    monkeypatch.setattr(run_module.Run, "_train", train)
    teacher = experiment.fit()["teacher"]
    batches = build_batches(experiment.config, experiment.task, "dev", toy_tokenizer(), experiment.config.train)
    teacher_at_end = weights["reptile"].eval()
    labels = np.array(toy.load_split(experiment.task, "dev")["label"])
    with torch.no_grad():
        right = [
            teacher_at_end(batch).argmax(dim=1).numpy() == labels[rows] for rows, batch in batches.in_length_order()
        ]
    assert teacher["scores_at_end"]["dev"]["accuracy"] == pytest.approx(float(np.concatenate(right).mean()))
    assert teacher["scores_at_end"]["dev"] != teacher["scores_at_start"]["dev"]


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
