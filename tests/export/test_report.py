"""The report card: operations, times, ONNX, int8, the model card, and its upload."""

import json
import runpy
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from reptile_distil import Experiment, cli
from reptile_distil.errors import ConfigError, MissingExtraError, ModelError, RunError
from reptile_distil.experiments.build_task import build_task
from reptile_distil.export import model_card, onnx_export, report
from reptile_distil.runtime.hub import push
from reptile_distil.runtime.measuring import Timing, pad_at_random, random_batch, time_in_turn
from tests.helpers.models import bert, classifier
from tests.helpers.paths import ROOT, TINY
from tests.helpers.tables import cells_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder of a finished toy run by Reptile and of its teacher's."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptile_distil.experiments.run.draw_after_run", lambda folder: None)
        Experiment.from_yaml(TINY, f"runs_dir={folder}").fit()
    return folder / "toy-sentence"


@pytest.fixture(scope="module")
def weighed(runs):
    """A report without ONNX on a teacher and a student."""
    return report.make_report(runs / "reptile-seed42", lengths=(4, 8), batch_sizes=(2,), seconds=0.0)


def test_a_card_of_a_run_that_has_lost_its_versions_names_none(runs, tmp_path):
    run = shutil.copytree(runs / "reptile-seed42", tmp_path / "run")
    with_versions = model_card.render_card(report.make_report(run, lengths=(4,), batch_sizes=(1,), seconds=0.0))
    (run / "environment.json").unlink()
    without = model_card.render_card(report.make_report(run, lengths=(4,), batch_sizes=(1,), seconds=0.0))
    versions = f" (torch {torch.__version__}, transformers {transformers.__version__})"
    assert versions in with_versions
    assert versions not in without
    assert " seconds on cpu. The values that decide the result:" in without


def test_contenders_are_called_in_turn_and_their_own_time_is_counted():
    now, calls = [0.0], []

    def contender(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    contenders = {"slow": contender("slow", 3.0), "fast": contender("fast", 1.0)}
    timings = time_in_turn(contenders, seconds=20.0, num_warmups=1, min_rounds=2, clock=lambda: now[0])
    assert timings == {"slow": Timing(3.0, 3.0, 3.0, 5), "fast": Timing(1.0, 1.0, 1.0, 5)}
    assert calls == ["slow", "fast"] * 6
    assert time_in_turn(contenders, seconds=0.0, min_rounds=3, clock=lambda: now[0])["fast"].num_rounds == 3
    assert time_in_turn(contenders, seconds=1e9, max_rounds=4, clock=lambda: now[0])["fast"].num_rounds == 4


def test_a_time_is_the_median_with_the_middle_half_of_the_rounds():
    now, spent = [0.0], iter([9.0, 1.0, 2.0, 3.0, 4.0, 100.0])

    def call():
        now[0] += next(spent)

    timing = time_in_turn({"x": call}, seconds=0.0, num_warmups=1, min_rounds=5, clock=lambda: now[0])["x"]
    assert timing == Timing(3.0, 2.0, 4.0, 5)


def test_random_batches_hold_no_padding_and_padded_ones_hold_it_where_the_mask_is_0():
    full = random_batch(200, 9, vocab_size=5, pad_token_id=2)
    assert set(full["input_ids"].unique().tolist()) == {0, 1, 3, 4}
    padded = pad_at_random(full, pad_token_id=2)
    assert torch.equal(padded["input_ids"] == 2, padded["attention_mask"] == 0)
    lengths = padded["attention_mask"].sum(1)
    assert lengths[0] == 9
    assert set(lengths.tolist()) == set(range(1, 10))


def test_a_report_knows_parameters_bytes_flops_and_the_scores_of_both(weighed, runs):
    student, teacher = weighed.weights["student"], weighed.weights["teacher"]
    saved = json.loads((runs / "reptile-seed42/results.json").read_text())
    assert student.num_parameters == saved["num_parameters"]
    assert teacher.num_parameters == saved["teacher"]["num_parameters"]
    assert student.num_bytes == (runs / "reptile-seed42/model/model.safetensors").stat().st_size
    one_layer = 8 * 4 * 16**2 + 4 * 4**2 * 16 + 4 * 4 * 16 * 64
    assert student.flops[4] == one_layer + 2 * 16 * 16 + 2 * 16 * 2
    assert teacher.flops[4] == 2 * one_layer + 2 * 16 * 16 + 2 * 16 * 2
    assert weighed.teacher_scores == saved["teacher"]["scores_at_start"]


def test_student_and_teacher_are_measured_side_by_side_at_every_length_and_batch_size(weighed):
    assert [(speed.device, speed.batch_size, speed.length) for speed in weighed.speeds][:2] == [
        ("cpu", 2, 4),
        ("cpu", 2, 8),
    ]
    for speed in weighed.speeds:
        assert list(speed.timings) == ["student", "teacher"]
        assert all(0 < timing.low <= timing.median <= timing.high for timing in speed.timings.values())


def test_another_teacher_can_be_asked_for_and_brings_its_own_scores(runs):
    other = report.make_report(
        runs / "reptile-seed42/model",
        teacher=runs / "reptile-seed42/model",
        lengths=(4,),
        batch_sizes=(1,),
        seconds=0.0,
    )
    assert other.weights["teacher"].num_parameters == other.weights["student"].num_parameters
    assert other.teacher_scores == other.results.scores


def test_a_teachers_own_run_is_weighed_alone(runs):
    alone = report.make_report(runs / "teacher-seed42", lengths=(4,), batch_sizes=(1,), seconds=0.0)
    assert list(alone.weights) == ["student"]
    assert "speed-up" not in model_card.render_card(alone)


def test_what_cannot_be_weighed_is_refused(runs, tmp_path):
    with pytest.raises(RunError, match="is neither the folder of a finished run nor the model/ folder in one"):
        report.make_report(tmp_path)
    with pytest.raises(ConfigError, match=r"--lengths 33: .* 1 to 32 tokens \(data.max_length\)"):
        report.make_report(runs / "reptile-seed42", lengths=(33,))
    with pytest.raises(ConfigError, match="--batch-sizes 0"):
        report.make_report(runs / "reptile-seed42", batch_sizes=(0,))
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match=rf"--seconds {seconds:g}: expected 0 or more"):
            report.make_report(runs / "reptile-seed42", seconds=seconds)


