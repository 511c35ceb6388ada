"""What a configuration becomes: tasks, rows, models and tokenizers, and what is refused before anything is trained."""

import json

import pytest
import torch

from reptile_distil.errors import ConfigError, DataError, LayerMapError, ModelError, ReptileDistilError
from reptile_distil.experiments import teachers as kept
from reptile_distil.experiments.build_task import build_task
from reptile_distil.experiments.setup import build_batches, build_student, build_training_batches
from reptile_distil.losses.distillation import DistillationLoss
from reptile_distil.models.classifier import Teacher
from reptile_distil.models.pretrained import load_finetuned
from reptile_distil.models.tokenizer import load_tokenizer
from reptile_distil.models.toy import toy_tokenizer
from reptile_distil.runtime.compute import choose_device
from reptile_distil.runtime.processes import Processes
from tests.helpers.models import bert


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


NO_TERM = ("task=toy-regression", "loss.regression=none")


@pytest.mark.parametrize("method", ["lgtm", "metadistil"])
@pytest.mark.parametrize("where", ["method={}", "compare_with=[{}]"])
def test_a_teacher_that_learns_from_a_quiz_needs_a_term_that_depends_on_it(tiny, method, where):
    options = (where.format(method), *NO_TERM)
    message = (
        "loss.regression = none leaves the regression toy-regression without a distillation term, so that "
        f"{method} could teach its teacher nothing: set it to mse, or choose another method"
    )
    with pytest.raises(ConfigError) as refused:
        tiny(*options)
    assert str(refused.value) == message
    for term in ("loss.regression=mse", "loss.hidden=1", "loss.name=tests.experiments.test_setup:OwnLoss"):
        tiny(*options, term)
    tiny(where.format(method), "loss.regression=none")  # of classes


class OwnLoss(DistillationLoss):
    """Whatever it compares is its own."""


@pytest.mark.parametrize("method", ["kd", "reptile", "prokt", "cotrain", "checkpoints"])
def test_a_regression_of_which_no_loss_is_left_is_refused(tiny, method):
    options = (f"method={method}", *NO_TERM)
    with pytest.raises(ConfigError, match=r"distillation term, so that loss.alpha = 1 leaves no loss at all: set it"):
        tiny(*options, "loss.alpha=1")
    tiny(*options)
    tiny(*options, "loss.alpha=1", "loss.hidden=1")
    tiny("method=finetune", *NO_TERM, "loss.alpha=1")


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


def test_unequal_widths_are_fine_for_metadistil_but_not_for_terms_on_hidden_states(tiny, tmp_path):
    start = ["student.init=pretrained", "student.num_layers=null", "student.pretrained=toy-bert-1L-32H"]
    with pytest.raises(ModelError, match=r"the student's is 32 and the teacher's 16: set both to 0"):
        tiny("method=metadistil", *start, "loss.hidden=1").fit()
    with pytest.raises(ModelError, match=r"loss\.patient leaves the student's last layer out"):
        tiny("method=metadistil", "loss.patient=1").fit()
    assert not tiny().teacher_folder.path.exists()
    assert tiny("method=metadistil", *start).fit()["score"] > 0


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


@pytest.mark.parametrize("keep_logits", [True, False])
def test_a_bert_teacher_gets_its_segments_though_the_students_tokenizer_gives_none(
    tiny, tmp_path, monkeypatch, keep_logits
):
    save_distilbert(tmp_path / "student")
    segments = []
    outputs = Teacher.outputs
    monkeypatch.setattr(
        Teacher,
        "outputs",
        lambda self, b, **asked: segments.append(b["token_type_ids"].max()) or outputs(self, b, **asked),
    )
    monkeypatch.setattr(kept, "compare_latency", lambda *models, **how: None)  # random tokens, of one segment
    start = ["student.init=pretrained", "student.num_layers=null", f"student.pretrained={tmp_path}/student"]
    experiment = tiny("task=toy-pair", "method=kd", f"kd.keep_logits={keep_logits}".lower(), *start)
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
        tiny("method=reptile", f"teacher.finetuned={model}").fit()


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


def test_an_own_task_with_a_toys_name_reads_its_own_files(tiny, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\ngood,up\nbad,down\n")
    files = "{train: rows.csv, dev: rows.csv}"
    task = f"task={{name: toy-sentence, text: [text], labels: [down, up], metrics: [accuracy], files: {files}}}"
    results = tiny("method=finetune", task, f"data.path={tmp_path}", "data.max_train_rows=null").fit()
    assert results["num_train_rows"] == 2


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_trained(tiny, tmp_path):
    """Its ids would run past the embeddings in the middle of an epoch."""
    bert(2, num_labels=2).save_pretrained(tmp_path / "model")
    toy_tokenizer().save_pretrained(tmp_path / "model")
    experiment = tiny("data.max_length=16", f"teacher.pretrained={tmp_path}/model")
    for fit in (experiment.fit, experiment.fit_teacher):
        with pytest.raises(ModelError, match=r"its tokenizer gives ids up to .* but the model has only 30 embeddings"):
            fit()
    assert not (tmp_path / "runs" / "toy-sentence" / "teacher-seed42").exists()


def test_names_for_a_teacher_from_elsewhere_never_turn_round_what_runs_have_trained(tiny, tmp_path):
    plain = tiny("method=kd")
    named = tiny("method=kd", "teacher.label_names=[positive, negative]", f"output_dir={tmp_path}/named")
    assert named.fit()["scores"] == plain.fit()["scores"]
    assert named.evaluate("dev") == plain.evaluate("dev")


def test_metadistil_with_several_processes_is_refused_before_anything_is_trained(tiny, monkeypatch):
    monkeypatch.setattr("reptile_distil.experiments.experiment.start_processes", lambda _: Processes(0, 2))
    for overrides in (["method=metadistil"], ["method=kd", "compare_with=[metadistil]"], ["method=lgtm"]):
        with pytest.raises(ConfigError, match=r"^method (metadistil|lgtm) takes one process, but 2 were started: star"):
            tiny(*overrides)
    tiny("method=reptile")


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