def test_the_front_matter_is_what_the_hub_reads(weighed):
    data = ModelCard(model_card.render_card(weighed, license="apache-2.0")).data
    assert (data.language, data.license, data.library_name) == ("en", "apache-2.0", "transformers")
    assert (data.pipeline_tag, data.metrics) == ("text-classification", ["accuracy"])
    assert data.tags == ["knowledge-distillation", "reptile", "meta-learning"]
    assert data.base_model is None
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("toy-sentence", "dev", "accuracy")
    assert result.metric_value == pytest.approx(weighed.results.scores["dev"]["accuracy"])


def glue_report(weighed, **results):
    config = Experiment.from_yaml(ROOT / "configs/stsb.yaml", "data.path=/home/me/glue").config
    task = build_task(config)
    decisive = config.defining_settings("reptile")
    values = weighed.results.model_copy(update={"task": "stsb", "decisive": decisive, **results})
    return report.Report(
        weighed.folder, config, task, values, weighed.environment, weighed.weights, None, weighed.speeds
    )


def test_a_glue_student_names_base_model_data_set_and_metrics_of_the_hub(weighed):
    card = model_card.render_card(glue_report(weighed, scores={"dev": {"pearson": 0.5, "spearmanr": 0.25}}))
    data = ModelCard(card).data
    assert (data.base_model, data.datasets) == ("huawei-noah/TinyBERT_General_6L_768D", ["nyu-mll/glue"])
    assert data.metrics == ["pearsonr", "spearmanr"]
    found = [(item.dataset_type, item.dataset_config, item.dataset_split) for item in data.eval_results]
    assert found == [("nyu-mll/glue", "stsb", "validation")] * 2
    assert [item.metric_value for item in data.eval_results] == [0.5, 0.25]


def test_an_undefined_score_is_a_dash_and_not_in_the_front_matter(weighed):
    card = model_card.render_card(glue_report(weighed, scores={"dev": {"pearson": None, "spearmanr": 0.25}}))
    assert [item.metric_type for item in ModelCard(card).data.eval_results] == ["spearmanr"]
    assert ["student", "-", "25.0"] in cells_of(card)


def test_a_card_says_nothing_of_where_things_lie_on_ones_disk(weighed):
    card = model_card.render_card(glue_report(weighed, scores={"dev": {"pearson": 0.5, "spearmanr": 0.25}}))
    assert "/home/me" not in card
    assert ["`data.path`", "`glue`"] in cells_of(card)
    several = {"teachers": ["/home/me/a/one", "/home/me/two"], "data.transfer.files": ["/home/me/more.csv"]}
    decisive = {**weighed.results.decisive, **several}
    card = model_card.render_card(replace(weighed, results=weighed.results.model_copy(update={"decisive": decisive})))
    assert "/home/me" not in card
    assert ["`teachers`", "`['one', 'two']`"] in cells_of(card)


def test_a_card_says_what_an_empty_text_was_read_as(weighed):
    assert weighed.stand_in is None  # its tokenizer adds tokens of its own
    card = model_card.render_card(replace(weighed, stand_in="<pad>"))
    assert r"give them <pad>, as which" in card.replace("\\", "").replace("&lt;", "<").replace("&gt;", ">")


def test_the_body_has_recipe_limits_citation_and_that_one_seed_is_one(weighed):
    card = model_card.render_card(weighed)
    for piece in ("| `reptile.mu` ", "`5e-05`", "one seed (42): n = 1", "## Limits", "@inproceedings{ma-etal-2022"):
        assert piece in card
    assert "huawei-noah" not in card  # a default that this run did not read
    assert [row[0] for row in cells_of(card)].count("cpu: batch x length") == 1


@pytest.mark.parametrize(
    ("fraction", "splits", "sentence"),
    [
        (None, ("train", "dev"), "The dev split chose the best epoch and is also what is reported"),
        (0.2, ("train", "dev"), "the validation score is a little too high; the dev score is not."),
        (0.2, ("train",), "Training rows that were held out chose the best epoch, so the validation score"),
    ],
)
def test_the_limits_say_which_rows_chose_the_epoch(weighed, fraction, splits, sentence):
    data = weighed.config.data.model_copy(update={"validation_fraction": fraction})
    config = weighed.config.model_copy(update={"data": data})
    task = replace(weighed.task, splits={split: weighed.task.splits[split] for split in splits})
    values = weighed.results.scores["dev"]
    scores = {"validation": values} if fraction else {}
    scores |= {split: values for split in splits if split != "train"}
    results = weighed.results.model_copy(update={"scores": scores})
    card = model_card.render_card(replace(weighed, config=config, task=task, results=results, int8_scores=scores))
    assert sentence in card
    assert ("dev split" in card) == ("dev" in splits)
    assert "of the best epoch on that split" in card or fraction
    found = ModelCard(card).data.eval_results or []
    assert {item.dataset_split for item in found} == set(splits) - {"train"}
    assert ("dev split chose" in card) == (fraction is None)
    assert ("dev score is not" in card) == (fraction is not None and "dev" in splits)


def test_what_is_kept_is_the_students_score_over_the_teachers(weighed):
    values = vars(weighed)
    shown = report.Report(
        **{
            **values,
            "results": weighed.results.model_copy(update={"scores": {"dev": {"accuracy": 0.6}}}),
            "teacher_scores": {"dev": {"accuracy": 0.8}},
            "weak_teacher": [],
        }
    )
    assert ["kept of the teacher's", "75.0 %"] in cells_of(model_card.performance_tables(shown))


@pytest.mark.parametrize(
    ("teacher", "chance", "one_class", "student", "sentences"),
    [
        (0.8, 0.5, [], 0.6, []),
        (0.8, 0.5, [], 0.8, []),
        (0.6, 0.5, [], 0.8, ["below its student"]),
        (0.5, 0.5, [], 0.4, ["no better than saying the most frequent class for every row (accuracy 50.00 %)"]),
        (0.4, 0.5, [], 0.7, ["no better than", "below its student (accuracy 70.00 %), which has outgrown it"]),
        (0.5, 0.5, ["dev"], 0.5, ["says the same for every row: that a student agrees with it means nothing"]),
        (0.5, 0.5, ["dev"], 0.6, ["says the same for every row", "below its student"]),
        (0.7, None, [], 0.6, []),
    ],
)
def test_a_weak_teacher_is_said_in_card_and_report(weighed, teacher, chance, one_class, student, sentences):
    """With a run made before such things were kept, as far as they can be known."""
    of_teacher = weighed.results.teacher.model_copy(
        update={
            "scores_at_start": {"dev": {"accuracy": teacher}},
            "chance": None if chance is None else {"dev": {"accuracy": chance}},
            "one_class": one_class,
        }
    )
    scores = {"dev": {"accuracy": student}}
    results = weighed.results.model_copy(update={"scores": scores, "teacher": of_teacher})
    own = of_teacher.scores_at_start
    weak = report.describe_weakness(own, results)
    assert len(weak) == len(sentences)
    for found, expected in zip(weak, sentences, strict=True):
        assert found.startswith(f"on dev the teacher (accuracy {100 * teacher:.2f} %) ")
        assert expected in found
    shown = report.Report(**{**vars(weighed), "results": results, "teacher_scores": own, "weak_teacher": weak})
    for text in (model_card.performance_tables(shown), model_card.render_card(shown)):
        assert text.count("**A weak teacher:** ") == len(sentences)
        kept = "weak teacher" if sentences else f"{100 * student / teacher:.1f} %"
        assert ["kept of the teacher's", kept] in cells_of(text)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "mpnet", "distilbert", "albert"])
def test_onnx_gives_pytorchs_logits_at_lengths_and_batch_sizes_that_were_not_traced(tmp_path, kind):
    pytest.importorskip("onnxruntime")
    model = classifier(kind).eval()
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] * (kind in ("bert", "electra", "albert"))
    tokenizer = type("Names", (), {"model_input_names": names})
    assert onnx_export.export_onnx(model, tokenizer, tmp_path / "model.onnx") <= 1e-4
    session = onnx_export.OnnxModel(tmp_path / "model.onnx").session
    assert [(item.name, item.type) for item in session.get_inputs()] == [(name, "tensor(int64)") for name in names]
    for rows, length in ((1, 3), (5, 11)):
        full = random_batch(rows, length, vocab_size=30, pad_token_id=model.config.pad_token_id or 0, seed=rows)
        for batch in (full, pad_at_random(full, pad_token_id=model.config.pad_token_id or 0)):
            feed = {name: batch[name] for name in names}
            with torch.no_grad():
                expected = model(**feed).logits.numpy()
            (logits,) = session.run(["logits"], {name: value.numpy() for name, value in feed.items()})
            assert np.abs(logits - expected).max() <= 1e-4


def test_an_export_that_differs_is_refused_and_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_export, "parity", lambda model, exported: 2e-4)
    tokenizer = type("Names", (), {"model_input_names": ["input_ids", "attention_mask"]})
    with pytest.raises(ModelError, match=r"differs from PyTorch by 2\.0e-04 in a logit, more than 1e-04"):
        onnx_export.export_onnx(bert(1), tokenizer, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


class OwnError(Exception):
    """As exporters have them."""


NOT_EXPORTED = "a BertForSequenceClassification cannot be exported to ONNX: {}: no such operator; leave --onnx out"
FAULTS = {
    "torch.onnx.export": NOT_EXPORTED,
    "reptile_distil.export.onnx_export.OnnxModel": NOT_EXPORTED,
    "onnxruntime.quantization.quantize_dynamic": (
        "the ONNX model cannot be quantised: {}: no such operator; leave --int8 out"
    ),
}


@pytest.mark.parametrize("kind", [OwnError, RuntimeError, AssertionError])
@pytest.mark.parametrize("where", FAULTS)
@pytest.mark.parametrize("exists", [False, True])
def test_any_exception_of_an_exporter_is_one_sentence_and_leaves_what_was_there(
    tmp_path, monkeypatch, kind, where, exists
):
    pytest.importorskip("onnxruntime.quantization")
    folder = tmp_path / "onnx"
    file = folder / "model.onnx"
    if exists:
        folder.mkdir()
        file.write_text("old")

    def fail(*arguments, **options):
        for path in map(str, arguments):
            if path.startswith(str(folder)):
                Path(path).write_text("half")
        raise kind("no such\noperator")

    monkeypatch.setattr(where, fail)
    tokenizer = type("Names", (), {"model_input_names": ["input_ids", "attention_mask"]})
    if "quantize" in where:
        call = partial(onnx_export.quantize_int8, tmp_path / "made.onnx", file)
    else:
        call = partial(onnx_export.export_onnx, bert(1), tokenizer, file)
    with pytest.raises(ModelError) as fault:
        call()
    assert str(fault.value) == f"{file}: {FAULTS[where].format(kind.__name__)}"
    assert folder.exists() == exists
    assert not exists or [(path.name, path.read_text()) for path in folder.iterdir()] == [("model.onnx", "old")]


def test_parity_is_the_largest_difference_of_a_logit(tmp_path):
    pytest.importorskip("onnxruntime")
    model = bert(1).eval()
    tokenizer = type("Names", (), {"model_input_names": ["input_ids", "attention_mask", "token_type_ids"]})
    onnx_export.export_onnx(model, tokenizer, tmp_path / "model.onnx")
    with torch.no_grad():
        model.classifier.bias[1] += 0.5
    assert onnx_export.parity(model, onnx_export.OnnxModel(tmp_path / "model.onnx")) == pytest.approx(0.5, abs=1e-4)


def test_int8_is_weighed_timed_and_scored_on_the_dev_split(runs):
    onnxruntime = pytest.importorskip("onnxruntime")
    found = report.make_report(runs / "reptile-seed42", lengths=(4,), batch_sizes=(1,), seconds=0.0, int8=True)
    assert list(found.speeds[0].timings) == ["student", "teacher", "onnx", "int8"]
    onnx = runs / "reptile-seed42/model/onnx"
    assert found.onnx_bytes == {
        "onnx": (onnx / "model.onnx").stat().st_size,
        "int8": (onnx / "model_int8.onnx").stat().st_size,
    }
    assert found.onnx_difference <= 1e-4
    # Its accuracy again, row by row, with nothing of ours but the data.
    experiment = Experiment.from_yaml(runs / "reptile-seed42/config.yaml")
    tokenizer = transformers.AutoTokenizer.from_pretrained(runs / "reptile-seed42/model")
    session = onnxruntime.InferenceSession(str(runs / "reptile-seed42/model/onnx/model_int8.onnx"))
    from reptile_distil.data.toy import load_split

    right = 0
    for row in load_split(experiment.task, "dev"):
        feed = tokenizer(row["text"], truncation=True, max_length=32, return_tensors="np")
        (logits,) = session.run(None, dict(feed))
        right += int(logits.argmax() == row["label"])
    assert found.int8_scores["dev"]["accuracy"] == pytest.approx(right / 500, abs=0.01)
    assert "student, ONNX int8" in model_card.render_card(found)


def test_the_int8_score_is_measured_on_the_int8_file_itself(runs, monkeypatch):
    """A file that says the opposite of the student must score 1 minus its accuracy."""
    pytest.importorskip("onnxruntime")
    folder = runs / "reptile-seed42/model"

    def write_the_opposite(path, target):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            model.classifier.weight.neg_()
            model.classifier.bias.neg_()
        onnx_export.export_onnx(model, transformers.AutoTokenizer.from_pretrained(folder), target)

    monkeypatch.setattr(report, "quantize_int8", write_the_opposite)
    found = report.make_report(runs / "reptile-seed42", lengths=(4,), batch_sizes=(1,), seconds=0.0, int8=True)
    assert found.int8_scores["dev"]["accuracy"] == pytest.approx(1 - found.results.scores["dev"]["accuracy"])


def test_without_the_extra_onnx_is_refused_before_anything_is_measured(runs, monkeypatch):
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"^ONNX needs onnx and onnxruntime: pip install 'reptile-distil\[onnx\]'$"
    ):
        report.make_report(runs / "reptile-seed42", onnx=True)


class FakeHub:
    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repo, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", repo, options))

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], options["folder_path"]))


def test_push_creates_a_private_repository_and_uploads_the_model_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("reptile_distil.runtime.hub.hub_is_reachable", lambda: True)
    hub = FakeHub()
    assert push(tmp_path, "me/student", client=hub) == "https://huggingface.co/me/student"
    assert hub.calls == [
        ("create", "me/student", {"private": True, "exist_ok": True}),
        ("upload", "me/student", str(tmp_path)),
    ]


def test_a_hub_that_refuses_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("reptile_distil.runtime.hub.hub_is_reachable", lambda: True)
    refusal = LocalTokenNotFoundError("no token:\nlog in first")
    with pytest.raises(RunError, match=r"^--push me/student: the hub refused: no token: log in first$"):
        push(tmp_path, "me/student", client=FakeHub(refusal))


def test_offline_a_push_is_refused_before_anything_is_measured(runs, capsys):
    main = runpy.run_path(str(ROOT / "scripts/report.py"))["main"]
    folder = runs / "teacher-seed42/model"
    assert cli.run(main, ["--model", str(folder), "--push", "me/student"]) == 2
    assert capsys.readouterr().err == (
        "error: --push me/student: the hub cannot be reached from here; leave --push out, and upload the folder where "
        f"there is a network: hf upload me/student {folder}\n"
    )
    assert not (folder / "README.md").exists()


def test_the_script_writes_the_card_beside_the_weights_and_the_student_still_loads(runs, capsys):
    main = runpy.run_path(str(ROOT / "scripts/report.py"))["main"]
    folder = runs / "reptile-seed42/model"
    sizes = ["--lengths", "4", "--batch-sizes", "1", "--seconds", "0"]
    assert cli.run(main, ["--model", str(folder), *sizes]) == 0
    assert f"model card: {folder / 'README.md'}" in capsys.readouterr().out
    assert ModelCard.load(folder / "README.md").data.model_name == "toy-sentence-reptile"
    assert transformers.AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 2
